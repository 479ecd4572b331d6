//! Every reader of bytes that others can write: no input may make it panic, and what it accepts must be sound. Each
//! function is a target of `scripts/fuzz`; `tests/standalone/fuzz_corpus.rs` gives each the files of its corpus.

use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use kube_envelope::config::Config;
use kube_envelope::crypto::seal::digest;
use kube_envelope::crypto::secret::Dek;
use kube_envelope::dek::history::History;
use kube_envelope::dek::sealed::SealedState;
use kube_envelope::dek::store::StateFolder;
use kube_envelope::envelope::{Ciphertext, WrappedDekSet};
use kube_envelope::etcd::Stored;
use kube_envelope::kek::KekCause;
use kube_envelope::key_stores::keyring::Keyring;
use kube_envelope::key_stores::meanings;
use kube_envelope::rotation::cluster::metrics::parse;
use serde_json::Value;

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

/// The sealed state in the same folder, before a KEK is asked: what is read is written back as the same.
pub fn sealed_state(bytes: &[u8]) {
    let cluster = "cluster".parse().expect("a name");
    if let Ok(state) = SealedState::decode(bytes, &cluster, 1) {
        assert_eq!(SealedState::decode(&state.encode(), &cluster, 1).expect("our own encoding"), state);
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

/// An error answer that comes in place of a key store's: the first line has the status and perhaps `Retry-After`, the rest
/// is the body. Every vendor reads it, so what is one's own words is somebody else's to the others: only what is in the form
/// of the vendor itself is a denial, whoever wrote it. What is told of it stays short and on one line.
pub fn error_answer(bytes: &[u8]) {
    let end = bytes.iter().position(|byte| *byte == b'\n').unwrap_or(bytes.len());
    let (first, body) = (String::from_utf8_lossy(&bytes[..end]), bytes.get(end + 1..).unwrap_or_default());
    let (status, wait) = first.split_once(' ').map_or((&*first, None), |(status, wait)| (status, Some(wait)));
    // 2xx is no error, and 1xx no answer.
    let Some(status) = status.parse().ok().filter(|status| (300..600).contains(status)) else { return };
    let json: Value = serde_json::from_slice(body).unwrap_or_default();
    for (kind, errors) in meanings(status, wait, body) {
        for error in errors {
            if error.cause() == KekCause::Denied {
                assert!(is_denial(kind, status, &json), "{kind} takes it for a denial: {error}");
            }
            let told = error.chain();
            assert!(told.len() < 4096 && !told.contains(char::is_control), "{kind} tells too much: {told:?}");
        }
    }
}

/// The vendors' documented forms of an answer that can deny something.
fn is_denial(kind: &str, status: u16, body: &Value) -> bool {
    let text = |pointer: &str| body.pointer(pointer).and_then(Value::as_str).unwrap_or_default();
    match kind {
        "awsKms" => {
            let code = text("/__type").split(':').next().unwrap_or_default();
            let codes = ["AccessDenied", "AccessDeniedException", "DisabledException", "KMSInvalidStateException"];
            let code = code.rsplit('#').next().unwrap_or_default();
            matches!(status, 400 | 403) && (codes.contains(&code) || code == "NotFoundException")
        }
        "gcpKms" => {
            let codes = ["PERMISSION_DENIED", "NOT_FOUND", "FAILED_PRECONDITION"];
            body.pointer("/error/code") == Some(&status.into()) && codes.contains(&text("/error/status"))
        }
        "azureKeyVault" => match status {
            403 => !text("/error/code").is_empty(),
            404 => text("/error/code") == "KeyNotFound",
            409 => !text("/error/code").is_empty() && body.to_string().contains("ObjectIsDeletedButRecoverable"),
            _ => false,
        },
        "transit" => {
            let said =
                body["errors"].as_array().map(|errors| errors.iter().filter_map(Value::as_str).collect::<String>());
            said.is_some_and(|said| match status {
                400 => said.contains("encryption key not found") || said.contains("version is disallowed by policy"),
                403 => ["permission denied", "invalid token", "bad token"].iter().any(|words| said.contains(words)),
                _ => status == 404 && said.is_empty(),
            })
        }
        _ => false,
    }
}

fn write_private(file: &Path, bytes: &[u8]) {
    std::fs::write(file, bytes).expect("written");
    std::fs::set_permissions(file, PermissionsExt::from_mode(0o600)).expect("private");
}
