//! `azureKeyVault` against [`AzureFake`]: nothing that can be installed serves Key Vault.

mod certificate;

use std::path::PathBuf;
use std::sync::Arc;

use async_trait::async_trait;
use kube_envelope::crypto::secret::DekId;
use kube_envelope::kek::guard::GuardedKek;
use kube_envelope::kek::set::KekSet;
use kube_envelope::kek::{KekCause, WrapContext, WrappedDek};
use kube_envelope::telemetry::Metrics;
use tempfile::TempDir;

use crate::bench::{Authenticates, Bench, Disables, Permits, Recreates, Remote, config, dek};
use crate::namespace;
use crate::support::fakes::azure::{AzureFake, CLIENT, Key, SUBJECT, TENANT, throttled};
use crate::support::fakes::faults::{Answer, Faults, Trap};

pub struct AzureBench {
    fake: AzureFake,
    faults: Faults,
    folder: TempDir,
}

impl AzureBench {
    fn change(&self, change: impl FnOnce(&mut Key)) {
        change(self.fake.service().keys.get_mut("kek").expect("the key"));
    }

    fn secret_file(&self) -> PathBuf {
        self.folder.path().join("secret")
    }

    fn item_of(&self, key: &str, domain: &str, more: &str, credential: &str) -> String {
        let port = self.faults.port();
        format!(
            "{{ name: {key}, azureKeyVault: {{ vault: 'https://kek.{domain}:{port}', key: {key}, address: 127.0.0.1, \
             authorityHost: 'https://localhost:{port}', caFile: {}, {more} credential: {credential} }} }}",
            self.faults.ca_file().display()
        )
    }

    fn client_secret(&self) -> String {
        let file = self.secret_file();
        format!("{{ clientSecret: {{ tenantId: {TENANT}, clientId: {CLIENT}, secretFile: {} }} }}", file.display())
    }

    fn workload_identity(&self) -> String {
        let file = self.folder.path().join("token");
        format!("{{ workloadIdentity: {{ tenantId: {TENANT}, clientId: {CLIENT}, tokenFile: {} }} }}", file.display())
    }
}

#[async_trait]
impl Bench for AzureBench {
    async fn start() -> Self {
        let fake = AzureFake::start().await;
        fake.service().keys.insert("kek".into(), Key::rsa());
        let folder = TempDir::new().expect("a folder");
        let names = ["kek.vault.azure.net", "kek.managedhsm.azure.net", "localhost"];
        let faults = Faults::tls_for(fake.address, folder.path(), &names).await;
        let bench = Self { fake, faults, folder };
        let secret = format!("{}\n", bench.fake.service().secret);
        std::fs::write(bench.secret_file(), secret).expect("written");
        bench
    }

    fn item(&self) -> String {
        self.item_of("kek", "vault.azure.net", "", &self.client_secret())
    }

    async fn other_item(&self) -> String {
        self.fake.service().keys.insert("other".into(), Key::rsa());
        self.item_of("other", "vault.azure.net", "", &self.client_secret())
    }

    fn version_that_never_was(&self) -> String {
        "0123456789abcdef".repeat(2)
    }

    async fn rotate(&self) {
        self.change(Key::rotate);
    }

    async fn destroy(&self) {
        self.fake.service().keys.remove("kek");
    }

    fn requests(&self) -> usize {
        self.faults.requests()
    }
}

#[async_trait]
impl Recreates for AzureBench {
    async fn recreate(&self) {
        self.fake.service().keys.insert("kek".into(), Key::rsa());
    }
}

#[async_trait]
impl Disables for AzureBench {
    async fn disable(&self) {
        self.change(|key| key.versions[0].enabled = false);
    }
}

#[async_trait]
impl Permits for AzureBench {
    async fn withdraw_permission(&self) {
        self.fake.service().permissions.clear();
    }
}

#[async_trait]
impl Authenticates for AzureBench {
    async fn expire_credentials(&self) {
        let mut service = self.fake.service();
        service.revoked_up_to = service.tokens_given;
    }

    async fn revoke_credentials(&self) {
        self.expire_credentials().await;
        self.fake.service().secret = String::new();
    }
}

impl Remote for AzureBench {
    fn faults(&self) -> &Faults {
        &self.faults
    }

    fn throttled(&self) -> Answer {
        let (status, headers, body) = throttled();
        Answer { status, headers, body }
    }
}

crate::conformance! {
    AzureBench;
    what_is_wrapped_unwraps,
    the_profile_of_a_key_is_told,
    a_wrap_names_the_active_version,
    another_instance_unwraps,
    another_context_is_rejected: "RSA-OAEP and A256KW take no associated data: the DEK's id is checked after every unwrap instead, see a_dek_that_is_not_the_one_of_its_id_is_rejected",
    a_tampered_blob_is_rejected,
    a_blob_of_another_key_is_rejected,
    two_keys_have_two_lineages,
    a_version_text_of_another_kind_is_refused_without_a_remote_call,
    a_version_that_never_was_is_unknown,
    a_rotated_key_is_seen,
    the_rotating_part_rotates,
    old_versions_still_open,
    a_recreated_key_is_another_version,
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
async fn a_dek_that_is_not_the_one_of_its_id_is_rejected() {
    let bench = AzureBench::start().await;
    let kek = GuardedKek::new("it".into(), bench.kek().await, Arc::new(Metrics::new()));
    let set = KekSet::new(vec![Arc::new(kek)], Vec::new()).expect("one KEK is distinct");
    let (dek, context) = dek();
    let wraps = set.wrap_and_prove(&dek, &context, &|_| {}).await.expect("wrap");
    let (unwrapped, _) = set.unwrap(&wraps, &context).await.expect("unwrap");
    assert_eq!(unwrapped.expose(), dek.expose());
    let wrong = WrapContext { dek_id: DekId([0; 16]), ..context };
    assert_eq!(set.unwrap(&wraps, &wrong).await.expect_err("another id").cause(), KekCause::Rejected);
}

#[tokio::test]
async fn a_key_of_a_managed_hsm_wraps_with_aes() {
    let bench = AzureBench::start().await;
    bench.fake.service().keys.insert("aes".into(), Key::aes());
    let item = bench.item_of("aes", "managedhsm.azure.net", "algorithm: A256KW,", &bench.client_secret());
    let kek = config(&item).open();
    let (dek, context) = dek();
    let wrapped = kek.wrap(&dek, &context).await.expect("wrap");
    assert_eq!(wrapped.blob.len(), 40);
    assert_eq!(kek.unwrap(&wrapped, &context).await.expect("unwrap").dek.expose(), dek.expose());
    let mut blob = wrapped.blob.clone();
    blob[7] ^= 1;
    let error = kek.unwrap(&WrappedDek { blob, ..wrapped }, &context).await.expect_err("tampered");
    assert_eq!(error.cause(), KekCause::Rejected, "{}", error.chain());
}

#[tokio::test]
async fn an_algorithm_that_the_key_does_not_have_is_a_mistake_in_the_configuration() {
    let bench = AzureBench::start().await;
    let item = bench.item_of("kek", "vault.azure.net", "algorithm: A256KW,", &bench.client_secret());
    let (dek, context) = dek();
    let error = config(&item).open().wrap(&dek, &context).await.expect_err("RSA");
    assert_eq!(error.cause(), KekCause::Misconfigured, "{}", error.chain());
}

#[tokio::test]
async fn the_host_of_an_answer_is_never_followed_and_its_version_must_be_the_one_asked() {
    let bench = AzureBench::start().await;
    let kek = bench.kek().await;
    let (dek, context) = dek();
    let trap = Trap::start().await;
    bench.fake.service().kid_host = trap.url().trim_start_matches("https://").trim_end_matches('/').into();
    let wrapped = kek.wrap(&dek, &context).await.expect("wrap");
    kek.unwrap(&wrapped, &context).await.expect("unwrap");
    assert_eq!(trap.visits(), 0);
    for named in ["f".repeat(32), String::new(), "../other".into()] {
        bench.fake.service().kid_version = Some(named);
        let error = kek.unwrap(&wrapped, &context).await.expect_err("another version");
        assert_eq!(error.cause(), KekCause::Unavailable, "{}", error.chain());
    }
}

#[tokio::test]
async fn a_service_account_token_is_exchanged_and_the_file_is_read_again_when_it_changes() {
    let bench = AzureBench::start().await;
    let file = bench.folder.path().join("token");
    std::fs::write(&file, bench.fake.service_account_token("system:serviceaccount:default:other")).expect("written");
    let item = bench.item_of("kek", "vault.azure.net", "", &bench.workload_identity());
    let kek = config(&item).open();
    let error = kek.version().await.expect_err("another service account");
    assert_eq!(error.cause(), KekCause::Unauthenticated, "{}", error.chain());
    assert!(error.chain().contains("AADSTS700213"), "{}", error.chain());
    std::fs::write(&file, bench.fake.service_account_token(SUBJECT)).expect("written");
    kek.version().await.expect("version with the new token");
}

#[tokio::test]
async fn a_changed_secret_is_used_once_the_old_one_is_refused() {
    let bench = AzureBench::start().await;
    let kek = bench.kek().await;
    kek.version().await.expect("version");
    bench.revoke_credentials().await;
    assert_eq!(kek.version().await.expect_err("revoked").cause(), KekCause::Unauthenticated);
    bench.fake.service().secret = "another".into();
    assert_eq!(kek.version().await.expect_err("not yet known").cause(), KekCause::Unauthenticated);
    std::fs::write(bench.secret_file(), "another\n").expect("written");
    kek.version().await.expect("version with the new secret");
}

#[tokio::test]
async fn tokens_are_fetched_once_for_all_callers() {
    let bench = AzureBench::start().await;
    let kek = bench.kek().await;
    let all = futures::future::join_all((0..20).map(|_| kek.version())).await;
    assert!(all.iter().all(Result::is_ok));
    assert_eq!(bench.fake.service().tokens_given, 1);
}

#[test]
fn tokens_come_from_the_metadata_service_of_a_virtual_machine() {
    namespace::run("azure::tokens_come_from_the_metadata_service_of_a_virtual_machine", || async {
        let bench = AzureBench::start().await;
        let _metadata = bench.fake.serve_metadata(namespace::METADATA).await;
        let identity = |client: &str| format!("{{ managedIdentity: {{ clientId: {client} }} }}");
        let kek = async |client: &str| {
            let item = bench.item_of("kek", "vault.azure.net", "", &identity(client));
            config(&item).open()
        };
        let (dek, context) = dek();
        let assigned = kek(CLIENT).await;
        let wrapped = assigned.wrap(&dek, &context).await.expect("wrap");
        bench.expire_credentials().await;
        assigned.unwrap(&wrapped, &context).await.expect("unwrap with a new token");
        let error = kek(TENANT).await.version().await.expect_err("an identity that the machine does not have");
        assert_eq!(error.cause(), KekCause::Unauthenticated, "{}", error.chain());
    });
}

#[tokio::test]
async fn an_idle_plugin_asks_one_request_to_see_the_version_and_one_to_prove_it() {
    let bench = AzureBench::start().await;
    let kek = bench.kek().await;
    let (dek, context) = dek();
    let wrapped = kek.wrap(&dek, &context).await.expect("wrap");
    let first = bench.requests();
    assert_eq!(first, 4, "the challenge, a token, the version, a wrap");
    for _ in 0..10 {
        kek.version().await.expect("version");
    }
    assert_eq!(bench.requests(), first + 10, "ten refreshes");
    for _ in 0..10 {
        kek.unwrap(&wrapped, &context).await.expect("unwrap");
    }
    assert_eq!(bench.requests(), first + 20, "ten proofs");
}

#[tokio::test]
async fn a_secret_that_was_replaced_in_time_is_never_refused() {
    let bench = AzureBench::start().await;
    let kek = bench.kek().await;
    kek.version().await.expect("version");
    bench.fake.service().secret = "another".into();
    std::fs::write(bench.secret_file(), "another\n").expect("written");
    let end = std::time::Instant::now() + std::time::Duration::from_secs(10);
    while bench.fake.service().tokens_given < 2 {
        kek.version().await.expect("the former token serves until there is a new one");
        assert!(std::time::Instant::now() < end, "the new secret is not used");
    }
    assert_eq!(bench.fake.service().tokens_refused, 0, "the former secret was tried");
}

#[tokio::test]
async fn a_deleted_key_is_denied_and_a_purged_version_unknown() {
    let bench = AzureBench::start().await;
    let kek = bench.kek().await;
    let (dek, context) = dek();
    let wrapped = kek.wrap(&dek, &context).await.expect("wrap");
    bench.rotate().await;
    bench.change(|key| drop(key.versions.remove(0)));
    let error = kek.unwrap(&wrapped, &context).await.expect_err("no such version");
    assert_eq!(error.cause(), KekCause::UnknownVersion, "{}", error.chain());
    bench.destroy().await;
    let error = kek.unwrap(&wrapped, &context).await.expect_err("no such key");
    assert_eq!(error.cause(), KekCause::Denied, "{}", error.chain());
}

#[tokio::test]
async fn neither_secrets_nor_tokens_print() {
    let bench = AzureBench::start().await;
    let kek = bench.kek().await;
    kek.version().await.expect("version");
    let secret = bench.fake.service().secret.clone();
    let printed = format!("{kek:?} {:?}", config(&bench.item()));
    assert!(printed.contains("AzureKek") && !printed.contains(&secret) && !printed.contains("eyJ"), "{printed}");
}
