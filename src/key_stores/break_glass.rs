//! `breakGlass`: a public key. Every DEK is wrapped to it; only a person with the private half, offline, unwraps.

mod identities;
mod kek;
mod proof;
mod settings;
mod text;

pub use self::identities::Identities;
pub use self::proof::proof_of;
pub use self::settings::Settings;
