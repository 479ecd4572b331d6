//! What a history begins with, what may disturb it, and which protections are missing.

use crate::protection::Protection;
use crate::run::Run;
use crate::set::{Key, Set};
use crate::world::{Faults, Life, Server, Value, World};

/// The beginning of a history, and its limits.
#[derive(Clone, Debug)]
pub struct Scenario {
    pub procedure: Procedure,
    /// The protections that are taken out.
    pub missing: Vec<Protection>,
    pub servers: Vec<ServerSetup>,
    pub values: Vec<ValueSetup>,
    /// Whether the operator gives the second etcd, too.
    pub second_etcd_given: bool,
    /// Whether the etcd that the operator gives is another cluster's, which shares the KEK and is rotated, too.
    pub other_clusters_etcd: bool,
    /// Whether it is `epoch` that was raised: what comes after is another generation under the same KEK version.
    pub by_epoch: bool,
    /// `--rotate-kek`; otherwise the operator has made version 2 active, and no plugin has noticed yet.
    pub run_rotates: bool,
    pub runs: usize,
    /// Whether the first server and its plugin have adopted version 2 when the history begins.
    pub first_has_adopted: bool,
    /// Whether each rewrite may go through another server.
    pub balancer: bool,
    /// How many disturbances a history may hold, and of which kinds.
    pub disturbances: u8,
    pub may: Vec<Disturbance>,
}

/// How the operator has everything stored again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Procedure {
    RotateKeys,
    /// `kubectl get | kubectl replace`, as the Kubernetes documentation has it.
    ReplaceLoop,
    /// A `StorageVersionMigration`.
    StorageMigration,
}

/// What is rare, so that each costs one of the scenario's disturbances.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Disturbance {
    Crash,
    Stall,
    Rotation,
    Rollback,
    Write,
    SlowWrite,
    Outage,
    PluginRestart,
    Reload,
    Join,
    Restore,
    Compaction,
}

impl Disturbance {
    pub const EVERY: [Self; 12] = [
        Self::Crash,
        Self::Stall,
        Self::Rotation,
        Self::Rollback,
        Self::Write,
        Self::SlowWrite,
        Self::Outage,
        Self::PluginRestart,
        Self::Reload,
        Self::Join,
        Self::Restore,
        Self::Compaction,
    ];
}

/// By what a server can be known.
#[derive(Clone, Copy, Debug)]
pub struct Sight {
    /// It keeps an identity Lease; that of a stopped server remains and does not advance.
    pub lease: bool,
    /// Its clock agrees with that of the run.
    pub clock_agrees: bool,
    /// It is among the endpoints of `default/kubernetes` while it runs.
    pub endpoint: bool,
    /// It has a control-plane Node.
    pub node: bool,
    /// The operator counted it in `--servers`.
    pub counted: bool,
}

impl Sight {
    pub const FULL: Self = Self { lease: true, clock_agrees: true, endpoint: true, node: true, counted: true };
    pub const NONE: Self = Self { lease: false, clock_agrees: true, endpoint: false, node: false, counted: false };
}

#[derive(Clone, Copy, Debug)]
pub struct ServerSetup {
    pub life: Life,
    pub sight: Sight,
    /// Whether its configuration lets it read each resource as the other servers store it.
    pub reads_everything: bool,
    /// Whether its plugin can write to its state folder.
    pub saves: bool,
    /// Whether its configuration has the present provider first for every resource, and not for that of the first value
    /// alone.
    pub writes_everything: bool,
    /// Whether its plugin has the versions that come after the one in use.
    pub opens_next: bool,
}

impl ServerSetup {
    pub const SOUND: Self = Self {
        life: Life::Up,
        sight: Sight::FULL,
        reads_everything: true,
        saves: true,
        writes_everything: true,
        opens_next: true,
    };
}

#[derive(Clone, Copy, Debug)]
pub struct ValueSetup {
    pub etcd: usize,
    pub key: Key,
    /// Whether an API serves it.
    pub served: bool,
    /// Whether a rewrite leaves it out, as Events are.
    pub skipped: bool,
}

impl ValueSetup {
    pub const SECRET: Self = Self { etcd: 0, key: Key::FORMER, served: true, skipped: false };

    pub fn is_rewritten(&self) -> bool {
        self.served && !self.skipped
    }
}

impl Default for Scenario {
    /// One server and one Secret; version 2 was made active a moment ago, and nothing disturbs.
    fn default() -> Self {
        Self {
            procedure: Procedure::RotateKeys,
            missing: Vec::new(),
            servers: vec![ServerSetup::SOUND],
            values: vec![ValueSetup::SECRET],
            second_etcd_given: false,
            other_clusters_etcd: false,
            by_epoch: false,
            run_rotates: false,
            runs: 1,
            first_has_adopted: false,
            balancer: false,
            disturbances: 0,
            may: Vec::new(),
        }
    }
}

impl Scenario {
    pub fn without(&self, protection: Protection) -> Self {
        let mut scenario = self.clone();
        scenario.missing.push(protection);
        scenario
    }

    pub fn has(&self, protection: Protection) -> bool {
        !self.missing.contains(&protection)
    }

    pub fn etcds_given(&self) -> impl Iterator<Item = usize> + use<> {
        0..1 + usize::from(self.second_etcd_given)
    }

    /// The KEK versions that keys belong to.
    pub fn versions(&self, keys: Set) -> Set {
        if !self.by_epoch || !keys.contains(Key::NEXT) {
            return keys;
        }
        let mut versions = keys;
        versions.remove(Key::NEXT);
        versions.insert(Key::FORMER);
        versions
    }

    pub fn beginning(&self) -> World {
        let server = |(number, setup): (usize, &ServerSetup)| {
            let key = if number == 0 && self.first_has_adopted { Key::NEXT } else { Key::FORMER };
            Server { life: setup.life, plugin: key, saved: key, seed: key, former_config: false, sending: None }
        };
        World {
            active: if self.run_rotates { Key::FORMER } else { Key::NEXT },
            servers: self.servers.iter().enumerate().map(server).collect(),
            values: self.values.iter().map(|setup| Value { key: setup.key }).collect(),
            old: [Set::default(); 2],
            snapshot: [0, 1]
                .map(|etcd| Set::of(self.values.iter().filter(|setup| setup.etcd == etcd).map(|setup| setup.key))),
            runs: (0..self.runs).map(|_| Run::new(self)).collect(),
            disabled: Set::default(),
            disturbances: self.disturbances,
            faults: Faults::default(),
        }
    }
}
