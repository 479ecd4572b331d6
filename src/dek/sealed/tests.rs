//! What is opened when, and what is not.

use std::sync::Arc;

use super::*;
use crate::crypto::seal::dek_id;
use crate::dek::clock::AT_START;
use crate::dek::handover::HeldDek;

const MINUTE: Duration = Duration::from_mins(1);
const HOUR: Duration = Duration::from_hours(1);

fn cluster() -> ClusterName {
    "it".parse().unwrap()
}

fn wall() -> Timestamp {
    "2026-11-28T12:00:00Z".parse().unwrap()
}

fn version(version: &str) -> KekVersion {
    KekVersion { lineage: Lineage::derive("test", &["a"]), version: version.into() }
}

/// A DEK that was unwrapped a quarter of an hour before, on a machine that runs for ten days.
fn handover() -> Handover {
    let (dek, made) = (Arc::new(Dek::generate(&mut rand::rng())), AT_START + 240 * HOUR);
    let held = HeldDek { id: dek_id(&dek), dek, versions: vec![version("1")], wraps: [7; 32] };
    let opened = vec![Vouched { version: version("1"), opened: made.saturating_sub(15 * MINUTE), until: None }];
    Handover { made, cluster: cluster(), epoch: 1, deks: vec![held], opened }
}

fn sealed(handover: &Handover) -> (SealedState, Dek) {
    let key = Dek::generate(&mut rand::rng());
    let id = dek_id(&key);
    let wrapped = WrappedDek { version: version("local"), blob: vec![9; 40] };
    (SealedState::seal(handover, (id, &key), wrapped, wall()), key)
}

/// One that may be used for an hour after the unwrap.
fn for_an_hour() -> (SealedState, Dek) {
    sealed(&ending(handover(), HOUR).unwrap())
}

/// The machine was started again, and runs for a minute, so long after the state was sealed.
fn later(by: Duration) -> Moment {
    Moment { wall: wall() + by, clock: AT_START + MINUTE }
}

#[test]
fn after_a_reboot_each_time_is_where_it_was_by_the_time_of_day() {
    let (state, key) = for_an_hour();
    let opened = state.open(&key, &cluster(), later(10 * MINUTE)).unwrap();
    let now = AT_START + MINUTE;
    let expected =
        Vouched { version: version("1"), opened: now.saturating_sub(25 * MINUTE), until: Some(now + 35 * MINUTE) };
    assert_eq!(opened.opened, [expected]);
    assert_eq!(opened.deks[0].id, dek_id(&opened.deks[0].dek));
}

#[test]
fn it_is_over_when_it_was_said_to_be_and_not_when_the_configuration_says() {
    let (state, key) = for_an_hour();
    assert!(state.open(&key, &cluster(), later(44 * MINUTE)).is_ok());
    for over in [45 * MINUTE, 24 * HOUR, 10_000 * HOUR] {
        assert_eq!(state.open(&key, &cluster(), later(over)).unwrap_err(), SealedError::Over, "{over:?}");
    }
}

#[test]
fn a_clock_that_was_turned_back_is_not_believed() {
    let (state, key) = for_an_hour();
    for back in [2 * MINUTE, 24 * HOUR] {
        let now = Moment { wall: wall() - back, clock: AT_START + MINUTE };
        assert_eq!(state.open(&key, &cluster(), now).unwrap_err(), SealedError::ClockIsBehind(wall()));
    }
    // One that was corrected makes nothing younger.
    let now = Moment { wall: wall() - MINUTE / 2, clock: AT_START + MINUTE };
    let opened = state.open(&key, &cluster(), now).unwrap();
    assert_eq!(opened.opened[0].until, Some(now.clock + 45 * MINUTE));
}

#[test]
fn taken_up_and_sealed_again_it_ends_at_the_same_moment_and_an_older_copy_not_later() {
    let (older, older_key) = for_an_hour();
    let taken = older.open(&older_key, &cluster(), later(10 * MINUTE)).unwrap();
    // Half an hour later, by another configuration.
    let again = Handover { made: taken.made + 40 * MINUTE, ..taken };
    let again = ending(again, 24 * HOUR).unwrap();
    let key = Dek::generate(&mut rand::rng());
    let wrapped = WrappedDek { version: version("local"), blob: vec![9; 40] };
    let newer = SealedState::seal(&again, (dek_id(&key), &key), wrapped, wall() + 40 * MINUTE);
    let end = |opened: Handover| opened.opened[0].until;
    let now = later(42 * MINUTE);
    let ends = [older.open(&older_key, &cluster(), now).unwrap(), newer.open(&key, &cluster(), now).unwrap()].map(end);
    assert_eq!(ends, [Some(now.clock + 3 * MINUTE); 2]);
    // The newer one does not believe a clock that the older one does.
    assert!(older.open(&older_key, &cluster(), later(10 * MINUTE)).is_ok());
    assert!(newer.open(&key, &cluster(), later(10 * MINUTE)).is_err());
}

#[test]
fn nothing_is_sealed_of_which_nothing_may_be_used() {
    assert!(ending(handover(), 15 * MINUTE).is_none());
    let mut two = handover();
    two.opened.push(Vouched {
        version: version("2"),
        opened: two.made.saturating_sub(MINUTE),
        until: Some(two.made + MINUTE),
    });
    let ended = ending(two, 10 * MINUTE);
    assert!(ended.is_none(), "what still counts wraps no DEK");
}

#[test]
fn another_cluster_or_epoch_is_refused_before_a_kek_is_asked() {
    let bytes = for_an_hour().0.encode();
    let other: ClusterName = "other".parse().unwrap();
    for (cluster, epoch) in [(&other, 1), (&cluster(), 2)] {
        let refused = SealedState::decode(&bytes, cluster, epoch).unwrap_err();
        assert_eq!(refused, HandoverError::OtherUse { cluster: "it".into(), epoch: 1 }.into());
    }
}

#[test]
fn every_changed_byte_and_another_key_are_refused() {
    let (state, key) = for_an_hour();
    let bytes = state.encode();
    assert_eq!(SealedState::decode(&bytes, &cluster(), 1).unwrap(), state);
    assert_eq!(
        state.open(&Dek::generate(&mut rand::rng()), &cluster(), later(MINUTE)).unwrap_err(),
        SealedError::Changed
    );
    for at in 0..bytes.len() {
        let mut changed = bytes.clone();
        changed[at] ^= 1;
        for bytes in [&changed[..], &bytes[..at]] {
            let read = SealedState::decode(bytes, &cluster(), 1);
            let opened = read.and_then(|state| state.open(&key, &cluster(), later(MINUTE)));
            assert!(opened.is_err(), "byte {at}");
        }
    }
}

#[test]
fn nothing_of_the_dek_is_in_the_bytes() {
    let handover = ending(handover(), HOUR).unwrap();
    let (state, key) = sealed(&handover);
    let bytes = state.encode();
    for secret in [handover.deks[0].dek.expose(), key.expose()] {
        assert!(!bytes.windows(8).any(|part| part == &secret[..8]));
    }
}
