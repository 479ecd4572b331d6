//! Encrypted values of other API servers in the same etcd, beside the prefix.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

/// Encrypted values in the same etcd that are not below the prefix of the API servers: those of others, with an
/// `--etcd-prefix` of their own. Nothing here rewrites them, and the keys they need must stay.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Beside {
    /// Folder → how many.
    pub values: BTreeMap<String, u64>,
    /// How many of them are not under a target key.
    #[serde(default)]
    pub left: u64,
    /// Whether the etcd user may not read them.
    pub is_unread: bool,
}

impl Beside {
    /// What is to be done where some of them are under a former key.
    pub fn remedy(&self) -> Option<String> {
        let folders = self.values.keys().map(String::as_str).collect::<Vec<_>>().join(", ");
        (self.left > 0).then(|| {
            format!(
                "{} value(s) of another API server ({folders} in the same etcd) are not under a target key: run rotate-keys \
                 against that API server, with its --etcd-prefix",
                self.left
            )
        })
    }

    /// What of it no search here covers.
    pub fn not_looked_at(&self, prefix: &str) -> Vec<String> {
        let of = |(folder, values): (&String, &u64)| {
            format!(
                "{folder} in etcd, with {values} encrypted value(s) of another API server: they were counted by their keys, \
                 and that API server was not asked"
            )
        };
        let unread = self.is_unread.then(|| {
            format!("encrypted values in etcd that are not under {prefix}: this etcd user may not read there")
        });
        self.values.iter().map(of).chain(unread).collect()
    }
}

/// `/openshift.io` of `/openshift.io/secrets/default/one`.
pub(super) fn top_folder(key: &[u8]) -> String {
    let key = String::from_utf8_lossy(key);
    let rest = key.strip_prefix('/').unwrap_or(&key);
    format!("/{}", rest.split('/').next().unwrap_or_default())
}
