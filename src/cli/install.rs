//! Arguments of the commands that set a control plane up: `init`, `policy`.

use std::path::PathBuf;

use clap::{Args, ValueEnum};

use crate::config::DEFAULT_PATH;

/// How a control plane is run: where its files are, and how its API servers are told of the plugin.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Distribution {
    /// kube-apiserver as a static pod, made by kubeadm.
    Kubeadm,
    /// k3s: the API server lives in the k3s process.
    K3s,
    /// RKE2: static pods below /var/lib/rancher/rke2.
    Rke2,
    /// Talos Linux 1.14 or later.
    Talos,
    /// kind: nodes are containers, for tests.
    Kind,
    /// kOps: writes parts to merge into the cluster's spec.
    Kops,
    /// kube-apiserver as a systemd unit.
    Systemd,
}

/// Arguments of `init`.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  kube-envelope init --for kubeadm --cluster prod-eu-1 --new-cluster \\
    --kek awsKms --set key=arn:aws:kms:eu-central-1:111122223333:key/1234abcd-12ab-34cd-56ef-1234567890ab \\
    --image registry.example/kube-envelope:0.1.0
  kube-envelope init --for rke2 --cluster prod --control-planes 3 --image registry.example/kube-envelope:0.1.0 \\
    --former /var/lib/rancher/rke2/server/cred/encryption-config.json \\
    --kek transit --set addresses=[https://vault.example:8200] --set key=kube-envelope \\
    --set auth.approle.roleId=5a3c --set auth.approle.secretIdFile=/etc/kube-envelope/secret-id
  kube-envelope init --for systemd --cluster lab --new-cluster --root ./node --dry-run")]
pub struct InitArgs {
    /// How the control plane is run. Missing values are asked for if there is a terminal.
    #[arg(long = "for", value_enum, value_name = "DISTRIBUTION")]
    pub distribution: Option<Distribution>,
    /// The cluster's name; bound into every ciphertext, and never changed.
    #[arg(long, value_name = "NAME")]
    pub cluster: Option<String>,
    /// The kind of KEK: keyring, awsKms, gcpKms, azureKeyVault, transit or pkcs11.
    #[arg(long, value_name = "KIND")]
    pub kek: Option<String>,
    /// A setting of the KEK, as in the configuration; VALUE is YAML. May be given several times.
    #[arg(long = "set", value_name = "FIELD=VALUE")]
    pub set: Vec<String>,
    /// The resources to encrypt.
    #[arg(long, value_name = "NAME", value_delimiter = ',', default_value = "secrets,configmaps")]
    pub resources: Vec<String>,
    /// The EncryptionConfiguration that the API servers have now, or a Talos machine configuration; "none" if they
    /// have none. Its providers and their keys are kept, after the plugin. By default it is looked for where the
    /// distribution keeps it.
    #[arg(long, value_name = "FILE")]
    pub former: Option<PathBuf>,
    /// Nothing is stored yet: no former provider, and the plugin writes from the first start.
    #[arg(long, conflicts_with = "former")]
    pub new_cluster: bool,
    /// The number of control-plane nodes.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=99))]
    pub control_planes: Option<u16>,
    /// The image of the plugin's pod, preferably by digest.
    #[arg(long, value_name = "IMAGE")]
    pub image: Option<String>,
    /// Run the plugin as a systemd unit where a static pod is usual (kubeadm, rke2).
    #[arg(long)]
    pub unit: bool,
    /// The provider's name in the EncryptionConfiguration; stored with every object, and never changed.
    #[arg(long, value_name = "NAME", default_value = "kube-envelope")]
    pub provider_name: String,
    /// Write below this folder: / for this node itself, another to be copied to the nodes' roots. By default / where
    /// files lie on nodes, and the current folder where a tool takes them (talos, kind, kops).
    #[arg(long, value_name = "DIR")]
    pub root: Option<PathBuf>,
    /// Replace existing files that differ.
    #[arg(long)]
    pub force: bool,
    /// Only show what would be written.
    #[arg(long)]
    pub dry_run: bool,
}

/// Arguments of `policy`.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  kube-envelope policy
  kube-envelope policy --config ./node/etc/kube-envelope/config.yaml")]
pub struct PolicyArgs {
    /// The configuration file that lists the KEKs.
    #[arg(long, default_value = DEFAULT_PATH)]
    pub config: PathBuf,
}
