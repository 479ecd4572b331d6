//! Arguments → command → exit code; nothing else.

use std::alloc::System;
use std::any::Any;
use std::io::Write;
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
        say(&format!("error: {error:#}"));
        commands::exit_of(&error)
    });
    ExitCode::from(exit as u8)
}

/// Printing panics where it fails. A reader that has gone (`| head`) is no mistake, and ends the command without a word; a full
/// disk is said. What a command was to tell has not been told then, so that it never ends with 0.
fn run_while_read(cli: Cli) -> ExitCode {
    let report = panic::take_hook();
    panic::set_hook(Box::new(move |info| {
        if failed_output(info.payload()).is_none() {
            report(info);
        }
    }));
    match panic::catch_unwind(AssertUnwindSafe(|| run(cli))) {
        Ok(exit) => exit,
        Err(payload) => match failed_output(&*payload) {
            Some(text) if text.contains("Broken pipe") => ExitCode::from(READER_HAS_GONE),
            Some(text) => {
                say(&format!("error: {text}"));
                ExitCode::from(commands::Exit::Error as u8)
            }
            None => panic::resume_unwind(payload),
        },
    }
}

/// The message of a panic of `print!` and its like.
fn failed_output(payload: &(dyn Any + Send)) -> Option<&str> {
    let text = payload.downcast_ref::<String>()?;
    text.starts_with("failed printing to ").then_some(text)
}

/// Where standard error cannot be written either, there is nobody to tell.
fn say(text: &str) {
    let _ = writeln!(std::io::stderr(), "{text}");
}
