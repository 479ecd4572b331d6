//! The conformance list on the fake, with the key named by an alias.

use std::path::Path;
use std::time::Duration;

use async_trait::async_trait;
use kube_envelope::kek::KekCause;
use tempfile::TempDir;

use super::{from_file, item, write_credentials};
use crate::bench::{Authenticates, Bench, Disables, Permits, Recreates, Remote};
use crate::support::fakes::aws::kms::{ACCOUNT, FakeKms, Key, User};
use crate::support::fakes::faults::{Answer, Faults};

pub const REGION: &str = "eu-central-1";

/// The fake with one key, `alias/it`, and one user, whose credentials lie in a file.
pub struct FakeBench {
    pub kms: FakeKms,
    faults: Faults,
    folder: TempDir,
}

#[async_trait]
impl Bench for FakeBench {
    async fn start() -> Self {
        let kms = FakeKms::start().await;
        kms.state().add_key(Key::in_regions(&[REGION]), "it", false);
        let folder = TempDir::new().expect("a folder");
        let bench = Self { faults: Faults::tls(kms.address, folder.path()).await, kms, folder };
        bench.give_credentials("AKIDFIRST");
        bench
    }

    fn item(&self) -> String {
        self.item_of(&Self::alias("it"))
    }

    async fn other_item(&self) -> String {
        self.kms.state().add_key(Key::in_regions(&[REGION]), "other", false);
        self.item_of(&Self::alias("other"))
    }

    fn version_that_never_was(&self) -> String {
        "00000000-0000-4000-8000-000000000000/00ff".into()
    }

    async fn rotate(&self) {
        self.change_key(Key::rotate);
    }

    async fn destroy(&self) {
        let mut kms = self.kms.state();
        let id = kms.aliases["it"].clone();
        kms.keys.remove(&id);
    }

    fn requests(&self) -> usize {
        self.faults.requests()
    }
}

#[async_trait]
impl Recreates for FakeBench {
    async fn recreate(&self) {
        let mut kms = self.kms.state();
        let former = kms.aliases["it"].clone();
        kms.keys.remove(&former);
        kms.add_key(Key::in_regions(&[REGION]), "it", false);
    }
}

#[async_trait]
impl Disables for FakeBench {
    async fn disable(&self) {
        self.change_key(|key| key.state = "Disabled");
    }
}

#[async_trait]
impl Permits for FakeBench {
    async fn withdraw_permission(&self) {
        self.change_key(|key| key.denied = vec!["Encrypt", "Decrypt"]);
    }
}

#[async_trait]
impl Authenticates for FakeBench {
    async fn expire_credentials(&self) {
        self.revoke_credentials().await;
        self.give_credentials("AKIDSECOND");
    }

    async fn revoke_credentials(&self) {
        for user in self.kms.state().users.values_mut() {
            user.expired = true;
        }
    }
}

impl Remote for FakeBench {
    fn faults(&self) -> &Faults {
        &self.faults
    }

    fn throttled(&self) -> Answer {
        Answer {
            status: 400,
            headers: vec![("content-type".into(), "application/x-amz-json-1.1".into())],
            body: r#"{"__type":"ThrottlingException","message":"Rate exceeded"}"#.into(),
        }
    }
}

impl FakeBench {
    /// An item for another name of a key.
    pub fn item_of(&self, key: &str) -> String {
        item(key, &self.faults, &from_file(&self.folder().join("credentials")))
    }

    /// An item for the alias, with `more` settings, and no credentials of its own.
    pub fn item_with(&self, more: &str) -> String {
        item(&Self::alias("it"), &self.faults, more)
    }

    /// For the files of this test.
    pub fn folder(&self) -> &Path {
        self.folder.path()
    }

    fn alias(name: &str) -> String {
        format!("arn:aws:kms:{REGION}:{ACCOUNT}:alias/{name}")
    }

    /// Changes the key behind `alias/it`.
    pub fn change_key(&self, change: impl FnOnce(&mut Key)) {
        let mut kms = self.kms.state();
        let id = kms.aliases["it"].clone();
        change(kms.keys.get_mut(&id).expect("the alias points to a key"));
    }

    fn give_credentials(&self, access_key: &str) {
        let user = User { secret: format!("secret of {access_key}"), token: None, expired: false, powerless: false };
        write_credentials(&self.folder.path().join("credentials"), access_key, &user.secret);
        self.kms.state().users.insert(access_key.into(), user);
    }
}

crate::conformance! {
    FakeBench;
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
    a_disabled_key_is_denied,
    a_destroyed_key_is_gone_definitely,
    a_withdrawn_permission_is_denied,
    expired_credentials_are_renewed,
    revoked_credentials_are_unauthenticated,
    the_end_of_the_credentials_is_known: "access keys in a file have no end",
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

/// Field case F8: the credentials are exchanged for others of a role that may.
#[tokio::test]
async fn a_denial_of_credentials_that_were_replaced_since_is_no_denial() {
    let bench = FakeBench::start().await;
    let kek = bench.kek().await;
    kek.version().await.expect("the first role may");
    // Older than what counts as fresh.
    tokio::time::sleep(Duration::from_secs(6)).await;
    bench.give_credentials("AKIDSECOND");
    let powerless = |user: &str| bench.kms.state().users.get_mut(user).expect("a user").powerless = true;
    powerless("AKIDFIRST");
    kek.version().await.expect("the second role may");
    powerless("AKIDSECOND");
    assert_eq!(kek.version().await.expect_err("nobody may").cause(), KekCause::Denied);
}
