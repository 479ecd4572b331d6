//! The files for each distribution. What lies in `manifests/` is used as it is there, with the image and the paths of
//! the place put in.

use std::fmt::Write;
use std::path::PathBuf;

use anyhow::{Context, Result};
use serde_json::{Value, json};

use super::distribution::{Runs, UNIT};
use super::former::{self, First};
use super::wanted::Wanted;
use super::yaml;
use crate::cli::install::Distribution;
use crate::config::DEFAULT_SOCKET;

const POD: &str = include_str!("../../../manifests/static-pod.yaml");
const UNIT_FILE: &str = include_str!("../../../manifests/kube-envelope.service");
const PATCH: &str = include_str!("../../../manifests/kube-apiserver-patch.yaml");
const IMAGE: &str = "registry.example/kube-envelope:0.1.0";

/// The folder of the API server's own files, on the node.
pub(super) const ENCRYPTION: &str = "/etc/kubernetes/encryption";

/// One file to be written.
#[derive(Debug)]
pub(super) struct PlannedFile {
    /// Below the root.
    pub(super) path: PathBuf,
    pub(super) content: String,
    /// For root alone, since it holds keys or says where they are.
    pub(super) is_private: bool,
}

/// All files, in the order in which a reader wants to see them.
pub(super) fn files(wanted: &Wanted) -> Result<Vec<PlannedFile>> {
    match wanted.place.distribution {
        Distribution::Kubeadm => {
            on_a_node(wanted, Some(("/etc/kubernetes/patches/kube-apiserver0+json.yaml", PATCH.into())))
        }
        Distribution::Systemd => on_a_node(wanted, None),
        Distribution::K3s => {
            on_a_node(wanted, Some(("/etc/rancher/k3s/config.yaml.d/50-kube-envelope.yaml", rancher("k3s"))))
        }
        Distribution::Rke2 => {
            on_a_node(wanted, Some(("/etc/rancher/rke2/config.yaml.d/50-kube-envelope.yaml", rancher("rke2"))))
        }
        Distribution::Talos => talos(wanted),
        Distribution::Kind => kind(wanted),
        Distribution::Kops => kops(wanted),
    }
}

/// The plugin's configuration.
pub(super) fn config(wanted: &Wanted) -> String {
    let place = &wanted.place;
    let mut text = format!(
        "# The same on every control-plane node; root's, mode 0600. manifests/config.yaml shows every field.\n\
         cluster: {}\n",
        yaml::string(&wanted.cluster)
    );
    if place.socket() != DEFAULT_SOCKET {
        let _ = writeln!(text, "socket: {}", yaml::string(place.socket()));
    }
    if place.distribution == Distribution::Talos {
        text.push_str("# The API server's own uid there.\nallowedUids: [65534]\n");
    }
    let mut kek = serde_json::Map::new();
    kek.insert("name".into(), "primary".into());
    kek.insert(wanted.kind.clone(), Value::Object(wanted.settings.clone()));
    // The name first, for readers.
    let body = yaml::block(&json!([{ wanted.kind.as_str(): kek[&wanted.kind] }]), 2);
    let body = body.replacen("  - ", "  - name: primary\n    ", 1);
    let _ = write!(text, "keks:\n{body}");
    text
}

/// The EncryptionConfiguration with this provider first.
fn encryption(wanted: &Wanted, first: First) -> Result<String> {
    former::file(&encryption_comment(wanted, first), &encryption_resources(wanted, first)?)
}

fn encryption_resources(wanted: &Wanted, first: First) -> Result<Value> {
    let plugin = json!({"kms": {
        "apiVersion": "v2",
        "name": wanted.provider_name,
        "endpoint": wanted.place.endpoint(),
        "timeout": "3s",
    }});
    let file = wanted.former.file.as_ref();
    wanted.former.extended(&wanted.resources, &plugin, first).with_context(|| {
        file.map_or_else(|| "the EncryptionConfiguration".to_owned(), |file| format!("the former {}", file.display()))
    })
}

fn encryption_comment(wanted: &Wanted, first: First) -> String {
    let mut text = String::from("# For --encryption-provider-config of every kube-apiserver; root's, mode 0600.\n");
    text.push_str(match first {
        First::Plugin => "# The plugin writes; the providers after it only read.\n",
        First::Former => {
            "# The former provider writes, and the plugin only reads: the step before and after the plugin's own.\n"
        }
    });
    text.push_str(
        "# Secrets, because etcd must not give them away; ConfigMaps, because people put passwords there, too.\n\
         # Add custom resources in which your controllers keep credentials.\n",
    );
    if wanted.former.encrypts() {
        text.push_str(
            "# The former keys must stay until `kube-envelope rotate-keys` has said Yes: without them nothing older opens.\n",
        );
    }
    text
}

/// The files of a node: configuration, EncryptionConfiguration in both orders, how the plugin runs, and one more.
fn on_a_node(wanted: &Wanted, more: Option<(&str, String)>) -> Result<Vec<PlannedFile>> {
    let mut files = vec![private(wanted.place.config(), config(wanted))];
    files.extend(encryption_files(wanted)?);
    files.push(match wanted.place.runs {
        Runs::Pod(folder) => private(&format!("{folder}/kube-envelope.yaml"), pod(wanted)),
        Runs::Unit | Runs::Document => PlannedFile { is_private: false, ..private(UNIT, UNIT_FILE.into()) },
    });
    if let Some((path, content)) = more {
        files.push(private(path, content));
    }
    Ok(files)
}

fn encryption_files(wanted: &Wanted) -> Result<Vec<PlannedFile>> {
    let (plugin, former) = (encryption(wanted, First::Plugin)?, encryption(wanted, First::Former)?);
    let at = |name: &str| format!("{ENCRYPTION}/{name}");
    let begins = if wanted.begins_with() == First::Plugin { &plugin } else { &former };
    Ok(vec![
        private(&at("encryption-configuration.yaml"), begins.clone()),
        private(&at("plugin-first.yaml"), plugin),
        private(&at("former-first.yaml"), former),
    ])
}

fn private(path: &str, content: String) -> PlannedFile {
    PlannedFile { path: path.trim_start_matches('/').into(), content, is_private: true }
}

/// The static pod with image and folders of this place.
fn pod(wanted: &Wanted) -> String {
    let folder = |path: &str| path.rsplit_once('/').map_or("/", |(folder, _)| folder).to_owned();
    let text = POD.replace(IMAGE, wanted.image.as_deref().unwrap_or(IMAGE));
    let text = match wanted.place.socket() {
        // The abstract namespace of unix sockets belongs to the network, which the pod has from the host.
        socket if socket.starts_with('@') => {
            let is_of_socket =
                |line: &&str| !line.contains("name: socket") && !line.contains("path: /run/kube-envelope");
            text.lines().filter(is_of_socket).fold(String::new(), |text, line| text + line + "\n")
        }
        socket => text.replace("/run/kube-envelope", &folder(socket)),
    };
    let config = folder(wanted.place.config());
    // The container sees it where it always is; the node has it where it may be.
    text.replace("hostPath: { path: /etc/kube-envelope,", &format!("hostPath: {{ path: {config},"))
}

/// Flags for an API server in the process of k3s, or in the pod that RKE2 makes.
fn rancher(name: &str) -> String {
    let mut text = format!(
        "# Read by {name} beside config.yaml; the plus sign appends to the existing value.\n\
         kube-apiserver-arg+:\n\
         \x20 - encryption-provider-config={ENCRYPTION}/encryption-configuration.yaml\n\
         \x20 - encryption-provider-config-automatic-reload=true\n"
    );
    if name == "rke2" {
        let _ = write!(
            text,
            "# The folders must be there before the pod: a path that is missing becomes an empty folder. The socket's\n\
             # folder and not the socket: the plugin makes a new one at each start.\n\
             kube-apiserver-extra-mount+:\n\
             \x20 - {ENCRYPTION}:{ENCRYPTION}:ro\n\
             \x20 - /run/kube-envelope:/run/kube-envelope\n"
        );
    }
    text
}

fn talos(wanted: &Wanted) -> Result<Vec<PlannedFile>> {
    let one = |first: First| -> Result<String> {
        let resources = encryption_resources(wanted, first)?;
        let config = yaml::block(&json!({"resources": resources}), 2);
        Ok(format!(
            "# A patch for the machine configuration of control-plane nodes (Talos 1.14 or later).\n\
             # secretboxEncryptionSecret and aescbcEncryptionSecret must leave its cluster section: Talos refuses both.\n\
             machine:\n  files:\n    - path: {}\n      op: create\n      permissions: 0o600\n      content: |\n{}\
             ---\napiVersion: v1alpha1\nkind: KubeEtcdEncryptionConfig\nconfig:\n{config}\
             ---\napiVersion: v1alpha1\nkind: KubeStaticPodConfig\nname: kube-envelope\npod:\n{}",
            wanted.place.config(),
            indented(&self::config(wanted), 8),
            indented(&pod(wanted), 2),
        ))
    };
    Ok(vec![
        private("talos-plugin-first.yaml", one(First::Plugin)?),
        private("talos-former-first.yaml", one(First::Former)?),
    ])
}

fn kind(wanted: &Wanted) -> Result<Vec<PlannedFile>> {
    let nodes: String = (0..wanted.control_planes).map(|_| KIND_NODE).collect();
    let cluster = format!(
        "# kind create cluster --config kind.yaml. The plugin's image must be in the node's image or in a registry: its pod\n\
         # starts before `kind load` can run.\nkind: Cluster\napiVersion: kind.x-k8s.io/v1alpha4\nnodes:\n{nodes}"
    );
    let name = |name: &str, content| private(name, content);
    Ok(vec![
        name("kind.yaml", cluster),
        name("etc/config.yaml", config(wanted)),
        name("encryption/encryption-configuration.yaml", encryption(wanted, First::Plugin)?),
        name("kube-envelope.yaml", pod(wanted)),
    ])
}

const KIND_NODE: &str = "\
- role: control-plane
  extraMounts:
  - { hostPath: ./kube-envelope.yaml, containerPath: /etc/kubernetes/manifests/kube-envelope.yaml, readOnly: true }
  - { hostPath: ./encryption, containerPath: /etc/kubernetes/encryption, readOnly: true }
  - { hostPath: ./etc, containerPath: /etc/kube-envelope, readOnly: true }
  kubeadmConfigPatches:
  - |
    kind: ClusterConfiguration
    apiServer:
      extraArgs:
        encryption-provider-config: /etc/kubernetes/encryption/encryption-configuration.yaml
        encryption-provider-config-automatic-reload: \"true\"
      extraVolumes:
      - { name: encryption, hostPath: /etc/kubernetes/encryption, mountPath: /etc/kubernetes/encryption, readOnly: true, pathType: Directory }
      - { name: kube-envelope, hostPath: /run/kube-envelope, mountPath: /run/kube-envelope, readOnly: true, pathType: DirectoryOrCreate }
";

fn kops(wanted: &Wanted) -> Result<Vec<PlannedFile>> {
    let asset = |name: &str, path: &str, content: &str| {
        format!(
            "    - name: {name}\n      path: {path}\n      roles: [ControlPlane]\n      mode: \"0600\"\n      content: |\n{}",
            indented(content, 8)
        )
    };
    let cluster = format!(
        "# To be merged into the cluster's spec (kops edit cluster). The API server's pod mounts /srv/kubernetes/kube-apiserver\n\
         # alone, so the socket lies below it.\nspec:\n  encryptionConfig: true\n  fileAssets:\n{}{}",
        asset("kube-envelope-config", wanted.place.config(), &config(wanted)),
        asset("kube-envelope-pod", "/etc/kubernetes/manifests/kube-envelope.yaml", &pod(wanted)),
    );
    Ok(vec![
        private("kops-cluster.yaml", cluster),
        private("plugin-first.yaml", encryption(wanted, First::Plugin)?),
        private("former-first.yaml", encryption(wanted, First::Former)?),
    ])
}

fn indented(text: &str, spaces: usize) -> String {
    let pad = " ".repeat(spaces);
    text.lines().fold(String::new(), |all, line| if line.is_empty() { all + "\n" } else { all + &pad + line + "\n" })
}
