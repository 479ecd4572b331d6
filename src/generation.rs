//! A generation: one set of KEK versions and the DEK that this node seals under it. Immutable.

use std::sync::Arc;

use crate::crypto::seal::{dek_id, os_random};
use crate::crypto::secret::{Dek, DekId, Seed};
use crate::envelope::{SealError, WrappedDekSet, seal};
use crate::key_id::KeyId;

/// A generation that was proven, with its active DEK.
#[derive(Debug)]
pub struct Generation {
    key_id: KeyId,
    dek_id: DekId,
    dek: Arc<Dek>,
    wrapped: WrappedDekSet,
    annotation: Vec<u8>,
}

impl Generation {
    /// Puts a DEK and its wraps together.
    ///
    /// # Errors
    /// When the wraps are more than the API server stores beside an object, or could not be read again from there.
    pub fn new(dek: Arc<Dek>, wrapped: WrappedDekSet) -> Result<Self, SealError> {
        let annotation = wrapped.encode()?;
        // Read back before it is used: what cannot be read again would be found by the first Decrypt, in production.
        WrappedDekSet::decode(&annotation)?;
        Ok(Self { key_id: wrapped.key_id(), dek_id: dek_id(&dek), dek, wrapped, annotation })
    }

    /// Its public name.
    pub fn key_id(&self) -> &KeyId {
        &self.key_id
    }

    /// The id of its DEK on this node.
    pub fn dek_id(&self) -> DekId {
        self.dek_id
    }

    /// Its DEK on this node.
    pub fn dek(&self) -> &Arc<Dek> {
        &self.dek
    }

    /// Its DEK as stored.
    pub fn wrapped(&self) -> &WrappedDekSet {
        &self.wrapped
    }

    /// The value of the annotation for each ciphertext of this generation.
    pub fn annotation(&self) -> &[u8] {
        &self.annotation
    }

    /// Whether this is what the generation itself stores beside its ciphertexts on this node, byte for byte: then
    /// it need not be taken apart and checked again.
    pub fn is_own_envelope(&self, dek_id: DekId, key_id: &str, annotation: &[u8]) -> bool {
        self.dek_id == dek_id && self.key_id.as_str() == key_id && self.annotation == annotation
    }

    /// Seals a seed.
    ///
    /// # Errors
    /// A seed that is empty or too long; see [`crate::envelope::seal`].
    pub fn seal(&self, seed: &Seed) -> Result<Vec<u8>, SealError> {
        seal(&self.dek, self.dek_id, &self.wrapped.cluster, &self.key_id, seed, &mut os_random())
    }
}
