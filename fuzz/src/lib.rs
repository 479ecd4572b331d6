//! Every reader of bytes that others can write: no input may make it panic, and what it accepts must be sound. Each
//! function is a target of `scripts/fuzz`; `tests/standalone/fuzz_corpus.rs` gives each the files of its corpus.

use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use kube_envelope::config::Config;
use kube_envelope::crypto::seal::digest;
use kube_envelope::crypto::secret::Dek;
use kube_envelope::dek::history::History;
use kube_envelope::dek::store::StateFolder;
use kube_envelope::envelope::{Ciphertext, WrappedDekSet};
use kube_envelope::etcd::Stored;
use kube_envelope::key_stores::keyring::Keyring;
use kube_envelope::rotation::cluster::metrics::parse;

/// A ciphertext as etcd gives it back: nothing that was not sealed opens.
pub fn ciphertext(bytes: &[u8]) {
    if let Ok(ciphertext) = Ciphertext::parse(bytes) {
        let dek = Dek::from_unwrapped([7; 32]).expect("32 bytes");
        assert!(
            ciphertext.open(&dek, &"cluster".parse().expect("a name"), "key").is_err(),
            "a ciphertext that nobody sealed opens"
        );
    }
}

/// The annotation beside a ciphertext: what is read is written back as the same.
pub fn annotation(bytes: &[u8]) {
    if let Ok(set) = WrappedDekSet::decode(bytes) {
        let _ = (set.key_id(), set.check(&set.cluster, "key"));
        if let Ok(encoded) = set.encode() {
            assert_eq!(WrappedDekSet::decode(&encoded).expect("our own encoding"), set);
        }
    }
}

/// The configuration file. An error is shown to the operator, so it is made as well.
pub fn config(bytes: &[u8]) {
    if let Ok(text) = std::str::from_utf8(bytes) {
        match Config::parse(Path::new("config.yaml"), text) {
            Ok(config) => assert!(format!("{config:?}").contains("cluster")),
            Err(error) => assert!(!error.to_string().is_empty()),
        }
    }
}

/// A keyring file: what is read is written back as the same.
pub fn keyring(bytes: &[u8]) {
    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join("keyring.json");
    write_private(&file, bytes);
    if let Ok(keyring) = Keyring::read(&file) {
        let copy = folder.path().join("copy.json");
        keyring.write_new(&copy).expect("written");
        let again = Keyring::read(&copy).expect("our own file");
        assert_eq!((again.id(), again.versions().len()), (keyring.id(), keyring.versions().len()));
    }
}

/// Files in the state folder, with a right checksum and without: a damaged one is set aside, never fatal.
pub fn stored_dek(bytes: &[u8]) {
    let folder = tempfile::tempdir().expect("a folder");
    let whole = [b"KES1".as_slice(), &digest(&[bytes]), bytes].concat();
    for (name, content) in [
        ("00000000000000000000000000000000.dek", bytes),
        ("ffffffffffffffffffffffffffffffff.dek", &whole),
        ("adopted", &whole),
    ] {
        write_private(&folder.path().join(name), content);
    }
    for (_, record) in StateFolder::new(folder.path()).read_all().expect("a folder with a damaged file") {
        let _ = WrappedDekSet::decode(&record);
        if let Some(history) = History::decode(&record) {
            assert_eq!(History::decode(&history.encode()).as_ref(), Some(&history));
        }
    }
}

/// A value in etcd, read without any key.
pub fn etcd_value(bytes: &[u8]) {
    match Stored::of(bytes) {
        Stored::KmsV2 { .. } => assert!(bytes.starts_with(b"k8s:enc:kms:v2:")),
        Stored::Otherwise(_) => assert!(bytes.starts_with(b"k8s:enc:")),
        Stored::Plain => assert!(!bytes.starts_with(b"k8s:enc:")),
    }
}

/// The metrics of an API server.
pub fn metrics(bytes: &[u8]) {
    let _ = parse(&String::from_utf8_lossy(bytes));
}

fn write_private(file: &Path, bytes: &[u8]) {
    std::fs::write(file, bytes).expect("written");
    std::fs::set_permissions(file, PermissionsExt::from_mode(0o600)).expect("private");
}
