//! A client of etcd that needs no encryption key: which values are stored, under which keys each, in which cluster, and
//! how full the members are.

mod cluster;
mod connect;
mod history;
mod scan;
mod snapshot;
mod space;
mod stored;

use std::path::PathBuf;

use tonic::Status;

pub use self::cluster::{ClusterId, EtcdCluster, EtcdClusters};
pub use self::history::History;
pub use self::scan::Scanned;
pub use self::snapshot::SnapshotFile;
pub use self::space::{MemberSpace, Room, Space};
pub use self::stored::{Stored, stored_length};

#[allow(missing_docs, clippy::all, clippy::pedantic, reason = "generated")]
mod proto {
    tonic::include_proto!("etcdserverpb");
}

/// How etcd is reached.
#[derive(Clone, Debug, Default)]
pub struct EtcdAccess {
    /// URLs of members, of one cluster or of several.
    pub endpoints: Vec<String>,
    /// The authority that signed the members' certificates.
    pub ca: Option<PathBuf>,
    /// Client certificate.
    pub certificate: Option<PathBuf>,
    /// Its key.
    pub key: Option<PathBuf>,
}

/// Why etcd could not be read.
#[derive(Debug, thiserror::Error)]
pub enum EtcdError {
    /// A file of the TLS set-up cannot be read.
    #[error("cannot read {}", .file.display())]
    File {
        /// The file.
        file: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// Nobody answers.
    #[error("no etcd endpoint answers: {0}")]
    Unreachable(String),
    /// A request failed.
    #[error("etcd answered with an error")]
    Refused(#[source] Box<Status>),
}
