//! A vendor's own text in messages and logs.

/// At most so many characters of it, without those that could break a line of the log, or a terminal.
pub(in crate::key_stores) fn shortened(text: &str, most: usize) -> String {
    text.chars().filter(|c| !c.is_control()).take(most).collect()
}
