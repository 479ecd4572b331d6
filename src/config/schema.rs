//! The JSON schema of the configuration, for editors and for checks before a file is rolled out: made from the very types that
//! the file is read into.

use schemars::generate::SchemaSettings;
use serde_json::{Value, json};

use super::file::File;
use crate::key_stores::KINDS;

const FILE: &str = "manifests/config.schema.json";

fn schema() -> Value {
    // One document without references, so that an editor shows each field with its own words.
    let settings = SchemaSettings::draft07().with(|settings| settings.inline_subschemas = true);
    let mut schema = settings.into_generator().into_root_schema_for::<File>().to_value();
    schema["title"] = json!("The configuration of kube-envelope");
    schema["description"] = json!("docs/keks has the settings of each kind of KEK.");
    schema
}

#[test]
fn the_schema_is_that_of_the_types() {
    assert_eq!(KINDS.len(), 7, "the file is that of a build with every kind");
    let text = format!("{:#}\n", schema());
    if std::env::var_os("KUBE_ENVELOPE_UPDATE").is_some() {
        std::fs::write(FILE, &text).unwrap();
    }
    let committed = std::fs::read_to_string(FILE).unwrap_or_default();
    assert!(
        committed == text,
        "{FILE} is not what the types say: KUBE_ENVELOPE_UPDATE=1 cargo test --lib config::schema"
    );
}

#[test]
fn every_field_says_what_it_is() {
    fn silent(at: &str, schema: &Value, found: &mut Vec<String>) {
        for (name, field) in schema["properties"].as_object().into_iter().flatten() {
            let at = format!("{at}.{name}");
            let inner = field["anyOf"].as_array().and_then(|any| any.first()).unwrap_or(field);
            if field.get("description").or(inner.get("description")).is_none() {
                found.push(at.clone());
            }
            silent(&at, inner, found);
            silent(&at, &field["items"], found);
        }
    }
    let mut found = Vec::new();
    silent("", &schema(), &mut found);
    assert_eq!(found, [""; 0]);
}
