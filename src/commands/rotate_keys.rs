//! `rotate-keys`: from the arguments to a rotation, and from its verdict to an exit code.

pub mod intent;
mod scheduled;

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use tokio::signal::unix::{SignalKind, signal};

use self::intent::{begin, given, settings};
use self::scheduled::{Due, due, for_a_scheduler};
use super::closed_pipe::{eprintln, print, println};
use super::exit::{Exit, block_on};
use super::metrics_file::MetricsFile;
use super::rotation_access::{access, exit_of, exit_of_past};
use super::rotation_display::{Display, print_plan, print_rotation};
use crate::cli::OutputFormat;
use crate::cli::rotation::{DEFAULT_JOURNAL, RotateKeysArgs};
use crate::files::create_private_folder;
use crate::rotation::cluster::resources::{Coverage, Resource};
use crate::rotation::conclusion::history::{append, history_file};
use crate::rotation::error::RotationError;
use crate::rotation::journal::intent::Intent;
use crate::rotation::journal::{Journal, State, write_whole};
use crate::rotation::rewrite::Tally;
use crate::rotation::run::Run;
use crate::rotation::run::rbac::rbac;
use crate::rotation::shards::worker::work;
use crate::shell::quoted;
use crate::telemetry::{LogFormat, start_logs};

/// Runs the command.
///
/// # Errors
/// Any failure; [`exit_of`](super::exit_of) maps it to an exit code.
pub fn run(args: RotateKeysArgs) -> Result<Exit> {
    if std::env::var_os("RUST_LOG").is_some() {
        start_logs(LogFormat::Text);
    }
    let unattended = args.unattended;
    let ended = block_on(async move { Box::pin(rotate(args)).await });
    let ended = ended.or_else(|error| match error.downcast_ref::<RotationError>() {
        Some(RotationError::Paused(_)) => explain(&error, "paused", Exit::Paused),
        Some(RotationError::NotConverged(_) | RotationError::Silent(_)) => {
            explain(&error, "API servers have not adopted the key", Exit::NotConverged)
        }
        Some(RotationError::Unusable(_)) => explain(&error, "error", Exit::Usage),
        _ => Err(error),
    });
    if unattended { ended.map(for_a_scheduler) } else { ended }
}

#[allow(clippy::unnecessary_wraps, reason = "it stands where an error would be passed on")]
fn explain(error: &anyhow::Error, what: &str, exit: Exit) -> Result<Exit> {
    eprintln!("{what}: {error:#}");
    Ok(exit)
}

async fn rotate(args: RotateKeysArgs) -> Result<Exit> {
    // None of these writes the journal, so they need no lock, and may run while a rotation goes on.
    if args.status {
        return status(&args);
    }
    if args.plan || args.dry_run || args.print_rbac {
        return Box::pin(look_only(&args)).await;
    }
    if let Some(index) = args.shard {
        return shard(&args, index).await;
    }
    let _lock = lock(&args.journal)?;
    if args.abort {
        return abort(&args);
    }
    let Some(journal) = wanted(&args).await? else { return Ok(Exit::NotDue) };
    let settings = settings(&journal.intent, &args)?;
    let output = args.cluster.output;
    let display = Display::new(output == OutputFormat::Json);
    let metrics = args.metrics_file.clone().map(MetricsFile::new);
    let report = |event: crate::rotation::event::Event<'_>| {
        display.show(&event);
        if let Some(metrics) = &metrics {
            metrics.observe(&event);
        }
    };
    let mut run = Run::start_or_resume(settings, journal, &report).await?;
    let ended = tokio::select! {
        ended = run.to_end() => Some(ended),
        // Dropped where it stands. The journal was written after the last step that ended, and each step may be begun
        // again.
        () = interrupted() => None,
    };
    display.finish();
    let journal = run.journal();
    if let Some(metrics) = &metrics {
        metrics.conclude(journal);
    }
    let hint = || eprintln!("state: {}; continue with: {}", journal.state, command_line(&args, "--resume"));
    let Some(ended) = ended else {
        hint();
        return Ok(Exit::Paused);
    };
    let verdict = ended.inspect_err(|_| hint())?;
    let evidence = evidence_file(&args.journal, journal);
    let text = serde_json::to_string_pretty(journal)?;
    // Not a failure of the command: the verdict stands, and the caller wants its exit code.
    if let Err(error) = write_whole(&evidence, &text) {
        eprintln!("the evidence could not be written; the journal has all of it: {error:#}");
    } else if let Err(error) = append(&history_file(&args.journal), journal, &evidence, format!("{text}\n").as_bytes())
    {
        eprintln!("the history of rotations could not be extended: {error}");
    }
    match output {
        OutputFormat::Json => println!("{text}"),
        OutputFormat::Table => print_rotation(journal, Some(&evidence)),
    }
    Ok(exit_of(&verdict))
}

/// The journal to work on; `None` where nothing is due.
async fn wanted(args: &RotateKeysArgs) -> Result<Option<Journal>> {
    let due = match args.if_older_than {
        _ if args.resume => Due::Resume,
        None => Due::Begin,
        Some(age) => Box::pin(due(args, age)).await?,
    };
    match due {
        Due::Begin => begun(args).map(Some),
        Due::Resume => resumed(args).map(Some),
        Due::Nothing => Ok(None),
    }
}

/// Ends when the process is told to: by Ctrl-C, or by the service manager that runs it.
pub(super) async fn interrupted() {
    let terminated = async {
        match signal(SignalKind::terminate()) {
            Ok(mut terminate) => terminate.recv().await,
            Err(_) => std::future::pending().await,
        }
    };
    tokio::select! {
        _ = tokio::signal::ctrl_c() => {}
        _ = terminated => {}
    }
}

/// `--shard`: rewrites what is assigned, until the rotation is over.
async fn shard(args: &RotateKeysArgs, index: u32) -> Result<Exit> {
    let display = Display::new(true);
    let report = |event: crate::rotation::event::Event<'_>| display.show(&event);
    let refused = work(&access(&args.cluster), index, &report).await?;
    Ok(if refused == 0 { Exit::Done } else { Exit::Quarantined })
}

/// `--plan`, `--dry-run` and `--print-rbac`: nothing is stored anywhere.
async fn look_only(args: &RotateKeysArgs) -> Result<Exit> {
    let intent = begin(args)?;
    let settings = settings(&intent, args)?;
    let with_etcd = settings.etcd.is_some();
    if args.print_rbac
        && let Some(journal) = named_resources(&intent)?
    {
        print!("{}", rbac(&journal, with_etcd, args.shards.is_some()));
        return Ok(Exit::Done);
    }
    let json = args.cluster.output == OutputFormat::Json;
    let display = Display::new(json);
    let report = |event: crate::rotation::event::Event<'_>| display.show(&event);
    let mut run = Run::start_or_resume(settings, Journal::new(intent), &report).await?;
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
    let is_left = |tally: &Tally| !tally.withheld.is_empty() || tally.withheld_all.is_some();
    let some_left = args.dry_run && run.journal().resources.iter().any(|progress| is_left(&progress.tally));
    Ok(if run.journal().refused().is_empty() && !some_left { Exit::Done } else { Exit::Quarantined })
}

/// A journal with the encrypted resources, where the EncryptionConfiguration names each of them and no cluster need
/// be asked what a wildcard stands for.
fn named_resources(intent: &Intent) -> Result<Option<Journal>> {
    let Some(file) = &intent.encryption_config else { return Ok(None) };
    let mut journal = Journal::new(intent.clone());
    let coverage = Coverage::read(file)?;
    for (pattern, is_encrypted) in coverage.patterns() {
        if pattern.contains('*') {
            return Ok(None);
        }
        if is_encrypted {
            let (plural, group) = pattern.split_once('.').unwrap_or((&pattern, ""));
            let (plural, group) = (plural.to_owned(), group.to_owned());
            // The rules of RBAC name no version.
            let resource = Resource { group, version: String::new(), plural, namespaced: true };
            if let Some(writer) = coverage.writer(&resource) {
                journal.resource_mut(&resource, &writer);
            }
        }
    }
    Ok(Some(journal))
}

fn status(args: &RotateKeysArgs) -> Result<Exit> {
    let journal = present(&args.journal)?;
    match args.cluster.output {
        OutputFormat::Json => println!("{}", serde_json::to_string_pretty(&journal)?),
        OutputFormat::Table => {
            if let Some(at) = journal.verified_at.filter(|_| journal.verdict.is_some()) {
                println!("as of {at}: the verdict below; `kube-envelope verify` says whether it still holds");
            }
            print_rotation(&journal, None);
        }
    }
    Ok(match &journal.verdict {
        _ if journal.paused.is_some() => Exit::Paused,
        Some(verdict) if journal.state == State::Done => exit_of_past(verdict),
        _ => Exit::NotYet,
    })
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
    journal.with_context(|| format!("{} holds no rotation; name its journal with --journal", file.display()))
}

fn resumed(args: &RotateKeysArgs) -> Result<Journal> {
    let mut journal = present(&args.journal)?;
    if journal.state == State::Aborted {
        return Err(RotationError::Unusable("the rotation in the journal was given up; begin a new one".into()).into());
    }
    let (intent, changes) = journal.intent.resume(&given(args)?)?;
    for change in changes {
        eprintln!("note: {change}");
    }
    journal.intent = intent;
    Ok(journal)
}

/// A new journal. One that is finished is kept beside it; one that has changed nothing yet is replaced.
fn begun(args: &RotateKeysArgs) -> Result<Journal> {
    let mut new = Journal::new(begin(args)?);
    if let Some(journal) = Journal::read(&args.journal)? {
        if !journal.is_finished() && journal.state > State::Preflight {
            return Err(RotationError::Unusable(format!(
                "the rotation that began at {} is unfinished (state: {}); continue with: {}; or give it up with: {}",
                journal.started,
                journal.state,
                command_line(args, "--resume"),
                command_line(args, "--abort")
            ))
            .into());
        }
        // Its own start is in the name, so that no two former journals have the same one.
        let former = args.journal.with_extension(format!("{}.json", journal.started.as_second()));
        fs::rename(&args.journal, &former).with_context(|| format!("cannot move {} away", args.journal.display()))?;
        new.inherit(journal);
    }
    Ok(new)
}

/// A complete command line for the rotation in the journal, to be pasted into a shell.
fn command_line(args: &RotateKeysArgs, mode: &str) -> String {
    if args.journal == Path::new(DEFAULT_JOURNAL) {
        return format!("kube-envelope rotate-keys {mode}");
    }
    format!("kube-envelope rotate-keys {mode} --journal {}", quoted(&args.journal.display().to_string()))
}

/// One process at a time works on a journal.
fn lock(journal: &Path) -> Result<fs::File> {
    let file = journal.with_extension("lock");
    if let Some(folder) = file.parent() {
        create_private_folder(folder).with_context(|| {
            format!("cannot create the folder {}; name another place with --journal", folder.display())
        })?;
    }
    let handle = fs::File::create(&file).with_context(|| format!("cannot write {}", file.display()))?;
    // The kernel lets go of it when the process ends, however it ends; the file itself stays and means nothing.
    handle.try_lock().with_context(|| format!("another rotate-keys is using {}", journal.display()))?;
    Ok(handle)
}

fn evidence_file(journal_file: &Path, journal: &Journal) -> PathBuf {
    let started = journal.started.strftime("%Y%m%dT%H%M%SZ");
    journal_file.with_file_name(format!("evidence-{started}.json"))
}
