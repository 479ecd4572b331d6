//! From the flags that were given to the [`Intent`] of a rotation, and from there to its settings.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::Result;
use serde::Serialize;
use serde_json::{Map, Value, json};

use crate::cli::rotation::{ClusterArgs, RotateKeysArgs};
use crate::commands::opening::{LiveRehearsal, prefix};
use crate::commands::plugin_config::on_this_node;
use crate::commands::rotation_access::etcd_access;
use crate::config::{Config, DEFAULT_PATH};
use crate::etcd::EtcdAccess;
use crate::rotation::cluster::Access;
use crate::rotation::error::RotationError;
use crate::rotation::journal::intent::{Intent, Method};
use crate::rotation::leftovers::snapshots::checked;
use crate::rotation::rewrap::Rehearsal;
use crate::rotation::run::Settings;

/// The API servers' prefix in etcd.
pub fn etcd_prefix(args: &ClusterArgs) -> String {
    args.etcd_prefix.clone().unwrap_or(defaults().etcd_prefix)
}

/// What a rotation begins with where no flag says otherwise. The settle time is twice the interval at which API
/// servers compact etcd unless told otherwise.
pub fn defaults() -> Intent {
    Intent {
        etcd_prefix: "/registry".into(),
        settle: "10m".into(),
        adoption_timeout: "20m".into(),
        agreement_interval: "30s".into(),
        request_timeout: "1m".into(),
        max_concurrency: 64,
        ..Intent::default()
    }
}

/// The flags that were given, by name.
///
/// # Errors
/// When a relative path cannot be made absolute.
pub fn given(args: &RotateKeysArgs) -> Result<Map<String, Value>> {
    let cluster = &args.cluster;
    let mut given = Given(Map::new());
    given.flag("rotate-kek", args.rotate_kek);
    given.flag("include-events", args.include_events);
    given.flag("accept-unproven", args.accept_unproven);
    given.flag("compact", args.compact);
    given.list("former", &args.former);
    given.list("skip", &args.skip);
    given.list("allow-changes", &args.allow_changes);
    given.list("server", &cluster.servers);
    given.list("etcd", &cluster.etcd.endpoints);
    given.file("config", cluster.config.as_deref())?;
    given.file("kubeconfig", cluster.kubeconfig.as_deref())?;
    given.file("server-ca", cluster.server_ca.as_deref())?;
    given.file("encryption-config", cluster.encryption_config.as_deref())?;
    given.file("etcd-ca", cluster.etcd.ca.as_deref())?;
    given.file("etcd-cert", cluster.etcd.certificate.as_deref())?;
    given.file("etcd-key", cluster.etcd.key.as_deref())?;
    given.files("snapshot-file", &args.snapshot_file)?;
    given.files("backup", &args.backup)?;
    given.value("context", cluster.context.as_ref());
    given.value("key-id", cluster.key_id.as_ref());
    given.value("etcd-prefix", cluster.etcd_prefix.as_ref());
    given.value("qps", cluster.qps.as_ref());
    given.value("max-concurrency", cluster.max_concurrency.as_ref());
    given.value("shards", args.shards.as_ref());
    given.value("method", args.method.as_ref());
    given.value("snapshot-command", args.snapshot_command.as_ref());
    given.value("servers", cluster.server_count.as_ref());
    given.duration("settle", args.settle);
    given.duration("request-timeout", args.request_timeout);
    given.duration("adoption-timeout", args.adoption_timeout);
    given.duration("agreement-interval", args.agreement_interval);
    Ok(given.0)
}

struct Given(Map<String, Value>);

impl Given {
    fn flag(&mut self, name: &str, set: bool) {
        // A flag that is not given is left out, so that resuming without it changes nothing.
        self.value(name, set.then_some(&true));
    }

    fn list(&mut self, name: &str, items: &[String]) {
        self.value(name, (!items.is_empty()).then_some(items));
    }

    fn file(&mut self, name: &str, file: Option<&Path>) -> Result<()> {
        // `--resume` may be run in another folder.
        let file = file.map(std::path::absolute).transpose()?;
        self.value(name, file.as_ref());
        Ok(())
    }

    fn files(&mut self, name: &str, files: &[PathBuf]) -> Result<()> {
        let files = files.iter().map(std::path::absolute).collect::<std::io::Result<Vec<_>>>()?;
        self.value(name, (!files.is_empty()).then_some(&files));
        Ok(())
    }

    fn duration(&mut self, name: &str, duration: Option<Duration>) {
        self.value(name, duration.map(|duration| humantime::format_duration(duration).to_string()).as_ref());
    }

    fn value<T: Serialize + ?Sized>(&mut self, name: &str, value: Option<&T>) {
        if let Some(value) = value {
            self.0.insert(name.into(), json!(value));
        }
    }
}

/// The intent of a rotation that begins with these flags. On a control-plane node the plugin's configuration lies in
/// its usual place and need not be named.
///
/// # Errors
/// When a file that decides what is done cannot be read.
pub fn begin(args: &RotateKeysArgs) -> Result<Intent> {
    // Named here, and not looked for at each start: the journal then says which file it was, and a resumed run refuses
    // another content.
    let mut defaults = defaults();
    if args.rotate_kek || on_this_node().is_some() {
        defaults.config = Some(DEFAULT_PATH.into());
    }
    Ok(Intent::begin(&defaults, &given(args)?)?)
}

/// What a rotation runs with.
///
/// # Errors
/// When the plugin's configuration is wrong, or etcd's settings cannot work together.
pub fn settings(intent: &Intent, args: &RotateKeysArgs) -> Result<Settings> {
    let access = Access {
        kubeconfig: intent.kubeconfig.clone(),
        context: intent.context.clone(),
        servers: intent.server.clone(),
        server_count: intent.servers.map(usize::from),
        server_ca: intent.server_ca.clone(),
    };
    Ok(Settings {
        access,
        encryption_config: intent.encryption_config.clone(),
        etcd: etcd(intent)?,
        etcd_prefix: intent.etcd_prefix.clone(),
        plugin: intent.config.as_deref().map(Config::load).transpose()?,
        // A file in its usual place may belong to a plugin that these API servers do not use; one that was named may not.
        plugin_named: intent.config.as_deref().is_some_and(|file| file != Path::new(DEFAULT_PATH)) || intent.rotate_kek,
        rotate_kek: intent.rotate_kek,
        former: intent.former.clone(),
        key_id: intent.key_id.clone(),
        journal: args.journal.clone(),
        include_events: intent.include_events,
        accept_unproven: intent.accept_unproven,
        rate: intent.qps,
        concurrency: intent.max_concurrency.into(),
        shards: intent.shards.map(|shards| shards as usize),
        settle: duration(&intent.settle)?,
        adoption_timeout: duration(&intent.adoption_timeout)?,
        request_timeout: duration(&intent.request_timeout)?,
        agreement_interval: duration(&intent.agreement_interval)?,
        compact: intent.compact,
        skip: intent.skip.clone(),
        allow_changes: intent.allow_changes.clone(),
        snapshot_files: intent.snapshot_file.clone(),
        backups: intent.backup.clone(),
        snapshot_taken: args.snapshot_taken.map(checked).transpose()?,
        snapshot_command: intent.snapshot_command.clone(),
        method: intent.method,
        rehearsal: rehearsal(intent)?,
    })
}

/// What is tried before a verdict about values that were stored past the API servers.
fn rehearsal(intent: &Intent) -> Result<Option<Arc<dyn Rehearsal>>, RotationError> {
    let (Method::Rewrap, Some(file), Some(etcd)) = (intent.method, intent.encryption_config.clone(), etcd(intent)?)
    else {
        return Ok(None);
    };
    Ok(Some(Arc::new(LiveRehearsal { etcd, prefix: prefix(&intent.etcd_prefix), encryption_config: file })))
}

fn etcd(intent: &Intent) -> Result<Option<EtcdAccess>, RotationError> {
    let Intent { etcd, etcd_ca, etcd_cert, etcd_key, .. } = intent;
    etcd_access(etcd, etcd_ca.as_deref(), etcd_cert.as_deref(), etcd_key.as_deref())
}

/// A duration as the journal holds it.
///
/// # Errors
/// When somebody edited the journal.
pub fn duration(text: &str) -> Result<Duration, RotationError> {
    humantime::parse_duration(text)
        .map_err(|error| RotationError::Unusable(format!("{text:?} in the journal is not a duration: {error}")))
}
