//! README and `docs/`: every command of this program that they show is one that it understands, and every file and
//! heading that they link to is there.

use std::fs;
use std::path::{Path, PathBuf};

use clap::Parser;
use kube_envelope::cli::Cli;

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn documents() -> Vec<(PathBuf, String)> {
    let mut found = vec![root().join("README.md"), root().join("SECURITY.md")];
    let mut folders = vec![root().join("docs")];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).unwrap() {
            let at = entry.unwrap().path();
            if at.is_dir() {
                folders.push(at);
            } else if at.extension().is_some_and(|extension| extension == "md") {
                found.push(at);
            }
        }
    }
    found.into_iter().map(|file| (file.clone(), fs::read_to_string(file).unwrap())).collect()
}

/// The lines of `sh` blocks, those that end with a backslash joined with the next, without comments.
fn commands(text: &str) -> Vec<String> {
    let mut lines = Vec::new();
    let mut is_shell = false;
    for line in text.replace("\\\n", " ").lines().map(str::trim) {
        if let Some(language) = line.strip_prefix("```") {
            is_shell = matches!(language, "sh" | "bash");
        } else if is_shell {
            lines.push(line.split(" #").next().unwrap_or_default().trim().to_owned());
        }
    }
    lines
}

/// The calls of this program in a line: by itself, under sudo, before or after `&&`, `|` and `;`.
fn calls(line: &str) -> Vec<Vec<String>> {
    let parts = line.split("&&").flat_map(|part| part.split([';', '|']));
    let words = parts.map(|part| part.split_whitespace().map(unquoted).collect::<Vec<_>>());
    words
        .filter_map(|words| {
            let at = words.iter().position(|word| word == "kube-envelope" || word == "cargo")?;
            let before_are_plain = words[..at].iter().all(|word| word == "sudo" || word.contains('='));
            match words[at].as_str() {
                "kube-envelope" if before_are_plain => Some(words[at..].to_vec()),
                // cargo run -- ARGUMENTS
                "cargo" if words.get(at + 1).is_some_and(|word| word == "run") => {
                    let rest = words.iter().skip_while(|word| *word != "--").skip(1).cloned();
                    Some(std::iter::once("kube-envelope".to_owned()).chain(rest).collect())
                }
                _ => None,
            }
        })
        .collect()
}

fn unquoted(word: &str) -> String {
    word.trim_matches(['"', '\'']).to_owned()
}

/// The picture is a run's; where the program has changed since, `scripts/demo-picture` draws it again.
#[test]
fn every_command_in_the_picture_of_the_demo_is_understood() {
    let picture = fs::read_to_string(root().join("docs/demo.svg")).unwrap();
    let shown = picture.lines().filter_map(|line| line.split_once(">$ kube-envelope ")?.1.strip_suffix("</text>"));
    let mut seen = 0;
    for line in shown {
        seen += 1;
        let words = std::iter::once("kube-envelope").chain(line.split(' ').filter(|word| *word != "…"));
        Cli::try_parse_from(words).unwrap_or_else(|error| panic!("{line}\n{error}"));
    }
    assert!(seen > 5, "{seen} commands");
}

#[test]
fn every_command_that_is_shown_is_understood() {
    let mut seen = 0;
    for (file, text) in documents() {
        for line in commands(&text) {
            for words in calls(&line) {
                seen += 1;
                // An ellipsis stands for the arguments of the command before; a redirection is the shell's.
                let is_shells = |word: &&String| word.contains('>') || word.as_str() == "…";
                let words: Vec<_> = words.iter().filter(|word| !is_shells(word)).collect();
                Cli::try_parse_from(&words).unwrap_or_else(|error| panic!("{}: {line}\n{error}", file.display()));
            }
        }
    }
    assert!(seen >= 20, "{seen}");
}

#[test]
fn every_link_leads_to_something() {
    let mut seen = 0;
    for (file, text) in documents() {
        for (at, _) in text.match_indices("](") {
            let target: String = text[at + 2..].chars().take_while(|c| *c != ')').collect();
            if target.contains("://") || target.starts_with("mailto:") {
                continue;
            }
            seen += 1;
            let (path, heading) = target.split_once('#').unwrap_or((&target, ""));
            let to = if path.is_empty() { file.clone() } else { file.parent().unwrap().join(path) };
            assert!(to.exists(), "{} links to {target}, which is not there", file.display());
            if !heading.is_empty() {
                let text = fs::read_to_string(&to).unwrap();
                let known: Vec<_> = text.lines().filter(|line| line.starts_with('#')).map(anchor).collect();
                assert!(
                    known.contains(&heading.to_owned()),
                    "{} links to {target}; headings: {known:?}",
                    file.display()
                );
            }
        }
    }
    assert!(seen >= 15, "{seen}");
}

/// How a forge names a heading.
fn anchor(heading: &str) -> String {
    let text = heading.trim_start_matches('#').trim().to_lowercase();
    let kept = text.chars().filter(|c| c.is_alphanumeric() || matches!(c, ' ' | '-' | '_'));
    kept.map(|c| if c == ' ' { '-' } else { c }).collect()
}
