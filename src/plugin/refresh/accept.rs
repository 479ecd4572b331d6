//! A new configuration is taken only if everything that is kept can be unwrapped under it as well as before.

use std::collections::BTreeMap;
use std::time::Duration;

use futures::stream::{self, StreamExt};
use tracing::{error, info};

use super::coverage::{Kept, Uncovered};
use super::decision::lowered;
use super::memory::Refresh;
use super::proofs::Proofs;
use super::settings::Settings;
use super::warm::Warm;
use crate::crypto::secret::DekId;
use crate::dek::contacts::Standing;
use crate::envelope::WrappedDekSet;
use crate::kek::KekVersion;
use crate::kek::set::{KekSet, UnwrapError};

/// Unwraps at once while a configuration is tried.
const SIDE_BY_SIDE: usize = 8;

/// Sets of KEK versions that are tried, the newest of this node first; more than a cluster has.
const MOST_TRIED: usize = 64;

/// A version that unwrapped, and when it was asked.
type Opened = (KekVersion, Duration);

impl Refresh {
    /// Takes `new` into use, or says why not; the configuration in use then stays.
    pub(super) async fn reload(&mut self, new: Settings) {
        match self.try_out(&new).await {
            Err(reason) => {
                error!(reason, "new configuration refused; the one in use stays");
                self.metrics.reloaded(false);
                self.refused = Some(format!("the configuration on disk was refused: {reason}"));
            }
            Ok(opened) => {
                info!("configuration reloaded");
                self.metrics.reloaded(true);
                self.settings = new;
                self.service.replace_keks(self.settings.keks.clone());
                self.service.replace_takeovers(self.settings.takeovers.clone());
                // All of it is about the configuration that was in use.
                (self.refused, self.attempt, self.recovery) = (None, None, None);
                self.failures.clear();
                self.lost.clear();
                self.proofs = Proofs::default();
                self.warm = Warm::default();
                self.configure();
                // A KEK that was put back vouches for its DEKs from the moment in which it was tried, not from the next
                // proof on, which may come too late for them.
                for (version, asked) in opened {
                    self.service.cache().note(&version, Standing::Opens, asked);
                }
            }
        }
    }

    /// Which versions unwrapped something under `new`, and when they were asked.
    ///
    /// # Errors
    /// Why `new` is not to be taken.
    async fn try_out(&self, new: &Settings) -> Result<Vec<Opened>, String> {
        if let Some(reason) = lowered(new.epoch, &self.service.store().history()) {
            return Err(reason);
        }
        // Whatever they answer: once asked, a KEK knows which one it is.
        let answers = new.keks.versions().await;
        let unidentified = new.keks.identify(&answers).await;
        let mut kept = self.kept();
        // Listed under `forget`: somebody has said that nothing needs them any more.
        kept.retain(|(_, wrapped)| !new.forgets(wrapped));
        let uncovered = Uncovered::of(&kept, &new.keks.lineages());
        if !uncovered.is_empty() {
            return Err(self.advice(&uncovered, &new.keks, &unidentified));
        }
        // A KEK that answers may still be the wrong one, or without the right to unwrap. Only what the KEKs in use do
        // unwrap counts, so that an outage does not make every configuration unacceptable.
        let tried = stream::iter(self.of_each_kind(kept)).map(|kept| self.try_under(new, kept));
        let tried: Vec<_> = tried.buffer_unordered(SIDE_BY_SIDE).collect().await;
        tried.into_iter().filter_map(Result::transpose).collect()
    }

    /// One kept DEK for each set of versions; that of the active generation for its own.
    fn of_each_kind(&self, kept: Vec<Kept>) -> Vec<Kept> {
        let mut kinds: BTreeMap<Vec<KekVersion>, Kept> = BTreeMap::new();
        for (id, wrapped) in kept.into_iter().chain(self.current()) {
            let mut versions: Vec<_> = wrapped.versions().cloned().collect();
            versions.sort();
            kinds.insert(versions, (id, wrapped));
        }
        kinds.into_values().take(MOST_TRIED).collect()
    }

    /// Which version unwraps a DEK under `new`. What neither the KEKs of `new` nor those in use unwrap just now is no
    /// worse off afterwards.
    ///
    /// # Errors
    /// Those in use unwrap it, and those of `new` do not.
    async fn try_under(&self, new: &Settings, (id, wrapped): Kept) -> Result<Option<Opened>, String> {
        let error = match self.unwraps_under(&new.keks, id, &wrapped).await {
            Ok(opened) => return Ok(Some(opened)),
            Err(error) => error,
        };
        let in_use = self.unwraps_under(&self.settings.keks, id, &wrapped).await;
        // What interrupts a row of denials does so whatever it was asked for.
        match in_use.inspect_err(|error| self.service.cache().note_silence(error)) {
            Ok(_) => Err(format!("under it, kept DEK {id} cannot be unwrapped, which the KEKs in use unwrap: {error}")),
            Err(_) => Ok(None),
        }
    }

    async fn unwraps_under(&self, keks: &KekSet, id: DekId, wrapped: &WrappedDekSet) -> Result<Opened, UnwrapError> {
        let asked = self.service.cache().now();
        let (_, by) = keks.unwrap(&wrapped.wraps, &wrapped.context(id)).await?;
        self.service.cache().note_known(&by, Standing::Opens, asked);
        Ok((by, asked))
    }
}
