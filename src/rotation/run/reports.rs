//! At the end, what every plugin reports that some API server asks.

use super::states::Run;
use crate::rotation::adoption::{Reports, look, reports};
use crate::rotation::claim::Subject;
use crate::rotation::conclusion::plugins::plugins;
use crate::rotation::error::RotationError;
use crate::rotation::keys::active::resolve;

impl Run<'_> {
    /// Whether no plugin would store under a key that is to go.
    pub(super) async fn plugins_have_moved(&mut self) -> Result<(), RotationError> {
        if self.settings.accept_unproven {
            return Ok(());
        }
        let seen = look(&self.cluster, Reports::Asked, false).await.map_err(RotationError::from)?;
        let known = match &self.settings.plugin {
            Some(plugin) => Some((plugin.epoch, self.known_versions(plugin).await)),
            None => None,
        };
        let resolved = |hash: &_| {
            let generation = known.as_ref().and_then(|(epoch, known)| resolve(hash, *epoch, known));
            generation.map(|(_, keys)| keys).unwrap_or_default()
        };
        let claim = plugins(&reports(&seen), &self.journal, &self.coverage.readers(), &resolved);
        self.journal.claims.insert(Subject::Plugins, claim);
        Ok(())
    }
}
