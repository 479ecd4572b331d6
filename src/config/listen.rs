//! Where the plugin listens: the socket of the API server with who may use it, and the health endpoints.

use std::fmt;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};

/// The longest path of a unix socket in bytes: `sun_path` of unix(7), less its closing zero. An abstract name has as
/// many, after its leading zero.
const MAX_SOCKET_NAME_BYTES: usize = 107;

/// Default of [`Config::health`](super::Config::health).
pub const DEFAULT_LISTEN: &str = "127.0.0.1:8380";

const OWNER: u32 = 0o600;
const OWNER_AND_GROUP: u32 = 0o660;
const EVERYBODY: u32 = 0o666;

/// The API server's socket.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SocketSettings {
    /// Where it is.
    pub address: SocketAddress,
    /// Mode of its file: what the kernel checks before the plugin checks the peer's uid.
    pub mode: u32,
    /// Group of its file, by name or number.
    pub group: Option<String>,
    /// Uids that may connect besides the plugin's own and root.
    pub allowed_uids: Vec<u32>,
}

impl SocketSettings {
    /// The mode, where the configuration names none: no wider than `socketGroup` and `allowedUids` need. With
    /// `allowedUids` alone the kernel lets everybody connect, and the uid of the peer decides.
    pub(super) fn default_mode(group: Option<&str>, allowed_uids: &[u32]) -> u32 {
        match group {
            Some(_) => OWNER_AND_GROUP,
            // A mode has room for one user and one group. The plugin asks the kernel for each peer's uid instead.
            None if allowed_uids.iter().any(|uid| *uid != 0) => EVERYBODY,
            None => OWNER,
        }
    }
}

/// Where a unix socket is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SocketAddress {
    /// A path in the file system; absolute.
    File(PathBuf),
    /// A name in the network namespace, without a file: `unix:///@name` in an EncryptionConfiguration.
    Abstract(String),
}

impl SocketAddress {
    /// Reads `/path`, or `unix:///@name` (`@name` for short) for an abstract socket.
    ///
    /// # Errors
    /// What is wrong, and the fix.
    pub(super) fn parse(text: &str) -> Result<Self, String> {
        if let Some(name) = text.strip_prefix("unix:///@").or_else(|| text.strip_prefix('@')) {
            if name.is_empty() {
                return Err("names no abstract socket; write unix:///@name".into());
            }
            return fits(name).map(|()| Self::Abstract(name.to_owned()));
        }
        if text.starts_with("/@") {
            return Err(format!("an API server takes {text} for an abstract socket; write unix://{text} for one"));
        }
        file(text).map(Self::File)
    }

    /// The file, where it has one.
    pub fn file(&self) -> Option<&Path> {
        match self {
            Self::File(file) => Some(file),
            Self::Abstract(_) => None,
        }
    }

    /// What the API server's EncryptionConfiguration calls it.
    pub fn endpoint(&self) -> String {
        match self {
            Self::File(file) => format!("unix://{}", file.display()),
            Self::Abstract(name) => format!("unix:///@{name}"),
        }
    }
}

impl fmt::Display for SocketAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::File(file) => write!(f, "{}", file.display()),
            Self::Abstract(_) => f.write_str(&self.endpoint()),
        }
    }
}

/// The health endpoints.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HealthSettings {
    /// Where they are.
    pub listen: HealthAddress,
    /// Names by which they may be asked, besides addresses and `localhost`.
    pub hosts: Vec<String>,
}

/// Where the health endpoints listen.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum HealthAddress {
    /// No listener: neither health, metrics nor status can be asked for.
    Off,
    /// On a TCP port.
    Tcp(SocketAddr),
    /// On a unix socket, for the plugin's uid and root.
    Unix(PathBuf),
}

impl Default for HealthAddress {
    fn default() -> Self {
        Self::parse(DEFAULT_LISTEN).unwrap_or(Self::Off)
    }
}

impl HealthAddress {
    /// Reads `127.0.0.1:8380`, `unix:///path` or `off`.
    ///
    /// # Errors
    /// What is wrong, and the fix.
    pub(super) fn parse(text: &str) -> Result<Self, String> {
        if text == "off" {
            return Ok(Self::Off);
        }
        if let Some(path) = text.strip_prefix("unix://") {
            if path.starts_with("/@") {
                return Err("an abstract socket is open to everybody; name a file".into());
            }
            return file(path).map(Self::Unix);
        }
        text.parse().map(Self::Tcp).map_err(|_| {
            format!(
                "{text:?} is not an address and port; write for example {DEFAULT_LISTEN}, unix:///run/kube-envelope/health.sock or off",
            )
        })
    }
}

impl fmt::Display for HealthAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Off => f.write_str("off"),
            Self::Tcp(address) => write!(f, "{address}"),
            Self::Unix(path) => write!(f, "unix://{}", path.display()),
        }
    }
}

/// Reads an octal mode such as `0660`, quoted or not.
///
/// # Errors
/// What is wrong, and the fix.
pub(super) fn parse_mode(text: &str) -> Result<u32, String> {
    let digits = text.strip_prefix("0o").unwrap_or(text);
    match u32::from_str_radix(digits, 8) {
        // No bits of execution or setuid: they mean nothing for a socket, and would be a slip.
        Ok(mode) if mode & !EVERYBODY == 0 && mode & OWNER == OWNER => Ok(mode),
        _ => Err(format!("{text:?} is not a socket's mode; write \"0600\", \"0660\" or \"0666\"")),
    }
}

fn file(text: &str) -> Result<PathBuf, String> {
    if let Some(rest) = text.strip_prefix("unix://") {
        return Err(format!("is a path, and not a URL; write {rest}"));
    }
    fits(text)?;
    let path = PathBuf::from(text);
    if path.is_absolute() {
        Ok(path)
    } else {
        Err("must be an absolute path: the API server's endpoint names it".into())
    }
}

fn fits(name: &str) -> Result<(), String> {
    match name.len() {
        length if length > MAX_SOCKET_NAME_BYTES => Err(format!(
            "is {length} bytes long, and unix sockets allow {MAX_SOCKET_NAME_BYTES}; choose a shorter path"
        )),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_reads_back_as_the_endpoint_that_an_api_server_is_given() {
        for (text, endpoint) in [("/run/kms.sock", "unix:///run/kms.sock"), ("unix:///@kms.sock", "unix:///@kms.sock")]
        {
            assert_eq!(SocketAddress::parse(text).unwrap().endpoint(), endpoint);
        }
        for (text, fix) in [
            ("run/kms.sock", "absolute"),
            ("unix:///run/kms.sock", "write /run/kms.sock"),
            ("/@kms.sock", "write unix:///@kms.sock"),
            ("unix:///@", "names no abstract socket"),
        ] {
            let problem = SocketAddress::parse(text).unwrap_err();
            assert!(problem.contains(fix), "{text}: {problem}");
        }
        assert!(SocketAddress::parse(&format!("unix:///@{}", "a".repeat(107))).is_ok());
        assert!(SocketAddress::parse(&format!("unix:///@{}", "a".repeat(108))).is_err());
    }

    #[test]
    fn the_default_mode_lets_in_no_more_than_the_settings_need() {
        let mode = SocketSettings::default_mode;
        assert_eq!(mode(None, &[]), 0o600);
        assert_eq!(mode(None, &[0]), 0o600, "root needs no mode");
        assert_eq!(mode(None, &[65534]), 0o666);
        assert_eq!(mode(Some("kube"), &[65534]), 0o660);
    }

    #[test]
    fn a_mode_is_octal_and_leaves_the_owner_in() {
        assert_eq!(["0600", "660", "0o666"].map(|text| parse_mode(text).ok()), [Some(0o600), Some(0o660), Some(0o666)]);
        for wrong in ["", "0777", "0060", "rw", "-1", "8", "1660"] {
            assert!(parse_mode(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn health_listens_on_a_port_a_file_or_nowhere() {
        for text in ["127.0.0.1:8380", "[::1]:8380", "unix:///run/h.sock", "off"] {
            assert_eq!(HealthAddress::parse(text).unwrap().to_string(), text);
        }
        for wrong in ["localhost:8380", "unix:///@h", "unix://h.sock", "false"] {
            assert!(HealthAddress::parse(wrong).is_err(), "{wrong}");
        }
    }
}
