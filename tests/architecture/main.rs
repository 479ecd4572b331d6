//! The shape of the source, as data: which module may use which, what no file may hold, and where things lie.
#![allow(clippy::unwrap_used, missing_docs)]

mod cycles;
mod directions;
mod numbers;
mod random;
mod rooms;

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

/// Files of `src/key_stores/` that are not a kind but serve several of them.
const SHARED_BY_KEY_STORES: &[&str] = &["shared"];

/// Names that say nothing.
const FORBIDDEN_NAMES: &[&str] = &["utils", "helpers", "common", "types", "manager", "handler", "misc", "core"];

const MAX_LINES: usize = 400;

/// How many items, methods included, a module shows to every other one. What few use is `pub(super)` or `pub(crate)`.
const MAX_PUBLIC_ITEMS: usize = 15;

/// Modules that show more, each with the reason.
const WITH_MORE_PUBLIC_ITEMS: &[(&str, &str)] = &[
    ("envelope.rs", "the whole stored format is in one file: what must never change is seen at one place"),
    ("kek.rs", "the whole contract between KEKs and those who use them"),
    ("key_stores.rs", "the one registry: a new kind of KEK touches no other file outside its folder"),
    ("lib.rs", "the modules of the crate"),
];

/// What may lie at the top; beside these, what git ignores.
const TOP_LEVEL: &[&str] = &[
    ".cargo",
    ".clippy.toml",
    ".ci",
    ".config",
    ".git",
    ".github",
    ".gitignore",
    ".rustfmt.toml",
    "CHANGELOG.md",
    "Cargo.lock",
    "Cargo.toml",
    "LICENSE",
    "README.md",
    "SECURITY.md",
    "build.rs",
    "docs",
    "fuzz",
    "manifests",
    "proto",
    "rust-toolchain.toml",
    "scripts",
    "src",
    "target",
    "tests",
];

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// A source file: its place below `src/`, its module path, and its text without comments.
struct Source {
    name: String,
    module: Vec<String>,
    code: String,
    lines: usize,
}

fn sources() -> Vec<Source> {
    let mut files = Vec::new();
    collect(&root().join("src"), &mut files);
    assert!(files.len() > 30, "{} files", files.len());
    files
        .iter()
        .map(|file| {
            let name = file.strip_prefix(root().join("src")).unwrap().to_str().unwrap().to_owned();
            let module = name.trim_end_matches(".rs").split('/').map(str::to_owned).collect();
            let text = std::fs::read_to_string(file).unwrap();
            let code = text.lines().map(without_comment).collect::<Vec<_>>().join("\n");
            Source { name, module, code, lines: text.lines().count() }
        })
        .collect()
}

fn collect(folder: &Path, files: &mut Vec<PathBuf>) {
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            collect(&path, files);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            files.push(path);
        }
    }
}

fn without_comment(line: &str) -> &str {
    if line.trim_start().starts_with("//") { "" } else { line.split(" // ").next().unwrap() }
}

/// The names that follow `prefix` in `code`: `prefix::a`, and `prefix::{a::…, b}`.
fn names_after(code: &str, prefix: &str) -> BTreeSet<String> {
    let mut names = BTreeSet::new();
    let needle = format!("{prefix}::");
    for (at, _) in code.match_indices(&needle) {
        if code[..at].ends_with(|c: char| is_of_name(c) || c == ':') {
            continue;
        }
        let rest = &code[at + needle.len()..];
        match rest.strip_prefix('{') {
            None => {
                names.insert(rest.chars().take_while(|c| is_of_name(*c)).collect());
            }
            Some(list) => names.extend(first_names_of(list)),
        }
    }
    names
}

/// The first name of each item of a list that ends with the brace that matches the one before it.
fn first_names_of(list: &str) -> Vec<String> {
    let (mut depth, mut item, mut names) = (0, String::new(), Vec::new());
    for c in list.chars() {
        match c {
            '{' => depth += 1,
            '}' if depth == 0 => break,
            '}' => depth -= 1,
            ',' if depth == 0 => names.push(std::mem::take(&mut item)),
            _ => item.push(c),
        }
    }
    names.push(item);
    names.iter().map(|item| item.trim().chars().take_while(|c| is_of_name(*c)).collect()).collect()
}

fn is_of_name(c: char) -> bool {
    c.is_alphanumeric() || c == '_'
}

#[test]
fn key_stores_do_not_know_each_other() {
    let sources = sources();
    let kinds: BTreeSet<&str> = sources
        .iter()
        .filter(|source| source.module[0] == "key_stores" && source.module.len() == 2)
        .map(|source| source.module[1].as_str())
        .filter(|kind| !SHARED_BY_KEY_STORES.contains(kind))
        .collect();
    assert!(kinds.contains("keyring") && kinds.len() > 3, "{kinds:?}");
    for source in sources.iter().filter(|source| source.module[0] == "key_stores" && source.module.len() >= 2) {
        let to_the_registry = vec!["super"; source.module.len() - 1].join("::");
        let mut used = names_after(&source.code, "crate::key_stores");
        used.extend(names_after(&source.code, &to_the_registry));
        let others: Vec<_> =
            used.iter().filter(|used| **used != source.module[1] && kinds.contains(used.as_str())).collect();
        assert!(others.is_empty(), "{} knows {others:?}", source.name);
    }
}

/// A new kind touches `Cargo.toml`, `src/key_stores.rs` and its own folder.
#[test]
fn only_the_registry_names_a_key_store() {
    let kinds = ["aws", "azure", "gcp", "pkcs11", "transit"];
    for source in sources().iter().filter(|source| source.module[0] != "key_stores") {
        let named: Vec<_> = names_after(&source.code, "key_stores")
            .into_iter()
            .chain(names_after(&source.code, "crate::key_stores"))
            .filter(|name| kinds.contains(&name.as_str()))
            .collect();
        assert!(named.is_empty(), "{} names {named:?}", source.name);
        for kind in kinds {
            assert!(!source.code.contains(&format!("feature = \"{kind}\"")), "{} asks for {kind}", source.name);
        }
    }
}

#[test]
fn only_crypto_names_a_cipher_crate() {
    let ciphers =
        ["aes", "aes_gcm", "cbc", "hkdf", "chacha20poly1305", "poly1305", "ring", "openssl", "salsa20", "aws_lc_rs"];
    for source in sources() {
        for cipher in ciphers {
            let named = !names_after(&source.code, cipher).is_empty();
            let may = ["crypto/recipient.rs", "crypto/seal.rs", "crypto/signature.rs", "crypto/storage.rs"]
                .contains(&source.name.as_str());
            assert!(!named || may, "{} names {cipher}", source.name);
        }
    }
}

#[test]
fn only_main_ends_the_process() {
    for source in sources() {
        for end in ["process::exit", "process::abort", "exit_group"] {
            assert!(!source.code.contains(end), "{} has {end}; return an exit code", source.name);
        }
    }
}

#[test]
fn only_commands_print() {
    for source in sources().iter().filter(|source| source.module[0] != "commands" && source.name != "main.rs") {
        for print in ["println!", "print!(", "dbg!("] {
            assert!(!source.code.contains(print), "{} has {print}; commands print, modules log", source.name);
        }
    }
}

/// A debug form is for whoever has the source: logs are for operators.
#[test]
fn logs_hold_no_debug_forms() {
    for source in sources() {
        for event in ["trace!(", "debug!(", "info!(", "warn!(", "error!("] {
            for (at, _) in source.code.match_indices(event) {
                let rest = &source.code[at + event.len()..];
                let call = &rest[..rest.find(';').unwrap_or(rest.len())];
                // `?name`, `name = ?name` and `"{name:?}"`; not `f()?`.
                let is_debug =
                    call.starts_with('?') || [", ?", "= ?", "(?", ":?}"].iter().any(|form| call.contains(form));
                assert!(!is_debug, "{}: {event}{call}", source.name);
            }
        }
    }
}

#[test]
fn files_have_names_that_say_something_and_a_size_that_can_be_read() {
    for source in sources() {
        for name in &source.module {
            assert!(!FORBIDDEN_NAMES.contains(&name.as_str()), "{}", source.name);
            assert!(name != "mod", "{}: name the file after the module", source.name);
        }
        assert!(source.lines <= MAX_LINES, "{} has {} lines", source.name, source.lines);
    }
    let mut tests = Vec::new();
    collect(&root().join("tests"), &mut tests);
    for file in &tests {
        let lines = std::fs::read_to_string(file).unwrap().lines().count();
        assert!(lines <= MAX_LINES, "{} has {lines} lines", file.display());
    }
    let support = root().join("tests/support/mod.rs");
    let unwanted: Vec<_> = tests.iter().filter(|file| file.ends_with("mod.rs") && **file != support).collect();
    assert!(unwanted.is_empty(), "{unwanted:?}");
}

/// How many lines of `code` begin a bare `pub` item; fields do not count.
fn public_items(code: &str) -> usize {
    const ITEMS: &[&str] =
        &["fn", "async", "const", "static", "struct", "enum", "trait", "type", "mod", "use", "unsafe", "union"];
    let code = code.split("#[cfg(test)]\nmod ").next().unwrap_or_default();
    let items = code.lines().filter_map(|line| line.trim_start().strip_prefix("pub "));
    items.filter(|rest| rest.split(' ').next().is_some_and(|word| ITEMS.contains(&word))).count()
}

#[test]
fn modules_show_few_items() {
    let sources = sources();
    for source in &sources {
        let (count, listed) =
            (public_items(&source.code), WITH_MORE_PUBLIC_ITEMS.iter().find(|(name, _)| *name == source.name));
        assert!(
            count <= MAX_PUBLIC_ITEMS || listed.is_some(),
            "{} shows {count} items: make those that few use pub(super) or pub(crate), or divide it",
            source.name
        );
        assert!(count > MAX_PUBLIC_ITEMS || listed.is_none(), "{} needs no exception", source.name);
    }
    for (name, _) in WITH_MORE_PUBLIC_ITEMS {
        assert!(sources.iter().any(|source| source.name == *name), "{name}");
    }
}

#[test]
fn public_items_are_counted_without_fields_and_tests() {
    let code = "pub mod a;\npub struct B {\n    pub field: u8,\n}\nimpl B {\n    pub async fn c() {}\n    pub(crate) fn d() {}\n}\n\
                #[cfg(test)]\nmod tests {\n    pub fn e() {}\n}";
    assert_eq!(public_items(code), 3);
}

#[test]
fn every_file_begins_with_what_it_owns() {
    for source in sources() {
        let text = std::fs::read_to_string(root().join("src").join(&source.name)).unwrap();
        assert!(text.starts_with("//! "), "{} says nothing about itself", source.name);
    }
}

/// A threat that is called mitigated has a test, and it is there.
#[test]
fn the_tests_that_the_threat_model_names_exist() {
    let text = std::fs::read_to_string(root().join("SECURITY.md")).unwrap();
    let mut files = Vec::new();
    collect(&root().join("tests"), &mut files);
    collect(&root().join("src"), &mut files);
    let code: String = files.iter().map(|file| std::fs::read_to_string(file).unwrap()).collect();
    let names: Vec<_> = text.split('`').skip(1).step_by(2).filter(|name| name.matches('_').count() > 3).collect();
    assert!(names.len() >= 8, "{names:?}");
    for name in names.iter().filter(|name| name.chars().all(is_of_name)) {
        assert!(code.contains(&format!("fn {name}(")), "{name} is no test");
    }
    let paths = text.split(|c: char| !is_of_name(c) && !"/.-".contains(c)).filter(|word| word.starts_with("tests/"));
    for path in paths {
        assert!(root().join(path.trim_end_matches('.')).exists(), "{path} does not exist");
    }
}

/// Each cell of the README's outage table has tests, or none of the three things happens to the plugin there.
#[test]
fn every_cell_of_the_outage_table_names_its_tests() {
    let rows = |file: &str, after: &str| -> Vec<Vec<String>> {
        let text = std::fs::read_to_string(root().join(file)).unwrap();
        let table = text.split_once(after).unwrap().1.lines().skip_while(|line| !line.starts_with("|---"));
        let rows = table.skip(1).take_while(|line| line.starts_with('|'));
        rows.map(|row| row.trim_matches('|').split('|').map(|cell| cell.trim().to_owned()).collect()).collect()
    };
    let (promised, shown) = (rows("README.md", "(SECURITY.md#outages)"), rows("SECURITY.md", "## Outages"));
    assert_eq!(promised.len(), shown.len());
    for (promise, tests) in promised.iter().zip(&shown) {
        assert_eq!((promise.len(), tests.len()), (4, 4), "{promise:?}");
        let words = |row: &str| row.split([' ', ',']).map(str::to_owned).collect::<std::collections::BTreeSet<_>>();
        assert!(
            words(&promise[0]).intersection(&words(&tests[0])).count() >= 2.min(words(&tests[0]).len()),
            "{tests:?}"
        );
        for (cell, shown) in promise.iter().zip(tests).skip(1) {
            let is_told = ["the same", "no part in it", "read at a start only"].contains(&shown.as_str());
            assert!(cell.is_empty() || is_told || shown.contains('`'), "no test for {cell:?} of {:?}", promise[0]);
        }
        assert_ne!(tests[1], "the same", "as what?");
    }
}

#[test]
fn the_top_level_holds_only_what_belongs_there() {
    for entry in std::fs::read_dir(root()).unwrap() {
        let name = entry.unwrap().file_name().into_string().unwrap();
        assert!(TOP_LEVEL.contains(&name.as_str()), "{name}: tool files go into .cargo, .config, .ci or .github");
    }
}
