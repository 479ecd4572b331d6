//! JSON values written as YAML: mappings and sequences as blocks, strings in double quotes as JSON has them, which every
//! reader of YAML 1.2 takes.

use std::fmt::Write;

use serde_json::Value;

/// The YAML of a value.
pub(super) fn yaml(value: &Value) -> String {
    let mut text = String::new();
    write(value, 0, &mut text);
    text
}

fn write(value: &Value, depth: usize, text: &mut String) {
    match value {
        Value::Object(fields) if !fields.is_empty() => {
            for (name, field) in fields {
                indent(depth, text);
                text.push_str(&plain_or_quoted(name));
                text.push(':');
                write_inside(field, depth + 1, text);
            }
        }
        Value::Array(items) if !items.is_empty() => {
            for item in items {
                indent(depth, text);
                text.push('-');
                write_inside(item, depth + 1, text);
            }
        }
        Value::String(string) => text.extend([quoted(string).as_str(), "\n"]),
        scalar => text.extend([scalar.to_string().as_str(), "\n"]),
    }
}

/// What follows a colon or a dash: a scalar on the same line, a block on the next ones.
fn write_inside(value: &Value, depth: usize, text: &mut String) {
    let is_block = value.as_object().is_some_and(|fields| !fields.is_empty())
        || value.as_array().is_some_and(|items| !items.is_empty());
    text.push(if is_block { '\n' } else { ' ' });
    write(value, depth, text);
}

fn indent(depth: usize, text: &mut String) {
    text.extend(std::iter::repeat_n("  ", depth));
}

/// Names of fields need no quotes; keys of data may be anything.
fn plain_or_quoted(name: &str) -> String {
    let plain = name.starts_with(|c: char| c.is_ascii_alphabetic()) && name.bytes().all(|b| b.is_ascii_alphanumeric());
    let is_word = ["y", "n", "yes", "no", "on", "off", "true", "false", "null"].contains(&name.to_lowercase().as_str());
    if plain && !is_word { name.to_owned() } else { quoted(name) }
}

/// As JSON has it, and with what YAML does not print escaped as well (YAML 1.2.2, production 1).
fn quoted(string: &str) -> String {
    let mut text = String::new();
    for c in Value::from(string).to_string().chars() {
        match c {
            '\u{7f}'..='\u{9f}' | '\u{2028}' | '\u{2029}' | '\u{feff}' | '\u{fffe}' | '\u{ffff}' => {
                let _ = write!(text, "\\u{:04x}", u32::from(c));
            }
            c => text.push(c),
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn values() -> impl Strategy<Value = Value> {
        let scalars = prop_oneof![
            any::<bool>().prop_map(Value::from),
            any::<i64>().prop_map(Value::from),
            any::<String>().prop_map(Value::from),
            "(y|no|null|~|1e3|0x1f|- a|a: b|#|\t|\\PC*)".prop_map(Value::from),
        ];
        scalars.prop_recursive(4, 30, 4, |inner| {
            prop_oneof![
                prop::collection::vec(inner.clone(), 0..4).prop_map(Value::from),
                prop::collection::btree_map("(data|y|no|a b|tls.crt|\\PC*)", inner, 0..4)
                    .prop_map(|fields| Value::Object(fields.into_iter().collect())),
            ]
        })
    }

    proptest! {
        #[test]
        fn what_is_written_is_read_back(value in values()) {
            let text = yaml(&value);
            let read: Value = serde_saphyr::from_str(&text).map_err(|error| TestCaseError::fail(format!("{error}\n{text}")))?;
            prop_assert_eq!(read, value, "{}", text);
        }
    }
}
