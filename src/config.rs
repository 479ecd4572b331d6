//! The YAML file → a validated [`Config`]. Every default and every bound stands here.

mod syntax;

use std::collections::HashSet;
use std::fmt;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::Deserialize;
use serde_saphyr::Spanned;

use crate::key_stores::{KekConfig, KekItem};

/// Where the configuration is looked for unless `--config` names another place.
pub const DEFAULT_PATH: &str = "/etc/kube-envelope/config.yaml";

/// Default of [`Config::socket`].
pub const DEFAULT_SOCKET: &str = "/run/kube-envelope/kms.sock";

/// Default of [`Config::state_dir`].
pub const DEFAULT_STATE_DIR: &str = "/var/lib/kube-envelope";

/// Default of [`Config::health_listen`].
pub const DEFAULT_LISTEN: &str = "127.0.0.1:8380";

/// The longest path of a unix socket in bytes: `sun_path` of unix(7), less its closing zero.
const MAX_SOCKET_PATH_BYTES: usize = 107;
const MAX_CLUSTER_BYTES: usize = 63;

/// What the plugin runs by.
#[derive(Clone, Debug)]
pub struct Config {
    /// Name of the cluster; bound into every ciphertext, so that one cluster's data open in no other.
    pub cluster: String,
    /// Raised on all nodes to force a new generation under unchanged KEKs.
    pub epoch: u64,
    /// The socket that the API server connects to.
    pub socket: PathBuf,
    /// Uids that may connect besides the plugin's own and root.
    pub allowed_uids: Vec<u32>,
    /// Where wrapped DEKs are kept; a cache, may be lost.
    pub state_dir: PathBuf,
    /// The KEKs that wrap every DEK.
    pub keks: Vec<KekConfig>,
    /// KEKs that only unwrap what they wrapped earlier.
    pub retired: Vec<KekConfig>,
    /// How long the cache serves while no KEK can be reached.
    pub max_offline_age: Duration,
    /// How often each KEK is asked for its active version.
    pub refresh_interval: Duration,
    /// How often each KEK is asked to unwrap the active DEK again.
    pub prove_interval: Duration,
    /// Where `/livez`, `/readyz`, `/metrics` and `/status` are served.
    pub health_listen: SocketAddr,
}

/// What is wrong with a configuration, where, and how it is put right.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file cannot be read.
    #[error("cannot read configuration {}; name another one with --config", .file.display())]
    Read {
        /// The file.
        file: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// The file is not the YAML that is expected.
    #[error("{}:{problem}", .file.display())]
    Syntax {
        /// The file.
        file: PathBuf,
        /// Line, column, field and fix.
        problem: String,
    },
    /// Values that cannot work, one line each.
    #[error("{}", .0.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n"))]
    Invalid(Vec<Problem>),
}

/// One value that cannot work.
#[derive(Debug, PartialEq, Eq)]
pub struct Problem {
    /// The file.
    pub file: PathBuf,
    /// Line and column of the value, from 1; none where the whole file is meant.
    pub at: Option<(u64, u64)>,
    /// The field, as a path.
    pub field: String,
    /// What is wrong, and the fix.
    pub problem: String,
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { file, at, field, problem } = self;
        let place = at.map(|(line, column)| format!(":{line}:{column}")).unwrap_or_default();
        write!(f, "{}{place}: {field}: {problem}", file.display())
    }
}

/// The file as written. A field that is looked at again carries its place.
#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
struct File {
    cluster: Spanned<String>,
    #[serde(default = "default_epoch")]
    epoch: Spanned<u64>,
    #[serde(default = "default_socket")]
    socket: Spanned<PathBuf>,
    #[serde(default)]
    allowed_uids: Vec<u32>,
    #[serde(default = "default_state_dir")]
    state_dir: Spanned<PathBuf>,
    keks: Spanned<Vec<Spanned<KekItem>>>,
    #[serde(default)]
    retired: Vec<Spanned<KekItem>>,
    #[serde(default = "default_max_offline_age")]
    max_offline_age: Spanned<String>,
    #[serde(default = "default_refresh_interval")]
    refresh_interval: Spanned<String>,
    #[serde(default = "default_prove_interval")]
    prove_interval: Spanned<String>,
    #[serde(default)]
    health: Health,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Health {
    listen: Spanned<String>,
}

impl Default for Health {
    fn default() -> Self {
        Self { listen: unplaced(DEFAULT_LISTEN.into()) }
    }
}

fn default_epoch() -> Spanned<u64> {
    unplaced(1)
}
fn default_socket() -> Spanned<PathBuf> {
    unplaced(DEFAULT_SOCKET.into())
}
fn default_state_dir() -> Spanned<PathBuf> {
    unplaced(DEFAULT_STATE_DIR.into())
}
fn default_max_offline_age() -> Spanned<String> {
    unplaced("24h".into())
}
fn default_refresh_interval() -> Spanned<String> {
    unplaced("60s".into())
}
fn default_prove_interval() -> Spanned<String> {
    unplaced("10m".into())
}
fn unplaced<T>(value: T) -> Spanned<T> {
    Spanned { value, referenced: serde_saphyr::Location::UNKNOWN, defined: serde_saphyr::Location::UNKNOWN }
}

impl Config {
    /// Reads and checks the file.
    ///
    /// # Errors
    /// [`ConfigError`] with file, line, column, field and fix; all wrong values at once.
    pub fn load(file: &Path) -> Result<Self, ConfigError> {
        let text =
            std::fs::read_to_string(file).map_err(|source| ConfigError::Read { file: file.to_owned(), source })?;
        Self::parse(file, &text)
    }

    /// Checks `text`; `file` is for the messages.
    pub fn parse(file: &Path, text: &str) -> Result<Self, ConfigError> {
        let options = serde_saphyr::options! { strict_booleans: true, with_snippet: false };
        let parsed: File = serde_saphyr::from_str_with_options(text, options)
            .map_err(|error| ConfigError::Syntax { file: file.to_owned(), problem: syntax::describe(text, &error) })?;
        Checker { file, text, problems: Vec::new() }.check(parsed)
    }
}

struct Checker<'a> {
    file: &'a Path,
    text: &'a str,
    problems: Vec<Problem>,
}

impl Checker<'_> {
    fn check(mut self, file: File) -> Result<Config, ConfigError> {
        self.cluster(&file.cluster);
        if file.epoch.value == 0 {
            self.add(&file.epoch, "epoch", "must be 1 or more");
        }
        self.socket(&file.socket);
        if !file.state_dir.value.is_absolute() {
            self.add(&file.state_dir, "stateDir", "must be an absolute path");
        }
        if file.keks.value.is_empty() {
            self.add(&file.keks, "keks", "lists no KEK; add at least one");
        }
        let mut names = HashSet::new();
        let keks = self.keks("keks", file.keks.value, &mut names);
        let retired = self.keks("retired", file.retired, &mut names);
        let max_offline_age = self.duration(&file.max_offline_age, "maxOfflineAge", "0s", "30days");
        let refresh_interval = self.duration(&file.refresh_interval, "refreshInterval", "1s", "1h");
        let prove_interval = self.duration(&file.prove_interval, "proveInterval", "1s", "1day");
        let listen = &file.health.listen;
        let health_listen = listen.value.parse().unwrap_or_else(|_| {
            self.add(
                listen,
                "health.listen",
                &format!("{:?} is not an address and port; write for example {DEFAULT_LISTEN}", listen.value),
            );
            ([127, 0, 0, 1], 0).into()
        });
        if !self.problems.is_empty() {
            return Err(ConfigError::Invalid(self.problems));
        }
        Ok(Config {
            cluster: file.cluster.value,
            epoch: file.epoch.value,
            socket: file.socket.value,
            allowed_uids: file.allowed_uids,
            state_dir: file.state_dir.value,
            keks,
            retired,
            max_offline_age,
            refresh_interval,
            prove_interval,
            health_listen,
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

    fn cluster(&mut self, cluster: &Spanned<String>) {
        let name = &cluster.value;
        let fits = !name.is_empty()
            && name.len() <= MAX_CLUSTER_BYTES
            && name.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '-' | '.' | '_'));
        if !fits {
            self.add(
                cluster,
                "cluster",
                "must be 1 to 63 letters, digits, '-', '.' or '_'; it is bound into every ciphertext",
            );
        }
    }

    fn socket(&mut self, socket: &Spanned<PathBuf>) {
        let length = socket.value.as_os_str().len();
        if length > MAX_SOCKET_PATH_BYTES {
            self.add(
                socket,
                "socket",
                &format!(
                    "is {length} bytes long, and unix sockets allow {MAX_SOCKET_PATH_BYTES}; choose a shorter path"
                ),
            );
        } else if !socket.value.is_absolute() {
            self.add(socket, "socket", "must be an absolute path: the API server's endpoint names it");
        }
    }

    fn keks(&mut self, list: &str, items: Vec<Spanned<KekItem>>, names: &mut HashSet<String>) -> Vec<KekConfig> {
        let mut keks = Vec::new();
        for (index, item) in items.into_iter().enumerate() {
            let place = (item.referenced.line(), item.referenced.column());
            let path = format!("{list}[{index}]");
            let name = &item.value.name;
            if name.is_empty() || !names.insert(name.clone()) {
                let problem = format!("{name:?} is empty or used twice; give each KEK its own name");
                self.add(&item, &format!("{path}.name"), &problem);
            }
            match item.value.parse() {
                Ok(kek) => keks.push(kek),
                Err(mistakes) => self.problems.extend(mistakes.into_iter().map(|mistake| Problem {
                    file: self.file.to_owned(),
                    at: Some(syntax::place_of(self.text, place, &mistake.field)),
                    field: if mistake.field.is_empty() { path.clone() } else { format!("{path}.{}", mistake.field) },
                    problem: mistake.problem,
                })),
            }
        }
        keks
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
