//! Which module may use which, as data.

use std::collections::BTreeSet;

use super::{Source, names_after, root, sources};

/// Which modules a module may use. There are no exceptions: what is not listed here is not allowed.
const MAY_USE: &[(&str, &[&str])] = &[
    (
        "commands",
        &[
            "backup",
            "cli",
            "config",
            "crypto",
            "dek",
            "encryption_config",
            "envelope",
            "error_chain",
            "etcd",
            "files",
            "generation",
            "kek",
            "key_id",
            "key_stores",
            "kms",
            "plugin",
            "posture",
            "rehearsal",
            "rotation",
            "shell",
            "telemetry",
        ],
    ),
    ("cli", &["config", "telemetry"]),
    (
        "rehearsal",
        &[
            "backup",
            "config",
            "crypto",
            "dek",
            "encryption_config",
            "envelope",
            "error_chain",
            "etcd",
            "generation",
            "kek",
            "key_id",
            "kms",
            "rotation",
        ],
    ),
    ("posture", &["backup", "encryption_config", "etcd", "rotation"]),
    (
        "plugin",
        &[
            "config",
            "crypto",
            "dek",
            "envelope",
            "error_chain",
            "files",
            "generation",
            "kek",
            "key_id",
            "key_stores",
            "kms",
            "telemetry",
        ],
    ),
    (
        "rotation",
        &[
            "backup",
            "config",
            "crypto",
            "encryption_config",
            "envelope",
            "error_chain",
            "etcd",
            "files",
            "generation",
            "kek",
            "key_id",
            "key_stores",
            "kms",
            "telemetry",
        ],
    ),
    ("backup", &["crypto", "envelope", "etcd", "kek"]),
    ("generation", &["crypto", "envelope", "kek", "key_id"]),
    ("dek", &["crypto", "envelope", "files", "kek", "key_id"]),
    ("etcd", &["crypto", "encryption_config", "envelope", "error_chain", "kek", "key_id"]),
    ("envelope", &["crypto", "kek", "key_id"]),
    ("key_id", &["crypto", "kek"]),
    ("config", &["files", "kek", "key_stores"]),
    ("key_stores", &["crypto", "error_chain", "files", "kek", "shell", "telemetry"]),
    ("kek", &["crypto", "error_chain", "telemetry"]),
    ("crypto", &[]),
    ("kms", &["crypto", "encryption_config"]),
    ("encryption_config", &["files"]),
    ("files", &[]),
    ("error_chain", &[]),
    ("shell", &[]),
    ("telemetry", &[]),
];

/// The top-level modules that a file names, through `crate::` or as many `super::` as lead to the top.
fn uses(source: &Source) -> BTreeSet<String> {
    let to_the_top = vec!["super"; source.module.len()].join("::");
    let mut names = names_after(&source.code, "crate");
    names.extend(names_after(&source.code, &to_the_top));
    names.retain(|name| root().join(format!("src/{name}.rs")).exists() && *name != source.module[0]);
    names
}

fn may_use(module: &str, used: &str) -> bool {
    MAY_USE.iter().any(|(name, below)| *name == module && below.contains(&used))
}

#[test]
fn modules_use_only_what_lies_below_them() {
    let mut wrong = Vec::new();
    let mut seen = 0;
    for source in sources().iter().filter(|source| !matches!(source.name.as_str(), "main.rs" | "lib.rs")) {
        for used in uses(source) {
            seen += 1;
            if !may_use(&source.module[0], &used) {
                wrong.push(format!("{} uses {used}", source.name));
            }
        }
    }
    assert!(seen > 80, "only {seen} uses were found");
    assert!(wrong.is_empty(), "{wrong:#?}");
}

#[test]
fn every_module_has_its_directions_and_none_leads_back() {
    for source in sources().iter().filter(|source| source.module.len() == 1) {
        let module = source.module[0].as_str();
        let listed = MAY_USE.iter().any(|(name, _)| *name == module);
        assert!(listed || matches!(module, "main" | "lib"), "{module} is missing in MAY_USE");
    }
    let mut below: BTreeSet<&str> = BTreeSet::new();
    while below.len() < MAY_USE.len() {
        let ready = MAY_USE.iter().find(|(name, uses)| !below.contains(name) && uses.iter().all(|m| below.contains(m)));
        let (name, _) = ready.expect("MAY_USE names a module that does not exist, or has a cycle");
        below.insert(name);
    }
}

#[test]
fn the_reader_of_uses_sees_every_form() {
    let code =
        "use crate::kek::{Kek, guard};\nuse crate::{config::Config, plugin::{a, b}};\nlet x = crate::dek::new();";
    assert_eq!(names_after(code, "crate"), ["config", "dek", "kek", "plugin"].map(str::to_owned).into());
    assert_eq!(names_after("use super::super::plugin;", "super::super"), ["plugin".to_owned()].into());
    assert!(names_after("use super::super::plugin; mycrate::x", "crate").is_empty());
    assert!(!may_use("plugin", "rotation") && !may_use("rotation", "plugin") && !may_use("kek", "key_stores"));
}
