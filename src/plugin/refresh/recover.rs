//! Takes a stored generation up while nothing is served: every KEK that wrapped it is asked again and again, each by
//! itself, and the first one that unwraps it makes the plugin serve. It waits for no turn of the loop.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use futures::FutureExt;
use futures::future::select_all;
use tokio::task::{AbortHandle, JoinSet};
use tokio::time::sleep;
use tracing::{error, info};

use crate::crypto::secret::{Dek, DekId};
use crate::dek::cache::digest_of;
use crate::dek::contacts::Standing;
use crate::envelope::WrappedDekSet;
use crate::generation::Generation;
use crate::kek::set::KekSet;
use crate::kek::{KekVersion, Lineage, WrapContext, WrappedDek};
use crate::plugin::service::Service;
use crate::plugin::state::{Serving, Trouble};

/// A KEK that does not answer is asked again after this; the breaker sees to it that this costs little.
const AGAIN: Duration = Duration::from_millis(400);
/// One that answers, and refuses.
const AFTER_REFUSAL: Duration = Duration::from_secs(1);

/// The attempt to serve from one stored generation. Dropping it ends it.
#[derive(Debug)]
pub(super) struct Recovery {
    dek_id: DekId,
    said: Arc<Said>,
    /// Ends the attempt when it is dropped.
    _task: JoinSet<()>,
    attempt: AbortHandle,
}

/// What the KEKs said last: name, words, and whether asking again can help.
#[derive(Debug, Default)]
struct Said(Mutex<BTreeMap<Lineage, (String, Standing)>>);

impl Said {
    fn read<T>(&self, read: impl FnOnce(&mut BTreeMap<Lineage, (String, Standing)>) -> T) -> T {
        read(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

impl Recovery {
    pub fn start(service: Arc<Service>, keks: KekSet, dek_id: DekId, wrapped: Arc<WrappedDekSet>) -> Self {
        let said = Arc::new(Said::default());
        let mut task = JoinSet::new();
        let attempt = task.spawn(unwrap_stored(service, keks, dek_id, wrapped, said.clone()));
        Self { dek_id, said, _task: task, attempt }
    }

    pub fn dek_id(&self) -> DekId {
        self.dek_id
    }

    /// Whether it ended: what it took up may have been dropped since.
    pub fn is_over(&self) -> bool {
        self.attempt.is_finished()
    }

    /// Why nobody has unwrapped it yet; empty before the first answer.
    pub fn words(&self) -> String {
        self.said.read(|said| said.values().map(|(words, _)| words.clone()).collect::<Vec<_>>().join("; "))
    }

    /// Whether every KEK that could unwrap it has answered that it never will.
    pub fn is_lost(&self) -> bool {
        self.said.read(|said| !said.is_empty() && said.values().all(|(_, standing)| *standing == Standing::Lost))
    }
}

async fn unwrap_stored(
    service: Arc<Service>,
    keks: KekSet,
    dek_id: DekId,
    wrapped: Arc<WrappedDekSet>,
    said: Arc<Said>,
) {
    // An earlier process may have handed it over. What a Decrypt brought is not enough: its wraps may open and the stored
    // ones, which would stand beside everything that is sealed from here on, may not.
    if let Some(dek) = service.cache().get_from(dek_id, digest_of(&wrapped)) {
        return go_on(&service, dek_id, dek, &wrapped);
    }
    let context = wrapped.context(dek_id);
    let usable = wrapped.wraps.iter().filter(|wrap| keks.name(wrap.version.lineage).is_some());
    let attempts: Vec<_> = usable
        .map(|wrap| {
            // Until it was asked, it may still unwrap.
            said.read(|said| said.insert(wrap.version.lineage, ("no answer yet".into(), Standing::Silent)));
            ask(&service, &keks, wrap, &context, &said).boxed()
        })
        .collect();
    // No configured KEK wrapped it; then it was not chosen, or the configuration changed since.
    if attempts.is_empty() {
        return;
    }
    // The other requests are dropped with it: one that unwraps is enough to serve, and the loop proves the others
    // later.
    let (dek, by, asked) = select_all(attempts).await.0;
    let dek = Arc::new(dek);
    service.cache().insert(dek_id, dek.clone(), &wrapped, &[by], asked);
    go_on(&service, dek_id, dek, &wrapped);
}

/// Serves from the generation of a DEK that is in memory.
fn go_on(service: &Service, dek_id: DekId, dek: Arc<Dek>, wrapped: &WrappedDekSet) {
    match Generation::new(dek, wrapped.clone()) {
        Ok(generation) => {
            info!(key_id = %generation.key_id(), %dek_id, "continues with its stored generation");
            // A Decrypt may have brought it back, and what is brought is written behind.
            let trouble = service.store().problem_of(dek_id).map(Trouble::Degraded);
            service.publish_first(Serving::Ready { generation: Arc::new(generation), trouble });
        }
        Err(error) => error!(%dek_id, %error, "the stored generation cannot be used"),
    }
}

/// Asks one KEK until it unwraps; when it was asked for that.
async fn ask(
    service: &Service,
    keks: &KekSet,
    wrap: &WrappedDek,
    context: &WrapContext,
    said: &Said,
) -> (Dek, KekVersion, Duration) {
    let lineage = wrap.version.lineage;
    loop {
        let asked = service.cache().now();
        match keks.unwrap_one(wrap, context).await {
            Some(Ok(dek)) => return (dek, wrap.version.clone(), asked),
            Some(Err(error)) => {
                let standing = Standing::from(error.cause());
                let words = format!("KEK {}: {}", keks.name(lineage).unwrap_or("?"), error.chain());
                said.read(|said| said.insert(lineage, (words, standing)));
                // A refusal is not noted: rows of denials are about DEKs that are held, and are counted in `prove`.
                if standing == Standing::Silent {
                    service.cache().note_known(&wrap.version, standing, asked);
                    sleep(AGAIN).await;
                } else {
                    sleep(AFTER_REFUSAL).await;
                }
            }
            None => sleep(AFTER_REFUSAL).await,
        }
    }
}
