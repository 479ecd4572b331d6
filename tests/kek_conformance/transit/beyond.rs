//! What only `transit` has: tokens in files, client certificates, the lives of tokens, several servers, seals and key settings.

use std::time::{Duration, Instant};

use kube_envelope::kek::{Kek, KekCause};
use serde_json::json;

use super::*;
use crate::bench::dek;
use crate::support::fakes::faults::{Fault, TestIssuer};

pub(super) fn build(item: &str) -> Box<dyn Kek> {
    config(item).open()
}

pub(super) async fn round_trip(kek: &dyn Kek) {
    let (dek, context) = dek();
    let wrapped = kek.wrap(&dek, &context).await.unwrap_or_else(|error| panic!("wrap: {}", error.chain()));
    kek.unwrap(&wrapped, &context).await.unwrap_or_else(|error| panic!("unwrap: {}", error.chain()));
}

/// After a failure the servers are not asked again at once.
async fn works_within(time: Duration, kek: &dyn Kek) {
    let end = Instant::now() + time;
    while let Err(error) = kek.version().await {
        assert!(Instant::now() < end, "not within {time:?}: {}", error.chain());
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

pub(super) async fn cause_of_version(kek: &dyn Kek) -> KekCause {
    kek.version().await.expect_err("version fails").cause()
}

#[tokio::test]
async fn logs_in_with_a_token_from_a_file_and_takes_a_new_one_from_it() {
    let bench = TransitBench::start().await;
    let file = bench.token_file(&bench.server.token("plugin", 600).await);
    let kek = build(&bench.item_with("kube-envelope", &format!("{{ tokenFile: {} }}", file.display())));
    round_trip(&*kek).await;
    bench.token_file("no-such-token");
    for _ in 0..5 {
        kek.version().await.expect("the token that works is kept beside one that does not");
    }
    let kek = build(&bench.item_with("kube-envelope", &format!("{{ tokenFile: {} }}", file.display())));
    assert_eq!(cause_of_version(&*kek).await, KekCause::Unauthenticated);
    bench.token_file(&bench.server.token("plugin", 600).await);
    round_trip(&*kek).await;
}

#[tokio::test]
async fn logs_in_with_a_client_certificate() {
    let folder = TempDir::new().expect("a folder");
    let server = Server::start_tls(folder.path()).await;
    server.write("sys/mounts/transit", json!({ "type": "transit" })).await;
    server.write("transit/keys/kube-envelope", json!({})).await;
    server.policy("plugin", documented_policy(0)).await;
    server.write("sys/auth/cert", json!({ "type": "cert" })).await;
    let issuer = TestIssuer::new();
    let role = json!({ "certificate": issuer.pem, "token_policies": ["plugin"], "token_no_default_policy": true });
    server.write("auth/cert/certs/plugin", role).await;
    let path = |name: &str| folder.path().join(name).display().to_string();
    let write = |issuer: &TestIssuer| {
        let (certificate, key) = issuer.client_certificate("node-1");
        std::fs::write(path("cert.pem"), certificate.pem()).expect("written");
        std::fs::write(path("key.pem"), key.serialize_pem()).expect("written");
    };
    write(&TestIssuer::new());
    let kek = build(&format!(
        "{{ name: it, transit: {{ addresses: ['https://{}'], key: kube-envelope, caFile: {}, auth: {{ cert: {{}} }}, \
         clientCertificate: {{ certFile: {}, keyFile: {} }} }} }}",
        server.address,
        path("vault-ca.pem"),
        path("cert.pem"),
        path("key.pem")
    ));
    assert_eq!(cause_of_version(&*kek).await, KekCause::Unauthenticated, "a certificate of another issuer");
    for _ in 0..3 {
        let error = kek.version().await.expect_err("refused");
        assert!(error.to_string().contains("not shown again"), "{error}");
    }
    // The certificate first, then its key: in between the pair does not fit, and nothing is refused for good.
    let (certificate, key) = issuer.client_certificate("node-1");
    std::fs::write(path("cert.pem"), certificate.pem()).expect("written");
    assert_eq!(cause_of_version(&*kek).await, KekCause::Unavailable, "half a pair");
    std::fs::write(path("key.pem"), key.serialize_pem()).expect("written");
    works_within(Duration::from_secs(2), &*kek).await;
    round_trip(&*kek).await;
}

#[tokio::test]
async fn a_new_ca_file_is_taken_in_after_a_failed_connection() {
    let bench = TransitBench::start().await;
    let file = bench.folder.path().join("ca-in-use.pem");
    std::fs::write(&file, TestIssuer::new().pem).expect("written");
    let known = bench.faults.ca_file().display().to_string();
    let kek = build(&bench.item().replace(&known, &file.display().to_string()));
    let error = kek.version().await.expect_err("an issuer that is not trusted");
    assert!(error.chain().contains("certificate"), "the reason is told: {}", error.chain());
    std::fs::copy(bench.faults.ca_file(), &file).expect("copied");
    let again = kek.version().await.expect_err("the connection fails once more, with the former issuers");
    assert_eq!(again.cause(), KekCause::Unavailable);
    works_within(Duration::from_secs(10), &*kek).await;
    round_trip(&*kek).await;
}

#[tokio::test]
async fn a_token_is_renewed_ahead_of_its_end_and_replaced_near_its_longest_life() {
    let bench = TransitBench::start().await;
    let role = json!({ "token_policies": ["plugin"], "token_ttl": "2s", "token_max_ttl": "5s" });
    bench.server.write("auth/approle/role/plugin", role).await;
    let kek = bench.kek().await;
    kek.version().await.expect("version");
    let first = bench.server.plugin_accessors().await;
    assert_eq!(first.len(), 1, "one login");
    let deadline = Instant::now() + Duration::from_secs(12);
    let mut renewed = false;
    loop {
        kek.version().await.expect("no call fails while tokens come and go");
        let accessors = bench.server.plugin_accessors().await;
        renewed |= bench.server.was_renewed(&first[0]).await;
        if accessors.iter().any(|accessor| *accessor != first[0]) {
            break;
        }
        assert!(Instant::now() < deadline, "the token was never replaced");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    assert!(renewed, "the first token was replaced without having been renewed");
}

#[tokio::test]
async fn a_renewable_token_in_a_file_is_renewed() {
    let bench = TransitBench::start().await;
    let token = bench.server.token("plugin", 3).await;
    let file = bench.token_file(&token);
    let kek = build(&bench.item_with("kube-envelope", &format!("{{ tokenFile: {} }}", file.display())));
    let end = Instant::now() + Duration::from_secs(5);
    while Instant::now() < end {
        kek.version().await.expect("the token outlives its first life of 3 s");
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
}

#[tokio::test]
async fn a_new_secret_id_is_read_from_its_file() {
    let bench = TransitBench::start().await;
    let kek = bench.kek().await;
    round_trip(&*kek).await;
    bench.revoke_credentials().await;
    assert_eq!(cause_of_version(&*kek).await, KekCause::Unauthenticated);
    let made = bench.server.write("auth/approle/role/plugin/secret-id", json!({})).await;
    std::fs::write(bench.secret_id_file(), made["data"]["secret_id"].as_str().expect("text")).expect("written");
    round_trip(&*kek).await;
}

/// A server that was restored, or a replica that is behind, refuses a token that is good a moment later. Nothing is locked by
/// showing it again, and nobody changes the file.
#[tokio::test]
async fn a_refused_token_is_used_again_once_the_server_knows_it() {
    let bench = TransitBench::start().await;
    let token = format!("known-later-{:016x}", rand::random::<u64>());
    let create =
        || bench.server.write("auth/token/create", json!({ "id": token, "policies": ["plugin"], "ttl": "1h" }));
    create().await;
    let file = bench.folder.path().join("token");
    std::fs::write(&file, &token).expect("written");
    let item = bench.item();
    let start = item.find("auth: {").expect("it has a login");
    let kek = build(&format!("{}auth: {{ tokenFile: {} }} }} }}", &item[..start], file.display()));
    round_trip(&*kek).await;
    bench.server.write("auth/token/revoke", json!({ "token": token })).await;
    for _ in 0..3 {
        assert_eq!(cause_of_version(&*kek).await, KekCause::Unauthenticated);
    }
    create().await;
    works_within(Duration::from_secs(10), &*kek).await;
    round_trip(&*kek).await;
}

/// A role whose secret id is good for one login: it is shown once, and never again after it was refused.
#[tokio::test]
async fn a_refused_secret_id_is_not_shown_again_and_a_new_one_works_at_once() {
    let bench = TransitBench::start().await;
    let role =
        json!({ "token_policies": ["plugin"], "token_ttl": "2s", "token_max_ttl": "3s", "secret_id_num_uses": 1 });
    bench.server.write("auth/approle/role/plugin", role).await;
    let new_secret_id = async || {
        let made = bench.server.write("auth/approle/role/plugin/secret-id", json!({})).await;
        std::fs::write(bench.secret_id_file(), made["data"]["secret_id"].as_str().expect("text")).expect("written");
    };
    new_secret_id().await;
    let kek = bench.kek().await;
    kek.version().await.expect("the first login");
    let refused = async || {
        let end = Instant::now() + Duration::from_secs(15);
        loop {
            match kek.version().await {
                Err(error) if error.to_string().contains("not shown again") => return,
                _ => assert!(Instant::now() < end, "the secret id was never refused"),
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    };
    refused().await;
    let before = bench.requests();
    for _ in 0..20 {
        assert_eq!(cause_of_version(&*kek).await, KekCause::Unauthenticated);
    }
    assert_eq!(bench.requests(), before, "a refused secret id was shown again");
    new_secret_id().await;
    kek.version().await.expect("the new secret id works at once");
}

/// A login gives the policies of its time to a token: those that were granted later take a new token.
#[tokio::test]
async fn a_denial_counts_only_once_a_new_token_is_denied_too() {
    let bench = TransitBench::start().await;
    bench.server.policy("nothing", "path \"nothing\" { capabilities = [\"read\"] }").await;
    let role = |policy: &str| json!({ "token_policies": [policy], "token_no_default_policy": true, "token_ttl": "1h" });
    bench.server.write("auth/approle/role/plugin", role("nothing")).await;
    let kek = bench.kek().await;
    assert_eq!(cause_of_version(&*kek).await, KekCause::Denied);
    bench.server.write("auth/approle/role/plugin", role("plugin")).await;
    tokio::time::sleep(Duration::from_secs(6)).await;
    kek.version().await.expect("a new token has the policy");
}

/// An ingress that has lost its backend, a proxy with an opinion.
#[tokio::test]
async fn an_answer_of_somebody_in_between_is_never_a_denial() {
    let bench = TransitBench::start().await;
    let kek = bench.kek().await;
    round_trip(&*kek).await;
    for (status, body) in [(404, "default backend - 404"), (403, "<html>Forbidden</html>"), (401, ""), (403, "")] {
        bench.faults.set(Fault::Answer(Answer { status, headers: Vec::new(), body: body.into() }));
        assert_eq!(cause_of_version(&*kek).await, KekCause::Unavailable, "{status} {body}");
    }
    bench.faults.clear();
    round_trip(&*kek).await;
}

#[tokio::test]
async fn a_policy_that_does_not_let_the_token_ask_about_itself_is_a_denial_all_the_same() {
    let bench = TransitBench::start().await;
    let kek = bench.kek().await;
    round_trip(&*kek).await;
    bench.server.policy("plugin", "path \"nothing\" { capabilities = [\"read\"] }").await;
    assert_eq!(cause_of_version(&*kek).await, KekCause::Denied);
}

#[tokio::test]
async fn a_sealed_server_is_unavailable_and_answers_once_unsealed() {
    let bench = TransitBench::start().await;
    let kek = bench.kek().await;
    round_trip(&*kek).await;
    bench.server.seal().await;
    let error = kek.version().await.expect_err("sealed");
    assert_eq!(error.cause(), KekCause::Unavailable);
    assert!(error.to_string().contains("sealed"), "{error}");
    bench.server.unseal().await;
    round_trip(&*kek).await;
}

#[tokio::test]
async fn the_next_address_is_asked_when_one_is_down_or_sealed() {
    let bench = TransitBench::start().await;
    let sealed = Server::start().await;
    sealed.seal().await;
    let sealed = Faults::tls(sealed.address, TempDir::new().expect("a folder").path()).await;
    let nobody = std::net::TcpListener::bind("127.0.0.1:0").expect("a port").local_addr().expect("its address");
    let several = format!("['https://{nobody}', '{}', '{}']", sealed.url(), bench.faults.url());
    let item = bench.item().replace(&format!("['{}']", bench.faults.url()), &several);
    assert!(item.contains(&nobody.to_string()));
    round_trip(&*build(&item)).await;
}

#[tokio::test]
async fn a_version_below_the_least_allowed_is_denied() {
    let bench = TransitBench::start().await;
    let kek = bench.kek().await;
    let (dek, context) = dek();
    let wrapped = kek.wrap(&dek, &context).await.expect("wrap");
    bench.rotate().await;
    bench.server.write("transit/keys/kube-envelope/config", json!({ "min_decryption_version": 2 })).await;
    assert_eq!(kek.unwrap(&wrapped, &context).await.expect_err("too old").cause(), KekCause::Denied);
    round_trip(&*kek).await;
}

#[tokio::test]
async fn a_key_that_does_not_exist_is_never_created() {
    let bench = TransitBench::start().await;
    let generous = documented_policy(0).replace("update", "create\", \"update").replace("kube-envelope", "missing");
    bench.server.policy("plugin", &generous).await;
    let kek = build(&bench.item_with("missing", &bench.approle()));
    let (dek, context) = dek();
    let error = kek.wrap(&dek, &context).await.expect_err("no key");
    assert_eq!(error.cause(), KekCause::Denied);
    assert!(error.to_string().contains("does not exist"), "{error}");
    assert!(!bench.server.exists("transit/keys/missing").await, "the key was created");
}

#[tokio::test]
async fn what_a_key_allows_beyond_wrapping_is_told() {
    let bench = TransitBench::start().await;
    let told = || async {
        let profile = config(&bench.item()).profile().await.expect("a profile");
        profile.advice.into_iter().map(|one| one.finding).collect::<Vec<_>>().join("; ")
    };
    bench.server.write("transit/keys/kube-envelope/config", json!({ "auto_rotate_period": "720h" })).await;
    assert_eq!(told().await, "");
    let bad = json!({
        "exportable": true, "allow_plaintext_backup": true, "deletion_allowed": true, "auto_rotate_period": 0
    });
    bench.server.write("transit/keys/kube-envelope/config", bad).await;
    let told = told().await;
    for word in ["exportable", "allow_plaintext_backup", "deletion_allowed", "not rotated automatically"] {
        assert!(told.contains(word), "{word}: {told}");
    }
}

#[tokio::test]
async fn a_wrong_mount_and_an_unfit_key_are_misconfigured() {
    let bench = TransitBench::start().await;
    bench.server.write("transit/keys/derived", json!({ "derived": true })).await;
    bench.server.write("transit/keys/ed25519", json!({ "type": "ed25519" })).await;
    bench.server.policy("plugin", "path \"*\" { capabilities = [\"read\", \"update\"] }").await;
    for key in ["derived", "ed25519"] {
        let kek = build(&bench.item_with(key, &bench.approle()));
        assert_eq!(cause_of_version(&*kek).await, KekCause::Misconfigured, "{key}");
    }
    let item = bench.item().replace("key: kube-envelope", "key: kube-envelope, mount: elsewhere");
    assert_eq!(cause_of_version(&*build(&item)).await, KekCause::Misconfigured);
}

#[tokio::test]
async fn a_real_quota_throttles() {
    let bench = TransitBench::start().await;
    let kek = bench.kek().await;
    kek.version().await.expect("version");
    let quota = json!({ "path": "transit/", "rate": 0.01, "interval": "60s" });
    bench.server.write("sys/quotas/rate-limit/test", quota).await;
    let mut causes = Vec::new();
    for _ in 0..3 {
        causes.extend(kek.version().await.err().map(|error| error.cause()));
    }
    assert!(!causes.is_empty() && causes.iter().all(|cause| *cause == KekCause::Throttled), "{causes:?}");
}

#[tokio::test]
async fn a_hundred_callers_log_in_once() {
    let bench = TransitBench::start().await;
    let kek = bench.kek().await;
    futures::future::join_all((0..100).map(|_| kek.version())).await.into_iter().for_each(|version| {
        version.expect("version");
    });
    assert_eq!(bench.server.plugin_accessors().await.len(), 1);
}
