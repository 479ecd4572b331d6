//! A client whose credentials are read again when a server refuses them: a token expires, and the program that renews it
//! writes it into the same file.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::time::{Duration, Instant};

use futures::future::BoxFuture;
use tokio::sync::Mutex;

/// Credentials are not read more often than this.
const REREAD_INTERVAL: Duration = Duration::from_secs(2);

/// Makes a client with the credentials that lie in the files now; `None` where they cannot be read.
pub type Renew = Arc<dyn Fn() -> BoxFuture<'static, Option<kube::Client>> + Send + Sync>;

/// A client, shared by everybody who asks the same address.
#[derive(Clone)]
pub(super) struct Session {
    current: Arc<Mutex<Current>>,
    renew: Option<Renew>,
    answered: Arc<AtomicBool>,
}

struct Current {
    client: kube::Client,
    generation: u64,
    read: Instant,
}

impl Session {
    pub(super) fn new(client: kube::Client, renew: Option<Renew>) -> Self {
        let current = Current { client, generation: 0, read: Instant::now() };
        Self { current: Arc::new(Mutex::new(current)), renew, answered: Arc::default() }
    }

    /// The client, and which it is.
    pub(super) async fn client(&self) -> (kube::Client, u64) {
        let current = self.current.lock().await;
        (current.client.clone(), current.generation)
    }

    /// Notes that the server answered.
    pub(super) fn has_answered(&self) {
        self.answered.store(true, Relaxed);
    }

    /// Whether the server answered at any time: one that never did is more likely named wrongly than away.
    pub(super) fn ever_answered(&self) -> bool {
        self.answered.load(Relaxed)
    }

    /// Reads the credentials again because those of `generation` were refused. Whether there are others now: those
    /// that somebody else has read meanwhile count.
    pub(super) async fn renewed(&self, generation: u64) -> bool {
        let Some(renew) = &self.renew else { return false };
        let mut current = self.current.lock().await;
        // Somebody else has read them since this request was sent.
        if current.generation != generation {
            return true;
        }
        // A token that is refused for good would otherwise have the files read with every request.
        if current.generation > 0 && current.read.elapsed() < REREAD_INTERVAL {
            return false;
        }
        let Some(client) = renew().await else { return false };
        *current = Current { client, generation: generation.saturating_add(1), read: Instant::now() };
        true
    }
}
