//! The folder of a key in etcd: below the prefix, one for each resource.

/// The folder that a key lies in. `key` is without the prefix.
pub fn folder_of(key: &str) -> &str {
    let mut slashes = key.match_indices('/').map(|(at, _)| at);
    let first = slashes.next().unwrap_or(key.len());
    let has_two = key[..first].contains('.') || &key[..first] == "services";
    let end = if has_two { slashes.next().unwrap_or(key.len()) } else { first };
    &key[..end]
}
