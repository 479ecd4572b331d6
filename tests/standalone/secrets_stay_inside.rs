//! Invariant 8: no log line, error, metric or status report of a whole session holds a seed, a DEK or a key of the
//! keyring, in any form in which bytes are commonly printed.

use std::time::Duration;

use crate::support::plugin::proto::{DecryptRequest, EncryptRequest, EncryptResponse};
use crate::support::{KeyringFile, Plugin, wait_until};
use base64::Engine;
use base64::prelude::{BASE64_STANDARD_NO_PAD, BASE64_URL_SAFE_NO_PAD};
use kube_envelope::crypto::seal::{Purpose, dek_id, open};
use kube_envelope::crypto::secret::Dek;
use kube_envelope::envelope::{ANNOTATION, Ciphertext, WrappedDekSet};

const CLUSTER: &str = "secrets";

/// Bytes of a secret that give it away when they show.
const PART: usize = 8;

#[tokio::test]
async fn no_output_of_a_session_that_asks_for_log_level_trace_holds_a_secret() {
    for format in ["text", "json"] {
        session(format).await;
    }
}

/// Start, Encrypt, Decrypt, refusals, rotation, a damaged keyring, restart, stop.
async fn session(format: &str) {
    let keyring = KeyringFile::create();
    let settings = format!("{}\nrefreshInterval: 1s\nproveInterval: 1s", keyring.settings(CLUSTER));
    let mut plugin = Plugin::spawn_with(&settings, &[("RUST_LOG", "trace"), ("RUST_BACKTRACE", "1")]);
    plugin.kill();
    plugin.process.arguments_mut().extend(["--log-format".into(), format.into()]);
    plugin.restart().await;
    let first = plugin.wait_healthy().await;

    let seeds: Vec<Vec<u8>> = (0..4_u8).map(|i| (0..32).map(|j| 0xc8 ^ (i * 32 + j)).collect()).collect();
    let mut stored = vec![encrypt(&plugin, &seeds[0]).await];
    keyring.rotate();
    wait_until("the rotation is followed", Duration::from_secs(15), async || {
        plugin.status().await.is_some_and(|status| status.key_id != first)
    })
    .await;
    stored.push(encrypt(&plugin, &seeds[1]).await);
    let mut answers = decrypt_well_and_badly(&plugin, &stored).await;
    let whole = keyring.json();
    let mut damaged = whole.clone();
    damaged["versions"][0]["key"] = "AAAA".into();
    keyring.replace(&damaged);
    wait_until("the damage is noticed", Duration::from_secs(15), async || {
        plugin.process.log().contains("is not a keyring file")
    })
    .await;
    answers.push(plugin.get("/status"));
    answers.push(plugin.get("/metrics"));
    keyring.replace(&whole);
    plugin.stop();
    plugin.restart().await;
    plugin.wait_healthy().await;
    answers.extend(decrypt_well_and_badly(&plugin, &stored).await);
    plugin.stop();

    let output = plugin.process.log() + &answers.concat();
    assert!(output.contains("DEBUG") && !output.contains("TRACE"), "whatever is asked for, the log ends at debug");
    let deks = stored.iter().map(|encrypted| dek_of(encrypted, &keyring));
    let secrets: Vec<Vec<u8>> = keyring.keys().into_iter().chain(deks).chain(seeds[..2].iter().cloned()).collect();
    assert_eq!(secrets.len(), 6);
    for secret in &secrets {
        for form in forms(secret) {
            assert!(!output.contains(&form), "{format} output holds {form:?}");
        }
    }
}

/// The DEK, unwrapped by hand with the keyring's key.
fn dek_of(encrypted: &EncryptResponse, keyring: &KeyringFile) -> Vec<u8> {
    let id = Ciphertext::parse(&encrypted.ciphertext).unwrap().dek_id;
    let set = WrappedDekSet::decode(&encrypted.annotations[ANNOTATION]).unwrap();
    let context = set.context(id).to_bytes();
    let dek = keyring.keys().into_iter().find_map(|key| {
        let key: [u8; 32] = key.try_into().unwrap();
        open(&key, Purpose::Wrap, &context, &set.wraps[0].blob).ok()
    });
    let dek = dek.unwrap().to_vec();
    assert_eq!(dek_id(&Dek::from_unwrapped(dek.clone()).unwrap()), id, "it is the DEK that the plugin used");
    dek
}

/// Every part of `secret` as hex, base64 and list of numbers.
fn forms(secret: &[u8]) -> Vec<String> {
    let mut forms = Vec::new();
    for part in secret.windows(PART) {
        let numbers: Vec<String> = part.iter().map(ToString::to_string).collect();
        let escaped: String = part.iter().flat_map(|byte| std::ascii::escape_default(*byte)).map(char::from).collect();
        let hex_list: Vec<String> = part.iter().map(|byte| format!("0x{byte:02x}")).collect();
        let forms_of_part = [
            hex::encode(part),
            hex::encode_upper(part),
            numbers.join(", "),
            numbers.join(","),
            escaped,
            hex_list.join(", "),
        ];
        forms.extend(forms_of_part);
    }
    // Base64 of a longer text shows this secret shifted by 0, 1 or 2 bytes; the ends depend on what stands beside it.
    for skip in 0..3 {
        let whole = &secret[skip..skip + (secret.len() - skip) / 3 * 3];
        forms.push(BASE64_STANDARD_NO_PAD.encode(whole));
        forms.push(BASE64_URL_SAFE_NO_PAD.encode(whole));
    }
    forms
}

async fn encrypt(plugin: &Plugin, seed: &[u8]) -> EncryptResponse {
    let request = EncryptRequest { plaintext: seed.to_vec(), uid: "encrypt".into() };
    plugin.client().await.unwrap().encrypt(request).await.unwrap().into_inner()
}

/// Decrypts each, then with a changed last byte and with a cut annotation; returns what the refusals said.
async fn decrypt_well_and_badly(plugin: &Plugin, stored: &[EncryptResponse]) -> Vec<String> {
    let mut client = plugin.client().await.unwrap();
    let mut said = Vec::new();
    for encrypted in stored {
        let good = DecryptRequest {
            ciphertext: encrypted.ciphertext.clone(),
            uid: "decrypt".into(),
            key_id: encrypted.key_id.clone(),
            annotations: encrypted.annotations.clone(),
        };
        assert!(client.decrypt(good.clone()).await.is_ok());
        let mut changed = good.clone();
        *changed.ciphertext.last_mut().unwrap() ^= 1;
        let mut cut = good.clone();
        cut.annotations.get_mut(ANNOTATION).unwrap().truncate(40);
        for bad in [changed, cut] {
            said.push(client.decrypt(bad).await.map(drop).unwrap_err().to_string());
        }
    }
    said
}

/// The search itself finds a secret in each form.
#[test]
fn a_secret_in_a_log_would_be_found() {
    let secret: Vec<u8> = (0..32).map(|i| 0xc8 ^ i).collect();
    let found = |log: String| forms(&secret).iter().any(|form| log.contains(form));
    assert!(found(format!("key={}", hex::encode(&secret))));
    assert!(found(format!("key={secret:?}")));
    for prefix in ["", "a", "bc"] {
        let text = [prefix.as_bytes(), &secret].concat();
        assert!(found(format!("key={}", BASE64_STANDARD_NO_PAD.encode(text))), "{prefix:?}");
    }
    assert!(!found("nothing".into()));
}
