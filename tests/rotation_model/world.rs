//! The cluster without any procedure: the KEK, plugins, API servers, values in two etcds. Everything here may happen at
//! any moment, in any order; only what is rare costs one of the disturbances that a scenario grants.

use crate::protection::Protection;
use crate::run::Run;
use crate::scenario::{Disturbance, Scenario, ServerSetup};
use crate::set::{Key, Set};

/// Everything there is at one moment of a history.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct World {
    /// The version that the KEK wraps with.
    pub active: Key,
    pub servers: Vec<Server>,
    pub values: Vec<Value>,
    /// What superseded revisions that are not compacted need, for each etcd.
    pub old: [Set; 2],
    /// The keys that the newest snapshot of each etcd needs.
    pub snapshot: [Set; 2],
    pub runs: Vec<Run>,
    /// Versions that the operator disabled, as a verdict said.
    pub disabled: Set,
    /// How many disturbances are left.
    pub disturbances: u8,
    pub faults: Faults,
}

/// What must never have happened; judged from outside, with a knowledge that no procedure has.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Faults {
    /// A verdict named a version that something still needed at that moment.
    pub false_yes: bool,
    /// A run left a value, or an object of its own, that some running API server cannot read.
    pub unreadable: bool,
    /// A run rotated a KEK away from a version that it had not noted.
    pub replaced_unnoted: bool,
}

/// An API server and the plugin beside it.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Server {
    pub life: Life,
    /// What the plugin reports and seals with.
    pub plugin: Key,
    /// What the plugin goes on with after a restart.
    pub saved: Key,
    /// What the API server took from the plugin when it last asked.
    pub seed: Key,
    /// Whether it loaded the configuration from before, in which another provider is first: it then stores under
    /// `Key::FORMER`, whatever the plugin says.
    pub former_config: bool,
    /// A value that is encrypted already and on its way to etcd.
    pub sending: Option<(usize, Key)>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Life {
    Up,
    /// Stopped; it may come back with all that it had.
    Down,
    /// Not part of the cluster yet.
    Absent,
}

/// An object as etcd holds it.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Value {
    pub key: Key,
}

impl Server {
    /// The key that it stores a new value under.
    pub fn writes(&self) -> Key {
        if self.former_config { Key::FORMER } else { self.seed }
    }

    /// Whether it runs, and both it and its plugin use `target`.
    pub fn agrees_on(&self, target: Key) -> bool {
        self.life == Life::Up && self.plugin == target && self.writes() == target
    }

    /// Every key that it may store a value under, now or after it or its plugin was started again.
    pub fn could_write(&self, setup: &ServerSetup) -> Set {
        let elsewhere = Set::of((!setup.writes_everything).then_some(Key::FORMER));
        match self.life {
            Life::Absent => Set::default(),
            Life::Up => Set::of([self.writes(), self.plugin, self.saved]).union(elsewhere),
            Life::Down if self.former_config => Set::of([Key::FORMER]),
            Life::Down => Set::of([self.plugin, self.saved]).union(elsewhere),
        }
    }
}

/// What happens without any procedure.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Happening {
    /// Somebody else makes another version active.
    Rotation,
    /// Somebody makes the version before active once more.
    Rollback,
    /// A plugin asks the KEK and adopts its active version.
    Refresh(usize),
    /// An API server asks its plugin and makes a seed under the new key.
    Adopt(usize),
    /// A client writes a value through a server.
    Write(usize, usize),
    /// The same, slowly: encrypted now, stored later.
    Send(usize, usize),
    Land(usize),
    Stop(usize),
    Start(usize),
    RestartPlugin(usize),
    /// The API server loads the configuration from before, or the present one again.
    Reload(usize),
    ReloadBack(usize),
    /// A server joins; its plugin asked the KEK before the rotation.
    Join(usize),
    /// The newest snapshot of an etcd is restored.
    Restore(usize),
    /// Old revisions of an etcd are compacted.
    Compact(usize),
}

impl Happening {
    /// What a happening is charged as; what must happen sooner or later is free.
    fn disturbance(self) -> Option<Disturbance> {
        Some(match self {
            Self::Rotation => Disturbance::Rotation,
            Self::Rollback => Disturbance::Rollback,
            Self::Write(..) => Disturbance::Write,
            Self::Send(..) => Disturbance::SlowWrite,
            Self::Stop(_) => Disturbance::Outage,
            Self::RestartPlugin(_) => Disturbance::PluginRestart,
            Self::Reload(_) => Disturbance::Reload,
            Self::Join(_) => Disturbance::Join,
            Self::Restore(_) => Disturbance::Restore,
            Self::Compact(_) => Disturbance::Compaction,
            Self::Refresh(_) | Self::Adopt(_) | Self::Land(_) | Self::Start(_) | Self::ReloadBack(_) => return None,
        })
    }
}

impl World {
    /// The happenings that may come next.
    pub fn happenings(&self, scenario: &Scenario) -> Vec<Happening> {
        let mut all = vec![Happening::Rotation, Happening::Rollback];
        for etcd in 0..2 {
            all.extend([Happening::Restore(etcd), Happening::Compact(etcd)]);
        }
        for server in 0..self.servers.len() {
            all.extend([Happening::Refresh(server), Happening::Adopt(server), Happening::Land(server)]);
            all.extend([Happening::Stop(server), Happening::Start(server), Happening::RestartPlugin(server)]);
            all.extend([Happening::Reload(server), Happening::ReloadBack(server), Happening::Join(server)]);
            for value in 0..self.values.len() {
                all.extend([Happening::Write(server, value), Happening::Send(server, value)]);
            }
        }
        all.retain(|happening| {
            happening.disturbance().is_none_or(|kind| self.disturbances > 0 && scenario.may.contains(&kind))
                && self.is_possible(*happening, scenario)
        });
        all
    }

    fn is_possible(&self, happening: Happening, scenario: &Scenario) -> bool {
        let claimed = self.runs.iter().any(Run::says_yes);
        let up = |server: usize| self.servers[server].life == Life::Up;
        match happening {
            Happening::Rotation => self.active < Key::NEXT.successor(),
            Happening::Rollback => !claimed && self.active > Key::FORMER,
            Happening::Refresh(at) => {
                let saves = scenario.servers[at].saves || !scenario.has(Protection::AdoptionSaved);
                self.servers[at].life != Life::Absent && self.servers[at].plugin < self.active && saves
            }
            Happening::Adopt(at) => up(at) && self.servers[at].seed != self.servers[at].plugin,
            Happening::Write(at, value) => up(at) && scenario.values[value].served,
            Happening::Send(at, value) => up(at) && scenario.values[value].served && self.servers[at].sending.is_none(),
            Happening::Land(at) => self.servers[at].sending.is_some(),
            Happening::Stop(at) => up(at),
            Happening::Start(at) => self.servers[at].life == Life::Down,
            Happening::RestartPlugin(at) => self.servers[at].plugin != self.servers[at].saved,
            Happening::Reload(at) => !claimed && up(at) && !self.servers[at].former_config,
            Happening::ReloadBack(at) => up(at) && self.servers[at].former_config,
            Happening::Join(at) => !claimed && self.servers[at].life == Life::Absent,
            Happening::Compact(etcd) => !claimed && !self.old[etcd].is_empty(),
            Happening::Restore(etcd) => {
                scenario.values.iter().any(|value| value.etcd == etcd) && !self.runs.iter().any(Run::has_searched_again)
            }
        }
    }

    pub fn happen(&mut self, happening: Happening, scenario: &Scenario) {
        self.disturbances -= u8::from(happening.disturbance().is_some());
        match happening {
            Happening::Rotation => self.active = self.active.successor(),
            Happening::Rollback => self.active = self.active.predecessor(),
            Happening::Refresh(at) => {
                self.servers[at].plugin = self.active;
                if scenario.servers[at].saves {
                    self.servers[at].saved = self.active;
                }
            }
            Happening::Adopt(at) => self.servers[at].seed = self.servers[at].plugin,
            Happening::Write(at, value) => {
                let key = self.encrypt(at, value, scenario);
                self.store(value, key, scenario);
            }
            Happening::Send(at, value) => {
                self.servers[at].sending = Some((value, self.encrypt(at, value, scenario)));
            }
            Happening::Land(at) => {
                if let Some((value, key)) = self.servers[at].sending.take() {
                    self.store(value, key, scenario);
                }
            }
            Happening::Stop(at) => self.servers[at].life = Life::Down,
            Happening::Start(at) | Happening::Join(at) => self.start(at, scenario),
            Happening::RestartPlugin(at) => self.servers[at].plugin = self.servers[at].saved,
            Happening::Reload(at) => self.servers[at].former_config = true,
            Happening::ReloadBack(at) => self.servers[at].former_config = false,
            Happening::Restore(etcd) => self.restore(etcd, scenario),
            Happening::Compact(etcd) => self.old[etcd] = Set::default(),
        }
    }

    fn start(&mut self, at: usize, scenario: &Scenario) {
        let server = &mut self.servers[at];
        (server.life, server.seed) = (Life::Up, server.plugin);
        self.runs.iter_mut().for_each(|run| run.see_start(at, scenario));
    }

    /// The key of a new value, counted by the server's metrics.
    pub fn encrypt(&mut self, at: usize, value: usize, scenario: &Scenario) -> Key {
        let key = self.writes(at, value, scenario);
        self.runs.iter_mut().for_each(|run| run.see_count(at, key));
        key
    }

    /// The key that a server stores a value under.
    pub fn writes(&self, at: usize, value: usize, scenario: &Scenario) -> Key {
        let former = value > 0 && !scenario.servers[at].writes_everything;
        if former { Key::FORMER } else { self.servers[at].writes() }
    }

    /// A new revision of a value.
    pub fn store(&mut self, value: usize, key: Key, scenario: &Scenario) {
        let (etcd, superseded) = (scenario.values[value].etcd, self.values[value].key);
        self.old[etcd].insert(superseded);
        self.values[value].key = key;
        self.runs.iter_mut().for_each(|run| run.see_store(value, etcd, superseded));
    }

    /// A restored snapshot holds what was there when the history began.
    fn restore(&mut self, etcd: usize, scenario: &Scenario) {
        self.old[etcd] = Set::default();
        for (value, setup) in self.values.iter_mut().zip(&scenario.values).filter(|(_, setup)| setup.etcd == etcd) {
            value.key = setup.key;
        }
    }

    /// The keys of all present values in one etcd.
    pub fn keys_in(&self, etcd: usize, scenario: &Scenario) -> Set {
        let here = self.values.iter().zip(&scenario.values).filter(|(_, setup)| setup.etcd == etcd);
        Set::of(here.map(|(value, _)| value.key))
    }

    /// The keys of all present values.
    pub fn stored(&self) -> Set {
        Set::of(self.values.iter().map(|value| value.key))
    }

    /// Every key that anything still needs: a present value, an old revision, the newest snapshot, or a value that a
    /// server could write.
    pub fn needed(&self, scenario: &Scenario) -> Set {
        let kept = self.old.iter().chain(&self.snapshot).copied();
        let servers = self.servers.iter().zip(&scenario.servers).map(|(server, setup)| server.could_write(setup));
        kept.chain(servers).fold(self.stored().union(Set::of([self.active])), Set::union)
    }
}
