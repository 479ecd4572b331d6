//! Bad input on the real socket of the real binary: each gets a precise gRPC status, nothing panics, and no KEK is
//! asked where there is nothing to ask.
#![allow(clippy::unwrap_used, missing_docs)]
mod support;

use std::collections::HashMap;
use std::io::{Read, Write};
use std::os::unix::fs::{FileTypeExt, PermissionsExt};
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use kube_envelope::envelope::{ANNOTATION, Ciphertext, WrappedDekSet};
use proptest::prelude::*;
use support::plugin::proto::key_management_service_client::KeyManagementServiceClient;
use support::plugin::proto::{DecryptRequest, EncryptRequest};
use support::{KeyringFile, Plugin};
use tonic::transport::Channel;
use tonic::{Code, Status};

const CLUSTER: &str = "hostile";
const SEED: [u8; 32] = [42; 32];

/// A user that is neither root nor allowed.
const NOBODY: u32 = 65534;

/// Where the DEK id stands in a ciphertext of format 1.
const DEK_ID: std::ops::Range<usize> = 3..19;

type Client = KeyManagementServiceClient<Channel>;

/// A plugin that asks its KEK nothing by itself after its start.
async fn plugin(keyring: &KeyringFile) -> Plugin {
    plugin_of(keyring, CLUSTER).await
}

async fn plugin_of(keyring: &KeyringFile, cluster: &str) -> Plugin {
    let plugin =
        Plugin::start(&format!("{}\nrefreshInterval: 1h\nproveInterval: 1day", keyring.settings(cluster))).await;
    plugin.wait_healthy().await;
    plugin
}

async fn stored(plugin: &Plugin) -> DecryptRequest {
    let request = EncryptRequest { plaintext: SEED.to_vec(), uid: "encrypt".into() };
    let encrypted = plugin.client().await.unwrap().encrypt(request).await.unwrap().into_inner();
    DecryptRequest {
        ciphertext: encrypted.ciphertext,
        uid: "decrypt".into(),
        key_id: encrypted.key_id,
        annotations: encrypted.annotations,
    }
}

async fn decrypt(client: &mut Client, request: DecryptRequest) -> Result<Vec<u8>, Status> {
    client.decrypt(request).await.map(|response| response.into_inner().plaintext)
}

async fn refusal(client: &mut Client, request: DecryptRequest) -> Status {
    decrypt(client, request).await.expect_err("refused")
}

fn with_ciphertext(good: &DecryptRequest, ciphertext: &[u8]) -> DecryptRequest {
    DecryptRequest { ciphertext: ciphertext.to_vec(), ..good.clone() }
}

fn with_annotation(good: &DecryptRequest, value: &[u8]) -> DecryptRequest {
    DecryptRequest { annotations: HashMap::from([(ANNOTATION.into(), value.to_vec())]), ..good.clone() }
}

/// Every copy of `bytes` with one bit changed, and the byte it is in.
fn flipped(bytes: &[u8]) -> impl Iterator<Item = (usize, Vec<u8>)> {
    (0..bytes.len() * 8).map(|bit| {
        let mut changed = bytes.to_vec();
        changed[bit / 8] ^= 1 << (bit % 8);
        (bit / 8, changed)
    })
}

/// It never panicked, and serves on.
async fn assert_unharmed(plugin: &mut Plugin, good: &DecryptRequest) {
    assert_eq!(plugin.metric("kube_envelope_rpcs_total", &["outcome=\"panic\""]).to_string(), "0");
    assert!(!plugin.process.log().contains("panicked"), "{}", plugin.process.log_tail());
    assert!(plugin.process.is_running());
    assert_eq!(decrypt(&mut plugin.client().await.unwrap(), good.clone()).await.unwrap(), SEED);
}

#[tokio::test]
async fn every_truncation_of_a_ciphertext_is_refused_without_asking_a_kek() {
    let keyring = KeyringFile::create();
    let mut plugin = plugin(&keyring).await;
    let mut client = plugin.client().await.unwrap();
    let good = stored(&plugin).await;
    let asked = plugin.kek_requests("");
    for length in 0..good.ciphertext.len() {
        let refused = refusal(&mut client, with_ciphertext(&good, &good.ciphertext[..length])).await;
        assert_eq!(refused.code(), Code::InvalidArgument, "length {length}");
        let says = match length {
            0 => "is empty",
            1..80 => "truncated",
            _ => "does not open",
        };
        assert!(refused.message().contains(says), "length {length}: {}", refused.message());
    }
    assert_eq!(plugin.kek_requests(""), asked);
    assert_unharmed(&mut plugin, &good).await;
}

/// A changed DEK id names a DEK that nobody has: only its KEK can say so. No other bit asks a KEK.
#[tokio::test]
async fn every_flipped_bit_of_a_ciphertext_is_refused() {
    let keyring = KeyringFile::create();
    let mut plugin = plugin(&keyring).await;
    let mut client = plugin.client().await.unwrap();
    let good = stored(&plugin).await;
    for (byte, changed) in flipped(&good.ciphertext) {
        let asked = plugin.kek_requests("");
        let refused = refusal(&mut client, with_ciphertext(&good, &changed)).await;
        assert_eq!(refused.code(), Code::InvalidArgument, "byte {byte}: {}", refused.message());
        let asked = plugin.kek_requests("") - asked;
        assert_eq!(asked, u64::from(DEK_ID.contains(&byte)), "byte {byte}");
    }
    assert_unharmed(&mut plugin, &good).await;
}

/// On a plugin that holds the DEK: the wraps are not needed, so a change in them is no obstacle, and never leads to
/// other bytes. Whatever enters the `key_id` is checked.
#[tokio::test]
async fn a_damaged_annotation_is_refused_or_harmless_where_the_dek_is_known() {
    let keyring = KeyringFile::create();
    let mut plugin = plugin(&keyring).await;
    let mut client = plugin.client().await.unwrap();
    let good = stored(&plugin).await;
    let asked = plugin.kek_requests("");
    let annotation = good.annotations[ANNOTATION].clone();
    let shorter = (0..annotation.len()).map(|length| (length, annotation[..length].to_vec()));
    let mut refused = 0;
    for (byte, changed) in flipped(&annotation).chain(shorter) {
        match decrypt(&mut client, with_annotation(&good, &changed)).await {
            Ok(plaintext) => assert_eq!(plaintext, SEED, "byte {byte}"),
            Err(status) => {
                assert_eq!(status.code(), Code::InvalidArgument, "byte {byte}: {}", status.message());
                refused += 1;
            }
        }
    }
    let cluster_lineage_and_version = 8 * (CLUSTER.len() + 16 + 32);
    assert!(refused >= annotation.len() + cluster_lineage_and_version, "only {refused} were refused");
    assert_eq!(plugin.kek_requests(""), asked);
    assert_unharmed(&mut plugin, &good).await;
}

/// On a plugin that has to ask: at most one request each, and no plaintext but the right one.
#[tokio::test]
async fn a_damaged_annotation_is_refused_where_the_dek_is_not_known_and_spoils_nothing_for_the_good_one() {
    let keyring = KeyringFile::create();
    let writer = plugin(&keyring).await;
    let good = stored(&writer).await;
    let mut cold = plugin(&keyring).await;
    let mut client = cold.client().await.unwrap();
    let annotation = &good.annotations[ANNOTATION];
    let blob = WrappedDekSet::decode(annotation).unwrap().wraps[0].blob.clone();
    let blob_from = annotation.windows(blob.len()).position(|window| window == blob).unwrap();
    for (byte, changed) in flipped(annotation) {
        let asked = cold.kek_requests("");
        match decrypt(&mut client, with_annotation(&good, &changed)).await {
            Ok(_) => panic!("byte {byte}: opened with a damaged wrap"),
            Err(status) => assert_eq!(status.code(), Code::InvalidArgument, "byte {byte}: {}", status.message()),
        }
        // Everything before the blob's own tag and length enters cluster name and key_id, which are checked first.
        assert!(cold.kek_requests("") - asked <= u64::from(byte >= blob_from - 2), "byte {byte}");
    }
    assert_unharmed(&mut cold, &good).await;
}

/// What other plugins stored under the same provider name, by the marks they are known by.
#[tokio::test]
async fn ciphertexts_of_other_plugins_are_refused_without_asking_a_kek() {
    let keyring = KeyringFile::create();
    let mut plugin = plugin(&keyring).await;
    let mut client = plugin.client().await.unwrap();
    let good = stored(&plugin).await;
    let asked = plugin.kek_requests("");
    let binary: Vec<u8> = (0..90).collect();
    let foreign: &[(&str, &str, &[u8], Option<&str>)] = &[
        ("Vault transit", "transit", b"vault:v1:8SDd3WHDOjf7mq69CyCqYjBXAiQQAVZRkFM13ok481zoCmHnSeDX9vyf7w==", None),
        ("OpenBao", "deadbeef", b"vault:v2:AAAA", Some("provider.kms.openbao.org")),
        ("AWS", "arn:aws:kms:eu-central-1:111122223333:key/k", &[&[0x31], binary.as_slice()].concat(), None),
        ("GCP", "projects/p/locations/l/keyRings/r/cryptoKeys/k/cryptoKeyVersions/1", &binary, None),
        ("Azure", "0f0f", &binary, Some("algorithm.azure.akv.io")),
        ("kleidi", "kleidi", &binary, Some("v2.kleidi.beezy.dev")),
        ("JWE", "6b6579", b"eyJhbGciOiJBMjU2R0NNIn0.e30.e30.e30", None),
        ("KMIP", "k", &binary, Some("iv.k8s-kms.cosmian.com")),
        ("reference", "mock_key_id", &binary, Some("version.encryption.remote.io")),
        ("CBOR", "k", b"\xa5\x63kid\x43abc", None),
        ("age", "age", b"age-encryption.org/v1\n-> X25519 abc\n", None),
        ("clear text", "", b"k8s:enc:kms:v2:name:", None),
    ];
    for (name, key_id, ciphertext, annotation) in foreign {
        let annotations = annotation.map(|key| (key.to_owned(), b"1".to_vec())).into_iter().collect();
        let request = DecryptRequest {
            ciphertext: ciphertext.to_vec(),
            uid: "foreign".into(),
            key_id: (*key_id).into(),
            annotations,
        };
        let refused = refusal(&mut client, request).await;
        assert_eq!(refused.code(), Code::InvalidArgument, "{name}");
        assert!(refused.message().contains("another plugin made it"), "{name}: {}", refused.message());
    }
    assert_eq!(plugin.kek_requests(""), asked);
    assert_unharmed(&mut plugin, &good).await;
}

#[tokio::test]
async fn a_ciphertext_of_a_later_format_asks_for_a_newer_program() {
    let keyring = KeyringFile::create();
    let plugin = plugin(&keyring).await;
    let good = stored(&plugin).await;
    let asked = plugin.kek_requests("");
    for format in [0, 2, 255] {
        let mut later = good.ciphertext.clone();
        later[2] = format;
        let refused = refusal(&mut plugin.client().await.unwrap(), with_ciphertext(&good, &later)).await;
        assert_eq!(refused.code(), Code::InvalidArgument);
        assert!(refused.message().contains(&format!("has format {format}")), "{}", refused.message());
    }
    assert_eq!(plugin.kek_requests(""), asked);
}

#[tokio::test]
async fn a_ciphertext_longer_than_the_api_server_stores_is_refused() {
    let keyring = KeyringFile::create();
    let mut plugin = plugin(&keyring).await;
    let mut client = plugin.client().await.unwrap();
    let good = stored(&plugin).await;
    let asked = plugin.kek_requests("");
    for length in [1025, 20_000] {
        let mut long = good.ciphertext.clone();
        long.resize(length, 0);
        let refused = refusal(&mut client, with_ciphertext(&good, &long)).await;
        assert_eq!(refused.code(), Code::InvalidArgument);
        assert!(refused.message().contains(&format!("{length} bytes")), "{}", refused.message());
    }
    let refused = refusal(&mut client, with_annotation(&good, &vec![0; 33_000])).await;
    assert_eq!(refused.code(), Code::InvalidArgument);
    assert_eq!(plugin.kek_requests(""), asked);
    assert_unharmed(&mut plugin, &good).await;
}

#[tokio::test]
async fn a_message_over_64_kibibytes_is_refused_unread_and_the_connection_goes_on() {
    let keyring = KeyringFile::create();
    let mut plugin = plugin(&keyring).await;
    let mut client = plugin.client().await.unwrap();
    let good = stored(&plugin).await;
    for length in [65 * 1024, 3 * 1024 * 1024] {
        let refused = refusal(&mut client, with_ciphertext(&good, &vec![0; length])).await;
        assert_eq!(refused.code(), Code::OutOfRange, "{length}: {}", refused.message());
        let request = EncryptRequest { plaintext: vec![0; length], uid: "large".into() };
        assert_eq!(client.encrypt(request).await.unwrap_err().code(), Code::OutOfRange, "{length}");
        assert_eq!(decrypt(&mut client, good.clone()).await.unwrap(), SEED);
    }
    assert_unharmed(&mut plugin, &good).await;
}

#[tokio::test]
async fn another_clusters_ciphertext_is_refused_and_both_are_named() {
    let keyring = KeyringFile::create();
    let (ours, theirs) = (plugin(&keyring).await, plugin_of(&keyring, "elsewhere").await);
    let foreign = stored(&theirs).await;
    let asked = ours.kek_requests("");
    let refused = refusal(&mut ours.client().await.unwrap(), foreign.clone()).await;
    assert_eq!(refused.code(), Code::InvalidArgument);
    assert!(refused.message().contains("\"elsewhere\"") && refused.message().contains("\"hostile\""));
    assert_eq!(ours.kek_requests(""), asked);

    // With the name replaced in the annotation, the wrap itself is bound to the other cluster.
    let mut forged = WrappedDekSet::decode(&foreign.annotations[ANNOTATION]).unwrap();
    forged.cluster = CLUSTER.into();
    let forged = with_annotation(&foreign, &forged.encode().unwrap());
    let refused = refusal(&mut ours.client().await.unwrap(), forged).await;
    assert_eq!(refused.code(), Code::InvalidArgument, "{}", refused.message());
}

#[tokio::test]
async fn a_missing_annotation_is_named() {
    let keyring = KeyringFile::create();
    let plugin = plugin(&keyring).await;
    let good = stored(&plugin).await;
    let asked = plugin.kek_requests("");
    let value = good.annotations[ANNOTATION].clone();
    for annotations in [HashMap::new(), HashMap::from([("other.example.com".to_owned(), value)])] {
        let request = DecryptRequest { annotations, ..good.clone() };
        let refused = refusal(&mut plugin.client().await.unwrap(), request).await;
        assert_eq!(refused.code(), Code::InvalidArgument);
        assert!(refused.message().contains(ANNOTATION), "{}", refused.message());
    }
    assert_eq!(plugin.kek_requests(""), asked);
}

#[tokio::test]
async fn a_dek_of_a_kek_that_is_not_configured_is_refused_with_the_fix_and_without_asking() {
    let (keyring, other) = (KeyringFile::create(), KeyringFile::create());
    let (ours, theirs) = (plugin(&keyring).await, plugin(&other).await);
    let foreign = stored(&theirs).await;
    let asked = ours.kek_requests("");
    let refused = refusal(&mut ours.client().await.unwrap(), foreign).await;
    assert_eq!(refused.code(), Code::FailedPrecondition);
    assert!(refused.message().contains("under keks or retired"), "{}", refused.message());
    assert_eq!(ours.kek_requests(""), asked);
}

#[tokio::test]
async fn a_destroyed_version_is_named() {
    let keyring = KeyringFile::create();
    let writer = plugin(&keyring).await;
    let old = stored(&writer).await;
    keyring.rotate();
    let destroyed = keyring.json()["versions"][0]["id"].as_str().unwrap().to_owned();
    keyring.command(&["destroy"], &[&destroyed]);
    let cold = plugin(&keyring).await;
    let refused = refusal(&mut cold.client().await.unwrap(), old).await;
    assert_eq!(refused.code(), Code::FailedPrecondition);
    assert!(refused.message().contains(&destroyed), "{}", refused.message());
}

#[test]
fn random_bytes_are_refused_and_never_ask_a_kek() {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap();
    let keyring = KeyringFile::create();
    let (mut plugin, client, good) = runtime.block_on(async {
        let plugin = plugin(&keyring).await;
        let (client, good) = (plugin.client().await.unwrap(), stored(&plugin).await);
        (plugin, client, good)
    });
    let asked = plugin.kek_requests("");
    let marked = prop::collection::vec(any::<u8>(), 0..1100).prop_map(|rest| [b"KE\x01", rest.as_slice()].concat());
    let ciphertext = prop_oneof![prop::collection::vec(any::<u8>(), 0..1100), marked, Just(good.ciphertext.clone())];
    let annotation = prop::collection::vec(any::<u8>(), 0..400);
    let config = ProptestConfig { cases: 500, failure_persistence: None, ..ProptestConfig::default() };
    proptest!(config, |(ciphertext in ciphertext, annotation in annotation, key_id in ".{0,40}")| {
        let request = DecryptRequest { key_id, ..with_annotation(&with_ciphertext(&good, &ciphertext), &annotation) };
        let refused = runtime.block_on(refusal(&mut client.clone(), request));
        prop_assert_eq!(refused.code(), Code::InvalidArgument);
    });
    assert_eq!(plugin.kek_requests(""), asked);
    runtime.block_on(assert_unharmed(&mut plugin, &good));
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 5000, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn parsing_random_bytes_never_panics(bytes in prop::collection::vec(any::<u8>(), 0..1200)) {
        let _ = Ciphertext::parse(&bytes);
        let _ = Ciphertext::parse(&[b"KE\x01", bytes.as_slice()].concat());
        if let Ok(set) = WrappedDekSet::decode(&bytes) {
            prop_assert_eq!(WrappedDekSet::decode(&set.encode().unwrap()).unwrap(), set);
        }
    }
}

#[tokio::test]
async fn bytes_that_are_no_http2_close_their_own_connection_only() {
    let keyring = KeyringFile::create();
    let mut plugin = plugin(&keyring).await;
    let good = stored(&plugin).await;
    let preface = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".as_slice();
    let noise: Vec<u8> = (0..4096_u32).map(|i| u8::try_from(i.wrapping_mul(2_654_435_761) >> 24).unwrap()).collect();
    for bytes in [b"GET / HTTP/1.1\r\nHost: x\r\n\r\n".as_slice(), &noise, &[preface, &noise].concat()] {
        let mut stream = UnixStream::connect(plugin.socket()).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
        // The plugin may have closed already.
        let _ = stream.write_all(bytes);
        let mut answer = Vec::new();
        match stream.read_to_end(&mut answer) {
            Ok(_) => {}
            Err(error) => assert_eq!(error.kind(), std::io::ErrorKind::ConnectionReset, "closed: {error}"),
        }
    }
    assert_unharmed(&mut plugin, &good).await;
}

#[test]
fn a_symlink_in_the_sockets_place_is_refused_and_its_target_untouched() {
    let keyring = KeyringFile::create();
    let mut plugin = Plugin::spawn(&keyring.settings(CLUSTER));
    plugin.kill();
    let precious = plugin.folder().join("precious");
    std::fs::write(&precious, "precious").unwrap();
    let _ = std::fs::remove_file(plugin.socket());
    std::os::unix::fs::symlink(&precious, plugin.socket()).unwrap();
    plugin.process.restart();
    assert_eq!(plugin.process.wait(Duration::from_secs(10)).code(), Some(1));
    assert!(plugin.process.log().contains("exists and is not a socket"), "{}", plugin.process.log_tail());
    assert_eq!(std::fs::read(&precious).unwrap(), b"precious");
    assert!(std::fs::symlink_metadata(plugin.socket()).unwrap().file_type().is_symlink());
}

#[test]
fn a_file_in_the_sockets_place_is_refused_and_untouched() {
    let keyring = KeyringFile::create();
    let mut plugin = Plugin::spawn(&keyring.settings(CLUSTER));
    plugin.kill();
    let _ = std::fs::remove_file(plugin.socket());
    std::fs::write(plugin.socket(), "precious").unwrap();
    plugin.process.restart();
    assert_eq!(plugin.process.wait(Duration::from_secs(10)).code(), Some(1));
    assert!(plugin.process.log().contains("exists and is not a socket"), "{}", plugin.process.log_tail());
    assert_eq!(std::fs::read(plugin.socket()).unwrap(), b"precious");
}

#[test]
fn a_folder_that_others_can_write_is_refused_with_the_fix() {
    let keyring = KeyringFile::create();
    let mut plugin = Plugin::spawn(&keyring.settings(CLUSTER));
    plugin.kill();
    std::fs::set_permissions(plugin.folder(), std::fs::Permissions::from_mode(0o777)).unwrap();
    plugin.process.restart();
    assert_eq!(plugin.process.wait(Duration::from_secs(10)).code(), Some(1));
    let fix = format!("chmod go-w {}", plugin.folder().display());
    assert!(plugin.process.log().contains(&fix), "{}", plugin.process.log_tail());
}

#[tokio::test]
async fn a_second_plugin_leaves_a_served_socket_alone() {
    let keyring = KeyringFile::create();
    let mut first = plugin(&keyring).await;
    let good = stored(&first).await;
    let second = std::process::Command::new(env!("CARGO_BIN_EXE_kube-envelope"))
        .args(["serve", "--config"])
        .arg(first.config_file())
        .output()
        .unwrap();
    assert_eq!(second.status.code(), Some(1));
    let error = String::from_utf8(second.stderr).unwrap();
    assert!(error.contains("is served by another process; stop that one first"), "{error}");
    assert_unharmed(&mut first, &good).await;
}

#[tokio::test]
async fn a_plugin_killed_with_9_is_followed_by_another_on_its_stale_socket() {
    let keyring = KeyringFile::create();
    let mut plugin = plugin(&keyring).await;
    let good = stored(&plugin).await;
    plugin.kill();
    assert!(std::fs::symlink_metadata(plugin.socket()).unwrap().file_type().is_socket(), "left behind");
    plugin.restart().await;
    plugin.wait_healthy().await;
    assert_unharmed(&mut plugin, &good).await;
}

/// The socket's mode is loosened on purpose: then the kernel lets everybody in, and the uid is what is left to check.
#[tokio::test]
async fn a_peer_of_another_uid_is_refused_unless_it_is_allowed() {
    assert!(rustix::process::geteuid().is_root(), "only root can become another uid: run this test as root");
    let keyring = KeyringFile::create();
    for (allowed, settings) in [(false, keyring.settings(CLUSTER)), (true, keyring.settings(CLUSTER))] {
        let uids = if allowed { format!("\nallowedUids: [{NOBODY}]") } else { String::new() };
        let plugin = Plugin::start(&format!("{settings}{uids}")).await;
        plugin.wait_healthy().await;
        std::fs::set_permissions(plugin.folder(), std::fs::Permissions::from_mode(0o755)).unwrap();
        std::fs::set_permissions(plugin.socket(), std::fs::Permissions::from_mode(0o666)).unwrap();
        let socket = plugin.socket();
        let answer = std::thread::spawn(move || {
            // Of this thread alone, as the kernel counts; it ends with the thread.
            let nobody = rustix::fs::Uid::from_raw(NOBODY);
            rustix::thread::set_thread_res_uid(nobody, nobody, nobody).unwrap();
            let mut stream = UnixStream::connect(socket).unwrap();
            stream.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
            let _ = stream.write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0");
            let mut byte = [0];
            // A connection that is closed with unread bytes in it reads as end or as reset.
            stream.read(&mut byte).is_ok_and(|read| read == 1)
        });
        assert_eq!(answer.join().unwrap(), allowed);
        assert_eq!(plugin.process.log().contains("uid is not in allowedUids"), !allowed);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn sigterm_ends_the_plugin_within_two_seconds_though_peers_stay_connected() {
    let keyring = KeyringFile::create();
    let mut plugin = plugin(&keyring).await;
    let silent = UnixStream::connect(plugin.socket()).unwrap();
    let mut idle = plugin.client().await.unwrap();
    let good = stored(&plugin).await;
    decrypt(&mut idle, good).await.unwrap();
    plugin.process.signal(rustix::process::Signal::TERM);
    let told = Instant::now();
    let status = plugin.process.wait(Duration::from_secs(10));
    assert!(told.elapsed() < Duration::from_secs(2), "{:?}", told.elapsed());
    assert_eq!(status.code(), Some(0));
    assert!(!plugin.socket().exists(), "the socket is removed");
    drop((silent, idle));
}
