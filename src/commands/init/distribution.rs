//! Where each distribution has its files, and what it calls things. `docs/install/` says the same in prose, with what
//! was started by this project's tests and what was not.

use std::path::{Path, PathBuf};

use anyhow::{Result, bail};

use super::refused::Refused;
use crate::cli::install::Distribution;
use crate::config::{DEFAULT_PATH, DEFAULT_SOCKET};

/// A distribution, and how the plugin is run there.
#[derive(Clone, Copy, Debug)]
pub(super) struct Place {
    pub(super) distribution: Distribution,
    pub(super) runs: Runs,
}

/// How the plugin is run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Runs {
    /// A static pod in this folder of the node.
    Pod(&'static str),
    /// A systemd unit, `kube-envelope.service`.
    Unit,
    /// A pod in a document of the distribution's own.
    Document,
}

/// What a node shows about the EncryptionConfiguration in use.
pub(super) enum FormerHere {
    /// It is in this file.
    Is(PathBuf),
    /// The node's API server has none.
    Nothing,
    /// The node does not tell.
    Unknown,
}

pub(super) const UNIT: &str = "/etc/systemd/system/kube-envelope.service";

impl Place {
    /// # Errors
    /// A unit where there is no systemd to run it.
    pub(super) fn new(distribution: Distribution, unit: bool) -> Result<Self> {
        let runs = match distribution {
            Distribution::Kubeadm if !unit => Runs::Pod("/etc/kubernetes/manifests"),
            Distribution::Rke2 if !unit => Runs::Pod("/var/lib/rancher/rke2/agent/pod-manifests"),
            Distribution::K3s | Distribution::Systemd | Distribution::Kubeadm | Distribution::Rke2 => Runs::Unit,
            Distribution::Talos | Distribution::Kind | Distribution::Kops if unit => {
                bail!(Refused("--unit is for kubeadm and rke2 only".into()))
            }
            Distribution::Kind => Runs::Pod("/etc/kubernetes/manifests"),
            Distribution::Talos | Distribution::Kops => Runs::Document,
        };
        Ok(Self { distribution, runs })
    }

    pub(super) fn needs_image(&self) -> bool {
        self.runs != Runs::Unit
    }

    pub(super) fn default_root(&self) -> &'static str {
        match self.distribution {
            Distribution::Talos | Distribution::Kind | Distribution::Kops => ".",
            _ => "/",
        }
    }

    /// Whether files are given to a tool, and not laid on a node.
    pub(super) fn is_given_to_a_tool(&self) -> bool {
        self.default_root() == "."
    }

    /// The plugin's configuration, on the node.
    pub(super) fn config(&self) -> &'static str {
        match self.distribution {
            // The only folder that a machine configuration may write to, and that survives.
            Distribution::Talos => "/var/lib/kube-envelope-config/config.yaml",
            _ => DEFAULT_PATH,
        }
    }

    /// The plugin's `socket`.
    pub(super) fn socket(&self) -> &'static str {
        match self.distribution {
            // The API server's pod mounts no folder of ours, and runs as 65534: the kernel tells who connects.
            Distribution::Talos => "@kube-envelope",
            // The one folder that the API server's pod mounts.
            Distribution::Kops => "/srv/kubernetes/kube-apiserver/kube-envelope/kms.sock",
            _ => DEFAULT_SOCKET,
        }
    }

    /// The provider's `endpoint`.
    pub(super) fn endpoint(&self) -> String {
        match self.socket() {
            socket if socket.starts_with('@') => format!("unix:///{socket}"),
            socket => format!("unix://{socket}"),
        }
    }

    /// The former EncryptionConfiguration, as far as this node tells.
    pub(super) fn former_on_this_node(&self, root: &Path) -> Result<FormerHere> {
        let at = |path: &str| root.join(path.trim_start_matches('/'));
        match self.distribution {
            Distribution::Rke2 => {
                let file = at("/var/lib/rancher/rke2/server/cred/encryption-config.json");
                Ok(if file.exists() { FormerHere::Is(file) } else { FormerHere::Unknown })
            }
            Distribution::K3s => {
                let file = at("/var/lib/rancher/k3s/server/cred/encryption-config.json");
                let is_a_server = at("/var/lib/rancher/k3s/server/cred").exists();
                Ok(match (file.exists(), is_a_server) {
                    (true, _) => FormerHere::Is(file),
                    (false, true) => FormerHere::Nothing,
                    (false, false) => FormerHere::Unknown,
                })
            }
            Distribution::Kubeadm => of_manifest(&at("/etc/kubernetes/manifests/kube-apiserver.yaml")),
            _ => Ok(FormerHere::Unknown),
        }
    }

    /// Where an operator finds the former configuration.
    pub(super) fn former_hint(&self) -> &'static str {
        match self.distribution {
            Distribution::Rke2 => {
                "/var/lib/rancher/rke2/server/cred/encryption-config.json of a server: RKE2 always encrypts"
            }
            Distribution::K3s => "/var/lib/rancher/k3s/server/cred/encryption-config.json of a server, if it is there",
            Distribution::Talos => {
                "the machine configuration, which holds secretboxEncryptionSecret: Talos always encrypts"
            }
            Distribution::Kops => {
                "/srv/kubernetes/kube-apiserver/encryptionconfig.yaml of a control-plane node, if it is there"
            }
            _ => "the file that --encryption-provider-config of kube-apiserver names",
        }
    }

    /// How rotate-keys and verify reach etcd; a single node of k3s has kine unless it has an etcd.
    pub(super) fn etcd_flags(&self, has_etcd: bool) -> &'static str {
        match self.distribution {
            Distribution::Kubeadm | Distribution::Kind => {
                "--etcd https://127.0.0.1:2379 --etcd-ca /etc/kubernetes/pki/etcd/ca.crt \\\n     \
                 --etcd-cert /etc/kubernetes/pki/apiserver-etcd-client.crt --etcd-key /etc/kubernetes/pki/apiserver-etcd-client.key"
            }
            Distribution::K3s if !has_etcd => "--etcd unix:///var/lib/rancher/k3s/server/kine.sock",
            Distribution::K3s => {
                "--etcd https://127.0.0.1:2379 --etcd-ca /var/lib/rancher/k3s/server/tls/etcd/server-ca.crt \\\n     \
                 --etcd-cert /var/lib/rancher/k3s/server/tls/etcd/server-client.crt --etcd-key /var/lib/rancher/k3s/server/tls/etcd/server-client.key"
            }
            Distribution::Rke2 => {
                "--etcd https://127.0.0.1:2379 --etcd-ca /var/lib/rancher/rke2/server/tls/etcd/server-ca.crt \\\n     \
                 --etcd-cert /var/lib/rancher/rke2/server/tls/etcd/server-client.crt --etcd-key /var/lib/rancher/rke2/server/tls/etcd/server-client.key"
            }
            Distribution::Kops => {
                "--etcd https://127.0.0.1:4001 --etcd https://127.0.0.1:4002 --etcd-ca CA --etcd-cert CERT --etcd-key KEY"
            }
            Distribution::Talos | Distribution::Systemd => "--etcd URL --etcd-ca CA --etcd-cert CERT --etcd-key KEY",
        }
    }

    pub(super) fn kubeconfig(&self) -> &'static str {
        match self.distribution {
            Distribution::K3s => "/etc/rancher/k3s/k3s.yaml",
            Distribution::Rke2 => "/etc/rancher/rke2/rke2.yaml",
            Distribution::Kubeadm | Distribution::Kind => "/etc/kubernetes/admin.conf",
            _ => "KUBECONFIG",
        }
    }
}

/// The file that the API server's static pod names; on a node of kubeadm's its path is the same in the pod.
fn of_manifest(manifest: &Path) -> Result<FormerHere> {
    let Ok(text) = std::fs::read_to_string(manifest) else { return Ok(FormerHere::Unknown) };
    if !text.contains("encryption-provider-config") {
        return Ok(FormerHere::Nothing);
    }
    bail!(Refused(format!(
        "{} already names an EncryptionConfiguration; give its path on this machine with --former",
        manifest.display()
    )))
}
