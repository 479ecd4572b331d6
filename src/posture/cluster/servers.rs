//! Whether all API servers are seen, and agree on configuration and key.

use std::collections::{BTreeMap, BTreeSet};

use crate::posture::finding::Finding;
use crate::rotation::adoption::{Obstacle, Reports, Seen, look_at_all};
use crate::rotation::cluster::Cluster;
use crate::rotation::cluster::api::chain;
use crate::rotation::cluster::key_id_hash::KeyIdHash;

const CHECK: &str = "cluster: API servers";

pub(super) async fn check(cluster: &Cluster) -> Vec<Finding> {
    let look = match look_at_all(cluster, Reports::Asked, false).await {
        Ok(look) => look,
        Err(Obstacle::Failed(error)) => return vec![not_compared(&chain(&error))],
        Err(
            Obstacle::NotYet(why) | Obstacle::Closed(why) | Obstacle::Unreadable(why) | Obstacle::TargetChanged(why),
        ) => return vec![not_compared(&why)],
    };
    let mut findings: Vec<_> = look
        .doubts
        .iter()
        .map(ToString::to_string)
        .chain(look.failures)
        .map(|doubt| {
            Finding::failed(CHECK, doubt, "let doctor reach every API server: until then nothing is known of that one")
        })
        .collect();
    findings.extend(disagreements(&look.seen));
    if findings.is_empty() {
        let servers = look.seen.len();
        findings.push(Finding::ok(CHECK, format!("{servers} seen, with one configuration and one key per provider")));
    }
    findings
}

fn not_compared(why: &str) -> Finding {
    Finding::skipped(CHECK, format!("they cannot be compared: {why}"))
}

fn disagreements(seen: &[Seen]) -> Vec<Finding> {
    let mut configurations = BTreeMap::<String, Vec<String>>::new();
    let mut keys = BTreeMap::<String, BTreeMap<String, Vec<String>>>::new();
    for server in seen {
        let Some(scrape) = &server.scrape else { continue };
        if let Some(hash) = &scrape.config_hash {
            // Not the hash of a key_id, but written in the same form (`sha256:…`), so it is shortened the same way.
            configurations.entry(KeyIdHash::from(hash.as_str()).short().to_owned()).or_default().push(server.name());
        }
        for (provider, (hash, _)) in &scrape.reported {
            keys.entry(provider.to_string())
                .or_default()
                .entry(hash.short().to_owned())
                .or_default()
                .push(server.name());
        }
    }
    let mut findings = Vec::new();
    if configurations.len() > 1 {
        let detail =
            format!("the API servers run with different EncryptionConfigurations: {}", grouped(&configurations));
        findings.push(Finding::failed(CHECK, detail, "give every node the same file, and let each API server load it"));
    }
    for (provider, keys) in keys.iter().filter(|(_, keys)| keys.len() > 1) {
        let detail = format!("the plugins of provider {provider} report different key_ids: {}", grouped(keys));
        let fix = "a rotation is adopted within minutes; if they stay different, compare kube-envelope status on the nodes: \
                   configuration, cluster name and KEKs must be the same";
        findings.push(Finding::failed(CHECK, detail, fix));
    }
    findings
}

/// `sha256:ab… at x, y; sha256:cd… at z`.
fn grouped(groups: &BTreeMap<String, Vec<String>>) -> String {
    let group = |(hash, servers): (&String, &Vec<String>)| {
        let servers: BTreeSet<_> = servers.iter().map(String::as_str).collect();
        format!("{hash} at {}", servers.into_iter().collect::<Vec<_>>().join(", "))
    };
    groups.iter().map(group).collect::<Vec<_>>().join("; ")
}
