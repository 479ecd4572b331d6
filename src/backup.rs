//! The content of a backup of etcd, or of a running etcd, read value by value without any key.

mod bbolt;
mod comparison;
mod inventory;
mod mvcc;
mod object;
mod page;
mod scratch;
mod snapshot;
mod source;
mod yaml;

pub use self::comparison::{Common, ComparisonError, compare};
pub use self::inventory::{Count, DekInUse, Inventory, Row, Shape};
pub use self::mvcc::Keyspace;
pub use self::object::{manifest, uid};
pub use self::scratch::{Programs, ScratchError, ScratchEtcd, ScratchFolder};
pub use self::snapshot::{Snapshot, SnapshotError, SnapshotFile};
pub use self::source::{Item, Reading, Source, SourceError};
