//! `init`: from flags or questions to the files of a distribution, and the steps to a running control plane. Shows what
//! would change, and never replaces a file that differs unless told to.

mod answers;
mod distribution;
mod files;
mod former;
mod output;
mod refused;
mod steps;
mod wanted;
mod yaml;

use anyhow::Result;

pub use self::refused::Refused;
use super::closed_pipe::{print, println};
use super::exit::Exit;
use crate::cli::install::InitArgs;
use crate::config::DEFAULT_STATE_DIR;

/// Runs the command. Files that differ and were not replaced are [`Exit::Error`].
///
/// # Errors
/// [`Refused`], and those of the file system.
pub fn run(args: &InitArgs) -> Result<Exit> {
    let wanted = answers::gather(args)?;
    let files = files::files(&wanted)?;
    let differing = output::show(&wanted.root, &files)?;
    if args.dry_run {
        println!("\nnothing was written (--dry-run)");
        return Ok(Exit::Done);
    }
    if !differing.is_empty() && !args.force {
        eprintln!(
            "\nerror: {} differ; nothing was written. Review the changes above, then use --force",
            differing.join(", ")
        );
        return Ok(Exit::Error);
    }
    output::write(&wanted.root, &files)?;
    if !wanted.place.is_given_to_a_tool() {
        // Else the kubelet makes it, for everybody to read.
        crate::files::create_private_folder(&wanted.root.join(DEFAULT_STATE_DIR.trim_start_matches('/')))?;
    }
    print!("{}", steps::text(&wanted));
    Ok(Exit::Done)
}
