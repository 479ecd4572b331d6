//! `ConfigMap`s that look as if they held credentials, by the names of their keys: anyone with the role view reads them, and they
//! lie in clear unless the EncryptionConfiguration names them. Values are not looked at.

#![allow(clippy::zero_sized_map_values, reason = "a map as it is sent, whose values are passed over")]

use std::collections::BTreeMap;

use serde::Deserialize;
use serde::de::IgnoredAny;

use super::listing::{Named, every, not_read, some_of};
use crate::posture::finding::Finding;
use crate::rotation::cluster::api::Api;

const CHECK: &str = "cluster: ConfigMaps";

/// Parts of names that credentials are kept under.
const TELLING: &[&str] = &[
    "accesskey",
    "apikey",
    "credential",
    "htpasswd",
    "id_ed25519",
    "id_rsa",
    "kubeconfig",
    "passphrase",
    "passwd",
    "password",
    "privatekey",
    "secret",
    "token",
];
/// How the names of files with keys end.
const KEY_FILES: &[&str] = &[".jks", ".key", ".keystore", ".p12", ".pfx"];
/// Made by Kubernetes and kubeadm, with a kubeconfig that has no credential in it.
const KNOWN: &[&str] = &["kube-public/cluster-info", "kube-system/kube-proxy"];

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct ConfigMap {
    metadata: Named,
    #[serde(default)]
    data: Option<BTreeMap<String, IgnoredAny>>,
    #[serde(default)]
    binary_data: Option<BTreeMap<String, IgnoredAny>>,
}

pub(super) async fn check(api: &Api) -> Finding {
    match every::<ConfigMap>(api, "/api/v1/configmaps").await {
        Ok(maps) => judge(&maps),
        Err(error) => not_read(CHECK, "configmaps", &error),
    }
}

fn judge(maps: &[ConfigMap]) -> Finding {
    let found: Vec<_> = maps.iter().filter_map(ConfigMap::telling).collect();
    if found.is_empty() {
        return Finding::ok(CHECK, format!("none of {} has a key with the name of a credential", maps.len()));
    }
    let detail = format!("{} may contain credentials: {}", found.len(), some_of(&found));
    let fix = "review them, and move credentials into Secrets: every viewer may read a ConfigMap, and it is encrypted only \
               where the EncryptionConfiguration names configmaps";
    Finding::advice(CHECK, detail, fix)
}

impl ConfigMap {
    /// `namespace/name (key, key)` where keys are named as credentials are.
    fn telling(&self) -> Option<String> {
        let place = format!("{}/{}", self.metadata.namespace, self.metadata.name);
        let keys: Vec<_> = [&self.data, &self.binary_data]
            .into_iter()
            .flatten()
            .flat_map(BTreeMap::keys)
            .filter(|key| is_telling(key))
            .map(String::as_str)
            .collect();
        (!keys.is_empty() && !KNOWN.contains(&place.as_str())).then(|| format!("{place} ({})", keys.join(", ")))
    }
}

fn is_telling(key: &str) -> bool {
    let lower = key.to_lowercase();
    // Both spellings are searched: `id_rsa` has its underscore in the list, and `api_key` must match `apikey`.
    let plain = lower.replace(['-', '.', ' '], "_");
    let joined = plain.replace('_', "");
    let is_public = [".crt", ".cer", ".pub"].iter().any(|end| lower.ends_with(end));
    let is_named = TELLING.iter().any(|part| plain.contains(part) || joined.contains(part));
    !is_public && (is_named || KEY_FILES.iter().any(|end| lower.ends_with(end)))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::posture::finding::Outcome;

    #[test]
    fn names_as_people_write_them_are_told_and_ordinary_ones_are_not() {
        for key in [
            "DB_PASSWORD",
            "api-key",
            "aws.secret.access.key",
            "tls.key",
            "client_secret",
            "authToken",
            "id_rsa",
            "a.p12",
        ] {
            assert!(is_telling(key), "{key}");
        }
        for key in ["ca.crt", "config.yaml", "key", "keys.json", "log-level", "id_rsa.pub", "monkey", "Corefile"] {
            assert!(!is_telling(key), "{key}");
        }
    }

    #[test]
    fn keys_are_named_and_values_are_not() {
        let maps: Vec<ConfigMap> = serde_json::from_value(json!([
            {"metadata": {"name": "app", "namespace": "shop"}, "data": {"password": "hunter2", "colour": "red"}},
            {"metadata": {"name": "cluster-info", "namespace": "kube-public"}, "data": {"kubeconfig": "x"}},
            {"metadata": {"name": "bin", "namespace": "shop"}, "binaryData": {"store.jks": "AA=="}},
            {"metadata": {"name": "empty", "namespace": "shop"}, "data": null},
        ]))
        .unwrap();
        let found = judge(&maps);
        assert_eq!(found.result, Outcome::Advice);
        let words = serde_json::to_string(&found).unwrap();
        assert!(words.contains("shop/app (password)") && words.contains("shop/bin (store.jks)"), "{words}");
        assert!(!words.contains("hunter2") && !words.contains("cluster-info"), "{words}");
    }
}
