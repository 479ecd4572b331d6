//! Arguments → command → exit code; nothing else.

use std::alloc::System;
use std::process::ExitCode;

use kube_envelope::cli::Cli;
use kube_envelope::commands;
use zeroizing_alloc::ZeroAlloc;

/// Clears memory as it is freed. Buffers of HTTP/2, TLS and JSON hold DEKs and seeds that no type of ours can clear;
/// docs/performance.md has what it costs.
#[global_allocator]
static ALLOCATOR: ZeroAlloc<System> = ZeroAlloc(System);

fn main() -> ExitCode {
    let cli = Cli::of_process();
    if cli.command.only_prints() {
        sigpipe::reset();
    }
    // One TLS stack, chosen once, before any client exists. A second call would fail; there is none.
    let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
    let exit = commands::run(cli).unwrap_or_else(|error| {
        eprintln!("error: {error:#}");
        commands::exit_of(&error)
    });
    ExitCode::from(exit as u8)
}
