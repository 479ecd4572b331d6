//! The files that the KEKs' settings name, whatever their kind.

use std::path::PathBuf;

use serde_json::Value;

/// Every absolute path under `keks`, `retired`, `takeover` and `sealedState`, as written.
pub(super) fn of_keks(text: &str) -> Vec<PathBuf> {
    // It was parsed before: what is not YAML does not get here.
    let Ok(file) = serde_saphyr::from_str::<Value>(text) else { return Vec::new() };
    let mut paths = Vec::new();
    for list in ["keks", "retired", "takeover", "sealedState"] {
        collect(&file[list], &mut paths);
    }
    paths
}

fn collect(value: &Value, paths: &mut Vec<PathBuf>) {
    match value {
        // Whatever looks like a path, of any kind: the sandbox has to let the process read it, and a kind need not list
        // its own.
        Value::String(text) if text.starts_with('/') => paths.push(text.into()),
        Value::Array(items) => items.iter().for_each(|item| collect(item, paths)),
        Value::Object(fields) => fields.values().for_each(|item| collect(item, paths)),
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_paths_of_all_keks_are_found_and_no_others() {
        let text = "stateDir: /state\nkeks:\n- {name: a, keyring: {file: /a}}\n- name: b\n  transit: {addresses: ['https://b'], \
                    auth: {appRole: {secretIdFile: /b}}, key: k/e/y}\nretired: [{name: c, keyring: {file: /c}}]\n\
                    takeover: [{name: d, awsEncryptionProvider: {awsKms: {credentialsFile: /d}}}]\n\
                    sealedState: {kek: {name: e, keyring: {file: /e}}}\n";
        assert_eq!(of_keks(text), ["/a", "/b", "/c", "/d", "/e"].map(PathBuf::from));
    }
}
