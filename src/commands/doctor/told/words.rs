//! Words of a command line, as a shell and systemd split them; no variables, no substitutions.

/// Splits at white space outside quotes; a backslash keeps the next character.
pub(super) fn split(line: &str) -> Vec<String> {
    let mut words = Vec::new();
    let mut word: Option<String> = None;
    let mut quote = None;
    let mut rest = line.chars();
    while let Some(c) = rest.next() {
        match (c, quote) {
            (c, Some(open)) if c == open => quote = None,
            ('\\', None | Some('"')) => word.get_or_insert_default().extend(rest.next()),
            ('"' | '\'', None) => {
                quote = Some(c);
                word.get_or_insert_default();
            }
            // What ends a command of a shell ends its words.
            (c, None) if c.is_whitespace() || matches!(c, ';' | '&' | '|' | '>' | '<') => words.extend(word.take()),
            (c, _) => word.get_or_insert_default().push(c),
        }
    }
    words.extend(word);
    words
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quotes_and_backslashes_keep_words_together() {
        assert_eq!(split(r#"a  "b c" d\ e 'f "g"' h="i j""#), ["a", "b c", "d e", "f \"g\"", "h=i j"]);
        assert_eq!(split("exec x --a=1;y"), ["exec", "x", "--a=1", "y"]);
        assert_eq!(split("''"), [""]);
    }
}
