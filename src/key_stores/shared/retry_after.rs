//! The `Retry-After` header (RFC 9110, 10.2.3), in its form in seconds; no key store sends the form with a date.
#![cfg_attr(not(test), deny(clippy::arithmetic_side_effects))]

use std::time::Duration;

/// The pause that the header's value asks for, a day at most.
pub(in crate::key_stores) fn parse(value: &str) -> Option<Duration> {
    const LONGEST: u64 = 24 * 60 * 60;
    Some(Duration::from_secs(value.trim().parse::<u64>().ok()?.min(LONGEST)))
}

/// The pause that the headers of an answer ask for.
#[cfg(any(feature = "gcp", feature = "transit"))]
pub(in crate::key_stores) fn of(headers: &reqwest::header::HeaderMap) -> Option<Duration> {
    parse(headers.get(reqwest::header::RETRY_AFTER)?.to_str().ok()?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn seconds_are_understood_and_anything_else_is_ignored() {
        assert_eq!(parse(" 7 "), Some(Duration::from_secs(7)));
        assert_eq!(parse(&u64::MAX.to_string()), Some(Duration::from_hours(24)));
        for other in ["", "-1", "1.5", "Fri, 31 Dec 1999 23:59:59 GMT"] {
            assert_eq!(parse(other), None, "{other:?}");
        }
    }
}
