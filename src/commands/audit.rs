//! `audit verify`: reads audit logs, and says what is wrong with them.

use std::fs::File;
use std::io::BufReader;

use anyhow::{Context, Result, anyhow, bail};

use super::exit::Exit;
use crate::cli::AuditCommand;
use crate::config::Config;
use crate::plugin::audit::chain::Head;
use crate::plugin::audit::verify::{Findings, Verifier};

/// Runs the command. A log that is not whole is [`Exit::Error`].
///
/// # Errors
/// When the configuration or a log cannot be read.
pub fn run(command: AuditCommand) -> Result<Exit> {
    let AuditCommand::Verify { mut files, config, head } = command;
    if files.is_empty() {
        let config = Config::load(&config)?;
        let Some(audit) = config.audit else { bail!("the configuration has no audit.file; name the log's files") };
        files.push(audit.file);
    }
    let kept = files.last().map(|file| file.with_added_extension("head"));
    let expected = match &head {
        Some(head) => Some(head.parse().map_err(|error: String| anyhow!("--head: {error}"))?),
        None => kept.and_then(|file| std::fs::read_to_string(file).ok()?.parse::<Head>().ok()),
    };
    let knows_end = expected.is_some();
    let mut verifier = Verifier::expecting(expected);
    for file in &files {
        let cannot_read = || format!("cannot read {}", file.display());
        let opened = File::open(file).with_context(cannot_read)?;
        verifier.read(&file.display().to_string(), BufReader::new(opened)).with_context(cannot_read)?;
    }
    Ok(report(&verifier.finish(), knows_end))
}

fn report(found: &Findings, knows_end: bool) -> Exit {
    for problem in &found.problems {
        println!("{problem}");
    }
    let (Some(first), Some(last)) = (&found.first, &found.last) else {
        println!("no record");
        return if found.problems.is_empty() { Exit::Done } else { Exit::Error };
    };
    println!("{} records: {} of {} to {} of {}", found.records, first.seq, first.time, last.seq, last.time);
    if first.seq > 1 {
        println!("the records before {} are in older files; name these files to check them as well", first.seq);
    }
    if !knows_end {
        println!("cannot tell whether records are missing at the end: give --head, as `status` showed it");
    }
    if found.problems.is_empty() {
        println!("whole, up to record {}: {}", last.seq, last.hash);
        return Exit::Done;
    }
    println!("NOT whole: {} problems", found.problems.len());
    Exit::Error
}
