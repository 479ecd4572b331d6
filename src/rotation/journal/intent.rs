//! Everything that decides what a rotation does and what it counts as proof. It is in the journal, so that resuming
//! needs no flag and cannot silently mean something else.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use sha2::{Digest, Sha256};

use crate::rotation::error::RotationError;

/// What may change when a rotation is resumed: how it is reached and how fast it goes, but not what it does.
const MAY_CHANGE: &[&str] = &[
    "kubeconfig",
    "context",
    "server-ca",
    "etcd-ca",
    "etcd-cert",
    "etcd-key",
    "snapshot-command",
    "snapshot-file",
    "backup",
    "compact",
    "qps",
    "max-concurrency",
    "shards",
    "adoption-timeout",
    "agreement-interval",
];

/// How objects are stored again.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Method {
    /// Through the API servers, with empty patches: re-encrypted.
    #[default]
    Patch,
    /// Directly in etcd: the seed of each object is rewrapped, the object stays as it is.
    Rewrap,
}

/// The settings of a rotation; each is named as its flag.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", default)]
pub struct Intent {
    /// Whether the KEKs are rotated.
    pub rotate_kek: bool,
    /// The plugin's configuration.
    pub config: Option<PathBuf>,
    /// The target, where it was named.
    pub key_id: Option<String>,
    /// Former keys that were named.
    pub former: Vec<String>,
    /// Which kubeconfig; kubectl's own rules apply where none is named.
    pub kubeconfig: Option<PathBuf>,
    /// The context in it; its current one where none is named.
    pub context: Option<String>,
    /// API servers that were named.
    pub server: Vec<String>,
    /// More authorities of the API servers' certificates.
    pub server_ca: Option<PathBuf>,
    /// The EncryptionConfiguration of the API servers.
    pub encryption_config: Option<PathBuf>,
    /// URLs of etcd members, of one cluster or of several.
    pub etcd: Vec<String>,
    /// Authority of etcd's certificates.
    pub etcd_ca: Option<PathBuf>,
    /// Client certificate for etcd.
    pub etcd_cert: Option<PathBuf>,
    /// The certificate's private key.
    pub etcd_key: Option<PathBuf>,
    /// The API servers' prefix in etcd.
    pub etcd_prefix: String,
    /// Whether Events are rewritten.
    pub include_events: bool,
    /// Whether it goes on without the servers' metrics.
    pub accept_unproven: bool,
    /// Wait after the last rewrite, as a duration.
    pub settle: String,
    /// The longest that adoption may take.
    pub adoption_timeout: String,
    /// How often adoption is checked again.
    pub agreement_interval: String,
    /// Whether etcd is compacted where old revisions are in the way.
    pub compact: bool,
    /// Resources that are not rewritten.
    pub skip: Vec<String>,
    /// Resources whose objects may be changed by being stored again.
    pub allow_changes: Vec<String>,
    /// Snapshots of etcd, one for each cluster.
    pub snapshot_file: Vec<PathBuf>,
    /// Backups that must stay readable.
    pub backup: Vec<PathBuf>,
    /// Takes a snapshot of etcd.
    pub snapshot_command: Option<String>,
    /// How long a write may be under way at the API servers.
    pub request_timeout: String,
    /// How many API servers there are, where it was said.
    pub servers: Option<u16>,
    /// Most requests a second.
    pub qps: Option<f64>,
    /// Most requests at once.
    pub max_concurrency: u16,
    /// How many processes rewrite.
    pub shards: Option<u32>,
    /// How objects are stored again.
    pub method: Method,
    /// SHA-256 of each configuration file that decides something, when the rotation began.
    pub contents: BTreeMap<PathBuf, String>,
}

impl Intent {
    /// The intent of a rotation that begins with these flags; `defaults` has the rest.
    ///
    /// # Errors
    /// When a file that it names cannot be read.
    pub fn begin(defaults: &Self, given: &Map<String, Value>) -> Result<Self, RotationError> {
        let mut intent = defaults.overlaid(given);
        for file in [&intent.encryption_config, &intent.config].into_iter().flatten() {
            intent.contents.insert(file.clone(), content_hash(file)?);
        }
        Ok(intent)
    }

    /// The intent of a rotation that is resumed with these flags, and what changes by them, one sentence each.
    ///
    /// # Errors
    /// [`RotationError::Unusable`], naming both values, when a flag or a file would change what the rotation does.
    pub fn resume(&self, given: &Map<String, Value>) -> Result<(Self, Vec<String>), RotationError> {
        let begun = self.to_map();
        let (mut conflicts, mut changes) = (Vec::new(), Vec::new());
        for (flag, value) in given {
            let before = begun.get(flag).unwrap_or(&Value::Null);
            if same(before, value) {
                continue;
            }
            let text = format!("--{flag} is {} now; the rotation began with {}", show(value), show(before));
            let list = if MAY_CHANGE.contains(&flag.as_str()) { &mut changes } else { &mut conflicts };
            list.push(text);
        }
        // A file of the same name decides something else once its content changed.
        for (file, hash) in &self.contents {
            if content_hash(file)? != *hash {
                conflicts.push(format!("{} has changed since the rotation began", file.display()));
            }
        }
        if conflicts.is_empty() {
            return Ok((self.overlaid(given), changes));
        }
        Err(RotationError::Unusable(format!(
            "this rotation cannot be resumed with other settings: {}. Leave the flag out or restore the file, or give \
             this rotation up (rotate-keys --abort) and begin another",
            conflicts.join("; ")
        )))
    }

    fn overlaid(&self, given: &Map<String, Value>) -> Self {
        // By name, so that a flag and the field that it sets cannot be paired wrongly.
        let mut map = self.to_map();
        map.extend(given.clone());
        serde_json::from_value(Value::Object(map)).expect("every flag has the type of its field")
    }

    fn to_map(&self) -> Map<String, Value> {
        match serde_json::to_value(self) {
            Ok(Value::Object(map)) => map,
            _ => unreachable!("a struct with named fields is an object"),
        }
    }
}

/// The order of a list of addresses means nothing.
fn same(before: &Value, now: &Value) -> bool {
    let sorted = |value: &Value| {
        let mut texts: Vec<String> = value.as_array().into_iter().flatten().map(ToString::to_string).collect();
        texts.sort();
        texts
    };
    if before.is_array() && now.is_array() { sorted(before) == sorted(now) } else { before == now }
}

fn show(value: &Value) -> String {
    match value {
        Value::Null => "nothing".into(),
        Value::String(text) => text.clone(),
        Value::Array(items) if items.is_empty() => "nothing".into(),
        Value::Array(items) => items.iter().map(show).collect::<Vec<_>>().join(","),
        other => other.to_string(),
    }
}

fn content_hash(file: &Path) -> Result<String, RotationError> {
    let content =
        std::fs::read(file).map_err(|source| RotationError::File { what: "read", file: file.to_owned(), source })?;
    Ok(hex::encode(Sha256::digest(content)))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn given(value: &Value) -> Map<String, Value> {
        value.as_object().unwrap().clone()
    }

    #[test]
    fn a_rotation_resumes_with_all_that_it_began_with() {
        let begun =
            Intent::begin(&Intent::default(), &given(&json!({"rotate-kek": true, "etcd": ["a", "b"]}))).unwrap();
        assert!(begun.rotate_kek);
        assert_eq!(begun.resume(&Map::new()).unwrap(), (begun.clone(), Vec::new()));
        assert_eq!(begun.resume(&given(&json!({"etcd": ["b", "a"]}))).unwrap().1, Vec::<String>::new());
    }

    #[test]
    fn a_flag_that_changes_what_is_done_is_refused_with_both_values_and_one_of_pace_is_told() {
        let begun = Intent::begin(&Intent::default(), &given(&json!({"etcd": ["a"]}))).unwrap();
        let refused = begun.resume(&given(&json!({"etcd": ["c"]}))).unwrap_err().to_string();
        assert!(refused.contains("--etcd is c now; the rotation began with a"), "{refused}");
        assert!(begun.resume(&given(&json!({"rotate-kek": true}))).is_err());
        let (resumed, changes) = begun.resume(&given(&json!({"qps": 5.0}))).unwrap();
        assert_eq!((resumed.qps, changes.len()), (Some(5.0), 1));
    }

    #[test]
    fn a_file_that_changed_since_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("encryption.yaml");
        std::fs::write(&file, "a").unwrap();
        let begun = Intent::begin(&Intent::default(), &given(&json!({"encryption-config": file}))).unwrap();
        assert!(begun.resume(&Map::new()).is_ok());
        std::fs::write(&file, "b").unwrap();
        assert!(begun.resume(&Map::new()).unwrap_err().to_string().contains("has changed since"));
    }
}
