//! Seeds, each opened once: as many Decrypts as an API server sends after its start.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use super::source::{SeedError, Sources};
use crate::crypto::secret::Seed;
use crate::encryption_config::ProviderName;
use crate::etcd::EncryptedObject;

/// What names a seed: everything that a plugin is asked with.
pub type SeedName = [u8; 32];

type Opened = Result<Arc<Seed>, Arc<SeedError>>;

/// The seeds that were opened.
#[derive(Debug)]
pub struct Seeds {
    sources: Sources,
    opened: Mutex<HashMap<SeedName, (Opened, Duration)>>,
}

impl Seeds {
    /// No seed is opened before an object needs it.
    pub fn new(sources: Sources) -> Self {
        Self { sources, opened: Mutex::new(HashMap::new()) }
    }

    /// The seed of an object, opened unless it was before.
    ///
    /// # Errors
    /// Why it cannot be had, the same for every object that needs it.
    pub async fn get(&self, provider: &ProviderName, object: &EncryptedObject) -> Opened {
        let name = object.seed_digest(provider);
        // The lock is not held while a seed is opened; two that ask for the same one both open it, which is only
        // slower.
        if let Some((opened, _)) = self.opened().get(&name) {
            return opened.clone();
        }
        let began = Instant::now();
        // A failure is kept as well: an outage is met once, and not once for each object.
        let opened = self.sources.open(provider, object).await.map(Arc::new).map_err(Arc::new);
        self.opened().insert(name, (opened.clone(), began.elapsed()));
        opened
    }

    /// How many different seeds there were.
    pub fn count(&self) -> usize {
        self.opened().len()
    }

    /// How long opening one seed took.
    pub fn time(&self, seed: &SeedName) -> Duration {
        self.opened().get(seed).map(|(_, time)| *time).unwrap_or_default()
    }

    /// The longest that one took.
    pub fn slowest(&self) -> Duration {
        self.opened().values().map(|(_, time)| *time).max().unwrap_or_default()
    }

    /// Where they come from.
    pub fn sources(&self) -> &Sources {
        &self.sources
    }

    fn opened(&self) -> std::sync::MutexGuard<'_, HashMap<SeedName, (Opened, Duration)>> {
        self.opened.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
