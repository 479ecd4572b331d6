//! What a YAML error is called: place, field and fix, for people who never saw this program's source.

use serde_saphyr::{Error, MessageFormatter, UserMessageFormatter};

/// `line:column: field: problem; fix`, as far as the error tells.
pub fn describe(text: &str, error: &Error) -> String {
    let error = error.without_snippet();
    let place = error.location().map(|at| (at.line(), at.column()));
    let parent = |at: (u64, u64)| path(text, at, false);
    let value = |at: (u64, u64)| path(text, at, true);
    let (field, problem) = match error {
        Error::SerdeUnknownField { field, expected, .. } => {
            (place.map(|at| join(parent(at), field)), format!("unknown field; expected one of {}", expected.join(", ")))
        }
        Error::SerdeMissingField { field, .. } => {
            (place.map(|at| join(parent(at), field)), "is missing; add it".to_owned())
        }
        Error::DuplicateMappingKey { key, .. } => (
            place.map(|at| join(parent(at), key.as_deref().unwrap_or_default())),
            "is defined twice; remove one".to_owned(),
        ),
        Error::InvalidScalar { ty, .. } => (place.map(value), format!("must be {}", in_words(ty))),
        Error::Unexpected { expected, .. } => (place.map(value), format!("must be {}", in_words(expected))),
        Error::SerdeUnknownVariant { variant, expected, .. } => {
            (place.map(value), format!("{variant:?} is unknown; expected one of {}", expected.join(", ")))
        }
        Error::NullIntoString { .. } => {
            (place.map(value), "has no value; write one, quoted where it is the word null".to_owned())
        }
        Error::Eof { .. } => (None, "the file ends before a configuration begins".to_owned()),
        other => (None, UserMessageFormatter.format_message(other).into_owned()),
    };
    let place = place.map(|(line, column)| format!("{line}:{column}: ")).unwrap_or_default();
    let field = field.filter(|field| !field.is_empty()).map(|field| format!("{field}: ")).unwrap_or_default();
    format!("{place}{field}{problem}")
}

/// Where the value of `field`, a path of keys, begins; searched from the place of the item that holds it. The item's own
/// place where the text does not show it.
pub fn place_of(text: &str, item: (u64, u64), field: &str) -> (u64, u64) {
    let lines: Vec<&str> = text.lines().collect();
    let at = |number: u64| usize::try_from(number.saturating_sub(1)).unwrap_or(usize::MAX);
    let (mut line, mut from) = (at(item.0), at(item.1));
    for key in field.split('.').filter(|key| !key.is_empty()) {
        let found = lines.iter().enumerate().skip(line).find_map(|(number, content)| {
            let start = if number == line { from } else { 0 };
            Some((number, start + value_after(content.get(start..)?, key)?))
        });
        let Some((number, column)) = found else { return item };
        (line, from) = (number, column);
    }
    let number = |index: usize| u64::try_from(index).map_or(u64::MAX, |index| index + 1);
    if field.is_empty() { item } else { (number(line), number(from)) }
}

/// The offset of what follows `key:` in a line.
fn value_after(line: &str, key: &str) -> Option<usize> {
    let whole = |at: &usize| !line[..*at].ends_with(|c: char| c.is_alphanumeric() || c == '_');
    let at = line.match_indices(&format!("{key}:")).map(|(at, _)| at).find(whole)? + key.len() + 1;
    Some(at + line[at..].len() - line[at..].trim_start().len())
}

fn in_words(expected: &str) -> &str {
    match expected {
        "u8" | "u16" | "u32" | "u64" => "a whole number, not negative",
        "string scalar" => "a string; quote it where it has special characters",
        "mapping start" => "a table of fields (name: value)",
        "sequence start" => "a list (- item)",
        other => other,
    }
}

fn join(mut parent: String, field: &str) -> String {
    if !parent.is_empty() && !field.is_empty() {
        parent.push('.');
    }
    parent + field
}

/// The keys that lead to a place, read off the text: those with less indentation above it, and those before it in
/// its line. Good for block style and one-line tables, which is all that a message needs.
fn path(text: &str, (line, column): (u64, u64), whole_line: bool) -> String {
    let lines: Vec<&str> = text.lines().collect();
    let at = |number: u64| usize::try_from(number.saturating_sub(1)).unwrap_or(usize::MAX);
    let Some(here) = lines.get(at(line)) else { return String::new() };
    let before: String = here.chars().take(at(column + 1)).collect();
    let mut keys = keys_of(&before);
    if !whole_line && !before.contains('{') {
        keys.clear();
    }
    let mut indent = indent_of(here);
    for above in lines[..at(line)].iter().rev() {
        let content = above.trim();
        if content.is_empty() || content.starts_with('#') || indent_of(above) >= indent {
            continue;
        }
        indent = indent_of(above);
        // A sibling inside a list's item has the item's own indentation; only what opens a block leads here.
        if content.ends_with(':') {
            keys.splice(..0, keys_of(above));
        }
    }
    keys.join(".")
}

/// The words directly before a colon that ends a key, outside quotes.
fn keys_of(line: &str) -> Vec<String> {
    let mut keys = Vec::new();
    let mut word = String::new();
    let mut quoted = false;
    let mut rest = line.chars().peekable();
    while let Some(c) = rest.next() {
        match c {
            '"' | '\'' => quoted = !quoted,
            _ if quoted => {}
            ':' if !word.is_empty() && rest.peek().is_none_or(|next| *next == ' ') => {
                keys.push(std::mem::take(&mut word));
            }
            c if c.is_alphanumeric() => word.push(c),
            '#' => break,
            '}' | ',' => {
                word.clear();
                keys.pop();
            }
            _ => word.clear(),
        }
    }
    keys
}

/// Columns before the first field, the dash of a list's item included.
fn indent_of(line: &str) -> usize {
    line.len() - line.trim_start_matches([' ', '-']).len()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_place_of_a_value_is_found_by_its_path() {
        let text = "keks:\n  - name: a\n    transit:\n      addresses: [x]\n      auth: {tokenFile: t}\n  - {name: b, keyring: {file: y}}\n";
        assert_eq!(place_of(text, (2, 5), "transit.addresses"), (4, 18));
        assert_eq!(place_of(text, (2, 5), "transit.auth.tokenFile"), (5, 25));
        assert_eq!(place_of(text, (6, 5), "keyring.file"), (6, 31));
        assert_eq!(place_of(text, (2, 5), ""), (2, 5));
        assert_eq!(place_of(text, (2, 5), "transit.key"), (2, 5), "a field that is not written");
    }

    #[test]
    fn the_path_of_a_place_is_read_off_the_text() {
        let text = "cluster: c\nhealth:\n  listen: [1]\nkeks:\n  - name: a\n    keyring: {file: x, mode: 3}\n";
        assert_eq!(path(text, (1, 10), true), "cluster");
        assert_eq!(path(text, (3, 11), true), "health.listen");
        assert_eq!(path(text, (6, 24), false), "keks.keyring");
        assert_eq!(path(text, (6, 30), true), "keks.keyring.mode");
        assert_eq!(path(text, (5, 5), false), "keks");
        assert_eq!(path("health: {listen: \"127.0.0.1:1\", foo: 2}", (1, 33), false), "health");
        assert_eq!(path(text, (99, 1), true), "");
    }
}
