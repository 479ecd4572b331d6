//! No protection is for show: without it the checker finds the false Yes, or the harm, that it protects from; with it
//! the same scenario holds.

use crate::checker::{A_YES_IS_TRUE, REWRITES_STAY_READABLE, ROTATIONS_ARE_NOTED, counterexample, holds};
use crate::protection::Protection;
use crate::scenario::Disturbance::{
    Compaction, Crash, Outage, PluginRestart, Reload, Restore, Rollback, SlowWrite, Stall, Write,
};
use crate::scenario::{Disturbance, Scenario, ServerSetup, Sight, ValueSetup};
use crate::set::Key;
use crate::world::Life;

/// Where a protection is needed.
struct Need {
    scenario: Scenario,
    property: &'static str,
    /// Whether the scenario has a history that ends with a Yes while all protections are in force.
    reaches_yes: bool,
}

#[test]
fn each_protection_is_needed() {
    for (number, protection) in Protection::EVERY.into_iter().enumerate() {
        assert_eq!(protection as usize, number, "EVERY lacks one before {protection:?}");
        println!("\n{protection:?} taken out:");
        let need = need(protection);
        holds(&need.scenario, need.reaches_yes);
        counterexample(&need.scenario.without(protection), need.property);
    }
    assert_eq!(Protection::EVERY.len(), Protection::AdoptionSaved as usize + 1, "the last one comes last");
}

#[test]
fn each_kind_of_server_that_nobody_saw_is_found() {
    for (life, sight) in [
        (Life::Down, Sight { node: true, ..Sight::NONE }),
        (Life::Down, Sight { lease: true, ..Sight::NONE }),
        (Life::Up, Sight { lease: true, clock_agrees: false, ..Sight::NONE }),
        (Life::Up, Sight { node: true, ..Sight::NONE }),
        (Life::Up, Sight { counted: true, ..Sight::NONE }),
    ] {
        let scenario = Scenario { balancer: true, ..beside(ServerSetup { life, sight, ..ServerSetup::SOUND }) };
        holds(&scenario, true);
        counterexample(&scenario.without(Protection::SettledServers), A_YES_IS_TRUE);
    }
}

/// Another generation under the same KEK version takes no version out of use, whoever only looks at `key_id`s.
#[test]
fn a_raised_epoch_lets_no_version_be_disabled() {
    let scenario = Scenario { by_epoch: true, ..disturbed(1, &[Write]) };
    holds(&scenario, false);
    counterexample(&scenario.without(Protection::ClaimsNameKeys), A_YES_IS_TRUE);
}

/// The smallest scenario found in which the protection decides.
fn need(protection: Protection) -> Need {
    let yes = |scenario| Need { scenario, property: A_YES_IS_TRUE, reaches_yes: true };
    let no_yes = |scenario| Need { scenario, property: A_YES_IS_TRUE, reaches_yes: false };
    match protection {
        Protection::ClaimsNameKeys => yes(Scenario::default()),
        Protection::KekAskedAgain => yes(disturbed(1, &[Rollback])),
        Protection::IntentIsInTheJournal => {
            let only_counted = ServerSetup { sight: Sight { counted: true, ..Sight::NONE }, ..ServerSetup::SOUND };
            yes(Scenario { run_rotates: true, disturbances: 1, may: vec![Crash], ..beside(only_counted) })
        }
        Protection::LedgerOfServers => yes(disturbed(3, &[Reload, Write])),
        Protection::SnapshotTakenAgain => yes(of_a_time(&disturbed(3, &[Reload, Write]))),
        Protection::CountersOfOneProcess => yes(disturbed(4, &[Reload, Write, Outage])),
        Protection::SearchAgain => yes(of_a_time(&disturbed(1, &[Restore]))),
        Protection::OldRevisionsSearched => yes(disturbed(2, &[Restore, Write])),
        Protection::CompactionShown => yes(disturbed(0, &[])),
        Protection::SnapshotOfNow => yes(of_a_time(&disturbed(0, &[]))),
        Protection::SnapshotOfEveryEtcd => {
            let elsewhere = ValueSetup { etcd: 1, ..ValueSetup::SECRET };
            yes(of_a_time(&Scenario { second_etcd_given: true, ..with_value(elsewhere) }))
        }
        Protection::SnapshotSearched => yes(disturbed(3, &[Restore, Write, Compaction])),
        Protection::EveryEtcd => no_yes(with_value(ValueSetup { etcd: 1, skipped: true, ..ValueSetup::SECRET })),
        Protection::EveryValue => no_yes(of_a_time(&with_value(ValueSetup { served: false, ..ValueSetup::SECRET }))),
        Protection::SettledServers => {
            let stopped = Sight { node: true, ..Sight::NONE };
            yes(beside(ServerSetup { life: Life::Down, sight: stopped, ..ServerSetup::SOUND }))
        }
        Protection::ReadingTried => {
            let in_clear = with_value(ValueSetup { key: Key::CLEAR, ..ValueSetup::SECRET });
            let scenario = Scenario {
                servers: vec![ServerSetup::SOUND, ServerSetup { reads_everything: false, ..ServerSetup::SOUND }],
                ..in_clear
            };
            Need { property: REWRITES_STAY_READABLE, ..no_yes(scenario) }
        }
        Protection::EveryResourceProven => {
            let narrow = ServerSetup { writes_everything: false, ..ServerSetup::SOUND };
            let scenario = with_value(ValueSetup::SECRET);
            no_yes(Scenario { servers: vec![ServerSetup::SOUND, narrow], ..scenario })
        }
        Protection::CanaryWithdrawn => {
            let without_next = ServerSetup { opens_next: false, ..ServerSetup::SOUND };
            Need { property: REWRITES_STAY_READABLE, ..no_yes(beside(without_next)) }
        }
        Protection::WritesDrained => yes(disturbed(2, &[SlowWrite, Write])),
        Protection::LeaseOfOneRun => {
            let scenario = Scenario { runs: 2, run_rotates: true, ..Scenario::default() };
            Need { property: ROTATIONS_ARE_NOTED, ..yes(scenario) }
        }
        Protection::StandsStill => {
            let stalls = Scenario { disturbances: 1, may: vec![Stall], ..Scenario::default() };
            let scenario = Scenario { runs: 2, run_rotates: true, ..stalls };
            Need { property: ROTATIONS_ARE_NOTED, ..yes(scenario) }
        }
        Protection::EtcdOfThisCluster => no_yes(Scenario { other_clusters_etcd: true, ..disturbed(0, &[]) }),
        Protection::AdoptionSaved => {
            let full = ServerSetup { saves: false, ..ServerSetup::SOUND };
            no_yes(Scenario { disturbances: 1, may: vec![PluginRestart], ..beside(full) })
        }
    }
}

/// The same with a snapshot of which nothing but its time is known.
fn of_a_time(scenario: &Scenario) -> Scenario {
    scenario.without(Protection::SnapshotSearched)
}

/// Two servers, and so many disturbances.
fn disturbed(disturbances: u8, may: &[Disturbance]) -> Scenario {
    Scenario { disturbances, may: may.to_vec(), ..beside(ServerSetup::SOUND) }
}

fn beside(second: ServerSetup) -> Scenario {
    Scenario { servers: vec![ServerSetup::SOUND, second], ..Scenario::default() }
}

/// A Secret, and another value.
fn with_value(second: ValueSetup) -> Scenario {
    Scenario { values: vec![ValueSetup::SECRET, second], ..Scenario::default() }
}
