//! `transit`: a real server in memory behind a proxy with TLS, under the policy of `docs/keks/transit.md`.

mod beyond;
mod logins;
mod openbao;

use std::marker::PhantomData;
use std::path::PathBuf;

use async_trait::async_trait;
use kube_envelope::kek::RotateKek;
use serde_json::json;
use tempfile::TempDir;

use crate::bench::{Authenticates, Bench, Permits, Recreates, Remote, config};
use crate::support::fakes::faults::{Answer, Faults};
use crate::support::vault::{Product, Server};

/// The first and the second block of rules in the document: the plugin's, and what rotation needs besides.
fn documented_policy(index: usize) -> &'static str {
    let blocks = include_str!("../../docs/keks/transit.md").split("```hcl").skip(1);
    blocks.map(|block| block.split("```").next().unwrap_or_default()).nth(index).expect("a block of rules")
}

/// Whose server a bench starts.
trait Made: Send + Sync + 'static {
    const BY: Product;
}

struct Vault;

impl Made for Vault {
    const BY: Product = Product::Vault;
}

type TransitBench = ServerBench<Vault>;

/// A server with the key `kube-envelope`, and an AppRole that may use it.
struct ServerBench<M> {
    made: PhantomData<M>,
    server: Server,
    faults: Faults,
    folder: TempDir,
    role_id: String,
    secret_id: String,
}

impl<M: Made> ServerBench<M> {
    fn secret_id_file(&self) -> PathBuf {
        self.folder.path().join("secret-id")
    }

    fn item_with(&self, key: &str, auth: &str) -> String {
        let (url, ca_file) = (self.faults.url(), self.faults.ca_file().display());
        format!("{{ name: it, transit: {{ addresses: ['{url}'], key: {key}, caFile: {ca_file}, auth: {auth} }} }}")
    }

    fn approle(&self) -> String {
        format!("{{ approle: {{ roleId: {}, secretIdFile: {} }} }}", self.role_id, self.secret_id_file().display())
    }

    fn token_file(&self, token: &str) -> PathBuf {
        let file = self.folder.path().join("token");
        std::fs::write(&file, format!("{token}\n")).expect("written");
        file
    }

    async fn revoke_tokens(&self) {
        self.server.write("sys/leases/revoke-prefix/auth/approle/login", json!({ "sync": true })).await;
    }

    async fn delete_key(&self) {
        self.server.write("transit/keys/kube-envelope/config", json!({ "deletion_allowed": true })).await;
        self.server.delete("transit/keys/kube-envelope").await;
    }
}

#[async_trait]
impl<M: Made> Bench for ServerBench<M> {
    async fn start() -> Self {
        let server = Server::start_of(M::BY).await;
        let folder = TempDir::new().expect("a folder");
        server.write("sys/mounts/transit", json!({ "type": "transit" })).await;
        server.write("transit/keys/kube-envelope", json!({})).await;
        server.policy("plugin", documented_policy(0)).await;
        server.write("sys/auth/approle", json!({ "type": "approle" })).await;
        let role = json!({ "token_policies": ["plugin"], "token_no_default_policy": true, "token_ttl": "1h" });
        server.write("auth/approle/role/plugin", role).await;
        let role_id = server.read("auth/approle/role/plugin/role-id").await["data"]["role_id"].clone();
        let secret_id =
            server.write("auth/approle/role/plugin/secret-id", json!({})).await["data"]["secret_id"].clone();
        let bench = Self {
            made: PhantomData,
            faults: Faults::tls(server.address, folder.path()).await,
            server,
            folder,
            role_id: role_id.as_str().expect("a role id").into(),
            secret_id: secret_id.as_str().expect("a secret id").into(),
        };
        std::fs::write(bench.secret_id_file(), &bench.secret_id).expect("written");
        bench
    }

    fn item(&self) -> String {
        self.item_with("kube-envelope", &self.approle())
    }

    async fn other_item(&self) -> String {
        self.server.write("transit/keys/other", json!({})).await;
        let rules = documented_policy(0);
        self.server.policy("plugin", &format!("{rules}{}", rules.replace("kube-envelope", "other"))).await;
        self.item_with("other", &self.approle())
    }

    fn version_that_never_was(&self) -> String {
        "99@1700000000".into()
    }

    async fn rotate(&self) {
        self.server.write("transit/keys/kube-envelope/rotate", json!({})).await;
    }

    async fn destroy(&self) {
        self.delete_key().await;
    }

    fn requests(&self) -> usize {
        self.faults.requests()
    }

    async fn rotating(&self) -> Box<dyn RotateKek> {
        self.server.policy("operator", &format!("{}{}", documented_policy(0), documented_policy(1))).await;
        let token = self.token_file(&self.server.token("operator", 600).await);
        let item = self.item_with("kube-envelope", &format!("{{ tokenFile: {} }}", token.display()));
        config(&item).open_rotating().await.expect("this kind rotates")
    }
}

#[async_trait]
impl<M: Made> Recreates for ServerBench<M> {
    async fn recreate(&self) {
        let created = async || self.server.read("transit/keys/kube-envelope").await["data"]["keys"]["1"].clone();
        let before = created().await;
        // The server counts in whole seconds: a key made again within one is not told from the former.
        while created().await == before {
            self.delete_key().await;
            self.server.write("transit/keys/kube-envelope", json!({})).await;
        }
    }
}

#[async_trait]
impl<M: Made> Permits for ServerBench<M> {
    async fn withdraw_permission(&self) {
        let rules = documented_policy(0).replace("update", "list");
        self.server.policy("plugin", &rules).await;
    }
}

#[async_trait]
impl<M: Made> Authenticates for ServerBench<M> {
    async fn expire_credentials(&self) {
        self.revoke_tokens().await;
    }

    async fn revoke_credentials(&self) {
        self.revoke_tokens().await;
        let secret_id = json!({ "secret_id": self.secret_id });
        self.server.write("auth/approle/role/plugin/secret-id/destroy", secret_id).await;
    }
}

impl<M: Made> Remote for ServerBench<M> {
    fn faults(&self) -> &Faults {
        &self.faults
    }

    fn throttled(&self) -> Answer {
        let body = "{\"errors\":[\"request path \\\"transit/keys/kube-envelope\\\": rate limit quota exceeded\"]}";
        Answer { status: 429, headers: vec![("retry-after".into(), "1".into())], body: body.into() }
    }
}

crate::conformance! {
    TransitBench;
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
    a_recreated_key_is_another_version,
    a_disabled_key_is_denied: "a transit key cannot be disabled, only deleted or taken from a policy",
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
