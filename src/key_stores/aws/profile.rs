//! What AWS KMS says of a key that an operator should know.

use aws_sdk_kms::types::{KeyMetadata, OriginType};

use crate::key_stores::shared::key_store::{Advice, Profile};

/// `rotates`: whether AWS makes new material by itself; `None` where it may not be asked.
pub(super) fn of(key: &KeyMetadata, rotates: Option<bool>) -> Profile {
    let id = &key.key_id;
    let mut advice = Vec::new();
    if let Some(end) = key.valid_to.and_then(|end| jiff::Timestamp::from_second(end.secs()).ok()) {
        let finding = format!("the imported material of {id} expires at {end}; without it no Secret can be read");
        advice.push(Advice::new(finding, "import it again without an expiry date, and keep a copy of it"));
    }
    // AWS cannot rotate imported material or a key in a custom key store by itself, so it would be no use to ask for it
    // (https://docs.aws.amazon.com/kms/latest/developerguide/rotate-keys.html).
    let is_made_by_aws = key.origin == Some(OriginType::AwsKms);
    if is_made_by_aws && rotates == Some(false) {
        let finding = format!("{id} is not rotated automatically");
        advice.push(Advice::new(
            finding,
            "enable automatic rotation (aws kms enable-key-rotation), or rotate on a schedule",
        ));
    }
    // Of later material AWS tells no time here.
    let first_material = rotates != Some(true);
    let created = key.creation_date.filter(|_| first_material);
    let created = created.and_then(|date| jiff::Timestamp::from_second(date.secs()).ok());
    // arn:aws:kms:REGION:ACCOUNT:key/ID
    let region = key.arn.as_deref().and_then(|arn| arn.split(':').nth(3)).unwrap_or("one Region");
    let only_in = (key.multi_region != Some(true)).then(|| region.to_owned());
    Profile { created, only_in, advice }
}

#[cfg(test)]
mod tests {
    use aws_sdk_kms::primitives::DateTime;

    use super::*;

    fn key() -> aws_sdk_kms::types::builders::KeyMetadataBuilder {
        let arn = "arn:aws:kms:eu-central-1:111122223333:key/1234";
        KeyMetadata::builder().key_id("1234").arn(arn).creation_date(DateTime::from_secs(1_767_323_045))
    }

    #[test]
    fn a_key_that_aws_rotates_has_nothing_to_be_advised_and_its_material_no_known_age() {
        let key = key().origin(OriginType::AwsKms).multi_region(true).build().unwrap();
        assert_eq!(of(&key, Some(true)), Profile::default());
    }

    #[test]
    fn one_region_no_rotation_and_material_with_an_end_are_told() {
        let own = key().origin(OriginType::AwsKms).build().unwrap();
        let profile = of(&own, Some(false));
        assert_eq!(profile.only_in.as_deref(), Some("eu-central-1"));
        assert!(profile.advice[0].finding.contains("not rotated"), "{profile:?}");
        assert_eq!(profile.created, "2026-01-02T03:04:05Z".parse().ok());
        let imported = key().origin(OriginType::External).valid_to(DateTime::from_secs(1_798_859_045)).build().unwrap();
        let profile = of(&imported, None);
        assert!(profile.advice[0].finding.contains("expires at 2027-01-02T03:04:05Z"), "{profile:?}");
    }
}
