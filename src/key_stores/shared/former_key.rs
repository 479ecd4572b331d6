//! The key that another plugin used, with the KEK that asks for it: opened when it is used, and what it cannot get now is
//! asked for again by the next call.

use async_trait::async_trait;
use tokio::sync::OnceCell;

use super::key_store::KeyStore;
use crate::kek::takeover::FormerKey;
use crate::kek::{Kek, KekError, Lineage};

/// A key store whose KEK is asked for more than a KEK of this program does.
#[async_trait]
pub(in crate::key_stores) trait OpenKek: KeyStore {
    type Kek: Kek;

    /// The KEK itself, where [`KeyStore::open`] gives it boxed; with the same errors.
    async fn open_kek(&self) -> Result<Self::Kek, KekError>;
}

#[derive(Debug)]
pub(in crate::key_stores) struct KeyOnUse<S: OpenKek> {
    /// The key, and the way to it.
    pub store: S,
    kek: OnceCell<S::Kek>,
}

impl<S: OpenKek> KeyOnUse<S> {
    pub fn new(store: S) -> Self {
        Self { store, kek: OnceCell::new() }
    }

    /// The KEK, opened at its first use.
    ///
    /// # Errors
    /// Those of [`OpenKek::open_kek`]; the next call tries again.
    pub async fn kek(&self) -> Result<&S::Kek, KekError> {
        self.kek.get_or_try_init(|| self.store.open_kek()).await
    }
}

#[async_trait]
impl<S: OpenKek> FormerKey for KeyOnUse<S> {
    fn lineage(&self) -> Lineage {
        self.store.lineage()
    }

    async fn probe(&self) -> Result<String, KekError> {
        self.kek().await?.version().await.map(|version| version.version)
    }

    fn credentials_expire(&self) -> Option<jiff::Timestamp> {
        self.kek.get()?.credentials_expire()
    }
}
