//! One file for each command: composes what the modules offer, and prints.

mod audit;
pub mod doctor;
pub mod init;
pub mod keyring;
mod manual;
#[cfg(feature = "rotate")]
mod metrics_file;
#[cfg(feature = "rotate")]
mod opening;
pub mod policy;
#[cfg(feature = "rotate")]
pub mod rehearse;
#[cfg(feature = "rotate")]
pub mod rotate_keys;
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

use crate::cli::{Cli, Command};
use crate::config::ConfigError;
use crate::key_stores;

/// How a command ended; the process's exit code.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Exit {
    /// Done.
    Done = 0,
    /// Failed.
    Error = 1,
    /// The arguments or the configuration cannot work; nothing was touched.
    Usage = 2,
    /// Objects were refused and are quarantined.
    Quarantined = 3,
    /// The rotation stands still until it is resumed.
    Paused = 4,
    /// Not every API server uses the target key.
    NotConverged = 5,
    /// Something is stored under an older key.
    Leftovers = 6,
    /// Nothing is left in live data, and something that is named still needs the former key.
    NotYet = 7,
    /// It could not be shown that nothing is left.
    NotProven = 8,
    /// No key was replaced, so there is none that may be disabled.
    NothingRotated = 9,
    /// An API server that starts now could not read something that is stored.
    WouldNotStart = 10,
}

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
        Command::Status(args) => status::run(&args),
        Command::Doctor(args) => doctor::run(&args),
        Command::Keyring(command) => keyring::run(command),
        Command::Init(args) => init::run(&args),
        Command::Policy(args) => policy::run(&args),
        Command::Audit(command) => audit::run(command),
        Command::Completions { shell } => Ok(manual::completions(shell)),
        Command::Man { folder } => manual::pages(&folder),
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

/// Runs a command's future on a small runtime.
fn block_on<T>(future: impl Future<Output = anyhow::Result<T>>) -> anyhow::Result<T> {
    tokio::runtime::Builder::new_current_thread().enable_all().build()?.block_on(future)
}
