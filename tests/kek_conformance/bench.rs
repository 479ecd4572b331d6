//! What a kind gives to the conformance suite: its server, its settings, and the hooks that change the backend.

use async_trait::async_trait;
use kube_envelope::crypto::seal::dek_id;
use kube_envelope::crypto::secret::Dek;
use kube_envelope::kek::{Kek, RotateKek, WrapContext};
use kube_envelope::key_stores::{KekConfig, KekItem};

use crate::support::fakes::faults::{Answer, Faults};

/// The backend of one kind with one key in it, made for one test. What only some backends can do is in the traits
/// below; a behaviour that needs one of them does not compile for a bench without it.
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

    /// Destroys the key, or the version that has wrapped.
    async fn destroy(&self);

    /// How many requests have reached the backend; 0 for one that is not asked over a connection.
    fn requests(&self) -> usize;

    /// The KEK, made of [`Bench::item`].
    async fn kek(&self) -> Box<dyn Kek> {
        config(&self.item()).open()
    }

    /// Another KEK of the same kind.
    async fn other_kek(&self) -> Box<dyn Kek> {
        config(&self.other_item().await).open()
    }

    /// The part of the KEK that rotates.
    async fn rotating(&self) -> Box<dyn RotateKek> {
        config(&self.item()).open_rotating().await.expect("this kind rotates")
    }
}

/// A backend that gives the name of a destroyed key to another one.
#[async_trait]
pub trait Recreates: Bench {
    /// Destroys the key and makes another one of the same name.
    async fn recreate(&self);
}

/// A backend whose keys can be switched off.
#[async_trait]
pub trait Disables: Bench {
    /// Disables the key.
    async fn disable(&self);
}

/// A backend that decides who may use a key.
#[async_trait]
pub trait Permits: Bench {
    /// Takes the permission to use the key away from the credentials, which stay valid.
    async fn withdraw_permission(&self);
}

/// A backend that checks credentials.
#[async_trait]
pub trait Authenticates: Bench {
    /// Makes the credentials that the KEK now holds invalid; new ones can be had.
    async fn expire_credentials(&self);

    /// Makes the credentials invalid for good.
    async fn revoke_credentials(&self);
}

/// A backend that is asked over a connection.
pub trait Remote: Bench {
    /// The proxy between the KEK and its server.
    fn faults(&self) -> &Faults;

    /// How the backend answers when it is asked too often.
    fn throttled(&self) -> Answer;
}

/// Reads an item as the program does.
pub fn config(yaml: &str) -> KekConfig {
    let item: KekItem = serde_saphyr::from_str(yaml).unwrap_or_else(|error| panic!("{error}\n{yaml}"));
    item.parse().unwrap_or_else(|mistakes| panic!("{mistakes:?}\n{yaml}"))
}

/// A new DEK and what its wraps are bound to.
pub fn dek() -> (Dek, WrapContext) {
    let dek = Dek::generate(&mut rand::rng());
    let context = WrapContext { cluster: "conformance".parse().expect("a name"), dek_id: dek_id(&dek) };
    (dek, context)
}
