//! The plugin's side: starts the module's process, asks it, and replaces it when it hangs, crashes, fails or grows old.

use std::collections::HashMap;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream as Connection;
use std::path::PathBuf;
use std::process::Stdio;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};
use tokio::process::{Child, Command};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, oneshot};
use tokio::time::{Instant, timeout};
use zeroize::Zeroizing;

use super::mechanism::Mechanism;
use super::protocol::{Call, Done, Failed, Opening, Request, Response, frame, lengths, parse};
use crate::kek::{KekCause, KekError};
use crate::key_stores::shared::credential_file::{self, Content, Fingerprint};

/// Calls into the module at once; most tokens serve few sessions well.
const CALLS_AT_ONCE: usize = 4;
/// A call that takes longer hangs: the process is ended. Longer than the guard's deadline, since a module may be slow
/// once and quick afterwards.
const HANGS_AFTER: Duration = Duration::from_secs(10);
/// A token takes its time to make a key.
const ROTATION_HANGS_AFTER: Duration = Duration::from_mins(2);
/// Some modules read their store only when they are initialised: a process this old is replaced, in the background.
const GROWS_OLD_AFTER: Duration = Duration::from_mins(2);
/// The variable that names the program that hosts modules, where it is not this one: for tests.
const PROGRAM: &str = "KUBE_ENVELOPE_HOST_PROGRAM";

/// A key in a token, and the way to it.
#[derive(Clone, Debug)]
pub(super) struct TokenKey {
    pub(super) module: PathBuf,
    pub(super) token_label: String,
    pub(super) key_label: String,
    pub(super) pin_file: PathBuf,
    pub(super) mechanism: Option<Mechanism>,
}

/// What is known of the key's token from one call to the next.
#[derive(Debug)]
pub(super) struct Client {
    key: TokenKey,
    permits: Arc<Semaphore>,
    host: tokio::sync::Mutex<Option<Arc<Host>>>,
    /// The PIN that the token refused: tokens lock after a few wrong ones.
    refused: Mutex<Option<Fingerprint>>,
    replacing: Mutex<Option<Instant>>,
}

pub(super) type Secret = Zeroizing<Vec<u8>>;

impl Client {
    pub(super) fn new(key: TokenKey) -> Self {
        Self {
            key,
            permits: Arc::new(Semaphore::new(CALLS_AT_ONCE)),
            host: tokio::sync::Mutex::default(),
            refused: Mutex::default(),
            replacing: Mutex::default(),
        }
    }

    /// Asks the module's process, which is started if there is none. A process that was there before and ended without
    /// an answer may have been dead already: another one is asked once more, but not to make a second version.
    ///
    /// # Errors
    /// The module's own, or `Unavailable` when its process cannot be started, hangs or crashes.
    pub(super) async fn call(&self, call: Call, secret: &[u8]) -> Result<(Done, Secret), KekError> {
        // A process that ended says nothing about the call, which is repeated once in a new one. A rotation may have
        // made a key before it ended.
        let mut may_repeat = !matches!(call, Call::Rotate);
        loop {
            let permit = self.permits.clone().acquire_owned().await.expect("the semaphore is never closed");
            // Read for each call, so that a changed PIN takes effect at once.
            let pin = credential_file::read("PIN", &self.key.pin_file).await?;
            let (host, is_new) = self.host(&pin).await?;
            let failure = match host.ask(call.clone(), secret, Some(permit)).await {
                Ok(done) => return Ok(done),
                Err(failure) => failure,
            };
            let again = may_repeat && !is_new && matches!(failure, Failure::Ended(Ended { hung: false, .. }));
            let error = self.fail(&host, failure.into()).await;
            if !again {
                return Err(error);
            }
            may_repeat = false;
        }
    }

    /// Replaces a process that is old, while it goes on serving.
    pub(super) fn renew(self: &Arc<Self>) {
        {
            let mut replacing = lock(&self.replacing);
            let now = Instant::now();
            if replacing.is_some_and(|since| now < since + GROWS_OLD_AFTER) {
                return;
            }
            if replacing.replace(now).is_none() {
                return;
            }
        }
        let this = self.clone();
        tokio::spawn(async move {
            let Ok(pin) = credential_file::read("PIN", &this.key.pin_file).await else { return };
            let Ok(permit) = this.permits.clone().acquire_owned().await else { return };
            let Ok(host) = this.start(&pin) else { return };
            // Put in its place only once it has answered: the old one works until then.
            if host.ask(Call::Version, &[], Some(permit)).await.is_ok() {
                *this.host.lock().await = Some(host);
            }
        });
    }

    /// The process to ask, and whether it was started for this.
    async fn host(&self, pin: &Content) -> Result<(Arc<Host>, bool), KekError> {
        // Tokens lock themselves after a few wrong PINs.
        if *lock(&self.refused) == Some(pin.fingerprint()) {
            let text = "the token has refused the PIN in pinFile; not shown again until the file changes";
            return Err(KekError::new(KekCause::Unauthenticated, text));
        }
        let mut current = self.host.lock().await;
        match current.as_ref().filter(|host| host.is_alive() && host.pin == pin.fingerprint()) {
            Some(host) => Ok((host.clone(), false)),
            None => Ok((current.insert(self.start(pin)?).clone(), true)),
        }
    }

    /// The module may take longer to be initialised than a caller waits: its process is there for the next one.
    fn start(&self, pin: &Content) -> Result<Arc<Host>, KekError> {
        let TokenKey { module, token_label, key_label, mechanism, .. } = self.key.clone();
        let host = Host::start(pin.fingerprint())?;
        let opening = Call::Open(Opening { module, token_label, key_label, mechanism });
        let (opened, pin) = (host.clone(), pin.text.clone());
        // What comes of it is told to the calls that wait for it.
        tokio::spawn(async move { drop(opened.ask(opening, pin.as_bytes(), None).await) });
        Ok(host)
    }

    /// A process that failed is replaced by the next call: a module that lost its token is initialised again.
    async fn fail(&self, host: &Arc<Host>, failed: Failed) -> KekError {
        let Failed { cause, text, pin_refused } = failed;
        if pin_refused {
            *lock(&self.refused) = Some(host.pin);
        }
        // The next call starts a process that initialises the module again: some see a token that came back, or a new
        // key, only then.
        if pin_refused || cause == KekCause::Unavailable || cause == KekCause::UnknownVersion {
            let mut current = self.host.lock().await;
            if current.as_ref().is_some_and(|current| Arc::ptr_eq(current, host)) {
                *current = None;
            }
        }
        KekError::new(cause, text)
    }
}

/// Why a call has no result.
enum Failure {
    /// The process answered so.
    Answered(Failed),
    /// It ended before it answered.
    Ended(Ended),
}

#[derive(Clone, Debug)]
struct Ended {
    why: String,
    /// It was ended since a call did not return.
    hung: bool,
}

impl From<Failure> for Failed {
    fn from(failure: Failure) -> Self {
        match failure {
            Failure::Answered(failed) => failed,
            Failure::Ended(Ended { why, .. }) => {
                let text = format!("the PKCS#11 module failed: {why}");
                Self { cause: KekCause::Unavailable, text, pin_refused: false }
            }
        }
    }
}

/// A call that waits for its answer.
struct Waiting {
    answer: oneshot::Sender<Result<(Done, Secret), Failed>>,
    hangs_at: Instant,
    /// Kept until the module returns, whether or not the caller still waits.
    _permit: Option<OwnedSemaphorePermit>,
}

/// A process with the module in it. Ended when the last call and the client let go of it.
#[derive(Debug)]
struct Host {
    pin: Fingerprint,
    writer: tokio::sync::Mutex<OwnedWriteHalf>,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    waiting: HashMap<u64, Waiting>,
    last: u64,
    /// Why it ended.
    ended: Option<Ended>,
}

impl std::fmt::Debug for State {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("State").field("ended", &self.ended).finish_non_exhaustive()
    }
}

impl Host {
    fn start(pin: Fingerprint) -> Result<Arc<Self>, KekError> {
        let failed = |error| KekError::unavailable("cannot start the PKCS#11 module's process").with_source(error);
        let (child, connection) = spawn().map_err(failed)?;
        let (reader, writer) = connection.into_split();
        let host = Arc::new(Self { pin, writer: writer.into(), state: Mutex::default() });
        tokio::spawn(watch(child, reader, Arc::downgrade(&host)));
        Ok(host)
    }

    fn is_alive(&self) -> bool {
        lock(&self.state).ended.is_none()
    }

    async fn ask(
        self: &Arc<Self>,
        call: Call,
        secret: &[u8],
        permit: Option<OwnedSemaphorePermit>,
    ) -> Result<(Done, Secret), Failure> {
        let hangs_after = if matches!(call, Call::Rotate) { ROTATION_HANGS_AFTER } else { HANGS_AFTER };
        let (answer, answered) = oneshot::channel();
        let number = {
            let mut state = lock(&self.state);
            if let Some(ended) = &state.ended {
                return Err(Failure::Ended(ended.clone()));
            }
            state.last += 1;
            let waiting = Waiting { answer, hangs_at: Instant::now() + hangs_after, _permit: permit };
            let number = state.last;
            state.waiting.insert(number, waiting);
            number
        };
        let bytes = frame(&Request { number, call }, secret);
        // A write that fails is told by the reader, which sees the same end.
        let _ = self.writer.lock().await.write_all(&bytes).await;
        match answered.await {
            Ok(result) => result.map_err(Failure::Answered),
            Err(_) => {
                let ended = lock(&self.state).ended.clone();
                Err(Failure::Ended(ended.unwrap_or_else(|| Ended { why: "it ended".into(), hung: false })))
            }
        }
    }

    fn take(&self, response: Response, secret: Secret) {
        let waiting = lock(&self.state).waiting.remove(&response.number);
        if let Some(waiting) = waiting {
            let _ = waiting.answer.send(response.result.map(|done| (done, secret)));
        }
    }

    fn hangs(&self) -> bool {
        let now = Instant::now();
        lock(&self.state).waiting.values().any(|waiting| waiting.hangs_at <= now)
    }

    /// All calls that wait fail: their senders are dropped.
    fn end(&self, ended: Ended) {
        let mut state = lock(&self.state);
        tracing::warn!(why = ended.why, "the PKCS#11 module's process ended");
        state.ended = Some(ended);
        state.waiting.clear();
    }
}

/// How often it is looked whether a call hangs.
const LOOK: Duration = Duration::from_millis(500);

/// Hands out answers until the process ends, or nobody needs it any more.
async fn watch(mut child: Child, mut reader: OwnedReadHalf, host: Weak<Host>) {
    let mut head = [0; 8];
    let mut filled = 0;
    loop {
        // Nobody uses it any more: dropped clients end their process.
        let Some(alive) = host.upgrade() else { break };
        if alive.hangs() {
            let _ = child.start_kill();
            alive.end(Ended { why: format!("a call did not return within {HANGS_AFTER:?}"), hung: true });
            break;
        }
        drop(alive);
        match timeout(LOOK, reader.read(&mut head[filled..])).await {
            Err(_) => continue,
            Ok(Ok(0) | Err(_)) => {
                let why = timeout(LOOK, child.wait()).await;
                if let Some(host) = host.upgrade() {
                    let why = why.map_or("it closed the connection".into(), |status| {
                        status.map_or_else(|error| error.to_string(), |status| status.to_string())
                    });
                    host.end(Ended { why, hung: false });
                }
                break;
            }
            Ok(Ok(length)) => filled += length,
        }
        if filled < head.len() {
            continue;
        }
        filled = 0;
        let Some((response, secret)) = body(&mut reader, head).await else {
            let _ = child.start_kill();
            continue;
        };
        if let Some(host) = host.upgrade() {
            host.take(response, secret);
        }
    }
    // The module may hang at its end, too.
    if timeout(HANGS_AFTER, child.wait()).await.is_err() {
        let _ = child.kill().await;
    }
}

async fn body(reader: &mut OwnedReadHalf, head: [u8; 8]) -> Option<(Response, Secret)> {
    let (json, secret) = lengths(head).ok()?;
    let mut body = Zeroizing::new(vec![0; json + secret]);
    reader.read_exact(&mut body).await.ok()?;
    parse(&body, json).ok()
}

/// The process, and a connection that is its standard input. What the module prints goes to the plugin's own error
/// output.
fn spawn() -> std::io::Result<(Child, UnixStream)> {
    let (ours, theirs) = Connection::pair()?;
    ours.set_nonblocking(true)?;
    // This very program, also after an upgrade has replaced its file.
    let program = std::env::var_os(PROGRAM).map_or_else(|| PathBuf::from("/proc/self/exe"), PathBuf::from);
    let errors = std::os::fd::AsFd::as_fd(&std::io::stderr()).try_clone_to_owned()?;
    let child = Command::new(program)
        .args(["key-store-host", "pkcs11"])
        .stdin(Stdio::from(OwnedFd::from(theirs)))
        // What a vendor's library prints must not get into the output of a command.
        .stdout(Stdio::from(errors))
        .kill_on_drop(true)
        .spawn()?;
    Ok((child, UnixStream::from_std(ours)?))
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
