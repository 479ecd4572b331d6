//! What an answer means for its object.

use crate::rotation::cluster::listing::{TRIES, is_conversion, is_undecryptable};
use crate::rotation::cluster::webhooks::{WEBHOOK_TRIES, webhook_that_failed};

/// What becomes of an object after an answer other than success.
#[derive(Debug, PartialEq)]
pub(super) enum Fate {
    /// It is deleted.
    Gone,
    /// It stays as it is, and is named.
    Refused,
    /// The server cannot open it.
    Undecryptable,
    /// It is sent again, up to this many times.
    Again { overloaded: bool, tries: u32 },
    /// etcd is full: nothing can be stored until somebody makes room.
    Full,
    /// Nothing can be sent until somebody fixes it; tried as often as other errors.
    Unauthorized,
}

/// What an answer other than success means for the object.
pub(super) fn fate(status: Option<u16>, message: &str) -> Fate {
    match status {
        // An empty patch creates nothing, so there is nothing left of it that could need a key.
        Some(404) => Fate::Gone,
        Some(401) => Fate::Unauthorized,
        // Should not occur, as a patch without a resourceVersion is applied again inside the server (etcd3/store.go,
        // GuaranteedUpdate).
        Some(409) => Fate::Again { overloaded: false, tries: TRIES },
        Some(500) if is_undecryptable(message) => Fate::Undecryptable,
        // The value grew with the new key_id or annotations, and will not become smaller by itself.
        Some(500) if message.contains("request is too large") => Fate::Refused,
        // The webhook of the definition; the object is sound and stays.
        Some(500) if is_conversion(message) => Fate::Refused,
        // NOSPACE: nobody can write any more.
        Some(500) if message.contains("database space exceeded") => Fate::Full,
        // The API server is well; only this object, or all that the webhook is asked about, must wait for it.
        Some(_) if webhook_that_failed(message).is_some() => Fate::Again { overloaded: false, tries: WEBHOOK_TRIES },
        Some(408 | 429 | 500..) | None => Fate::Again { overloaded: true, tries: TRIES },
        Some(_) => Fate::Refused,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_means_the_right_thing_for_its_object() {
        assert_eq!(fate(Some(404), ""), Fate::Gone);
        assert_eq!(fate(Some(422), "denied by policy"), Fate::Refused);
        assert_eq!(fate(Some(403), "webhook"), Fate::Refused);
        assert_eq!(fate(Some(401), "Unauthorized"), Fate::Unauthorized);
        assert_eq!(fate(Some(409), ""), Fate::Again { overloaded: false, tries: TRIES });
        assert_eq!(fate(Some(429), ""), Fate::Again { overloaded: true, tries: TRIES });
        assert_eq!(fate(Some(503), ""), Fate::Again { overloaded: true, tries: TRIES });
        assert_eq!(fate(None, "no answer"), Fate::Again { overloaded: true, tries: TRIES });
        assert_eq!(fate(Some(500), "unable to transform key \"/registry/secrets/a/b\""), Fate::Undecryptable);
        assert_eq!(fate(Some(500), "etcdserver: request is too large"), Fate::Refused);
        assert_eq!(fate(Some(500), "etcdserver: mvcc: database space exceeded"), Fate::Full);
        let down = "Internal error occurred: failed calling webhook \"a.b.c\": connection refused";
        assert_eq!(fate(Some(500), down), Fate::Again { overloaded: false, tries: WEBHOOK_TRIES });
        assert_eq!(fate(Some(500), "something else"), Fate::Again { overloaded: true, tries: TRIES });
    }
}
