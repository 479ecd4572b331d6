//! The settings of a `transit` KEK.

use std::path::PathBuf;
use std::sync::Arc;

use async_trait::async_trait;
use reqwest::header::HeaderValue;
use serde::Deserialize;
use url::Url;

use super::client::{Client, ClientCertificate, Servers};
use super::credentials::Login;
use super::kek::TransitKek;
use super::profile;
use super::session::Session;
use crate::kek::{ClusterName, Kek, KekError, Lineage, RotateKek};
use crate::key_stores::shared::key_store::{Advice, Disabling, KeyStore, Mistake, Parsed, Policy, Profile};
use crate::key_stores::shared::{address, path};
use crate::shell::quoted;

const EXAMPLE: &str = "https://vault.example:8200";

/// Settings as they are written.
#[derive(Clone, Debug, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct Settings {
    /// The servers of one cluster, `https://HOST:PORT`; the next one is asked when one does not answer.
    addresses: Vec<String>,
    /// The namespace that the mount lies in; none by default.
    namespace: Option<String>,
    /// Where the transit engine is mounted.
    #[serde(default = "default_mount")]
    mount: String,
    /// The name of the key. It is never created.
    key: String,
    /// How the plugin logs in.
    auth: AuthSettings,
    /// Certificates of the issuers to trust, PEM, in place of the system's.
    ca_file: Option<PathBuf>,
    /// An HTTP proxy to the servers, `http://HOST:PORT`; none by default.
    proxy: Option<String>,
    /// A client certificate, for the `cert` login and for servers that demand one of every client.
    client_certificate: Option<ClientCertificate>,
    /// Allows plain http to other machines. Everyone on the way then sees tokens and DEKs.
    #[serde(default)]
    insecure_http: bool,
}

fn default_mount() -> String {
    "transit".into()
}

/// How the plugin gets its token: exactly one of these. Files are read again at each login.
#[derive(Clone, Debug, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
struct AuthSettings {
    /// A file with a token in it, kept fresh by somebody else (Vault Agent) or renewed here.
    token_file: Option<PathBuf>,
    /// `AppRole`: a role id, and a secret id in a file.
    approle: Option<AppRole>,
    /// A name, and a password in a file: the logins `userpass`, and `ldap` where it is mounted.
    userpass: Option<UserPass>,
    /// JWT, with keys that the server knows by itself: works before the API server is up.
    jwt: Option<Role>,
    /// Kubernetes: the server asks the very API server that waits for the plugin; for use after boot only.
    kubernetes: Option<Role>,
    /// The client certificate.
    cert: Option<CertRole>,
}

#[derive(Clone, Debug, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
struct AppRole {
    /// The role's id.
    role_id: String,
    /// A file with the secret id.
    secret_id_file: PathBuf,
    /// Where the login is mounted; `approle` by default.
    mount: Option<String>,
}

#[derive(Clone, Debug, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
struct UserPass {
    /// The user's name.
    username: String,
    /// A file with the password.
    password_file: PathBuf,
    /// Where the login is mounted; `userpass` by default.
    mount: Option<String>,
}

#[derive(Clone, Debug, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
#[allow(clippy::struct_field_names, reason = "the servers call it a role, and so does the configuration")]
struct Role {
    /// The role's name.
    role: String,
    /// A file with the JWT, such as a projected service account token.
    jwt_file: PathBuf,
    /// Where the login is mounted; `jwt` or `kubernetes` by default.
    mount: Option<String>,
}

#[derive(Clone, Debug, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
struct CertRole {
    /// The role's name; without it the server tries all.
    role: Option<String>,
    /// Where the login is mounted; `cert` by default.
    mount: Option<String>,
}

impl Settings {
    pub(in crate::key_stores) fn parse(self) -> Parsed {
        self.parse_key().map(|key| Arc::new(key) as _)
    }

    pub(super) fn parse_key(self) -> Result<TransitKey, Vec<Mistake>> {
        let mut mistakes = Vec::new();
        let addresses = self.parse_addresses(&mut mistakes);
        // The servers ignore slashes at the ends; two spellings of one path must not become two lineages.
        let mount = self.mount.trim_matches('/').to_owned();
        // Both go as they are into the paths of requests, and into a command that an operator pastes.
        for (field, name) in [("key", &self.key), ("mount", &mount)] {
            let plain = |c: char| c.is_ascii_alphanumeric() || "-_.".contains(c) || (field == "mount" && c == '/');
            // Servers and proxies take such parts for other paths, and then one key would have two lineages.
            let leads_elsewhere = name.split('/').any(|part| ["", ".", ".."].contains(&part));
            if leads_elsewhere || !name.chars().all(plain) {
                let problem = format!("{name:?} is not a name of letters, digits, '-', '_' and '.'");
                mistakes.push(Mistake::new(field, problem));
            }
        }
        let mut namespace = self.namespace.unwrap_or_default().trim_matches('/').to_owned();
        // Both servers' own name of the namespace that is meant by none.
        if namespace == "root" {
            namespace.clear();
        }
        if HeaderValue::from_str(&namespace).is_err() {
            mistakes.push(Mistake::new("namespace", "has characters that cannot be sent in a header"));
        }
        path::check_optional(&mut mistakes, "caFile", self.ca_file.as_deref());
        let proxy = address::proxy(&mut mistakes, self.proxy.as_deref());
        if let Some(certificate) = &self.client_certificate {
            path::check(&mut mistakes, "clientCertificate.certFile", &certificate.cert_file);
            path::check(&mut mistakes, "clientCertificate.keyFile", &certificate.key_file);
        }
        let login = self.auth.parse(&mut mistakes);
        if let (Some(Login::Cert { .. }), None) = (&login, &self.client_certificate) {
            mistakes.push(Mistake::new("auth.cert", "needs clientCertificate; add certFile and keyFile there"));
        }
        match login {
            Some(login) if mistakes.is_empty() => Ok(TransitKey {
                servers: Servers {
                    addresses,
                    namespace,
                    ca_file: self.ca_file,
                    proxy,
                    client_certificate: self.client_certificate,
                },
                mount,
                key: self.key,
                login,
                insecure_http: self.insecure_http,
            }),
            _ => Err(mistakes),
        }
    }

    fn parse_addresses(&self, mistakes: &mut Vec<Mistake>) -> Vec<Url> {
        if self.addresses.is_empty() {
            mistakes.push(Mistake::new("addresses", format!("lists no server; write for example {EXAMPLE}")));
        }
        let mut addresses = Vec::new();
        for text in &self.addresses {
            match address::parse(text, self.insecure_http.into(), EXAMPLE) {
                Ok(url) => addresses.push(url),
                Err(problem) => mistakes.push(Mistake::new("addresses", problem)),
            }
        }
        addresses
    }
}

impl AuthSettings {
    fn parse(self, mistakes: &mut Vec<Mistake>) -> Option<Login> {
        let path_of = |mount: Option<String>, default: &str| {
            format!("auth/{}/login", mount.as_deref().unwrap_or(default).trim_matches('/'))
        };
        let logins = [
            self.token_file.map(|file| ("tokenFile", Login::TokenFile { file })),
            self.approle.map(|AppRole { role_id, secret_id_file, mount }| {
                ("approle.secretIdFile", Login::AppRole { path: path_of(mount, "approle"), role_id, secret_id_file })
            }),
            self.userpass.map(|UserPass { username, password_file, mount }| {
                let is_plain = |c: char| c.is_ascii_alphanumeric() || "-_.@".contains(c);
                if username.is_empty() || !username.chars().all(is_plain) {
                    let problem = format!("{username:?} is not a name of letters, digits, '-', '_', '.' and '@'");
                    mistakes.push(Mistake::new("auth.userpass.username", problem));
                }
                let path = format!("{}/{username}", path_of(mount, "userpass"));
                ("userpass.passwordFile", Login::UserPass { path, password_file })
            }),
            self.jwt.map(|Role { role, jwt_file, mount }| {
                ("jwt.jwtFile", Login::Jwt { path: path_of(mount, "jwt"), role, jwt_file })
            }),
            self.kubernetes.map(|Role { role, jwt_file, mount }| {
                ("kubernetes.jwtFile", Login::Kubernetes { path: path_of(mount, "kubernetes"), role, jwt_file })
            }),
            self.cert.map(|CertRole { role, mount }| ("cert", Login::Cert { path: path_of(mount, "cert"), role })),
        ];
        let mut logins = logins.into_iter().flatten();
        match (logins.next(), logins.next()) {
            (Some((field, login)), None) => {
                if let Some(file) = login.file() {
                    path::check(mistakes, &format!("auth.{field}"), file);
                }
                Some(login)
            }
            (None, _) => {
                let problem = "names no login; write one of tokenFile, approle, userpass, jwt, kubernetes, or cert: {}";
                mistakes.push(Mistake::new("auth", problem));
                None
            }
            (Some(_), Some(_)) => {
                mistakes.push(Mistake::new("auth", "names several logins; keep one"));
                None
            }
        }
    }
}

/// A transit key, and the way to it.
#[derive(Debug)]
pub(super) struct TransitKey {
    servers: Servers,
    pub(super) mount: String,
    pub(super) key: String,
    login: Login,
    insecure_http: bool,
}

impl TransitKey {
    pub(super) fn kek(&self) -> Result<TransitKek, KekError> {
        if self.insecure_http {
            tracing::warn!(key = self.key, "insecureHttp is set: tokens and DEKs may cross the network unencrypted");
        }
        let session = Session::new(Client::new(self.servers.clone())?, self.login.clone());
        Ok(TransitKek { session, mount: self.mount.clone(), key: self.key.clone(), lineage: self.lineage() })
    }
}

#[async_trait]
impl KeyStore for TransitKey {
    /// Without the address: the same key behind another name is the same key.
    fn lineage(&self) -> Lineage {
        // Without the addresses: they may change, or differ between nodes, while the key stays the same.
        Lineage::derive("transit", &[&self.servers.namespace, &self.mount, &self.key])
    }

    fn disabling(&self, version: &str, _: &str) -> Disabling {
        let Some(number) = version.split('@').next().and_then(|number| number.parse::<u64>().ok()) else {
            return Disabling::ByHand("by raising min_decryption_version of the key".into());
        };
        let namespace = match self.servers.namespace.as_str() {
            "" => String::new(),
            namespace => format!(" -namespace={}", quoted(namespace)),
        };
        // It takes all versions up to this one away, which are older still.
        Disabling::Command(format!(
            "vault write{namespace} {} min_decryption_version={}",
            quoted(&format!("{}/keys/{}/config", self.mount, self.key)),
            number.saturating_add(1)
        ))
    }

    fn advice(&self) -> Vec<Advice> {
        let Login::Kubernetes { .. } = self.login else { return Vec::new() };
        let finding =
            "the Kubernetes login asks the API server that waits for this plugin: it works only once that is up";
        let advice = "use the jwt login with keys that the server holds itself, a client certificate, or AppRole";
        vec![Advice::new(finding, advice)]
    }

    async fn profile(&self) -> Result<Profile, KekError> {
        let key = self.kek()?.read_key().await?;
        Ok(profile::of(&key, &format!("transit key {}/{}", self.mount, self.key)))
    }

    fn policy(&self, _cluster: &ClusterName) -> Policy {
        let path =
            |path: &str, capability: &str| format!("path \"{path}\" {{\n  capabilities = [\"{capability}\"]\n}}");
        let of_key = |what: &str, capability: &str| path(&format!("{}/{what}/{}", self.mount, self.key), capability);
        let plugin = [
            of_key("keys", "read"),
            of_key("encrypt", "update"),
            of_key("decrypt", "update"),
            path("auth/token/lookup-self", "read"),
            path("auth/token/renew-self", "update"),
        ];
        Policy {
            remark: "a policy of the server's, in the namespace of the mount, for the plugin's login".into(),
            plugin: plugin.join("\n"),
            rotation: Some(path(&format!("{}/keys/{}/rotate", self.mount, self.key), "update")),
        }
    }

    async fn open(&self) -> Result<Box<dyn Kek>, KekError> {
        Ok(Box::new(self.kek()?))
    }

    async fn open_rotating(&self) -> Result<Box<dyn RotateKek>, KekError> {
        Ok(Box::new(self.kek()?))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mistakes(yaml: &str) -> Vec<String> {
        let settings: Settings = serde_saphyr::from_str(yaml).unwrap_or_else(|error| panic!("{error}"));
        let mistakes = settings.parse().err().unwrap_or_default();
        mistakes.into_iter().map(|Mistake { field, problem }| format!("{field}: {problem}")).collect()
    }

    #[test]
    fn plain_http_is_refused_unless_it_stays_on_the_machine_or_is_allowed_by_name() {
        let with = |address: &str, more: &str| {
            mistakes(&format!("{{addresses: ['{address}'], key: k, auth: {{tokenFile: /no/such}}{more}}}"))
        };
        for good in ["https://vault.example:8200", "http://127.0.0.1:8200", "http://[::1]:8200"] {
            assert_eq!(with(good, ""), Vec::<String>::new(), "{good}");
        }
        assert_eq!(with("http://vault.example:8200", ", insecureHttp: true"), Vec::<String>::new());
        for bad in ["http://vault.example:8200", "http://127.0.0.1.example", "ftp://127.0.0.1", "vault", "https://a/v1"]
        {
            assert_eq!(with(bad, "").len(), 1, "{bad}");
        }
        assert!(with("vault.example:8200", "")[0].contains("lacks its scheme"));
    }

    #[test]
    fn every_mistake_is_named_at_once_with_its_field() {
        let found = mistakes("{addresses: [], key: 'a/b', mount: '/', auth: {cert: {}}, caFile: ca.pem}");
        let fields: Vec<_> = found.iter().map(|mistake| mistake.split(':').next().unwrap_or_default()).collect();
        assert_eq!(fields, ["addresses", "key", "mount", "caFile", "auth.cert"], "{found:#?}");
    }

    #[test]
    fn one_key_has_one_lineage_however_its_place_is_spelt() {
        for mount in ["./transit", "a/../transit", "a//b", ".."] {
            let found =
                mistakes(&format!("{{addresses: ['https://v'], key: k, mount: '{mount}', auth: {{tokenFile: /t}}}}"));
            assert!(found.len() == 1 && found[0].starts_with("mount: "), "{mount}: {found:?}");
        }
        let lineage = |more: &str| {
            let yaml = format!("{{addresses: ['https://v'], key: k, auth: {{tokenFile: /t}}{more}}}");
            serde_saphyr::from_str::<Settings>(&yaml).unwrap().parse_key().unwrap().lineage()
        };
        assert_eq!(lineage(", namespace: /root/, mount: /transit/"), lineage(""));
        assert_ne!(lineage(", namespace: team"), lineage(""));
    }

    #[test]
    fn a_login_is_exactly_one() {
        let auth = |auth: &str| mistakes(&format!("{{addresses: ['https://v'], key: k, auth: {auth}}}"));
        assert!(auth("{}")[0].contains("names no login"));
        assert!(auth("{cert: }")[0].contains("cert: {}"));
        assert!(auth("{tokenFile: /t, approle: {roleId: r, secretIdFile: /s}}")[0].contains("several"));
        assert!(auth("{userpass: {username: 'a/b', passwordFile: /p}}")[0].starts_with("auth.userpass.username"));
        assert!(auth("{tokenFile: '~/t'}")[0].starts_with("auth.tokenFile"));
    }

    #[test]
    fn an_unknown_field_is_refused() {
        let refused = |yaml: &str| serde_saphyr::from_str::<Settings>(yaml).is_err();
        assert!(refused("{addresses: [], key: k, auth: {tokenFile: /t}, adress: x}"));
        assert!(refused("{addresses: [], key: k, auth: {approle: {roleId: r, secretId: s}}}"));
        assert!(refused("{addresses: [], key: k, auth: {password: p}}"));
    }
}
