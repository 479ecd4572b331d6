//! What the API tells of a cluster: whether the API servers agree, who may read Secrets, and what carries credentials
//! beside them. Reads only; no value of a Secret or a `ConfigMap` is kept or shown.

mod config_maps;
mod listing;
mod rbac;
mod servers;
mod service_accounts;

use super::finding::Finding;
use crate::rotation::cluster::Cluster;

/// Looks at a running cluster. What may not be read is a finding of its own.
pub async fn review(cluster: &Cluster) -> Vec<Finding> {
    let api = cluster.entry();
    let mut findings = servers::check(cluster).await;
    findings.extend(rbac::check(api).await);
    findings.push(service_accounts::check(api).await);
    findings.push(config_maps::check(api).await);
    findings
}
