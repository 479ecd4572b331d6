//! How an error and its sources become one line of text.

use std::error::Error;

/// `text`, followed by whatever the chain of sources from `next` on adds to it.
///
/// A source whose text is already contained is left out: many libraries repeat their source in their own message.
pub fn joined(mut text: String, mut next: Option<&(dyn Error + 'static)>) -> String {
    while let Some(error) = next {
        let more = error.to_string();
        if !text.contains(&more) {
            text.push_str(": ");
            text.push_str(&more);
        }
        next = error.source();
    }
    text
}

/// Says in plain words what a library's text means, where that is known.
#[cfg(feature = "rotate")]
pub fn with_known_cause(text: String) -> String {
    if text.contains("UnsupportedCertVersion") {
        return "the client certificate is of X.509 version 1, which is not accepted: issue it again as version 3 \
                (openssl x509 -req with -extfile, or -copy_extensions copy)"
            .into();
    }
    text
}
