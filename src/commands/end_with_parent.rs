//! `end-with-parent`: becomes another program, which the kernel kills as soon as its parent has ended, also by `kill -9`.

use std::ffi::OsString;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, bail};
use rustix::process::{Signal, getppid, set_parent_process_death_signal};

use super::exit::Exit;

/// Runs the program in place of this one.
///
/// # Errors
/// When it cannot be started, or the parent is gone already.
pub fn run(parent: i32, program: &Path, arguments: &[OsString]) -> Result<Exit> {
    set_parent_process_death_signal(Some(Signal::KILL))?;
    // One that ended before that call sends no signal.
    if getppid().map(rustix::process::Pid::as_raw_nonzero).map(std::num::NonZero::get) != Some(parent) {
        bail!("the process that started this one has ended");
    }
    let error = Command::new(program).args(arguments).exec();
    Err(error).with_context(|| format!("cannot start {}", program.display()))
}
