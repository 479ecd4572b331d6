//! The preflight: obstacles that can be known before anything is rewritten, and a snapshot to go back to.

use std::time::{Duration, Instant};

use super::states::Run;
use crate::key_stores::KekConfig;
use crate::rotation::adoption::{Look, Reports, look_at_all};
use crate::rotation::cluster::roster::{Doubt, LEASE_WATCHED};
use crate::rotation::cluster::webhooks::mutating_webhooks;
use crate::rotation::error::RotationError;
use crate::rotation::event::Event;
use crate::rotation::leftovers::former::{samples_in_etcd, samples_in_lists, unreadable_through};
use crate::rotation::run::preflight::missing_rights;

/// How soon after a look that left open who is there another one follows.
const LOOKS_AGAIN_AFTER: Duration = Duration::from_secs(5);

impl Run<'_> {
    pub(super) async fn preflight(&mut self) -> Result<(), RotationError> {
        self.look_ahead().await?;
        self.keks_are_prepared().await?;
        if self.settings.shards.is_some() {
            self.take_shards().await?;
        }
        self.survey_before().await?;
        self.snapshot_before().await
    }

    /// The part that changes nothing: a dry run does it, too.
    pub(super) async fn look_ahead(&self) -> Result<(), RotationError> {
        let api = self.cluster.entry();
        let missing = missing_rights(api, &self.journal, self.settings.etcd.is_some()).await?;
        if !missing.is_empty() {
            return Err(RotationError::Blocked(missing));
        }
        let webhooks = mutating_webhooks(api).await;
        if !webhooks.is_empty() {
            self.note(&format!(
                "mutating webhooks see every rewrite and may turn it into a change: {}",
                webhooks.join(", ")
            ));
        }
        for progress in &self.journal.resources {
            if let Some(why) = &progress.tally.unlistable {
                self.note(&format!("{} cannot be listed: {why}", progress.resource));
            }
        }
        self.etcd_is_fit().await?;
        self.former_keys_open().await
    }

    /// What is stored now must open through every API server until it is rewritten.
    async fn former_keys_open(&self) -> Result<(), RotationError> {
        let resources: Vec<_> = self.journal.resources.iter().map(|progress| progress.resource.clone()).collect();
        let samples = match &self.settings.etcd {
            Some(etcd) => samples_in_etcd(etcd, &self.settings.etcd_prefix, &resources).await?,
            None => samples_in_lists(self.cluster.entry(), &resources).await?,
        };
        let (mut problems, mut silent) = (Vec::new(), Vec::new());
        let servers = self.cluster.servers().await.unwrap_or_default();
        for server in &servers {
            match unreadable_through(server, &samples).await {
                Ok(found) => problems.extend(found),
                Err(error) => silent.push(error.to_string()),
            }
        }
        // Also where no server is known by its own address: then whichever one the balancer leads to is tried.
        if silent.len() == servers.len() {
            let found = unreadable_through(self.cluster.entry(), &samples).await;
            problems.extend(found.map_err(RotationError::api("try whether what is stored opens"))?);
        }
        if !silent.is_empty() {
            self.note(&format!(
                "whether the former key opens was not tested at every API server: {}",
                silent.join(", ")
            ));
        }
        if problems.is_empty() { Ok(()) } else { Err(RotationError::Blocked(problems)) }
    }

    /// Something to go back to. A command that fails is found out now, and not after hours.
    async fn snapshot_before(&mut self) -> Result<(), RotationError> {
        if let Some(command) = &self.settings.snapshot_command {
            self.journal.snapshot_before = Some(take_snapshot(command).await.map_err(|why| {
                RotationError::Blocked(vec![format!("{why}; fix it, or start over without --snapshot-command")])
            })?);
            self.note("a snapshot of etcd was taken to go back to; another one follows at the end");
        } else if let Some(taken) = self.settings.snapshot_taken {
            let hours = (jiff::Timestamp::now().as_second() - taken.as_second()) / 3600;
            self.note(&format!(
                "the newest snapshot of etcd to go back to is {hours} h old; the verdict needs another one, from after \
                 the rewrite"
            ));
            self.journal.snapshot_before = Some(taken);
        } else {
            self.note(
                "no snapshot of etcd is known. Take one now, to go back to, and one after the rewrite: until then the \
                 verdict is \"not yet\" at best (--snapshot-command takes both)",
            );
        }
        Ok(())
    }

    fn note(&self, text: &str) {
        (self.report)(Event::Note(text));
    }

    /// A server that is away may lack the pending version of a file, and could read nothing that the others store under it
    /// when it comes back.
    pub(super) async fn everybody_answers(&self, config: &KekConfig) -> Result<(), RotationError> {
        if config.versions_on_file().await.is_empty() {
            return Ok(());
        }
        let until = Instant::now() + 2 * LEASE_WATCHED;
        loop {
            let look = look_at_all(&self.cluster, Reports::AsTheyAre, self.settings.accept_unproven).await?;
            let Some(why) = unknown(&config.name, &look) else { return Ok(()) };
            // A Lease that was only just seen may be of a server that is gone, or of one that is there.
            let is_watched = look.doubts.iter().all(|doubt| matches!(doubt, Doubt::Watching { .. }));
            if !is_watched || !look.failures.is_empty() || Instant::now() >= until {
                return Err(RotationError::Blocked(vec![why]));
            }
            (self.report)(Event::Waiting(&why));
            tokio::time::sleep(LOOKS_AGAIN_AFTER).await;
        }
    }

    /// A new version must open on every node before one node writes with it: else the other API servers cannot read
    /// what that one stores.
    async fn keks_are_prepared(&self) -> Result<(), RotationError> {
        let plugin = self.settings.plugin.as_ref().filter(|_| self.settings.rotate_kek);
        for config in plugin.iter().flat_map(|plugin| &plugin.keks).filter(|kek| kek.offline().is_none()) {
            self.everybody_answers(config).await?;
            if self.cluster.servers().await?.len() < 2 {
                continue;
            }
            let failed = |source| RotationError::Kek { name: config.name.clone(), source };
            let rotating = config.open_rotating().await.map_err(failed)?;
            if let Some(missing) = rotating.missing_preparation().await.map_err(failed)? {
                return Err(RotationError::Blocked(vec![missing]));
            }
            if !config.versions_on_file().await.is_empty() {
                self.note(&format!(
                    "KEK {} is a file on each node, and whether the others have the pending version cannot be seen from \
                     here: copy the file to every node first. Where it is missing, adoption is not reached and nothing is \
                     rewritten",
                    config.name
                ));
            }
        }
        Ok(())
    }
}

/// What keeps a version on file from being made active: who is known and was not met, and what to do.
fn unknown(kek: &str, look: &Look) -> Option<String> {
    let who: Vec<String> = look.doubts.iter().map(ToString::to_string).chain(look.failures.iter().cloned()).collect();
    (!who.is_empty()).then(|| {
        format!(
            "KEK {kek} is a file on each node, and no version of it is made active while an API server that is known does \
             not answer: nobody knows whether its file has that version. {}. Start it; once it is gone for good, say with \
             --servers N how many there are",
            who.join("; ")
        )
    })
}

/// Runs the operator's command; when it ended well.
pub(super) async fn take_snapshot(command: &str) -> Result<jiff::Timestamp, String> {
    let mut shell = std::process::Command::new("sh");
    shell.arg("-c").arg(command);
    let status = tokio::task::spawn_blocking(move || shell.status()).await.expect("running a command does not panic");
    match status {
        Ok(status) if status.success() => Ok(jiff::Timestamp::now()),
        Ok(status) => Err(format!("the snapshot command failed: {status}")),
        Err(error) => Err(format!("the snapshot command cannot be run: {error}")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_version_on_file_is_not_made_active_while_a_server_that_is_known_does_not_answer() {
        let look = |doubts: Vec<Doubt>, failures: &[&str]| {
            unknown(
                "k",
                &Look { seen: Vec::new(), doubts, failures: failures.iter().map(ToString::to_string).collect() },
            )
        };
        assert_eq!(look(Vec::new(), &[]), None);
        let away = Doubt::Node { name: "control-plane-2".into() };
        for said in [look(vec![away], &[]).unwrap(), look(Vec::new(), &["no answer from control-plane-2"]).unwrap()] {
            assert!(said.contains("control-plane-2") && said.contains("--servers N"), "{said}");
        }
    }
}
