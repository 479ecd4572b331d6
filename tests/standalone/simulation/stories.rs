//! Sequences that chance alone hardly ever makes, each with its own odds and pauses. They come between the ordinary steps
//! of every fifth schedule.

use std::time::Duration;

use rand::RngExt;
use rand::seq::IndexedRandom;

use super::node::{Conf, Node};
use super::oracle::Oracle;
use super::schedule::Schedule;
use super::vendor::{Mode, USUAL};

/// Longer than a row of denials may be silent.
pub const REFRESH: Duration = Duration::from_secs(30);

/// The KEKs of the stories.
const PAIR: [usize; 2] = [0, 1];

impl Schedule {
    pub fn tells_stories(&self) -> bool {
        self.seed % 5 == 2
    }

    pub async fn story(&mut self, nodes: &mut [Node], oracle: &mut Oracle) {
        match self.random.random_range(0..4) {
            0 => self.taken_out_and_put_back(nodes, oracle).await,
            1 => self.one_after_the_other(nodes, oracle).await,
            _ => self.asleep_in_doubt(nodes, oracle).await,
        }
    }

    /// A KEK leaves the configuration, and comes back; neither it nor the other one has to be well.
    async fn taken_out_and_put_back(&mut self, nodes: &mut [Node], oracle: &mut Oracle) {
        let conf = self.both_well(nodes, oracle).await;
        for vendor in PAIR {
            self.choose_mode(vendor);
        }
        // They are asked every 30 s, and every 2 s while in doubt.
        self.pass_within(nodes, oracle, 500..40_000).await;
        let keks = vec![*PAIR.choose(&mut self.random).unwrap()];
        self.configure(nodes, &Conf { keks, ..conf.clone() });
        let away = if self.chance(70) { 2_000..12_000 } else { 12_000..40_000 };
        self.pass_within(nodes, oracle, away).await;
        if self.chance(50) {
            let vendor = *PAIR.choose(&mut self.random).unwrap();
            self.choose_mode(vendor);
            self.pass_within(nodes, oracle, 100..6_000).await;
        }
        self.configure(nodes, &conf);
        self.pass_within(nodes, oracle, 5_000..40_000).await;
    }

    /// Both KEKs withdraw their permission, at different times.
    async fn one_after_the_other(&mut self, nodes: &mut [Node], oracle: &mut Oracle) {
        self.both_well(nodes, oracle).await;
        let first = self.random.random_range(0..PAIR.len());
        self.set_mode(PAIR[first], Mode::Denies);
        self.pass_within(nodes, oracle, 40_000..90_000).await;
        self.set_mode(PAIR[1 - first], Mode::Denies);
        self.pass_within(nodes, oracle, 50_000..80_000).await;
    }

    /// A machine sleeps while a denial is being confirmed.
    async fn asleep_in_doubt(&mut self, nodes: &mut [Node], oracle: &mut Oracle) {
        let conf = self.both_well(nodes, oracle).await;
        for vendor in conf.keks {
            self.set_mode(vendor, Mode::Denies);
        }
        self.pass_within(nodes, oracle, 500..9_000).await;
        for node in nodes.iter() {
            let asleep = Duration::from_secs(self.random.random_range(14..80));
            self.tell(&format!("node {} sleeps for {asleep:?}", node.number));
            node.clock.sleep(asleep);
        }
        self.pass_within(nodes, oracle, 1_000..25_000).await;
    }

    /// Two KEKs that are well, and a generation of both.
    async fn both_well(&mut self, nodes: &mut [Node], oracle: &mut Oracle) -> Conf {
        for vendor in PAIR {
            self.set_mode(vendor, Mode::Good);
        }
        let conf = Conf { keks: PAIR.into(), retired: vec![2], ..nodes[0].conf.clone() };
        self.configure(nodes, &conf);
        self.pass(nodes, oracle, REFRESH).await;
        conf
    }

    fn choose_mode(&mut self, vendor: usize) {
        let modes = [Mode::Denies, Mode::Denies, Mode::Hangs, Mode::Unavailable, Mode::Good];
        let mode = *modes.choose(&mut self.random).unwrap();
        self.set_mode(vendor, mode);
    }

    /// At whatever it is asked, with nothing else wrong.
    fn set_mode(&mut self, vendor: usize, mode: Mode) {
        let vendor = self.vendors[vendor].clone();
        self.tell(&format!("{}: {mode:?} at everything", vendor.name));
        vendor.change(|state| {
            (state.names, state.wraps, state.unwraps) = (mode, mode, mode);
            (state.named, state.latency) = (None, USUAL);
            state.disabled.clear();
        });
    }

    async fn pass_within(&mut self, nodes: &mut [Node], oracle: &mut Oracle, millis: std::ops::Range<u64>) {
        let pause = Duration::from_millis(self.random.random_range(millis));
        self.pass(nodes, oracle, pause).await;
    }
}
