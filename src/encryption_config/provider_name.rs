//! The name of a KMS provider.

use std::borrow::Borrow;
use std::fmt;

use serde::{Deserialize, Serialize};

/// Name of a KMS provider in an EncryptionConfiguration. API servers store it before every value that the provider
/// encrypts, and show it in their metrics.
///
/// Any text is taken: only the configuration is to be checked, by [`EncryptionConfiguration::parse`]; a name in etcd or in
/// metrics is there already, and one that this program would refuse must not be passed over.
///
/// [`EncryptionConfiguration::parse`]: super::EncryptionConfiguration::parse
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct ProviderName(String);

impl ProviderName {
    /// The text, as API servers store it.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl From<String> for ProviderName {
    fn from(text: String) -> Self {
        Self(text)
    }
}

impl From<&str> for ProviderName {
    fn from(text: &str) -> Self {
        Self(text.to_owned())
    }
}

/// Maps by name are asked with what a value in etcd begins with, which is borrowed.
impl Borrow<str> for ProviderName {
    fn borrow(&self) -> &str {
        &self.0
    }
}

impl PartialEq<str> for ProviderName {
    fn eq(&self, other: &str) -> bool {
        self.0 == other
    }
}

impl fmt::Display for ProviderName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.0)
    }
}
