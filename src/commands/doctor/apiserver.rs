//! What the API server is told: its `EncryptionConfiguration`, and the static pod that mounts file and socket.

use std::path::{Path, PathBuf};
use std::time::Duration;

use serde_json::Value;

use super::Finding;
use crate::config::Config;
use crate::kek::guard::DEADLINE;

const FLAG: &str = "--encryption-provider-config";

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
        match read(&file) {
            Ok(encryption) => findings.extend(check_encryption(config, &encryption, pod.as_ref())),
            Err(finding) => findings.push(finding),
        }
    }
    findings
}

fn read(file: &Path) -> Result<Value, Finding> {
    let check = "API server: files";
    let text = std::fs::read_to_string(file).map_err(|error| {
        Finding::failed(check, format!("cannot read {}: {error}", file.display()), "run as a user who may, on the node")
    })?;
    serde_saphyr::from_str(&text).map_err(|error| {
        let detail = format!("{} is not YAML: {}", file.display(), error.without_snippet());
        Finding::failed(check, detail, "correct the file")
    })
}

fn check_encryption(config: &Config, encryption: &Value, pod: Option<&Pod>) -> Vec<Finding> {
    let check = "API server: EncryptionConfiguration";
    let empty = Vec::new();
    let items = encryption["resources"].as_array().unwrap_or(&empty);
    let mut findings = Vec::new();
    let mut encrypts_secrets = false;
    let mut is_listed = false;
    for item in items {
        let providers = item["providers"].as_array().unwrap_or(&empty);
        let ours = |provider: &Value| is_ours(&provider["kms"], config, pod);
        let Some(at) = providers.iter().position(ours) else { continue };
        is_listed = true;
        let writes = at == 0;
        encrypts_secrets |= writes && names_secrets(item);
        findings.extend(provider_problems(check, &providers[at]["kms"]));
        if !writes {
            let so = "another provider stands before the plugin's: it writes, and the plugin only reads";
            findings.push(Finding::advice(
                check,
                so,
                "move the plugin's provider to the first place, then rotate-keys",
            ));
        }
    }
    if !is_listed {
        let detail = format!("no KMS provider has the endpoint unix://{}", config.socket.display());
        findings.push(Finding::failed(
            check,
            detail,
            "see manifests/encryption-configuration.yaml; give both the same path",
        ));
    } else if !encrypts_secrets {
        let so = "Secrets are not written through the plugin";
        findings.push(Finding::advice(check, so, "list secrets under resources, with the plugin's provider first"));
    }
    if findings.is_empty() {
        findings.push(Finding::ok(check, "Secrets are written through the plugin"));
    }
    findings
}

/// Whether the endpoint leads to the plugin's socket; a path of the API server's container is looked up on the host.
fn is_ours(kms: &Value, config: &Config, pod: Option<&Pod>) -> bool {
    let Some(path) = kms["endpoint"].as_str().and_then(|endpoint| endpoint.strip_prefix("unix://")) else {
        return false;
    };
    let path = Path::new(path);
    pod.map_or(Some(path.to_owned()), |pod| pod.on_host(path)).is_some_and(|path| path == config.socket)
}

fn names_secrets(item: &Value) -> bool {
    let named = item["resources"].as_array().into_iter().flatten().filter_map(Value::as_str);
    named.into_iter().any(|name| matches!(name, "secrets" | "*." | "*.*"))
}

fn provider_problems(check: &str, kms: &Value) -> Vec<Finding> {
    let mut findings = Vec::new();
    if kms["apiVersion"].as_str() != Some("v2") {
        findings.push(Finding::failed(
            check,
            "the provider speaks KMS v1, which the plugin does not",
            "set apiVersion: v2",
        ));
    }
    if !kms["cachesize"].is_null() {
        findings.push(Finding::failed(check, "the API server refuses cachesize for KMS v2", "remove cachesize"));
    }
    let timeout = kms["timeout"].as_str().map(humantime::parse_duration);
    let least = DEADLINE + Duration::from_millis(500);
    if timeout.is_some_and(|timeout| timeout.is_ok_and(|timeout| timeout < least)) {
        let detail =
            format!("the timeout is short: the plugin gives a KEK {DEADLINE:?} before it says why it has no answer");
        findings.push(Finding::advice(check, detail, "set timeout: 3s"));
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
