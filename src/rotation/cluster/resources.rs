//! Which resources are encrypted: the EncryptionConfiguration (or what metrics let one guess) against what the
//! API servers serve.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::path::Path;

use serde::{Deserialize, Serialize};

use crate::encryption_config::{
    EncryptionConfigError, EncryptionConfiguration, Endpoint, Entry, Kms, KmsVersion, Provider,
};
use crate::rotation::cluster::api::escaped;
use crate::rotation::cluster::metrics::{Direction, Scrape};
use crate::rotation::error::RotationError;

/// What an API server puts before a value that a KMS v2 provider encrypted; the provider's name and `:` follow.
pub const KMS_V2_PREFIX: &str = "k8s:enc:kms:v2:";

/// A kind of object as the API serves it.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Resource {
    /// API group; empty for the core group.
    pub group: String,
    /// Version to ask for.
    pub version: String,
    /// Name in paths.
    pub plural: String,
    /// Whether its objects live in namespaces.
    pub namespaced: bool,
}

impl Resource {
    /// Path of the list over all namespaces.
    pub fn list_path(&self) -> String {
        format!("{}/{}", self.root(), self.plural)
    }

    /// Path of the list in one namespace.
    pub fn namespace_path(&self, namespace: &str) -> String {
        format!("{}/namespaces/{}/{}", self.root(), escaped(namespace), self.plural)
    }

    /// Path of one object.
    pub fn object_path(&self, namespace: Option<&str>, name: &str) -> String {
        let namespace = namespace.map(|namespace| format!("/namespaces/{}", escaped(namespace))).unwrap_or_default();
        format!("{}{namespace}/{}/{}", self.root(), self.plural, escaped(name))
    }

    fn root(&self) -> String {
        if self.group.is_empty() {
            format!("/api/{}", self.version)
        } else {
            format!("/apis/{}/{}", self.group, self.version)
        }
    }

    /// Events live for an hour; rewriting them lengthens their life.
    pub fn is_event(&self) -> bool {
        self.plural == "events" && (self.group.is_empty() || self.group == "events.k8s.io")
    }
}

impl fmt::Display for Resource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&qualified(&self.plural, &self.group))
    }
}

fn qualified(plural: &str, group: &str) -> String {
    if group.is_empty() { plural.into() } else { format!("{plural}.{group}") }
}

/// Which resources are to be encrypted by which KMS v2 provider.
#[derive(Debug)]
pub enum Coverage {
    /// As the API servers' own configuration says.
    Configured(EncryptionConfiguration),
    /// As the metrics of the API servers let one guess: resource → provider. Resources nobody touched are missing.
    Inferred(BTreeMap<String, String>),
}

impl Coverage {
    /// The configuration, where it was given.
    pub fn configuration(&self) -> Option<&EncryptionConfiguration> {
        match self {
            Self::Configured(configuration) => Some(configuration),
            Self::Inferred(_) => None,
        }
    }

    /// Reads the file that the API servers are started with.
    ///
    /// # Errors
    /// The file cannot be read as kube-apiserver reads it.
    pub fn read(file: &Path) -> Result<Self, RotationError> {
        let configuration = EncryptionConfiguration::read(file).map_err(|error| match error {
            EncryptionConfigError::Read { file, source } => {
                RotationError::File { what: "read the EncryptionConfiguration", file, source }
            }
            error => RotationError::Unusable(format!("{}: {error}", file.display())),
        })?;
        let coverage = Self::Configured(configuration);
        if coverage.providers().is_empty() && coverage.local_writers().is_empty() {
            return Err(RotationError::Unusable(format!(
                "in {} no resource has a KMS v2 provider, so nothing is written under a KMS key, and nothing is moved away \
                 from one; put the kms provider before the others, or, to leave it, behind the one that writes from now \
                 on, and restart the API servers",
                file.display()
            )));
        }
        Ok(coverage)
    }

    /// Guesses from what the API servers did since they started.
    ///
    /// # Errors
    /// No server has a KMS v2 provider, or they do not tell the same.
    pub fn infer(scrapes: &[Scrape]) -> Result<Self, RotationError> {
        let mut found: BTreeMap<String, String> = BTreeMap::new();
        // What was stored is worth more than what was read: an older provider is read, too.
        for wanted in [Direction::Stored, Direction::Read] {
            for ((resource, prefix, direction), _) in scrapes.iter().flat_map(|scrape| &scrape.operations) {
                let provider = prefix.strip_prefix(KMS_V2_PREFIX).map(|rest| rest.trim_end_matches(':'));
                if let Some(provider) = provider.filter(|_| *direction == wanted) {
                    found.entry(resource.clone()).or_insert_with(|| provider.into());
                }
            }
        }
        if found.is_empty() {
            return Err(RotationError::Unusable(
                "the API servers' metrics show nothing stored by a KMS v2 provider; name the configuration of the API \
                 servers with --encryption-config"
                    .into(),
            ));
        }
        Ok(Self::Inferred(found))
    }

    /// The patterns in their order, each with whether a KMS v2 provider writes what it names.
    pub fn patterns(&self) -> Vec<(String, bool)> {
        match self {
            Self::Configured(configuration) => {
                let of = |entry: &Entry| {
                    let writes = kms_v2_writer(entry).is_some();
                    entry.resources.iter().map(|pattern| (pattern.clone(), writes)).collect::<Vec<_>>()
                };
                configuration.entries.iter().flat_map(of).collect()
            }
            Self::Inferred(found) => found.keys().map(|resource| (resource.clone(), true)).collect(),
        }
    }

    /// The provider that writes this resource: a KMS v2 plugin, or a local one (see [`is_local`]) to which it is moved.
    pub fn provider(&self, resource: &Resource) -> Option<String> {
        match self {
            Self::Configured(configuration) => {
                let entry = configuration.entry(&resource.plural, &resource.group)?;
                kms_v2_writer(entry).map(Into::into).or_else(|| local_writer(entry))
            }
            Self::Inferred(found) => found.get(&resource.to_string()).cloned(),
        }
    }

    /// Every local provider to which a resource is moved from a KMS v2 plugin.
    pub fn local_writers(&self) -> BTreeSet<String> {
        match self {
            Self::Configured(configuration) => configuration.entries.iter().filter_map(local_writer).collect(),
            Self::Inferred(_) => BTreeSet::new(),
        }
    }

    /// Every KMS v2 provider that writes something.
    pub fn providers(&self) -> BTreeSet<String> {
        match self {
            Self::Configured(configuration) => {
                configuration.entries.iter().filter_map(kms_v2_writer).map(Into::into).collect()
            }
            Self::Inferred(found) => found.values().cloned().collect(),
        }
    }

    /// How prefixes of values begin that are written by no KMS v2 provider, by configuration; empty for values in clear.
    pub fn other_prefixes(&self) -> BTreeSet<String> {
        match self {
            Self::Configured(configuration) => configuration.entries.iter().filter_map(other_prefix).collect(),
            Self::Inferred(_) => BTreeSet::new(),
        }
    }

    /// The KMS v2 provider whose plugin serves this socket, where the configuration tells.
    pub fn provider_at(&self, socket: &Endpoint) -> Option<String> {
        let Self::Configured(configuration) = self else { return None };
        let here = |kms: &&Kms| kms.version == KmsVersion::V2 && kms.endpoint.is_same(socket);
        let all = configuration.entries.iter().flat_map(|entry| &entry.providers);
        all.filter_map(Provider::kms).find(here).map(|kms| kms.name.clone())
    }

    /// Whether it is only a guess.
    pub fn is_inferred(&self) -> bool {
        matches!(self, Self::Inferred(_))
    }
}

/// The name of a local provider that writes in place of a KMS v2 plugin, which still reads what it wrote: the field in
/// the configuration, a colon, and the key that writes. No plugin's name has a colon.
fn local_writer(entry: &Entry) -> Option<String> {
    let replaces = entry.providers.iter().skip(1).filter_map(Provider::kms).any(|kms| kms.version == KmsVersion::V2);
    let name = match entry.writer()? {
        Provider::Kms(_) => return None,
        Provider::LocalKeys(keys) => format!("{}:{}", keys.kind, entry.writing_key.as_deref().unwrap_or_default()),
        Provider::Identity => IDENTITY.to_owned(),
    };
    replaces.then_some(name)
}

/// The local provider that stores in clear.
const IDENTITY: &str = "identity:";

/// Whether a provider is a local one, to which a resource is moved from a KMS v2 plugin.
pub fn is_local(provider: &str) -> bool {
    provider.contains(':')
}

/// The words of the prefix that a local provider puts before a value in etcd (`aescbc v1 KEY`); `None` where it puts none
/// and stores in clear, or where it is not a local one.
pub fn local_words(provider: &str) -> Option<String> {
    let (kind, key) = provider.split_once(':')?;
    (provider != IDENTITY).then(|| format!("{kind} v1 {key}"))
}

/// Whether an API server's metrics call a local provider by this prefix.
pub fn is_prefix_of(provider: &str, prefix: &str) -> bool {
    match provider.split_once(':') {
        Some(_) if provider == IDENTITY => is_clear(prefix),
        Some((kind, _)) => prefix.starts_with(&format!("k8s:enc:{kind}:")),
        None => false,
    }
}

/// Whether metrics count here what they count under the provider's own prefix as well: by the name of a key of it.
pub fn is_inner_prefix(prefix: &str) -> bool {
    !is_clear(prefix) && !prefix.starts_with("k8s:enc:")
}

/// How an API server's metrics call what is stored in clear: by no prefix when it is stored, and by this word when it is
/// read (k8s.io/apiserver, storage/value/transformer.go). The name of a key ends with a colon there.
fn is_clear(prefix: &str) -> bool {
    matches!(prefix, "" | "identity")
}

/// The name of the provider that writes, where it is a KMS v2 plugin.
fn kms_v2_writer(entry: &Entry) -> Option<&str> {
    let kms = entry.writer()?.kms()?;
    (kms.version == KmsVersion::V2).then_some(kms.name.as_str())
}

/// How the values of a provider begin that is not a KMS v2 plugin.
fn other_prefix(entry: &Entry) -> Option<String> {
    match entry.writer()? {
        Provider::Kms(kms) => (kms.version == KmsVersion::V1).then(|| "k8s:enc:kms:v1:".into()),
        Provider::LocalKeys(keys) => Some(format!("k8s:enc:{}:", keys.kind)),
        Provider::Identity => Some(String::new()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn resource(plural: &str, group: &str) -> Resource {
        Resource { group: group.into(), version: "v1".into(), plural: plural.into(), namespaced: true }
    }

    #[test]
    fn the_first_entry_that_names_a_resource_says_who_writes_it() {
        let text = "apiVersion: apiserver.config.k8s.io/v1\nkind: EncryptionConfiguration\nresources:\n\
                    - resources: [secrets, widgets.example.com]\n  providers: [{kms: {apiVersion: v2, name: a, endpoint: \
                    'unix:/x'}}, {identity: {}}]\n\
                    - resources: ['*.apps']\n  providers: [{identity: {}}, {kms: {apiVersion: v2, name: c, endpoint: \
                    'unix:/x'}}]\n\
                    - resources: ['*.*']\n  providers: [{kms: {apiVersion: v2, name: b, endpoint: 'unix:/y'}}]\n";
        let coverage = Coverage::Configured(EncryptionConfiguration::parse(text).unwrap());
        let provider = |plural, group| coverage.provider(&resource(plural, group)).unwrap_or_default();
        assert_eq!(provider("secrets", ""), "a");
        assert_eq!(provider("widgets", "example.com"), "a");
        assert_eq!(provider("deployments", "apps"), "identity:", "they leave c");
        assert_eq!(provider("configmaps", ""), "b");
        assert_eq!(provider("secrets", "example.com"), "b");
        assert_eq!(coverage.local_writers().into_iter().collect::<Vec<_>>(), ["identity:"]);
        assert_eq!(coverage.providers().into_iter().collect::<Vec<_>>(), ["a", "b"]);
    }

    #[test]
    fn a_plugin_is_left_where_another_provider_writes_and_it_still_reads() {
        let text = "apiVersion: apiserver.config.k8s.io/v1\nkind: EncryptionConfiguration\nresources:\n\
                    - resources: [secrets]\n  providers: [{aescbc: {keys: [{name: key2, secret: x}, {name: key1, secret: \
                    x}]}}, {kms: {apiVersion: v2, name: a, endpoint: 'unix:/x'}}, {identity: {}}]\n\
                    - resources: [events]\n  providers: [{identity: {}}]\n";
        let coverage = Coverage::Configured(EncryptionConfiguration::parse(text).unwrap());
        let provider = coverage.provider(&resource("secrets", "")).unwrap();
        assert_eq!((provider.as_str(), is_local(&provider)), ("aescbc:key2", true));
        assert_eq!(local_words(&provider).as_deref(), Some("aescbc v1 key2"));
        assert!(is_prefix_of(&provider, "k8s:enc:aescbc:v1:") && !is_prefix_of(&provider, ""));
        assert!(is_prefix_of("identity:", "") && !is_prefix_of("identity:", "k8s:enc:aescbc:v1:"));
        assert_eq!(coverage.provider(&resource("events", "")), None, "never encrypted");
        assert!(is_inner_prefix("key2:") && !is_inner_prefix(""));
        assert!(
            is_prefix_of("identity:", "identity") && !is_inner_prefix("identity"),
            "how reads in clear are counted"
        );
    }
}
