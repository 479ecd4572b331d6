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
