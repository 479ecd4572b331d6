//! How a token is got: each way to log in as path and body, and the file that holds a token.

use std::path::Path;

use serde::Serialize;
use zeroize::Zeroizing;

use super::SecretText;
use super::settings::{AppRole, Auth, CertRole, Role};
use crate::kek::{KekCause, KekError};

/// What a login sends.
#[derive(Serialize)]
#[serde(untagged)]
pub(super) enum Credentials {
    AppRole { role_id: String, secret_id: SecretText },
    Jwt { role: String, jwt: SecretText },
    Cert { name: Option<String> },
}

impl Auth {
    /// The word for it in logs.
    pub(super) fn name(&self) -> &'static str {
        match self {
            Self::TokenFile(_) => "token file",
            Self::AppRole(_) => "approle",
            Self::Jwt(_) => "jwt",
            Self::Kubernetes(_) => "kubernetes",
            Self::Cert(_) => "cert",
        }
    }

    /// Where to log in and with what, its files read anew. `None`: the token lies in a file.
    pub(super) async fn credentials(&self) -> Result<Option<(String, Credentials)>, KekError> {
        let path = |mount: &Option<String>, default: &str| {
            format!("auth/{}/login", mount.as_deref().unwrap_or(default).trim_matches('/'))
        };
        Ok(Some(match self {
            Self::TokenFile(_) => return Ok(None),
            Self::AppRole(AppRole { role_id, secret_id_file, mount }) => {
                let secret_id = read_secret("secret id", secret_id_file).await?;
                (path(mount, "approle"), Credentials::AppRole { role_id: role_id.clone(), secret_id })
            }
            Self::Jwt(Role { role, jwt_file, mount }) | Self::Kubernetes(Role { role, jwt_file, mount }) => {
                let jwt = read_secret("JWT", jwt_file).await?;
                let default = if matches!(self, Self::Jwt(_)) { "jwt" } else { "kubernetes" };
                (path(mount, default), Credentials::Jwt { role: role.clone(), jwt })
            }
            Self::Cert(CertRole { role, mount }) => (path(mount, "cert"), Credentials::Cert { name: role.clone() }),
        }))
    }
}

/// Reads a secret from its file, without the white space around it.
pub(super) async fn read_secret(what: &str, file: &Path) -> Result<SecretText, KekError> {
    let unread = |why: &str| {
        KekError::new(KekCause::Unauthenticated, format!("cannot read the {what} in {}{why}", file.display()))
    };
    let text = tokio::fs::read(file).await.map(Zeroizing::new).map_err(|error| unread("").with_source(error))?;
    let text = std::str::from_utf8(&text).map_err(|_| unread(": not text"))?.trim();
    if text.is_empty() {
        return Err(unread(": the file is empty"));
    }
    Ok(SecretText(Zeroizing::new(text.into())))
}
