//! Values in etcd that are not stored as the EncryptionConfiguration says: in clear, or by a provider that is to go.

use std::collections::BTreeMap;

use super::finding::Finding;
use crate::backup::{Inventory, Row};
use crate::encryption_config::{EncryptionConfiguration, Entry, Provider};
use crate::etcd::Stored;

const CHECK: &str = "etcd: how values are stored";
const REWRITE: &str = "run kube-envelope rotate-keys, which stores every value again and proves it";

/// Judges what was counted; without a configuration, Secrets alone.
#[must_use]
pub fn judge(inventory: &Inventory, configuration: Option<&EncryptionConfiguration>) -> Vec<Finding> {
    let (mut in_clear, mut elsewhere) = (BTreeMap::<String, u64>::new(), BTreeMap::<String, u64>::new());
    let mut secrets = 0;
    for Row { shape, count } in inventory.rows().filter(|row| row.count.objects > 0) {
        let (plural, group) = resource_of(&shape.folder);
        let entry = configuration.and_then(|configuration| configuration.entry(plural, group));
        if shape.folder == "secrets" {
            secrets += count.objects;
        }
        // Most resources are meant to be in clear, so what no entry names is not counted; Secrets are, whatever the file says.
        let is_meant_in_clear = match entry.and_then(Entry::writer) {
            Some(writer) => *writer == Provider::Identity,
            None => true,
        };
        match &shape.stored {
            Stored::Plain if shape.folder == "secrets" || !is_meant_in_clear => {
                *in_clear.entry(shape.folder.clone()).or_default() += count.objects;
            }
            stored if entry.and_then(Entry::writer).is_some_and(|writer| !writes(writer, stored)) => {
                *elsewhere.entry(format!("{} {}", shape.folder, described(stored))).or_default() += count.objects;
            }
            _ => {}
        }
    }
    let mut findings = Vec::new();
    if !in_clear.is_empty() {
        let detail = format!("values are stored in etcd in clear: {}", counted(&in_clear));
        findings.push(Finding::failed(CHECK, detail, REWRITE).of_cis("1.2.28"));
    }
    if !elsewhere.is_empty() {
        let detail =
            format!("values are stored by a provider other than the one that writes now: {}", counted(&elsewhere));
        findings.push(Finding::advice(CHECK, detail, REWRITE));
    }
    if findings.is_empty() {
        findings.push(Finding::ok(
            CHECK,
            format!("{secrets} Secret(s), none in clear or by a provider that no longer writes"),
        ));
    }
    findings
}

/// Plural and group; what lies in a folder of its own group has the group first.
fn resource_of(folder: &str) -> (&str, &str) {
    folder.split_once('/').map_or((folder, ""), |(group, plural)| (plural, group))
}

fn writes(writer: &Provider, stored: &Stored) -> bool {
    match (writer, stored) {
        (Provider::Kms(kms), Stored::KmsV2 { provider, .. }) => kms.name == *provider,
        // Which of its keys a local provider used is not told apart here: `rotate-keys` does that.
        (Provider::LocalKeys(_), Stored::Otherwise(_)) | (Provider::Identity, Stored::Plain) => true,
        _ => false,
    }
}

fn described(stored: &Stored) -> String {
    match stored {
        Stored::KmsV2 { provider, .. } => format!("(KMS v2 provider {provider})"),
        Stored::Otherwise(words) => format!("({words})"),
        Stored::Plain => "(in clear)".into(),
    }
}

fn counted(values: &BTreeMap<String, u64>) -> String {
    values.iter().map(|(what, count)| format!("{count} of {what}")).collect::<Vec<_>>().join(", ")
}
