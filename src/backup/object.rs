//! What an API server stored, once it is open: JSON, or `k8s\0` and a protobuf message (apimachinery,
//! pkg/runtime/serializer/protobuf). Of those, Secrets and `ConfigMap`s are read and written as YAML.

use std::collections::BTreeMap;

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use prost::Message;
use serde_json::{Map, Value, json};
use zeroize::Zeroizing;

use super::yaml::yaml;

const PROTOBUF: &[u8] = b"k8s\0";

/// The manifest of a Secret or a `ConfigMap`, as `kubectl get -o yaml` shows it without `managedFields`; `None` for
/// everything else.
pub fn manifest(stored: &[u8]) -> Option<Zeroizing<String>> {
    // Built-in kinds are stored so by default; custom resources are JSON, and are shown as they are.
    let unknown = Unknown::decode(stored.strip_prefix(PROTOBUF)?).ok()?;
    let kind = unknown.type_meta.unwrap_or_default();
    let mut object = match (kind.api_version.as_str(), kind.kind.as_str()) {
        ("v1", "Secret") => secret(&Secret::decode(unknown.raw.as_slice()).ok()?),
        ("v1", "ConfigMap") => config_map(&ConfigMap::decode(unknown.raw.as_slice()).ok()?),
        _ => return None,
    };
    object.insert("apiVersion".into(), kind.api_version.into());
    object.insert("kind".into(), kind.kind.into());
    Some(Zeroizing::new(yaml(&Value::Object(object))))
}

/// The uid of any object that is not encrypted.
pub fn uid(stored: &[u8]) -> Option<String> {
    /// Every kind of the API has its metadata there.
    #[derive(Clone, PartialEq, Message)]
    struct Object {
        #[prost(message, optional, tag = "1")]
        metadata: Option<ObjectMeta>,
    }
    let uid = match stored.strip_prefix(PROTOBUF) {
        Some(unknown) => {
            let unknown = Unknown::decode(unknown).ok()?;
            Object::decode(unknown.raw.as_slice()).ok()?.metadata?.uid
        }
        // --storage-media-type=application/json
        None => serde_json::from_slice::<Value>(stored).ok()?["metadata"]["uid"].as_str()?.to_owned(),
    };
    Some(uid).filter(|uid| !uid.is_empty())
}

fn secret(secret: &Secret) -> Map<String, Value> {
    let mut fields = common(secret.metadata.as_ref(), secret.immutable);
    put(&mut fields, "data", encoded(&secret.data));
    put(&mut fields, "type", secret.kind.clone());
    fields
}

fn config_map(map: &ConfigMap) -> Map<String, Value> {
    let mut fields = common(map.metadata.as_ref(), map.immutable);
    put(&mut fields, "data", json!(map.data));
    put(&mut fields, "binaryData", encoded(&map.binary_data));
    fields
}

fn common(metadata: Option<&ObjectMeta>, immutable: Option<bool>) -> Map<String, Value> {
    let mut fields = Map::new();
    put(&mut fields, "metadata", metadata.map(ObjectMeta::json).unwrap_or_default());
    put(&mut fields, "immutable", immutable.map_or(Value::Null, Value::from));
    fields
}

fn encoded(data: &BTreeMap<String, Vec<u8>>) -> Value {
    data.iter().map(|(name, value)| (name.clone(), Value::from(BASE64_STANDARD.encode(value)))).collect()
}

/// Leaves out what is empty, as Kubernetes does.
fn put(fields: &mut Map<String, Value>, name: &str, value: impl Into<Value>) {
    let value = value.into();
    let empty = match &value {
        Value::Null => true,
        Value::String(text) => text.is_empty(),
        Value::Array(items) => items.is_empty(),
        Value::Object(fields) => fields.is_empty(),
        Value::Bool(_) | Value::Number(_) => false,
    };
    if !empty {
        fields.insert(name.to_owned(), value);
    }
}

/// What the protobuf of every object is wrapped in (`k8s.io/apimachinery/pkg/runtime/generated.proto`).
#[derive(Clone, PartialEq, Message)]
struct Unknown {
    #[prost(message, optional, tag = "1")]
    type_meta: Option<TypeMeta>,
    #[prost(bytes = "vec", tag = "2")]
    raw: Vec<u8>,
}

#[derive(Clone, PartialEq, Message)]
struct TypeMeta {
    #[prost(string, tag = "1")]
    api_version: String,
    #[prost(string, tag = "2")]
    kind: String,
}

/// A Secret as etcd holds it (`k8s.io/api/core/v1/generated.proto`).
#[derive(Clone, PartialEq, Message)]
struct Secret {
    #[prost(message, optional, tag = "1")]
    metadata: Option<ObjectMeta>,
    #[prost(btree_map = "string, bytes", tag = "2")]
    data: BTreeMap<String, Vec<u8>>,
    #[prost(string, tag = "3")]
    kind: String,
    #[prost(bool, optional, tag = "5")]
    immutable: Option<bool>,
}

#[derive(Clone, PartialEq, Message)]
struct ConfigMap {
    #[prost(message, optional, tag = "1")]
    metadata: Option<ObjectMeta>,
    #[prost(btree_map = "string, string", tag = "2")]
    data: BTreeMap<String, String>,
    #[prost(btree_map = "string, bytes", tag = "3")]
    binary_data: BTreeMap<String, Vec<u8>>,
    #[prost(bool, optional, tag = "4")]
    immutable: Option<bool>,
}

/// `k8s.io/apimachinery/pkg/apis/meta/v1/generated.proto`, without `managedFields`.
#[derive(Clone, PartialEq, Message)]
struct ObjectMeta {
    #[prost(string, tag = "1")]
    name: String,
    #[prost(string, tag = "2")]
    generate_name: String,
    #[prost(string, tag = "3")]
    namespace: String,
    #[prost(string, tag = "5")]
    uid: String,
    #[prost(int64, optional, tag = "7")]
    generation: Option<i64>,
    #[prost(message, optional, tag = "8")]
    creation_timestamp: Option<Time>,
    #[prost(message, optional, tag = "9")]
    deletion_timestamp: Option<Time>,
    #[prost(int64, optional, tag = "10")]
    deletion_grace_period_seconds: Option<i64>,
    #[prost(btree_map = "string, string", tag = "11")]
    labels: BTreeMap<String, String>,
    #[prost(btree_map = "string, string", tag = "12")]
    annotations: BTreeMap<String, String>,
    #[prost(message, repeated, tag = "13")]
    owner_references: Vec<OwnerReference>,
    #[prost(string, repeated, tag = "14")]
    finalizers: Vec<String>,
}

#[derive(Clone, PartialEq, Message)]
struct Time {
    #[prost(int64, optional, tag = "1")]
    seconds: Option<i64>,
}

#[derive(Clone, PartialEq, Message)]
struct OwnerReference {
    #[prost(string, tag = "1")]
    kind: String,
    #[prost(string, tag = "3")]
    name: String,
    #[prost(string, tag = "4")]
    uid: String,
    #[prost(string, tag = "5")]
    api_version: String,
    #[prost(bool, optional, tag = "6")]
    controller: Option<bool>,
    #[prost(bool, optional, tag = "7")]
    block_owner_deletion: Option<bool>,
}

impl ObjectMeta {
    fn json(&self) -> Value {
        let mut fields = Map::new();
        put(&mut fields, "name", self.name.clone());
        put(&mut fields, "generateName", self.generate_name.clone());
        put(&mut fields, "namespace", self.namespace.clone());
        put(&mut fields, "uid", self.uid.clone());
        put(
            &mut fields,
            "generation",
            self.generation.filter(|generation| *generation != 0).map_or(Value::Null, Value::from),
        );
        put(&mut fields, "creationTimestamp", Time::json(self.creation_timestamp.as_ref()));
        put(&mut fields, "deletionTimestamp", Time::json(self.deletion_timestamp.as_ref()));
        put(
            &mut fields,
            "deletionGracePeriodSeconds",
            self.deletion_grace_period_seconds.map_or(Value::Null, Value::from),
        );
        put(&mut fields, "labels", json!(self.labels));
        put(&mut fields, "annotations", json!(self.annotations));
        put(&mut fields, "ownerReferences", self.owner_references.iter().map(OwnerReference::json).collect::<Vec<_>>());
        put(&mut fields, "finalizers", json!(self.finalizers));
        Value::Object(fields)
    }
}

impl Time {
    fn json(time: Option<&Self>) -> Value {
        // The API writes whole seconds, so nanoseconds, field 2 of the message, are not read.
        let time = time.and_then(|time| jiff::Timestamp::from_second(time.seconds?).ok());
        time.map_or(Value::Null, |time| time.to_string().into())
    }
}

impl OwnerReference {
    fn json(&self) -> Value {
        let mut fields = Map::new();
        put(&mut fields, "apiVersion", self.api_version.clone());
        put(&mut fields, "kind", self.kind.clone());
        put(&mut fields, "name", self.name.clone());
        put(&mut fields, "uid", self.uid.clone());
        put(&mut fields, "controller", self.controller.map_or(Value::Null, Value::from));
        put(&mut fields, "blockOwnerDeletion", self.block_owner_deletion.map_or(Value::Null, Value::from));
        Value::Object(fields)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn stored(kind: &str, raw: Vec<u8>) -> Vec<u8> {
        let type_meta = Some(TypeMeta { api_version: "v1".into(), kind: kind.into() });
        [PROTOBUF, &Unknown { type_meta, raw }.encode_to_vec()].concat()
    }

    #[test]
    fn a_secret_becomes_its_manifest() {
        let metadata = ObjectMeta {
            name: "s".into(),
            namespace: "a".into(),
            creation_timestamp: Some(Time { seconds: Some(1_700_000_000) }),
            labels: [("app".to_owned(), "yes".to_owned())].into(),
            ..ObjectMeta::default()
        };
        let secret = Secret {
            metadata: Some(metadata),
            data: [("tls.key".to_owned(), vec![0, 255])].into(),
            kind: "Opaque".into(),
            immutable: Some(true),
        };
        let read: Value =
            serde_saphyr::from_str(&manifest(&stored("Secret", secret.encode_to_vec())).unwrap()).unwrap();
        assert_eq!(
            read,
            json!({
                "apiVersion": "v1",
                "kind": "Secret",
                "immutable": true,
                "type": "Opaque",
                "data": {"tls.key": "AP8="},
                "metadata": {
                    "name": "s", "namespace": "a", "creationTimestamp": "2023-11-14T22:13:20Z", "labels": {"app": "yes"}
                },
            })
        );
    }

    #[test]
    fn nothing_else_becomes_one() {
        assert_eq!(manifest(&stored("Pod", vec![1, 2])), None);
        assert_eq!(manifest(br#"{"kind": "Widget"}"#), None);
        assert_eq!(manifest(b"k8s\0\xff"), None);
    }
}
