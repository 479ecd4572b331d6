//! What a token says of a key that an operator should know.

use super::protocol::Done;
use crate::key_stores::shared::key_store::{Advice, Profile};

pub(super) fn of(done: &Done, key: &str) -> Profile {
    let advice = done.extractable.then(|| {
        Advice::new(
            format!("key {key:?} can be extracted from the token (CKA_EXTRACTABLE, or CKA_SENSITIVE is false)"),
            "create a version that cannot (CKA_SENSITIVE true, CKA_EXTRACTABLE false), and rotate to it",
        )
    });
    // CKA_START_DATE is usually empty, and is a date that an operator chose, not the time of creation.
    Profile { created: None, only_in: None, advice: advice.into_iter().collect() }
}
