//! The YAML file → a validated [`Config`]. Every default and every bound stands here.

mod error;
mod file;
mod listen;
mod paths;
mod process;
#[cfg(test)]
mod schema;
mod syntax;

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde_saphyr::Spanned;

pub use self::error::{ConfigError, Problem};
pub use self::file::{DEFAULT_SOCKET, DEFAULT_STATE_DIR};
use self::file::{File, Health};
pub use self::listen::{DEFAULT_LISTEN, HealthAddress, HealthSettings, SocketAddress, SocketSettings};
use self::process::{Audit, HandoverItem, SealedStateItem};
pub use self::process::{AuditSettings, SandboxSettings, SealedStateSettings};
use crate::files::read_text;
use crate::kek::{ClusterName, KekError, Lineage, NotAClusterName};
use crate::key_stores::{Identities, KekConfig, KekItem, Mistake, TakeoverConfig, TakeoverItem};

/// A configuration has a few hundred lines at most.
const MAX_BYTES: u64 = 1 << 20;
/// Of the name of a KEK or an entry: it is in every log line and metric about it.
const MAX_NAME_CHARS: usize = 100;

/// Where the configuration is looked for unless `--config` names another place.
pub const DEFAULT_PATH: &str = "/etc/kube-envelope/config.yaml";

/// What the plugin runs by.
#[derive(Clone, Debug)]
pub struct Config {
    /// The cluster that the plugin serves.
    pub cluster: ClusterName,
    /// Raised on all nodes to force a new generation under unchanged KEKs.
    pub epoch: u64,
    /// The socket that the API server connects to.
    pub socket: SocketSettings,
    /// Where wrapped DEKs are kept; a cache, may be lost.
    pub state_dir: PathBuf,
    /// The KEKs that wrap every DEK.
    pub keks: Vec<KekConfig>,
    /// KEKs that only unwrap what they wrapped earlier.
    pub retired: Vec<KekConfig>,
    /// What opens what other plugins stored under the same provider name.
    pub takeover: Vec<TakeoverConfig>,
    /// KEKs that left for good: DEKs that only they unwrap are not kept any more, and no longer stand in the way of a
    /// configuration without them.
    pub forget: BTreeSet<Lineage>,
    /// How long the cache serves while no KEK can be reached.
    pub max_offline_age: Duration,
    /// How often each KEK is asked for its active version.
    pub refresh_interval: Duration,
    /// How often each KEK is asked to unwrap the active DEK again.
    pub prove_interval: Duration,
    /// Where `/livez`, `/readyz`, `/metrics` and `/status` are served.
    pub health: HealthSettings,
    /// The audit log, where there is one.
    pub audit: Option<AuditSettings>,
    /// What the process gives up after its start.
    pub sandbox: SandboxSettings,
    /// The socket of the process that holds the keys in memory over a restart, where there is one.
    pub handover: Option<PathBuf>,
    /// How the keys outlive a reboot of the node, where they do.
    pub sealed_state: Option<SealedStateSettings>,
    /// Every absolute path that the KEKs' settings name.
    pub files: Vec<PathBuf>,
}

impl Config {
    /// Reads and checks the file.
    ///
    /// # Errors
    /// [`ConfigError`] with file, line, column, field and fix; all wrong values at once.
    pub fn load(file: &Path) -> Result<Self, ConfigError> {
        Self::load_with_text(file).map(|(config, _)| config)
    }

    /// The same, and the text that it was read from.
    ///
    /// # Errors
    /// As for [`Config::load`].
    pub fn load_with_text(file: &Path) -> Result<(Self, String), ConfigError> {
        let text = Self::read(file)?;
        Ok((Self::parse(file, &text)?, text))
    }

    /// The text of the file, as it is now.
    ///
    /// # Errors
    /// [`ConfigError::Read`] where it cannot be read, is not text, or is far too long.
    pub fn read(file: &Path) -> Result<String, ConfigError> {
        read_text(file, MAX_BYTES).map_err(|source| ConfigError::Read { file: file.to_owned(), source })
    }

    /// Checks `text`; `file` is for the messages.
    ///
    /// # Errors
    /// Every mistake of the file at once, each with its place and the fix.
    pub fn parse(file: &Path, text: &str) -> Result<Self, ConfigError> {
        // YAML 1.1 reads `yes`, `no`, `on` and `off` as booleans; here they are words.
        let options = serde_saphyr::options! { strict_booleans: true, with_snippet: false };
        let parsed: File = serde_saphyr::from_str_with_options(text, options)
            .map_err(|error| ConfigError::Syntax { file: file.to_owned(), problem: syntax::describe(text, &error) })?;
        Checker { file, text, problems: Vec::new() }.check(parsed)
    }
}

impl Config {
    /// Whether a KEK runs a vendor's library, which opens files that nobody knows beforehand.
    pub fn hosts_a_library(&self) -> bool {
        let sealing = self.sealed_state.iter().map(|sealed| &sealed.kek);
        self.keks.iter().chain(&self.retired).chain(sealing).any(KekConfig::hosts_a_library)
    }

    /// The programs that are started for credentials.
    pub fn programs(&self) -> BTreeSet<&Path> {
        let of_keks = self.keks.iter().chain(&self.retired).filter_map(KekConfig::program);
        of_keks.chain(self.takeover.iter().filter_map(|entry| entry.plugin().program())).collect()
    }

    /// Gives its break-glass KEKs their private halves: for the day on which no other KEK is left.
    ///
    /// # Errors
    /// When it has none, or another recipient than those in `identities`.
    pub fn unlock(&mut self, identities: &Identities) -> Result<(), KekError> {
        let mut recipients = Vec::new();
        let mut unlocked = false;
        for kek in self.keks.iter_mut().chain(&mut self.retired) {
            let Some(key) = kek.offline() else { continue };
            recipients.push(format!("KEK {} has the recipient {}", kek.name, key.recipient));
            if let Some(own) = kek.unlocked(identities) {
                (*kek, unlocked) = (own, true);
            }
        }
        let problem = match (unlocked, recipients.as_slice()) {
            (true, _) => return Ok(()),
            (false, []) => "the configuration lists no breakGlass KEK: put it under keks or retired".into(),
            (false, recipients) => format!(
                "the wrong private half: {}, and {}; bring that one, or, for data from before it was changed, write the \
                 former recipient into the configuration",
                identities.describe(),
                recipients.join(", ")
            ),
        };
        Err(KekError::misconfigured(problem))
    }
}

struct Checker<'a> {
    file: &'a Path,
    text: &'a str,
    problems: Vec<Problem>,
}

impl Checker<'_> {
    fn check(mut self, file: File) -> Result<Config, ConfigError> {
        let cluster = self.cluster(&file.cluster);
        if file.epoch.value == 0 {
            self.add(&file.epoch, "epoch", "must be 1 or more");
        }
        let socket = self.socket(&file);
        if !file.state_dir.value.is_absolute() {
            self.add(&file.state_dir, "stateDir", "must be an absolute path");
        }
        if file.keks.value.is_empty() {
            self.add(&file.keks, "keks", "lists no KEK; add at least one");
        }
        // One set for all three lists: metrics, logs and `--without` know a KEK or an entry by its name alone.
        let mut names = HashSet::new();
        let kek = |item: KekItem| (item.name.clone(), item.parse());
        let keks = self.items("keks", file.keks.value, &mut names, kek);
        let retired = self.items("retired", file.retired, &mut names, kek);
        let mut taken = BTreeMap::new();
        let takeover = self.items("takeover", file.takeover, &mut names, |item: TakeoverItem| {
            (item.name.clone(), item.parse(&mut taken))
        });
        let forget = self.lineages(&file.forget);
        let max_offline_age = self.duration(&file.max_offline_age, "maxOfflineAge", "0s", "30days");
        let refresh_interval = self.duration(&file.refresh_interval, "refreshInterval", "1s", "1h");
        let prove_interval = self.duration(&file.prove_interval, "proveInterval", "1s", "1day");
        let sealed_state = file.sealed_state.and_then(|item| self.sealed_state(item, &mut names, max_offline_age));
        let health = self.health(file.health, &socket);
        let audit = file.audit.map(|Audit { file, required }| {
            if !file.value.is_absolute() {
                self.add(&file, "audit.file", "must be an absolute path");
            }
            AuditSettings { file: file.value, required }
        });
        let handover = file.handover.map(|HandoverItem { socket }| {
            if !socket.value.is_absolute() {
                self.add(&socket, "handover.socket", "must be an absolute path");
            }
            socket.value
        });
        let (Some(cluster), true) = (cluster, self.problems.is_empty()) else {
            return Err(ConfigError::Invalid(self.problems));
        };
        Ok(Config {
            cluster,
            epoch: file.epoch.value,
            socket,
            state_dir: file.state_dir.value,
            keks,
            retired,
            takeover,
            forget,
            max_offline_age,
            refresh_interval,
            prove_interval,
            health,
            audit,
            sandbox: file.sandbox,
            handover,
            sealed_state,
            files: paths::of_keks(self.text),
        })
    }

    fn add<T>(&mut self, at: &Spanned<T>, field: &str, problem: &str) {
        self.problems.push(Problem {
            file: self.file.to_owned(),
            at: Some((at.referenced.line(), at.referenced.column())),
            field: field.into(),
            problem: problem.into(),
        });
    }

    fn cluster(&mut self, cluster: &Spanned<String>) -> Option<ClusterName> {
        cluster
            .value
            .parse()
            .map_err(|problem: NotAClusterName| self.add(cluster, "cluster", &problem.to_string()))
            .ok()
    }

    fn socket(&mut self, file: &File) -> SocketSettings {
        let allowed_uids = file.allowed_uids.clone().unwrap_or_default();
        let address = SocketAddress::parse(&file.socket.value).unwrap_or_else(|problem| {
            self.add(&file.socket, "socket", &problem);
            // Never seen: with a problem on the list there is no configuration.
            SocketAddress::File(PathBuf::new())
        });
        if matches!(address, SocketAddress::Abstract(_)) && file.allowed_uids.is_none() {
            let problem = "an abstract socket has no mode; list the API server's uid under allowedUids (0 for root)";
            self.add(&file.socket, "socket", problem);
        }
        let default = SocketSettings::default_mode(file.socket_group.as_deref(), &allowed_uids);
        let mode = file.socket_mode.as_ref().map_or(default, |mode| {
            listen::parse_mode(&mode.value).unwrap_or_else(|problem| {
                self.add(mode, "socketMode", &problem);
                default
            })
        });
        SocketSettings { address, mode, group: file.socket_group.clone(), allowed_uids }
    }

    fn health(&mut self, health: Health, socket: &SocketSettings) -> HealthSettings {
        let listen = HealthAddress::parse(&health.listen.value).unwrap_or_else(|problem| {
            self.add(&health.listen, "health.listen", &problem);
            HealthAddress::Off
        });
        if matches!(&listen, HealthAddress::Unix(path) if socket.address.file() == Some(path)) {
            self.add(&health.listen, "health.listen", "is the API server's socket; name another path");
        }
        HealthSettings { listen, hosts: health.hosts }
    }

    /// The items of a list, each of which has a name of its own and may have mistakes of its own.
    fn items<I, T>(
        &mut self,
        list: &str,
        items: Vec<Spanned<I>>,
        names: &mut HashSet<String>,
        mut parse: impl FnMut(I) -> (String, Result<T, Vec<Mistake>>),
    ) -> Vec<T> {
        let items = items.into_iter().enumerate();
        items.filter_map(|(index, item)| self.item(&format!("{list}[{index}]"), item, names, &mut parse)).collect()
    }

    fn item<I, T>(
        &mut self,
        path: &str,
        item: Spanned<I>,
        names: &mut HashSet<String>,
        parse: impl FnOnce(I) -> (String, Result<T, Vec<Mistake>>),
    ) -> Option<T> {
        let at = Spanned { value: (), referenced: item.referenced, defined: item.defined };
        let place = (at.referenced.line(), at.referenced.column());
        let (name, result) = parse(item.value);
        if name.chars().count() > MAX_NAME_CHARS || name.chars().any(char::is_control) {
            let problem = format!("has control characters, or more than {MAX_NAME_CHARS} characters");
            self.add(&at, &format!("{path}.name"), &problem);
        }
        if name.is_empty() || !names.insert(name.clone()) {
            let problem = format!("{name:?} is empty or used twice; give each KEK its own name");
            self.add(&at, &format!("{path}.name"), &problem);
        }
        let mistakes = match result {
            Ok(item) => return Some(item),
            Err(mistakes) => mistakes,
        };
        self.problems.extend(mistakes.into_iter().map(|mistake| Problem {
            file: self.file.to_owned(),
            at: Some(syntax::place_of(self.text, place, &mistake.field)),
            field: if mistake.field.is_empty() { path.to_owned() } else { format!("{path}.{}", mistake.field) },
            problem: mistake.problem,
        }));
        None
    }

    fn sealed_state(
        &mut self,
        item: SealedStateItem,
        names: &mut HashSet<String>,
        max_offline_age: Duration,
    ) -> Option<SealedStateSettings> {
        let parse = |item: KekItem| (item.name.clone(), item.parse_local());
        let kek = self.item("sealedState.kek", item.kek, names, parse);
        let max_age = item.max_age.map_or(max_offline_age, |text| {
            let max_age = self.duration(&text, "sealedState.maxAge", "1s", "30days");
            if max_age > max_offline_age {
                let problem = "is longer than maxOfflineAge, which ends the use of a DEK anyway";
                self.add(&text, "sealedState.maxAge", problem);
            }
            max_age
        });
        Some(SealedStateSettings { kek: kek?, max_age })
    }

    fn lineages(&mut self, texts: &[Spanned<String>]) -> BTreeSet<Lineage> {
        let mut lineages = BTreeSet::new();
        for (index, text) in texts.iter().enumerate() {
            match hex::decode(&text.value).ok().and_then(|bytes| bytes.try_into().ok()) {
                Some(lineage) => {
                    lineages.insert(Lineage(lineage));
                }
                None => self.add(
                    text,
                    &format!("forget[{index}]"),
                    &format!(
                        "{:?} is not a lineage; write the 32 hex digits that `status` and the log show",
                        text.value
                    ),
                ),
            }
        }
        lineages
    }

    fn duration(&mut self, text: &Spanned<String>, field: &str, least: &str, most: &str) -> Duration {
        let bound = |text| humantime::parse_duration(text).expect("a bound of this file is a duration");
        match humantime::parse_duration(&text.value) {
            Ok(value) if value >= bound(least) && value <= bound(most) => value,
            Ok(_) => {
                self.add(text, field, &format!("{:?} is outside {least} to {most}", text.value));
                Duration::ZERO
            }
            Err(error) => {
                self.add(
                    text,
                    field,
                    &format!("{:?} is not a duration ({error}); write for example 30s, 10m or 24h", text.value),
                );
                Duration::ZERO
            }
        }
    }
}
