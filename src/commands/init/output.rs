//! Shows the files as a diff against what is there, and writes them.

use std::fs;
use std::io;
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::path::Path;

use anyhow::{Context, Result};

use super::files::PlannedFile;
use crate::commands::closed_pipe::{print, println};
use crate::files;

/// The longest file whose lines are compared; longer ones are shown whole.
const MAX_LINES: usize = 2000;

/// Prints every file that is not there as it should be; gives the names of those that are there and differ.
pub(super) fn show(root: &Path, planned: &[PlannedFile]) -> Result<Vec<String>> {
    let mut differing = Vec::new();
    for file in planned {
        let path = root.join(&file.path);
        match fs::read_to_string(&path) {
            Ok(text) if text == file.content => println!("{}: already exists", path.display()),
            Ok(text) => {
                differing.push(path.display().to_string());
                println!("{}: differs", path.display());
                print!("{}", diff(&text, &file.content));
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                println!("{}: new", path.display());
                print!("{}", diff("", &file.content));
            }
            Err(error) => return Err(error).with_context(|| format!("cannot read {}", path.display())),
        }
    }
    Ok(differing)
}

/// Writes what is not there as it should be. Folders that are missing are made for root alone.
pub(super) fn write(root: &Path, planned: &[PlannedFile]) -> Result<()> {
    for file in planned {
        let path = root.join(&file.path);
        if fs::read_to_string(&path).is_ok_and(|text| text == file.content) {
            continue;
        }
        let folder = path.parent().unwrap_or(root);
        let mode = if file.is_private { 0o700 } else { 0o755 };
        fs::DirBuilder::new()
            .recursive(true)
            .mode(mode)
            .create(folder)
            .with_context(|| format!("cannot create folder {}", folder.display()))?;
        files::replace(&path, file.content.as_bytes()).with_context(|| format!("cannot write {}", path.display()))?;
        if !file.is_private {
            // `replace` leaves a file of mode 0600; what the kubelet or systemd reads, and what holds no secret, is for
            // all to read.
            fs::set_permissions(&path, fs::Permissions::from_mode(0o644))?;
        }
    }
    Ok(())
}

/// The lines of both, in order: ` ` in both, `-` only in `old`, `+` only in `new`. Keys are not shown.
fn diff(old: &str, new: &str) -> String {
    let (old, new): (Vec<_>, Vec<_>) = (old.lines().collect(), new.lines().collect());
    // The table below has a cell for each pair of lines.
    if old.len() > MAX_LINES || new.len() > MAX_LINES {
        return new.iter().map(|line| mark('+', line)).collect();
    }
    let longest = longest_common(&old, &new);
    let (mut i, mut j, mut text) = (0, 0, String::new());
    while i < old.len() || j < new.len() {
        let both = i < old.len() && j < new.len();
        if both && old[i] == new[j] {
            text.push_str(&mark(' ', old[i]));
            (i, j) = (i + 1, j + 1);
        } else if j == new.len() || (i < old.len() && longest[i + 1][j] >= longest[i][j + 1]) {
            text.push_str(&mark('-', old[i]));
            i += 1;
        } else {
            text.push_str(&mark('+', new[j]));
            j += 1;
        }
    }
    text
}

/// How many lines the rests of both have in common, for each pair of places.
fn longest_common(old: &[&str], new: &[&str]) -> Vec<Vec<u32>> {
    let mut table = vec![vec![0; new.len() + 1]; old.len() + 1];
    for i in (0..old.len()).rev() {
        for j in (0..new.len()).rev() {
            table[i][j] = if old[i] == new[j] { table[i + 1][j + 1] + 1 } else { table[i + 1][j].max(table[i][j + 1]) };
        }
    }
    table
}

/// A key of the former provider must not land on a terminal or in a log.
fn mark(sign: char, line: &str) -> String {
    match line.split_once("secret:") {
        Some((before, value)) if !value.trim().is_empty() => format!("  {sign} {before}secret: (not shown)\n"),
        _ => format!("  {sign} {line}\n"),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn a_diff_holds_both_texts(old in "([a-c]\n){0,8}", new in "([a-c]\n){0,8}") {
            let shown = diff(&old, &new);
            let of = |but: char| shown.lines().filter(|line| line.as_bytes()[2] != but as u8)
                .flat_map(|line| [&line[4..], "\n"]).collect::<String>();
            prop_assert_eq!(of('+'), old);
            prop_assert_eq!(of('-'), new);
        }
    }

    #[test]
    fn a_diff_is_short_and_shows_no_key() {
        assert_eq!(diff("a\nb\nc\n", "a\nc\nd\n"), "    a\n  - b\n    c\n  + d\n");
        assert!(!diff("", "  - secret: c2VjcmV0\n  secret: {}").contains("c2VjcmV0"));
    }
}
