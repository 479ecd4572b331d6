//! What Key Vault says of a key that an operator should know
//! (<https://learn.microsoft.com/rest/api/keyvault/keys/get-key>).

use azure_security_keyvault_keys::models::KeyAttributes;

use crate::key_stores::shared::key_store::{Advice, Profile};

pub(super) fn of(attributes: &KeyAttributes) -> Profile {
    let mut advice = Vec::new();
    let moment = |time: azure_core::time::OffsetDateTime| jiff::Timestamp::from_second(time.unix_timestamp()).ok();
    if attributes.exportable == Some(true) {
        let finding =
            "the key is exportable: anyone who may release it can read every Secret without the vault, forever";
        advice.push(Advice::new(finding, "create a key that is not exportable, list it beside this one, rotate to it"));
    }
    // The levels combine words, such as `CustomizedRecoverable+Purgeable`; a new combination is judged by its words, too.
    let level = attributes.recovery_level.as_ref().map(ToString::to_string).unwrap_or_default();
    if level.contains("Purgeable") && !level.contains("ProtectedSubscription") {
        let finding = format!(
            "the vault allows a deleted key to be purged (recovery level {level}); without it no Secret can be read"
        );
        advice
            .push(Advice::new(finding, "enable purge protection (az keyvault update --enable-purge-protection true)"));
    }
    if let Some(end) = attributes.expires.and_then(moment) {
        let finding = format!("the version expires at {end}: Key Vault does not wrap with it after that");
        advice.push(Advice::new(finding, "rotate before that, or remove the expiry date: a KEK needs none"));
    }
    // Azure replicates a vault to the paired region by itself, and does not say here whether its region has one.
    Profile { created: attributes.created.and_then(moment), only_in: None, advice }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn told(attributes: &str) -> Profile {
        of(&serde_json::from_str(attributes).unwrap())
    }

    #[test]
    fn a_key_that_cannot_be_purged_or_exported_has_nothing_to_be_advised() {
        let profile = told(r#"{"enabled":true,"created":1767323045,"recoveryLevel":"Recoverable","exportable":false}"#);
        assert_eq!((profile.advice.len(), profile.created), (0, "2026-01-02T03:04:05Z".parse().ok()));
    }

    #[test]
    fn what_can_be_taken_out_purged_or_ends_is_told() {
        let profile = told(r#"{"exp":1798859045,"recoveryLevel":"Recoverable+Purgeable","exportable":true}"#);
        let found: Vec<_> = profile.advice.iter().map(|one| one.finding.as_str()).collect();
        let words = ["exportable", "Recoverable+Purgeable", "expires at 2027-01-02T03:04:05Z"];
        assert!(words.iter().zip(&found).all(|(word, found)| found.contains(word)), "{found:?}");
    }
}
