//! No two files need each other, however long the way around: then each can be read, and moved, without the other.
//!
//! A file needs another one if it names a path into that file's module. A re-export counts as a path: whoever imports
//! from `rotation.rs` what lies in `rotation/run.rs` needs `rotation.rs`, which needs `run.rs`.

use std::collections::{BTreeMap, BTreeSet};

use super::{Source, is_of_name, sources};

/// A file, by its module path.
type Module = Vec<String>;

#[test]
fn no_file_needs_itself_by_way_of_others() {
    let sources = sources();
    let needs = needs(&sources);
    let count: usize = needs.values().map(BTreeSet::len).sum();
    assert!(count > 200, "only {count} needs were found");
    let cycles: Vec<_> = cycles(&needs).iter().map(|cycle| described(cycle, &needs)).collect();
    assert!(cycles.is_empty(), "files that need each other:\n{}", cycles.join("\n"));
}

/// What each file needs, itself left out.
fn needs(sources: &[Source]) -> BTreeMap<Module, BTreeSet<Module>> {
    let modules: BTreeSet<Module> = sources.iter().map(|source| home(&source.module)).collect();
    let needed = |source: &Source| -> BTreeSet<Module> {
        let here = home(&source.module);
        let code = source.code.split("#[cfg(test)]\nmod ").next().unwrap_or_default();
        let code = without_visibility(code);
        let paths = paths(&code).into_iter().filter_map(|path| file_of(&here, &path, &modules));
        paths.filter(|module| *module != here).collect()
    };
    sources.iter().map(|source| (home(&source.module), needed(source))).collect()
}

/// `pub(in path)` says who may need the item, and needs nothing itself.
fn without_visibility(code: &str) -> String {
    let mut parts = code.split("pub(in ");
    let first = parts.next().unwrap_or_default().to_owned();
    parts.fold(first, |text, part| text + part.split_once(')').map_or(part, |(_, rest)| rest))
}

/// The module path of a file; `lib.rs` and `main.rs` are the top.
fn home(module: &[String]) -> Module {
    match module {
        [only] if only == "lib" => Vec::new(),
        _ => module.to_vec(),
    }
}

/// The file that `path`, written in the module `here`, leads into: the deepest module on the way.
fn file_of(here: &[String], path: &[String], modules: &BTreeSet<Module>) -> Option<Module> {
    let supers = path.iter().take_while(|part| *part == "super").count();
    let start: Module = match path.first()?.as_str() {
        "crate" => Vec::new(),
        "super" => here[..here.len().checked_sub(supers)?].to_vec(),
        "self" => here.to_vec(),
        // A child that is named without `self`.
        child if modules.contains(&[here, &[child.to_owned()]].concat()) => here.to_vec(),
        _ => return None,
    };
    let skipped = path.iter().take_while(|part| matches!(part.as_str(), "crate" | "super" | "self")).count();
    let mut at = start;
    for part in &path[skipped..] {
        let deeper = [at.as_slice(), std::slice::from_ref(part)].concat();
        if !modules.contains(&deeper) {
            break;
        }
        at = deeper;
    }
    Some(at)
}

/// Every path in `code`, with the braces of imports multiplied out.
fn paths(code: &str) -> Vec<Vec<String>> {
    let mut found = Vec::new();
    let mut rest = code;
    while let Some(at) = rest.find("::") {
        let first = rest[..at].trim_end_matches(is_of_name).len();
        let (before, name) = (&rest[..first], &rest[first..at]);
        if name.is_empty() || before.ends_with("::") {
            rest = &rest[at + 2..];
            continue;
        }
        let end = tree(&rest[first..], &mut Vec::new(), &mut found);
        rest = &rest[first + end.max(name.len() + 2)..];
    }
    found
}

/// Reads one path or import tree at the beginning of `text`, adds its paths to `found`, and says where it ends.
fn tree(text: &str, prefix: &mut Vec<String>, found: &mut Vec<Vec<String>>) -> usize {
    let depth = prefix.len();
    let mut at = 0;
    loop {
        let name: String = text[at..].chars().take_while(|c| is_of_name(*c)).collect();
        at += name.len();
        if !name.is_empty() {
            prefix.push(name);
        }
        let Some(rest) = text[at..].strip_prefix("::") else { break };
        at += 2;
        if rest.starts_with('{') {
            at += list(&text[at..], prefix, found);
            prefix.truncate(depth);
            return at;
        }
        if rest.starts_with(['<', '*']) {
            break;
        }
    }
    found.push(prefix.clone());
    prefix.truncate(depth);
    at
}

/// Reads the list in braces at the beginning of `text`.
fn list(text: &str, prefix: &mut Vec<String>, found: &mut Vec<Vec<String>>) -> usize {
    let mut at = 1;
    while at < text.len() && !text[at..].starts_with('}') {
        if text[at..].starts_with(is_of_name) {
            at += tree(&text[at..], prefix, found);
            // What follows `as` is not a path.
            at += text[at..].find([',', '}']).unwrap_or(text.len() - at);
        } else {
            at += text[at..].chars().next().map_or(1, char::len_utf8);
        }
    }
    at + 1
}

/// The sets of two or more files each of which leads to all others of the set.
fn cycles(needs: &BTreeMap<Module, BTreeSet<Module>>) -> BTreeSet<BTreeSet<Module>> {
    let reachable = |from: &Module| {
        let (mut seen, mut open) = (BTreeSet::new(), vec![from]);
        while let Some(module) = open.pop() {
            for next in needs.get(module).into_iter().flatten() {
                if seen.insert(next.clone()) {
                    open.push(next);
                }
            }
        }
        seen
    };
    let all: BTreeMap<_, _> = needs.keys().map(|module| (module, reachable(module))).collect();
    let around = |module: &Module| -> BTreeSet<Module> {
        all[module].iter().filter(|other| all.get(other).is_some_and(|back| back.contains(module))).cloned().collect()
    };
    needs.keys().map(around).filter(|cycle| cycle.len() > 1).collect()
}

fn described(cycle: &BTreeSet<Module>, needs: &BTreeMap<Module, BTreeSet<Module>>) -> String {
    let name = |module: &Module| if module.is_empty() { "lib".to_owned() } else { module.join("/") };
    let within = |module: &Module| {
        let needed: Vec<_> = needs[module].intersection(cycle).map(name).collect();
        format!("  {} needs {}", name(module), needed.join(", "))
    };
    format!("{} files:\n{}", cycle.len(), cycle.iter().map(within).collect::<Vec<_>>().join("\n"))
}

#[test]
fn the_reader_of_paths_multiplies_imports_out() {
    let code = "use crate::a::{self, b::{C, d as e}, F};\nlet x = super::g::h(1);\nmod i;\ni::j::<u8>();\nx.iter()";
    let found: Vec<_> = paths(code).iter().map(|path| path.join("::")).collect();
    assert_eq!(found, ["crate::a::self", "crate::a::b::C", "crate::a::b::d", "crate::a::F", "super::g::h", "i::j"]);
}

#[test]
fn a_cycle_is_found_through_a_re_export() {
    let source = |name: &str, code: &str| Source {
        name: format!("{name}.rs"),
        module: name.split('/').map(str::to_owned).collect(),
        code: code.into(),
        lines: 1,
    };
    let user = "use super::Run;\npub struct Used;";
    let sources = [
        source("a", "mod run;\nmod user;\npub use run::Run;"),
        source("a/run", "use super::user::Used;\npub struct Run;"),
        source("a/user", user),
        source("b", "use crate::a::Run;"),
    ];
    let found = cycles(&needs(&sources));
    assert_eq!(found.len(), 1);
    assert_eq!(found.first().unwrap().len(), 3, "{found:?}");
}
