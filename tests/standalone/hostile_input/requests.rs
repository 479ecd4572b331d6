//! Requests: damaged, foreign, too long, of another format or cluster.

use kube_envelope::envelope::{Ciphertext, WrappedDekSet};
use proptest::prelude::*;

use super::*;

/// Where the DEK id stands in a ciphertext of format 1.
const DEK_ID: std::ops::Range<usize> = 3..19;

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

/// On a plugin that holds the DEK: the wraps are not needed, so a change in them does no harm, and never leads to
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
    forged.cluster = CLUSTER.parse().unwrap();
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

/// Field case F27: whoever sends what is refused fills no disk with it.
#[tokio::test]
async fn two_thousand_refusals_are_a_few_log_lines_and_a_count() {
    let keyring = KeyringFile::create();
    let mut plugin = plugin(&keyring).await;
    let good = stored(&plugin).await;
    let mut client = plugin.client().await.unwrap();
    for _ in 0..2000 {
        refusal(&mut client, with_ciphertext(&good, b"KE\x01 not one of ours")).await;
    }
    let lines = plugin.process.log().lines().filter(|line| line.contains("refused")).count();
    assert!((1..=60).contains(&lines), "{lines} lines");
    let labels = ["method=\"Decrypt\"", "outcome=\"refused\""];
    assert_eq!(plugin.metric("kube_envelope_rpcs_total", &labels).to_string(), "2000");
    assert_unharmed(&mut plugin, &good).await;
}

/// Field case F23: an `EncryptionConfiguration` without `apiVersion: v2`.
#[tokio::test]
async fn an_api_server_that_speaks_kms_v1_is_named_once() {
    use kube_envelope::kms::v2::{StatusRequest, StatusResponse};
    let keyring = KeyringFile::create();
    let mut plugin = plugin(&keyring).await;
    let good = stored(&plugin).await;
    let socket = kube_envelope::config::SocketAddress::File(plugin.socket());
    let channel = kube_envelope::plugin::client::channel(&socket).await.unwrap();
    let mut client = tonic::client::Grpc::new(channel);
    for _ in 0..3 {
        client.ready().await.unwrap();
        let path = tonic::codegen::http::uri::PathAndQuery::from_static("/v1beta1.KeyManagementService/Version");
        let codec = tonic_prost::ProstCodec::<StatusRequest, StatusResponse>::default();
        let refused = client.unary(tonic::Request::new(StatusRequest {}), path, codec).await.unwrap_err();
        assert_eq!(refused.code(), Code::Unimplemented);
        assert!(refused.message().contains("set apiVersion: v2"), "{refused:?}");
    }
    assert!(plugin.process.says("asks by KMS v1"));
    assert_eq!(plugin.process.log().matches("asks by KMS v1").count(), 1, "{}", plugin.process.log_tail());
    assert_unharmed(&mut plugin, &good).await;
}
