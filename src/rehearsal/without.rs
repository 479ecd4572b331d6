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
        kek.lineage.to_string() == *lineage && version.as_ref().is_none_or(|version| is_named(&kek.version, version))
    }

    /// Whether it is a KEK of the configuration with all of its versions.
    pub fn is_whole_kek_of(&self, names: &KeyNames) -> bool {
        matches!(self, Self::Kek { lineage, version: None, .. } if names.knows(lineage))
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

/// Vendors' versions are a number or an id, which may be followed by a sign and by what tells two of the same number apart (the
/// time at which it was made, a key material, a check value). People name them without that. To take away too much is safe.
fn is_named(version: &str, named: &str) -> bool {
    let rest = version.strip_prefix(named).filter(|_| !named.is_empty());
    rest.is_some_and(|rest| rest.is_empty() || rest.starts_with(['@', '/', '-']))
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kek::Lineage;

    #[test]
    fn a_version_is_taken_away_by_the_number_that_its_vendor_shows_as_well() {
        let lineage = Lineage::derive("t", &["a"]);
        let mut names = KeyNames::default();
        names.insert(lineage, "primary");
        let removes = |text: &str, version: &str| {
            Without::parse(text, &names).removes(&KekVersion { lineage, version: version.into() })
        };
        for (text, version) in [
            ("primary", "3@1700"),
            ("primary:3@1700", "3@1700"),
            ("primary:3", "3@1700"),
            ("primary:1234-ab", "1234-ab/material"),
        ] {
            assert!(removes(text, version), "{text} and {version}");
        }
        for (text, version) in [("primary:3", "30@1700"), ("primary:", "3@1700"), ("other:3", "3@1700")] {
            assert!(!removes(text, version), "{text} and {version}");
        }
    }
}
