//! Words for a shell, in commands that are printed to be pasted into one.

use std::borrow::Cow;

/// A word as a POSIX shell reads it back. A name or path from a configuration file is data: whatever is in it, pasting the
/// command runs nothing else.
pub fn quoted(word: &str) -> Cow<'_, str> {
    // Only a NUL cannot be quoted, and no argument of a process can hold one.
    shlex::try_quote(word).unwrap_or(Cow::Borrowed("''"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_word_in_a_command_runs_nothing() {
        assert_eq!(quoted("/etc/kube-envelope/keyring.json"), "/etc/kube-envelope/keyring.json");
        for word in ["/a b", "/$(touch x)", "/it's `x`", "/a;b\n#c", "", "-n", "~", "a!b", "*"] {
            let output = std::process::Command::new("sh").args(["-c", &format!("printf %s {}", quoted(word))]).output();
            assert_eq!(String::from_utf8(output.unwrap().stdout).unwrap(), word);
        }
        assert_eq!(quoted("a\0b"), "''");
    }
}
