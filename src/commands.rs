//! One file for each command: composes what the modules offer, and prints.

mod audit;
mod break_glass;
mod closed_pipe;
pub mod doctor;
#[cfg(feature = "rotate")]
mod end_with_parent;
#[cfg(feature = "rotate")]
mod evidence;
mod exit;
mod hold;
pub mod init;
pub mod keyring;
mod manual;
#[cfg(feature = "rotate")]
mod metrics_file;
#[cfg(feature = "rotate")]
mod opening;
#[cfg(feature = "rotate")]
mod plugin_config;
pub mod policy;
#[cfg(feature = "rotate")]
pub mod rehearse;
#[cfg(feature = "rotate")]
pub mod rotate_keys;
#[cfg(feature = "rotate")]
mod rotation_access;
#[cfg(feature = "rotate")]
mod rotation_display;
pub mod serve;
#[cfg(feature = "rotate")]
pub mod snapshot;
pub mod status;
#[cfg(feature = "rotate")]
mod verdict_screen;
#[cfg(feature = "rotate")]
pub mod verify;

pub use self::exit::Exit;
use crate::cli::{Cli, Command};
use crate::config::ConfigError;
use crate::key_stores;

/// Runs the command that was asked for.
///
/// # Errors
/// To be printed as a chain; see [`exit_of`] for the exit code.
pub fn run(cli: Cli) -> anyhow::Result<Exit> {
    match cli.command {
        Command::Serve(args) => serve::run(&args),
        #[cfg(feature = "rotate")]
        Command::RotateKeys(args) => rotate_keys::run(*args),
        #[cfg(feature = "rotate")]
        Command::Verify(args) => verify::run(*args),
        #[cfg(feature = "rotate")]
        Command::Rehearse(args) => rehearse::run(*args),
        #[cfg(feature = "rotate")]
        Command::Snapshot(command) => snapshot::run(command),
        #[cfg(feature = "rotate")]
        Command::Evidence(command) => evidence::run(command),
        Command::Status(args) => status::run(&args),
        Command::Doctor(args) => doctor::run(&args),
        Command::Keyring(command) => keyring::run(command),
        Command::Init(args) => init::run(&args),
        Command::Policy(args) => policy::run(&args),
        Command::BreakGlass(command) => break_glass::run(command),
        Command::Audit(command) => audit::run(command),
        Command::Completions { shell } => Ok(manual::completions(shell)),
        Command::Man { folder } => manual::pages(&folder),
        #[cfg(feature = "rotate")]
        Command::EndWithParent { parent, program, arguments } => end_with_parent::run(parent, &program, &arguments),
        Command::Hold { config } => hold::run(&config),
        Command::KeyStoreHost { kind } => {
            serve::hardening::apply();
            key_stores::host(&kind)?;
            Ok(Exit::Done)
        }
    }
}

/// The exit code that an error stands for.
pub fn exit_of(error: &anyhow::Error) -> Exit {
    if error.is::<ConfigError>() || error.is::<init::Refused>() { Exit::Usage } else { Exit::Error }
}
