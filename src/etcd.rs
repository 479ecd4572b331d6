//! A client of etcd that needs no encryption key: which values are stored, under which keys each, in which cluster, and
//! how full the members are.

mod cluster;
mod connect;
mod history;
mod proto;
mod scan;
mod snapshot;
mod space;
mod stored;

pub use self::cluster::{ClusterId, EtcdCluster, EtcdClusters};
pub use self::connect::{EtcdAccess, EtcdError};
pub use self::history::History;
pub use self::scan::{Scanned, StoredValue};
pub use self::snapshot::SnapshotFile;
pub use self::space::{MemberSpace, Room, Space};
pub use self::stored::{Stored, stored_length};
