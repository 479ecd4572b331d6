//! What an API server would do with the values of etcd: which provider reads each, whether its seed can be had, and
//! whether the value opens. Used to rehearse a start, and to get an object out of a backup.

mod layout;
mod opening;
mod run;
mod seeds;
mod source;
mod without;
mod wrapping;

pub use self::opening::{Opener, Refusal};
pub use self::run::{FolderReport, Rehearsal, rehearse};
pub use self::seeds::Seeds;
pub use self::source::{KekSource, PluginSource, SeedError, Sources, opens};
pub use self::without::Without;
pub use self::wrapping::KekKeeper;
