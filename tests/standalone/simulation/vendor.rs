//! A key store: keys with versions, and everything that one can do wrong.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use async_trait::async_trait;
use kube_envelope::crypto::secret::{Dek, DekId};
use kube_envelope::dek::clock::Clock;
use kube_envelope::kek::clock::ServerClock;
use kube_envelope::kek::{
    Kek, KekCause, KekError, KekVersion, Lineage, Unwrapped, WrapContext, WrappedDek, unwrapped_dek,
};
use tokio::time::Instant;

use super::node::SimClock;
use super::row::{Row, Tolerance};

/// How a key store answers one operation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    Good,
    Hangs,
    Unavailable,
    Throttles,
    Denies,
    /// Another DEK than the one that was wrapped.
    Lies,
}

/// What happened to an unwrap, as the key store saw it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Did {
    Opened,
    Denied,
    /// Anything that is neither.
    Other,
}

/// Who asked: node, process, version.
pub type Asker = (usize, u64, u32);

/// What a process has had of a version, by its node's clock, which counts suspended time.
#[derive(Clone, Debug, Default)]
pub struct Had {
    /// The last time that something was unwrapped.
    pub opened: Option<Duration>,
    /// Denials that a process may take for a row.
    pub denials: Option<Row>,
    /// Until when such a row was definite: what ended it may be an answer to a process that had already stopped for it.
    pub definite_until: Option<Instant>,
    /// Denials that it has to take for one: each of the same DEK, the first when nothing older was under way.
    pub denials_of: BTreeMap<DekId, Row>,
}

/// One key of a key store.
#[derive(Debug)]
pub struct Vendor {
    pub name: &'static str,
    lineage: Lineage,
    state: Mutex<State>,
}

#[derive(Debug)]
pub struct State {
    /// The version that wraps.
    pub active: u32,
    pub newest: u32,
    /// Another version that is called active: the answer lags.
    pub named: Option<u32>,
    pub names: Mode,
    pub wraps: Mode,
    pub unwraps: Mode,
    pub latency: Duration,
    pub disabled: BTreeSet<u32>,
    pub destroyed: BTreeSet<u32>,
    /// When any of these changed, by the world's clock.
    pub changed: Instant,
    pub had: BTreeMap<Asker, Had>,
    /// How often it began to lie about what it unwraps.
    pub lies: usize,
    /// Every time the active version became an older one.
    pub went_back: bool,
}

impl Vendor {
    pub fn new(name: &'static str) -> Arc<Self> {
        let state = State {
            active: 1,
            newest: 1,
            named: None,
            names: Mode::Good,
            wraps: Mode::Good,
            unwraps: Mode::Good,
            latency: USUAL,
            disabled: BTreeSet::new(),
            destroyed: BTreeSet::new(),
            changed: Instant::now(),
            had: BTreeMap::new(),
            lies: 0,
            went_back: false,
        };
        Arc::new(Self { name, lineage: Lineage::derive("simulated", &[name]), state: Mutex::new(state) })
    }

    pub fn lineage(&self) -> Lineage {
        self.lineage
    }

    pub fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap()
    }

    /// Changes it, and notes when.
    pub fn change(&self, change: impl FnOnce(&mut State)) {
        let mut state = self.state();
        change(&mut state);
        state.changed = Instant::now();
    }

    /// Whether it has unwrapped `version`, asked at any moment of the last `while_`.
    pub fn opens_since(&self, version: u32, while_: Duration) -> bool {
        let state = self.state();
        state.changed.elapsed() >= while_ && state.opens(version)
    }

    /// A process that serves nothing asks about what it would serve, and counts nothing.
    pub fn stopped(&self, node: usize, incarnation: u64) {
        let mut state = self.state();
        let own = state.had.iter_mut().filter(|((at, process, _), _)| (*at, *process) == (node, incarnation));
        own.for_each(|(_, had)| had.denials_of.clear());
    }

    /// A process that has it in its configuration no more forgets what it had of it.
    pub fn left(&self, node: usize, incarnation: u64) {
        self.state().had.retain(|(at, process, _), _| (*at, *process) != (node, incarnation));
    }

    /// Whether it has denied to unwrap `version`, for as long.
    pub fn denies_since(&self, version: u32, while_: Duration) -> bool {
        let state = self.state();
        let denies =
            state.unwraps == Mode::Denies || (state.unwraps == Mode::Good && state.disabled.contains(&version));
        denies && !state.destroyed.contains(&version) && state.latency <= FAST && state.changed.elapsed() >= while_
    }
}

/// An answer that an API server waits for; no call of a KEK takes longer.
pub const CALL: Duration = Duration::from_secs(3);

/// What an answer takes when nothing is wrong.
pub const USUAL: Duration = Duration::from_millis(20);

/// Slower than this, an answer is waited for by somebody.
pub const FAST: Duration = Duration::from_millis(200);

impl State {
    pub fn opens(&self, version: u32) -> bool {
        self.unwraps == Mode::Good
            && !self.disabled.contains(&version)
            && !self.destroyed.contains(&version)
            && self.latency <= FAST
    }
}

/// What one process of one node holds of a key store.
#[derive(Debug)]
pub struct Client {
    pub vendor: Arc<Vendor>,
    pub clock: Arc<SimClock>,
    pub node: usize,
    pub incarnation: u64,
}

impl Client {
    fn version(&self, number: u32) -> KekVersion {
        KekVersion { lineage: self.vendor.lineage(), version: number.to_string() }
    }

    /// `asked`: a machine that slept between request and answer counts from the request.
    fn note(&self, version: u32, dek: DekId, did: Did, asked: Duration) {
        let mut state = self.vendor.state();
        let state = &mut *state;
        tracing::debug!(
            node = self.node,
            vendor = self.vendor.name,
            version,
            ?did,
            ?asked,
            dek = short(dek),
            "asked to unwrap"
        );
        let is_settled = state.changed.elapsed() >= CALL && state.latency <= USUAL;
        let had = state.had.entry((self.node, self.incarnation, version)).or_default();
        if had.denials.is_some_and(|row| row.definite_for().is_some()) {
            had.definite_until = Some(Instant::now());
        }
        if did != Did::Denied {
            (had.denials, had.denials_of) = (None, BTreeMap::new());
        }
        match did {
            Did::Opened => had.opened = Some(asked),
            Did::Denied => {
                had.denials = Some(Row::after(had.denials.take(), asked, Tolerance::Lenient));
                let before = had.denials_of.remove(&dek);
                if is_settled {
                    had.denials_of.insert(dek, Row::after(before, asked, Tolerance::Strict));
                }
            }
            Did::Other => {}
        }
    }

    /// Answers as `mode` says, after the usual while and what the operation takes longer than others.
    async fn answer(&self, longer: u64, mode: impl Fn(&State) -> Mode) -> Result<bool, KekError> {
        let latency = self.vendor.state().latency;
        tokio::time::sleep(latency + Duration::from_millis(longer)).await;
        // Read once the request has arrived.
        let now = mode(&self.vendor.state());
        match now {
            Mode::Good => Ok(true),
            Mode::Lies => Ok(false),
            Mode::Hangs => std::future::pending().await,
            Mode::Unavailable => Err(KekError::unavailable("503")),
            Mode::Throttles => {
                Err(KekError::new(KekCause::Throttled, "429").with_retry_after(Some(Duration::from_secs(3))))
            }
            Mode::Denies => Err(KekError::new(KekCause::Denied, "403")),
        }
    }
}

#[async_trait]
impl Kek for Client {
    fn lineage(&self) -> Lineage {
        self.vendor.lineage()
    }

    fn credentials_expire(&self) -> Option<jiff::Timestamp> {
        None
    }

    fn server_clock(&self) -> Option<&ServerClock> {
        None
    }

    async fn version(&self) -> Result<KekVersion, KekError> {
        self.answer(0, |state| state.names).await?;
        let state = self.vendor.state();
        let active = state.named.unwrap_or(state.active);
        if state.disabled.contains(&active) {
            return Err(KekError::new(KekCause::Denied, "the active version is disabled"));
        }
        Ok(self.version(active))
    }

    async fn wrap(&self, dek: &Dek, context: &WrapContext) -> Result<WrappedDek, KekError> {
        self.answer(3, |state| state.wraps).await?;
        let active = self.vendor.state().active;
        let blob = [active.to_be_bytes().as_slice(), &context.dek_id.0, dek.expose()].concat();
        Ok(WrappedDek { version: self.version(active), blob })
    }

    async fn unwrap(&self, wrapped: &WrappedDek, context: &WrapContext) -> Result<Unwrapped, KekError> {
        let number: u32 = wrapped.version.version.parse().unwrap();
        let asked = self.clock.now();
        if self.vendor.state().unwraps == Mode::Hangs {
            self.note(number, context.dek_id, Did::Other, asked);
        }
        let truth = match self.answer(7, |state| state.unwraps).await {
            Ok(truth) => truth,
            Err(error) => {
                self.note(
                    number,
                    context.dek_id,
                    if error.cause() == KekCause::Denied { Did::Denied } else { Did::Other },
                    asked,
                );
                return Err(error);
            }
        };
        let (disabled, destroyed) = {
            let state = self.vendor.state();
            (state.disabled.contains(&number), state.destroyed.contains(&number))
        };
        let refusal = |did, cause, text: &str| {
            self.note(number, context.dek_id, did, asked);
            Err(KekError::new(cause, text))
        };
        if destroyed {
            return refusal(Did::Other, KekCause::UnknownVersion, "no such version");
        } else if disabled {
            return refusal(Did::Denied, KekCause::Denied, "disabled");
        }
        let (head, key) = wrapped.blob.split_at(20);
        if head != [number.to_be_bytes().as_slice(), &context.dek_id.0].concat() {
            return refusal(Did::Other, KekCause::Rejected, "not wrapped by this version");
        }
        let mut key = key.to_vec();
        if !truth {
            key[0] ^= 1;
        }
        self.note(number, context.dek_id, if truth { Did::Opened } else { Did::Other }, asked);
        Ok(Unwrapped { dek: unwrapped_dek(key)?, version: self.version(number) })
    }
}

/// The versions that wrapped a DEK, by the names of the vendors.
pub fn numbers(vendors: &[Arc<Vendor>], versions: impl Iterator<Item = KekVersion>) -> BTreeMap<usize, u32> {
    versions
        .filter_map(|version| {
            let at = vendors.iter().position(|vendor| vendor.lineage() == version.lineage)?;
            Some((at, version.version.parse().unwrap()))
        })
        .collect()
}

/// Any 16 bytes are the name of some DEK.
pub fn short(id: DekId) -> String {
    id.to_string()[..6].to_owned()
}
