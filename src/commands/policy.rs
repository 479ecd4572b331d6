//! `policy`: the least that each KEK's vendor must allow, as the vendor takes it.

use anyhow::Result;

use super::exit::Exit;
use crate::cli::install::PolicyArgs;
use crate::config::Config;

/// Runs the command.
///
/// # Errors
/// Any failure; [`exit_of`](super::exit_of) maps it to an exit code.
pub fn run(args: &PolicyArgs) -> Result<Exit> {
    let config = Config::load(&args.config)?;
    for kek in config.keks.iter().chain(&config.retired) {
        let policy = kek.policy(&config.cluster);
        println!("# KEK {}: {}\n# for the plugin:\n{}\n", kek.name, policy.remark, policy.plugin);
        match policy.rotation {
            Some(rotation) => {
                println!("# for the user that runs rotate-keys --rotate-kek, not for the plugin:\n{rotation}\n");
            }
            None => println!("# rotate-keys --rotate-kek needs no other permissions\n"),
        }
    }
    Ok(Exit::Done)
}
