//! Takes a stored generation up while nothing is served: every KEK that wrapped it is asked again and again, each by
//! itself, and the first one that unwraps it makes the plugin serve. It waits for no turn of the loop. What was sealed
//! before a reboot is taken up when all of them were asked and none unwrapped it.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use futures::FutureExt;
use futures::future::select_all;
use tokio::task::{AbortHandle, JoinSet};
use tokio::time::sleep;
use tracing::{error, info};

use super::coverage::Kept;
use crate::crypto::secret::{Dek, DekId};
use crate::dek::cache::digest_of;
use crate::dek::contacts::{CONFIRMATION, Standing};
use crate::envelope::WrappedDekSet;
use crate::generation::Generation;
use crate::kek::set::KekSet;
use crate::kek::{KekVersion, Lineage, WrapContext, WrappedDek};
use crate::plugin::handover::SealedStateFile;
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

/// What the KEKs said last: name, words, and whether asking again can help. Nothing of one that has not answered yet.
#[derive(Debug, Default)]
struct Said(Mutex<BTreeMap<Lineage, (String, Option<Standing>)>>);

impl Said {
    fn read<T>(&self, read: impl FnOnce(&mut BTreeMap<Lineage, (String, Option<Standing>)>) -> T) -> T {
        read(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }

    fn all(&self, holds: impl Fn(Option<Standing>) -> bool) -> bool {
        self.read(|said| !said.is_empty() && said.values().all(|(_, standing)| holds(*standing)))
    }

    /// Whether every KEK was asked, and one of them did not answer: it may still unwrap.
    fn is_silence(&self) -> bool {
        let is_silent = |standing| standing == Some(Standing::Silent);
        self.all(|standing| standing.is_some()) && !self.all(|standing| !is_silent(standing))
    }
}

/// What was sealed before a reboot, and the epoch that it must be of.
pub(super) type BeforeReboot = Option<(Arc<SealedStateFile>, u64)>;

impl Recovery {
    pub fn start(service: Arc<Service>, keks: KekSet, kept: Kept, before: BeforeReboot) -> Self {
        let (dek_id, wrapped) = kept;
        let said = Arc::new(Said::default());
        let mut task = JoinSet::new();
        let told = said.clone();
        let attempt = task.spawn(async move {
            tokio::select! {
                biased;
                () = unwrap_stored(&service, keks, dek_id, &wrapped, &told) => {}
                () = take_up(&service, before, &told) => {}
            }
        });
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
        self.said.all(|standing| standing == Some(Standing::Lost))
    }
}

async fn unwrap_stored(service: &Service, keks: KekSet, dek_id: DekId, wrapped: &WrappedDekSet, said: &Said) {
    let context = wrapped.context(dek_id);
    let configured = keks.lineages();
    let usable = wrapped.wraps.iter().filter(|wrap| configured.contains(&wrap.version.lineage));
    let attempts: Vec<_> = usable
        .map(|wrap| {
            // Until it was asked, it may still unwrap.
            said.read(|said| said.insert(wrap.version.lineage, ("no answer yet".into(), None)));
            ask(service, &keks, wrap, &context, said).boxed()
        })
        .collect();
    // No configured KEK wrapped it; then it was not chosen, or the configuration changed since.
    if attempts.is_empty() {
        return;
    }
    let dek = tokio::select! {
        biased;
        // An earlier process may have handed it over.
        dek = handed_over(service, dek_id, wrapped) => dek,
        // The other requests are dropped with it: one that unwraps is enough to serve, and the loop proves the others
        // later.
        ((dek, by, asked), ..) = select_all(attempts) => {
            let dek = Arc::new(dek);
            service.cache().insert(dek_id, dek.clone(), wrapped, &[by], asked);
            dek
        }
    };
    go_on(service, dek_id, dek, wrapped);
}

/// The DEK, as soon as it is in memory. What a Decrypt brought is not enough: its wraps may open and the stored ones, which
/// would stand beside everything that is sealed from here on, may not.
async fn handed_over(service: &Service, dek_id: DekId, wrapped: &WrappedDekSet) -> Arc<Dek> {
    let (mut changes, wraps) = (service.cache().changes(), digest_of(wrapped));
    loop {
        if let Some(dek) = service.cache().get_from(dek_id, wraps) {
            return dek;
        }
        // The cache that tells of changes is there as long as the service is.
        let _ = changes.changed().await;
    }
}

/// Takes up what was sealed before a reboot once every KEK was asked and one of them is silent, again and again: the clock
/// may be set late, and the KEK of this machine be there late. Removes it where all of them deny. Never ends.
async fn take_up(service: &Service, before: BeforeReboot, said: &Said) {
    let Some((sealed, epoch)) = before else { return std::future::pending().await };
    let mut denied = None;
    loop {
        if said.all(|standing| standing == Some(Standing::Denies)) {
            let now = service.cache().now();
            if now.saturating_sub(*denied.get_or_insert(now)) >= CONFIRMATION {
                match sealed.forget().await {
                    Ok(()) => info!("every KEK denies its use: nothing from before the reboot is kept"),
                    Err(error) => error!(%error, "what every KEK denies cannot be removed"),
                }
                denied = None;
            }
        } else {
            denied = None;
            if said.is_silence() {
                sealed.take_up(service, epoch).await;
            }
        }
        sleep(AGAIN).await;
    }
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
                said.read(|said| said.insert(lineage, (words, Some(standing))));
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
