//! One file for each command: composes what the modules offer, and prints.

pub mod keyring;
pub mod serve;
pub mod status;

use crate::cli::{Cli, Command};
use crate::config::ConfigError;

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
}

/// Runs the command that was asked for.
///
/// # Errors
/// To be printed as a chain; see [`exit_of`] for the exit code.
pub fn run(cli: Cli) -> anyhow::Result<Exit> {
    match cli.command {
        Command::Serve(args) => serve::run(&args),
        Command::Status(args) => status::run(&args),
        Command::Keyring(command) => keyring::run(command),
    }
}

/// The exit code that an error stands for.
pub fn exit_of(error: &anyhow::Error) -> Exit {
    if error.is::<ConfigError>() { Exit::Usage } else { Exit::Error }
}

/// Runs a command's future on a small runtime.
fn block_on<T>(future: impl Future<Output = anyhow::Result<T>>) -> anyhow::Result<T> {
    tokio::runtime::Builder::new_current_thread().enable_all().build()?.block_on(future)
}
