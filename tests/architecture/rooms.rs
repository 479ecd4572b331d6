//! The rooms of `src/rotation/`: arrows between them only go down.

use std::collections::BTreeSet;

use super::{Source, names_after, root, sources};

/// Which rooms a room may use, from the bottom up: each may use those above it in this list, and no other.
const FROM_THE_BOTTOM: &[&str] = &[
    "error",
    "cluster",
    "claim",
    "keys",
    "leftovers",
    "rewrite",
    "rewrap",
    "adoption",
    "journal",
    "event",
    "conclusion",
    "shards",
    "run",
    "watch",
];

/// The rooms that a file names, by the way from the top or by as many `super::` as lead to `rotation`.
fn rooms_used(source: &Source) -> BTreeSet<String> {
    let to_rotation = vec!["super"; source.module.len() - 1].join("::");
    let mut used = names_after(&source.code, "crate::rotation");
    used.extend(names_after(&source.code, &to_rotation));
    used.retain(|name| FROM_THE_BOTTOM.contains(&name.as_str()) && *name != source.module[1]);
    used
}

#[test]
fn rooms_of_the_rotation_use_only_what_lies_below_them() {
    let height = |room: &str| FROM_THE_BOTTOM.iter().position(|name| *name == room);
    let mut wrong = Vec::new();
    let mut seen = 0;
    for source in sources().iter().filter(|source| source.module[0] == "rotation" && source.module.len() > 1) {
        let room = source.module[1].as_str();
        assert!(height(room).is_some(), "rotation/{room} is missing in FROM_THE_BOTTOM");
        for used in rooms_used(source) {
            seen += 1;
            if height(&used) > height(room) {
                wrong.push(format!("{} uses {used}", source.name));
            }
        }
    }
    assert!(seen > 60, "only {seen} uses were found");
    assert!(wrong.is_empty(), "{wrong:#?}");
}

#[test]
fn every_room_of_the_list_exists() {
    for room in FROM_THE_BOTTOM {
        assert!(root().join(format!("src/rotation/{room}.rs")).exists(), "{room}");
    }
}
