//! `break-glass`: makes the private half of a break-glass KEK, and shows that it opens what the plugin wraps.

use std::path::Path;

use anyhow::{Context, Result, anyhow, bail};

use super::closed_pipe::println;
use super::exit::{Exit, block_on};
use crate::cli::break_glass::BreakGlassCommand;
use crate::config::Config;
use crate::crypto::seal::{dek_id, os_random};
use crate::crypto::secret::{Dek, DekId};
use crate::dek::history::History;
use crate::dek::store::{Name, StateFolder};
use crate::envelope::WrappedDekSet;
use crate::kek::{Kek, KekError, WrapContext, WrappedDek};
use crate::key_stores::{Identities, KekConfig, proof_of};

/// Runs the command.
///
/// # Errors
/// Any failure; [`exit_of`](super::exit_of) maps it to an exit code.
pub fn run(command: BreakGlassCommand) -> Result<Exit> {
    match command {
        BreakGlassCommand::Create { file } => {
            let recipient = Identities::create(&file).map_err(told)?;
            println!("{recipient}");
            println!(
                "next: list it under keks as breakGlass: {{ recipient: {recipient} }}, and keep {} and a copy of it offline",
                file.display()
            );
        }
        BreakGlassCommand::Prove { config, identity } => {
            block_on(async move { prove(Config::load(&config)?, &Identities::read(&identity).map_err(told)?).await })?;
        }
    }
    Ok(Exit::Done)
}

/// The private halves of a file.
///
/// # Errors
/// When they cannot be used.
pub(super) fn identities(file: Option<&Path>) -> Result<Option<Identities>> {
    file.map(Identities::read).transpose().map_err(told)
}

/// Gives the configuration's break-glass KEKs their private halves, where there are some.
///
/// # Errors
/// When they are of other recipients.
pub(super) fn unlock(config: &mut Config, identities: Option<&Identities>) -> Result<()> {
    identities.map_or(Ok(()), |identities| config.unlock(identities)).map_err(told)
}

async fn prove(config: Config, identities: &Identities) -> Result<()> {
    let offline = |kek: &&KekConfig| kek.offline().is_some();
    let Some(wrapping) = config.keks.iter().find(offline) else {
        bail!("the configuration lists no breakGlass KEK under keks");
    };
    let recipient = wrapping.offline().map(|key| key.recipient).unwrap_or_default();
    let mut unlocked = config.clone();
    unlocked.unlock(identities).map_err(told)?;
    let opening =
        unlocked.keks.iter().find(|kek| kek.name == wrapping.name).context("it was there a moment ago")?.open();
    // As the plugin does it, which knows the public half alone.
    let dek = Dek::generate(&mut os_random());
    let context = WrapContext { cluster: config.cluster.clone(), dek_id: dek_id(&dek) };
    let wrapped = wrapping.open().wrap(&dek, &context).await.map_err(told)?;
    opens(&*opening, &wrapped, &context).await?;
    println!("a DEK wrapped to {recipient} was unwrapped");
    match newest_stored(&config, &wrapped)? {
        Some((id, set, index)) => {
            opens(&*opening, &set.wraps[index], &set.context(id)).await.with_context(|| format!("stored DEK {id}"))?;
            println!("the newest stored DEK, {id}, was unwrapped, and is the one that its id commits to");
        }
        None => println!(
            "no DEK that was wrapped to it is stored in {}: run this again once the plugin has adopted it, or try the private \
             half on a snapshot of etcd (kube-envelope rehearse FILE --break-glass)",
            config.state_dir.display()
        ),
    }
    println!("\nput this beside the recipient, in the configuration of every node:\n");
    println!("      proven: \"{}\"", proof_of(&recipient).map_err(told)?);
    Ok(())
}

/// The id commits to the DEK: whatever was unwrapped, only the right one has it. So no other KEK need be asked for a second
/// opinion, and the machine needs no network.
async fn opens(kek: &dyn Kek, wrapped: &WrappedDek, context: &WrapContext) -> Result<()> {
    let unwrapped =
        kek.unwrap(wrapped, context).await.map_err(|error| anyhow!("it does not open: {}", error.problem()))?;
    if dek_id(&unwrapped.dek) != context.dek_id {
        bail!("it opens, and holds another key than its id commits to");
    }
    Ok(())
}

/// The newest DEK of this node that was wrapped as `like` was, and which of its wraps that is.
fn newest_stored(config: &Config, like: &WrappedDek) -> Result<Option<(DekId, WrappedDekSet, usize)>> {
    if !config.state_dir.exists() {
        return Ok(None);
    }
    let records = StateFolder::new(&config.state_dir).look();
    let records = records.with_context(|| format!("cannot read stateDir {}", config.state_dir.display()))?;
    let history = records.iter().find(|(name, _)| *name == Name::History);
    let history = history.and_then(|(_, record)| History::decode(record)).unwrap_or_default();
    Ok(history.deks().find_map(|id| {
        let (_, record) = records.iter().find(|(name, _)| *name == Name::Dek(id))?;
        let set = WrappedDekSet::decode(record).ok()?;
        let index = set.wraps.iter().position(|wrap| wrap.version == like.version)?;
        Some((id, set, index))
    }))
}

/// To the person at the keyboard the cause's word says nothing: the problem and its fix do.
#[allow(clippy::needless_pass_by_value, reason = "the form that map_err takes")]
fn told(error: KekError) -> anyhow::Error {
    anyhow!(error.problem())
}
