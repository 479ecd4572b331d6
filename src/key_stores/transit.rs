//! `transit`: a key in the transit engine of Vault or OpenBao. Owns the settings, the key's versions and the wraps;
//! the requests are `client`'s, the tokens `credentials`', what a failure means `error`'s.

mod client;
mod credentials;
mod error;
mod kek;
mod profile;
mod request;
mod session;
mod settings;
mod takeover;

pub(super) use self::error::meanings;
pub use self::settings::Settings;
pub use self::takeover::Settings as TakeoverSettings;
