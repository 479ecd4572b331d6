//! Paths in settings.

use std::path::Path;

use crate::key_stores::shared::key_store::Mistake;

/// Notes a path that does not mean the same wherever the plugin is started.
pub(in crate::key_stores) fn check(mistakes: &mut Vec<Mistake>, field: &str, path: &Path) {
    if path.is_absolute() {
        return;
    }
    let fix =
        if path.starts_with("~") { "\"~\" is not expanded; write the whole path" } else { "write an absolute path" };
    mistakes.push(Mistake::new(
        field,
        format!("\"{}\" is relative to wherever the plugin is started; {fix}", path.display()),
    ));
}

/// The same for a path that may be left out.
#[cfg(any(feature = "aws", feature = "azure", feature = "gcp", feature = "transit"))]
pub(in crate::key_stores) fn check_optional(mistakes: &mut Vec<Mistake>, field: &str, path: Option<&Path>) {
    if let Some(path) = path {
        check(mistakes, field, path);
    }
}
