//! `verify --watch`: follows etcd until it is stopped.

mod metrics;

use std::sync::Mutex;

use anyhow::Result;
use serde_json::json;

use self::metrics::Metrics;
use crate::cli::OutputFormat;
use crate::cli::rotation::VerifyArgs;
use crate::commands::closed_pipe::{eprintln, println};
use crate::commands::exit::{Exit, block_on};
use crate::commands::plugin_config::plugin_config;
use crate::commands::rotate_keys::intent::etcd_prefix;
use crate::commands::rotate_keys::interrupted;
use crate::commands::rotation_access::{access, etcd_of};
use crate::etcd::Stored;
use crate::rotation::error::RotationError;
use crate::rotation::keys::active::names;
use crate::rotation::keys::name::{KeyName, KeyNames};
use crate::rotation::watch::{OldKeyWrite, Settings, Told, View, Watch};

/// Runs the command until a signal ends it.
///
/// # Errors
/// When the API servers or etcd cannot be asked at the beginning.
pub(super) fn run(args: &VerifyArgs) -> Result<Exit> {
    let plugin = plugin_config(args.cluster.config.as_deref())?;
    let names = plugin.as_ref().map(names).unwrap_or_default();
    block_on(async {
        match Box::pin(follow(args, names)).await {
            Err(error @ RotationError::Unusable(_)) => {
                eprintln!("error: {error}");
                Ok(Exit::Usage)
            }
            ended => Ok(ended?),
        }
    })
}

async fn follow(args: &VerifyArgs, names: KeyNames) -> Result<Exit, RotationError> {
    let cluster = &args.cluster;
    let etcd = etcd_of(&cluster.etcd)?.ok_or_else(|| RotationError::Unusable("--watch needs --etcd".into()))?;
    let metrics = args.metrics_file.clone().map(Metrics::begin);
    let settings = Settings {
        access: access(cluster),
        encryption_config: cluster.encryption_config.clone(),
        key_id: cluster.key_id.clone(),
        etcd,
        prefix: etcd_prefix(cluster),
        interval: args.interval,
        followed: metrics.as_ref().map(Metrics::followed).unwrap_or_default(),
    };
    let screen = Screen { json: cluster.output == OutputFormat::Json, names, metrics, said: Mutex::default() };
    let tell = |told: Told<'_>| screen.tell(&told);
    let mut watch = Watch::begin(settings, &tell).await?;
    tokio::select! {
        ended = watch.run() => match ended? {},
        () = interrupted() => {}
    }
    let view = watch.view();
    screen.tell(&Told::View(&view));
    // A search with all its proofs is what `verify` alone does, so this is never a Yes.
    Ok(if view.leftovers() > 0 { Exit::Leftovers } else { Exit::NotProven })
}

/// Where everything is told.
struct Screen {
    json: bool,
    names: KeyNames,
    metrics: Option<Metrics>,
    /// How many values, of them leftovers, were said last.
    said: Mutex<Option<(u64, bool)>>,
}

impl Screen {
    fn tell(&self, told: &Told<'_>) {
        match told {
            Told::View(view) => self.show(view),
            Told::OldKey(write) => self.old_key(write),
            Told::Note(text) => eprintln!("note: {text}"),
        }
    }

    /// Prints a line at the beginning, after each new count, and when leftovers appear or disappear.
    fn show(&self, view: &View) {
        if let Some(metrics) = &self.metrics {
            metrics.show(view, &self.names);
        }
        let (left, all) = (view.leftovers(), view.counted.iter().map(|one| one.values).sum::<u64>());
        let now = Some((view.censuses, left > 0));
        let before = std::mem::replace(&mut *self.said.lock().expect("nothing panics while it is held"), now);
        if view.censuses == 0 || before == now {
            return;
        }
        if self.json {
            println!("{}", json!({"at": jiff::Timestamp::now(), "values": all, "leftovers": left}));
        } else {
            println!("{}: {all} value(s) in etcd, {left} of them under a former key", now_in_seconds());
        }
    }

    fn old_key(&self, write: &OldKeyWrite) {
        if let Some(metrics) = &self.metrics {
            metrics.old_key(write, &self.names);
        }
        if !write.first {
            return;
        }
        let key = self.names.show_all(&KeyName::of(&write.stored));
        let key_id = match &write.stored {
            Stored::KmsV2 { key_id, .. } => Some(key_id),
            Stored::Otherwise(_) | Stored::Plain => None,
        };
        let OldKeyWrite { resource, key: at, revision, writes, .. } = write;
        if self.json {
            let told = json!({"resource": resource, "etcdKey": at, "key": key, "keyId": key_id, "revision": revision,
                "writes": writes});
            println!("{}", json!({"at": jiff::Timestamp::now(), "storedUnderFormerKey": told}));
        } else {
            let more = if *writes > 1 { format!(", and {} more", writes - 1) } else { String::new() };
            let key_id = key_id.map(|key_id| format!(" (key_id {key_id})")).unwrap_or_default();
            let now = now_in_seconds();
            println!("{now}: {at} was stored under a former key at revision {revision}: {key}{key_id}{more}");
        }
    }
}

fn now_in_seconds() -> String {
    jiff::Timestamp::now().strftime("%Y-%m-%dT%H:%M:%SZ").to_string()
}
