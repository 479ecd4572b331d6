//! The settings of a `breakGlass` KEK.

use std::sync::Arc;

use async_trait::async_trait;
use serde::Deserialize;

use super::kek::{BreakGlassKek, lineage};
use super::{proof, text};
use crate::crypto::recipient::{Identity, Recipient};
use crate::kek::offline::OfflineKey;
use crate::kek::{ClusterName, Kek, KekError, Lineage, RotateKek};
use crate::key_stores::shared::key_store::{Disabling, KeyStore, Mistake, Parsed, Policy, Profile};

/// Settings as they are written.
#[derive(Clone, Debug, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct Settings {
    /// The public half of an age X25519 key, `age1…`, as `kube-envelope break-glass create` or `age-keygen` prints it.
    recipient: String,
    /// The line that `kube-envelope break-glass prove` prints once the private half was tried. Default: none, which is
    /// reported.
    #[serde(default)]
    proven: Option<String>,
}

impl Settings {
    pub(in crate::key_stores) fn parse(self) -> Parsed {
        let mistake = |field: &str, problem: String| vec![Mistake::new(field, problem)];
        let recipient = text::recipient(&self.recipient).map_err(|problem| mistake("recipient", problem))?;
        let proven = self.proven.map(|line| proof::read(&line, &recipient)).transpose();
        let proven = proven.map_err(|problem| mistake("proven", problem))?.flatten();
        Ok(Arc::new(BreakGlass { recipient, proven, identities: Vec::new() }))
    }
}

#[derive(Debug)]
struct BreakGlass {
    recipient: Recipient,
    /// `None` also where the proof is that of another recipient.
    proven: Option<jiff::Timestamp>,
    identities: Vec<Arc<Identity>>,
}

#[async_trait]
impl KeyStore for BreakGlass {
    fn lineage(&self) -> Lineage {
        lineage()
    }

    fn asks_a_server(&self) -> bool {
        false
    }

    fn offline(&self) -> Option<OfflineKey> {
        let key = || OfflineKey { recipient: text::of_recipient(&self.recipient), proven: self.proven };
        self.identities.is_empty().then(key)
    }

    fn unlocked(&self, identities: &[Arc<Identity>]) -> Option<Arc<dyn KeyStore>> {
        let has_own = identities.iter().any(|identity| identity.recipient() == self.recipient);
        let unlocked = Self { recipient: self.recipient, proven: self.proven, identities: identities.to_vec() };
        has_own.then(|| Arc::new(unlocked) as Arc<dyn KeyStore>)
    }

    fn disabling(&self, version: &str, _: &str) -> Disabling {
        Disabling::ByHand(format!(
            "destroy every copy of the private half whose recipient has the fingerprint {version}, unless a backup that you \
             keep was encrypted for it"
        ))
    }

    async fn profile(&self) -> Result<Profile, KekError> {
        Ok(Profile::default())
    }

    fn policy(&self, _cluster: &ClusterName) -> Policy {
        Policy {
            remark: "a public key: whoever has its private half can decrypt every backup, so keep that offline".into(),
            plugin: format!("nothing beside the configuration: {}", text::of_recipient(&self.recipient)),
            rotation: None,
        }
    }

    async fn open(&self) -> Result<Box<dyn Kek>, KekError> {
        Ok(Box::new(BreakGlassKek { recipient: self.recipient, identities: self.identities.clone() }))
    }

    async fn open_rotating(&self) -> Result<Box<dyn RotateKek>, KekError> {
        Err(KekError::misconfigured(
            "is rotated by a new recipient in the configuration of every node; then run rotate-keys without --rotate-kek",
        ))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(recipient: &str, proven: Option<&str>) -> Parsed {
        Settings { recipient: recipient.to_owned(), proven: proven.map(str::to_owned) }.parse()
    }

    #[test]
    fn a_proof_of_another_recipient_counts_as_none_and_one_that_is_none_is_a_mistake() {
        let [one, other] = [Identity::generate(), Identity::generate()].map(|one| text::of_recipient(&one.recipient()));
        let proof = super::super::proof_of(&one).unwrap();
        let proven = |recipient: &str| parsed(recipient, Some(&proof)).unwrap().offline().unwrap().proven;
        assert!(proven(&one).is_some() && proven(&other).is_none());
        let mistakes = parsed(&one, Some("yes")).unwrap_err();
        assert_eq!((mistakes.len(), mistakes[0].field.as_str()), (1, "proven"));
        assert_eq!(parsed("age1", None).unwrap_err()[0].field, "recipient");
    }

    #[test]
    fn only_its_own_private_half_unlocks_it() {
        let [own, other] = [Identity::generate(), Identity::generate()].map(Arc::new);
        let store = parsed(&text::of_recipient(&own.recipient()), None).unwrap();
        assert!(store.offline().is_some());
        assert!(store.unlocked(std::slice::from_ref(&other)).is_none());
        assert!(store.unlocked(&[other, own]).expect("unlocked").offline().is_none());
    }
}
