//! `evidence`: what a rotation has shown, signed, checked, and as a page.

use std::path::Path;
use std::process::{Command, Output};

use aws_lc_rs::encoding::AsDer;
use aws_lc_rs::rand::SystemRandom;
use aws_lc_rs::signature::{ECDSA_P256_SHA256_ASN1_SIGNING, EcdsaKeyPair, Ed25519KeyPair, KeyPair};
use base64::{Engine, prelude::BASE64_STANDARD};
use kube_envelope::crypto::signature::SigningKey;
use kube_envelope::rotation::conclusion::envelope::{Envelope, signed_bytes};
use kube_envelope::rotation::conclusion::history::{append, history_file};
use kube_envelope::rotation::conclusion::statement::PAYLOAD_TYPE;
use kube_envelope::rotation::journal::Journal;
use kube_envelope::rotation::journal::intent::Intent;
use kube_envelope::rotation::journal::verdict::Conclusion;
use serde_json::{Value, json};

const BINARY: &str = env!("CARGO_BIN_EXE_kube-envelope");

/// The evidence of a rotation with this conclusion.
fn evidence(file: &Path, conclusion: Conclusion) -> Journal {
    let mut journal = Journal::new(Intent::default());
    journal.cluster = Some("7b0c".into());
    journal.verified_at = Some(jiff::Timestamp::now());
    let scan = json!({
        "method": "etcd", "revision": 5, "lookedAt": 3, "leftovers": 0, "expiring": 0, "named": {},
        "stored": {"secrets": {"under the target": 3}}, "under": {"secrets": {"p | key_1": 3}},
        "clusters": [{"id": "cdf8181e3c5e33f1", "endpoints": [], "revision": 5, "keys": 3}],
    });
    journal.verified = Some(serde_json::from_value(scan).unwrap());
    let verdict = json!({
        "conclusion": conclusion, "sentence": "As concluded.", "evidence": [], "missing": [],
        "mayBeDisabled": ["KEK a version 1"],
    });
    journal.verdict = Some(serde_json::from_value(verdict).unwrap());
    journal.write(file).unwrap();
    journal
}

fn pem(kind: &str, der: &[u8]) -> String {
    format!("-----BEGIN {kind}-----\n{}\n-----END {kind}-----\n", BASE64_STANDARD.encode(der))
}

/// Writes a new key; the private half in PEM.
fn key(folder: &Path, name: &str) -> String {
    let document = Ed25519KeyPair::generate_pkcs8(&SystemRandom::new()).unwrap();
    let pair = Ed25519KeyPair::from_pkcs8(document.as_ref()).unwrap();
    let private = pem("PRIVATE KEY", document.as_ref());
    std::fs::write(folder.join(format!("{name}.pem")), &private).unwrap();
    let public = pair.public_key().as_der().unwrap();
    std::fs::write(folder.join(format!("{name}.pub")), pem("PUBLIC KEY", public.as_ref())).unwrap();
    private
}

fn run(folder: &Path, arguments: &[&str]) -> (Option<i32>, String) {
    let Output { status, stdout, stderr } =
        Command::new(BINARY).arg("evidence").args(arguments).current_dir(folder).output().unwrap();
    (status.code(), String::from_utf8([stdout, stderr].concat()).unwrap())
}

#[test]
fn what_was_signed_is_checked_and_ends_with_the_code_of_its_verdict() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    key(folder, "ours");
    key(folder, "theirs");
    for (name, conclusion, code) in [("yes", Conclusion::MayBeDisabled, 0), ("wait", Conclusion::NothingLeftWait, 7)] {
        let (file, signed) = (format!("{name}.json"), format!("{name}.intoto.json"));
        evidence(&folder.join(&file), conclusion);
        assert_eq!(run(folder, &["sign", &file, "--key=ours.pem"]).0, Some(0));
        assert_eq!(run(folder, &["sign", &file, "--key=ours.pem"]).0, Some(1), "it exists");
        let (ended, said) = run(folder, &["verify", &signed, "--public-key=ours.pub", &format!("--evidence={file}")]);
        assert_eq!(ended, Some(code), "{said}");
        assert!(said.contains("kubernetes:7b0c/etcd:cdf8181e3c5e33f1@5"), "{said}");
        let (ended, said) = run(folder, &["verify", &signed, "--public-key=theirs.pub"]);
        assert!(ended == Some(1) && said.contains("proves nothing"), "{said}");
        let (ended, said) = run(folder, &["verify", &signed, "--public-key=ours.pub", "--evidence=ours.pub"]);
        assert!(ended == Some(1) && said.contains("is not the evidence file that the signature covers"), "{said}");
    }
    let (_, page) = run(folder, &["report", "yes.intoto.json", "--public-key=ours.pub"]);
    assert!(page.starts_with("# Key rotation") && page.contains("checked, by key "), "{page}");
    assert!(page.contains(r"| secrets | p \| key\_1 | 3 |"), "{page}");
    assert!(run(folder, &["report", "yes.intoto.json"]).1.contains("NOT checked"));
    assert!(run(folder, &["report", "yes.json"]).1.contains("| signature | none |"));
}

#[test]
fn an_old_yes_and_one_about_another_key_do_not_let_a_pipeline_go_on() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    key(folder, "ours");
    let verify = |name: &str, more: &[&str]| {
        let (file, signed) = (format!("{name}.json"), format!("{name}.intoto.json"));
        if !folder.join(&signed).exists() {
            assert_eq!(run(folder, &["sign", &file, "--key=ours.pem"]).0, Some(0));
        }
        run(folder, &[&["verify", &signed, "--public-key=ours.pub"], more].concat())
    };
    let hours_ago = |name: &str, hours: i64| {
        let file = folder.join(format!("{name}.json"));
        let mut journal = evidence(&file, Conclusion::MayBeDisabled);
        journal.verified_at = Some(jiff::Timestamp::now() - jiff::SignedDuration::from_hours(hours));
        journal.write(&file).unwrap();
    };
    hours_ago("now", 0);
    for named in ["a:1", "KEK a version 1"] {
        assert_eq!(verify("now", &["--former", named]).0, Some(0), "{named}");
    }
    for named in ["a:2", "a", "a:11", "b:1", ""] {
        let (ended, said) = verify("now", &["--former=a:1", &format!("--former={named}")]);
        assert!(ended == Some(8) && said.contains("is not among the keys that may be disabled"), "{named}: {said}");
    }
    hours_ago("old", 25);
    hours_ago("ahead", -2);
    for name in ["old", "ahead"] {
        let (ended, said) = verify(name, &[]);
        assert!(ended == Some(8) && said.contains("does not show that it holds now"), "{said}");
    }
    assert_eq!(verify("old", &["--max-age=26h"]).0, Some(0));
    assert_eq!(verify("ahead", &["--max-age=26h"]).0, Some(8));
}

#[test]
fn only_what_a_rotation_wrote_is_signed() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    key(folder, "ours");
    let file = folder.join("e.json");
    let journal = evidence(&file, Conclusion::MayBeDisabled);
    append(&history_file(&file), &journal, &file, &std::fs::read(&file).unwrap()).unwrap();
    let text = std::fs::read_to_string(&file).unwrap();
    std::fs::write(&file, text.replace("As concluded.", "As wished.")).unwrap();
    let (ended, said) = run(folder, &["sign", "e.json", "--key=ours.pem"]);
    assert!(ended == Some(1) && said.contains("is not what a rotation wrote"), "{said}");
    assert!(!folder.join("e.intoto.json").exists());
    std::fs::write(&file, text).unwrap();
    assert_eq!(run(folder, &["sign", "e.json", "--key=ours.pem"]).0, Some(0));
}

#[test]
fn a_statement_that_was_changed_proves_nothing_whoever_signed_it() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    let private = key(folder, "ours");
    evidence(&folder.join("e.json"), Conclusion::MayBeDisabled);
    run(folder, &["sign", "e.json", "--key=ours.pem"]);
    let envelope: Value = serde_json::from_slice(&std::fs::read(folder.join("e.intoto.json")).unwrap()).unwrap();
    let payload = BASE64_STANDARD.decode(envelope["payload"].as_str().unwrap()).unwrap();
    let mut statement: Value = serde_json::from_slice(&payload).unwrap();
    assert_eq!(statement["_type"], "https://in-toto.io/Statement/v1");
    statement["predicate"]["stored"]["secrets"]["p | key_1"] = json!(4);
    let changed = serde_json::to_vec(&statement).unwrap();

    let mut forged = envelope.clone();
    forged["payload"] = json!(BASE64_STANDARD.encode(&changed));
    std::fs::write(folder.join("forged.json"), forged.to_string()).unwrap();
    let (ended, said) = run(folder, &["verify", "forged.json", "--public-key=ours.pub"]);
    assert!(ended == Some(1) && said.contains("it was changed, or signed by somebody else"), "{said}");

    // Signed by the right key, and its subject is another table.
    let signature = SigningKey::from_pem(&private).unwrap().sign(&signed_bytes(PAYLOAD_TYPE, &changed));
    let signed = serde_json::to_string(&Envelope::new(PAYLOAD_TYPE, &changed, "", &signature)).unwrap();
    std::fs::write(folder.join("signed.json"), signed).unwrap();
    let (ended, said) = run(folder, &["verify", "signed.json", "--public-key=ours.pub"]);
    assert!(ended == Some(1) && said.contains("its subject does not match its predicate"), "{said}");
}

#[test]
fn a_command_of_the_users_signs_with_whatever_kind_of_key_it_has() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    let pair = EcdsaKeyPair::generate(&ECDSA_P256_SHA256_ASN1_SIGNING).unwrap();
    let public = pair.public_key().as_der().unwrap();
    std::fs::write(folder.join("kms.pub"), pem("PUBLIC KEY", public.as_ref())).unwrap();
    evidence(&folder.join("e.json"), Conclusion::MayBeDisabled);
    let sign = |command: &str| run(folder, &["sign", "e.json", &format!("--command={command}"), "--key-id=kms/1"]);
    for (command, said) in
        [("exit 3", "ended with exit status: 3"), ("echo '!'", "base64"), ("true", "printed nothing")]
    {
        let (ended, told) = sign(command);
        assert!(ended == Some(1) && told.contains(said), "{told}");
    }
    // What it is to sign comes on its standard input, the same each time.
    sign("cat >message; exit 1");
    let message = std::fs::read(folder.join("message")).unwrap();
    assert!(message.starts_with(b"DSSEv1 28 application/vnd.in-toto+json "));
    let signature = pair.sign(&SystemRandom::new(), &message).unwrap();
    let (ended, said) = sign(&format!("cat >/dev/null; echo {}", BASE64_STANDARD.encode(signature.as_ref())));
    assert_eq!(ended, Some(0), "{said}");
    let (ended, said) = run(folder, &["verify", "e.intoto.json", "--public-key=kms.pub"]);
    assert_eq!(ended, Some(0), "{said}");
}

#[test]
fn the_history_names_each_verdict_and_a_line_that_was_taken_out_shows() {
    let folder = tempfile::tempdir().unwrap();
    let journal = folder.path().join("journal.json");
    let history = history_file(&journal);
    for conclusion in [Conclusion::NothingLeftWait, Conclusion::MayBeDisabled] {
        let concluded = evidence(&journal, conclusion);
        append(&history, &concluded, Path::new("evidence-1.json"), b"content").unwrap();
    }
    let (ended, said) = run(folder.path(), &["history", "--journal=journal.json"]);
    assert_eq!((ended, said.matches("As concluded.").count()), (Some(0), 2), "{said}");
    let text = std::fs::read_to_string(&history).unwrap();
    std::fs::write(&history, text.lines().last().unwrap()).unwrap();
    let (ended, said) = run(folder.path(), &["history", "--journal=journal.json"]);
    assert!(ended == Some(1) && said.contains("line 1 does not follow"), "{said}");
}
