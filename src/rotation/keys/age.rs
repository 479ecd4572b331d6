//! How old the active versions of the KEKs are, and whether one of them is to be replaced.

use std::time::Duration;

use crate::kek::KekVersion;
use crate::key_stores::KekConfig;
use crate::rotation::error::RotationError;

/// How long a key store may take to answer.
const ANSWERS_WITHIN: Duration = Duration::from_secs(30);

/// The active version of one KEK, and since when there is such a version.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KekAge {
    /// The KEK's name in the configuration.
    pub name: String,
    /// The vendor's text for the version.
    pub version: String,
    /// When it was made active by this program, or else made.
    pub since: jiff::Timestamp,
}

impl KekAge {
    /// Whether it is older. A version from the future, by a clock that differs, is not.
    pub fn is_older_than(&self, limit: Duration, now: jiff::Timestamp) -> bool {
        let age = now.duration_since(self.since);
        jiff::SignedDuration::try_from(limit).is_ok_and(|limit| age > limit)
    }

    /// One sentence: the KEK, its version, and since when it is active.
    pub fn describe(&self) -> String {
        format!("KEK {}: version {} is of {}", self.name, self.version, self.since.strftime("%Y-%m-%dT%H:%M:%SZ"))
    }
}

/// Asks every KEK. What this program made active itself is told by `activated_at`; of other versions the key store must tell
/// when they were made.
///
/// # Errors
/// [`RotationError::Unusable`] for a version whose age nobody knows; [`RotationError::Kek`] for a KEK that cannot be asked.
pub async fn ages(
    keks: &[KekConfig],
    activated_at: impl Fn(&KekVersion) -> Option<jiff::Timestamp>,
) -> Result<Vec<KekAge>, RotationError> {
    let mut ages = Vec::new();
    // A recipient is changed by a person, in the configuration.
    for config in keks.iter().filter(|kek| kek.offline().is_none()) {
        let failed = |source| RotationError::Kek { name: config.name.clone(), source };
        let active = config.open().version().await.map_err(failed)?;
        let since = match activated_at(&active) {
            Some(at) => Some(at),
            None => tokio::time::timeout(ANSWERS_WITHIN, config.made())
                .await
                .map_err(|_| RotationError::Silent(format!("KEK {} does not answer", config.name)))?
                .map_err(failed)?,
        };
        let (name, version) = (config.name.clone(), active.version);
        let Some(since) = since else {
            return Err(RotationError::Unusable(format!(
                "how old version {version} of KEK {name} is cannot be known: its key store does not tell when a version was \
                 made, and no journal here made it active. Run once without --if-older-than; the journal then knows"
            )));
        };
        ages.push(KekAge { name, version, since });
    }
    Ok(ages)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_version_is_due_when_it_is_older_and_not_when_its_clock_is_ahead() {
        let now = jiff::Timestamp::from_second(1_000_000).unwrap();
        let made = |before: i64| KekAge {
            name: "k".into(),
            version: "1".into(),
            since: jiff::Timestamp::from_second(1_000_000 - before).unwrap(),
        };
        let limit = Duration::from_secs(100);
        assert!(made(101).is_older_than(limit, now));
        assert!(!made(100).is_older_than(limit, now));
        assert!(!made(-500).is_older_than(limit, now));
        assert!(!made(-500).is_older_than(Duration::ZERO, now));
    }
}
