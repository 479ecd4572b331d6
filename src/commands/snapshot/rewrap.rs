//! `snapshot rewrap`: a snapshot of the same content that no longer needs the former keys.
//!
//! etcd's own programs restore it into a scratch etcd; its seeds are rewrapped there as by `rotate-keys --method rewrap`;
//! old revisions are compacted away, and a new snapshot is taken. It gets its name only when it was compared with the
//! original, and rehearsed without the former keys.

mod report;
mod way;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Instant;

use anyhow::{Context, Result, bail};
use tokio::signal::unix::{SignalKind, signal};

use self::report::{Held, Report};
use self::way::Way;
use crate::backup::{Programs, ScratchEtcd, ScratchFolder, compare};
use crate::cli::OutputFormat;
use crate::cli::backup::SnapshotRewrapArgs;
use crate::commands::closed_pipe::{eprintln, println};
use crate::commands::exit::{Exit, block_on};
use crate::commands::opening::{Keys, prefix};
use crate::files::{folder_of, publish};
use crate::rehearsal::{Opener, Rehearsal, Seeds, rehearse};
use crate::rotation::rewrap::behind::Watchers;
use crate::rotation::rewrap::pass::{Aim, Pass, Rewrapped};
use crate::rotation::rewrap::seeds::SeedWrapper;
use crate::rotation::rewrite::pace::Pace;

/// Transactions at once; etcd is on this machine and serves nobody else.
const AT_ONCE: usize = 16;
/// The new snapshot, while it has no name of its own.
const NEW: &str = "new.db";

/// Runs the command.
///
/// # Errors
/// When no new file was made, for another reason than the values themselves.
pub(super) fn run(args: SnapshotRewrapArgs) -> Result<Exit> {
    let output = args.output;
    let report = block_on(async move {
        let (mut interrupt, mut terminate) = (signal(SignalKind::interrupt())?, signal(SignalKind::terminate())?);
        tokio::select! {
            report = Box::pin(rewrap(&args)) => report,
            // What is dropped here ends the scratch etcd and removes its folder.
            _ = interrupt.recv() => bail!("interrupted; no file was written"),
            _ = terminate.recv() => bail!("terminated; no file was written"),
        }
    })?;
    match output {
        OutputFormat::Json => println!("{}", serde_json::to_string_pretty(&report)?),
        OutputFormat::Table => report.print(),
    }
    Ok(report.exit())
}

async fn rewrap(args: &SnapshotRewrapArgs) -> Result<Report> {
    let to = args.to.clone().unwrap_or_else(|| beside(&args.file));
    // Now, and not only at the end, where `publish` refuses as well: an hour of work would be lost.
    if to.symlink_metadata().is_ok() {
        bail!("{} exists and will not be overwritten: name another file with --to", to.display());
    }
    let programs = Programs::find(args.etcd_binary.as_deref(), args.etcdutl_binary.as_deref())?;
    let before = Held::read(&args.file).await?;
    if before.about().has_users {
        bail!(
            "the etcd of {} authenticates its users, and so would an etcd that is restored from it; this is not \
             supported",
            args.file.display()
        );
    }
    let way = Way::of(&args.keys, &before.inventory, &args.file).await?;
    // Beside the new file: it gets its name by a hard link, which needs the same file system.
    let folder = ScratchFolder::create(folder_of(&to), &note(&args.file, &to))?;
    let (tally, seeds) = rewrapped(args, &before, &programs, &folder, &way).await?;
    let mut report = Report::new(&before, &to, &tally, seeds);
    if !tally.refused.is_empty() {
        return Ok(report);
    }
    let new = folder.path().join(NEW);
    // Read again from the file, by the code that read the original: what is compared is what will be restored.
    let after = Held::read(&new).await?;
    let common =
        compare(&before.snapshot, &after.snapshot).context("the new snapshot does not have the same content")?;
    if let Some(left) = after.inventory.rows().find(|row| way.is_former(&row.shape.stored)) {
        bail!("the new snapshot has values of {} under a former key", left.shape.folder);
    }
    let gone = report.compared(&after, common, &way.names);
    let found = rehearsed(args, after, &gone).await?;
    report.rehearsed(&found);
    if report.exit() != Exit::WouldNotStart {
        publish(&new, &to).with_context(|| format!("cannot create {}", to.display()))?;
        report.is_written = true;
    }
    Ok(report)
}

fn beside(file: &Path) -> PathBuf {
    let mut name = file.as_os_str().to_owned();
    name.push(".rewrapped");
    name.into()
}

/// The README of the scratch folder, for anyone who finds it.
fn note(file: &Path, to: &Path) -> String {
    let (file, to, process) = (file.display(), to.display(), std::process::id());
    format!(
        "kube-envelope snapshot rewrap {file}, process {process}, works in this folder: it restores the snapshot into an \
         etcd of its own.\nIf that process has ended, it was killed. Delete this folder then. {file} is as it was, and \
         {to} was not written.\n"
    )
}

/// Rewraps everything in a scratch etcd, and takes a snapshot of that. What was done, by how many seeds.
async fn rewrapped(
    args: &SnapshotRewrapArgs,
    before: &Held,
    programs: &Programs,
    folder: &ScratchFolder,
    way: &Way,
) -> Result<(Rewrapped, usize)> {
    let prefix = prefix(&args.etcd_prefix);
    let has_hash = before.about().hash_verified;
    let scratch = ScratchEtcd::restore(folder, programs, &args.file, has_hash, &prefix).await?;
    scratch.take_writes().await?;
    let (aim, mut tally) = (Aim::default(), Rewrapped::default());
    let mut seeds = SeedWrapper::new(way.keeper.as_ref(), &way.targets);
    let mut pace = Pace::new(AT_ONCE, None, Instant::now());
    let etcd = scratch.clusters();
    // No API server reads the scratch etcd.
    let mut watchers = Watchers::new(Vec::new(), BTreeMap::new());
    let pass = Pass {
        etcd,
        prefix: &prefix,
        aim: &aim,
        seeds: &mut seeds,
        pace: &mut pace,
        watchers: &mut watchers,
        tally: &mut tally,
    };
    pass.run(&|text| eprintln!("{text}")).await?;
    if tally.refused.is_empty() {
        let mut new = folder.file(NEW)?;
        scratch.save(&mut new).await?;
        new.sync_all().context("the new snapshot cannot be written")?;
    }
    Ok((tally, seeds.count()))
}

/// Opens every value of the new snapshot, as `rehearse` does, without the keys that it should not need.
async fn rehearsed(args: &SnapshotRewrapArgs, after: Held, gone: &[String]) -> Result<Rehearsal> {
    let keys = Keys::of(&args.keys, gone)?;
    let seeds = Seeds::new(keys.sources);
    let opener = Opener { configuration: keys.configuration.as_ref(), seeds: &seeds };
    Ok(rehearse(&after.into_source(), &prefix(&args.etcd_prefix), &opener).await?)
}
