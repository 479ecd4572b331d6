//! What a kind gives to the conformance suite: its server, its settings, and the hooks that change the backend.

use async_trait::async_trait;
use kube_envelope::crypto::seal::dek_id;
use kube_envelope::crypto::secret::Dek;
use kube_envelope::kek::{Kek, KekConfig, RotateKek, WrapContext};

use crate::support::fakes::faults::{Answer, Faults};

/// The backend of one kind with one key in it, made for one test.
///
/// A hook without which a behaviour has no sense panics by default: the kind's list then ignores that
/// behaviour, with the reason.
#[async_trait]
pub trait Bench: Sized + Send + Sync {
    /// Starts the server, or takes a key of its own in one that is shared.
    async fn start() -> Self;

    /// Runs `test` in a process of its own, and says so, where the backend lives inside the process.
    fn run_elsewhere(_test: &str) -> bool {
        false
    }

    /// The settings of one KEK as an operator writes them: an item of `keks:`, as YAML.
    fn item(&self) -> String;

    /// The settings of another KEK of the same kind, on the same server.
    async fn other_item(&self) -> String;

    /// A version text of the right form that this KEK never had.
    fn version_that_never_was(&self) -> String;

    /// Makes a new version active, as the backend's own tools do.
    async fn rotate(&self);

    /// Destroys the key and makes another one of the same name.
    async fn recreate(&self) {
        panic!("this kind cannot recreate a key")
    }

    /// Disables the key.
    async fn disable(&self) {
        panic!("this kind cannot disable a key")
    }

    /// Destroys the key, or the version that has wrapped.
    async fn destroy(&self);

    /// Takes the permission to use the key away from the credentials, which stay valid.
    async fn withdraw_permission(&self) {
        panic!("this kind has no permissions")
    }

    /// Makes the credentials that the KEK now holds invalid; new ones can be had.
    async fn expire_credentials(&self) {
        panic!("this kind has no credentials")
    }

    /// Makes the credentials invalid for good.
    async fn revoke_credentials(&self) {
        panic!("this kind has no credentials")
    }

    /// What stands between the KEK and its server.
    fn faults(&self) -> &Faults {
        panic!("this kind asks no server")
    }

    /// How the backend answers when it is asked too often.
    fn throttled(&self) -> Answer {
        panic!("this kind asks no server")
    }

    /// How many requests have reached the backend.
    fn requests(&self) -> usize {
        self.faults().requests()
    }

    /// The KEK, made of [`Bench::item`].
    async fn kek(&self) -> Box<dyn Kek> {
        config(&self.item()).build().await.expect("the KEK is constructed")
    }

    /// Another KEK of the same kind.
    async fn other_kek(&self) -> Box<dyn Kek> {
        config(&self.other_item().await).build().await.expect("the other KEK is constructed")
    }

    /// The part of the KEK that rotates.
    async fn rotating(&self) -> Box<dyn RotateKek> {
        config(&self.item()).build_rotating().await.expect("this kind rotates")
    }
}

/// Reads an item as the program does, and holds it to be free of problems.
pub fn config(yaml: &str) -> KekConfig {
    let config: KekConfig = serde_saphyr::from_str(yaml).unwrap_or_else(|error| panic!("{error}\n{yaml}"));
    assert_eq!(config.problems(), [], "{yaml}");
    config
}

/// A new DEK and what its wraps are bound to.
pub fn dek() -> (Dek, WrapContext) {
    let dek = Dek::generate(&mut rand::rng());
    let context = WrapContext { cluster: "conformance".into(), dek_id: dek_id(&dek) };
    (dek, context)
}
