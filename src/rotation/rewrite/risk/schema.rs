//! Which fields of a custom resource its schema does not have. The API server drops them whenever it reads the object,
//! so they are in etcd alone, and the next write removes them there, too. `managedFields` still names them: an object's
//! metadata tell which fields its owners set, without their values.

use std::collections::BTreeMap;

use serde_json::{Map, Value};

/// The structural schemas of a custom resource, by version.
#[derive(Clone, Debug, PartialEq)]
pub struct Schemas {
    storage: String,
    versions: BTreeMap<String, Value>,
}

/// What a schema says about a field.
enum Field<'a> {
    /// It has this schema.
    Known(&'a Value),
    /// It is kept, whatever it holds.
    Kept,
    /// It is dropped.
    Dropped,
}

impl Schemas {
    /// Of these versions, of which `storage` is stored.
    pub fn new(storage: String, versions: impl IntoIterator<Item = (String, Value)>) -> Self {
        Self { storage, versions: versions.into_iter().collect() }
    }

    /// A field that somebody set and the schema does not have.
    pub fn dropped(&self, managed_fields: &Value) -> Option<String> {
        managed_fields.as_array()?.iter().find_map(|entry| {
            let version = entry["apiVersion"].as_str()?.rsplit('/').next()?;
            let schema = self.versions.get(version).or_else(|| self.versions.get(&self.storage))?;
            let found = dropped(entry["fieldsV1"].as_object()?, schema, "", true)?;
            Some(found.trim_start_matches('.').to_owned())
        })
    }
}

/// `whole`: `fields` are those of a whole object, whose type and metadata have no part in the schema.
fn dropped(fields: &Map<String, Value>, schema: &Value, at: &str, whole: bool) -> Option<String> {
    fields.iter().find_map(|(key, inner)| {
        // f:NAME is a field; k:, v: and i: are items of a list, by key, value or index; "." is the item itself.
        let (at, schema) = match key.split_once(':')? {
            ("f", "apiVersion" | "kind" | "metadata") if whole => return None,
            ("f", name) => {
                let at = format!("{at}.{name}");
                match field(schema, name) {
                    Field::Known(schema) => (at, schema),
                    Field::Kept => return None,
                    Field::Dropped => return Some(at),
                }
            }
            _ => (format!("{at}[]"), schema["items"].as_object().map(|_| &schema["items"])?),
        };
        dropped(inner.as_object()?, schema, &at, schema["x-kubernetes-embedded-resource"] == true)
    })
}

fn field<'a>(schema: &'a Value, name: &str) -> Field<'a> {
    let more = &schema["additionalProperties"];
    if let Some(known) = schema["properties"].get(name) {
        Field::Known(known)
    } else if more.is_object() {
        Field::Known(more)
    } else if *more == true || schema["x-kubernetes-preserve-unknown-fields"] == true {
        Field::Kept
    } else {
        Field::Dropped
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn found(fields: &Value) -> Option<String> {
        let port = json!({"type": "object", "properties": {"name": {"type": "string"}}});
        let schema = json!({"type": "object", "properties": {"spec": {"type": "object", "properties": {
            "size": {"type": "integer"},
            "ports": {"type": "array", "items": port},
            "labels": {"type": "object", "additionalProperties": {"type": "string"}},
            "free": {"type": "object", "x-kubernetes-preserve-unknown-fields": true},
            "template": {"type": "object", "x-kubernetes-embedded-resource": true, "properties": {}},
        }}}});
        let schemas = Schemas::new("v1".into(), [("v1".to_owned(), schema)]);
        schemas.dropped(&json!([{"apiVersion": "example.com/v1", "fieldsV1": fields}]))
    }

    #[test]
    fn a_field_that_the_schema_lacks_is_named_wherever_it_is() {
        assert_eq!(found(&json!({"f:spec": {".": {}, "f:gone": {}}})).as_deref(), Some("spec.gone"));
        let in_a_list = json!({"f:spec": {"f:ports": {"k:{\"name\":\"a\"}": {".": {}, "f:name": {}, "f:gone": {}}}}});
        assert_eq!(found(&in_a_list).as_deref(), Some("spec.ports[].gone"));
        assert_eq!(found(&json!({"f:status": {"f:ready": {}}})).as_deref(), Some("status"));
        assert_eq!(found(&json!({"f:spec": {"f:template": {"f:spec": {}}}})).as_deref(), Some("spec.template.spec"));
    }

    #[test]
    fn what_the_schema_has_or_keeps_is_not_named() {
        for kept in [
            json!({"f:metadata": {"f:labels": {"f:a": {}}}, "f:spec": {"f:size": {}, "f:ports": {}}}),
            json!({"f:spec": {"f:labels": {"f:any": {}}, "f:free": {"f:a": {"f:b": {}}}}}),
            json!({"f:spec": {"f:ports": {"k:{\"name\":\"a\"}": {"f:name": {}}}}}),
            json!({"f:spec": {"f:template": {"f:metadata": {"f:name": {}}, "f:kind": {}}}}),
        ] {
            assert_eq!(found(&kept), None, "{kept}");
        }
    }

    #[test]
    fn a_field_of_a_version_that_is_gone_is_held_against_the_stored_version() {
        let schemas = Schemas::new("v1".into(), [("v1".to_owned(), json!({"properties": {"spec": {}}}))]);
        let set = |version: &str| json!([{"apiVersion": version, "fieldsV1": {"f:spec": {}, "f:more": {}}}]);
        assert_eq!(schemas.dropped(&set("example.com/v2")).as_deref(), Some("more"));
        assert_eq!(schemas.dropped(&Value::Null), None);
    }
}
