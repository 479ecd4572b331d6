//! `LocalStack`: one for all tests of a run, a key of its own for each.

use async_trait::async_trait;
use aws_sdk_kms::Client;
use kube_envelope::key_id::KeyId;
use tempfile::TempDir;

use super::{from_file, item, write_credentials};
use crate::bench::{Bench, Disables, Remote, config, dek};
use crate::support::fakes::faults::{Answer, Faults};
use crate::support::localstack::{REGION, create_key, localstack};

struct LocalStackBench {
    admin: Client,
    key: String,
    faults: Faults,
    folder: TempDir,
}

#[async_trait]
impl Bench for LocalStackBench {
    async fn start() -> Self {
        let (server, admin) = localstack().await;
        let folder = TempDir::new().expect("a folder");
        write_credentials(&folder.path().join("credentials"), "plugin", "plugin");
        let key = create_key(&admin).await;
        Self { admin, key, faults: Faults::tls(server, folder.path()).await, folder }
    }

    fn item(&self) -> String {
        self.item_of(&self.key)
    }

    async fn other_item(&self) -> String {
        self.item_of(&create_key(&self.admin).await)
    }

    fn version_that_never_was(&self) -> String {
        "00000000-0000-4000-8000-000000000000/00ff".into()
    }

    async fn rotate(&self) {
        self.admin.rotate_key_on_demand().key_id(&self.key).send().await.expect("rotated");
    }

    async fn destroy(&self) {
        let request = self.admin.schedule_key_deletion().key_id(&self.key).pending_window_in_days(7);
        request.send().await.expect("to be deleted");
    }

    fn requests(&self) -> usize {
        self.faults.requests()
    }
}

#[async_trait]
impl Disables for LocalStackBench {
    async fn disable(&self) {
        self.admin.disable_key().key_id(&self.key).send().await.expect("disabled");
    }
}

impl Remote for LocalStackBench {
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

impl LocalStackBench {
    fn item_of(&self, key: &str) -> String {
        let credentials = self.folder.path().join("credentials");
        item(key, &self.faults, &from_file(&credentials))
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_replica_in_another_region_opens_the_wrap_and_gives_the_same_key_id() {
    let bench = LocalStackBench::start().await;
    let made = bench.admin.create_key().multi_region(true).send().await.expect("a primary key");
    let primary = made.key_metadata.and_then(|metadata| metadata.arn).expect("an ARN");
    bench.admin.replicate_key().key_id(&primary).replica_region("us-east-1").send().await.expect("replicated");
    let here = config(&bench.item_of(&primary)).open();
    let there = config(&bench.item_of(&primary.replace(REGION, "us-east-1"))).open();
    let (left, right) = (here.version().await.expect("version"), there.version().await.expect("version"));
    assert_eq!(KeyId::derive(1, [&left]), KeyId::derive(1, [&right]));
    let (dek, context) = dek();
    let wrapped = here.wrap(&dek, &context).await.expect("wrap");
    let unwrapped = there.unwrap(&wrapped, &context).await.expect("the other Region unwraps");
    assert_eq!((unwrapped.dek.expose(), unwrapped.version), (dek.expose(), right));
}

crate::conformance! {
    LocalStackBench;
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
    a_recreated_key_is_another_version: "a key is deleted after seven days at the soonest; the fake has it",
    a_disabled_key_is_denied,
    a_destroyed_key_is_gone_definitely,
    a_withdrawn_permission_is_denied: "LocalStack enforces no policy; the fake has it",
    expired_credentials_are_renewed: "LocalStack checks no credentials; the fake has it",
    revoked_credentials_are_unauthenticated: "LocalStack checks no credentials; the fake has it",
    the_end_of_the_credentials_is_known: "access keys in the environment have no end",
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
