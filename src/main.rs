//! Arguments → command → exit code; nothing else.

use std::alloc::System;
use std::any::Any;
use std::panic::{self, AssertUnwindSafe};
use std::process::ExitCode;

use kube_envelope::cli::Cli;
use kube_envelope::commands;
use zeroizing_alloc::ZeroAlloc;

/// Clears memory as it is freed. Buffers of HTTP/2, TLS and JSON hold DEKs and seeds that no type of ours can clear;
/// docs/performance.md has what it costs.
#[global_allocator]
static ALLOCATOR: ZeroAlloc<System> = ZeroAlloc(System);

/// As a shell shows the end of a command by SIGPIPE. The signal itself stays ignored: a server that closes a connection
/// would send it, too.
const READER_HAS_GONE: u8 = 141;

fn main() -> ExitCode {
    let cli = Cli::of_process();
    // One TLS stack, chosen once, before any client exists. A second call would fail; there is none.
    let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
    if cli.command.only_prints() { run_while_read(cli) } else { run(cli) }
}

fn run(cli: Cli) -> ExitCode {
    let exit = commands::run(cli).unwrap_or_else(|error| {
        eprintln!("error: {error:#}");
        commands::exit_of(&error)
    });
    ExitCode::from(exit as u8)
}

/// Ends without a word when nobody reads what the command prints (`| head`): printing panics then.
fn run_while_read(cli: Cli) -> ExitCode {
    let report = panic::take_hook();
    panic::set_hook(Box::new(move |info| {
        if !is_closed_pipe(info.payload()) {
            report(info);
        }
    }));
    match panic::catch_unwind(AssertUnwindSafe(|| run(cli))) {
        Ok(exit) => exit,
        Err(payload) if is_closed_pipe(&*payload) => ExitCode::from(READER_HAS_GONE),
        Err(payload) => panic::resume_unwind(payload),
    }
}

fn is_closed_pipe(payload: &(dyn Any + Send)) -> bool {
    // Of `println!`, and of the generator of completions.
    payload.downcast_ref::<String>().is_some_and(|text| text.contains("Broken pipe") || text.contains("BrokenPipe"))
}
