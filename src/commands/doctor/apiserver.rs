//! What the API server is told, judged: its flags, its EncryptionConfiguration, and what it sees of file and socket.

use std::path::{Path, PathBuf};
use std::time::Duration;

use super::told::Told;
use crate::config::Config;
use crate::encryption_config::{EncryptionConfigError, EncryptionConfiguration, Endpoint, Kms, KmsVersion};
use crate::kek::guard::DEADLINE;
use crate::posture::audit_policy;
use crate::posture::finding::Finding;

const CONFIG: &str = "encryption-provider-config";
const RELOAD: &str = "encryption-provider-config-automatic-reload";
const AUDIT: &str = "audit-policy-file";
const FLAGS: &str = "API server: flags";
/// The first minor version that sends a fixed authority on a unix socket.
const OLDEST_MINOR: u32 = 32;
const ENCRYPTION: &str = "API server: EncryptionConfiguration";
const READABLE: &str = "run as a user who may read it, on the node";

/// Checks what was named; without a file of its own, the EncryptionConfiguration that the API server is told of.
pub(super) fn check(config: &Config, encryption: Option<&Path>, manifest: Option<&Path>) -> Vec<Finding> {
    let mut findings = Vec::new();
    let told = manifest.and_then(|file| match read(file) {
        Ok(told) => Some(told),
        Err(finding) => {
            findings.push(finding);
            None
        }
    });
    let of_flags = told.as_ref().and_then(|told| {
        let (finding, file) = encryption_configuration(told);
        findings.push(finding);
        file
    });
    findings.extend(told.iter().flat_map(flag_problems));
    findings.extend(told.iter().flat_map(audit));
    // A file that was named comes first: on another machine than the control plane the path of the flag leads nowhere.
    if let Some(file) = encryption.map(Path::to_owned).or(of_flags) {
        findings.extend(match EncryptionConfiguration::read(&file) {
            Ok(encryption) => check_encryption(config, &encryption, told.as_ref()),
            Err(error) => vec![refused(&file, &error)],
        });
    }
    findings
}

fn read(file: &Path) -> Result<Told, Finding> {
    let check = "API server: files";
    let text = std::fs::read_to_string(file)
        .map_err(|error| Finding::failed(check, format!("cannot read {}: {error}", file.display()), READABLE))?;
    Told::read(file, &text).map_err(|why| {
        Finding::failed(
            check,
            format!("{} is not understood: {why}", file.display()),
            "give kube-apiserver's static pod, its systemd unit, the configuration of kubeadm, k3s or RKE2, or /proc/PID/cmdline; \
             until then the API server's settings are not known",
        )
    })
}

/// The file that the flag names, on the host.
fn encryption_configuration(told: &Told) -> (Finding, Option<PathBuf>) {
    let Some(value) = told.flag(CONFIG).filter(|value| !value.is_empty()) else {
        let detail = format!("--{CONFIG} is not set: nothing is encrypted");
        return (Finding::failed(FLAGS, detail, "set it as kube-envelope init shows").of_cis("1.2.27"), None);
    };
    if let Some(file) = told.on_host(Path::new(value)) {
        return (Finding::ok(FLAGS, format!("--{CONFIG} is {} on this machine", file.display())), Some(file));
    }
    let detail = format!("--{CONFIG} is {value}, and no folder of the host is mounted there");
    (Finding::failed(FLAGS, detail, "mount the file's folder into the API server's pod"), None)
}

/// What else the flags and the image tell.
fn flag_problems(told: &Told) -> Vec<Finding> {
    let mut findings = Vec::new();
    if told.flag(CONFIG).is_some() && !told.is_on(RELOAD) {
        findings.push(Finding::advice(
            FLAGS,
            format!("--{RELOAD} is off: each change of the file needs a restart of the API server"),
            format!("set --{RELOAD}=true"),
        ));
    }
    let minor = told.image.as_deref().and_then(minor_version);
    if let Some(minor) = minor.filter(|minor| *minor < OLDEST_MINOR) {
        findings.push(Finding::failed(
            "API server: version",
            format!("the image is Kubernetes 1.{minor}, which sends the socket's path as HTTP/2 authority"),
            format!("use 1.{OLDEST_MINOR} or later"),
        ));
    }
    findings
}

/// What the audit policy that the flags name has logged.
fn audit(told: &Told) -> Vec<Finding> {
    let Some(value) = told.flag(AUDIT).filter(|value| !value.is_empty()) else {
        return vec![audit_policy::missing()];
    };
    let file = told.on_host(Path::new(value)).unwrap_or_else(|| value.into());
    match std::fs::read_to_string(&file) {
        Ok(text) => audit_policy::judge(&file.display().to_string(), &text),
        Err(error) => {
            vec![Finding::skipped("API server: audit policy", format!("cannot read {}: {error}", file.display()))]
        }
    }
}

/// `27` of `registry/kube-apiserver:v1.27.3-eks`.
fn minor_version(image: &str) -> Option<u32> {
    // A digest after the tag shows no version; a registry with a port has a colon before the last one.
    let tag = image.split('@').next()?.rsplit_once(':')?.1;
    tag.trim_start_matches('v').strip_prefix("1.")?.split(['.', '-']).next()?.parse().ok()
}

fn refused(file: &Path, error: &EncryptionConfigError) -> Finding {
    match error {
        EncryptionConfigError::Read { source, .. } => {
            Finding::failed("API server: files", format!("cannot read {}: {source}", file.display()), READABLE)
        }
        error => Finding::failed(
            ENCRYPTION,
            format!("{}: {error}", file.display()),
            "correct the file: the API server will not start with it",
        ),
    }
}

fn check_encryption(config: &Config, encryption: &EncryptionConfiguration, told: Option<&Told>) -> Vec<Finding> {
    let mut findings = Vec::new();
    let mut is_listed = false;
    for entry in &encryption.entries {
        let ours = |kms: &Kms| is_ours(&kms.endpoint, config, told);
        let Some(at) = entry.providers.iter().position(|provider| provider.kms().is_some_and(ours)) else { continue };
        is_listed = true;
        findings.extend(entry.providers[at].kms().into_iter().flat_map(provider_problems));
        // The API server writes with the first provider of an entry, and reads with all (k8s.io/apiserver,
        // encryptionconfig).
        if at > 0 {
            findings.push(Finding::advice(
                ENCRYPTION,
                format!(
                    "another provider is listed before the plugin's for {}: it writes, and the plugin only reads",
                    entry.resources.join(", ")
                ),
                "once every API server reads by the plugin, put its provider first in the file of each; then run rotate-keys",
            ));
        }
    }
    let secrets = encryption.entry("secrets", "");
    let reads_secrets = secrets.is_some_and(|entry| {
        entry.providers.iter().any(|provider| provider.kms().is_some_and(|kms| is_ours(&kms.endpoint, config, told)))
    });
    findings.extend(encryption.kms().filter_map(|kms| mount_problem(kms, config, told?)));
    if !is_listed && findings.is_empty() {
        let detail = format!("no KMS provider has the endpoint {}", config.socket.address.endpoint());
        findings.push(Finding::failed(
            ENCRYPTION,
            detail,
            "see manifests/encryption-configuration.yaml; give both the same path",
        ));
    } else if !reads_secrets {
        // Where another provider writes, that was said above.
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
fn is_ours(endpoint: &Endpoint, config: &Config, told: Option<&Told>) -> bool {
    let own = Endpoint::parse(&config.socket.address.endpoint()).ok();
    let on_host = match (endpoint, told) {
        (Endpoint::Path(path), Some(told)) => told.on_host(path).map(Endpoint::Path),
        _ => Some(endpoint.clone()),
    };
    own.zip(on_host).is_some_and(|(own, on_host)| on_host.is_same(&own))
}

/// The provider names the plugin's socket, and the API server's pod does not see it there, or sees the socket alone.
fn mount_problem(kms: &Kms, config: &Config, told: &Told) -> Option<Finding> {
    let own = Endpoint::parse(&config.socket.address.endpoint()).ok()?;
    let Endpoint::Path(path) = kms.endpoint.is_same(&own).then_some(&kms.endpoint)? else { return None };
    let folder = path.parent().unwrap_or(Path::new("/")).display();
    if told.on_host(path).is_none() {
        return Some(Finding::failed(
            ENCRYPTION,
            format!("the folder {folder} of the plugin's socket is not mounted into the API server's pod"),
            format!("mount {folder}, read-only is enough"),
        ));
    }
    told.is_mounted_alone(path).then(|| {
        Finding::failed(
            ENCRYPTION,
            format!(
                "{} itself is mounted: a plugin that restarts creates a new socket, and the pod keeps the old one",
                path.display()
            ),
            format!("mount the folder {folder}"),
        )
    })
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
