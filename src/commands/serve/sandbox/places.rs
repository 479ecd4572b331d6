//! The places in the file system that a running plugin uses.

use std::path::{Path, PathBuf};

use crate::config::{Config, HealthAddress};
use crate::key_stores::ENVIRONMENT;

/// What name resolution, TLS and the C library read, whole: a single file would be lost when it is replaced.
const SYSTEM: &[&str] = &[
    "/etc",
    "/usr",
    "/lib",
    "/lib64",
    "/proc",
    "/sys",
    "/run/systemd/resolve",
    "/run/resolvconf",
    "/run/NetworkManager",
    "/dev/random",
    "/dev/urandom",
];

/// What a program needs to be run, whatever its language: loader, libraries, interpreters.
const RUNTIME: &[&str] = &["/usr", "/lib", "/lib64", "/bin"];

/// Devices that anything may be written to.
const DEVICES: &[&str] = &["/dev/null"];

/// Where SDKs look for credentials, below the home folder.
const IN_HOME: &[&str] = &[".aws", ".azure", ".config/gcloud"];

/// The longest credential file that is searched for the names of further files.
const MAX_SEARCHED_BYTES: u64 = 64 * 1024;

/// Files and folders, all of which exist.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Places {
    /// To be read only.
    pub read: Vec<PathBuf>,
    /// Read and written.
    pub write: Vec<PathBuf>,
    /// Read and run.
    pub run: Vec<PathBuf>,
}

impl Places {
    /// The places that `config` and the environment name.
    pub fn of(config: &Config) -> Self {
        let mut places = Self::default();
        for place in SYSTEM {
            places.add_read(Path::new(place));
        }
        for file in config.files.iter().chain(&config.sandbox.read_paths).chain(&from_environment()) {
            places.add_file(file);
        }
        let folder_of = |path: &Path| path.parent().map(Path::to_owned);
        let audit = config.audit.as_ref().and_then(|audit| folder_of(&audit.file));
        let health = match &config.health.listen {
            HealthAddress::Unix(path) => folder_of(path),
            HealthAddress::Off | HealthAddress::Tcp(_) => None,
        };
        let socket = config.socket.address.file().and_then(folder_of);
        let written = [Some(config.state_dir.clone()), socket, health, audit].into_iter().flatten();
        let programs = config.programs();
        if !programs.is_empty() {
            let needed = RUNTIME.iter().map(Path::new).chain(programs);
            places.run = needed.filter(|place| place.exists()).map(Path::to_owned).collect();
        }
        places.write = written.chain(DEVICES.iter().map(PathBuf::from)).filter(|place| place.exists()).collect();
        places
    }

    /// The folder of a file and not the file: one that is put in its place must be readable, too. Where links lead, as
    /// well; and of a folder that does not exist yet, the one it will be made in.
    fn add_file(&mut self, file: &Path) {
        let real = file.canonicalize().ok();
        for file in real.as_deref().into_iter().chain([file]) {
            if file.is_dir() {
                self.add_read(file);
                continue;
            }
            // Never all files for the sake of one.
            let folder =
                file.ancestors().skip(1).find(|folder| folder.is_dir()).filter(|folder| *folder != Path::new("/"));
            self.add_read(folder.unwrap_or(file));
        }
    }

    fn add_read(&mut self, place: &Path) {
        if place.exists() && !self.read.iter().any(|root| place.starts_with(root)) {
            self.read.push(place.to_owned());
        }
    }
}

/// Files that the SDKs are told of by variables, and those that such files name.
fn from_environment() -> Vec<PathBuf> {
    let variables = std::env::vars_os().filter(|(name, _)| {
        let name = name.to_string_lossy();
        ENVIRONMENT.iter().any(|prefix| name.starts_with(prefix))
    });
    let named = variables.map(|(_, value)| PathBuf::from(value)).filter(|path| path.is_absolute());
    let home = std::env::var_os("HOME").map(PathBuf::from).filter(|home| home.is_absolute());
    let in_home = home.iter().flat_map(|home| IN_HOME.iter().map(|name| home.join(name)));
    let mut files: Vec<PathBuf> = named.chain(in_home.filter(|folder| folder.is_dir())).collect();
    let further: Vec<PathBuf> = files.iter().flat_map(|file| searched(file)).collect();
    files.extend(further);
    files
}

/// The paths in a file of credentials, or in the files of a folder of such: a profile or an account names token files.
fn searched(place: &Path) -> Vec<PathBuf> {
    let files: Vec<PathBuf> = match std::fs::read_dir(place) {
        Ok(entries) => entries.flatten().map(|entry| entry.path()).filter(|path| path.is_file()).collect(),
        Err(_) => vec![place.to_owned()],
    };
    let is_short = |file: &&PathBuf| file.metadata().is_ok_and(|metadata| metadata.len() <= MAX_SEARCHED_BYTES);
    let texts = files.iter().filter(is_short).filter_map(|file| std::fs::read_to_string(file).ok());
    texts.flat_map(|text| paths_in(&text)).collect()
}

fn paths_in(text: &str) -> Vec<PathBuf> {
    let words = text.split(|c: char| c.is_whitespace() || "\"'=,".contains(c));
    words
        .filter(|word| word.len() > 1 && word.starts_with('/'))
        .map(PathBuf::from)
        .filter(|path| path.exists())
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn added(file: &Path) -> Vec<PathBuf> {
        let mut places = Places::default();
        places.add_file(file);
        places.read
    }

    #[test]
    fn the_folder_of_a_file_is_read_where_its_links_lead_too_and_never_everything() {
        let top = tempfile::tempdir().unwrap();
        let top = top.path().canonicalize().unwrap();
        let (real, linked) = (top.join("real"), top.join("linked"));
        std::fs::create_dir(&real).unwrap();
        std::fs::create_dir(&linked).unwrap();
        std::fs::write(real.join("token"), "").unwrap();
        std::os::unix::fs::symlink(real.join("token"), linked.join("token")).unwrap();
        assert_eq!(added(&linked.join("token")), [real.clone(), linked]);
        assert_eq!(added(&real), std::slice::from_ref(&real));
        assert_eq!(added(&real.join("later/token")), [real], "it may come at any moment");
        assert!(added(Path::new("/no-such-folder/token")).is_empty());
    }

    #[test]
    fn the_files_that_a_profile_names_are_found() {
        let folder = tempfile::tempdir().unwrap();
        let token = folder.path().join("token");
        std::fs::write(&token, "").unwrap();
        let token = token.to_str().unwrap();
        for text in [
            format!("[default]\nweb_identity_token_file = {token}\n"),
            format!("{{\"credential_source\":{{\"file\":\"{token}\"}},\"other\": \"/nowhere/at/all\"}}"),
        ] {
            assert_eq!(paths_in(&text), [PathBuf::from(token)]);
        }
    }
}
