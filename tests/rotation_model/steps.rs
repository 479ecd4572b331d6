//! The steps of a run. Each protection is a branch here; without any of them this is the procedure of the first version.

use crate::protection::Protection;
use crate::run::{Phase, Run, Verdict};
use crate::scenario::{Scenario, ValueSetup};
use crate::set::{Key, Set};
use crate::world::{Life, World};

impl World {
    /// What the world is after the next step of run `at`; `None` while that has to wait. `through` is the server to
    /// which a balancer leads the next rewrite.
    pub fn step(&self, at: usize, through: Option<usize>, scenario: &Scenario) -> Option<Self> {
        let mut next = self.clone();
        if self.runs[at].lapsed && scenario.has(Protection::StandsStill) {
            let run = &mut next.runs[at];
            if self.is_refused(at, scenario) {
                run.end(Verdict::NotYes);
            } else {
                run.regain();
            }
            return Some(next);
        }
        if self.waits(at, through, scenario) {
            return None;
        }
        match self.runs[at].phase {
            Phase::Start => next.runs[at].enter(Phase::Survey),
            Phase::Survey => next.survey(at, scenario),
            Phase::Rotate => next.rotate(at),
            Phase::Adopt => next.adopt(at, scenario),
            Phase::Drain => next.runs[at].enter(after_drain(scenario)),
            Phase::TryReading => next.try_reading(at, scenario),
            Phase::Rewrite => next.rewrite(at, through, scenario),
            Phase::Search | Phase::SearchAgain => next.search(at, scenario),
            Phase::Settle => next.settle(at, scenario),
            Phase::Snapshot => next.take_snapshot(at, scenario),
            Phase::Conclude => next.conclude(at, scenario),
            Phase::Ended(_) => {}
        }
        Some(next)
    }

    fn waits(&self, at: usize, through: Option<usize>, scenario: &Scenario) -> bool {
        let run = &self.runs[at];
        match run.phase {
            Phase::Start => self.is_refused(at, scenario),
            Phase::Adopt => self.waits_for_adoption(at, scenario),
            // What was encrypted before a server's proof is on its way for as long as a request may last.
            Phase::Drain => {
                scenario.has(Protection::WritesDrained) && self.servers.iter().any(|server| server.sending.is_some())
            }
            Phase::Rewrite => {
                let server = self.rewriter(at, through, scenario);
                server.is_none_or(|server| self.servers[server].life != Life::Up)
            }
            Phase::Ended(_) => true,
            _ => false,
        }
    }

    /// Whether another run that is at work keeps this one out.
    pub fn is_refused(&self, at: usize, scenario: &Scenario) -> bool {
        let works = |run: &Run| run.alive && !run.lapsed && run.phase != Phase::Start && !run.has_ended();
        let held = self.runs.iter().enumerate().any(|(other, run)| other != at && works(run));
        held && scenario.has(Protection::LeaseOfOneRun)
    }

    fn survey(&mut self, at: usize, scenario: &Scenario) {
        let given =
            scenario.etcds_given().fold(Set::default(), |found, etcd| found.union(self.keys_in(etcd, scenario)));
        let found = if scenario.other_clusters_etcd { Set::of([Key::FORMER]) } else { given };
        let run = &mut self.runs[at];
        run.former = found;
        run.enter(if run.rotates { Phase::Rotate } else { Phase::Adopt });
    }

    /// Notes the active version, looks whether it still is, and only then rotates: three steps, as three calls.
    fn rotate(&mut self, at: usize) {
        let (active, run) = (self.active, &mut self.runs[at]);
        match run.noted {
            None => run.noted = Some(active),
            Some(noted) if !run.checked && noted == active => run.checked = true,
            Some(noted) => {
                if run.checked {
                    self.faults.replaced_unnoted |= noted != active;
                    self.active = active.successor();
                }
                run.former.insert(noted);
                run.enter(Phase::Adopt);
            }
        }
    }

    /// The servers that the run knows of, whether they answer or not.
    fn known(&self, at: usize, scenario: &Scenario) -> Set {
        let counts = self.runs[at].counts;
        let known = self.servers.iter().zip(&scenario.servers).enumerate().filter(|(_, (server, setup))| {
            let (up, sight) = (server.life == Life::Up, setup.sight);
            if scenario.has(Protection::SettledServers) {
                server.life != Life::Absent && (sight.lease || sight.node || (sight.counted && counts))
                    || up && sight.endpoint
            } else {
                up && (sight.endpoint || sight.lease && sight.clock_agrees)
            }
        });
        Set::of(known.map(|(number, _)| number))
    }

    /// The target as it is now, and the server whose proof is missing.
    fn adoption(&self, at: usize, scenario: &Scenario) -> (Option<Key>, Option<usize>) {
        let known = self.known(at, scenario);
        let names = scenario.has(Protection::ClaimsNameKeys);
        let target = if names { Some(self.active) } else { self.reported(at, known) };
        (target, known.without(self.runs[at].proved).first())
    }

    fn waits_for_adoption(&self, at: usize, scenario: &Scenario) -> bool {
        let (target, next) = self.adoption(at, scenario);
        let Some(target) = target else { return true };
        let gives_up = self.runs[at].target.is_some_and(|before| before != target);
        let proven = next.is_none_or(|server| self.proves(server, target, scenario));
        !gives_up && (!proven || self.known(at, scenario).is_empty())
    }

    fn adopt(&mut self, at: usize, scenario: &Scenario) {
        let (target, next) = self.adoption(at, scenario);
        let run = &mut self.runs[at];
        if run.target.is_some() && run.target != target {
            run.end(Verdict::NotYes);
        } else if let Some(server) = next {
            run.target = target;
            run.proved.insert(server);
            run.moved.remove(server);
            if !self.all_open_next(scenario) {
                // What the run wrote of its own to see this.
                self.faults.unreadable |= !scenario.has(Protection::CanaryWithdrawn);
                self.runs[at].end(Verdict::NotYes);
            }
        } else {
            let after = run.resume_at.take().unwrap_or_else(|| after_adoption(scenario));
            run.enter(after);
        }
    }

    /// Whether a server shows that it uses `target`, for every resource that has an object.
    fn proves(&self, server: usize, target: Key, scenario: &Scenario) -> bool {
        let shown = |value: usize| self.writes(server, value, scenario) == target;
        let resources = if scenario.has(Protection::EveryResourceProven) { self.values.len() } else { 1 };
        self.servers[server].agrees_on(target) && (0..resources).all(shown)
    }

    fn all_open_next(&self, scenario: &Scenario) -> bool {
        let mut servers = self.servers.iter().zip(&scenario.servers);
        servers.all(|(server, setup)| server.life != Life::Up || setup.opens_next)
    }

    /// Without a look at the KEK: what all plugins report; after a rotation of its own, anything but what it replaced.
    fn reported(&self, at: usize, known: Set) -> Option<Key> {
        let first = self.servers[known.first()?].plugin;
        let others = self.servers.iter().enumerate().filter(|(server, _)| known.contains(*server));
        let agree = others.fold(true, |agree, (_, server)| agree && server.plugin == first);
        let replaced = self.runs[at].rotates && self.runs[at].noted == Some(first);
        (agree && !replaced).then_some(first)
    }

    fn try_reading(&mut self, at: usize, scenario: &Scenario) {
        let all_read = scenario.servers.iter().all(|setup| setup.reads_everything);
        self.runs[at].enter(if all_read { Phase::Rewrite } else { Phase::Ended(Verdict::NotYes) });
    }

    fn rewriter(&self, at: usize, through: Option<usize>, scenario: &Scenario) -> Option<usize> {
        through.or_else(|| self.known(at, scenario).first())
    }

    /// The empty patch to the next value: stored again if its key is not the server's.
    fn rewrite(&mut self, at: usize, through: Option<usize>, scenario: &Scenario) {
        let rewritable = Set::of((0..self.values.len()).filter(|value| scenario.values[*value].is_rewritten()));
        let remaining = rewritable.without(self.runs[at].done);
        if let (Some(value), Some(server)) = (remaining.first(), self.rewriter(at, through, scenario)) {
            self.runs[at].done.insert(value);
            if self.values[value].key != self.writes(server, value, scenario) {
                let key = self.encrypt(server, value, scenario);
                self.store(value, key, scenario);
                self.faults.unreadable |=
                    value > 0 && key != Key::CLEAR && self.a_server_reads_the_first_only(scenario);
            }
        }
        if rewritable.without(self.runs[at].done).is_empty() {
            self.runs[at].enter(Phase::Search);
        }
    }

    fn a_server_reads_the_first_only(&self, scenario: &Scenario) -> bool {
        let mut servers = self.servers.iter().zip(&scenario.servers);
        servers.any(|(server, setup)| server.life == Life::Up && !setup.reads_everything)
    }

    /// Looks through the next etcd.
    fn search(&mut self, at: usize, scenario: &Scenario) {
        let first = self.runs[at].phase == Phase::Search;
        let given = Set::of(scenario.etcds_given());
        let etcd = given.without(self.runs[at].done).first().expect("the last etcd ends the phase");
        let left = self.leftovers(at, etcd, first, scenario);
        let stays = self
            .values
            .iter()
            .zip(&scenario.values)
            .any(|(value, setup)| setup.etcd == etcd && !setup.is_rewritten() && left.contains(value.key));
        let run = &mut self.runs[at];
        run.former = run.former.union(left);
        run.done.insert(etcd);
        if first {
            run.compacted.remove(etcd);
            run.has_snapshot &= !scenario.has(Protection::SnapshotTakenAgain);
        }
        if stays {
            run.end(Verdict::NotYes);
        } else if !left.is_empty() {
            run.begin_again();
        } else if given.without(run.done).is_empty() {
            self.after_search(at, first, scenario);
        }
    }

    /// The keys other than the target that a search of one etcd finds.
    fn leftovers(&self, at: usize, etcd: usize, first: bool, scenario: &Scenario) -> Set {
        if scenario.other_clusters_etcd {
            // Its own API servers have stored everything again.
            return Set::default();
        }
        let judged = |setup: &ValueSetup| setup.served || scenario.has(Protection::EveryValue);
        let here = self.values.iter().zip(&scenario.values).filter(|(_, setup)| setup.etcd == etcd && judged(setup));
        let present = Set::of(here.map(|(value, _)| value.key));
        let reads_history = !first && scenario.has(Protection::OldRevisionsSearched);
        // What is compacted is not seen.
        let history = self.runs[at].superseded[etcd].and(self.old[etcd]);
        let found = if reads_history { present.union(history) } else { present };
        found.without(self.runs[at].target_set())
    }

    fn after_search(&mut self, at: usize, first: bool, scenario: &Scenario) {
        let given = Set::of(scenario.etcds_given());
        let elsewhere = scenario.values.iter().any(|setup| setup.served && !given.contains(setup.etcd));
        let run = &mut self.runs[at];
        if !first {
            run.enter(Phase::Conclude);
        } else if elsewhere && scenario.has(Protection::EveryEtcd)
            || scenario.other_clusters_etcd && scenario.has(Protection::EtcdOfThisCluster)
        {
            run.end(Verdict::NotYes);
        } else {
            run.enter(Phase::Settle);
        }
    }

    /// Until the revisions from before the first search are compacted, one etcd after the other.
    fn settle(&mut self, at: usize, scenario: &Scenario) {
        let given = Set::of(scenario.etcds_given());
        let run = &mut self.runs[at];
        if let Some(etcd) = given.without(run.compacted).first().filter(|_| scenario.has(Protection::CompactionShown)) {
            run.compacted.insert(etcd);
            if !scenario.other_clusters_etcd {
                self.old[etcd] = self.old[etcd].and(run.superseded[etcd]);
            }
        }
        if given.without(run.compacted).is_empty() || !scenario.has(Protection::CompactionShown) {
            run.enter(Phase::Snapshot);
        }
    }

    fn take_snapshot(&mut self, at: usize, scenario: &Scenario) {
        if scenario.has(Protection::SnapshotOfNow) && !self.runs[at].has_snapshot && !scenario.other_clusters_etcd {
            self.snapshot[0] = self.keys_in(0, scenario);
            if scenario.has(Protection::SnapshotOfEveryEtcd) {
                self.snapshot[1] = self.keys_in(1, scenario);
            }
            self.runs[at].has_snapshot = true;
        }
        let again = scenario.has(Protection::SearchAgain);
        self.runs[at].enter(if again { Phase::SearchAgain } else { Phase::Conclude });
    }

    /// One last look at all servers and the KEK, and the verdict.
    fn conclude(&mut self, at: usize, scenario: &Scenario) {
        if !self.proof_holds(at, scenario) {
            return self.runs[at].begin_again();
        }
        let given = scenario.etcds_given().fold(Set::default(), |all, etcd| all.union(self.snapshot[etcd]));
        let is_searched = scenario.has(Protection::SnapshotSearched) && !scenario.other_clusters_etcd;
        if is_searched && !given.without(self.runs[at].target_set()).is_empty() {
            self.runs[at].has_snapshot = false;
            return self.runs[at].enter(Phase::Snapshot);
        }
        let needed = scenario.versions(self.needed(scenario));
        let run = &mut self.runs[at];
        run.former = run.former.without(run.target_set());
        let named = run.named(scenario);
        run.end(if named.is_empty() { Verdict::NotYes } else { Verdict::Yes });
        self.faults.false_yes |= named.meets(needed);
    }

    fn proof_holds(&self, at: usize, scenario: &Scenario) -> bool {
        let (run, known) = (&self.runs[at], self.known(at, scenario));
        let agrees = |server: usize| run.target.is_some_and(|target| self.servers[server].agrees_on(target));
        let all_agree = (0..self.servers.len()).filter(|server| known.contains(*server)).all(agrees);
        let ledger_holds = known.without(run.proved).is_empty() && !known.meets(run.moved);
        let asks_kek = scenario.has(Protection::ClaimsNameKeys) && scenario.has(Protection::KekAskedAgain);
        all_agree
            && (ledger_holds || !scenario.has(Protection::LedgerOfServers))
            && (run.target == Some(self.active) || !asks_kek)
    }
}

fn after_adoption(scenario: &Scenario) -> Phase {
    if scenario.has(Protection::WritesDrained) { Phase::Drain } else { after_drain(scenario) }
}

fn after_drain(scenario: &Scenario) -> Phase {
    if scenario.has(Protection::ReadingTried) { Phase::TryReading } else { Phase::Rewrite }
}
