//! How the API server's Go libraries take the file's text apart: YAML documents, durations, endpoints, resource names.

use std::fmt;
use std::path::{Component, Path, PathBuf};
use std::time::Duration;

/// The first YAML document of `text`: what follows it is ignored.
pub(super) fn first_document(text: &str) -> &str {
    let mut begun = false;
    let mut start = 0;
    let mut at = 0;
    for line in text.split_inclusive('\n') {
        let content = line.trim_end();
        let marks = content == "---" || content.starts_with("--- ");
        if begun && (marks || content == "...") {
            return &text[start..at];
        }
        if marks {
            // The marker belongs to the document that it opens.
            start = at;
            begun = content.len() > 3;
        } else if !content.is_empty() && !content.starts_with(['#', '%']) {
            begun = true;
        }
        at += line.len();
    }
    &text[start..]
}

/// A duration as Go's `time.ParseDuration` reads it: decimal numbers, each with a unit.
pub(super) fn duration(text: &str) -> Option<Duration> {
    let mut rest = text.strip_prefix('+').unwrap_or(text);
    // The one number that needs no unit.
    if rest == "0" {
        return Some(Duration::ZERO);
    }
    let mut total = Duration::ZERO;
    while !rest.is_empty() {
        let number = rest.find(|c: char| !c.is_ascii_digit() && c != '.').filter(|length| *length > 0)?;
        let (value, more) = rest.split_at(number);
        let unit = more.find(|c: char| c.is_ascii_digit() || c == '.').unwrap_or(more.len());
        let (unit, more) = more.split_at(unit);
        let seconds = match unit {
            "ns" => 1e-9,
            // Go takes both letters: the micro sign U+00B5 and the Greek mu U+03BC.
            "us" | "µs" | "μs" => 1e-6,
            "ms" => 1e-3,
            "s" => 1.0,
            "m" => 60.0,
            "h" => 3600.0,
            _ => return None,
        };
        let part = Duration::try_from_secs_f64(value.parse::<f64>().ok()? * seconds).ok()?;
        total = total.checked_add(part)?;
        rest = more;
    }
    (!text.is_empty()).then_some(total)
}

/// Why the API server refuses a name under `resources`.
pub(super) fn resource_problem(name: &str) -> Option<&'static str> {
    let (resource, group) = name.split_once('.').unwrap_or((name, ""));
    if name.is_empty() {
        Some("is empty; name a resource")
    } else if name.chars().any(char::is_uppercase) {
        Some("has capital letters; write it in lower case, as in the API's paths")
    } else if name == "*" {
        Some("is ambiguous; write *. for the core group or *.* for everything")
    } else if matches!(name, "serviceipallocations" | "servicenodeportallocations") {
        Some("has no REST API and cannot be encrypted")
    } else if group == "events.k8s.io" {
        Some("is stored under the core group; write events")
    } else if group == "extensions" {
        Some("is in a group that was removed; name the group that has it now")
    } else if group == "*" && resource != "*" {
        Some("names a resource across groups, which is not supported; name its group")
    } else {
        None
    }
}

/// Where a KMS plugin listens, as the API server understands the text.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Endpoint {
    /// A socket in the file system.
    Path(PathBuf),
    /// A name in the abstract namespace of unix sockets, without its `@`.
    Abstract(String),
}

impl Endpoint {
    /// Reads `unix:///path`, `unix:/path` and `unix:///@name`.
    ///
    /// # Errors
    /// Why the API server refuses it, to be put after the text.
    pub fn parse(text: &str) -> Result<Self, &'static str> {
        let Some(rest) = text.strip_prefix("unix:") else {
            return Err("is not a unix socket; write unix:///path/of/the/socket");
        };
        let path = match rest.strip_prefix("//") {
            // What stands before the first slash is a host to a URL, and is dropped.
            Some(with_host) => with_host.find('/').map_or("", |slash| &with_host[slash..]),
            None => rest,
        };
        match path.strip_prefix("/@") {
            Some(name) => Ok(Self::Abstract(name.to_owned())),
            None if path.starts_with('/') => Ok(Self::Path(path.into())),
            None => Err("has no path; write unix:///path/of/the/socket, with three slashes"),
        }
    }

    /// Whether both lead to one socket.
    pub fn is_same(&self, other: &Self) -> bool {
        match other {
            Self::Path(path) => self.leads_to(path),
            Self::Abstract(name) => matches!(self, Self::Abstract(own) if own == name),
        }
    }

    /// Whether a path is meant, and it is this one: without double slashes, and with `/var/run` for `/run`, which it
    /// links to.
    pub fn leads_to(&self, path: &Path) -> bool {
        match self {
            Self::Path(own) => plain(own) == plain(path),
            Self::Abstract(_) => false,
        }
    }
}

impl fmt::Display for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Path(path) => write!(f, "unix://{}", path.display()),
            Self::Abstract(name) => write!(f, "unix:///@{name}"),
        }
    }
}

fn plain(path: &Path) -> PathBuf {
    let path: PathBuf = path.components().filter(|part| *part != Component::CurDir).collect();
    match path.strip_prefix("/var/run") {
        Ok(rest) => Path::new("/run").join(rest),
        Err(_) => path,
    }
}
