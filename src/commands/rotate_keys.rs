//! `rotate-keys`: from the arguments to a rotation, and from its verdict to an exit code.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result};

use super::rotation_display::{Display, print_plan, print_rotation};
use super::{Exit, block_on};
use crate::cli::OutputFormat;
use crate::cli::rotation::{ClusterArgs, RotateKeysArgs};
use crate::config::Config;
use crate::etcd::EtcdAccess;
use crate::rotation::cluster::Access;
use crate::rotation::journal::{Journal, State, write_whole};
use crate::rotation::rbac::rbac;
use crate::rotation::shards::worker::work;
use crate::rotation::verdict::Conclusion;
use crate::rotation::{RotationError, Run, Settings};
use crate::telemetry::{LogFormat, start_logs};

/// Twice the interval at which API servers compact etcd unless told otherwise.
const SETTLE: Duration = Duration::from_mins(10);

/// Runs the command.
pub fn run(args: RotateKeysArgs) -> Result<Exit> {
    if std::env::var_os("RUST_LOG").is_some() {
        start_logs(LogFormat::Text);
    }
    let ended = block_on(async move { rotate(args).await });
    ended.or_else(|error| match error.downcast_ref::<RotationError>() {
        Some(RotationError::Paused(_)) => explain(&error, "paused", Exit::Paused),
        Some(RotationError::NotConverged(_)) => {
            explain(&error, "API servers have not adopted the key", Exit::NotConverged)
        }
        Some(RotationError::Unusable(_)) => explain(&error, "cannot be done so", Exit::Usage),
        _ => Err(error),
    })
}

#[allow(clippy::unnecessary_wraps, reason = "it stands where an error would be passed on")]
fn explain(error: &anyhow::Error, what: &str, exit: Exit) -> Result<Exit> {
    eprintln!("{what}: {error:#}");
    Ok(exit)
}

async fn rotate(args: RotateKeysArgs) -> Result<Exit> {
    if args.status {
        return status(&args);
    }
    if args.plan || args.dry_run || args.print_rbac {
        return look_only(&args).await;
    }
    if let Some(index) = args.shard {
        return shard(&args, index).await;
    }
    let _lock = lock(&args.journal)?;
    if args.abort {
        return abort(&args);
    }
    let settings = settings(&args)?;
    let journal = if args.resume { resumed(&args)? } else { begun(&args)? };
    let output = args.cluster.output;
    let display = Display::new(output == OutputFormat::Json);
    let report = |event: crate::rotation::Event<'_>| display.show(&event);
    let mut run = Run::take_up(settings, journal, &report).await?;
    let ended = run.to_end().await;
    display.finish();
    let journal = run.journal();
    let verdict = ended.inspect_err(|_| eprintln!("state: {}; go on with: rotate-keys --resume", journal.state))?;
    let evidence = evidence_file(&args.journal, journal);
    let text = serde_json::to_string_pretty(journal)?;
    write_whole(&evidence, &text)?;
    match output {
        OutputFormat::Json => println!("{text}"),
        OutputFormat::Table => print_rotation(journal, Some(&evidence)),
    }
    Ok(match verdict.conclusion {
        Conclusion::MayBeDisabled | Conclusion::NothingLeftWait | Conclusion::Unproven => Exit::Done,
        Conclusion::Refused => Exit::Quarantined,
        Conclusion::Leftovers => Exit::Leftovers,
    })
}

/// `--shard`: rewrites what is assigned, until the rotation is over.
async fn shard(args: &RotateKeysArgs, index: u32) -> Result<Exit> {
    let display = Display::new(true);
    let report = |event: crate::rotation::Event<'_>| display.show(&event);
    let refused = work(&access(&args.cluster), index, &report).await?;
    Ok(if refused == 0 { Exit::Done } else { Exit::Quarantined })
}

/// `--plan`, `--dry-run` and `--print-rbac`: nothing is stored anywhere.
async fn look_only(args: &RotateKeysArgs) -> Result<Exit> {
    let settings = settings(args)?;
    let with_etcd = settings.etcd.is_some();
    let json = args.cluster.output == OutputFormat::Json;
    let display = Display::new(json);
    let report = |event: crate::rotation::Event<'_>| display.show(&event);
    let mut run = Run::take_up(settings, Journal::new(SETTLE.as_secs()), &report).await?;
    run.plan(false).await?;
    if args.print_rbac {
        print!("{}", rbac(run.journal(), with_etcd, args.shards.is_some()));
        return Ok(Exit::Done);
    }
    if args.dry_run {
        run.dry_run().await?;
        display.finish();
    }
    if json {
        println!("{}", serde_json::to_string_pretty(run.journal())?);
    } else {
        print_plan(run.journal(), args.dry_run);
    }
    Ok(if run.journal().refused().is_empty() { Exit::Done } else { Exit::Quarantined })
}

fn status(args: &RotateKeysArgs) -> Result<Exit> {
    let journal = present(&args.journal)?;
    match args.cluster.output {
        OutputFormat::Json => println!("{}", serde_json::to_string_pretty(&journal)?),
        OutputFormat::Table => print_rotation(&journal, None),
    }
    Ok(if journal.paused.is_some() { Exit::Paused } else { Exit::Done })
}

fn abort(args: &RotateKeysArgs) -> Result<Exit> {
    let mut journal = present(&args.journal)?;
    if journal.state != State::Done {
        journal.state = State::Aborted;
        journal.write(&args.journal)?;
    }
    println!("given up; both keys stay readable, and nothing that was rewritten is lost");
    Ok(Exit::Done)
}

fn present(file: &Path) -> Result<Journal> {
    let journal = Journal::read(file)?;
    journal.with_context(|| format!("there is no rotation in {}; name its place with --journal", file.display()))
}

fn resumed(args: &RotateKeysArgs) -> Result<Journal> {
    let mut journal = present(&args.journal)?;
    if journal.state == State::Aborted {
        return Err(RotationError::Unusable("the rotation in the journal was given up; begin a new one".into()).into());
    }
    if let Some(settle) = args.settle {
        journal.settle_seconds = settle.as_secs();
    }
    Ok(journal)
}

fn begun(args: &RotateKeysArgs) -> Result<Journal> {
    if let Some(journal) = Journal::read(&args.journal)? {
        if !journal.is_finished() {
            return Err(RotationError::Unusable(format!(
                "the rotation that began at {} is unfinished (state: {}); go on with --resume, or give it up with --abort",
                journal.started, journal.state
            ))
            .into());
        }
        let former = args.journal.with_extension(format!("{}.json", journal.started.as_second()));
        fs::rename(&args.journal, &former).with_context(|| format!("cannot move {} away", args.journal.display()))?;
    }
    Ok(Journal::new(args.settle.unwrap_or(SETTLE).as_secs()))
}

/// One process at a time works on a journal.
fn lock(journal: &Path) -> Result<fs::File> {
    let file = journal.with_extension("lock");
    if let Some(folder) = file.parent() {
        fs::create_dir_all(folder).with_context(|| {
            format!("cannot make the folder {}; name another place with --journal", folder.display())
        })?;
    }
    let handle = fs::File::create(&file).with_context(|| format!("cannot write {}", file.display()))?;
    handle.try_lock().with_context(|| format!("another rotate-keys works on {}", journal.display()))?;
    Ok(handle)
}

fn evidence_file(journal_file: &Path, journal: &Journal) -> PathBuf {
    let started = journal.started.strftime("%Y%m%dT%H%M%SZ");
    journal_file.with_file_name(format!("evidence-{started}.json"))
}

fn settings(args: &RotateKeysArgs) -> Result<Settings> {
    let keks = if args.rotate_kek { Config::load(&args.config)?.keks } else { Vec::new() };
    Ok(Settings {
        access: access(&args.cluster),
        encryption_config: args.cluster.encryption_config.clone(),
        etcd: etcd_access(&args.cluster)?,
        etcd_prefix: args.cluster.etcd_prefix.clone(),
        keks,
        key_id: args.cluster.key_id.clone(),
        journal: args.journal.clone(),
        include_events: args.include_events,
        accept_unproven: args.accept_unproven,
        rate: args.cluster.qps,
        concurrency: args.cluster.max_concurrency.into(),
        shards: args.shards.map(|shards| shards as usize),
        adoption_timeout: args.adoption_timeout,
        agreement_interval: args.agreement_interval,
        request_timeout: args.request_timeout,
        snapshot_taken: args.snapshot_taken,
        snapshot_command: args.snapshot_command.clone(),
    })
}

/// How the cluster is reached, from the arguments.
pub fn access(args: &ClusterArgs) -> Access {
    Access {
        kubeconfig: args.kubeconfig.clone(),
        context: args.context.clone(),
        servers: args.servers.clone(),
        server_count: args.server_count.map(usize::from),
    }
}

/// How etcd is reached, from the arguments.
pub fn etcd_access(args: &ClusterArgs) -> Result<Option<EtcdAccess>, RotationError> {
    if args.etcd.is_empty() {
        return Ok(None);
    }
    if let Some(url) = args.etcd.iter().find(|url| url.starts_with("https:") && args.etcd_ca.is_none()) {
        return Err(RotationError::Unusable(format!(
            "{url} cannot be verified; name the authority that signed etcd's certificate with --etcd-ca"
        )));
    }
    Ok(Some(EtcdAccess {
        endpoints: args.etcd.clone(),
        ca: args.etcd_ca.clone(),
        certificate: args.etcd_cert.clone(),
        key: args.etcd_key.clone(),
    }))
}
