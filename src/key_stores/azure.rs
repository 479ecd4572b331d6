//! `azureKeyVault`: a key in Azure Key Vault or Managed HSM, by the Azure SDK.
//!
//! Each wrap is made under a version pinned in the request. RSA takes no associated data: that a DEK is the right
//! one is told by its id, which commits to it and is checked after every unwrap (`set.rs`).

mod certificate;
mod client;
mod credentials;
mod error;
mod kek;
mod policy;
mod profile;
mod settings;
mod takeover;

pub(super) use self::error::meanings;
pub use self::settings::Settings;
pub use self::takeover::Settings as TakeoverSettings;
