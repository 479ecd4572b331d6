//! `evidence`: what a rotation has shown, signed, checked, and as a page.

use std::fs;
use std::io::Write;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use base64::{Engine, prelude::BASE64_STANDARD};
use sha2::{Digest, Sha256};

use super::exit::Exit;
use super::rotation_access::exit_of;
use crate::cli::evidence::{
    EvidenceCommand, EvidenceHistoryArgs, EvidenceReportArgs, EvidenceSignArgs, EvidenceVerifyArgs,
};
use crate::crypto::signature::{PublicKey, SigningKey};
use crate::files::create;
use crate::rotation::conclusion::envelope::{Envelope, signed_bytes};
use crate::rotation::conclusion::history::{history_file, read};
use crate::rotation::conclusion::page::page;
use crate::rotation::conclusion::statement::{PAYLOAD_TYPE, Predicate, Statement};
use crate::rotation::journal::Journal;
use crate::rotation::leftovers::snapshots::CLOCK_SKEW_SECONDS;

/// Runs the command that was asked for.
///
/// # Errors
/// When a file cannot be read or is not what it should be, and when a signature is not right.
pub fn run(command: EvidenceCommand) -> Result<Exit> {
    match command {
        EvidenceCommand::Sign(args) => sign(&args),
        EvidenceCommand::Verify(args) => verify(&args),
        EvidenceCommand::Report(args) => report(&args),
        EvidenceCommand::History(args) => history(&args),
    }
}

fn sign(args: &EvidenceSignArgs) -> Result<Exit> {
    let statement = stated(&args.file)?;
    check_history(&args.file, &statement.predicate.evidence_sha256)?;
    let payload = serde_json::to_vec_pretty(&statement)?;
    let message = signed_bytes(PAYLOAD_TYPE, &payload);
    let (key_id, signature) = match (&args.key, &args.command) {
        (Some(file), _) => {
            let key =
                SigningKey::from_pem(&text_of(file)?).with_context(|| format!("cannot use {}", file.display()))?;
            (key.public().id(), key.sign(&message))
        }
        (None, Some(command)) => (args.key_id.clone().unwrap_or_default(), signed_by(command, &message)?),
        (None, None) => bail!("give --key or --command"),
    };
    let envelope = serde_json::to_string_pretty(&Envelope::new(PAYLOAD_TYPE, &payload, &key_id, &signature))?;
    let to = args.to.clone().unwrap_or_else(|| args.file.with_extension("intoto.json"));
    // An existing file is not replaced: it may be the envelope that others already hold a copy of.
    create(&to, format!("{envelope}\n").as_bytes()).with_context(|| format!("cannot create {}", to.display()))?;
    println!("{}", to.display());
    Ok(Exit::Done)
}

/// Whether the file is what a run wrote: its digest is in the history that lies beside it.
fn check_history(file: &Path, digest: &str) -> Result<()> {
    let history = history_file(file);
    let Ok(text) = fs::read_to_string(&history) else {
        eprintln!("{} is not there, so that {} was not compared with it", history.display(), file.display());
        return Ok(());
    };
    if read(&text).verdicts.iter().any(|verdict| verdict.evidence_sha256 == digest) {
        return Ok(());
    }
    bail!(
        "{} is not what a rotation wrote: no line of {} has its digest {digest}. It was changed, or belongs to another \
         history",
        file.display(),
        history.display()
    )
}

/// The Statement about the rotation of an evidence file.
fn stated(file: &Path) -> Result<Statement> {
    let content = content_of(file)?;
    let journal = Journal::read(file)?.with_context(|| format!("{} does not exist", file.display()))?;
    let statement = Statement::of(&journal, hex::encode(Sha256::digest(&content)));
    statement.with_context(|| format!("{} cannot be signed", file.display()))
}

/// Runs a command of the user's, which gets the message and prints a signature.
fn signed_by(command: &str, message: &[u8]) -> Result<Vec<u8>> {
    let mut child = Command::new("sh").arg("-c").arg(command).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn()?;
    // One that does not read everything is judged by what it prints.
    let _ = child.stdin.take().map(|mut input| input.write_all(message));
    let output = child.wait_with_output()?;
    if !output.status.success() {
        bail!("the command that signs ended with {}", output.status);
    }
    let text: String = String::from_utf8_lossy(&output.stdout).split_whitespace().collect();
    let signature = BASE64_STANDARD.decode(&text).context("the command that signs did not print base64")?;
    if signature.is_empty() {
        bail!("the command that signs printed nothing");
    }
    Ok(signature)
}

fn verify(args: &EvidenceVerifyArgs) -> Result<Exit> {
    let (statement, by) = verified(&args.file, &args.public_key)?;
    let stated = &statement.predicate;
    if let Some(file) = &args.evidence
        && hex::encode(Sha256::digest(content_of(file)?)) != stated.evidence_sha256
    {
        bail!("{} is not the evidence file that the signature covers", file.display());
    }
    println!("signed by key {by}");
    println!("about {}", statement.about());
    println!("{}", stated.verdict.sentence);
    for what in &stated.verdict.not_looked_at {
        println!("not looked at: {what}");
    }
    match exit_of(&stated.verdict) {
        Exit::Done => still_counts(args, stated),
        exit => Ok(exit),
    }
}

/// Whether a *Yes* is recent, and about the keys that are to be disabled.
fn still_counts(args: &EvidenceVerifyArgs, stated: &Predicate) -> Result<Exit> {
    for named in &args.former {
        if !stated.may_be_disabled(named) {
            println!("Not proven: {named} is not among the keys that may be disabled: {}", {
                stated.verdict.may_be_disabled.join(", ")
            });
            return Ok(Exit::NotProven);
        }
    }
    let at = stated.verified_at.context("it does not say when everything was searched")?;
    let age = jiff::Timestamp::now().duration_since(at);
    // A clock that is ahead by a little is no forgery, and one that is ahead by much makes no verdict younger.
    let recent = age.as_secs() >= -CLOCK_SKEW_SECONDS && Duration::try_from(age).unwrap_or_default() <= args.max_age;
    if !recent {
        println!(
            "Not proven: what was shown at {at} does not show that it holds now. Run verify, or rotate-keys --resume for new \
             evidence; --max-age says how old evidence may be"
        );
        return Ok(Exit::NotProven);
    }
    Ok(Exit::Done)
}

/// What an envelope states, and the key that signed it.
fn verified(file: &Path, public_key: &Path) -> Result<(Statement, String)> {
    let key = PublicKey::from_pem(&text_of(public_key)?);
    let key = key.with_context(|| format!("cannot use {}", public_key.display()))?;
    let opened = envelope(file)?.opened(PAYLOAD_TYPE, |message, signature| key.verifies(message, signature));
    let payload = opened.with_context(|| format!("{} proves nothing", file.display()))?;
    let statement = Statement::read(&payload).with_context(|| format!("{} proves nothing", file.display()))?;
    Ok((statement, key.id()))
}

fn report(args: &EvidenceReportArgs) -> Result<Exit> {
    let (statement, signed) = match &args.public_key {
        Some(key) => {
            let (statement, by) = verified(&args.file, key)?;
            (statement, format!("checked, by key {by}"))
        }
        None => match envelope(&args.file) {
            Ok(envelope) => {
                (Statement::read(&envelope.payload_unchecked(PAYLOAD_TYPE)?)?, "NOT checked: give --public-key".into())
            }
            // Not an envelope: the evidence file itself can be shown as a page as well, before anybody signs it.
            Err(_) => (stated(&args.file)?, "none".into()),
        },
    };
    print!("{}", page(&statement, &signed));
    Ok(Exit::Done)
}

fn history(args: &EvidenceHistoryArgs) -> Result<Exit> {
    let past = read(&text_of(&history_file(&args.journal))?);
    for verdict in &past.verdicts {
        println!("{} {} (SHA-256 {})", verdict.at, verdict.evidence, verdict.evidence_sha256);
        println!("    {}", verdict.sentence);
    }
    past.problems.iter().for_each(|problem| println!("{problem}"));
    Ok(if past.problems.is_empty() { Exit::Done } else { Exit::Error })
}

fn envelope(file: &Path) -> Result<Envelope> {
    let read = serde_json::from_slice(&content_of(file)?);
    read.with_context(|| format!("{} is not a DSSE envelope", file.display()))
}

fn content_of(file: &Path) -> Result<Vec<u8>> {
    fs::read(file).with_context(|| format!("cannot read {}", file.display()))
}

fn text_of(file: &Path) -> Result<String> {
    fs::read_to_string(file).with_context(|| format!("cannot read {}", file.display()))
}
