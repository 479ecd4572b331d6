//! `keyring`: a KEK whose versions lie in a local file. The file is read at each call, so that a change is seen at once.

mod file;
mod kek;
mod settings;

pub use self::file::{Keyring, Version, VersionState};
pub use self::settings::Settings;
