//! What a rewrite would change beyond the ciphertext, as far as that can be known before: from whatever sees each update
//! and may change it, from the versions that a custom resource was stored in, and from the fields that its schema does
//! not have any more. No object's content is read.

mod mutators;
mod schema;

use serde::Deserialize;
use serde_json::Value;

pub use self::mutators::Mutators;
pub use self::schema::Schemas;
use crate::rotation::cluster::api::Api;
use crate::rotation::cluster::resources::Resource;
use crate::rotation::error::RotationError;
use crate::rotation::leftovers::layout::is_built_in;

/// Why storing the objects of a resource again may change them.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Risk {
    /// What sees each update and may change it. Where there is something, every object is tried first.
    pub mutators: Vec<String>,
    /// Why every object would be stored otherwise than it is.
    pub converted: Option<String>,
    /// The schemas, where fields that they do not have are dropped.
    pub schemas: Option<Schemas>,
    /// What could not be looked at.
    pub unknown: Vec<String>,
}

/// A `CustomResourceDefinition`, as far as it decides what is stored.
#[derive(Debug, Default, Deserialize)]
struct Definition {
    spec: Spec,
    #[serde(default)]
    status: Status,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Spec {
    #[serde(default)]
    preserve_unknown_fields: bool,
    versions: Vec<Version>,
    conversion: Option<Conversion>,
}

#[derive(Debug, Default, Deserialize)]
struct Version {
    name: String,
    storage: bool,
    schema: Option<Validation>,
}

#[derive(Debug, Default, Deserialize)]
struct Validation {
    #[serde(rename = "openAPIV3Schema", default)]
    schema: Value,
}

#[derive(Debug, Default, Deserialize)]
struct Conversion {
    strategy: String,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Status {
    #[serde(default)]
    stored_versions: Vec<String>,
}

impl Risk {
    /// Looks at what decides how objects of a resource are stored.
    ///
    /// # Errors
    /// If the API server does not answer.
    pub async fn of(api: &Api, resource: &Resource, mutators: &Mutators) -> Result<Self, RotationError> {
        let mut risk = Self { mutators: mutators.of(resource), ..Self::default() };
        // Only custom resources have a definition.
        if is_built_in(&resource.group) {
            return Ok(risk);
        }
        let failed = || RotationError::api(format!("read the definition of {resource}"));
        let path = format!("/apis/apiextensions.k8s.io/v1/customresourcedefinitions/{resource}");
        let answer = api.patient().get(&path, "application/json").await.map_err(failed())?;
        match answer.status {
            // Served by no definition: another API server, or one that was just removed.
            404 => {}
            403 => risk.unknown.push(format!(
                "{resource}: whether a rewrite drops fields or converts, since its definition may not be read (grant get \
                 on customresourcedefinitions; rotate-keys --print-rbac)"
            )),
            _ => risk.take(api.parse(&api.success(answer).map_err(failed())?).map_err(failed())?),
        }
        Ok(risk)
    }

    /// What may change an object when it is updated.
    pub fn suspects(&self) -> String {
        if self.mutators.is_empty() { "an update".into() } else { self.mutators.join(" or ") }
    }

    fn take(&mut self, definition: Definition) {
        let Definition { spec, status } = definition;
        let Some(storage) = spec.versions.iter().find(|version| version.storage).map(|version| version.name.clone())
        else {
            return;
        };
        let others: Vec<String> = status.stored_versions.into_iter().filter(|version| *version != storage).collect();
        // Which objects are stored in which version cannot be seen from the API, which converts them.
        if !others.is_empty() {
            let strategy = spec.conversion.map_or_else(|| "None".to_owned(), |conversion| conversion.strategy);
            self.converted = Some(format!(
                "its objects may be stored as {} (status.storedVersions), and a rewrite stores them as {storage} \
                 (conversion strategy {strategy}); if all of them were stored as {storage} before, take the other \
                 versions out of status.storedVersions",
                others.join(" and ")
            ));
        }
        // A schema that lost a field takes effect at the next write of each object: an empty patch is such a write.
        if !spec.preserve_unknown_fields {
            let schema = |version: Version| Some((version.name, version.schema?.schema));
            self.schemas = Some(Schemas::new(storage, spec.versions.into_iter().filter_map(schema)));
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_resource_that_was_stored_in_another_version_is_converted_by_a_rewrite() {
        let definition = |stored: &[&str]| {
            let versions = json!([{"name": "v1", "storage": false}, {"name": "v2", "storage": true}]);
            let conversion = json!({"strategy": "Webhook"});
            let text = json!({
                "spec": {"versions": versions, "conversion": conversion}, "status": {"storedVersions": stored},
            });
            serde_json::from_value::<Definition>(text).unwrap()
        };
        let mut risk = Risk::default();
        risk.take(definition(&["v1", "v2"]));
        let why = risk.converted.unwrap();
        assert!(
            why.contains("stored as v1 (") && why.contains("stores them as v2 (conversion strategy Webhook)"),
            "{why}"
        );
        let mut risk = Risk::default();
        risk.take(definition(&["v2"]));
        assert_eq!(risk.converted, None);
    }
}
