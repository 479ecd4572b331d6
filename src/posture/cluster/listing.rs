//! Lists of whole objects, and how findings name what is in them.

use serde::Deserialize;
use serde::de::DeserializeOwned;

use crate::posture::finding::Finding;
use crate::rotation::cluster::api::{Api, ApiError, escaped, null_as_empty};

/// Objects in one answer.
const PAGE: u32 = 500;
/// How many names a finding gives; the rest is counted.
const NAMED: usize = 8;

/// What all kinds of object say of themselves.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct Named {
    pub(super) name: String,
    pub(super) namespace: String,
    pub(super) labels: std::collections::BTreeMap<String, String>,
}

#[derive(Deserialize)]
struct List<T> {
    #[serde(default)]
    metadata: ListEnd,
    #[serde(deserialize_with = "null_as_empty", bound = "T: Deserialize<'de>")]
    items: Vec<T>,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct ListEnd {
    r#continue: String,
}

/// Every object of a list, page by page; `path` has no query.
///
/// # Errors
/// An error status of the API server, or no answer.
pub(super) async fn every<T: DeserializeOwned>(api: &Api, path: &str) -> Result<Vec<T>, ApiError> {
    let mut all = Vec::new();
    let mut next = String::new();
    loop {
        let page: List<T> = api.get_json(&format!("{path}?limit={PAGE}&continue={}", escaped(&next))).await?;
        all.extend(page.items);
        next = page.metadata.r#continue;
        if next.is_empty() {
            return Ok(all);
        }
    }
}

/// A check that could not be made.
pub(super) fn not_read(check: &str, what: &str, error: &ApiError) -> Finding {
    Finding::skipped(check, format!("cannot list {what}: {error}"))
}

/// `a, b, c and 4 more`.
pub(super) fn some_of(names: &[String]) -> String {
    let shown = names.iter().take(NAMED).map(String::as_str).collect::<Vec<_>>().join(", ");
    match names.len().checked_sub(NAMED) {
        None | Some(0) => shown,
        Some(more) => format!("{shown} and {more} more"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn of_many_names_the_first_are_given_and_the_rest_is_counted() {
        let names = |count: usize| (0..count).map(|number| number.to_string()).collect::<Vec<_>>();
        assert_eq!(some_of(&names(2)), "0, 1");
        assert_eq!(some_of(&names(NAMED)), "0, 1, 2, 3, 4, 5, 6, 7");
        assert_eq!(some_of(&names(NAMED + 2)), "0, 1, 2, 3, 4, 5, 6, 7 and 2 more");
    }
}
