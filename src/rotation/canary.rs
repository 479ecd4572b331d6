//! One object of our own, written through each API server to see under which key it stores.

use serde_json::json;

use super::RotationError;
use super::api::{Api, ApiError, Metadata, Partial};
use super::resources::{Coverage, Resource};

/// Where canaries live. They stay for the next run.
pub const NAMESPACE: &str = "kube-envelope-canary";
const NAME: &str = "rotate-keys";
const ANNOTATION: &str = "kube-envelope.io/written";

/// An object without content, of a resource that `provider` writes.
#[derive(Clone, Debug)]
pub struct Canary {
    /// Its resource.
    pub resource: Resource,
    /// The provider that it shows the key of.
    pub provider: String,
}

/// One canary for each provider that writes Secrets or `ConfigMaps`.
pub fn canaries(coverage: &Coverage) -> Vec<Canary> {
    let mut canaries: Vec<Canary> = Vec::new();
    for plural in ["secrets", "configmaps"] {
        let resource = Resource { group: String::new(), version: "v1".into(), plural: plural.into(), namespaced: true };
        if let Some(provider) = coverage.provider(&resource)
            && canaries.iter().all(|canary| canary.provider != provider)
        {
            canaries.push(Canary { provider: provider.into(), resource });
        }
    }
    canaries
}

impl Canary {
    /// Makes it, unless it is there.
    pub async fn ensure(&self, api: &Api) -> Result<(), RotationError> {
        let failed = || RotationError::api(format!("make the canary {}/{NAME} in {NAMESPACE}", self.resource.plural));
        let namespace = json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": NAMESPACE}});
        let kind = if self.resource.plural == "secrets" { "Secret" } else { "ConfigMap" };
        let object = json!({"apiVersion": "v1", "kind": kind, "metadata": {"name": NAME, "namespace": NAMESPACE}});
        let folder = format!("/api/v1/namespaces/{NAMESPACE}/{}", self.resource.plural);
        if api.get_metadata(&self.path()).await.map_err(failed())?.status == 200 {
            return Ok(());
        }
        for (path, document) in [("/api/v1/namespaces", namespace), (folder.as_str(), object)] {
            let answer = api.post(path, &document).await.map_err(failed())?;
            if answer.status != 409 {
                api.success(answer).map_err(failed())?;
            }
        }
        Ok(())
    }

    /// Changes an annotation, so that the server must store it.
    pub async fn write(&self, api: &Api) -> Result<(), ApiError> {
        let now = jiff::Timestamp::now().to_string();
        let patch = json!({"metadata": {"annotations": {ANNOTATION: now}}}).to_string();
        let answer = api.patch(&self.path(), &patch).await?;
        api.success(answer).map(|_| ())
    }

    /// Sends the empty patch and returns the resource version after it.
    pub async fn touch(&self, api: &Api) -> Result<String, ApiError> {
        let answer = api.patch(&self.path(), "{}").await?;
        let body = api.success(answer)?;
        let Partial { metadata: Metadata { resource_version, .. } } = api.parse(&body)?;
        Ok(resource_version)
    }

    fn path(&self) -> String {
        self.resource.object_path(Some(NAMESPACE), NAME)
    }
}
