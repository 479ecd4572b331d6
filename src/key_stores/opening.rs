//! A KEK that is opened when it is used: what it cannot get now is asked for again by the next call.

use std::sync::Arc;

use async_trait::async_trait;
use tokio::sync::OnceCell;

use super::shared::key_store::KeyStore;
use crate::crypto::secret::Dek;
use crate::kek::clock::ServerClock;
use crate::kek::{Kek, KekError, KekVersion, Lineage, Unwrapped, WrapContext, WrappedDek};

/// See the file's own words.
#[derive(Debug)]
pub(super) struct OpenedOnUse {
    key_store: Arc<dyn KeyStore>,
    lineage: Lineage,
    kek: OnceCell<Box<dyn Kek>>,
    /// Stands for the server's clock until a server was asked.
    unasked: Option<ServerClock>,
}

impl OpenedOnUse {
    pub(super) fn new(key_store: Arc<dyn KeyStore>) -> Self {
        let unasked = key_store.asks_a_server().then(ServerClock::default);
        Self { lineage: key_store.lineage(), key_store, kek: OnceCell::new(), unasked }
    }

    async fn kek(&self) -> Result<&dyn Kek, KekError> {
        self.kek.get_or_try_init(|| self.key_store.open()).await.map(|kek| &**kek)
    }
}

#[async_trait]
impl Kek for OpenedOnUse {
    fn lineage(&self) -> Lineage {
        // A keyring file knows its id; before it was read, only the path is known.
        self.kek.get().map_or(self.lineage, |kek| kek.lineage())
    }

    fn is_identified(&self) -> bool {
        self.kek.initialized() || self.key_store.unknown_lineage() != Some(self.lineage)
    }

    fn credentials_expire(&self) -> Option<jiff::Timestamp> {
        self.kek.get()?.credentials_expire()
    }

    fn server_clock(&self) -> Option<&ServerClock> {
        self.kek.get().map_or(self.unasked.as_ref(), |kek| kek.server_clock())
    }

    async fn version(&self) -> Result<KekVersion, KekError> {
        self.kek().await?.version().await
    }

    async fn wrap(&self, dek: &Dek, context: &WrapContext) -> Result<WrappedDek, KekError> {
        self.kek().await?.wrap(dek, context).await
    }

    async fn unwrap(&self, wrapped: &WrappedDek, context: &WrapContext) -> Result<Unwrapped, KekError> {
        self.kek().await?.unwrap(wrapped, context).await
    }
}
