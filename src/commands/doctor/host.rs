//! What the plugin needs of this machine: folder of the socket, state folder, health port. Looks, and changes
//! nothing.

use std::fs;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::os::unix::net::UnixStream;
use std::path::Path;

use rustix::fs::{Access, access};

use super::Finding;
use crate::config::Config;
use crate::dek::store::is_private;

/// Checks the machine for the user that runs this command: it should be the plugin's.
pub(super) fn check(config: &Config) -> Vec<Finding> {
    let served = UnixStream::connect(&config.socket).is_ok();
    vec![socket(&config.socket, served), state_dir(&config.state_dir), health(config.health_listen, served)]
}

fn socket(path: &Path, served: bool) -> Finding {
    if served {
        return Finding::ok("socket", format!("{} is being served", path.display()));
    }
    if fs::symlink_metadata(path).is_ok_and(|file| !file.file_type().is_socket()) {
        let detail = format!("{} exists and is not a socket", path.display());
        return Finding::failed("socket", detail, "remove it, or configure another path");
    }
    let folder = path.parent().unwrap_or(Path::new("/"));
    match fs::metadata(folder) {
        Err(_) => will_be_made("socket", folder),
        Ok(metadata) if metadata.mode() & 0o022 != 0 && metadata.mode() & 0o1000 == 0 => Finding::failed(
            "socket",
            format!("folder {} can be written by others: they could put their own socket there", folder.display()),
            format!("chmod go-w {}", folder.display()),
        ),
        Ok(_) => writable("socket", folder),
    }
}

fn state_dir(folder: &Path) -> Finding {
    match fs::metadata(folder) {
        Err(_) => will_be_made("stateDir", folder),
        Ok(metadata) if !metadata.is_dir() => Finding::failed(
            "stateDir",
            format!("{} is not a folder", folder.display()),
            "remove it, or configure another path",
        ),
        Ok(_) if !is_private(folder) => Finding::advice(
            "stateDir",
            format!("others can read {}; nothing in it is secret", folder.display()),
            format!("chmod 0700 {}", folder.display()),
        ),
        Ok(_) => writable("stateDir", folder),
    }
}

fn health(listen: std::net::SocketAddr, served: bool) -> Finding {
    match std::net::TcpListener::bind(listen) {
        Ok(_) => Finding::ok("health.listen", format!("{listen} is free")),
        Err(_) if served => Finding::ok("health.listen", format!("{listen} is in use, as a plugin runs")),
        Err(error) => {
            Finding::failed("health.listen", format!("cannot listen on {listen}: {error}"), "choose another port")
        }
    }
}

fn will_be_made(check: &str, folder: &Path) -> Finding {
    let ancestor = folder.ancestors().find(|ancestor| ancestor.is_dir()).unwrap_or(Path::new("/"));
    match access(ancestor, Access::WRITE_OK | Access::EXEC_OK) {
        Ok(()) => Finding::ok(check, format!("folder {} does not exist yet and can be made", folder.display())),
        Err(_) => Finding::failed(
            check,
            format!("folder {} does not exist, and this user cannot make it", folder.display()),
            format!("install -d -m 0700 -o {} {}", rustix::process::geteuid().as_raw(), folder.display()),
        ),
    }
}

fn writable(check: &str, folder: &Path) -> Finding {
    match access(folder, Access::READ_OK | Access::WRITE_OK | Access::EXEC_OK) {
        Ok(()) => Finding::ok(check, format!("folder {} can be written", folder.display())),
        Err(error) => Finding::failed(
            check,
            format!("this user cannot write to folder {}: {error}", folder.display()),
            format!("chown {} {}, or run as the plugin's user", rustix::process::geteuid().as_raw(), folder.display()),
        ),
    }
}
