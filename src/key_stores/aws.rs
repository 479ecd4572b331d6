//! `awsKms`: a symmetric key in AWS KMS. The DEK is wrapped by Encrypt and unwrapped by Decrypt; the context is
//! the encryption context. The SDK's own copies of a DEK (request and answer) cannot be cleared from here.

mod client;
mod credentials;
mod error;
mod http;
mod kek;
mod key;
mod policy;
mod process;
mod profile;
mod rotate;
mod settings;
mod takeover;

pub(super) use self::error::meanings;
pub use self::settings::Settings;
pub use self::takeover::Settings as TakeoverSettings;
