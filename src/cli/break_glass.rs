//! The arguments of `break-glass`.

use std::path::PathBuf;

use clap::Subcommand;

use crate::config::DEFAULT_PATH;

/// The commands for the private half of a break-glass KEK. Run them where it is kept, and not on a control-plane node.
#[derive(Debug, Subcommand)]
#[command(after_help = "\
Examples:
  kube-envelope break-glass create /media/safe/identity
  kube-envelope break-glass prove --config config.yaml --identity /media/safe/identity")]
pub enum BreakGlassCommand {
    /// Make a pair of keys, as age-keygen does: write the private half into a file, and print the public half. An existing file
    /// is never overwritten.
    Create {
        /// The file of the private half.
        file: PathBuf,
    },
    /// Show that the private half opens what the plugin wraps to the configured recipient, and print the line that says so in
    /// the configuration. Asks no KEK, so that it runs on a machine without a network.
    Prove {
        /// The plugin's configuration. If its stateDir is here as well, the newest DEK in it is opened, too.
        #[arg(long, default_value = DEFAULT_PATH)]
        config: PathBuf,
        /// The file of the private half.
        #[arg(long, value_name = "FILE")]
        identity: PathBuf,
    },
}
