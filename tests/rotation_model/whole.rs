//! The protocol with all its protections, and where they end.

use crate::checker::{A_YES_IS_TRUE, counterexample, holds};
use crate::protection::Protection;
use crate::scenario::{Disturbance, Scenario, ServerSetup, Sight, ValueSetup};
use crate::world::Life;

/// Two servers and one that may join, and any disturbance.
fn control_plane(disturbances: u8) -> Scenario {
    let joins = ServerSetup { life: Life::Absent, ..ServerSetup::SOUND };
    Scenario {
        servers: vec![ServerSetup::SOUND, ServerSetup::SOUND, joins],
        disturbances,
        may: Disturbance::EVERY.to_vec(),
        ..Scenario::default()
    }
}

fn two_etcds(scenario: Scenario) -> Scenario {
    let elsewhere = ValueSetup { etcd: 1, ..ValueSetup::SECRET };
    Scenario { values: vec![ValueSetup::SECRET, elsewhere], second_etcd_given: true, ..scenario }
}

#[test]
fn a_yes_is_true_whatever_three_disturbances_happen_to_two_servers() {
    let scenario = control_plane(3);
    holds(&Scenario { servers: scenario.servers[..2].to_vec(), ..scenario }, true);
}

#[test]
fn a_yes_is_true_with_two_etcds_and_a_server_that_may_join() {
    holds(&two_etcds(control_plane(2)), true);
}

#[test]
fn a_yes_is_true_behind_a_balancer() {
    holds(&Scenario { balancer: true, ..two_etcds(control_plane(1)) }, true);
}

/// No Lease keeps other tools from rotating the KEK between the run's look at it and its own rotation.
fn rotated_by_runs_alone(disturbances: u8) -> Scenario {
    let others = |kind: &Disturbance| matches!(kind, Disturbance::Rotation | Disturbance::Rollback);
    let may = Disturbance::EVERY.into_iter().filter(|kind| !others(kind)).collect();
    Scenario { run_rotates: true, may, ..control_plane(disturbances) }
}

#[test]
fn a_yes_is_true_when_the_run_rotates_the_kek() {
    holds(&rotated_by_runs_alone(2), true);
}

#[test]
fn a_yes_is_true_when_two_runs_are_started() {
    holds(&Scenario { runs: 2, ..rotated_by_runs_alone(2) }, true);
}

/// The Lease keeps two runs from rotating twice. A Yes does not rest on it: each run's claim names what it noted.
#[test]
fn two_runs_without_the_lease_say_nothing_false() {
    let scenario = Scenario { runs: 2, ..control_plane(1) };
    holds(&scenario.without(Protection::LeaseOfOneRun), true);
}

#[test]
#[ignore = "four million states, minutes: to be run when the protocol changes"]
fn a_yes_is_true_whatever_four_disturbances_happen() {
    holds(&two_etcds(control_plane(4)), true);
}

/// The end of what can be seen: neither Lease nor endpoint nor Node nor `--servers` tells of this one.
#[test]
fn a_server_that_nothing_tells_of_is_a_blind_spot() {
    for life in [Life::Up, Life::Down] {
        let unseen = ServerSetup { life, sight: Sight::NONE, ..ServerSetup::SOUND };
        let scenario = Scenario { servers: vec![ServerSetup::SOUND, unseen], ..Scenario::default() };
        counterexample(&scenario, A_YES_IS_TRUE);
    }
}
