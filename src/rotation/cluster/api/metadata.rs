//! Objects and lists as API servers return them when only metadata is requested.

use std::hash::{DefaultHasher, Hash, Hasher};

use serde::{Deserialize, Deserializer};
use serde_json::Value;

/// Metadata of a list, without its objects' content.
#[derive(Debug, Deserialize)]
pub struct MetadataList {
    /// The list's own metadata.
    pub metadata: ListMetadata,
    /// The objects' metadata.
    #[serde(default, deserialize_with = "null_as_empty")]
    pub items: Vec<Partial>,
}

/// What a list says of itself.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct ListMetadata {
    /// Revision of the list.
    pub resource_version: String,
    /// Where the next page begins; empty at the end.
    #[serde(rename = "continue")]
    pub next: Option<String>,
    /// How many follow, where the server knows.
    pub remaining_item_count: Option<u64>,
}

/// One object without its content.
#[derive(Debug, Deserialize)]
pub struct Partial {
    /// All that `PartialObjectMetadata` has.
    pub metadata: Metadata,
}

/// The metadata that we look at; labels and annotations are not kept.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(from = "Value")]
pub struct Metadata {
    /// The object's name; unique in its namespace.
    pub name: String,
    /// Namespace; absent for what has none.
    pub namespace: Option<String>,
    /// When it was last stored.
    pub resource_version: String,
    /// A digest of all else but who set fields, where the API told it.
    pub content: Option<u64>,
    /// A digest of who set fields, and when.
    pub managed_fields: u64,
    /// Who set which fields: `managedFields` as the API tells it, without any value.
    pub fields: Value,
}

impl From<Value> for Metadata {
    fn from(mut value: Value) -> Self {
        // Taken apart and not kept: annotations may hold what a Secret was applied with (last-applied-configuration).
        let mut taken = value.as_object_mut().map(std::mem::take).unwrap_or_default();
        let fields = taken.remove("managedFields").unwrap_or_default();
        let managed_fields = digest(&fields);
        let mut text = |name: &str| match taken.remove(name) {
            Some(Value::String(text)) => Some(text),
            _ => None,
        };
        let (name, namespace) = (text("name").unwrap_or_default(), text("namespace"));
        let resource_version = text("resourceVersion").unwrap_or_default();
        let content = Some(digest(&Value::Object(taken)));
        Self { name, namespace, resource_version, content, managed_fields, fields }
    }
}

/// Told apart within this process only.
fn digest(value: &Value) -> u64 {
    let mut hasher = DefaultHasher::new();
    value.hash(&mut hasher);
    hasher.finish()
}

/// Go writes an empty list as `null`.
///
/// # Errors
/// The document's own.
pub(crate) fn null_as_empty<'de, D: Deserializer<'de>, T: Deserialize<'de>>(
    deserializer: D,
) -> Result<Vec<T>, D::Error> {
    Ok(Option::deserialize(deserializer)?.unwrap_or_default())
}
