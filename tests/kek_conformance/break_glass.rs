//! `breakGlass`: pairs made by the program itself; the KEK with its private half, as on the day on which it is needed.

use std::path::PathBuf;

use async_trait::async_trait;
use kube_envelope::kek::Kek;
use kube_envelope::key_stores::Identities;
use tempfile::TempDir;

use crate::bench::{Bench, config};

/// Two private halves in a folder of their own.
struct BreakGlassBench {
    folder: TempDir,
    recipients: [String; 2],
}

impl BreakGlassBench {
    fn file(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn unlocked(&self, item: &str, file: &str) -> Box<dyn Kek> {
        let identities = Identities::read(&self.file(file)).expect("a private half");
        config(item).unlocked(&identities).expect("its own").open()
    }
}

#[async_trait]
impl Bench for BreakGlassBench {
    async fn start() -> Self {
        let folder = TempDir::new().expect("a folder");
        let made = ["own", "other"].map(|name| Identities::create(&folder.path().join(name)).expect("written"));
        Self { folder, recipients: made }
    }

    fn item(&self) -> String {
        format!("{{ name: it, breakGlass: {{ recipient: {} }} }}", self.recipients[0])
    }

    async fn other_item(&self) -> String {
        format!("{{ name: other, breakGlass: {{ recipient: {} }} }}", self.recipients[1])
    }

    fn version_that_never_was(&self) -> String {
        "00".repeat(16)
    }

    async fn rotate(&self) {
        unreachable!("another recipient is another configuration")
    }

    async fn destroy(&self) {
        unreachable!("a private half is destroyed where it is kept")
    }

    /// Nobody is asked.
    fn requests(&self) -> usize {
        0
    }

    async fn kek(&self) -> Box<dyn Kek> {
        self.unlocked(&self.item(), "own")
    }

    async fn other_kek(&self) -> Box<dyn Kek> {
        self.unlocked(&self.other_item().await, "other")
    }
}

crate::conformance! {
    BreakGlassBench;
    what_is_wrapped_unwraps,
    the_profile_of_a_key_is_told,
    a_wrap_names_the_active_version,
    another_instance_unwraps,
    another_context_is_rejected,
    a_tampered_blob_is_rejected,
    a_blob_of_another_key_is_rejected,
    two_keys_have_two_lineages: "another recipient is another version of the one break-glass KEK",
    a_version_text_of_another_kind_is_refused_without_a_remote_call,
    a_version_that_never_was_is_unknown,
    a_rotated_key_is_seen: "another recipient is another configuration",
    the_rotating_part_rotates: "another recipient is another configuration",
    old_versions_still_open: "another recipient is another configuration",
    a_recreated_key_is_another_version: "a recipient is its key",
    a_disabled_key_is_denied: "nobody can disable a key that is in a safe",
    a_destroyed_key_is_gone_definitely: "nobody can destroy it but whoever keeps it",
    a_withdrawn_permission_is_denied: "a file has no permissions but its mode, checked when it is read",
    expired_credentials_are_renewed: "it needs no credentials",
    revoked_credentials_are_unauthenticated: "it needs no credentials",
    the_end_of_the_credentials_is_known: "it needs no credentials",
    a_clock_that_is_off_is_known: "nobody is asked",
    a_throttled_call_is_throttled: "nobody is asked over a network",
    a_server_error_is_unavailable: "nobody is asked over a network",
    a_slow_server_meets_the_deadline: "nobody is asked over a network",
    a_cut_connection_is_unavailable: "nobody is asked over a network",
    an_unreachable_server_is_unavailable: "nobody is asked over a network",
    a_wrong_certificate_is_refused: "nobody is asked over a network",
    the_key_exchange_offered_first_is_post_quantum: "nobody is asked over a network",
    a_redirect_is_not_followed: "nobody is asked over a network",
    a_proxy_is_used_where_it_is_named: "nobody is asked over a network",
    an_oversized_answer_is_not_read: "nobody is asked over a network",
    garbage_in_an_answer_is_unavailable: "nobody is asked over a network",
    the_kek_works_again_after_faults: "nobody is asked over a network",
}
