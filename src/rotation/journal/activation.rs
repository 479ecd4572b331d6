//! [`Activations`]: when this program made versions of KEKs active, which tells their age where the key store does not.

use serde::{Deserialize, Serialize};

use crate::kek::KekVersion;
use crate::rotation::keys::name::KeyName;

/// The last version of each KEK that this program made active, and when.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Activations(Vec<Activation>);

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
struct Activation {
    key: KeyName,
    at: jiff::Timestamp,
}

impl Activations {
    /// Enters a version that the KEK has just said is active.
    pub(crate) fn add(&mut self, version: &KekVersion, at: jiff::Timestamp) {
        let lineage = version.lineage.to_string();
        self.0.retain(|one| !matches!(&one.key, KeyName::Kek { lineage: of, .. } if *of == lineage));
        self.0.push(Activation { key: KeyName::kek(version), at });
    }

    /// When this program made a version active, if it did.
    pub fn at(&self, version: &KekVersion) -> Option<jiff::Timestamp> {
        let key = KeyName::kek(version);
        self.0.iter().find(|one| one.key == key).map(|one| one.at)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kek::Lineage;

    #[test]
    fn the_last_activation_of_each_kek_is_known() {
        let version = |home: &str, version: &str| KekVersion {
            lineage: Lineage::derive("test", &[home]),
            version: version.into(),
        };
        let at = |second| jiff::Timestamp::from_second(second).unwrap();
        let mut activations = Activations::default();
        for (home, number, second) in [("a", "1", 10), ("b", "1", 20), ("a", "2", 30)] {
            activations.add(&version(home, number), at(second));
        }
        assert_eq!(activations.at(&version("a", "2")), Some(at(30)));
        assert_eq!(activations.at(&version("b", "1")), Some(at(20)));
        assert_eq!(activations.at(&version("a", "1")), None, "it went out of use");
    }
}
