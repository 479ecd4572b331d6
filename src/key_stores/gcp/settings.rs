//! The settings of a `gcpKms` KEK.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use serde::Deserialize;
use url::Url;

use super::client::Client;
use super::credentials::{CredentialSource, Google};
use super::kek::GcpKek;
use super::profile;
use crate::kek::{ClusterName, Kek, KekError, Lineage, RotateKek};
use crate::key_stores::shared::address::{self, PlainHttp};
use crate::key_stores::shared::key_store::{Disabling, KeyStore, Mistake, Parsed, Policy, Profile};
use crate::key_stores::shared::{http, path};
use crate::shell::quoted;

const DEFAULT_ENDPOINT: &str = "https://cloudkms.googleapis.com";

/// Settings as they are written.
#[derive(Clone, Debug, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct Settings {
    /// `projects/…/locations/…/keyRings/…/cryptoKeys/…`, without a version.
    key: String,
    /// Where Cloud KMS is, if not at its public address: Private Service Connect, or a regional endpoint.
    endpoint: Option<String>,
    /// Allows `http` to other machines in `endpoint` and in the credentials file's `token_uri`.
    #[serde(default)]
    insecure_http: bool,
    /// A service account's key in JSON. Without it: `GOOGLE_APPLICATION_CREDENTIALS`, the user's application
    /// default credentials, the metadata server.
    credentials_file: Option<PathBuf>,
    /// PEM file with the only authorities to trust for `endpoint`.
    ca_file: Option<PathBuf>,
    /// An HTTP proxy to Cloud KMS and to whoever issues tokens, `http://HOST:PORT`; none by default.
    proxy: Option<String>,
}

impl Settings {
    pub(in crate::key_stores) fn parse(self) -> Parsed {
        self.parse_key().map(|key| Arc::new(key) as _)
    }

    pub(super) fn parse_key(self) -> Result<CloudKmsKey, Vec<Mistake>> {
        let mut mistakes = Vec::new();
        if !is_key_name(&self.key) {
            let form = "projects/PROJECT/locations/LOCATION/keyRings/RING/cryptoKeys/KEY";
            mistakes.push(Mistake::new("key", format!("{:?} is not of the form {form} (without a version)", self.key)));
        }
        let plain_http = PlainHttp::from(self.insecure_http);
        let endpoint = self.endpoint.as_deref().unwrap_or(DEFAULT_ENDPOINT);
        let endpoint = address::parse(endpoint, plain_http, DEFAULT_ENDPOINT)
            .map_err(|problem| mistakes.push(Mistake::new("endpoint", problem)));
        path::check_optional(&mut mistakes, "credentialsFile", self.credentials_file.as_deref());
        path::check_optional(&mut mistakes, "caFile", self.ca_file.as_deref());
        let proxy = address::proxy(&mut mistakes, self.proxy.as_deref());
        match endpoint {
            Ok(endpoint) if mistakes.is_empty() => Ok(CloudKmsKey {
                key: self.key,
                endpoint: endpoint.to_string(),
                source: CredentialSource::find(self.credentials_file, plain_http),
                ca_file: self.ca_file,
                proxy,
            }),
            _ => Err(mistakes),
        }
    }
}

/// The parts of a name become part of a URL's path: only letters, digits and the characters that Google allows.
fn is_key_name(name: &str) -> bool {
    let parts: Vec<_> = name.split('/').collect();
    let named = |part: &&str| {
        let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.' | ':');
        !part.is_empty() && part.chars().all(plain) && part.chars().any(|c| c.is_ascii_alphanumeric())
    };
    parts.len() == 8
        && [parts[0], parts[2], parts[4], parts[6]] == ["projects", "locations", "keyRings", "cryptoKeys"]
        && [parts[1], parts[3], parts[5], parts[7]].iter().all(named)
}

/// A key in Cloud KMS, and the way to it.
#[derive(Debug)]
pub(super) struct CloudKmsKey {
    pub(super) key: String,
    endpoint: String,
    source: CredentialSource,
    ca_file: Option<PathBuf>,
    proxy: Option<Url>,
}

impl CloudKmsKey {
    pub(super) fn kek(&self, answer_within: Duration) -> Result<GcpKek, KekError> {
        let (ca_file, proxy) = (self.ca_file.as_deref(), self.proxy.as_ref());
        let reach = http::Reach { ca_file, proxy, answer_within, ..http::Reach::default() };
        let google = Google::new(self.source.clone(), proxy)?;
        let client = Client::new(http::client(&reach)?, &self.endpoint, &self.key, google);
        Ok(GcpKek { lineage: self.lineage(), client })
    }
}

#[async_trait]
impl KeyStore for CloudKmsKey {
    /// Of the name alone: the same key is the same KEK behind whichever endpoint.
    fn lineage(&self) -> Lineage {
        Lineage::derive("gcpKms", &[&self.key])
    }

    async fn profile(&self) -> Result<Profile, KekError> {
        let kek = self.kek(http::UNHURRIED)?;
        Ok(profile::of(&kek.client.key().await?, &self.key))
    }

    fn policy(&self, _cluster: &ClusterName) -> Policy {
        // projects/P/locations/L/keyRings/R/cryptoKeys/K, as checked when the settings were parsed.
        let part = |index: usize| self.key.split('/').nth(index).unwrap_or_default();
        let [project, location, ring, key] = [part(1), part(3), part(5), part(7)].map(quoted);
        let grant = |role: &str, permissions: &str, member: &str| {
            format!(
                "gcloud iam roles create {role} --project {project} --permissions \\\n{permissions}\n\
                 gcloud kms keys add-iam-policy-binding {key} --keyring {ring} --location {location} --project {project} \\\n  \
                 --member {member} --role projects/{project}/roles/{role}"
            )
        };
        Policy {
            remark: "custom roles, granted on the key and not on the project; put the members' names".into(),
            plugin: grant(
                "kubeEnvelope",
                "cloudkms.cryptoKeys.get,cloudkms.cryptoKeyVersions.get,cloudkms.cryptoKeyVersions.useToEncrypt,cloudkms.cryptoKeyVersions.useToDecrypt",
                &format!("serviceAccount:PLUGIN@{project}.iam.gserviceaccount.com"),
            ),
            rotation: Some(grant(
                "kubeEnvelopeRotate",
                "cloudkms.cryptoKeys.get,cloudkms.cryptoKeys.update,cloudkms.cryptoKeyVersions.get,cloudkms.cryptoKeyVersions.create",
                "user:OPERATOR",
            )),
        }
    }

    fn disabling(&self, version: &str, _: &str) -> Disabling {
        let number = version.split('@').next().unwrap_or(version);
        let parts: Vec<&str> = self.key.split('/').collect();
        let [_, project, _, location, _, ring, _, key] = parts.as_slice() else {
            return Disabling::ByHand("in the console of Cloud KMS".into());
        };
        let [number, key, ring, location, project] = [number, key, ring, location, project].map(quoted);
        Disabling::Command(format!(
            "gcloud kms keys versions disable {number} --key {key} --keyring {ring} --location {location} --project {project}"
        ))
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

    fn mistakes(config: &str) -> Vec<String> {
        let settings: Settings = serde_json::from_str(config).expect("settings");
        settings.parse().err().unwrap_or_default().into_iter().map(|mistake| mistake.field).collect()
    }

    #[test]
    fn a_key_name_with_a_version_or_a_path_in_it_is_refused() {
        assert!(is_key_name("projects/example.com:p/locations/europe-west3/keyRings/r/cryptoKeys/k"));
        for bad in [
            "projects/p/locations/l/keyRings/r/cryptoKeys/k/cryptoKeyVersions/1",
            "projects/p/locations/l/keyRings/r/cryptoKeys/..",
            "projects/p/locations/l/keyRings/r/cryptoKeys/k:decrypt?x",
            "projects/p/locations/l/keyRings/r/cryptoKeys/",
            "alias/k",
        ] {
            assert!(!is_key_name(bad), "{bad}");
        }
    }

    #[test]
    fn plain_http_is_refused_unless_it_stays_here_or_is_asked_for() {
        let key = "projects/p/locations/l/keyRings/r/cryptoKeys/k";
        let settings = |rest: &str| mistakes(&format!(r#"{{"key":"{key}","endpoint":{rest}}}"#));
        assert_eq!(settings(r#""http://kms.example""#), ["endpoint"]);
        assert_eq!(settings(r#""http://kms.example","insecureHttp":true"#), [""; 0]);
        assert_eq!(settings(r#""http://127.0.0.1:1""#), [""; 0]);
        assert_eq!(settings(r#""https://kms.example/v1""#), ["endpoint"]);
    }

    #[test]
    fn a_relative_path_is_refused_and_a_missing_file_is_not() {
        let key = "projects/p/locations/l/keyRings/r/cryptoKeys/k";
        assert_eq!(mistakes(&format!(r#"{{"key":"{key}","credentialsFile":"~/sa.json"}}"#)), ["credentialsFile"]);
        assert_eq!(mistakes(&format!(r#"{{"key":"{key}","credentialsFile":"/no/such.json"}}"#)), [""; 0]);
    }
}
