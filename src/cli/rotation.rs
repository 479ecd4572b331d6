//! The arguments of `rotate-keys` and `verify`.

use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, ValueEnum};
use serde::Serialize;

use super::etcd::EtcdArgs;
use super::output::OutputFormat;

/// The longest wait that is accepted; a longer one is most likely a mistake.
const LONGEST_TIME: Duration = Duration::from_hours(365 * 24);

/// The default place of the journal.
pub const DEFAULT_JOURNAL: &str = "/var/lib/kube-envelope/rotation/journal.json";

/// How the cluster and its etcd are reached, and what is encrypted.
#[derive(Debug, Args)]
pub struct ClusterArgs {
    /// Kubeconfig; by default $KUBECONFIG, ~/.kube/config, or the service account of the pod.
    #[arg(long, value_name = "FILE")]
    pub kubeconfig: Option<PathBuf>,
    /// Context in the kubeconfig.
    #[arg(long)]
    pub context: Option<String>,
    /// URL of one API server; repeat it for each. By default the endpoints of default/kubernetes.
    #[arg(long = "server", value_name = "URL")]
    pub servers: Vec<String>,
    /// CA of the API servers' own certificates, if the kubeconfig points to a load balancer with another CA.
    #[arg(long, value_name = "FILE")]
    pub server_ca: Option<PathBuf>,
    /// How many API servers there are, if Leases, endpoints and Nodes do not show it.
    #[arg(long = "servers", value_name = "N", value_parser = clap::value_parser!(u16).range(1..))]
    pub server_count: Option<u16>,
    /// The EncryptionConfiguration that the API servers run with; by default it is guessed from their metrics.
    #[arg(long, value_name = "FILE")]
    pub encryption_config: Option<PathBuf>,
    /// How etcd is reached.
    #[command(flatten)]
    pub etcd: EtcdArgs,
    /// The API servers' --etcd-prefix [default: /registry].
    #[arg(long, value_name = "PATH")]
    pub etcd_prefix: Option<String>,
    /// The configuration of kube-envelope on a control-plane node: its KEKs are asked which version is active
    /// [default: /etc/kube-envelope/config.yaml, if it exists].
    #[arg(long, value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// The target `key_id`; by default the one that the plugins report.
    #[arg(long, value_name = "ID")]
    pub key_id: Option<String>,
    /// Maximum number of requests in flight [default: 64].
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..))]
    pub max_concurrency: Option<u16>,
    /// Maximum number of requests per second.
    #[arg(long, value_name = "N", value_parser = rate)]
    pub qps: Option<f64>,
    /// The output format.
    #[arg(long, short, value_enum, default_value_t)]
    pub output: OutputFormat,
}

/// A time that can be waited for.
///
/// # Errors
/// What is wrong with it.
pub fn time(text: &str) -> Result<Duration, String> {
    let time = humantime::parse_duration(text).map_err(|error| error.to_string())?;
    if time <= LONGEST_TIME { Ok(time) } else { Err("at most 365days".to_owned()) }
}

/// An age that a key may have.
fn age(text: &str) -> Result<Duration, String> {
    let age = humantime::parse_duration(text).map_err(|error| error.to_string())?;
    if age <= 100 * LONGEST_TIME { Ok(age) } else { Err("at most 36500days".to_owned()) }
}

/// A time between two things that are done again and again.
fn interval(text: &str) -> Result<Duration, String> {
    let interval = time(text)?;
    if interval >= Duration::from_secs(1) { Ok(interval) } else { Err("at least 1s".to_owned()) }
}

/// A rate that something gets done at.
fn rate(text: &str) -> Result<f64, String> {
    let rate: f64 = text.parse().map_err(|_| "not a number".to_owned())?;
    if rate.is_finite() && rate >= 0.01 {
        return Ok(rate);
    }
    Err("give a number of requests a second, 0.01 or more, or leave it out for no limit".into())
}

/// Arguments of `rotate-keys`.
#[derive(Debug, Args)]
#[allow(clippy::struct_excessive_bools, reason = "each is a flag of the command line")]
#[command(after_help = "\
Examples:
  kube-envelope rotate-keys --plan --kubeconfig /etc/kubernetes/admin.conf
  kube-envelope rotate-keys --kubeconfig /etc/kubernetes/admin.conf \\
    --encryption-config /etc/kubernetes/encryption/encryption-configuration.yaml \\
    --etcd https://127.0.0.1:2379 --etcd-ca /etc/kubernetes/pki/etcd/ca.crt \\
    --etcd-cert /etc/kubernetes/pki/apiserver-etcd-client.crt \\
    --etcd-key /etc/kubernetes/pki/apiserver-etcd-client.key
  kube-envelope rotate-keys --resume
  kube-envelope rotate-keys --resume --backup january.db.rewrapped --backup february.db")]
pub struct RotateKeysArgs {
    /// How the cluster is reached.
    #[command(flatten)]
    pub cluster: ClusterArgs,
    /// First make a new version of each KEK active. Needs the plugin's configuration.
    #[arg(long)]
    pub rotate_kek: bool,
    /// With --rotate-kek: only if the active version of a KEK is older than this, for example 90d; else it ends with 11 and
    /// touches nothing. A rotation in the journal that is unfinished, or has no Yes yet, goes on first.
    #[arg(long, value_name = "AGE", value_parser = age, requires = "rotate_kek", conflicts_with = "mode")]
    pub if_older_than: Option<Duration>,
    /// For a scheduler, which knows no more than success and failure: end with 0 where nobody is needed, which is after 0, 7, 9
    /// and 11. A 0 then says nothing about any key.
    #[arg(long, requires = "if_older_than")]
    pub unattended: bool,
    /// Another key to prove unused, besides those that are found: KEK, KEK:VERSION, or a `key_id`; may be given
    /// several times.
    #[arg(long, value_name = "KEY")]
    pub former: Vec<String>,
    /// The journal of the rotation; its evidence is written beside it.
    #[arg(long, value_name = "FILE", default_value = DEFAULT_JOURNAL)]
    pub journal: PathBuf,
    /// Rewrite Events, too; this extends their lifetime.
    #[arg(long)]
    pub include_events: bool,
    /// How long to wait for all API servers to adopt the key [default: 20m].
    #[arg(long, value_name = "TIME", value_parser = time)]
    pub adoption_timeout: Option<Duration>,
    /// How often to check again that all API servers use the target key [default: 30s].
    #[arg(long, value_name = "TIME", value_parser = time)]
    pub agreement_interval: Option<Duration>,
    /// The API servers' --request-timeout: how long a write may be in flight [default: 1m].
    #[arg(long, value_name = "TIME", value_parser = time)]
    pub request_timeout: Option<Duration>,
    /// How long to wait after the last rewrite: twice the API servers' --etcd-compaction-interval [default: 10m].
    #[arg(long, value_name = "TIME", value_parser = time)]
    pub settle: Option<Duration>,
    /// Compact etcd when old revisions are in the way: when it fills up, and at the end. Clients that read old
    /// revisions must list again.
    #[arg(long)]
    pub compact: bool,
    /// A resource not to rewrite, such as widgets.example.com; may be given several times. Its leftovers are
    /// still searched for.
    #[arg(long, value_name = "RESOURCE")]
    pub skip: Vec<String>,
    /// Rewrite objects even where that changes more than their ciphertext: of one resource, or of all where none is
    /// named. Without it, such objects are listed and skipped.
    #[arg(long, value_name = "RESOURCE", num_args = 0..=1, require_equals = true, default_missing_value = "*")]
    pub allow_changes: Vec<String>,
    /// The newest snapshot of etcd, as `etcdctl snapshot save` wrote it; repeat it for each etcd cluster. Its
    /// revision is read from the file.
    #[arg(long, value_name = "FILE")]
    pub snapshot_file: Vec<PathBuf>,
    /// A backup that must stay readable, also after the KEK version was destroyed; may be given several times. The verdict
    /// then says whether any of them needs a former version.
    #[arg(long, value_name = "FILE")]
    pub backup: Vec<PathBuf>,
    /// When the newest snapshot of etcd was taken, for example 2026-01-31T12:00:00Z.
    #[arg(long, value_name = "TIME")]
    pub snapshot_taken: Option<jiff::Timestamp>,
    /// A shell command that takes a snapshot of etcd; it is run before the rewrite and after the settle time.
    #[arg(long, value_name = "COMMAND", conflicts_with = "snapshot_taken")]
    pub snapshot_command: Option<String>,
    /// Write progress and verdict there as Prometheus text, for example for the node exporter's textfile collector.
    #[arg(long, value_name = "FILE")]
    pub metrics_file: Option<PathBuf>,
    /// How objects are rewritten.
    #[arg(long, value_enum, value_name = "METHOD")]
    pub method: Option<RewriteMethod>,
    /// Split the rewrite over N pods of manifests/rotate-keys-job.yaml, for clusters of a million objects. --qps and
    /// --max-concurrency are for all of them together.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=256))]
    pub shards: Option<u32>,
    /// Continue even if the API servers' own metrics cannot be read: the verdict is then "not proven" at best.
    #[arg(long)]
    pub accept_unproven: bool,
    /// Only print what would be done.
    #[arg(long, group = "mode")]
    pub plan: bool,
    /// Only try each rewrite (a server-side dry run), and list the objects that would be refused. Nothing is stored.
    #[arg(long, group = "mode")]
    pub dry_run: bool,
    /// Work as shard number INDEX, counted from 0, of a rotation that runs elsewhere with --shards: only rewrite.
    #[arg(long, value_name = "INDEX", group = "mode", conflicts_with_all = ["shards", "rotate_kek"])]
    pub shard: Option<u32>,
    /// Only print the minimal RBAC rules that are needed.
    #[arg(long, group = "mode")]
    pub print_rbac: bool,
    /// Resume the rotation in the journal, with the settings that it began with.
    #[arg(long, group = "mode")]
    pub resume: bool,
    /// Only print the state of the rotation in the journal.
    #[arg(long, group = "mode")]
    pub status: bool,
    /// Abandon the rotation in the journal. Always safe: both keys stay readable.
    #[arg(long, group = "mode")]
    pub abort: bool,
}

/// How objects are rewritten.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum RewriteMethod {
    /// Through the API servers, with empty patches: every object is re-encrypted (default).
    Patch,
    /// Directly in etcd, many times faster: only the seed of each object is rewrapped. Needs --etcd with the right to
    /// write, --encryption-config, the plugin's socket, and a snapshot. Not after a suspected leak of a DEK or seed.
    Rewrap,
}

/// Arguments of `verify`.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  kube-envelope verify --kubeconfig /etc/kubernetes/admin.conf
  kube-envelope verify --kubeconfig /etc/kubernetes/admin.conf --output json \\
    --metrics-file /var/lib/node_exporter/textfile_collector/kube-envelope.prom
  kube-envelope verify --watch --kubeconfig /etc/kubernetes/admin.conf \\
    --etcd https://127.0.0.1:2379 --etcd-ca /etc/kubernetes/pki/etcd/ca.crt \\
    --etcd-cert /etc/kubernetes/pki/apiserver-etcd-client.crt \\
    --etcd-key /etc/kubernetes/pki/apiserver-etcd-client.key \\
    --metrics-file /var/lib/node_exporter/textfile_collector/kube-envelope-watch.prom")]
pub struct VerifyArgs {
    /// How the cluster is reached.
    #[command(flatten)]
    pub cluster: ClusterArgs,
    /// A snapshot of etcd to check as well; may be given several times.
    #[arg(long, value_name = "FILE")]
    pub snapshot_file: Vec<PathBuf>,
    /// Write the outcome as metrics to this file, for the node exporter's textfile collector.
    #[arg(long, value_name = "FILE")]
    pub metrics_file: Option<PathBuf>,
    /// Keep running and follow etcd: count the values under each key as they change, and say when something is stored under
    /// a former key. Needs --etcd. Until it is stopped; it then ends with 6 if something is under a former key, else with 8.
    #[arg(long, requires = "etcd", conflicts_with = "snapshot_file")]
    pub watch: bool,
    /// With --watch: how often the metrics file is written.
    #[arg(long, value_name = "TIME", value_parser = interval, default_value = "15s")]
    pub interval: Duration,
}
