//! `keyring`: creates and changes a local keyring file.

use std::io::{BufRead, IsTerminal, Write};
use std::path::Path;

use anyhow::{Context, Result, anyhow, bail};
use comfy_table::Table;

use super::closed_pipe::println;
use super::exit::Exit;
use super::init::Refused;
use crate::cli::{KeyringCommand, OutputFormat};
use crate::crypto::seal::os_random;
use crate::kek::KekError;
use crate::key_stores::keyring::{Keyring, VersionState};
use crate::shell::quoted;

/// Runs the command.
///
/// # Errors
/// Any failure; [`exit_of`](super::exit_of) maps it to an exit code.
pub fn run(command: KeyringCommand) -> Result<Exit> {
    match command {
        KeyringCommand::Create { file } => {
            let keyring = Keyring::create(&mut os_random());
            keyring.write_new(&file).map_err(told)?;
            println!("created {} with active version {}", file.display(), keyring.versions()[0].id);
            println!(
                "next: copy it to every control-plane node, mode 0600, and keep a backup: without it nothing opens"
            );
        }
        KeyringCommand::Add { file } => {
            let id = change(&file, |keyring| Ok(keyring.add(&mut os_random())))?;
            println!("added pending version {id}");
            println!("next: copy the file to every node, then: kube-envelope keyring activate {} {id}", file.display());
        }
        KeyringCommand::Activate { file, version } => {
            let id = change(&file, |keyring| {
                let id = version.map_or_else(|| only_pending(keyring), Ok)?;
                keyring.activate(&id).map_err(told)?;
                Ok(id)
            })?;
            println!("version {id} is active");
            println!("next: copy the file to every node; each plugin follows within its refreshInterval");
        }
        KeyringCommand::Retire { file, version } => {
            change(&file, |keyring| keyring.retire(&version).map_err(told))?;
            println!("version {version} is retired");
        }
        KeyringCommand::Destroy { file, version, yes } => {
            change(&file, |keyring| {
                keyring.destroy(&version).map_err(told)?;
                if yes { Ok(()) } else { confirm(&file, &version) }
            })?;
            println!("version {version} is destroyed");
        }
        KeyringCommand::Merge { file, other } => {
            let other = Keyring::read(&other).map_err(told)?;
            let added = change(&file, |keyring| keyring.merge(other).map_err(told))?;
            for (id, state) in &added {
                println!("added {state} version {id}");
            }
            println!(
                "next: {}",
                if added.is_empty() { "nothing: no version was missing" } else { "copy the file to every node" }
            );
        }
        KeyringCommand::List { file, output } => list(&Keyring::read(&file).map_err(told)?, output)?,
    }
    Ok(Exit::Done)
}

/// To the person at the keyboard the cause's word says nothing: the problem and its fix do.
#[allow(clippy::needless_pass_by_value, reason = "the form that map_err takes")]
fn told(error: KekError) -> anyhow::Error {
    anyhow!(error.problem())
}

fn change<T>(file: &Path, change: impl FnOnce(&mut Keyring) -> Result<T>) -> Result<T> {
    let mut keyring = Keyring::read(file).map_err(told)?;
    // Nothing is written where the change is refused.
    let changed = change(&mut keyring)?;
    keyring.replace(file).map_err(told)?;
    Ok(changed)
}

/// What needs a version is not in its file: it lies in etcd, and in every snapshot of it.
fn confirm(file: &Path, version: &str) -> Result<()> {
    let price = format!(
        "what only version {version} has wrapped can never be opened again: whatever `kube-envelope verify` still finds \
         under it, and every snapshot of etcd from the time of its use (`kube-envelope snapshot keys FILE`)"
    );
    if !std::io::stdin().is_terminal() {
        let file = file.display().to_string();
        let command = format!("kube-envelope keyring destroy {} {version} --yes", quoted(&file));
        return Err(Refused(format!("{price}; nobody can be asked here: {command}")).into());
    }
    eprint!("{price}\nDestroy it in {}? Type yes: ", file.display());
    std::io::stderr().flush()?;
    let mut line = String::new();
    std::io::stdin().lock().read_line(&mut line)?;
    if line.trim() == "yes" { Ok(()) } else { bail!("nothing was destroyed") }
}

fn only_pending(keyring: &Keyring) -> Result<String> {
    let mut pending = keyring.versions().iter().filter(|version| version.state == VersionState::Pending);
    let first = pending.next().context("no version is pending; add one with: kube-envelope keyring add")?;
    if pending.next().is_some() {
        bail!("several versions are pending; name the one to activate (see: kube-envelope keyring list)");
    }
    Ok(first.id.clone())
}

fn list(keyring: &Keyring, output: OutputFormat) -> Result<()> {
    match output {
        OutputFormat::Table => {
            let mut table = Table::new();
            table.load_style(comfy_table::presets::NOTHING).set_header(["VERSION", "STATE", "CREATED"]);
            for version in keyring.versions() {
                table.add_row([version.id.clone(), version.state.to_string(), version.created.to_string()]);
            }
            println!("{}", table.trim_fmt());
        }
        OutputFormat::Json => {
            let versions = keyring.versions().iter().map(
                |version| serde_json::json!({ "id": version.id, "state": version.state, "created": version.created }),
            );
            let list = serde_json::json!({ "id": keyring.id(), "versions": versions.collect::<Vec<_>>() });
            println!("{}", serde_json::to_string_pretty(&list)?);
        }
    }
    Ok(())
}
