//! `completions` and `man`: both from the very arguments that the program takes.

use std::path::Path;

use anyhow::{Context, Result};
use clap::CommandFactory;
use clap_complete::Shell;

use super::exit::Exit;
use crate::cli::Cli;

/// Prints the completion script for `shell`.
pub(super) fn completions(shell: Shell) -> Exit {
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut Cli::command(), "kube-envelope", &mut script);
    print!("{}", String::from_utf8_lossy(&script));
    Exit::Done
}

/// Writes `kube-envelope.1` and one page for each command into `folder`.
pub(super) fn pages(folder: &Path) -> Result<Exit> {
    clap_mangen::generate_to(Cli::command(), folder)
        .with_context(|| format!("cannot write manual pages to {}; name an existing folder", folder.display()))?;
    Ok(Exit::Done)
}
