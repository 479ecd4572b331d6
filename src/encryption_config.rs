//! The API server's EncryptionConfiguration, read as kube-apiserver reads it (k8s.io/apiserver,
//! pkg/server/options/encryptionconfig): first YAML document alone, unknown fields ignored, what it refuses refused.

mod go;
mod local_keys;
mod provider_name;

use std::fmt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::Deserialize;

use self::local_keys::RawKeys;

pub use self::go::Endpoint;
pub use self::local_keys::{LocalKey, LocalKeys};
pub use self::provider_name::ProviderName;

/// The configuration: which provider writes and which providers read each resource.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EncryptionConfiguration {
    /// The items of `resources`, in their order.
    pub entries: Vec<Entry>,
}

/// One item of `resources`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// Names such as `secrets`, `deployments.apps`, `*.apps`, `*.` (the core group) or `*.*`.
    pub resources: Vec<String>,
    /// The first one writes, all of them read.
    pub providers: Vec<Provider>,
    /// The name of the key that writes, where the first provider is one with keys in the configuration itself.
    pub writing_key: Option<String>,
}

/// One entry of a list of `providers`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Provider {
    /// A KMS plugin.
    Kms(Kms),
    /// Keys in the configuration itself.
    LocalKeys(LocalKeys),
    /// `identity`: stores and reads in clear.
    Identity,
}

/// A KMS plugin as a provider.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Kms {
    /// Its name, stored before every value that it encrypts.
    pub name: ProviderName,
    /// The API that the API server speaks with it.
    pub version: KmsVersion,
    /// Where it listens.
    pub endpoint: Endpoint,
    /// The time limit of one call.
    pub timeout: Duration,
}

/// The API that an API server speaks with a KMS plugin.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum KmsVersion {
    /// Deprecated, off by default since Kubernetes 1.29; what is meant where `apiVersion` is missing.
    V1,
    /// The API of this plugin.
    V2,
}

/// Why an API server would refuse the file.
#[derive(Debug, thiserror::Error)]
pub enum EncryptionConfigError {
    /// The file cannot be read.
    #[error("cannot read {}", .file.display())]
    Read {
        /// The EncryptionConfiguration, as it was named.
        file: PathBuf,
        /// What the system said when it was read.
        source: std::io::Error,
    },
    /// Not YAML, or a field of another type.
    #[error("not an EncryptionConfiguration: {0}")]
    Syntax(String),
    /// Values that the API server refuses.
    #[error("{}", .0.join("; "))]
    Invalid(Vec<String>),
}

/// Far above any that an API server is started with.
const MAX_BYTES: u64 = 4 << 20;

/// What the API server takes where `timeout` is missing.
const DEFAULT_TIMEOUT: Duration = Duration::from_secs(3);

impl EncryptionConfiguration {
    /// Reads the file that the API server is started with.
    ///
    /// # Errors
    /// When it cannot be read, and where an API server would refuse it.
    pub fn read(file: &Path) -> Result<Self, EncryptionConfigError> {
        let text = crate::files::read_text(file, MAX_BYTES)
            .map_err(|source| EncryptionConfigError::Read { file: file.to_owned(), source })?;
        Self::parse(&text)
    }

    /// Reads the text of a configuration.
    ///
    /// # Errors
    /// Where an API server would refuse it.
    pub fn parse(text: &str) -> Result<Self, EncryptionConfigError> {
        // As sigs.k8s.io/yaml reads it: an API server takes the last of two fields of one name without a word.
        let options = serde_saphyr::options! { duplicate_keys: serde_saphyr::options::DuplicateKeyPolicy::LastWins };
        let file: File = serde_saphyr::from_str_with_options(go::first_document(text), options)
            .map_err(|error| EncryptionConfigError::Syntax(error.without_snippet().to_string()))?;
        let mut problems = Vec::new();
        file.check_kind(&mut problems);
        let entries: Vec<_> = file
            .resources
            .into_iter()
            .enumerate()
            .map(|(index, entry)| entry.check(&format!("resources[{index}]"), &mut problems))
            .collect();
        if entries.is_empty() {
            problems.push("resources: lists nothing".into());
        }
        // All problems together: an operator who corrects the file wants to do so once.
        check_names(&entries, &mut problems);
        if problems.is_empty() { Ok(Self { entries }) } else { Err(EncryptionConfigError::Invalid(problems)) }
    }

    /// The entry that decides about a resource: the first one that names it, by itself or by a wildcard.
    pub fn entry(&self, plural: &str, group: &str) -> Option<&Entry> {
        self.entries.iter().find(|entry| entry.names(plural, group))
    }

    /// Every KMS provider that is named.
    pub fn kms(&self) -> impl Iterator<Item = &Kms> {
        self.entries.iter().flat_map(|entry| &entry.providers).filter_map(Provider::kms)
    }
}

impl Entry {
    /// Whether a pattern here names this resource.
    pub(crate) fn names(&self, plural: &str, group: &str) -> bool {
        self.resources.iter().any(|pattern| matches(pattern, plural, group))
    }

    /// The provider that writes.
    pub fn writer(&self) -> Option<&Provider> {
        self.providers.first()
    }
}

impl Provider {
    /// The KMS plugin, where it is one.
    pub fn kms(&self) -> Option<&Kms> {
        match self {
            Self::Kms(kms) => Some(kms),
            Self::LocalKeys(_) | Self::Identity => None,
        }
    }
}

impl fmt::Display for KmsVersion {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::V1 => "v1",
            Self::V2 => "v2",
        })
    }
}

/// Whether an entry such as `secrets`, `deployments.apps`, `*.apps`, `*.` or `*.*` names this resource.
pub(crate) fn matches(pattern: &str, plural: &str, group: &str) -> bool {
    if pattern == "*.*" {
        return true;
    }
    let (wanted, of) = pattern.split_once('.').unwrap_or((pattern, ""));
    of == group && (wanted == "*" || wanted == plural)
}

/// The file as written; what is not named here, an API server ignores.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct File {
    #[serde(default)]
    api_version: String,
    #[serde(default)]
    kind: String,
    #[serde(default)]
    resources: Vec<RawEntry>,
}

#[derive(Deserialize)]
struct RawEntry {
    #[serde(default)]
    resources: Vec<String>,
    #[serde(default)]
    providers: Vec<RawProvider>,
}

#[derive(Deserialize)]
struct RawProvider {
    aesgcm: Option<RawKeys>,
    aescbc: Option<RawKeys>,
    secretbox: Option<RawKeys>,
    identity: Option<serde::de::IgnoredAny>,
    kms: Option<RawKms>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct RawKms {
    #[serde(default)]
    name: String,
    #[serde(default)]
    api_version: String,
    #[serde(default)]
    endpoint: String,
    timeout: Option<serde_json::Value>,
    cachesize: Option<i32>,
}

impl File {
    fn check_kind(&self, problems: &mut Vec<String>) {
        // The second form is registered, too: the documentation named it once.
        let known = [("apiserver.config.k8s.io/v1", "EncryptionConfiguration"), ("v1", "EncryptionConfig")];
        if !known.contains(&(self.api_version.as_str(), self.kind.as_str())) {
            problems.push(format!(
                "apiVersion {:?} and kind {:?} are not an EncryptionConfiguration; write apiVersion: {} and kind: {}",
                self.api_version, self.kind, known[0].0, known[0].1
            ));
        }
    }
}

impl RawEntry {
    fn check(self, at: &str, problems: &mut Vec<String>) -> Entry {
        if self.resources.is_empty() {
            problems.push(format!("{at}.resources: lists nothing"));
        }
        if self.providers.is_empty() {
            problems.push(format!("{at}.providers: lists nothing"));
        }
        for (index, name) in self.resources.iter().enumerate() {
            if let Some(problem) = go::resource_problem(name) {
                problems.push(format!("{at}.resources[{index}]: {name:?} {problem}"));
            }
            let includes = |other: &&String| {
                *other != name && other.starts_with('*') && {
                    let (resource, group) = name.split_once('.').unwrap_or((name, ""));
                    matches(other, resource, group)
                }
            };
            if self.resources[..index].contains(name) {
                problems.push(format!("{at}.resources[{index}]: {name:?} is listed twice"));
            } else if let Some(wildcard) = self.resources.iter().find(includes) {
                problems.push(format!(
                    "{at}.resources[{index}]: {name:?} is listed beside {wildcard:?}, which includes it"
                ));
            }
        }
        let writing_key = self.providers.first().and_then(RawProvider::first_key);
        let providers = self.providers.into_iter().enumerate();
        let providers =
            providers.filter_map(|(index, provider)| provider.check(&format!("{at}.providers[{index}]"), problems));
        let providers = providers.collect();
        Entry { resources: self.resources, providers, writing_key }
    }
}

impl RawProvider {
    /// The name of the first of its own keys: that one writes.
    fn first_key(&self) -> Option<String> {
        let keys = self.aesgcm.as_ref().or(self.aescbc.as_ref()).or(self.secretbox.as_ref())?;
        keys.first_name().map(str::to_owned)
    }

    fn check(self, at: &str, problems: &mut Vec<String>) -> Option<Provider> {
        let mut set = Vec::new();
        let local = [("aesgcm", self.aesgcm), ("aescbc", self.aescbc), ("secretbox", self.secretbox)];
        for (kind, raw) in local {
            set.extend(raw.map(|raw| Provider::LocalKeys(raw.keys(kind))));
        }
        if self.identity.is_some() {
            set.push(Provider::Identity);
        }
        if let Some(kms) = self.kms {
            set.extend(kms.check(&format!("{at}.kms"), problems).map(Provider::Kms));
        } else if set.len() != 1 {
            problems.push(format!("{at}: must name exactly one of aesgcm, aescbc, secretbox, identity and kms"));
        }
        set.pop()
    }
}

impl RawKms {
    fn check(self, at: &str, problems: &mut Vec<String>) -> Option<Kms> {
        let before = problems.len();
        let version = match self.api_version.as_str() {
            "" | "v1" => KmsVersion::V1,
            "v2" => KmsVersion::V2,
            other => {
                problems.push(format!("{at}.apiVersion: {other:?} is unknown; write v2"));
                KmsVersion::V2
            }
        };
        if self.name.is_empty() {
            problems.push(format!("{at}.name: is missing"));
        } else if version == KmsVersion::V2 && self.name.contains(':') {
            problems.push(format!("{at}.name: {:?} contains a colon, which the API server refuses", self.name));
        }
        if self.cachesize.is_some() && version == KmsVersion::V2 {
            problems.push(format!("{at}.cachesize: the API server refuses it for KMS v2; remove it"));
        }
        let timeout = match self.timeout {
            None | Some(serde_json::Value::Null) => Some(DEFAULT_TIMEOUT),
            Some(serde_json::Value::String(text)) => go::duration(&text),
            Some(_) => None,
        };
        if timeout.is_none_or(|timeout| timeout.is_zero()) {
            problems.push(format!("{at}.timeout: must be a duration with a unit, such as 3s"));
        }
        let endpoint = Endpoint::parse(&self.endpoint);
        if let Err(problem) = &endpoint {
            problems.push(format!("{at}.endpoint: {:?} {problem}", self.endpoint));
        }
        (problems.len() == before).then_some(())?;
        Some(Kms { name: self.name.into(), version, endpoint: endpoint.ok()?, timeout: timeout? })
    }
}

/// A v2 provider must not have the name of a provider listed before it, in whatever entry.
fn check_names(entries: &[Entry], problems: &mut Vec<String>) {
    let mut names = std::collections::HashSet::new();
    for kms in entries.iter().flat_map(|entry| &entry.providers).filter_map(Provider::kms) {
        if !names.insert(&kms.name) && kms.version == KmsVersion::V2 {
            problems.push(format!("KMS provider name {:?} is used twice, which the API server refuses", kms.name));
        }
    }
}

#[cfg(test)]
mod tests;
