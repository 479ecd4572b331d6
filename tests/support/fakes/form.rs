//! Forms as the fakes of token endpoints get them.

use std::collections::HashMap;

/// The pairs of an `application/x-www-form-urlencoded` body.
pub fn url_form(body: &[u8]) -> HashMap<String, String> {
    let query = String::from_utf8_lossy(body);
    let url = reqwest::Url::parse(&format!("http://form/?{query}")).expect("a form");
    url.query_pairs().into_owned().collect()
}
