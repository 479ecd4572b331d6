//! Which resources are encrypted: the EncryptionConfiguration (or what metrics let one guess) against what the
//! API servers serve.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::path::Path;

use serde::{Deserialize, Serialize};

use crate::encryption_config::{
    EncryptionConfigError, EncryptionConfiguration, Endpoint, Entry, Kms, KmsVersion, Provider, ProviderName,
};
use crate::rotation::cluster::api::escaped;
use crate::rotation::cluster::metrics::{Direction, Scrape};
use crate::rotation::cluster::writer::{LocalWriter, Writer, plugin_counted_as};
use crate::rotation::error::RotationError;

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
    pub(in crate::rotation) fn list_path(&self) -> String {
        format!("{}/{}", self.root(), self.plural)
    }

    /// Path of the list in one namespace.
    pub(in crate::rotation) fn namespace_path(&self, namespace: &str) -> String {
        format!("{}/namespaces/{}/{}", self.root(), escaped(namespace), self.plural)
    }

    /// Path of one object.
    pub(in crate::rotation) fn object_path(&self, namespace: Option<&str>, name: &str) -> String {
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
    pub(in crate::rotation) fn is_event(&self) -> bool {
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
    Inferred(BTreeMap<String, ProviderName>),
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
        // Most likely the wrong file was named, or the plugin was put behind the provider that writes.
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
        let mut found: BTreeMap<String, ProviderName> = BTreeMap::new();
        // What was stored is worth more than what was read: an older provider is read, too.
        for wanted in [Direction::Stored, Direction::Read] {
            for ((resource, prefix, direction), _) in scrapes.iter().flat_map(|scrape| &scrape.operations) {
                if let Some(provider) = plugin_counted_as(prefix).filter(|_| *direction == wanted) {
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
                    let writes = plugin_of(entry).is_some();
                    entry.resources.iter().map(|pattern| (pattern.clone(), writes)).collect::<Vec<_>>()
                };
                configuration.entries.iter().flat_map(of).collect()
            }
            Self::Inferred(found) => found.keys().map(|resource| (resource.clone(), true)).collect(),
        }
    }

    /// Who writes this resource: a KMS v2 plugin, or a local provider to which it is moved.
    pub fn writer(&self, resource: &Resource) -> Option<Writer> {
        match self {
            Self::Configured(configuration) => Writer::of(configuration.entry(&resource.plural, &resource.group)?),
            Self::Inferred(found) => found.get(&resource.to_string()).cloned().map(Writer::Plugin),
        }
    }

    /// Every local provider to which a resource is moved from a KMS v2 plugin.
    pub fn local_writers(&self) -> BTreeSet<LocalWriter> {
        match self {
            Self::Configured(configuration) => {
                configuration.entries.iter().filter_map(|entry| Writer::of(entry)?.local().cloned()).collect()
            }
            Self::Inferred(_) => BTreeSet::new(),
        }
    }

    /// Every KMS v2 provider that writes something.
    pub fn providers(&self) -> BTreeSet<ProviderName> {
        match self {
            Self::Configured(configuration) => configuration.entries.iter().filter_map(plugin_of).collect(),
            Self::Inferred(found) => found.values().cloned().collect(),
        }
    }

    /// Every KMS v2 provider that only reads what it stored earlier, by configuration.
    pub fn readers(&self) -> BTreeSet<ProviderName> {
        let writers = self.providers();
        let all = self.configuration().into_iter().flat_map(EncryptionConfiguration::kms);
        all.map(|kms| kms.name.clone()).filter(|name| !writers.contains(name)).collect()
    }

    /// How prefixes of values begin that are written by no KMS v2 provider, by configuration; empty for values in clear.
    pub(in crate::rotation) fn other_prefixes(&self) -> BTreeSet<String> {
        match self {
            Self::Configured(configuration) => configuration.entries.iter().filter_map(other_prefix).collect(),
            Self::Inferred(_) => BTreeSet::new(),
        }
    }

    /// The KMS v2 provider whose plugin serves this socket, where the configuration tells.
    pub fn provider_at(&self, socket: &Endpoint) -> Option<ProviderName> {
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

/// The provider that writes, where it is a KMS v2 plugin.
fn plugin_of(entry: &Entry) -> Option<ProviderName> {
    Writer::of(entry)?.plugin().cloned()
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
        let writer = |plural, group| coverage.writer(&resource(plural, group)).map(String::from).unwrap_or_default();
        assert_eq!(writer("secrets", ""), "a");
        assert_eq!(writer("widgets", "example.com"), "a");
        assert_eq!(writer("deployments", "apps"), "identity:", "they leave c");
        assert_eq!(writer("configmaps", ""), "b");
        assert_eq!(writer("secrets", "example.com"), "b");
        assert_eq!(coverage.local_writers(), [LocalWriter::Clear].into());
        assert_eq!(coverage.providers(), ["a", "b"].map(ProviderName::from).into());
    }

    #[test]
    fn a_plugin_is_left_where_another_provider_writes_and_it_still_reads() {
        let text = "apiVersion: apiserver.config.k8s.io/v1\nkind: EncryptionConfiguration\nresources:\n\
                    - resources: [secrets]\n  providers: [{aescbc: {keys: [{name: key2, secret: x}, {name: key1, secret: \
                    x}]}}, {kms: {apiVersion: v2, name: a, endpoint: 'unix:/x'}}, {identity: {}}]\n\
                    - resources: [events]\n  providers: [{identity: {}}]\n";
        let coverage = Coverage::Configured(EncryptionConfiguration::parse(text).unwrap());
        assert_eq!(coverage.writer(&resource("secrets", "")), Some("aescbc:key2".to_owned().into()));
        assert_eq!(coverage.writer(&resource("events", "")), None, "never encrypted");
    }
}
