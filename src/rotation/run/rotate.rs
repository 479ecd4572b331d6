//! Rotating the KEKs: each once, whatever happens to the process meanwhile.

use super::states::Run;
use crate::kek::KekVersion;
use crate::key_stores::KekConfig;
use crate::rotation::error::RotationError;
use crate::rotation::event::Event;
use crate::rotation::keys::name::KeyName;

impl Run<'_> {
    /// Rotates each KEK once, also when the process ended between the rotation and the journal.
    pub(super) async fn rotate_keks(&mut self) -> Result<(), RotationError> {
        let keks = self.settings.plugin.as_ref().map(|plugin| plugin.keks.clone()).unwrap_or_default();
        let mut active = Vec::new();
        for config in keks {
            active.push(self.rotate_kek(&config).await?);
        }
        // What the vendor answered to the rotation, not what another question would give, which may be answered by a
        // replica that is behind.
        self.aim_at(&active);
        Ok(())
    }

    async fn rotate_kek(&mut self, config: &KekConfig) -> Result<KekVersion, RotationError> {
        let name = config.name.clone();
        let failed = |source| RotationError::Kek { name: name.clone(), source };
        let active = config.open().version().await.map_err(failed)?;
        // Its recipient is of the configuration, and another one is there already where it was to change.
        if config.offline().is_some() {
            return Ok(active);
        }
        // Written before the KEK is rotated: a process that ends in between finds another version active than this one
        // when it resumes, and does not rotate a second time.
        let before = self.journal.keks_before.entry(name.clone()).or_insert_with(|| active.version.clone()).clone();
        let replaced = KekVersion { lineage: active.lineage, version: before.clone() };
        // In the journal before it is replaced, for the verdict to name it even if nothing was stored under it.
        self.journal.keys_seen.insert(KeyName::kek(&replaced));
        self.write().await?;
        if active.version == before {
            // Time has passed since the preflight.
            self.everybody_answers(config).await?;
        }
        let rotating = config.open_rotating().await.map_err(failed)?;
        let now = if active.version == before { rotating.rotate().await.map_err(failed)? } else { active };
        let version = &now.version;
        (self.report)(Event::Note(&format!("KEK {name}: version {version} is active; before, it was {before}")));
        if let Some(work) = rotating.remaining_work() {
            (self.report)(Event::Note(&work));
        }
        self.journal.keks_rotated.insert(name, version.clone());
        self.journal.activations.add(&now, jiff::Timestamp::now());
        self.write().await?;
        Ok(now)
    }
}
