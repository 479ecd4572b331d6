//! One object of our own, written through each API server to see under which key it stores.

use serde_json::{Value, json};

use crate::rotation::cluster::api::{Api, ApiError};
use crate::rotation::cluster::resources::{Coverage, Resource};
use crate::rotation::cluster::writer::Writer;
use crate::rotation::error::RotationError;

/// Where canaries live. They stay for the next run.
pub const NAMESPACE: &str = "kube-envelope-canary";
const NAME: &str = "rotate-keys";
const ANNOTATION: &str = "kube-envelope.io/written";

/// An object without content.
#[derive(Clone, Debug)]
pub struct Canary {
    /// Secrets or ConfigMaps.
    pub resource: Resource,
    /// Who writes it, and whose key it shows.
    pub writer: Writer,
}

/// What a canary is after an empty patch.
#[derive(Debug, PartialEq)]
pub struct Touched {
    /// Its resource version.
    pub version: String,
    /// All else, which an empty patch does not change.
    pub content: Value,
}

/// A canary for each of Secrets and ConfigMaps that is encrypted: a server may encrypt one of them alone.
pub fn canaries(coverage: &Coverage) -> Vec<Canary> {
    let mut canaries: Vec<Canary> = Vec::new();
    for plural in ["secrets", "configmaps"] {
        let resource = Resource { group: String::new(), version: "v1".into(), plural: plural.into(), namespaced: true };
        if let Some(writer) = coverage.writer(&resource) {
            canaries.push(Canary { resource, writer });
        }
    }
    canaries
}

impl Canary {
    /// Makes it, unless it is there.
    ///
    /// # Errors
    /// An error status of the API server, or no answer.
    pub async fn ensure(&self, api: &Api) -> Result<(), RotationError> {
        let plural = self.resource.plural.as_str();
        let kind = if plural == "secrets" { "Secret" } else { "ConfigMap" };
        let made = api.ensure(kind, plural, NAMESPACE, NAME).await;
        made.map_err(RotationError::api(format!("create the canary {plural}/{NAME} in {NAMESPACE}")))
    }

    /// Changes an annotation, so that the server must store it.
    ///
    /// # Errors
    /// An error status of the API server, or no answer.
    pub async fn write(&self, api: &Api) -> Result<(), ApiError> {
        // Always another value: an update that changes nothing would not be stored under an unchanged key.
        let now = jiff::Timestamp::now().to_string();
        let patch = json!({"metadata": {"annotations": {ANNOTATION: now}}}).to_string();
        let answer = api.patch(&self.path(), &patch).await?;
        api.success(answer).map(|_| ())
    }

    /// Takes it away.
    ///
    /// # Errors
    /// No answer, or one that cannot be read; an error status is an answer.
    pub async fn remove(&self, api: &Api) -> Result<(), ApiError> {
        let answer = api.delete(&self.path()).await?;
        if answer.status == 404 { Ok(()) } else { api.success(answer).map(|_| ()) }
    }

    /// Sends the empty patch and returns what there is after it.
    ///
    /// # Errors
    /// An error status of the API server, or no answer.
    pub async fn touch(&self, api: &Api) -> Result<Touched, ApiError> {
        let answer = api.patch_own(&self.path(), "{}").await?;
        let body = api.success(answer)?;
        let mut content: Value = api.parse(&body)?;
        let metadata = content["metadata"].as_object_mut();
        let version = metadata.and_then(|metadata| {
            metadata.remove("managedFields");
            metadata.remove("resourceVersion")
        });
        let version = version.and_then(|version| version.as_str().map(Into::into)).unwrap_or_default();
        Ok(Touched { version, content })
    }

    /// Where it lies.
    pub fn path(&self) -> String {
        self.resource.object_path(Some(NAMESPACE), NAME)
    }
}
