//! The counterexamples to the simpler procedures, as `docs/rotation.md` tells them.

use crate::checker::{A_YES_IS_TRUE, counterexample};
use crate::protection::Protection;
use crate::scenario::{Disturbance, Procedure, Scenario, ServerSetup};
use crate::world::Life;

fn two_servers(procedure: Procedure) -> Scenario {
    Scenario { procedure, servers: vec![ServerSetup::SOUND; 2], ..Scenario::default() }
}

/// Every line of the shortest counterexample stands in the document, in this order, as one numbered list.
fn is_told(scenario: &Scenario) {
    let document = concat!(env!("CARGO_MANIFEST_DIR"), "/docs/rotation.md");
    let document = std::fs::read_to_string(document).unwrap();
    let told = counterexample(scenario, A_YES_IS_TRUE);
    let list: Vec<_> = told.iter().enumerate().map(|(number, line)| format!("{}. {line}\n", number + 1)).collect();
    let list = list.concat();
    assert!(document.contains(&list), "docs/rotation.md does not hold:\n{list}");
}

#[test]
fn the_replace_loop_leaves_a_value_under_the_former_version() {
    let adopted_by_the_first =
        Scenario { first_has_adopted: true, balancer: true, ..two_servers(Procedure::ReplaceLoop) };
    is_told(&adopted_by_the_first);
}

#[test]
fn a_storage_migration_succeeds_although_a_value_is_under_the_former_version() {
    let scenario = two_servers(Procedure::StorageMigration);
    is_told(&Scenario { disturbances: 1, may: vec![Disturbance::Write], ..scenario });
}

#[test]
fn the_procedure_of_the_first_version_takes_the_former_version_for_the_target() {
    let scenario = Scenario { missing: Protection::EVERY.to_vec(), ..Scenario::default() };
    is_told(&scenario);
}

#[test]
fn a_stopped_server_that_nobody_asks_for_returns_with_the_former_version() {
    let stopped = ServerSetup { life: Life::Down, ..ServerSetup::SOUND };
    let scenario = Scenario {
        servers: vec![ServerSetup::SOUND, stopped],
        first_has_adopted: true,
        missing: vec![Protection::SettledServers],
        ..Scenario::default()
    };
    is_told(&scenario);
}
