//! `keyring`: creates and changes a local keyring file.

use std::path::Path;

use anyhow::{Context, Result, anyhow, bail};
use comfy_table::Table;

use super::closed_pipe::println;
use super::exit::Exit;
use crate::cli::{KeyringCommand, OutputFormat};
use crate::crypto::seal::os_random;
use crate::kek::KekError;
use crate::key_stores::keyring::{Keyring, VersionState};

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
        KeyringCommand::Destroy { file, version } => {
            change(&file, |keyring| keyring.destroy(&version).map_err(told))?;
            println!("version {version} is destroyed");
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
