//! A schedule: what happens to the world, one step after the other, all of it chosen by the seed.

use std::cell::RefCell;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use kube_envelope::dek::store::Name;
use rand::rngs::StdRng;
use rand::seq::IndexedRandom;
use rand::{RngExt, SeedableRng};
use tokio::time::Instant;

use super::disk::Health;
use super::node::{Conf, Node};
use super::oracle::Oracle;
use super::stories;
use super::vendor::{Mode, USUAL, Vendor};

/// Long and short ones, so that every bound is reached from both sides.
const OFFLINE_AGES: [Duration; 3] = [Duration::from_secs(30), Duration::from_secs(90), Duration::from_mins(10)];
const STEPS: std::ops::Range<usize> = 5..15;

/// How often the KEKs are asked, in most schedules.
const REFRESH: Duration = Duration::from_secs(10);

/// A world and the seed that moves it.
pub struct Schedule {
    pub(super) random: StdRng,
    began: Instant,
    story: Rc<RefCell<Vec<String>>>,
    pub(super) vendors: Vec<Arc<Vendor>>,
    pub(super) seed: u64,
}

impl Schedule {
    pub fn new(seed: u64, story: Rc<RefCell<Vec<String>>>) -> Self {
        let vendors = ["a", "b", "c"].map(Vendor::new).to_vec();
        Self { random: StdRng::seed_from_u64(seed), began: Instant::now(), story, vendors, seed }
    }

    pub async fn run(mut self) {
        let conf = Conf {
            keks: if self.chance(50) { vec![0] } else { vec![0, 1] },
            retired: Vec::new(),
            epoch: 1,
            max_offline_age: *OFFLINE_AGES.choose(&mut self.random).unwrap(),
            refresh_interval: if self.tells_stories() { stories::REFRESH } else { REFRESH },
        };
        self.tell(&format!("{conf:?}"));
        let mut nodes = Vec::new();
        for number in 0..self.random.random_range(1..=2) {
            nodes.push(Node::start(number, conf.clone(), &self.vendors, self.seed).await);
        }
        let mut oracle = Oracle::new(self.vendors.clone(), nodes.len());
        self.pass(&mut nodes, &mut oracle, Duration::from_secs(2)).await;
        for _ in 0..self.random.random_range(STEPS) {
            if self.tells_stories() && self.chance(40) {
                self.story(&mut nodes, &mut oracle).await;
            } else {
                self.step(&mut nodes, &mut oracle).await;
            }
            let pause = match self.random.random_range(0..7) {
                0 | 1 => Duration::from_millis(self.random.random_range(1..900)),
                2..=4 => Duration::from_millis(self.random.random_range(900..15_000)),
                5 => Duration::from_secs(self.random.random_range(15..40)),
                _ => Duration::from_secs(self.random.random_range(40..90)),
            };
            self.pass(&mut nodes, &mut oracle, pause).await;
        }
        self.heal(&mut nodes, &mut oracle).await;
    }

    pub(super) fn tell(&self, what: &str) {
        let line = format!("{:8.3} {what}", self.began.elapsed().as_secs_f64());
        tracing::info!("{line}");
        self.story.borrow_mut().push(line);
    }

    pub(super) fn chance(&mut self, percent: u32) -> bool {
        self.random.random_range(0..100) < percent
    }

    /// Lets time go by, and looks at everything meanwhile.
    pub(super) async fn pass(&mut self, nodes: &mut [Node], oracle: &mut Oracle, pause: Duration) {
        let until = Instant::now() + pause;
        loop {
            for node in nodes.iter() {
                oracle.look(node);
            }
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                break;
            }
            tokio::time::sleep(left.min(Duration::from_millis(1_300))).await;
        }
        for node in nodes.iter() {
            oracle.use_it(node).await;
        }
    }

    async fn step(&mut self, nodes: &mut [Node], oracle: &mut Oracle) {
        let vendor = self.vendors.choose(&mut self.random).unwrap().clone();
        let at = self.random.random_range(0..nodes.len());
        match self.random.random_range(0..100) {
            0..22 => self.fault(&vendor),
            22..34 => self.change_versions(&vendor),
            34..50 => {
                self.tell(&format!("{} is well", vendor.name));
                vendor.change(|state| {
                    (state.names, state.wraps, state.unwraps) = (Mode::Good, Mode::Good, Mode::Good);
                    (state.named, state.latency) = (None, USUAL);
                    state.disabled.clear();
                });
            }
            50..66 => self.restart(&mut nodes[at], oracle).await,
            66..78 => self.reload(nodes),
            78..86 => {
                let health =
                    *[Health::Good, Health::Good, Health::Full, Health::Hangs].choose(&mut self.random).unwrap();
                self.tell(&format!("disk of {at}: {health:?}"));
                *nodes[at].disk.health.lock().unwrap() = health;
                oracle.disk_changed(at, health);
            }
            86..92 => {
                let asleep = Duration::from_secs(*[2, 20, 100, 3600].choose(&mut self.random).unwrap());
                self.tell(&format!("node {at} sleeps for {asleep:?}"));
                nodes[at].clock.sleep(asleep);
            }
            _ => {
                self.tell(&format!("many ask node {at}"));
                oracle.burst(&nodes[at]).await;
            }
        }
    }

    fn fault(&mut self, vendor: &Vendor) {
        let modes = [Mode::Hangs, Mode::Unavailable, Mode::Throttles, Mode::Denies, Mode::Denies, Mode::Lies];
        let mode = *modes.choose(&mut self.random).unwrap();
        let only = self.random.random_range(0..5);
        let latency = Duration::from_millis(*[20, 20, 20, 700, 2000].choose(&mut self.random).unwrap());
        let what = ["everything", "unwrap", "wrap", "version", "everything but unwrap"][only];
        self.tell(&format!("{}: {mode:?} at {what}, latency {latency:?}", vendor.name));
        vendor.change(|state| {
            state.latency = latency;
            if matches!(only, 0 | 1) {
                state.lies += usize::from(mode == Mode::Lies);
                state.unwraps = mode;
            }
            if matches!(only, 0 | 2 | 4) {
                state.wraps = mode;
            }
            if matches!(only, 0 | 3 | 4) {
                state.names = mode;
            }
        });
    }

    fn change_versions(&mut self, vendor: &Vendor) {
        let kind = self.random.random_range(0..10);
        let older = { vendor.state().active.saturating_sub(1).max(1) };
        let lags = self.chance(50);
        vendor.change(|state| match kind {
            0..4 => {
                state.newest += 1;
                if lags {
                    state.named = Some(state.active);
                }
                state.active = state.newest;
            }
            4 => (state.named, state.newest) = (Some(state.newest + 1), state.newest + 1),
            5 => {
                state.went_back |= state.active != older;
                state.active = older;
            }
            6 | 7 => {
                state.disabled.insert(state.active);
            }
            8 => {
                state.disabled.insert(older);
            }
            _ if older < state.active => {
                state.destroyed.insert(older);
            }
            _ => {}
        });
        let state = vendor.state();
        let (named, disabled, destroyed) = (state.named, &state.disabled, &state.destroyed);
        self.tell(&format!(
            "{}: active {}, named {named:?}, disabled {disabled:?}, destroyed {destroyed:?}",
            vendor.name, state.active
        ));
    }

    async fn restart(&mut self, node: &mut Node, oracle: &mut Oracle) {
        let what = self.random.random_range(0..10);
        let mut told = String::new();
        {
            let mut files = node.disk.files.lock().unwrap();
            let deks: Vec<_> = files.keys().copied().filter(|name| matches!(name, Name::Dek(_))).collect();
            match (what, deks.choose(&mut self.random)) {
                (0, _) => {
                    files.clear();
                    told = "without its state".into();
                    oracle.lost_state(node.number);
                }
                (1, Some(dek)) => {
                    files.remove(dek);
                    told = format!("without {dek:?}");
                    oracle.lost_a_dek(node.number);
                }
                (2, Some(dek)) => {
                    oracle.damage(files.get_mut(dek).unwrap(), *dek);
                    told = format!("with {dek:?} damaged");
                    oracle.lost_a_dek(node.number);
                }
                _ => {}
            }
        }
        self.tell(&format!("node {} restarts {told}", node.number));
        oracle.stopped(node);
        node.restart().await;
        oracle.started(node);
    }

    /// All nodes get the same configuration, one of them perhaps not.
    fn reload(&mut self, nodes: &mut [Node]) {
        let mut conf = nodes[0].conf.clone();
        match self.random.random_range(0..8) {
            0 => conf.epoch += 1,
            1 | 2 => conf.keks = vec![0],
            3 => conf.keks = vec![0, 1],
            4 => conf.keks = vec![1],
            5 => conf.keks = vec![2, 0],
            6 => conf.keks = vec![2],
            _ => {}
        }
        conf.retired = (0..self.vendors.len()).filter(|at| !conf.keks.contains(at)).collect();
        if self.chance(40) {
            conf.retired.pop();
        }
        let one_less = self.chance(25);
        self.configure(&mut nodes[usize::from(one_less)..], &conf);
    }

    pub(super) fn configure(&self, nodes: &mut [Node], conf: &Conf) {
        for node in nodes {
            self.tell(&format!(
                "node {} gets keks {:?} retired {:?} epoch {}",
                node.number, conf.keks, conf.retired, conf.epoch
            ));
            node.reload(conf.clone());
        }
    }

    /// Everything that can be well is, every KEK is configured, and after a while all is as it should be.
    async fn heal(&mut self, nodes: &mut [Node], oracle: &mut Oracle) {
        self.tell("all is well");
        for vendor in &self.vendors {
            vendor.change(|state| {
                (state.names, state.wraps, state.unwraps) = (Mode::Good, Mode::Good, Mode::Good);
                (state.named, state.latency) = (None, USUAL);
                state.disabled.clear();
            });
        }
        // None is accepted that is lower than one that a node has used.
        let used = |node: &Node| node.process.service.store().history().epoch();
        let epoch = nodes.iter().map(|node| node.conf.epoch.max(used(node))).max().unwrap();
        let keks = nodes[0].conf.keks.clone();
        let retired = (0..self.vendors.len()).filter(|at| !keks.contains(at)).collect();
        let Conf { max_offline_age, refresh_interval, .. } = nodes[0].conf;
        let conf = Conf { keks, retired, epoch, max_offline_age, refresh_interval };
        for node in nodes.iter_mut() {
            *node.disk.health.lock().unwrap() = Health::Good;
            oracle.disk_changed(node.number, Health::Good);
            node.reload(conf.clone());
        }
        self.pass(nodes, oracle, refresh_interval * 9 / 2).await;
        oracle.conclude(nodes).await;
    }
}
