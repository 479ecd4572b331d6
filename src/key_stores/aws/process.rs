//! Credentials that a program prints, in the form of a profile's `credential_process`
//! (<https://docs.aws.amazon.com/sdkref/latest/guide/feature-process-credentials.html>).
//!
//! The configuration names the program; one that only a profile names is not started. No shell, a small environment, a
//! bounded time and a bounded answer. Nothing of what it prints gets into a message.

use std::ffi::OsString;
use std::fmt;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::{Duration, SystemTime};

use aws_sdk_kms::config::Credentials as Keys;
use rustix::process::{Pid, Signal, kill_process_group};
use serde::Deserialize;
use tokio::io::AsyncReadExt;
use tokio::process::{Child, Command};
use tokio::time::timeout;
use zeroize::Zeroizing;

use crate::kek::KekError;
use crate::key_stores::shared::secret_text::SecretText;

/// Less than the longest load of credentials, so that the program is named.
const PATIENCE: Duration = Duration::from_secs(20);
/// Far above any credentials.
const MAX_BYTES: usize = 64 * 1024;

/// What of the environment it gets, besides `AWS_*`.
const ENVIRONMENT: [&str; 10] = [
    "HOME",
    "LANG",
    "PATH",
    "TZ",
    "HTTPS_PROXY",
    "https_proxy",
    "NO_PROXY",
    "no_proxy",
    "SSL_CERT_DIR",
    "SSL_CERT_FILE",
];

/// The program and its arguments.
#[derive(Clone)]
pub(super) struct Program {
    file: PathBuf,
    arguments: Vec<String>,
}

impl Program {
    /// Takes the setting apart, or says what is wrong with it.
    pub(super) fn parse(words: Vec<String>) -> Result<Self, String> {
        let mut words = words.into_iter();
        let example = "write the program's absolute path and its arguments, each an item of its own";
        let file = PathBuf::from(words.next().ok_or_else(|| format!("names no program; {example}"))?);
        if !file.is_absolute() || file.to_string_lossy().contains(char::is_whitespace) {
            return Err(format!("{:?} is not an absolute path; {example}", file.display().to_string()));
        }
        Ok(Self { file, arguments: words.collect() })
    }

    pub(super) fn file(&self) -> &Path {
        &self.file
    }

    /// Starts it, and reads what it prints.
    ///
    /// # Errors
    /// `Unavailable` when it cannot be started, fails or takes too long; `Misconfigured` when it prints something else.
    pub(super) async fn run(&self) -> Result<Keys, KekError> {
        self.run_within(PATIENCE).await
    }

    async fn run_within(&self, patience: Duration) -> Result<Keys, KekError> {
        let name = self.file.display();
        let failed = |why: String| KekError::unavailable(format!("credentialProcess {name} {why}"));
        let mut child =
            self.command().spawn().map_err(|error| failed("cannot be started".into()).with_source(error))?;
        let ended = timeout(patience, read(&mut child)).await;
        let Ok(Ok(text)) = ended else {
            stop(&child);
            return Err(match ended {
                Ok(Err(error)) => failed("cannot be read from".into()).with_source(error),
                _ => failed(format!("has not ended within {patience:?}")),
            });
        };
        if text.len() > MAX_BYTES {
            stop(&child);
            return Err(self.printed(&format!("more than {MAX_BYTES} bytes")));
        }
        let status = timeout(patience, child.wait()).await;
        match status {
            Ok(Ok(status)) if status.success() => self.keys(&text),
            Ok(Ok(status)) => Err(failed(format!("ended with {status}; run it by hand to see what it says"))),
            _ => {
                stop(&child);
                Err(failed(format!("has not ended within {patience:?}")))
            }
        }
    }

    fn command(&self) -> Command {
        let mut command = Command::new(&self.file);
        command.args(&self.arguments).env_clear().envs(environment());
        // What it says of its trouble may quote what it was given.
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::null());
        // Ends with this process' interest in it, and what it has started as well: see `stop`.
        command.kill_on_drop(true).process_group(0);
        command
    }

    fn keys(&self, text: &[u8]) -> Result<Keys, KekError> {
        let printed: Printed = serde_json::from_slice(text).map_err(|error| {
            // Only the place: the library's own text may quote what was printed.
            self.printed(&format!("something other than credentials, at {}:{}", error.line(), error.column()))
        })?;
        if printed.version != 1 {
            return Err(self.printed(&format!("Version {}; this program reads Version 1", printed.version)));
        }
        let ends = printed.expiration.map(SystemTime::try_from).transpose();
        let ends = ends.map_err(|_| self.printed("an Expiration that no clock has"))?;
        if let (Some(end), Some(_)) = (printed.expiration, ends.filter(|ends| *ends <= SystemTime::now())) {
            return Err(KekError::unavailable(format!(
                "credentialProcess {} printed credentials that ended at {end}",
                self.file.display()
            )));
        }
        let [id, secret] = [&printed.access_key_id, &printed.secret_access_key].map(|one| one.expose().to_owned());
        let token = printed.session_token.map(|token| token.expose().to_owned());
        Ok(Keys::new(id, secret, token, ends, "credentialProcess"))
    }

    fn printed(&self, what: &str) -> KekError {
        KekError::misconfigured(format!("credentialProcess {} printed {what}", self.file.display()))
    }
}

/// The arguments may be secret.
impl fmt::Debug for Program {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Program").field(&self.file).finish()
    }
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Printed {
    version: u32,
    access_key_id: SecretText,
    secret_access_key: SecretText,
    session_token: Option<SecretText>,
    expiration: Option<jiff::Timestamp>,
}

/// Neither the service manager's sockets nor what was meant for this process alone.
fn environment() -> impl Iterator<Item = (OsString, OsString)> {
    std::env::vars_os().filter(|(name, _)| {
        let name = name.to_string_lossy();
        name.starts_with("AWS_") || ENVIRONMENT.contains(&name.as_ref())
    })
}

async fn read(child: &mut Child) -> std::io::Result<Zeroizing<Vec<u8>>> {
    let mut text = Zeroizing::new(Vec::with_capacity(MAX_BYTES.saturating_add(1)));
    if let Some(printed) = child.stdout.take() {
        let limit = u64::try_from(MAX_BYTES).unwrap_or(u64::MAX).saturating_add(1);
        printed.take(limit).read_to_end(&mut text).await?;
    }
    Ok(text)
}

/// Ends it and whatever it has started that is of its group.
fn stop(child: &Child) {
    // None once its end was seen: its number may be another process' by then.
    if let Some(group) = child.id().and_then(|id| Pid::from_raw(id.cast_signed())) {
        let _ = kill_process_group(group, Signal::KILL);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kek::KekCause;

    fn shell(script: &str) -> Program {
        Program::parse(["/bin/sh", "-c", script].map(str::to_owned).into()).unwrap()
    }

    fn printing(text: &str) -> Program {
        Program::parse(["/bin/echo", text].map(str::to_owned).into()).unwrap()
    }

    #[tokio::test]
    async fn what_is_printed_is_taken_with_its_end() {
        let keys = printing(r#"{"Version":1,"AccessKeyId":"AK","SecretAccessKey":"s","SessionToken":"t","Expiration":"2199-01-01T00:00:00Z","AccountId":"1"}"#)
            .run()
            .await
            .unwrap();
        assert_eq!((keys.access_key_id(), keys.secret_access_key(), keys.session_token()), ("AK", "s", Some("t")));
        assert!(keys.expiry() > Some(SystemTime::now()));
        let lasting = printing(r#"{"Version":1,"AccessKeyId":"AK","SecretAccessKey":"s"}"#).run().await.unwrap();
        assert!(lasting.expiry().is_none() && lasting.session_token().is_none());
    }

    #[tokio::test]
    async fn what_goes_wrong_is_told_and_nothing_of_what_was_printed() {
        for (program, cause, words) in [
            (shell("echo SECRET; echo SECRET >&2; exit 3"), KekCause::Unavailable, "ended with exit status: 3"),
            (shell("head -c 70000 /dev/zero | tr '\\0' S; sleep 60"), KekCause::Misconfigured, "more than 65536 bytes"),
            (printing("SECRET"), KekCause::Misconfigured, "something other than credentials, at 1:1"),
            (
                printing(r#"{"Version":2,"AccessKeyId":"SECRET","SecretAccessKey":"SECRET"}"#),
                KekCause::Misconfigured,
                "Version 2",
            ),
            (printing(r#"{"Version":1,"AccessKeyId":"SECRET"}"#), KekCause::Misconfigured, "something other"),
            (
                printing(
                    r#"{"Version":1,"AccessKeyId":"SECRET","SecretAccessKey":"SECRET","Expiration":"2020-01-01T00:00:00Z"}"#,
                ),
                KekCause::Unavailable,
                "ended at 2020",
            ),
            (Program::parse(vec!["/nonexistent/program".into()]).unwrap(), KekCause::Unavailable, "cannot be started"),
        ] {
            let error = program.run().await.err().unwrap();
            assert_eq!(error.cause(), cause, "{}", error.chain());
            assert!(error.chain().contains(words) && !error.chain().contains("SECRET"), "{}", error.chain());
            assert!(error.chain().contains(&program.file().display().to_string()), "{}", error.chain());
        }
    }

    #[tokio::test]
    async fn one_that_does_not_end_is_ended_with_what_it_has_started() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("pid");
        let program = shell(&format!("sleep 1000 & echo $! >{}; wait", file.display()));
        let error = program.run_within(Duration::from_secs(2)).await.err().unwrap();
        assert!(error.chain().contains("has not ended within 2s"), "{}", error.chain());
        let pid = std::fs::read_to_string(&file).unwrap().trim().to_owned();
        let is_running = || {
            let status = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
            !status.is_empty() && !status.contains(") Z ")
        };
        let end = std::time::Instant::now() + Duration::from_secs(10);
        while is_running() {
            assert!(std::time::Instant::now() < end, "{pid} is left");
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    #[test]
    fn it_is_named_by_a_path_and_its_arguments_do_not_print() {
        for words in [&[][..], &["aws"], &["./aws"], &["/usr/bin/aws configure export-credentials"]] {
            let words = words.iter().map(|&word| word.to_owned()).collect();
            assert!(Program::parse(words).is_err_and(|problem| problem.contains("each an item of its own")));
        }
        assert!(!format!("{:?}", printing("SECRET")).contains("SECRET"));
    }
}
