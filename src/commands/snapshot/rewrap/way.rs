//! Who rewraps the seeds of a snapshot, and under which keys they end: the KEKs of a configuration of kube-envelope, or
//! the plugins that the EncryptionConfiguration names.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use anyhow::{Context, Result, anyhow, bail};

use crate::backup::Inventory;
use crate::cli::backup::KeyArgs;
use crate::commands::opening::{Keys, configuration, keks};
use crate::encryption_config::{EncryptionConfiguration, ProviderName};
use crate::etcd::Stored;
use crate::kms::plugins::Plugins;
use crate::rehearsal::KekKeeper;
use crate::rotation::cluster::key_id_hash::KeyIdHash;
use crate::rotation::keys::name::KeyNames;
use crate::rotation::rewrap::seeds::SeedKeeper;

/// How a snapshot is rewrapped.
pub(super) struct Way {
    /// Who opens and wraps seeds.
    pub(super) keeper: Box<dyn SeedKeeper>,
    /// Provider → hash of the `key_id` under which its values end.
    pub(super) targets: BTreeMap<ProviderName, KeyIdHash>,
    /// What keys are called.
    pub(super) names: KeyNames,
}

impl Way {
    /// The way that the arguments lead.
    pub(super) async fn of(args: &KeyArgs, held: &Inventory, file: &Path) -> Result<Self> {
        let way = match (configuration(args.config.as_deref(), args.break_glass.as_deref())?.0, &args.encryption_config)
        {
            // The KEKs where both are given: no plugin need run on this machine.
            (Some(config), _) => {
                let keys = Keys::of(args, &[])?;
                let keeper = KekKeeper::new(keys.sources, config.cluster.clone(), config.epoch, &keks(&config)?).await;
                let keeper = keeper.map_err(|error| anyhow!(error))?;
                let target = KeyIdHash::of(keeper.key_id().as_str());
                let providers = providers(held, !config.takeover.is_empty());
                let targets = providers.into_iter().map(|provider| (provider, target.clone())).collect();
                Self { keeper: Box::new(keeper), targets, names: keys.names }
            }
            (None, Some(file)) => {
                let configuration = EncryptionConfiguration::read(file);
                let configuration = configuration.with_context(|| format!("{} cannot be used", file.display()))?;
                let plugins = Plugins::of(&configuration);
                let mut targets = BTreeMap::new();
                let held = providers(held, true);
                for provider in plugins.providers().filter(|provider| held.contains(*provider)) {
                    targets.insert(provider.clone(), KeyIdHash::of(&plugins.key_id(provider).await?));
                }
                Self { keeper: Box::new(plugins), targets, names: KeyNames::default() }
            }
            (None, None) => bail!(
                "give --config of kube-envelope, to wrap the seeds with its KEKs, or --encryption-config, to wrap them with its plugins"
            ),
        };
        if way.targets.is_empty() {
            bail!("{} holds no value that could be rewrapped with what was given", file.display());
        }
        Ok(way)
    }

    /// Whether something should have been rewrapped and was not.
    pub(super) fn is_former(&self, stored: &Stored) -> bool {
        let Stored::KmsV2 { provider, key_id, .. } = stored else { return false };
        self.targets.get(provider).is_some_and(|target| *target != KeyIdHash::of(key_id))
    }
}

/// The KMS v2 providers that have values; those of kube-envelope, or all.
fn providers(held: &Inventory, all: bool) -> BTreeSet<ProviderName> {
    let of = |stored: &Stored| match stored {
        Stored::KmsV2 { provider, keks, .. } if all || !keks.is_empty() => Some(provider.clone()),
        _ => None,
    };
    held.rows().filter_map(|row| of(&row.shape.stored)).collect()
}
