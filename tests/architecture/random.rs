//! Where random numbers come from: keys, salts and nonces from the operating system at each use. A generator in the
//! process goes on with the same numbers in every copy of a virtual machine that is resumed from one snapshot, and two
//! copies that wrap under one key with one nonce reveal what they wrapped.

use std::collections::BTreeSet;

use crate::sources;

/// Modules that draw from the process's own generator, and what for.
const HARMLESS: &[(&str, &str)] = &[
    ("backup/scratch.rs", "the name of a folder, which is not made if it exists"),
    ("files.rs", "the name of a file, which is not made if it exists"),
    ("kek/guard.rs", "how long to wait between retries"),
    ("kms/plugins.rs", "the uid of a request, for logs"),
    ("plugin/client.rs", "the plaintext of a self-check, which is forgotten"),
    ("plugin/refresh.rs", "how long to wait between turns"),
];

#[test]
fn keys_salts_and_nonces_come_from_the_operating_system() {
    let mut found = BTreeSet::new();
    for source in sources().iter().filter(|source| !source.name.ends_with("tests.rs")) {
        let code = source.code.split("\n#[cfg(test)]\nmod ").next().unwrap();
        if ["rand::rng()", "rand::random", "rand::fill", "thread_rng"].iter().any(|call| code.contains(call)) {
            found.insert(source.name.clone());
        }
    }
    let harmless: BTreeSet<_> = HARMLESS.iter().map(|(module, _)| (*module).to_owned()).collect();
    assert_eq!(found, harmless, "draw keys, salts and nonces from crypto::seal::os_random");
}
