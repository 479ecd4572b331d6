//! What the plugin needs of this machine: folder of the socket, state folder, health port. Looks, and changes
//! nothing.

use std::fs;
use std::os::unix::fs::{FileTypeExt, PermissionsExt};
use std::os::unix::net::UnixStream;
use std::path::Path;

use rustix::fs::{Access, access};

use crate::config::{Config, DEFAULT_LISTEN, HealthAddress, SocketAddress, SocketSettings};
use crate::dek::store::is_private;
use crate::plugin::socket::{FolderProblem, group_id, problem_of_folder};
use crate::posture::finding::Finding;

/// Checks the machine for the user that runs this command: it should be the plugin's.
pub(super) fn check(config: &Config) -> Vec<Finding> {
    let (socket, served) = match &config.socket.address {
        SocketAddress::File(path) => {
            // A file alone tells nothing: a plugin that was killed leaves its socket behind.
            let served = UnixStream::connect(path).is_ok();
            (self::socket(path, served), served)
        }
        SocketAddress::Abstract(_) => {
            (Finding::ok("socket", format!("{} needs no folder", config.socket.address)), false)
        }
    };
    let mut findings = vec![socket];
    findings.extend(group(&config.socket));
    findings.extend([state_dir(&config.state_dir), health(&config.health.listen, served)]);
    findings.extend(open_to_all(&config.health.listen));
    findings
}

fn socket(path: &Path, served: bool) -> Finding {
    let folder = path.parent().unwrap_or(Path::new("/"));
    if let Some(FolderProblem { problem, fix }) = problem_of_folder(folder) {
        return Finding::failed("socket", problem, fix);
    }
    if served {
        return Finding::ok("socket", format!("{} is being served", path.display()));
    }
    // `serve` removes a stale socket by itself, and nothing else.
    if fs::symlink_metadata(path).is_ok_and(|file| !file.file_type().is_socket()) {
        let detail = format!("{} exists and is not a socket", path.display());
        return Finding::failed("socket", detail, "remove it, or configure another path");
    }
    if folder.exists() { writable("socket", folder) } else { will_be_made("socket", folder) }
}

/// A group that does not exist leaves the socket to its owner.
fn group(socket: &SocketSettings) -> Option<Finding> {
    let problem = group_id(socket.group.as_deref()?).err()?;
    Some(Finding::failed("socketGroup", problem, "create the group, or give the number of another one"))
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

fn health(listen: &HealthAddress, served: bool) -> Finding {
    const CHECK: &str = "health.listen";
    match listen {
        HealthAddress::Off => Finding::advice(
            CHECK,
            "is off: no probes, no metrics, and `kube-envelope status` does not work",
            "set a loopback address or a unix socket",
        ),
        // Bound and released at once: only an attempt shows whether it is free.
        HealthAddress::Tcp(address) => match std::net::TcpListener::bind(address) {
            Ok(_) => Finding::ok(CHECK, format!("{address} is free")),
            Err(_) if served => Finding::ok(CHECK, format!("{address} is in use, since a plugin is running")),
            Err(error) => Finding::failed(CHECK, format!("cannot listen on {address}: {error}"), "choose another port"),
        },
        HealthAddress::Unix(path) => Finding { check: CHECK.into(), ..socket(path, UnixStream::connect(path).is_ok()) },
    }
}

/// Names of KEKs and versions are not secret, but concern nobody else.
fn open_to_all(listen: &HealthAddress) -> Option<Finding> {
    let HealthAddress::Tcp(address) = listen else { return None };
    address.ip().is_unspecified().then(|| {
        let detail = format!("{address} is every address of this machine: whoever reaches it reads status and metrics");
        Finding::advice("health.listen", detail, format!("set {DEFAULT_LISTEN}, or the address at which you monitor"))
    })
}

fn will_be_made(check: &str, folder: &Path) -> Finding {
    let ancestor = folder.ancestors().find(|ancestor| ancestor.is_dir()).unwrap_or(Path::new("/"));
    if makes_no_folders(ancestor) {
        let detail = format!("{} cannot be created: {} is the kernel's", folder.display(), ancestor.display());
        return Finding::failed(check, detail, "configure another path");
    }
    if fs::metadata(ancestor).is_ok_and(|metadata| metadata.permissions().mode() & 0o002 != 0) {
        let detail = format!("everybody may create {}, which lies in {}", folder.display(), ancestor.display());
        return Finding::advice(check, detail, "configure a path below /run or /var/lib, where only root may");
    }
    // `access` asks for the real user, and the permissions alone would not tell of a read-only file system or of an
    // ACL.
    match access(ancestor, Access::WRITE_OK | Access::EXEC_OK) {
        Ok(()) => Finding::ok(check, format!("folder {} does not exist yet and can be created", folder.display())),
        Err(_) => Finding::failed(
            check,
            format!("folder {} does not exist, and this user cannot create it", folder.display()),
            format!("install -d -m 0700 -o {} {}", rustix::process::geteuid().as_raw(), folder.display()),
        ),
    }
}

/// Whether it is of a file system without folders of anybody's own, where permissions say nothing.
fn makes_no_folders(folder: &Path) -> bool {
    const KERNELS: [u32; 2] = [0x9fa0 /* proc */, 0x6265_6572 /* sysfs */];
    rustix::fs::statfs(folder)
        .is_ok_and(|system| u32::try_from(system.f_type).is_ok_and(|kind| KERNELS.contains(&kind)))
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
