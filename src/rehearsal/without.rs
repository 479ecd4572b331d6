//! "And if that key were gone?": which keys a rehearsal may not use.

use std::fmt;

use crate::kek::KekVersion;
use crate::rotation::keys::name::{KeyName, KeyNames};

/// A key that is taken to be gone.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Without {
    /// One version of a KEK, or all of them.
    Kek {
        /// As the operator named it.
        named: String,
        /// The KEK's lineage, in hex.
        lineage: String,
        /// The version; `None` for every one.
        version: Option<String>,
    },
    /// A key of another plugin, by its `key_id`.
    KeyId(String),
}

impl Without {
    /// Reads `KEK`, `KEK:VERSION` or a `key_id`. A KEK goes by its name in the configuration or by its lineage.
    pub fn parse(text: &str, names: &KeyNames) -> Self {
        let (kek, version) = match text.split_once(':') {
            Some((kek, version)) => (kek, Some(version.to_owned())),
            None => (text, None),
        };
        // A KEK that left the configuration has no name any more, and is still named in what is stored.
        let is_lineage = kek.len() == 32 && kek.bytes().all(|byte| byte.is_ascii_hexdigit());
        let lineage = names.lineage(kek).map(str::to_owned).or_else(|| is_lineage.then(|| kek.to_ascii_lowercase()));
        match lineage {
            Some(lineage) => Self::Kek { named: text.to_owned(), lineage, version },
            None => Self::KeyId(text.to_owned()),
        }
    }

    /// Whether this KEK version is gone.
    pub fn removes(&self, kek: &KekVersion) -> bool {
        let Self::Kek { lineage, version, .. } = self else { return false };
        kek.lineage.to_string() == *lineage && version.as_ref().is_none_or(|version| *version == kek.version)
    }

    /// Whether it is gone, whichever key this plugin's `key_id` names.
    pub fn removes_key_id(&self, key_id: &str) -> bool {
        matches!(self, Self::KeyId(own) if own == key_id)
    }

    /// Whether some value that was looked at names it: else the operator may have misspelt it.
    pub fn is_among(&self, keys: &std::collections::BTreeSet<KeyName>) -> bool {
        keys.iter().any(|key| match key {
            KeyName::KeyId { key_id, .. } => self.removes_key_id(key_id),
            key => key.kek_version().is_some_and(|kek| self.removes(&kek)),
        })
    }
}

impl fmt::Display for Without {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Kek { named, version: Some(_), .. } => write!(f, "KEK version {named}"),
            Self::Kek { named, version: None, .. } => write!(f, "KEK {named}"),
            Self::KeyId(key_id) => write!(f, "key_id {key_id}"),
        }
    }
}
