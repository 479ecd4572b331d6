//! The model as the checker sees it: actions, properties, and what it finds.

use stateright::{Checker, HasDiscoveries, Model, Path, Property};

use crate::run::{Phase, Run};
use crate::scenario::{Disturbance, Procedure, Scenario};
use crate::words::tell;
use crate::world::{Faults, Happening, World};

pub const A_YES_IS_TRUE: &str = "nothing needs a version at the moment in which a Yes names it";
pub const DISABLED_IS_UNUSED: &str = "nothing is stored under a version that was disabled as told";
pub const REWRITES_STAY_READABLE: &str = "every running API server reads what was rewritten";
pub const ROTATIONS_ARE_NOTED: &str = "a run rotates a KEK only away from the version that it noted";
const A_YES_IS_REACHED: &str = "a Yes is reached";

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    Happens(Happening),
    /// The next step of a run, through the server to which the balancer leads it.
    Step(usize, Option<usize>),
    Crash(usize),
    /// A run's process is stopped for longer than its Lease lasts, and then goes on.
    Stall(usize),
    Resume(usize),
    /// The operator disables what a Yes named.
    Disable(usize),
}

impl Model for Scenario {
    type State = World;
    type Action = Action;

    fn init_states(&self) -> Vec<World> {
        vec![self.beginning()]
    }

    fn actions(&self, world: &World, actions: &mut Vec<Action>) {
        if world.faults != Faults::default() || world.runs.iter().all(|run| run.has_ended() && !run.says_yes()) {
            return;
        }
        actions.extend(world.happenings(self).into_iter().map(Action::Happens));
        for (number, run) in world.runs.iter().enumerate() {
            if run.says_yes() {
                actions.push(Action::Disable(number));
            } else if !run.alive {
                actions.push(Action::Resume(number));
            } else if !run.has_ended() {
                if self.balancer && run.phase == Phase::Rewrite {
                    actions.extend((0..world.servers.len()).map(|server| Action::Step(number, Some(server))));
                } else {
                    actions.push(Action::Step(number, None));
                }
                let may = |kind: Disturbance| world.disturbances > 0 && self.may.contains(&kind);
                if may(Disturbance::Crash) {
                    actions.push(Action::Crash(number));
                }
                if may(Disturbance::Stall) && self.runs > 1 && !run.lapsed {
                    actions.push(Action::Stall(number));
                }
            }
        }
    }

    fn next_state(&self, world: &World, action: Action) -> Option<World> {
        let mut next = world.clone();
        match action {
            Action::Happens(happening) => next.happen(happening, self),
            Action::Step(run, through) if self.procedure == Procedure::RotateKeys => {
                next = world.step(run, through, self)?;
            }
            Action::Step(run, through) => next = world.simpler_step(run, through, self)?,
            Action::Crash(run) => {
                next.disturbances -= 1;
                next.runs[run].crash();
            }
            Action::Stall(run) => {
                next.disturbances -= 1;
                next.runs[run].lapsed = true;
            }
            Action::Resume(run) if world.is_refused(run, self) => return None,
            Action::Resume(run) => next.runs[run].resume(self),
            Action::Disable(run) => next.disabled = next.disabled.union(next.runs[run].named(self)),
        }
        Some(next)
    }

    fn properties(&self) -> Vec<Property<Self>> {
        vec![
            Property::always(A_YES_IS_TRUE, |_, world: &World| !world.faults.false_yes),
            Property::always(DISABLED_IS_UNUSED, |scenario: &Self, world: &World| {
                !world.disabled.meets(scenario.versions(world.stored()))
            }),
            Property::always(REWRITES_STAY_READABLE, |_, world: &World| !world.faults.unreadable),
            Property::always(ROTATIONS_ARE_NOTED, |_, world: &World| !world.faults.replaced_unnoted),
            Property::sometimes(A_YES_IS_REACHED, |_, world: &World| world.runs.iter().any(Run::says_yes)),
        ]
    }
}

/// Every history of the scenario keeps every property, and some history reaches a Yes, or none does, as expected.
pub fn holds(scenario: &Scenario, reaches_yes: bool) {
    let checked = scenario.clone().checker().spawn_bfs().join();
    println!("{} states, at most {} steps deep", checked.unique_state_count(), checked.max_depth());
    for property in [A_YES_IS_TRUE, DISABLED_IS_UNUSED, REWRITES_STAY_READABLE, ROTATIONS_ARE_NOTED] {
        if let Some(path) = checked.discovery(property) {
            panic!("it does not hold that {property}:\n{}", tell(path, scenario).join("\n"));
        }
    }
    assert_eq!(checked.discovery(A_YES_IS_REACHED).is_some(), reaches_yes, "{A_YES_IS_REACHED}");
}

/// The shortest history in which `property` does not hold, in words.
pub fn counterexample(scenario: &Scenario, property: &'static str) -> Vec<String> {
    let mut shortest = shorter(scenario, property, usize::MAX).expect("the checker finds no counterexample");
    while let Some(path) = shorter(scenario, property, shortest.clone().into_vec().len()) {
        shortest = path;
    }
    let told = tell(shortest, scenario);
    println!("{}", told.join("\n"));
    told
}

/// A history of fewer than `states` states in which `property` does not hold.
fn shorter(scenario: &Scenario, property: &'static str, states: usize) -> Option<Path<World, Action>> {
    let until = HasDiscoveries::AnyOf([property].into());
    scenario.clone().checker().finish_when(until).target_max_depth(states).spawn_bfs().join().discovery(property)
}
