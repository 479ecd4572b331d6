//! The running cluster, judged through its API and its etcd, where the operator gave a way to them.

use anyhow::Result;

use crate::backup::Inventory;
use crate::cli::DoctorArgs;
use crate::commands::opening::{prefix, source};
use crate::encryption_config::EncryptionConfiguration;
use crate::posture::cluster::review;
use crate::posture::finding::Finding;
use crate::posture::stored::judge;
use crate::rotation::cluster::{Access, Cluster};

/// Looks at what was given; what was not is named, so that nobody takes silence for an answer.
pub(super) async fn check(args: &DoctorArgs) -> Vec<Finding> {
    let mut findings = match args.kubeconfig {
        Some(_) => of_api(args).await,
        None => vec![Finding::skipped("cluster", "not looked at: give --kubeconfig")],
    };
    findings.extend(if args.etcd.endpoints.is_empty() {
        vec![Finding::skipped("etcd", "not looked at: give --etcd")]
    } else {
        of_etcd(args).await.unwrap_or_else(|error| {
            let fix = "see --etcd, --etcd-ca, --etcd-cert and --etcd-key";
            vec![Finding::failed("etcd", format!("cannot be read: {error:#}"), fix)]
        })
    });
    findings
}

async fn of_api(args: &DoctorArgs) -> Vec<Finding> {
    let access = Access { kubeconfig: args.kubeconfig.clone(), ..Access::default() };
    match Cluster::connect(&access).await {
        Ok(cluster) => review(&cluster).await,
        Err(error) => vec![Finding::failed("cluster", error.to_string(), "see --kubeconfig")],
    }
}

async fn of_etcd(args: &DoctorArgs) -> Result<Vec<Finding>> {
    let configuration = args.encryption_config.as_deref().map(EncryptionConfiguration::read).transpose()?;
    let inventory =
        Inventory::take(&source(None, &args.etcd, &args.etcd_prefix).await?, &prefix(&args.etcd_prefix)).await?;
    Ok(judge(&inventory, configuration.as_ref()))
}
