//! The settings of an `azureKeyVault` KEK.

use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use azure_security_keyvault_keys::{KeyClient, KeyClientOptions};
use serde::Deserialize;
use url::Url;

use super::client;
use super::credentials::{Credential, Entra, Identity};
use super::kek::{Algorithm, AzureKek};
use super::{policy, profile};
use crate::kek::{ClusterName, Kek, KekError, Lineage, RotateKek};
use crate::key_stores::shared::address::{self, PlainHttp};
use crate::key_stores::shared::key_store::{Advice, Disabling, KeyStore, Mistake, Parsed, Policy, Profile};
use crate::key_stores::shared::{http, path};
use crate::shell::quoted;

const EXAMPLE: &str = "https://NAME.vault.azure.net";

/// Settings as they are written.
#[derive(Clone, Debug, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct Settings {
    /// The vault's URL: `https://NAME.vault.azure.net` or `https://NAME.managedhsm.azure.net`.
    vault: String,
    /// The key's name, without a version.
    key: String,
    /// How the DEK is wrapped.
    #[serde(default)]
    algorithm: Algorithm,
    /// Who the plugin is.
    credential: CredentialSettings,
    /// Entra's address in another cloud than the public one.
    authority_host: Option<String>,
    /// The vault's address where its name shall not be looked up (a private endpoint, a node without DNS).
    address: Option<IpAddr>,
    /// PEM file with the only authorities to trust, for the vault and Entra.
    ca_file: Option<PathBuf>,
    /// An HTTP proxy to the vault and Entra, `http://HOST:PORT`; none by default.
    proxy: Option<String>,
}

/// Which identity the plugin has: exactly one of these.
#[derive(Clone, Debug, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
struct CredentialSettings {
    /// The identity of the virtual machine, from its metadata service.
    managed_identity: Option<ManagedIdentity>,
    /// A token of a Kubernetes service account, exchanged at Entra.
    workload_identity: Option<WorkloadIdentity>,
    /// An application with a secret in a file.
    client_secret: Option<ClientSecret>,
    /// An application with a certificate, in a file with its private key.
    client_certificate: Option<ClientCertificate>,
}

#[derive(Clone, Debug, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
struct ManagedIdentity {
    /// Of a user-assigned identity; the system-assigned one without it.
    client_id: Option<String>,
}

/// What is left out comes from the variables that AKS's webhook sets.
#[derive(Clone, Debug, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
struct WorkloadIdentity {
    /// The directory (`AZURE_TENANT_ID`).
    tenant_id: Option<String>,
    /// The application (`AZURE_CLIENT_ID`).
    client_id: Option<String>,
    /// File with the service account's token (`AZURE_FEDERATED_TOKEN_FILE`).
    token_file: Option<PathBuf>,
}

#[derive(Clone, Debug, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
struct ClientSecret {
    /// The directory (tenant) of the application.
    tenant_id: String,
    /// The application's client id.
    client_id: String,
    /// File with the secret, and nothing else but white space around it.
    secret_file: PathBuf,
}

#[derive(Clone, Debug, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
struct ClientCertificate {
    /// The directory (tenant) of the application.
    tenant_id: String,
    /// The application's client id.
    client_id: String,
    /// PEM file with the private key (RSA, no passphrase) and its certificate.
    certificate_file: PathBuf,
}

impl Settings {
    pub(in crate::key_stores) fn parse(self) -> Parsed {
        self.parse_key().map(|key| Arc::new(key) as _)
    }

    pub(super) fn parse_key(self) -> Result<VaultKey, Vec<Mistake>> {
        let mut mistakes = Vec::new();
        let vault = https(&self.vault, EXAMPLE).map_err(|problem| mistakes.push(Mistake::new("vault", problem)));
        if !is_key_name(&self.key) {
            let fix = "write the key's name alone: 1 to 127 letters, digits and hyphens";
            mistakes.push(Mistake::new("key", format!("{:?} is not the name of a key; {fix}", self.key)));
        }
        let authority = self.authority_host.as_deref().map(|host| https(host, "https://login.microsoftonline.com"));
        let authority = authority.transpose().map_err(|problem| mistakes.push(Mistake::new("authorityHost", problem)));
        path::check_optional(&mut mistakes, "caFile", self.ca_file.as_deref());
        let proxy = address::proxy(&mut mistakes, self.proxy.as_deref());
        if proxy.is_some() && self.address.is_some() {
            mistakes
                .push(Mistake::new("address", "has no effect with proxy, which looks the vault's name up; keep one"));
        }
        let credential = self.credential.parse(&mut mistakes);
        let host = vault.as_ref().ok().and_then(Url::host_str).unwrap_or_default().to_lowercase();
        match (vault, authority, credential) {
            (Ok(vault), Ok(authority), Some(credential)) if mistakes.is_empty() => Ok(VaultKey {
                vault,
                host,
                key: self.key,
                algorithm: self.algorithm,
                credential,
                authority,
                address: self.address,
                ca_file: self.ca_file,
                proxy,
            }),
            _ => Err(mistakes),
        }
    }
}

/// The SDK sends tokens only over TLS, even to this machine.
fn https(text: &str, example: &str) -> Result<Url, String> {
    let url = address::parse(text, PlainHttp::Loopback, example)?;
    if url.scheme() == "https" { Ok(url) } else { Err(format!("{text:?} is not https; write for example {example}")) }
}

fn is_key_name(name: &str) -> bool {
    // Key Vault's own rule for the names of keys.
    (1..=127).contains(&name.len()) && name.chars().all(|c| c.is_ascii_alphanumeric() || c == '-')
}

fn is_tenant(name: &str) -> bool {
    !name.is_empty() && name.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '-' | '.'))
}

impl CredentialSettings {
    fn parse(self, mistakes: &mut Vec<Mistake>) -> Option<Credential> {
        let add = |mistakes: &mut Vec<Mistake>, field: &str, problem: &str| {
            mistakes.push(Mistake::new(format!("credential{field}"), problem));
        };
        let Self { managed_identity, workload_identity, client_secret, client_certificate } = self;
        let credential = match (managed_identity, workload_identity, client_secret, client_certificate) {
            (Some(identity), None, None, None) => Credential::ManagedIdentity { client_id: identity.client_id },
            (None, Some(identity), None, None) => identity.parse(mistakes)?,
            (None, None, Some(ClientSecret { tenant_id, client_id, secret_file }), None) => {
                path::check(mistakes, "credential.clientSecret.secretFile", &secret_file);
                Credential::ClientSecret { tenant_id, client_id, secret_file }
            }
            (None, None, None, Some(ClientCertificate { tenant_id, client_id, certificate_file })) => {
                path::check(mistakes, "credential.clientCertificate.certificateFile", &certificate_file);
                Credential::ClientCertificate { tenant_id, client_id, certificate_file }
            }
            (None, None, None, None) => {
                let problem = "names no credential; write one of managedIdentity: {}, workloadIdentity: {}, \
                               clientCertificate or clientSecret";
                add(mistakes, "", problem);
                return None;
            }
            _ => {
                add(mistakes, "", "names several credentials; keep one");
                return None;
            }
        };
        if credential.tenant().is_some_and(|tenant| !is_tenant(tenant)) {
            add(mistakes, "", "tenantId is not the id or the domain of a directory");
        }
        Some(credential)
    }
}

impl WorkloadIdentity {
    fn parse(self, mistakes: &mut Vec<Mistake>) -> Option<Credential> {
        let from = |variable: &str| std::env::var(variable).ok().filter(|value| !value.is_empty());
        let mut missing = |field: &str, variable: &str| {
            let problem = format!("is missing; write it, or set {variable}");
            mistakes.push(Mistake::new(format!("credential.workloadIdentity.{field}"), problem));
        };
        let tenant_id = self.tenant_id.or_else(|| from("AZURE_TENANT_ID"));
        let client_id = self.client_id.or_else(|| from("AZURE_CLIENT_ID"));
        let token_file = self.token_file.or_else(|| from("AZURE_FEDERATED_TOKEN_FILE").map(PathBuf::from));
        if tenant_id.is_none() {
            missing("tenantId", "AZURE_TENANT_ID");
        }
        if client_id.is_none() {
            missing("clientId", "AZURE_CLIENT_ID");
        }
        if token_file.is_none() {
            missing("tokenFile", "AZURE_FEDERATED_TOKEN_FILE");
        }
        let (tenant_id, client_id, token_file) = (tenant_id?, client_id?, token_file?);
        path::check(mistakes, "credential.workloadIdentity.tokenFile", &token_file);
        Some(Credential::WorkloadIdentity { tenant_id, client_id, token_file })
    }
}

/// A key in a vault, and the way to it.
#[derive(Debug)]
pub(super) struct VaultKey {
    vault: Url,
    pub(super) host: String,
    pub(super) key: String,
    pub(super) algorithm: Algorithm,
    credential: Credential,
    authority: Option<Url>,
    address: Option<IpAddr>,
    ca_file: Option<PathBuf>,
    proxy: Option<Url>,
}

impl VaultKey {
    fn http(&self, answer_within: Duration) -> Result<http::Client, KekError> {
        // The port is the URL's.
        let pinned = self.address.map(|address| (self.host.as_str(), SocketAddr::new(address, 0)));
        let (ca_file, proxy) = (self.ca_file.as_deref(), self.proxy.as_ref());
        http::client(&http::Reach { ca_file, proxy, pinned, answer_within })
    }

    pub(super) fn kek(&self, answer_within: Duration) -> Result<AzureKek, KekError> {
        let http = self.http(answer_within)?;
        let entra =
            Entra::new(self.credential.clone(), self.scope(), &self.http(http::LOGIN)?, self.authority.as_ref());
        let identity = Arc::new(Identity::new(entra));
        let options = KeyClientOptions { client_options: client::options(&http), ..KeyClientOptions::default() };
        let client = KeyClient::new(self.vault.as_str(), identity.clone(), Some(options)).map_err(|error| {
            KekError::misconfigured(format!("no client for {}", self.vault)).with_source(error.to_string())
        })?;
        let (lineage, key, algorithm) = (self.lineage(), self.key.clone(), self.algorithm);
        Ok(AzureKek { lineage, client, http, identity, key, algorithm })
    }

    /// Tokens are for all vaults of a cloud: the SDK holds the vault's own demand to be this one.
    fn scope(&self) -> String {
        // NAME.vault.azure.net → vault.azure.net: a token is for the service of one cloud, not for one vault.
        let cloud = self.host.split_once('.').map_or(self.host.as_str(), |(_, cloud)| cloud);
        format!("https://{cloud}/.default")
    }
}

#[async_trait]
impl KeyStore for VaultKey {
    fn lineage(&self) -> Lineage {
        // Key Vault does not distinguish upper and lower case in names.
        Lineage::derive("azureKeyVault", &[&self.host, &self.key.to_lowercase()])
    }

    fn disabling(&self, version: &str, _: &str) -> Disabling {
        Disabling::Command(format!(
            "az keyvault key set-attributes --id {} --enabled false",
            quoted(&format!("https://{}/keys/{}/{version}", self.host, self.key))
        ))
    }

    fn advice(&self) -> Vec<Advice> {
        let Credential::WorkloadIdentity { .. } = self.credential else { return Vec::new() };
        let finding = "a workload identity's token comes from the API server that waits for this plugin, unless it is \
                       made by other means";
        vec![Advice::new(finding, "use a managed identity on the control plane's machines")]
    }

    async fn profile(&self) -> Result<Profile, KekError> {
        let key = self.kek(http::UNHURRIED)?.latest_key().await?;
        Ok(key.attributes.as_ref().map(profile::of).unwrap_or_default())
    }

    fn policy(&self, _cluster: &ClusterName) -> Policy {
        policy::least(&self.host, &self.key)
    }

    async fn open(&self) -> Result<Box<dyn Kek>, KekError> {
        Ok(Box::new(self.kek(http::ATTEMPT)?))
    }

    async fn open_rotating(&self) -> Result<Box<dyn RotateKek>, KekError> {
        Ok(Box::new(self.kek(http::UNHURRIED)?))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mistakes(more: &str) -> Vec<String> {
        let settings: Settings =
            serde_saphyr::from_str(&format!("{{key: k, {more}}}")).unwrap_or_else(|error| panic!("{error}"));
        let mistakes = settings.parse().err().unwrap_or_default();
        mistakes.into_iter().map(|Mistake { field, problem }| format!("{field}: {problem}")).collect()
    }

    #[test]
    fn a_vault_is_reached_by_https_alone() {
        let vault = |url: &str| mistakes(&format!("vault: '{url}', credential: {{managedIdentity: {{}}}}"));
        assert_eq!(vault("https://name.vault.azure.net"), [""; 0]);
        for bad in ["http://127.0.0.1:1", "http://name.vault.azure.net", "name.vault.azure.net", "https://n/keys/k"] {
            assert_eq!(vault(bad).len(), 1, "{bad}");
        }
    }

    #[test]
    fn a_credential_is_exactly_one() {
        let credential = |text: &str| mistakes(&format!("vault: 'https://n.vault.azure.net', credential: {text}"));
        assert!(credential("{}")[0].contains("names no credential"));
        assert!(credential("{managedIdentity: }")[0].contains("managedIdentity: {}"));
        let secret = "clientSecret: {tenantId: t, clientId: c, secretFile: /s}";
        assert!(credential(&format!("{{managedIdentity: {{}}, {secret}}}"))[0].contains("several"));
        assert_eq!(credential(&format!("{{{secret}}}")), [""; 0]);
        assert_eq!(credential("{clientSecret: {tenantId: 'a/b', clientId: c, secretFile: s}}").len(), 2);
        let certificate = "clientCertificate: {tenantId: t, clientId: c, certificateFile: /pem}";
        assert_eq!(credential(&format!("{{{certificate}}}")), [""; 0]);
        assert!(credential(&format!("{{{certificate}, {secret}}}"))[0].contains("several"));
        let wrong = credential("{clientCertificate: {tenantId: 'a/b', clientId: c, certificateFile: pem}}");
        assert!(wrong.len() == 2 && wrong[0].contains("credential.clientCertificate.certificateFile"), "{wrong:?}");
    }
}
