//! Arguments → command → exit code; nothing else.

use std::process::ExitCode;

use clap::Parser;
use kube_envelope::cli::Cli;
use kube_envelope::commands;

fn main() -> ExitCode {
    let cli = Cli::parse();
    // One TLS stack, chosen once, before any client exists. A second call would fail; there is none.
    let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
    let exit = commands::run(cli).unwrap_or_else(|error| {
        eprintln!("error: {error:#}");
        commands::exit_of(&error)
    });
    ExitCode::from(exit as u8)
}
