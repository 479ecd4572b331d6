//! `keyring`: a file made and changed with the program's own [`Keyring`].

use std::path::PathBuf;

use async_trait::async_trait;
use kube_envelope::key_stores::keyring::Keyring;
use tempfile::TempDir;

use crate::bench::Bench;

/// A keyring file in a folder of its own.
struct KeyringBench {
    folder: TempDir,
}

impl KeyringBench {
    fn file(&self) -> PathBuf {
        self.folder.path().join("keyring.json")
    }

    fn change(&self, change: impl FnOnce(&mut Keyring)) {
        let mut keyring = Keyring::read(&self.file()).expect("a keyring");
        change(&mut keyring);
        keyring.replace(&self.file()).expect("replaced");
    }
}

#[async_trait]
impl Bench for KeyringBench {
    async fn start() -> Self {
        let bench = Self { folder: TempDir::new().expect("a folder") };
        Keyring::create(&mut rand::rng()).write_new(&bench.file()).expect("written");
        bench
    }

    fn item(&self) -> String {
        format!("{{ name: it, keyring: {{ file: {} }} }}", self.file().display())
    }

    async fn other_item(&self) -> String {
        let file = self.folder.path().join("other.json");
        Keyring::create(&mut rand::rng()).write_new(&file).expect("written");
        format!("{{ name: other, keyring: {{ file: {} }} }}", file.display())
    }

    fn version_that_never_was(&self) -> String {
        "00".repeat(16)
    }

    async fn rotate(&self) {
        self.change(|keyring| {
            let id = keyring.add(&mut rand::rng());
            keyring.activate(&id).expect("activated");
        });
    }

    async fn destroy(&self) {
        let first = Keyring::read(&self.file()).expect("a keyring").versions()[0].id.clone();
        self.rotate().await;
        self.change(|keyring| keyring.destroy(&first).expect("destroyed"));
    }

    /// Nobody is asked.
    fn requests(&self) -> usize {
        0
    }
}

crate::conformance! {
    KeyringBench;
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
    a_recreated_key_is_another_version: "a new keyring file has a new id, hence another lineage",
    a_disabled_key_is_denied: "a keyring always has exactly one active version",
    a_destroyed_key_is_gone_definitely,
    a_withdrawn_permission_is_denied: "a file has no permissions but its mode, checked when the KEK is made",
    expired_credentials_are_renewed: "a file needs no credentials",
    revoked_credentials_are_unauthenticated: "a file needs no credentials",
    the_end_of_the_credentials_is_known: "a file needs no credentials",
    a_clock_that_is_off_is_known: "a file has no clock",
    a_throttled_call_is_throttled: "a file is not asked over a network",
    a_server_error_is_unavailable: "a file is not asked over a network",
    a_slow_server_meets_the_deadline: "a file is not asked over a network",
    a_cut_connection_is_unavailable: "a file is not asked over a network",
    an_unreachable_server_is_unavailable: "a file is not asked over a network",
    a_wrong_certificate_is_refused: "a file is not asked over a network",
    the_key_exchange_offered_first_is_post_quantum: "a file is not asked over a network",
    a_redirect_is_not_followed: "a file is not asked over a network",
    a_proxy_is_used_where_it_is_named: "a file is not asked over a network",
    an_oversized_answer_is_not_read: "a file is not asked over a network",
    garbage_in_an_answer_is_unavailable: "a file is not asked over a network",
    the_kek_works_again_after_faults: "a file is not asked over a network",
}
