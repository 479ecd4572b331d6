//! What the API server is told: its `EncryptionConfiguration`, and the static pod that mounts file and socket.

use std::path::{Path, PathBuf};
use std::time::Duration;

use serde_json::Value;

use super::Finding;
use crate::config::Config;
use crate::encryption_config::{
    EncryptionConfigError, EncryptionConfiguration, Endpoint, Entry, Kms, KmsVersion, Provider,
};
use crate::kek::guard::DEADLINE;

const FLAG: &str = "--encryption-provider-config";
const ENCRYPTION: &str = "API server: EncryptionConfiguration";
const READABLE: &str = "run as a user who may read it, on the node";

/// Checks what was named; without a file of its own, the `EncryptionConfiguration` that the pod is given.
pub(super) fn check(config: &Config, encryption: Option<&Path>, manifest: Option<&Path>) -> Vec<Finding> {
    let mut findings = Vec::new();
    let pod = manifest.and_then(|file| match read(file) {
        Ok(pod) => Some(Pod(pod)),
        Err(finding) => {
            findings.push(finding);
            None
        }
    });
    let of_pod = pod.as_ref().and_then(|pod| {
        let (finding, file) = pod.encryption_configuration();
        findings.push(finding);
        file
    });
    if let Some(file) = encryption.map(Path::to_owned).or(of_pod) {
        findings.extend(match EncryptionConfiguration::read(&file) {
            Ok(encryption) => check_encryption(config, &encryption, pod.as_ref()),
            Err(error) => vec![refused(&file, &error)],
        });
    }
    findings
}

fn read(file: &Path) -> Result<Value, Finding> {
    let check = "API server: files";
    let text = std::fs::read_to_string(file)
        .map_err(|error| Finding::failed(check, format!("cannot read {}: {error}", file.display()), READABLE))?;
    serde_saphyr::from_str(&text).map_err(|error| {
        let detail = format!("{} is not YAML: {}", file.display(), error.without_snippet());
        Finding::failed(check, detail, "correct the file")
    })
}

fn refused(file: &Path, error: &EncryptionConfigError) -> Finding {
    match error {
        EncryptionConfigError::Read { source, .. } => {
            Finding::failed("API server: files", format!("cannot read {}: {source}", file.display()), READABLE)
        }
        error => Finding::failed(
            ENCRYPTION,
            format!("{}: {error}", file.display()),
            "correct the file: the API server does not start with it",
        ),
    }
}

fn check_encryption(config: &Config, encryption: &EncryptionConfiguration, pod: Option<&Pod>) -> Vec<Finding> {
    let mut findings = Vec::new();
    let mut is_listed = false;
    for entry in &encryption.entries {
        let ours = |kms: &Kms| is_ours(&kms.endpoint, config, pod);
        let Some(at) = entry.providers.iter().position(|provider| provider.kms().is_some_and(ours)) else { continue };
        is_listed = true;
        findings.extend(entry.providers[at].kms().into_iter().flat_map(provider_problems));
        if at > 0 {
            findings.push(Finding::advice(
                ENCRYPTION,
                format!(
                    "another provider is listed before the plugin's for {}: it writes, and the plugin only reads",
                    entry.resources.join(", ")
                ),
                "move the plugin's provider to the first place, then run rotate-keys",
            ));
        }
    }
    let secrets = encryption.entry("secrets", "").and_then(Entry::writer).and_then(Provider::kms);
    if !is_listed {
        let detail = format!("no KMS provider has the endpoint {}", config.socket.address.endpoint());
        findings.push(Finding::failed(
            ENCRYPTION,
            detail,
            "see manifests/encryption-configuration.yaml; give both the same path",
        ));
    } else if !secrets.is_some_and(|kms| is_ours(&kms.endpoint, config, pod)) {
        let detail = "Secrets are not written through the plugin";
        let fix = "list secrets under resources, with the plugin's provider first";
        findings.push(Finding::advice(ENCRYPTION, detail, fix));
    }
    if findings.is_empty() {
        findings.push(Finding::ok(ENCRYPTION, "Secrets are written through the plugin"));
    }
    findings
}

/// Whether the endpoint leads to the plugin's socket; a path of the API server's container is looked up on the host.
fn is_ours(endpoint: &Endpoint, config: &Config, pod: Option<&Pod>) -> bool {
    let own = Endpoint::parse(&config.socket.address.endpoint()).ok();
    let on_host = match (endpoint, pod) {
        (Endpoint::Path(path), Some(pod)) => pod.on_host(path).map(Endpoint::Path),
        _ => Some(endpoint.clone()),
    };
    own.zip(on_host).is_some_and(|(own, on_host)| on_host.is_same(&own))
}

fn provider_problems(kms: &Kms) -> Vec<Finding> {
    let mut findings = Vec::new();
    if kms.version == KmsVersion::V1 {
        let detail = format!("provider {} speaks KMS v1, which the plugin does not", kms.name);
        findings.push(Finding::failed(ENCRYPTION, detail, "set apiVersion: v2"));
    }
    if kms.timeout < DEADLINE + Duration::from_millis(500) {
        let detail = format!(
            "the timeout of provider {} is short: the plugin gives a KEK {DEADLINE:?} before it says why it has no \
             answer",
            kms.name
        );
        findings.push(Finding::advice(ENCRYPTION, detail, "set timeout: 3s"));
    }
    findings
}

/// The manifest of kube-apiserver's static pod.
struct Pod(Value);

impl Pod {
    fn container(&self) -> &Value {
        let containers = self.0["spec"]["containers"].as_array();
        let named = containers.and_then(|all| all.iter().find(|container| container["name"] == "kube-apiserver"));
        named.unwrap_or(&self.0["spec"]["containers"][0])
    }

    /// The file that the flag names, on the host.
    fn encryption_configuration(&self) -> (Finding, Option<PathBuf>) {
        let check = "API server: flags";
        let container = self.container();
        let arguments = ["command", "args"].iter().filter_map(|list| container[list].as_array()).flatten();
        let value =
            arguments.filter_map(Value::as_str).find_map(|argument| argument.strip_prefix(FLAG)?.strip_prefix('='));
        let Some(value) = value else {
            let detail = format!("{FLAG} is not set: nothing is encrypted");
            return (Finding::failed(check, detail, "see manifests/kube-apiserver-patch.yaml"), None);
        };
        if let Some(file) = self.on_host(Path::new(value)) {
            let detail = format!("{FLAG} is {} on this machine", file.display());
            return (Finding::ok(check, detail), Some(file));
        }
        let detail = format!("{FLAG} is {value}, and no hostPath volume is mounted there");
        (Finding::failed(check, detail, "mount the file's folder; see manifests/kube-apiserver-patch.yaml"), None)
    }

    /// Where a path of the container lies on the host, by the innermost mount that holds it.
    fn on_host(&self, path: &Path) -> Option<PathBuf> {
        let mounts = self.container()["volumeMounts"].as_array()?;
        let (rest, volume) = mounts
            .iter()
            .filter_map(|mount| Some((path.strip_prefix(mount["mountPath"].as_str()?).ok()?, &mount["name"])))
            .min_by_key(|(rest, _)| rest.components().count())?;
        let volumes = self.0["spec"]["volumes"].as_array()?;
        let host = volumes.iter().find(|candidate| candidate["name"] == *volume)?["hostPath"]["path"].as_str()?;
        Some(if rest.as_os_str().is_empty() { host.into() } else { Path::new(host).join(rest) })
    }
}
