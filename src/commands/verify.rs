//! `verify`: is anything left on an older key? Rewrites nothing; the answer is the exit code.

use std::time::Instant;

use anyhow::Result;

use super::rotate_keys::{access, etcd_access};
use super::rotation_display::{Display, print_scan};
use super::{Exit, block_on};
use crate::cli::OutputFormat;
use crate::cli::rotation::VerifyArgs;
use crate::rotation::adoption::{Wanted, look, look_fresh, targets_reported};
use crate::rotation::cluster::Cluster;
use crate::rotation::metrics::key_id_hash;
use crate::rotation::pace::Pace;
use crate::rotation::plan::encrypted;
use crate::rotation::reads::scan_reads;
use crate::rotation::resources::Coverage;
use crate::rotation::verify::{Scan, scan_etcd};
use crate::rotation::{Event, RotationError};
use crate::telemetry::{LogFormat, start_logs};

/// Runs the command.
pub fn run(args: VerifyArgs) -> Result<Exit> {
    if std::env::var_os("RUST_LOG").is_some() {
        start_logs(LogFormat::Text);
    }
    let output = args.cluster.output;
    let scan = match block_on(async move { Ok(verify(&args).await) })? {
        Ok(scan) => scan,
        Err(RotationError::NotConverged(why)) => {
            eprintln!("API servers do not agree on a key: {why}");
            return Ok(Exit::NotConverged);
        }
        Err(error @ RotationError::Unusable(_)) => {
            eprintln!("error: {error}");
            return Ok(Exit::Usage);
        }
        Err(error) => return Err(error.into()),
    };
    let clean = scan.leftovers == 0;
    match output {
        OutputFormat::Json => println!("{}", serde_json::to_string_pretty(&scan)?),
        OutputFormat::Table => {
            print_scan(&scan);
            println!(
                "{}",
                if clean {
                    "Nothing is stored under an older key."
                } else {
                    "Something is stored under an older key: disabling that key makes the next restart of an API \
                     server fail. Run rotate-keys."
                }
            );
        }
    }
    Ok(if clean { Exit::Done } else { Exit::Leftovers })
}

async fn verify(args: &VerifyArgs) -> Result<Scan, RotationError> {
    let args = &args.cluster;
    let etcd = etcd_access(args)?;
    let cluster = Cluster::connect(&access(args)).await?;
    let seen = match args.key_id {
        Some(_) => look(&cluster, true).await?,
        None => look(&cluster, false).await?,
    };
    let coverage = match &args.encryption_config {
        Some(file) => Coverage::read(file)?,
        None => Coverage::infer(&seen.iter().filter_map(|one| one.scrape.clone()).collect::<Vec<_>>())?,
    };
    let providers = coverage.providers();
    let seen = match args.key_id {
        Some(_) => seen,
        None => look_fresh(&cluster, &providers, false).await?,
    };
    let targets = if let Some(key_id) = &args.key_id {
        providers.into_iter().map(|provider| (provider, key_id_hash(key_id))).collect()
    } else {
        let wanted = Wanted { providers, ..Wanted::default() };
        targets_reported(&seen, &wanted)?
    };
    let expected = encrypted(cluster.entry(), &coverage).await?.expected(&targets);
    if let Some(etcd) = etcd {
        return scan_etcd(&etcd, &args.etcd_prefix, &expected).await;
    }
    let mut pace = Pace::new(args.max_concurrency.into(), args.qps, Instant::now());
    let display = Display::new(args.output == OutputFormat::Json);
    let scan = scan_reads(&seen[0].api, &expected, &mut pace, &mut |resource, tally, concurrency| {
        display.show(&Event::Progress { resource, tally, objects: 0, concurrency });
    })
    .await;
    display.finish();
    scan
}
