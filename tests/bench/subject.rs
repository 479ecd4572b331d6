//! The processes that are measured: started, watched through /proc, killed when dropped.

use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use super::load::{Shape, connect};
use super::v2::StatusRequest;

const OURS: &str = env!("CARGO_BIN_EXE_kube-envelope");

/// A running server.
pub struct Subject {
    pub name: &'static str,
    pub socket: PathBuf,
    /// Whether what it stores is worth a look.
    pub encrypts: bool,
    health_port: u16,
    child: Child,
}

/// Resident memory in KiB.
#[derive(Clone, Copy)]
pub struct Memory {
    pub resident: u64,
    pub anonymous: u64,
}

impl Subject {
    /// This plugin on a keyring. State from an earlier start in `folder` is used.
    pub fn ours(folder: &Path) -> Self {
        let at = |name: &str| folder.join(name);
        let health_port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        if !at("keyring.json").exists() {
            let mut create = Command::new(OURS);
            create.args(["keyring", "create"]).arg(at("keyring.json")).stdout(Stdio::null());
            assert!(create.status().unwrap().success());
        }
        let config = format!(
            "cluster: bench\nsocket: {}\nstateDir: {}\nkeks: [{{ name: local, keyring: {{ file: {} }} }}]\n\
             health: {{ listen: \"127.0.0.1:{health_port}\" }}\n",
            at("ours.sock").display(),
            at("state").display(),
            at("keyring.json").display(),
        );
        std::fs::write(at("config.yaml"), config).unwrap();
        let mut command = Command::new(OURS);
        command.arg("serve").arg("--config").arg(at("config.yaml"));
        Self::start("kube-envelope", at("ours.sock"), true, health_port, command)
    }

    /// The echo server: this very program.
    pub fn echo(folder: &Path, shape: Shape) -> Self {
        let mut command = Command::new(std::env::current_exe().unwrap());
        command.arg("echo").arg(folder.join("echo.sock")).args(shape.to_arguments());
        Self::start("echo", folder.join("echo.sock"), false, 0, command)
    }

    /// The plugin in Go.
    pub fn go(folder: &Path) -> Self {
        let program = std::env::var_os("REFERENCE_PLUGIN").expect("REFERENCE_PLUGIN is set: run scripts/bench");
        let mut command = Command::new(program);
        command.arg(folder.join("go.sock"));
        Self::start("Go reference", folder.join("go.sock"), true, 0, command)
    }

    /// Removes what [`Subject::ours`] kept.
    pub fn forget(folder: &Path) {
        let _ = std::fs::remove_dir_all(folder.join("state"));
    }

    fn start(name: &'static str, socket: PathBuf, encrypts: bool, health_port: u16, mut command: Command) -> Self {
        // One left over from a killed process would be taken for a started one.
        let _ = std::fs::remove_file(&socket);
        let child = command.stdin(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
        Self { name, socket, encrypts, health_port, child }
    }

    /// Waits for the first good Status.
    pub async fn wait_good(&mut self) {
        let started = Instant::now();
        loop {
            if self.socket.exists()
                && let Some(mut client) = connect(self.socket.clone()).await
                && client.status(StatusRequest {}).await.is_ok_and(|status| status.into_inner().healthz == "ok")
            {
                return;
            }
            assert!(self.child.try_wait().unwrap().is_none(), "{} ended", self.name);
            assert!(started.elapsed() < Duration::from_secs(30), "{} does not start", self.name);
            tokio::time::sleep(Duration::from_micros(200)).await;
        }
    }

    /// Its resident memory.
    pub fn memory(&self) -> Memory {
        let status = self.proc("status");
        let field = |name: &str| {
            let line = status.lines().find(|line| line.starts_with(name)).unwrap();
            line.split_whitespace().nth(1).unwrap().parse().unwrap()
        };
        Memory { resident: field("VmRSS:"), anonymous: field("RssAnon:") }
    }

    /// CPU time that it has used.
    pub fn cpu(&self) -> Duration {
        // Nanoseconds on a CPU, of each thread; /proc/PID/stat counts in steps of 10 ms.
        let tasks = std::fs::read_dir(format!("/proc/{}/task", self.child.id())).unwrap();
        let used = tasks.map(|task| {
            let text = std::fs::read_to_string(task.unwrap().path().join("schedstat")).unwrap_or_default();
            text.split_whitespace().next().map_or(0, |nanoseconds| nanoseconds.parse().unwrap())
        });
        Duration::from_nanos(used.sum())
    }

    /// Requests that it sent to its KEK, by operation.
    pub fn kek_requests(&self) -> BTreeMap<String, u64> {
        let mut stream = TcpStream::connect(("127.0.0.1", self.health_port)).unwrap();
        stream.write_all(b"GET /metrics HTTP/1.0\r\n\r\n").unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        let lines = answer.lines().filter(|line| line.starts_with("kube_envelope_kek_requests_total{"));
        let counts: BTreeMap<_, _> = lines
            .map(|line| {
                let operation = line.split("operation=\"").nth(1).unwrap().split('"').next().unwrap();
                (operation.to_owned(), line.rsplit(' ').next().unwrap().parse().unwrap())
            })
            .collect();
        assert!(!counts.is_empty(), "no kube_envelope_kek_requests_total in:\n{answer}");
        counts
    }

    fn proc(&self, file: &str) -> String {
        std::fs::read_to_string(format!("/proc/{}/{file}", self.child.id())).unwrap()
    }
}

impl Drop for Subject {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
