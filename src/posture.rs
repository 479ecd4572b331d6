//! What leaves Secrets exposed although they are encrypted, as findings with reason and fix; for `doctor`.

pub mod audit_policy;
#[cfg(feature = "rotate")]
pub mod cluster;
pub mod finding;
#[cfg(feature = "rotate")]
pub mod stored;
