//! What Cloud KMS says of a key that an operator should know
//! (<https://cloud.google.com/kms/docs/reference/rest/v1/projects.locations.keyRings.cryptoKeys>).

use super::client::CryptoKey;
use crate::key_stores::shared::key_store::{Advice, Profile};

/// A version that is destroyed by mistake must be missed before it is gone.
const DESTROYED_AFTER_DAYS: u64 = 7;

/// `name` is the key's full name.
pub(super) fn of(key: &CryptoKey, name: &str) -> Profile {
    let mut advice = Vec::new();
    if key.rotation_period.is_none() {
        let finding = "the key has no rotationPeriod: it is not rotated automatically";
        advice
            .push(Advice::new(finding, "set one (gcloud kms keys update --rotation-period), or rotate on a schedule"));
    }
    if let Some(seconds) = key.destroy_scheduled_duration.as_deref().and_then(seconds)
        && seconds < DESTROYED_AFTER_DAYS * 86_400
    {
        let finding = format!("a destroyed version is gone for good after {} hours", seconds / 3600);
        let fix =
            "create a key with a longer destroyScheduledDuration (the default is 30 days); it cannot be changed later";
        advice.push(Advice::new(finding, fix));
    }
    let location = name.split('/').nth(3).unwrap_or_default();
    // A region ends in a number, such as europe-west1; global, eu, us and nam4 are several.
    let is_region = location.contains('-') && location.ends_with(|last: char| last.is_ascii_digit());
    // The age that counts is that of the version in use: the key itself is as old as its first version.
    let created = key.primary.as_ref().and_then(|primary| primary.created().parse().ok());
    Profile { created, only_in: is_region.then(|| location.to_owned()), advice }
}

/// `86400s`, as Google writes durations; fractions are cut off.
fn seconds(text: &str) -> Option<u64> {
    text.strip_suffix('s')?.split('.').next()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn told(location: &str, more: &str) -> Profile {
        let name = format!("projects/p/locations/{location}/keyRings/r/cryptoKeys/k");
        let json = format!(
            r#"{{"purpose":"ENCRYPT_DECRYPT","primary":{{"name":"{name}/cryptoKeyVersions/1","state":"ENABLED",
            "createTime":"2026-01-02T03:04:05Z"}}{more}}}"#
        );
        of(&serde_json::from_str(&json).unwrap(), &name)
    }

    #[test]
    fn a_key_that_rotates_and_is_destroyed_late_has_nothing_to_be_advised() {
        let good = r#","rotationPeriod":"7776000s","destroyScheduledDuration":"2592000s""#;
        let profile = told("global", good);
        assert_eq!((profile.advice.len(), profile.only_in), (0, None));
        assert_eq!(profile.created, "2026-01-02T03:04:05Z".parse().ok());
        assert_eq!(told("europe-west1", good).only_in.as_deref(), Some("europe-west1"));
        assert_eq!(told("nam4", good).only_in, None, "several regions");
    }

    #[test]
    fn no_rotation_and_a_quick_end_are_told() {
        let profile = told("global", r#","destroyScheduledDuration":"86400s""#);
        let found: Vec<_> = profile.advice.iter().map(|one| one.finding.as_str()).collect();
        assert!(found[0].contains("rotationPeriod") && found[1].contains("24 hours"), "{found:?}");
    }
}
