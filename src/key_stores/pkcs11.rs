//! `pkcs11`: a key in a token (an HSM) that is reached through a PKCS#11 module.
//!
//! The module is a vendor's library: it runs in a process of its own (`host`), which `client` starts and asks; `home` and
//! `token` are what that process does, `wrap` the calls, `error` what a failure means. Where the mechanism takes no
//! associated data, the DEK's id tells that it is the right one, as it commits to it and is checked after every unwrap.

mod client;
mod error;
mod home;
pub(super) mod host;
mod kek;
mod key;
mod mechanism;
mod profile;
mod protocol;
mod settings;
mod token;
mod wrap;

pub use self::settings::Settings;
