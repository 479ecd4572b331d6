//! The shape of the commands; no behaviour.

#[cfg(feature = "rotate")]
pub mod backup;
pub(crate) mod break_glass;
#[cfg(feature = "rotate")]
pub mod etcd;
#[cfg(feature = "rotate")]
pub mod evidence;
pub mod install;
mod output;
#[cfg(feature = "rotate")]
pub mod rotation;

use std::path::PathBuf;

use clap::{Args, CommandFactory, FromArgMatches, Parser, Subcommand};

pub use self::output::OutputFormat;
use crate::config::DEFAULT_PATH;
use crate::telemetry::LogFormat;

/// Keeps Kubernetes Secrets encrypted at rest under a key held outside the cluster.
#[derive(Debug, Parser)]
#[command(name = "kube-envelope", version, about, max_term_width = 100)]
pub struct Cli {
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// As kubectl finds it, a plugin of its own.
const KUBECTL_PLUGIN: &str = "kubectl-envelope";

impl Cli {
    /// The arguments of this process; a usage error ends it. Under the name `kubectl-envelope` its help speaks of
    /// `kubectl envelope`.
    pub fn of_process() -> Self {
        let mut command = Self::command();
        let program = std::env::args_os().next().map(PathBuf::from);
        if program.as_deref().and_then(std::path::Path::file_stem).is_some_and(|name| name == KUBECTL_PLUGIN) {
            command = command.bin_name("kubectl envelope");
        }
        Self::from_arg_matches(&command.get_matches()).unwrap_or_else(|error| error.exit())
    }
}

impl Command {
    /// Whether nothing is lost when the command ends at once because nobody reads what it prints.
    pub fn only_prints(&self) -> bool {
        match self {
            Self::Serve(_) | Self::Hold { .. } | Self::KeyStoreHost { .. } | Self::Keyring(_) | Self::Init(_) => false,
            Self::BreakGlass(_) => false,
            #[cfg(feature = "rotate")]
            Self::RotateKeys(_)
            | Self::Snapshot(backup::SnapshotCommand::Rewrap(_))
            | Self::Evidence(evidence::EvidenceCommand::Sign(_))
            | Self::EndWithParent { .. } => false,
            _ => true,
        }
    }
}

/// One variant for each command; the help of a command is the comment of its variant.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Run the KMS v2 plugin beside an API server.
    Serve(ServeArgs),
    /// Re-encrypt everything under the current key, and prove that nothing is left on an older one.
    #[cfg(feature = "rotate")]
    RotateKeys(Box<rotation::RotateKeysArgs>),
    /// Check whether anything is left on an older key. Changes nothing.
    #[cfg(feature = "rotate")]
    Verify(Box<rotation::VerifyArgs>),
    /// Check whether an API server that starts now would become ready: opens every value in etcd, or in a snapshot.
    #[cfg(feature = "rotate")]
    Rehearse(Box<backup::RehearseArgs>),
    /// Inspect a snapshot of etcd: the keys that it needs, and single objects; or rewrap it.
    #[cfg(feature = "rotate")]
    #[command(subcommand)]
    Snapshot(backup::SnapshotCommand),
    /// Sign, check and print what a rotation has shown.
    #[cfg(feature = "rotate")]
    #[command(subcommand)]
    Evidence(evidence::EvidenceCommand),
    /// Show the state of the running plugin.
    Status(StatusArgs),
    /// Check the configuration, this node and the KEKs, and suggest fixes. Changes nothing.
    Doctor(DoctorArgs),
    /// Write what a control plane needs to run the plugin: configuration, EncryptionConfiguration, pod or unit.
    Init(Box<install::InitArgs>),
    /// Print the minimal policy that each KEK of a configuration needs.
    Policy(install::PolicyArgs),
    /// Create and change a local keyring file.
    #[command(subcommand)]
    Keyring(KeyringCommand),
    /// Make and try the private half of a break-glass KEK, which is kept offline.
    #[command(subcommand)]
    BreakGlass(break_glass::BreakGlassCommand),
    /// Work with audit logs.
    #[command(subcommand)]
    Audit(AuditCommand),
    /// Print a completion script for a shell.
    Completions {
        /// The shell to write the script for.
        shell: clap_complete::Shell,
    },
    /// Write the manual pages, one for each command.
    Man {
        /// An existing folder.
        folder: PathBuf,
    },
    /// Run another program that ends when its parent does. Started by `snapshot rewrap`, for itself.
    #[cfg(feature = "rotate")]
    #[command(hide = true)]
    EndWithParent {
        /// The parent's process id.
        parent: i32,
        /// The program to run; a name is searched for in `PATH`.
        program: PathBuf,
        /// Passed on as they are.
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        arguments: Vec<std::ffi::OsString>,
    },
    /// Hold the plugin's keys in memory while the plugin restarts, in another container of its pod.
    #[command(after_help = "\
Examples:
  kube-envelope hold --config /etc/kube-envelope/config.yaml")]
    Hold {
        /// The plugin's configuration, which names the socket to listen on (handover.socket).
        #[arg(long, default_value = DEFAULT_PATH)]
        config: PathBuf,
    },
    /// Run a key store's library in a process of its own. Started by the plugin, for itself.
    #[command(hide = true)]
    KeyStoreHost {
        /// Which kind of key store.
        kind: String,
    },
}

/// Arguments of `serve`.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  kube-envelope serve
  kube-envelope serve --dev /tmp/kube-envelope-dev")]
pub struct ServeArgs {
    /// The configuration file.
    #[arg(long, default_value = DEFAULT_PATH)]
    pub config: PathBuf,
    /// Create everything that is needed in this folder, with an embedded keyring, instead of reading a configuration. Not
    /// for production.
    #[arg(long, value_name = "DIR", conflicts_with = "config")]
    pub dev: Option<PathBuf>,
    /// For the day on which no other KEK is left: the private half of the configuration's breakGlass KEK, a file as age-keygen
    /// writes it, which only its owner can read. It is then in this process's memory.
    #[arg(long, value_name = "FILE", conflicts_with = "dev")]
    pub break_glass: Option<PathBuf>,
    /// The log format.
    #[arg(long, value_enum, default_value_t)]
    pub log_format: LogFormat,
}

/// Arguments of `status`.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  kube-envelope status
  kube-envelope status --output json")]
pub struct StatusArgs {
    /// The configuration file of the running plugin; it names the health endpoint to ask.
    #[arg(long, default_value = DEFAULT_PATH)]
    pub config: PathBuf,
    /// The output format.
    #[arg(long, short, value_enum, default_value_t)]
    pub output: OutputFormat,
}

/// Arguments of `doctor`. Run it as the plugin's user, with the plugin's environment.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  kube-envelope doctor --apiserver-manifest /etc/kubernetes/manifests/kube-apiserver.yaml
  kube-envelope doctor --encryption-config /etc/kubernetes/encryption/encryption-configuration.yaml --output json
  kube-envelope doctor --kubeconfig /etc/kubernetes/admin.conf")]
pub struct DoctorArgs {
    /// The configuration file.
    #[arg(long, default_value = DEFAULT_PATH)]
    pub config: PathBuf,
    /// The API server's EncryptionConfiguration, to be checked as well.
    #[arg(long, value_name = "FILE")]
    pub encryption_config: Option<PathBuf>,
    /// What kube-apiserver is started with, to be checked as well, with the EncryptionConfiguration it names: its static
    /// pod or systemd unit, the configuration of kubeadm, k3s or RKE2, a file of arguments, or /proc/PID/cmdline.
    #[arg(long, value_name = "FILE")]
    pub apiserver_manifest: Option<PathBuf>,
    /// A kubeconfig, to check the cluster as well: whether the API servers agree, who may read Secrets, which pods have a
    /// default token, which ConfigMaps look like credentials.
    #[cfg(feature = "rotate")]
    #[arg(long, value_name = "FILE")]
    pub kubeconfig: Option<PathBuf>,
    /// An etcd, to be searched for values in clear, or by a provider that no longer writes.
    #[cfg(feature = "rotate")]
    #[command(flatten)]
    pub etcd: etcd::EtcdArgs,
    /// The API servers' --etcd-prefix.
    #[cfg(feature = "rotate")]
    #[arg(long, value_name = "PATH", default_value = "/registry")]
    pub etcd_prefix: String,
    /// The output format.
    #[arg(long, short, value_enum, default_value_t)]
    pub output: OutputFormat,
}

/// The commands on audit logs.
#[derive(Debug, Subcommand)]
pub enum AuditCommand {
    /// Check that an audit log is complete and unchanged.
    Verify {
        /// The files, oldest first; by default the one that the configuration names.
        files: Vec<PathBuf>,
        /// The configuration file that names the log.
        #[arg(long, default_value = DEFAULT_PATH)]
        config: PathBuf,
        /// A record that is known to have been written, as `status` or the metrics showed it; without it, the one in FILE.head.
        #[arg(long, value_name = "NUMBER:HASH")]
        head: Option<String>,
    },
}

/// The commands on a keyring file. Copy the file to all nodes after each change.
#[derive(Debug, Subcommand)]
#[command(after_help = "\
Examples:
  kube-envelope keyring create /etc/kube-envelope/keyring.json
  kube-envelope keyring add /etc/kube-envelope/keyring.json
  kube-envelope keyring activate /etc/kube-envelope/keyring.json
  kube-envelope keyring list /etc/kube-envelope/keyring.json")]
pub enum KeyringCommand {
    /// Create a keyring with one active version. An existing file is never overwritten.
    Create {
        /// The keyring file.
        file: PathBuf,
    },
    /// Add a pending version: it can decrypt, and encrypts nothing until it is activated.
    Add {
        /// The keyring file.
        file: PathBuf,
    },
    /// Make a pending version active; the one that was active becomes retired.
    Activate {
        /// The keyring file.
        file: PathBuf,
        /// The version's id; may be left out when exactly one is pending.
        version: Option<String>,
    },
    /// Retire a pending version that must never become active.
    Retire {
        /// The keyring file.
        file: PathBuf,
        /// The version's id.
        version: String,
    },
    /// Remove a retired version permanently. Run `kube-envelope verify` first: data that only this version opens are lost.
    Destroy {
        /// The keyring file.
        file: PathBuf,
        /// The version's id.
        version: String,
        /// Do not ask. Without it, a terminal is needed.
        #[arg(long)]
        yes: bool,
    },
    /// Add the versions that another file of the same keyring has and this one lacks: of a backup, or of another node.
    Merge {
        /// The keyring file.
        file: PathBuf,
        /// The other file; it stays as it is.
        other: PathBuf,
    },
    /// List the versions; no key is shown.
    List {
        /// The keyring file.
        file: PathBuf,
        /// The output format.
        #[arg(long, short, value_enum, default_value_t)]
        output: OutputFormat,
    },
}
