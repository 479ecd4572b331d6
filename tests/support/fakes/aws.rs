//! AWS as far as the plugin sees it: KMS, and the services that give out credentials.

pub mod credentials;
pub mod kms;
