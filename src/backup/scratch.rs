//! A scratch etcd: restored from a snapshot into a private folder, reached over a unix socket there, and gone with this
//! process.
//!
//! Nobody else on the machine can reach it, although it checks no users: client and peer sockets lie in the folder,
//! which has mode 0700. The programs are etcd's own; `kube-envelope end-with-parent` starts them, so that they end with
//! this process however it ends.

use std::ffi::OsString;
use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use rand::RngExt;

use crate::etcd::{EtcdAccess, EtcdCluster, EtcdClusters, EtcdError};

/// How long a request to the scratch etcd may take: nobody else waits for it, and a defragmentation may take long.
const PATIENCE: Duration = Duration::from_hours(6);
/// Begins the name of the folder.
const FOLDER: &str = "kube-envelope-scratch-";
/// Both sockets, relative to the folder; etcd wants something like a port.
const CLIENT: &str = "client:1";
const PEER: &str = "peer:1";
/// How long etcd may take until it answers: it reads all keys before.
const STARTS_WITHIN: Duration = Duration::from_mins(10);
const LOOKS_EVERY: Duration = Duration::from_millis(50);
/// Larger than any value that a cluster's own etcd may have taken (`--max-request-bytes`).
const MAX_REQUEST: &str = "--max-request-bytes=67108864";
/// So many bytes of what a program printed are shown when it fails.
const SHOWN: usize = 2_000;

/// Why there is no scratch etcd.
#[derive(Debug, thiserror::Error)]
pub enum ScratchError {
    /// A program is not installed.
    #[error("{0} is not in PATH: name the program with --{0}-binary, in the version of the cluster's etcd")]
    NoProgram(&'static str),
    /// The folder cannot be made or written.
    #[error("cannot use the scratch folder {}", .folder.display())]
    Folder {
        /// The folder, or the one that it was to be made in.
        folder: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// A program did not do what it should.
    #[error("{program} {problem}: {said}")]
    Program {
        /// `etcd` or `etcdutl`.
        program: &'static str,
        /// How it ended.
        problem: String,
        /// The end of what it printed.
        said: String,
    },
    /// etcd refuses something.
    #[error(transparent)]
    Etcd(#[from] EtcdError),
}

/// etcd's own programs.
#[derive(Clone, Debug)]
pub struct Programs {
    /// Path of `etcd`, the server.
    pub etcd: PathBuf,
    /// The tool that restores snapshots.
    pub etcdutl: PathBuf,
}

impl Programs {
    /// Those that are named; others are looked for in `PATH`.
    ///
    /// # Errors
    /// [`ScratchError::NoProgram`].
    pub fn find(etcd: Option<&Path>, etcdutl: Option<&Path>) -> Result<Self, ScratchError> {
        Ok(Self { etcd: find("etcd", etcd)?, etcdutl: find("etcdutl", etcdutl)? })
    }
}

fn find(name: &'static str, named: Option<&Path>) -> Result<PathBuf, ScratchError> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let candidates: Vec<PathBuf> = match named {
        Some(named) => vec![named.to_owned()],
        None => std::env::split_paths(&path).map(|folder| folder.join(name)).collect(),
    };
    // They run in another folder.
    let found = candidates.iter().find(|file| is_program(file)).and_then(|file| fs::canonicalize(file).ok());
    found.ok_or(ScratchError::NoProgram(name))
}

fn is_program(file: &Path) -> bool {
    fs::metadata(file).is_ok_and(|about| about.is_file() && about.permissions().mode() & 0o111 != 0)
}

/// A private folder that is removed with this value. Only a process that is killed leaves it, and it says what it is.
#[derive(Debug)]
pub struct ScratchFolder {
    path: PathBuf,
    /// Leads to the sockets however long the path is.
    handle: File,
}

impl ScratchFolder {
    /// Creates one in `parent`, with `note` in a README for anyone who finds it.
    ///
    /// # Errors
    /// [`ScratchError::Folder`].
    pub fn create(parent: &Path, note: &str) -> Result<Self, ScratchError> {
        let path = parent.join(format!("{FOLDER}{:016x}", rand::rng().random::<u64>()));
        let failed = |source| ScratchError::Folder { folder: path.clone(), source };
        DirBuilder::new().mode(0o700).create(&path).map_err(failed)?;
        let handle = fs::canonicalize(&path).and_then(|path| Ok((File::open(&path)?, path)));
        let (handle, path) = handle.map_err(failed)?;
        let folder = Self { path, handle };
        // For anyone who finds the folder of a killed process: what it is, and that it may be deleted.
        let written = fs::write(folder.path.join("README"), note);
        written.map_err(|source| ScratchError::Folder { folder: folder.path.clone(), source })?;
        Ok(folder)
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// A new file in it, of mode 0600.
    ///
    /// # Errors
    /// [`ScratchError::Folder`].
    pub fn file(&self, name: &str) -> Result<File, ScratchError> {
        let file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(self.path.join(name));
        file.map_err(|source| ScratchError::Folder { folder: self.path.clone(), source })
    }

    fn start(&self, name: &'static str, program: &Path, arguments: &[OsString]) -> Result<Process, ScratchError> {
        let log = format!("{name}.log");
        let output = self.file(&log)?;
        let errors = output.try_clone();
        let spawned = errors.and_then(|errors| {
            // The program that runs, also when another one was installed over it meanwhile.
            Command::new("/proc/self/exe")
                .arg("end-with-parent")
                .arg(std::process::id().to_string())
                .arg(program)
                .args(arguments)
                // Flags of etcd may also come from the environment.
                .env_clear()
                .current_dir(&self.path)
                .stdin(Stdio::null())
                .stdout(output)
                .stderr(errors)
                .spawn()
        });
        let child = spawned.map_err(|source| ScratchError::Folder { folder: self.path.clone(), source })?;
        Ok(Process { name, child, log: self.path.join(log) })
    }
}

impl Drop for ScratchFolder {
    fn drop(&mut self) {
        if let Err(error) = fs::remove_dir_all(&self.path) {
            tracing::warn!(folder = %self.path.display(), %error, "the scratch folder cannot be removed; delete it");
        }
    }
}

/// A program that runs, and is killed with this value.
#[derive(Debug)]
struct Process {
    name: &'static str,
    child: Child,
    log: PathBuf,
}

impl Process {
    /// How it ended; `None` while it runs.
    fn ended(&mut self) -> Result<Option<ExitStatus>, ScratchError> {
        self.child.try_wait().map_err(|error| self.failed(format!("cannot be waited for: {error}")))
    }

    fn failed(&self, problem: String) -> ScratchError {
        let log = fs::read(&self.log).unwrap_or_default();
        // The end: what a program says last is why it ended.
        let said = String::from_utf8_lossy(&log[log.len().saturating_sub(SHOWN)..]).trim().replace('\n', "; ");
        ScratchError::Program { program: self.name, problem, said }
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// An etcd of one member with the content of a snapshot.
#[derive(Debug)]
pub struct ScratchEtcd {
    etcd: EtcdClusters,
    process: Process,
}

impl ScratchEtcd {
    /// Restores a snapshot into the folder and starts etcd on it. What lies under `prefix` is read first.
    ///
    /// # Errors
    /// [`ScratchError`].
    pub async fn restore(
        folder: &ScratchFolder,
        programs: &Programs,
        snapshot: &Path,
        has_hash: bool,
        prefix: &str,
    ) -> Result<Self, ScratchError> {
        // The tool runs in the scratch folder, where a relative path would lead elsewhere.
        let snapshot = fs::canonicalize(snapshot);
        let snapshot = snapshot.map_err(|source| ScratchError::Folder { folder: folder.path.clone(), source })?;
        let peer = format!("unix://{PEER}");
        let cluster = [
            "--name=scratch".to_owned(),
            "--data-dir=data".to_owned(),
            format!("--initial-cluster=scratch={peer}"),
            format!("--initial-advertise-peer-urls={peer}"),
        ]
        .map(OsString::from);
        let mut restore = vec![OsString::from("snapshot"), "restore".into(), snapshot.into()];
        restore.extend(cluster.clone());
        // A file that was copied from a member's data folder has no SHA-256 at its end, and etcdutl refuses it otherwise.
        if !has_hash {
            restore.push("--skip-hash-check".into());
        }
        run(folder.start("etcdutl", &programs.etcdutl, &restore)?).await?;

        let client = format!("unix://{CLIENT}");
        let mut serve = cluster.to_vec();
        serve.extend(
            [
                format!("--listen-peer-urls={peer}"),
                format!("--listen-client-urls={client}"),
                format!("--advertise-client-urls={client}"),
                // Everything is stored twice before it is compacted.
                "--quota-backend-bytes=-1".into(),
                MAX_REQUEST.into(),
                "--log-level=warn".into(),
            ]
            .map(OsString::from),
        );
        let mut process = folder.start("etcd", &programs.etcd, &serve)?;
        let socket = format!("unix:/proc/self/fd/{}/{CLIENT}", folder.handle.as_raw_fd());
        let access = EtcdAccess { endpoints: vec![socket], timeout: Some(PATIENCE), ..EtcdAccess::default() };
        let etcd = answering(&mut process, &access, prefix).await?;
        Ok(Self { etcd, process })
    }

    /// Its one cluster.
    pub fn clusters(&self) -> &EtcdClusters {
        &self.etcd
    }

    /// Brings it into a state in which it takes writes.
    ///
    /// # Errors
    /// When its data are said to be damaged.
    pub async fn take_writes(&self) -> Result<(), ScratchError> {
        if self.cluster()?.lower_alarms().await? {
            let problem = "raises the alarm CORRUPT, as it did when the snapshot was taken".into();
            return Err(self.process.failed(problem));
        }
        Ok(())
    }

    /// Removes everything but the current values from its database, and writes a snapshot of that into `to`. Its revision.
    ///
    /// # Errors
    /// [`ScratchError`].
    pub async fn save(&self, to: &mut File) -> Result<i64, ScratchError> {
        let cluster = self.cluster()?;
        let revision = cluster.revision().await?;
        cluster.compact(revision).await?;
        cluster.defragment().await?;
        cluster.snapshot(to).await?;
        Ok(revision)
    }

    fn cluster(&self) -> Result<&EtcdCluster, ScratchError> {
        self.etcd.clusters.first().ok_or_else(|| self.process.failed("has no cluster".into()))
    }
}

/// Waits until a program has ended well.
async fn run(mut process: Process) -> Result<(), ScratchError> {
    loop {
        match process.ended()? {
            Some(status) if status.success() => return Ok(()),
            Some(status) => return Err(process.failed(format!("ended with {status}"))),
            None => tokio::time::sleep(LOOKS_EVERY).await,
        }
    }
}

/// Waits until etcd answers.
async fn answering(process: &mut Process, access: &EtcdAccess, prefix: &str) -> Result<EtcdClusters, ScratchError> {
    let began = Instant::now();
    loop {
        match EtcdClusters::connect(access, prefix).await {
            Ok(etcd) => return Ok(etcd),
            Err(error) if began.elapsed() > STARTS_WITHIN => {
                return Err(process.failed(format!("does not answer: {error}")));
            }
            Err(_) => {}
        }
        // One that has ended will not answer any more, and what it printed says why: sooner and better than the timeout.
        if let Some(status) = process.ended()? {
            return Err(process.failed(format!("ended with {status}")));
        }
        tokio::time::sleep(LOOKS_EVERY).await;
    }
}
