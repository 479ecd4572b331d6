//! Block-style YAML for the few files that `init` composes from values. The CIS benchmark's check of an
//! EncryptionConfiguration reads it by line (`grep -A1 providers:`), so the style is part of what is written.

use std::fmt::Write;

use serde_json::Value;

/// `value` in block style, each line indented by `indent` spaces; ends with a line feed.
pub(super) fn block(value: &Value, indent: usize) -> String {
    let mut text = String::new();
    write_block(&mut text, value, indent);
    text
}

/// A string as YAML reads it back: plain where nothing else can be meant, else quoted.
pub(super) fn string(text: &str) -> String {
    let is_plain = |c: char| c.is_ascii_alphanumeric() || "/._-@".contains(c);
    let begins = text.starts_with(|c: char| c.is_ascii_alphabetic() || c == '/');
    let is_word = !matches!(
        text.to_ascii_lowercase().as_str(),
        "true" | "false" | "yes" | "no" | "on" | "off" | "null" | "y" | "n"
    );
    if begins && is_word && text.chars().all(is_plain) { text.to_owned() } else { Value::from(text).to_string() }
}

fn write_block(text: &mut String, value: &Value, indent: usize) {
    let pad = " ".repeat(indent);
    match value {
        Value::Object(map) if !map.is_empty() => {
            for (key, value) in map {
                let _ = write!(text, "{pad}{}:", string(key));
                write_after_key(text, value, indent + 2);
            }
        }
        Value::Array(list) if !list.is_empty() => {
            for item in list {
                let item = block(item, indent + 2);
                let _ = write!(text, "{pad}- {}", item.trim_start());
            }
        }
        scalar => {
            let _ = writeln!(text, "{pad}{}", scalar_text(scalar));
        }
    }
}

fn write_after_key(text: &mut String, value: &Value, indent: usize) {
    let is_block =
        value.as_object().is_some_and(|map| !map.is_empty()) || value.as_array().is_some_and(|list| !list.is_empty());
    if is_block {
        text.push('\n');
        write_block(text, value, indent);
    } else {
        let _ = writeln!(text, " {}", scalar_text(value));
    }
}

fn scalar_text(value: &Value) -> String {
    match value {
        Value::String(text) => string(text),
        other => other.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;

    #[test]
    fn the_line_after_providers_names_the_provider_alone() {
        let text = block(&json!({"providers": [{"kms": {"name": "a"}}, {"identity": {}}]}), 0);
        assert_eq!(text, "providers:\n  - kms:\n      name: a\n  - identity: {}\n");
    }

    fn value() -> impl Strategy<Value = Value> {
        let scalar = prop_oneof![
            any::<bool>().prop_map(Value::from),
            any::<i32>().prop_map(Value::from),
            "[ -~]{0,12}".prop_map(Value::from),
            prop::sample::select(vec!["null", "1e3", "0x1", "~", "- a", "a: b", "", "1:2", "*a", "yes"])
                .prop_map(Value::from)
        ];
        scalar.prop_recursive(4, 24, 4, |inner| {
            prop_oneof![
                prop::collection::vec(inner.clone(), 0..4).prop_map(Value::from),
                prop::collection::btree_map("[a-z1-9:#-]{1,6}", inner, 0..4).prop_map(Value::from_iter),
            ]
        })
    }

    proptest! {
        #[test]
        fn what_is_written_is_read_back(value in value()) {
            let text = block(&value, 0);
            let read: Value = serde_saphyr::from_str(&text).map_err(|error| TestCaseError::fail(format!("{error}: {text}")))?;
            prop_assert_eq!(read, value, "{}", text);
        }
    }
}
