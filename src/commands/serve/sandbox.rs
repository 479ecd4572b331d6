//! What the process gives up once it has opened what it needs: capabilities, files beyond its own, system calls that it
//! never makes. What the kernel does not offer is a warning, and the plugin runs without it.
//!
//! All of it is of the calling thread and of those it starts later: it comes before the runtime.

mod places;
mod syscalls;

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use anyhow::{Result, bail};
use landlock::{
    ABI, Access, AccessFs, AccessNet, CompatLevel, Compatible, NetPort, Ruleset, RulesetAttr, RulesetCreatedAttr,
    RulesetStatus, Scope, path_beneath_rules,
};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use rustix::thread::{CapabilitySet, CapabilitySets, set_capabilities};
use tracing::{info, warn};

pub use self::places::Places;
use crate::config::{Config, HealthAddress};

/// The newest version whose rights are asked for; an older kernel grants those it knows.
const LANDLOCK: ABI = ABI::V7;

/// What the plugin may still do.
#[derive(Clone, Debug)]
pub struct Sandbox {
    /// What it may read; `None` where it may read everything.
    readable: Option<Vec<PathBuf>>,
    /// What it may start.
    programs: BTreeSet<PathBuf>,
}

impl Sandbox {
    /// Enters the sandbox for `config`, as far as the kernel and `sandbox.enabled` allow.
    pub fn enter(config: &Config) -> Self {
        if !config.sandbox.enabled {
            warn!("sandbox.enabled is false: a compromised plugin can do whatever its user can");
            return Self { readable: None, programs: BTreeSet::new() };
        }
        drop_capabilities();
        let readable = restrict_files(config);
        if let Err(error) = syscalls::forbid() {
            warn!(%error, "system calls are not restricted; the kernel needs CONFIG_SECCOMP_FILTER");
        }
        Self { readable, programs: config.programs().into_iter().map(Path::to_owned).collect() }
    }

    /// Looks whether a new configuration stays inside.
    ///
    /// # Errors
    /// What lies outside, and that a restart is needed for it.
    pub fn covers(&self, config: &Config) -> Result<()> {
        let Some(readable) = &self.readable else { return Ok(()) };
        if !config.sandbox.enabled || config.hosts_a_library() {
            bail!("it needs permissions that the running plugin gave up; restart the plugin to use it");
        }
        if let Some(program) = config.programs().into_iter().find(|program| !self.programs.contains(*program)) {
            let program = program.display();
            bail!(
                "it names the program {program}, which the running plugin may not start; restart the plugin to use it"
            );
        }
        for place in Places::of(config).read {
            if !readable.iter().any(|root| place.starts_with(root)) {
                let place = place.display();
                bail!("it names files in {place}, which the running plugin may not read; restart the plugin to use it");
            }
        }
        Ok(())
    }
}

/// Gives up all capabilities but the one that a locked memory needs, where its limit cannot be lifted.
fn drop_capabilities() {
    let unlimited = Rlimit { current: None, maximum: None };
    // First: lifting a hard limit takes a capability (CAP_SYS_RESOURCE) itself.
    let is_unlimited =
        getrlimit(Resource::Memlock).current.is_none() || setrlimit(Resource::Memlock, unlimited).is_ok();
    let had = rustix::thread::capabilities(None).map_or(CapabilitySet::all(), |sets| sets.permitted);
    let kept = if is_unlimited { CapabilitySet::empty() } else { had & CapabilitySet::IPC_LOCK };
    if had == kept {
        return;
    }
    let sets = CapabilitySets { effective: kept, permitted: kept, inheritable: CapabilitySet::empty() };
    if let Err(error) = set_capabilities(None, sets) {
        warn!(%error, "capabilities are not given up");
    }
}

/// Leaves the plugin what [`Places`] names. Gives what it may read, or `None` where nothing is restricted.
fn restrict_files(config: &Config) -> Option<Vec<PathBuf>> {
    if config.hosts_a_library() {
        info!("files are not restricted: a vendor's library, in a process of its own, may open any file");
        return None;
    }
    let places = Places::of(config);
    match restrict(&places, &config.health.listen) {
        Ok(RulesetStatus::FullyEnforced) => {}
        Ok(RulesetStatus::PartiallyEnforced) => info!("this kernel restricts files and ports only in part"),
        Ok(RulesetStatus::NotEnforced) => {
            warn!("files are not restricted; the kernel needs Landlock (5.13, CONFIG_SECURITY_LANDLOCK, lsm=landlock)");
            return None;
        }
        Err(error) => {
            warn!(%error, "files are not restricted");
            return None;
        }
    }
    Some(places.read.into_iter().chain(places.write).collect())
}

fn restrict(places: &Places, health: &HealthAddress) -> Result<RulesetStatus, landlock::RulesetError> {
    let read = AccessFs::ReadFile | AccessFs::ReadDir;
    // What the plugin, or an intruder in it, has written must not be run.
    let write = AccessFs::from_all(LANDLOCK) & !AccessFs::Execute;
    let mut rules = Ruleset::default()
        .set_compatibility(CompatLevel::BestEffort)
        .handle_access(AccessFs::from_all(LANDLOCK))?
        .handle_access(AccessNet::BindTcp)?
        // A compromised plugin must not stop other processes of its user.
        .scope(Scope::Signal)?
        .create()?
        .add_rules(path_beneath_rules(&places.read, read))?
        .add_rules(path_beneath_rules(&places.write, write))?
        .add_rules(path_beneath_rules(&places.run, read | AccessFs::Execute))?;
    if let HealthAddress::Tcp(address) = health {
        rules = rules.add_rule(NetPort::new(address.port(), AccessNet::BindTcp))?;
    }
    rules.restrict_self().map(|status| status.ruleset)
}
