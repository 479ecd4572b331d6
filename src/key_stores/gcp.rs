//! `gcpKms`: a symmetric key in Google Cloud KMS, asked by REST with tokens from `gcp_auth`.
//!
//! Each wrap is made under a version pinned in the request, and the version's text is bound into the associated
//! data: Decrypt does not say which version it used, but it opens nothing whose label is not the one at the wrap.

mod client;
mod credentials;
mod error;

use std::path::PathBuf;
use std::time::Duration;

use async_trait::async_trait;
use serde::Deserialize;

use self::client::{Api, CryptoKeyVersion};
use self::credentials::Credentials;
use super::KekSettings;
use super::shared::{http, tls};
use crate::crypto::secret::Dek;
use crate::kek::clock::ServerClock;
use crate::kek::{Kek, KekCause, KekError, KekVersion, Lineage, RotateKek, Unwrapped, WrapContext, WrappedDek};

const DEFAULT_ENDPOINT: &str = "https://cloudkms.googleapis.com";

/// How long `rotate` waits for the new version to be made, and to be seen as primary.
const ROTATE_TRIES: u32 = 60;
const ROTATE_PAUSE: Duration = Duration::from_millis(500);

/// Settings of a `gcpKms` KEK.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct GcpConfig {
    /// `projects/…/locations/…/keyRings/…/cryptoKeys/…`, without a version.
    pub key: String,
    /// Where Cloud KMS is, if not at its public address: Private Service Connect, or a regional endpoint.
    pub endpoint: Option<String>,
    /// Allows `http` in `endpoint` and in the credentials file's `token_uri`.
    #[serde(default)]
    pub insecure_http: bool,
    /// A service account's key in JSON. Without it: `GOOGLE_APPLICATION_CREDENTIALS`, the user's application
    /// default credentials, the metadata server.
    pub credentials_file: Option<PathBuf>,
    /// PEM file with the only authorities to trust for `endpoint`.
    pub ca_file: Option<PathBuf>,
}

impl GcpConfig {
    fn endpoint(&self) -> &str {
        self.endpoint.as_deref().unwrap_or(DEFAULT_ENDPOINT).trim_end_matches('/')
    }

    fn credentials(&self) -> Credentials {
        Credentials::find(self.credentials_file.as_deref(), self.insecure_http)
    }

    fn make(&self, patient: bool) -> Result<GcpKek, KekError> {
        if let Some((field, problem)) = self.problems().into_iter().next() {
            return Err(KekError::misconfigured(format!("gcpKms.{field}: {problem}")));
        }
        let reach = http::Reach { ca_file: self.ca_file.as_deref(), pinned: None, patient };
        let api = Api::new(http::client(&reach)?, self.endpoint(), &self.key, self.credentials());
        // The name alone: the same key is the same KEK behind whichever endpoint.
        Ok(GcpKek { lineage: Lineage::derive("gcpKms", &[&self.key]), api })
    }
}

#[async_trait]
impl KekSettings for GcpConfig {
    fn kind(&self) -> &'static str {
        "gcpKms"
    }

    fn problems(&self) -> Vec<(&'static str, String)> {
        let mut problems = Vec::new();
        if !is_key_name(&self.key) {
            let form = "projects/PROJECT/locations/LOCATION/keyRings/RING/cryptoKeys/KEY";
            problems.push(("key", format!("{:?} is not of the form {form} (no version behind it)", self.key)));
        }
        if let Some(problem) = endpoint_problem(self.endpoint(), self.insecure_http) {
            problems.push(("endpoint", problem));
        }
        problems.extend(self.credentials().read().err().map(|error| ("credentialsFile", error.to_string())));
        let ca = self.ca_file.as_deref().map(tls::certificates);
        problems.extend(ca.and_then(Result::err).map(|error| ("caFile", error.to_string())));
        problems
    }

    async fn build(&self) -> Result<Box<dyn Kek>, KekError> {
        Ok(Box::new(self.make(false)?))
    }

    async fn build_rotating(&self) -> Result<Box<dyn RotateKek>, KekError> {
        Ok(Box::new(self.make(true)?))
    }
}

/// The parts of a name take part in an URL's path: nothing but letters, digits and what Google allows.
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

fn endpoint_problem(endpoint: &str, insecure_http: bool) -> Option<String> {
    let Ok(url) = reqwest::Url::parse(endpoint) else {
        return Some(format!("{endpoint:?} is not a URL; write for example {DEFAULT_ENDPOINT}"));
    };
    match url.scheme() {
        _ if url.path() != "/" || url.query().is_some() || !url.username().is_empty() => {
            Some(format!("{endpoint:?} has more than a host and a port"))
        }
        "https" => None,
        "http" if insecure_http => None,
        _ => Some(format!("{endpoint:?} is not https (insecureHttp allows http, for tests)")),
    }
}

/// The KEK made of a Cloud KMS key.
#[derive(Debug)]
struct GcpKek {
    lineage: Lineage,
    api: Api,
}

impl GcpKek {
    /// The primary version, if it can wrap.
    async fn primary(&self) -> Result<CryptoKeyVersion, KekError> {
        let key = self.api.key().await?;
        if key.purpose != "ENCRYPT_DECRYPT" {
            return Err(KekError::misconfigured(format!(
                "purpose of the key is {}, and a KEK needs ENCRYPT_DECRYPT; make a key of that purpose",
                key.purpose
            )));
        }
        let primary = key.primary.ok_or_else(|| {
            KekError::new(KekCause::Denied, "the key has no primary version; make one of its versions primary")
        })?;
        match primary.state.as_str() {
            "ENABLED" => Ok(primary),
            "PENDING_GENERATION" | "PENDING_IMPORT" => {
                Err(KekError::unavailable(format!("the primary version is {}", primary.state)))
            }
            state => Err(KekError::new(KekCause::Denied, format!("the primary version is {state}; enable it again"))),
        }
    }

    fn kek_version(&self, version: &CryptoKeyVersion) -> Result<KekVersion, KekError> {
        Ok(KekVersion { lineage: self.lineage, version: version.label(self.api.name())? })
    }
}

impl GcpKek {
    /// Decrypt rejects a label as it rejects data. If the key never had this version, that is what is wrong.
    async fn why_rejected(&self, label: &str, rejected: KekError) -> KekError {
        let number = label.split('@').next().unwrap_or_default();
        let there = match self.api.version(&self.api.version_name(number)).await {
            Ok(version) => version.label(self.api.name()).is_ok_and(|actual| actual == label),
            Err(error) => error.cause() != KekCause::UnknownVersion,
        };
        if there {
            rejected
        } else {
            KekError::new(KekCause::UnknownVersion, format!("the key has no version {label}")).with_source(rejected)
        }
    }
}

/// What a wrap is bound to: the context, then the version's text; each length comes before its bytes.
fn associated_data(context: &WrapContext, label: &str) -> Vec<u8> {
    let mut bytes = context.to_bytes();
    bytes.extend((label.len() as u64).to_be_bytes());
    bytes.extend(label.as_bytes());
    bytes
}

/// Whether `label` is one that [`CryptoKeyVersion::label`] could have made.
fn is_label(label: &str) -> bool {
    label.split_once('@').is_some_and(|(number, created)| {
        number.parse::<u64>().is_ok_and(|n| n.to_string() == number)
            && created.parse::<jiff::Timestamp>().is_ok_and(|time| time.to_string() == created)
    })
}

#[async_trait]
impl Kek for GcpKek {
    fn lineage(&self) -> Lineage {
        self.lineage
    }

    fn credentials_expire(&self) -> Option<jiff::Timestamp> {
        self.api.credentials_expire()
    }

    fn server_clock(&self) -> Option<&ServerClock> {
        Some(self.api.clock())
    }

    async fn version(&self) -> Result<KekVersion, KekError> {
        self.kek_version(&self.primary().await?)
    }

    async fn wrap(&self, dek: &Dek, context: &WrapContext) -> Result<WrappedDek, KekError> {
        let primary = self.primary().await?;
        let version = self.kek_version(&primary)?;
        let blob = self.api.encrypt(&primary.name, dek, &associated_data(context, &version.version)).await?;
        Ok(WrappedDek { version, blob })
    }

    async fn unwrap(&self, wrapped: &WrappedDek, context: &WrapContext) -> Result<Unwrapped, KekError> {
        let label = &wrapped.version.version;
        if wrapped.version.lineage != self.lineage || !is_label(label) {
            return Err(KekError::new(KekCause::UnknownVersion, format!("Cloud KMS has no version {label:?}")));
        }
        match self.api.decrypt(&wrapped.blob, &associated_data(context, label)).await {
            Err(error) if error.cause() == KekCause::Rejected => Err(self.why_rejected(label, error).await),
            result => Ok(Unwrapped { dek: result?, version: wrapped.version.clone() }),
        }
    }
}

#[async_trait]
impl RotateKek for GcpKek {
    async fn rotate(&self) -> Result<KekVersion, KekError> {
        let mut made = self.api.create_version().await?;
        for _ in 0..ROTATE_TRIES {
            if made.state == "ENABLED" {
                break;
            }
            tokio::time::sleep(ROTATE_PAUSE).await;
            made = self.api.version(&made.name).await?;
        }
        if made.state != "ENABLED" {
            let (name, state) = (&made.name, &made.state);
            return Err(KekError::unavailable(format!("{name} is still {state}; make it primary once it is enabled")));
        }
        self.api.make_primary(&made).await?;
        for _ in 0..ROTATE_TRIES {
            if self.primary().await?.name == made.name {
                return self.kek_version(&made);
            }
            tokio::time::sleep(ROTATE_PAUSE).await;
        }
        Err(KekError::unavailable(format!("{} was made primary and is not seen as such yet", made.name)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn problems(config: &str) -> Vec<&'static str> {
        let config: GcpConfig = serde_json::from_str(config).expect("settings");
        config.problems().into_iter().map(|(field, _)| field).collect()
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
    fn plain_http_is_refused_unless_asked_for() {
        let key = "projects/p/locations/l/keyRings/r/cryptoKeys/k";
        let settings = |rest: &str| problems(&format!(r#"{{"key":"{key}","endpoint":{rest}}}"#));
        assert_eq!(settings(r#""http://127.0.0.1:1""#), ["endpoint"]);
        assert_eq!(settings(r#""http://127.0.0.1:1","insecureHttp":true"#), [""; 0]);
        assert_eq!(settings(r#""https://kms.example/v1""#), ["endpoint"]);
    }

    #[test]
    fn only_a_text_that_this_kind_makes_is_a_version() {
        assert!(is_label("3@2026-01-02T03:04:05.678Z"));
        for other in
            ["", "3", "03@2026-01-02T03:04:05Z", "3@", "3@2026-01-02T03:04:05+00:00", "../3@2026-01-02T03:04:05Z"]
        {
            assert!(!is_label(other), "{other}");
        }
    }
}
