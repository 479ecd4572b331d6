//! The arguments of `evidence`.

use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Subcommand};

use super::rotation::{DEFAULT_JOURNAL, time};

/// The commands on the evidence of a rotation.
#[derive(Debug, Subcommand)]
#[command(after_help = "\
Examples:
  kube-envelope evidence sign evidence-20260131T120000Z.json --key signing.pem
  kube-envelope evidence verify evidence-20260131T120000Z.intoto.json --public-key signing.pub --former vault:3
  kube-envelope evidence report evidence-20260131T120000Z.intoto.json --public-key signing.pub
  kube-envelope evidence history")]
pub enum EvidenceCommand {
    /// Write an in-toto Statement about a rotation in a signed DSSE envelope.
    Sign(EvidenceSignArgs),
    /// Check the signature and the content of an envelope. Ends with the exit code of the verdict in it, and with 8 for a "Yes" that is
    /// old, or not about the keys that are named.
    Verify(EvidenceVerifyArgs),
    /// Print one page of Markdown, from an envelope or from an evidence file.
    Report(EvidenceReportArgs),
    /// List every verdict that was given, and check that no line of the history was changed or removed.
    History(EvidenceHistoryArgs),
}

/// Arguments of `evidence sign`.
#[derive(Debug, Args)]
pub struct EvidenceSignArgs {
    /// The evidence file of a rotation.
    pub file: PathBuf,
    /// An Ed25519 key in PKCS#8 PEM, as `openssl genpkey -algorithm ed25519` makes it.
    #[arg(long, value_name = "FILE", required_unless_present = "command")]
    pub key: Option<PathBuf>,
    /// A shell command that reads a message and prints its signature in base64, by a key in a key store for example.
    #[arg(long, value_name = "COMMAND", conflicts_with = "key")]
    pub command: Option<String>,
    /// A name for the key of --command, as a hint for those who verify.
    #[arg(long, value_name = "ID", requires = "command")]
    pub key_id: Option<String>,
    /// The new file [default: FILE with the extension intoto.json].
    #[arg(long, value_name = "FILE")]
    pub to: Option<PathBuf>,
}

/// Arguments of `evidence verify`.
#[derive(Debug, Args)]
pub struct EvidenceVerifyArgs {
    /// The envelope that `evidence sign` wrote.
    pub file: PathBuf,
    /// Who must have signed it: a public key in PEM, Ed25519, ECDSA (P-256 or P-384) or RSA.
    #[arg(long, value_name = "FILE")]
    pub public_key: PathBuf,
    /// The evidence file, whose digest must be the one in the envelope.
    #[arg(long, value_name = "FILE")]
    pub evidence: Option<PathBuf>,
    /// A key that is to be disabled: KEK:VERSION or a `key_id`, as the verdict names it; may be given several times. Unless the
    /// verdict allows it, the command ends with 8.
    #[arg(long, value_name = "KEY")]
    pub former: Vec<String>,
    /// How long ago everything may have been searched. A "Yes" that is older ends with 8.
    #[arg(long, value_name = "TIME", default_value = "24h", value_parser = time)]
    pub max_age: Duration,
}

/// Arguments of `evidence report`.
#[derive(Debug, Args)]
pub struct EvidenceReportArgs {
    /// The envelope, or an evidence file.
    pub file: PathBuf,
    /// Who must have signed the envelope; without it the page says that the signature was not checked.
    #[arg(long, value_name = "FILE")]
    pub public_key: Option<PathBuf>,
}

/// Arguments of `evidence history`.
#[derive(Debug, Args)]
pub struct EvidenceHistoryArgs {
    /// The journal of the rotations; their history lies beside it.
    #[arg(long, value_name = "FILE", default_value = DEFAULT_JOURNAL)]
    pub journal: PathBuf,
}
