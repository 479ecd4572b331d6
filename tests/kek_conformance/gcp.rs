//! `gcpKms` against [`GcpFake`]: nothing that can be installed serves Cloud KMS.

use std::path::PathBuf;
use std::time::Duration;

use async_trait::async_trait;
use kube_envelope::kek::{KekCause, KekVersion, WrappedDek};
use serde_json::json;
use tempfile::TempDir;

use crate::bench::{Authenticates, Bench, Disables, Permits, Remote, config, dek};
use crate::namespace;
use crate::support::fakes::faults::{Answer, Fault, Faults};
use crate::support::fakes::gcp::{Damage, GcpFake, Key, refusal};

const RING: &str = "projects/project/locations/europe-west3/keyRings/ring/cryptoKeys";

pub struct GcpBench {
    fake: GcpFake,
    faults: Faults,
    folder: TempDir,
}

impl GcpBench {
    fn key() -> String {
        format!("{RING}/kek")
    }

    fn change(&self, change: impl FnOnce(&mut Key)) {
        change(self.fake.service().keys.get_mut(&Self::key()).expect("the key"));
    }

    fn credentials_file(&self) -> PathBuf {
        self.folder.path().join("account.json")
    }

    fn item_of(&self, name: &str, key: &str) -> String {
        let file = format!("credentialsFile: {},", self.credentials_file().display());
        self.item_with(name, key, &file)
    }

    fn item_with(&self, name: &str, key: &str, credentials: &str) -> String {
        format!(
            "{{ name: {name}, gcpKms: {{ key: {key}, endpoint: '{}', insecureHttp: true, {credentials} caFile: {} }} }}",
            self.faults.url(),
            self.faults.ca_file().display()
        )
    }
}

#[async_trait]
impl Bench for GcpBench {
    async fn start() -> Self {
        let fake = GcpFake::start().await;
        fake.service().keys.insert(Self::key(), Key::new());
        let folder = TempDir::new().expect("a folder");
        let faults = Faults::tls(fake.address, folder.path()).await;
        let bench = Self { fake, faults, folder };
        std::fs::write(bench.credentials_file(), bench.fake.credentials()).expect("written");
        bench
    }

    fn item(&self) -> String {
        self.item_of("it", &Self::key())
    }

    async fn other_item(&self) -> String {
        let other = format!("{RING}/other");
        self.fake.service().keys.insert(other.clone(), Key::new());
        self.item_of("other", &other)
    }

    fn version_that_never_was(&self) -> String {
        "77@2026-01-02T03:04:05.678Z".into()
    }

    async fn rotate(&self) {
        self.change(Key::rotate);
    }

    async fn destroy(&self) {
        self.rotate().await;
        self.change(|key| key.versions[0].state = "DESTROYED");
    }

    fn requests(&self) -> usize {
        self.faults.requests()
    }
}

#[async_trait]
impl Disables for GcpBench {
    async fn disable(&self) {
        self.change(|key| key.versions[0].state = "DISABLED");
    }
}

#[async_trait]
impl Permits for GcpBench {
    async fn withdraw_permission(&self) {
        self.fake.service().permissions.clear();
    }
}

#[async_trait]
impl Authenticates for GcpBench {
    async fn expire_credentials(&self) {
        self.fake.service().tokens.clear();
    }

    async fn revoke_credentials(&self) {
        let mut service = self.fake.service();
        service.tokens.clear();
        service.refuses_tokens = true;
    }
}

impl Remote for GcpBench {
    fn faults(&self) -> &Faults {
        &self.faults
    }

    fn throttled(&self) -> Answer {
        let details = json!([{"@type": "type.googleapis.com/google.rpc.RetryInfo", "retryDelay": "2s"}]);
        let (status, body) = refusal(429, "RESOURCE_EXHAUSTED", "Quota exceeded for quota metric.", &details);
        Answer { status, headers: Vec::new(), body: body.to_string() }
    }
}

crate::conformance! {
    GcpBench;
    what_is_wrapped_unwraps,
    the_profile_of_a_key_is_told,
    a_wrap_names_the_active_version,
    another_instance_unwraps,
    another_context_is_rejected,
    a_tampered_blob_is_rejected,
    a_blob_of_another_key_is_rejected,
    two_keys_have_two_lineages,
    a_version_text_of_another_kind_is_refused_without_a_remote_call,
    a_version_that_never_was_is_unknown,
    a_rotated_key_is_seen,
    the_rotating_part_rotates,
    old_versions_still_open,
    a_recreated_key_is_another_version: "Cloud KMS never gives the name of a key again",
    a_disabled_key_is_denied,
    a_destroyed_key_is_gone_definitely,
    a_withdrawn_permission_is_denied,
    expired_credentials_are_renewed,
    revoked_credentials_are_unauthenticated,
    the_end_of_the_credentials_is_known,
    a_clock_that_is_off_is_known,
    a_throttled_call_is_throttled,
    a_server_error_is_unavailable,
    a_slow_server_meets_the_deadline,
    a_cut_connection_is_unavailable,
    an_unreachable_server_is_unavailable,
    a_wrong_certificate_is_refused,
    the_key_exchange_offered_first_is_post_quantum,
    a_redirect_is_not_followed,
    a_proxy_is_used_where_it_is_named,
    an_oversized_answer_is_not_read,
    garbage_in_an_answer_is_unavailable,
    the_kek_works_again_after_faults,
}

#[tokio::test]
async fn data_damaged_on_their_way_are_never_taken() {
    let bench = GcpBench::start().await;
    let kek = bench.kek().await;
    let (dek, context) = dek();
    for damage in [Damage::Ciphertext, Damage::PlaintextNotVerified, Damage::AadNotVerified, Damage::OtherVersion] {
        bench.fake.service().damage = damage;
        let error = kek.wrap(&dek, &context).await.expect_err("damaged");
        assert_eq!(error.cause(), KekCause::Unavailable, "{}", error.chain());
    }
    bench.fake.service().damage = Damage::None;
    let wrapped = kek.wrap(&dek, &context).await.expect("wrap");
    bench.fake.service().damage = Damage::Plaintext;
    let error = kek.unwrap(&wrapped, &context).await.expect_err("damaged");
    assert_eq!(error.cause(), KekCause::Unavailable, "{}", error.chain());
}

#[tokio::test]
async fn a_rotation_within_a_wrap_does_not_mislabel_it() {
    let bench = GcpBench::start().await;
    let kek = bench.kek().await;
    let before = kek.version().await.expect("version");
    bench.fake.service().rotate_before_next_encrypt = true;
    let (dek, context) = dek();
    let wrapped = kek.wrap(&dek, &context).await.expect("wrap");
    assert_eq!(wrapped.version, before, "the version that really wrapped");
    assert_ne!(kek.version().await.expect("version"), before, "the rotation has happened");
    bench.change(|key| key.versions[0].state = "DESTROYED");
    let error = kek.unwrap(&wrapped, &context).await.expect_err("the version that wrapped is destroyed");
    assert_eq!(error.cause(), KekCause::Denied, "{}", error.chain());
}

#[tokio::test]
async fn a_wrap_does_not_open_under_the_label_of_another_version() {
    let bench = GcpBench::start().await;
    let kek = bench.kek().await;
    let (dek, context) = dek();
    let wrapped = kek.wrap(&dek, &context).await.expect("wrap");
    bench.rotate().await;
    let version = KekVersion { ..kek.version().await.expect("version") };
    let relabelled = WrappedDek { version, ..wrapped };
    let error = kek.unwrap(&relabelled, &context).await.expect_err("another label");
    assert_eq!(error.cause(), KekCause::Rejected, "{}", error.chain());
}

#[tokio::test]
async fn a_primary_that_is_still_being_made_is_waited_for() {
    let bench = GcpBench::start().await;
    let kek = bench.kek().await;
    bench.change(|key| key.versions[0].state = "PENDING_GENERATION");
    assert_eq!(kek.version().await.expect_err("not ready").cause(), KekCause::Unavailable);
    bench.change(|key| key.purpose = "ASYMMETRIC_SIGN");
    assert_eq!(kek.version().await.expect_err("wrong purpose").cause(), KekCause::Misconfigured);
}

#[tokio::test]
async fn tokens_are_fetched_once_for_all_and_anew_when_the_credentials_file_changes() {
    let bench = GcpBench::start().await;
    let kek = bench.kek().await;
    let all = futures::future::join_all((0..20).map(|_| kek.version())).await;
    assert!(all.iter().all(Result::is_ok));
    assert_eq!(bench.fake.service().tokens_given, 1);
    // White space around a content is ignored; inside, it matters.
    let changed = bench.fake.credentials().replacen('{', "{ ", 1);
    std::fs::write(bench.credentials_file(), changed).expect("written");
    let end = std::time::Instant::now() + Duration::from_secs(10);
    while bench.fake.service().tokens_given < 2 {
        kek.version().await.expect("the former token serves until there is a new one");
        assert!(std::time::Instant::now() < end, "the changed file is not used");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    std::fs::write(bench.credentials_file(), GcpFake::start().await.credentials()).expect("written");
    kek.version().await.expect("the token that works is kept beside a key that does not");
    bench.expire_credentials().await;
    let error = kek.version().await.expect_err("the key of another account");
    assert!(matches!(error.cause(), KekCause::Unauthenticated | KekCause::Unavailable), "{}", error.chain());
}

#[test]
fn tokens_come_from_the_metadata_server_where_no_file_is_named() {
    namespace::run("gcp::tokens_come_from_the_metadata_server_where_no_file_is_named", || async {
        let bench = GcpBench::start().await;
        let kek = config(&bench.item_with("it", &GcpBench::key(), "")).open();
        let error = kek.version().await.expect_err("no metadata server yet");
        assert_eq!(error.cause(), KekCause::Unavailable, "{}", error.chain());
        // Field case N16: where was looked, and not a guess about the network.
        for words in ["no Google credentials found", "GOOGLE_APPLICATION_CREDENTIALS", "the metadata server gave none"]
        {
            assert!(error.chain().contains(words), "{words}: {}", error.chain());
        }
        let metadata = bench.fake.serve_metadata(namespace::METADATA).await;
        let (dek, context) = dek();
        // After a load that failed there is a pause, in which its error is told again.
        let end = std::time::Instant::now() + Duration::from_secs(5);
        let wrapped = loop {
            match kek.wrap(&dek, &context).await {
                Ok(wrapped) => break wrapped,
                Err(error) => assert!(std::time::Instant::now() < end, "wrap: {}", error.chain()),
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        };
        bench.expire_credentials().await;
        kek.unwrap(&wrapped, &context).await.expect("unwrap with a new token");
        assert_eq!(bench.fake.service().tokens_given, 2);
        metadata.abort();
    });
}

/// Off Google Cloud: the token of another issuer, which something else keeps fresh.
#[tokio::test]
async fn the_token_of_another_issuer_is_exchanged_with_and_without_a_service_account() {
    let bench = GcpBench::start().await;
    let subject = bench.folder.path().join("token.json");
    let write = |token: &str| std::fs::write(&subject, json!({"jwt": token}).to_string()).expect("written");
    for impersonates in [false, true] {
        write("expired");
        let file = bench.fake.federated_credentials(&subject.display().to_string(), impersonates);
        std::fs::write(bench.credentials_file(), file).expect("written");
        let kek = config(&bench.item()).open();
        let error = kek.version().await.expect_err("the issuer's token is not accepted");
        assert_eq!(error.cause(), KekCause::Unauthenticated, "{}", error.chain());
        // Another token in the file is shown at once, though the credentials file itself is the same.
        write(&bench.fake.service().subject_token.clone());
        let (dek, context) = dek();
        let wrapped = kek.wrap(&dek, &context).await.unwrap_or_else(|error| panic!("{}", error.chain()));
        kek.unwrap(&wrapped, &context).await.unwrap_or_else(|error| panic!("{}", error.chain()));
    }
    bench.expire_credentials().await;
    bench.fake.service().permissions.remove("getAccessToken");
    let error = config(&bench.item()).open().version().await.expect_err("may not lend");
    assert_eq!(error.cause(), KekCause::Unauthenticated);
    assert!(error.chain().contains("roles/iam.workloadIdentityUser"), "{}", error.chain());
}

#[tokio::test]
async fn an_idle_plugin_asks_one_request_to_see_the_version_and_one_to_prove_it() {
    let bench = GcpBench::start().await;
    let kek = bench.kek().await;
    let (dek, context) = dek();
    let wrapped = kek.wrap(&dek, &context).await.expect("wrap");
    assert_eq!(bench.requests(), 2, "a wrap");
    for _ in 0..10 {
        kek.version().await.expect("version");
    }
    assert_eq!(bench.requests(), 12, "ten refreshes");
    for _ in 0..10 {
        kek.unwrap(&wrapped, &context).await.expect("unwrap");
    }
    assert_eq!(bench.requests(), 22, "ten proofs");
}

#[tokio::test]
async fn a_token_is_renewed_while_the_old_one_still_serves() {
    let bench = GcpBench::start().await;
    bench.fake.service().token_life = Duration::from_secs(9);
    let kek = bench.kek().await;
    let started = std::time::Instant::now();
    kek.version().await.expect("the first token");
    bench.fake.service().token_life = Duration::from_hours(1);
    while started.elapsed() < Duration::from_secs(10) {
        kek.version().await.expect("no call fails while tokens come and go");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    assert_eq!(bench.fake.service().tokens_given, 2, "renewed once, ahead, and then kept");
    std::fs::remove_file(bench.credentials_file()).expect("removed");
    kek.version().await.expect("the token serves while the file is away");
}

#[tokio::test]
async fn neither_credentials_nor_tokens_print() {
    let bench = GcpBench::start().await;
    let kek = bench.kek().await;
    kek.version().await.expect("version");
    let printed = format!("{kek:?} {:?}", config(&bench.item()));
    assert!(printed.contains("GcpKek"), "{printed}");
    for secret in ["ya29", "PRIVATE KEY"] {
        assert!(!printed.contains(secret), "{printed}");
    }
}

#[tokio::test]
async fn a_certificate_that_is_not_to_be_trusted_is_named_as_the_reason() {
    let bench = GcpBench::start().await;
    let kek = bench.kek().await;
    bench.faults.set(Fault::CertificateOfAnotherIssuer);
    let error = kek.version().await.expect_err("a stranger");
    assert!(error.to_string().contains("certificate"), "{}", error.chain());
}
