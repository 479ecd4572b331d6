//! The arguments of `snapshot` and `rehearse`.

use std::path::PathBuf;

use clap::{Args, Subcommand};

use super::etcd::EtcdArgs;
use super::output::OutputFormat;
use super::rotation::DEFAULT_JOURNAL;

/// What opens values.
#[derive(Debug, Args)]
pub struct KeyArgs {
    /// The configuration of kube-envelope: its KEKs are asked directly; no plugin needs to run
    /// [default: /etc/kube-envelope/config.yaml, if it exists].
    #[arg(long, value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// The EncryptionConfiguration of the API servers: its plugins are asked at their sockets for what --config does
    /// not open, and its keys are used.
    #[arg(long, value_name = "FILE")]
    pub encryption_config: Option<PathBuf>,
    /// The private half of the configuration's breakGlass KEK, a file as age-keygen writes it: opens what no other KEK does.
    #[arg(long, value_name = "FILE")]
    pub break_glass: Option<PathBuf>,
}

/// The commands on a snapshot of etcd.
#[derive(Debug, Subcommand)]
pub enum SnapshotCommand {
    /// List the keys that a snapshot needs, without using any: how every value in it is stored.
    Keys(SnapshotKeysArgs),
    /// Extract one object from a snapshot with only a KEK: no API server, no etcd, no plugin.
    Get(SnapshotGetArgs),
    /// Bring a snapshot under the active KEK versions: a new file that no longer needs the former ones. Uses etcd's own
    /// programs in a temporary folder; the file itself is not changed.
    Rewrap(SnapshotRewrapArgs),
}

/// Arguments of `snapshot keys`.
#[derive(Debug, Args)]
pub struct SnapshotKeysArgs {
    /// A file that `etcdctl snapshot save` wrote.
    #[arg(required_unless_present = "etcd", conflicts_with = "etcd")]
    pub file: Option<PathBuf>,
    /// A running etcd instead.
    #[command(flatten)]
    pub etcd: EtcdArgs,
    /// The API servers' --etcd-prefix.
    #[arg(long, value_name = "PATH", default_value = "/registry")]
    pub etcd_prefix: String,
    /// The configuration of kube-envelope: each KEK version is then asked whether it still opens what it wrapped
    /// [default: /etc/kube-envelope/config.yaml, if it exists].
    #[arg(long, value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// The output format.
    #[arg(long, short, value_enum, default_value_t)]
    pub output: OutputFormat,
}

/// Arguments of `snapshot get`.
#[derive(Debug, Args)]
pub struct SnapshotGetArgs {
    /// A file that `etcdctl snapshot save` wrote.
    pub file: PathBuf,
    /// The object's key in etcd, such as `/registry/secrets/default/name`; the part before `secrets` may be left out.
    pub key: String,
    /// What opens it.
    #[command(flatten)]
    pub keys: KeyArgs,
    /// The API servers' --etcd-prefix.
    #[arg(long, value_name = "PATH", default_value = "/registry")]
    pub etcd_prefix: String,
    /// Print the bytes as the API server stored them, even for Secrets and ConfigMaps.
    #[arg(long)]
    pub raw: bool,
}

/// Arguments of `snapshot rewrap`.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  kube-envelope snapshot rewrap snapshot.db --config /etc/kube-envelope/config.yaml
  kube-envelope snapshot rewrap snapshot.db --to rewrapped.db \\
    --encryption-config /etc/kubernetes/encryption/encryption-configuration.yaml")]
pub struct SnapshotRewrapArgs {
    /// A file that `etcdctl snapshot save` wrote.
    pub file: PathBuf,
    /// The new file, which must not exist yet; temporary files are put beside it [default: FILE.rewrapped].
    #[arg(long, value_name = "FILE")]
    pub to: Option<PathBuf>,
    /// What opens values and wraps their seeds: the KEKs of --config, else the plugins of --encryption-config.
    #[command(flatten)]
    pub keys: KeyArgs,
    /// The API servers' --etcd-prefix.
    #[arg(long, value_name = "PATH", default_value = "/registry")]
    pub etcd_prefix: String,
    /// The program etcd, in the version of the cluster's [default: found in PATH].
    #[arg(long, value_name = "FILE")]
    pub etcd_binary: Option<PathBuf>,
    /// The program etcdutl, in the same version [default: found in PATH].
    #[arg(long, value_name = "FILE")]
    pub etcdutl_binary: Option<PathBuf>,
    /// The output format.
    #[arg(long, short, value_enum, default_value_t)]
    pub output: OutputFormat,
}

/// Arguments of `rehearse`.
#[derive(Debug, Args)]
pub struct RehearseArgs {
    /// A file that `etcdctl snapshot save` wrote; or give --etcd.
    #[arg(required_unless_present = "etcd", conflicts_with = "etcd")]
    pub file: Option<PathBuf>,
    /// A running etcd instead.
    #[command(flatten)]
    pub etcd: EtcdArgs,
    /// The API servers' --etcd-prefix.
    #[arg(long, value_name = "PATH", default_value = "/registry")]
    pub etcd_prefix: String,
    /// What opens values.
    #[command(flatten)]
    pub keys: KeyArgs,
    /// Assume that this key is gone: KEK, KEK:VERSION (names of the configuration or lineages), or the `key_id` of another
    /// plugin; may be given several times.
    #[arg(long, value_name = "KEY")]
    pub without: Vec<String>,
    /// The journal of the rotations: a key of --without that no value needs is taken for misspelt unless a KEK or one of them
    /// knows it.
    #[arg(long, value_name = "FILE", default_value = DEFAULT_JOURNAL)]
    pub journal: PathBuf,
    /// The output format.
    #[arg(long, short, value_enum, default_value_t)]
    pub output: OutputFormat,
}
