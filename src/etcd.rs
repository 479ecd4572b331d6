//! A client of etcd that needs no encryption key: which values are stored, under which keys each, in which cluster, and
//! how full the members are.

mod backup;
mod cluster;
mod connect;
mod encrypted_object;
mod folder;
mod follow;
mod history;
mod proto;
mod record;
mod scan;
mod space;
mod stored;
mod stride;
mod swap;

pub use self::cluster::{ClusterId, EtcdCluster, EtcdClusters};
pub use self::connect::{EtcdAccess, EtcdError};
pub use self::encrypted_object::{DekSource, EncryptedObject};
pub use self::folder::folder_of;
pub use self::follow::{Before, Change, Followed, Follower};
pub use self::history::History;
pub use self::record::Record;
pub use self::scan::{Pages, Scanned, StoredValue};
pub use self::space::{MemberSpace, Room, Space};
pub use self::stored::{Stored, stored_length};
pub use self::stride::Stride;
pub use self::swap::{Swap, Swapped};
