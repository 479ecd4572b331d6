//! One child process: started, stopped, killed, started again with the same arguments; shown when a test fails.

use std::ffi::OsString;
use std::fs::{File, OpenOptions};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};

/// How long a stop may take: kube-apiserver itself takes up to a minute for it.
const GRACE: Duration = Duration::from_mins(2);
/// How many bytes of a log are shown when the test fails.
const SHOWN_BYTES: usize = 6_000;

/// A child process with its output in a file. Killed when dropped.
pub struct Process {
    name: String,
    program: PathBuf,
    arguments: Vec<OsString>,
    environment: Vec<(OsString, OsString)>,
    log: PathBuf,
    child: Option<Child>,
}

impl Process {
    /// Starts `program`; its output is appended to `log`.
    pub fn start(
        name: &str,
        program: PathBuf,
        arguments: Vec<OsString>,
        environment: Vec<(OsString, OsString)>,
        log: PathBuf,
    ) -> Self {
        let mut process = Self { name: name.into(), program, arguments, environment, log, child: None };
        process.restart();
        process
    }

    /// Starts it again after [`Process::stop`] or [`Process::kill`].
    pub fn restart(&mut self) {
        assert!(self.child.is_none(), "{} still runs", self.name);
        let log = OpenOptions::new().create(true).append(true).open(&self.log).unwrap();
        let child = Command::new(&self.program)
            .args(&self.arguments)
            .envs(self.environment.iter().cloned())
            .stdin(Stdio::null())
            .stdout(log.try_clone().unwrap())
            .stderr(log)
            .spawn();
        self.child = Some(child.unwrap_or_else(|error| panic!("cannot start {}: {error}", self.program.display())));
    }

    /// The arguments that the next [`Process::restart`] uses.
    pub fn arguments_mut(&mut self) -> &mut Vec<OsString> {
        &mut self.arguments
    }

    /// Its process id.
    pub fn id(&self) -> u32 {
        self.child.as_ref().expect("runs").id()
    }

    /// Whether it has not ended by itself.
    pub fn is_running(&mut self) -> bool {
        self.child.as_mut().is_some_and(|child| child.try_wait().unwrap().is_none())
    }

    /// Waits for it to end by itself.
    pub fn wait(&mut self, deadline: Duration) -> ExitStatus {
        let start = Instant::now();
        loop {
            let child = self.child.as_mut().expect("runs");
            if let Some(status) = child.try_wait().unwrap() {
                self.child = None;
                return status;
            }
            assert!(start.elapsed() < deadline, "{} did not end within {deadline:?}", self.name);
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// SIGTERM, and waits for the end.
    pub fn stop(&mut self) -> ExitStatus {
        self.signal(Signal::TERM);
        self.wait(GRACE)
    }

    /// Sends a signal.
    pub fn signal(&self, signal: Signal) {
        let id = i32::try_from(self.id()).unwrap();
        kill_process(Pid::from_raw(id).unwrap(), signal).unwrap();
    }

    /// SIGKILL, and waits for the end.
    pub fn kill(&mut self) {
        if let Some(mut child) = self.child.take() {
            let _ = child.kill();
            let _ = child.wait();
        }
    }

    /// What it wrote so far.
    pub fn log(&self) -> String {
        std::fs::read(&self.log).map(|bytes| String::from_utf8_lossy(&bytes).into_owned()).unwrap_or_default()
    }

    /// Whether its log has this text, now or soon: a thread of the program's writes it.
    pub fn says(&self, text: &str) -> bool {
        let began = std::time::Instant::now();
        while began.elapsed() < std::time::Duration::from_secs(10) {
            if self.log().contains(text) {
                return true;
            }
            std::thread::sleep(std::time::Duration::from_millis(20));
        }
        false
    }

    /// The file that its output goes to.
    pub fn log_path(&self) -> &Path {
        &self.log
    }

    /// The end of its log, for a message.
    pub fn log_tail(&self) -> String {
        let log = self.log();
        let from = log.ceil_char_boundary(log.len().saturating_sub(SHOWN_BYTES));
        format!("--- {} wrote (end) ---\n{}\n", self.name, &log[from..])
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.kill();
        if std::thread::panicking() {
            eprintln!("{}", self.log_tail());
        }
    }
}
