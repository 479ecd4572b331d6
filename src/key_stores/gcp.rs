//! `gcpKms`: a symmetric key in Google Cloud KMS, asked by REST.
//!
//! Each wrap is made under a version pinned in the request, and the version's text is bound into the associated
//! data: Decrypt does not say which version it used, but it opens nothing whose label is not the one at the wrap.

mod client;
mod credentials;
mod error;
mod federation;
mod kek;
mod profile;
mod settings;
mod takeover;

pub(super) use self::error::meanings;
pub use self::settings::Settings;
pub use self::takeover::Settings as TakeoverSettings;
