//! Running a rotation: what it is about, its states, and the checks between them.

mod agreement;
mod checks;
mod claims;
mod in_etcd;
mod keys;
mod outage;
mod passes;
mod patience;
mod pioneers;
pub mod plan;
pub mod preflight;
pub mod rbac;
mod reports;
mod rewrap;
pub mod room;
mod rotate;
mod settings;
mod sharded;
mod states;
mod turns;

pub use self::in_etcd::search_etcd;
pub use self::settings::Settings;
pub use self::states::Run;
