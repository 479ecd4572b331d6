//! The DEKs in memory, sealed in the state folder for the plugin that is started after a reboot: written when they change
//! or were unwrapped again, taken up when no KEK answers, and removed with the last that may be used.
//!
//! What it ends with and which clock is believed is in [`crate::dek::sealed`].

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use tokio::time::{Instant, sleep, timeout};
use tracing::{info, warn};

use super::held::{blocking, held};
use crate::crypto::seal::{dek_id, os_random};
use crate::crypto::secret::{Dek, DekId};
use crate::dek::handover::Handover;
use crate::dek::sealed::{MAX_BYTES, Moment, SealedError, SealedState, ending};
use crate::files;
use crate::kek::guard::GuardedKek;
use crate::kek::{KekError, KekVersion, WrapContext, WrappedDek};
use crate::plugin::service::Service;
use crate::telemetry::Metrics;

/// Its name in the state folder.
const NAME: &str = "sealed";
/// Changes come in bursts: an adoption is several.
const GATHERED_FOR: Duration = Duration::from_millis(200);
/// A clock that is set while the plugin runs is noticed within this time.
const LOOKS_EVERY: Duration = Duration::from_secs(30);
/// Unwraps that make nothing but the ends later are written this often.
const LATER_EVERY: Duration = Duration::from_mins(1);
/// Also rewritten while nothing changes, so that a clock that is behind is told by a moment that is not long ago; and
/// so that a KEK of this machine that went away is noticed.
const ANEW_EVERY: Duration = Duration::from_mins(10);
/// After it could not be written.
const AGAIN_AFTER: Duration = Duration::from_secs(5);

/// The sealed state of this node.
#[derive(Debug)]
pub struct SealedStateFile {
    file: PathBuf,
    kek: GuardedKek,
    /// The longest time that it may be used after a KEK unwrapped.
    max_age: Duration,
    metrics: Arc<Metrics>,
    /// When what was taken up ends, by the time of day.
    ends: Mutex<Vec<(KekVersion, Timestamp)>>,
    /// What was said last of taking it up, to log it once.
    said: Mutex<String>,
}

/// Why it is not taken up, written or removed.
#[derive(Debug, thiserror::Error)]
pub(in crate::plugin) enum SealedStateError {
    #[error("{0}")]
    File(#[from] io::Error),
    #[error(transparent)]
    Sealed(#[from] SealedError),
    #[error("KEK {name} does not {what}: {}", error.chain())]
    Kek { name: String, what: &'static str, error: KekError },
    #[error("KEK {0} unwrapped another key than it had wrapped")]
    OtherKey(String),
    #[error("KEK {0} is one of keks or retired; give sealedState.kek a key of its own")]
    InUse(String),
}

type Result<T> = std::result::Result<T, SealedStateError>;

/// What was written last.
struct Written {
    content: Content,
    newest: Option<Duration>,
    at: Instant,
}

/// Which DEKs, and the KEK versions that vouch for them.
#[derive(Default, PartialEq)]
struct Content {
    deks: BTreeSet<DekId>,
    versions: BTreeSet<KekVersion>,
}

impl Content {
    fn of(handover: &Handover) -> Self {
        let versions = handover.opened.iter().map(|vouched| vouched.version.clone());
        Self { deks: handover.deks.iter().map(|held| held.id).collect(), versions: versions.collect() }
    }
}

impl SealedStateFile {
    /// In the folder `state`, sealed by `kek`, which is none of those that wrap what is stored in etcd.
    pub fn new(state: &Path, kek: GuardedKek, max_age: Duration, metrics: Arc<Metrics>) -> Self {
        let (ends, said) = (Mutex::default(), Mutex::default());
        Self { file: state.join(NAME), kek, max_age, metrics, ends, said }
    }

    /// Removes what an earlier process left, where the configuration does not speak of it any more.
    ///
    /// # Errors
    /// Of the file system.
    pub fn remove_from(state: &Path) -> io::Result<()> {
        remove(&state.join(NAME))
    }

    /// Takes up what is sealed. Says in the log what became of it, once.
    pub(in crate::plugin) async fn take_up(&self, service: &Service, epoch: u64) {
        match self.open(service, epoch).await {
            Ok(Some(handover)) => {
                let ends = handover.opened.iter().filter_map(|vouched| {
                    let left = vouched.until?.saturating_sub(handover.made);
                    Some((vouched.version.clone(), sealed_at(&handover, service)?.checked_add(left).ok()?))
                });
                *lock(&self.ends) = ends.collect();
                warn!(
                    deks = handover.deks.len(),
                    file = %self.file.display(),
                    "no KEK answers: taken up from before the reboot, as long as they may be used"
                );
                service.cache().take_over(handover.deks, &handover.opened);
            }
            Ok(None) => {}
            Err(error) => {
                let error = error.to_string();
                let mut said = lock(&self.said);
                if *said != error {
                    warn!(error, file = %self.file.display(), "what is sealed there is not used");
                    *said = error;
                }
            }
        }
    }

    async fn open(&self, service: &Service, epoch: u64) -> Result<Option<Handover>> {
        let Some(bytes) = self.blocking(read).await? else { return Ok(None) };
        let cluster = service.cluster();
        let state = SealedState::decode(&bytes, cluster, epoch)?;
        self.is_another(service)?;
        let context = state.context(cluster);
        let key = self.unwrap(state.wrapped(), &context, "unwrap its key").await?;
        // Only now: the KEK may have taken its time.
        let now = moment(service);
        // The configuration may have become stricter since.
        let opened = state.open(&key, cluster, now).and_then(|handover| {
            let handover = ending(handover, self.longest(service)).ok_or(SealedError::Over)?;
            let lasts = handover.opened.iter().any(|vouched| vouched.until.is_some_and(|until| until > now.clock));
            lasts.then_some(handover).ok_or(SealedError::Over)
        });
        if opened.as_ref().is_err_and(|error| *error == SealedError::Over) {
            self.forget().await?;
        }
        Ok(Some(opened?))
    }

    /// Keeps it up to date, for as long as the process runs.
    pub async fn keep_up(self: Arc<Self>, service: Arc<Service>) {
        let mut changes = service.cache().changes();
        let (mut epoch, mut written) = (None, None);
        let mut said: Option<std::result::Result<(), String>> = None;
        loop {
            changes.mark_unchanged();
            self.follow_the_clock(&service);
            epoch = service.serving().generation().map(|generation| generation.wrapped().epoch).or(epoch);
            // What lies there is left alone until something was served.
            let updated = match epoch {
                Some(epoch) => self.update(&service, epoch, &mut written).await,
                None => Ok(false),
            };
            let is_refused = updated.is_err();
            let says = match updated {
                Ok(false) => said.clone(),
                Ok(true) => Some(Ok(())),
                Err(error) => Some(Err(error.to_string())),
            };
            if says != said {
                match &says {
                    Some(Err(error)) => {
                        self.metrics.sealed_state_ends(None);
                        warn!(error, "a start after a reboot will not find the keys of this one");
                    }
                    _ => info!(file = %self.file.display(), "sealed for a start after a reboot"),
                }
                said = says;
            }
            if is_refused {
                sleep(AGAIN_AFTER).await;
                continue;
            }
            let look = self.later_every(&service).clamp(GATHERED_FOR, LOOKS_EVERY);
            let _ = timeout(look, changes.changed()).await;
            sleep(GATHERED_FOR).await;
        }
    }

    /// Writes what may be used now, where that is due. Whether it was written.
    async fn update(&self, service: &Service, epoch: u64, written: &mut Option<Written>) -> Result<bool> {
        let Some(handover) = held(service, epoch).and_then(|handover| ending(handover, self.longest(service))) else {
            if written.as_ref().is_none_or(|written| written.content != Content::default()) {
                self.forget().await?;
                info!("nothing is sealed for a start after a reboot");
                *written = Some(Written { content: Content::default(), newest: None, at: Instant::now() });
            }
            return Ok(false);
        };
        let content = Content::of(&handover);
        let newest = handover.opened.iter().map(|vouched| vouched.opened).max();
        // Somebody may have removed it, or the folder with it.
        if written.is_some() && !self.blocking(Path::try_exists).await.unwrap_or(true) {
            *written = None;
        }
        if let Some(written) = written
            && written.content == content
        {
            let age = written.at.elapsed();
            let is_due = age >= self.later_every(service) && (written.newest != newest || age >= ANEW_EVERY);
            // Somebody may have removed it.
            if !is_due && self.blocking(Path::try_exists).await? {
                return Ok(false);
            }
        }
        if let Err(error) = self.write(service, &handover).await {
            let is_less = |written: &Written| {
                let Content { deks, versions } = &written.content;
                !deks.is_subset(&content.deks) || !versions.is_subset(&content.versions)
            };
            // What was denied must not stay because the rest cannot be written.
            if written.take_if(|written| is_less(written)).is_some() {
                self.forget().await?;
            }
            return Err(error);
        }
        *written = Some(Written { content, newest, at: Instant::now() });
        Ok(true)
    }

    async fn write(&self, service: &Service, handover: &Handover) -> Result<()> {
        self.is_another(service)?;
        let key = Dek::generate(&mut os_random());
        let context = WrapContext { cluster: service.cluster().clone(), dek_id: dek_id(&key) };
        let wrapped = self.kek.wrap(&key, &context).await.map_err(|error| self.refused("wrap", error))?;
        // As for every DEK: what is not unwrapped again is not relied upon.
        self.unwrap(&wrapped, &context, "unwrap what it wrapped").await?;
        let wall = sealed_at(handover, service).ok_or_else(|| io::Error::other("the clock is out of all bounds"))?;
        let bytes = SealedState::seal(handover, (context.dek_id, &key), wrapped, wall).encode();
        self.blocking(move |file| files::replace(file, &bytes)).await?;
        let last = handover.opened.iter().filter_map(|vouched| vouched.until).max();
        let end = last.and_then(|last| wall.checked_add(last.saturating_sub(handover.made)).ok());
        self.metrics.sealed_state_ends(end);
        Ok(())
    }

    async fn unwrap(&self, wrapped: &WrappedDek, context: &WrapContext, what: &'static str) -> Result<Dek> {
        let unwrapped = self.kek.unwrap(wrapped, context).await.map_err(|error| self.refused(what, error))?;
        if dek_id(&unwrapped.dek) == context.dek_id {
            Ok(unwrapped.dek)
        } else {
            Err(SealedStateError::OtherKey(self.kek.name().to_owned()))
        }
    }

    fn refused(&self, what: &'static str, error: KekError) -> SealedStateError {
        SealedStateError::Kek { name: self.kek.name().to_owned(), what, error }
    }

    /// Removes it: nothing of it may be used any more.
    ///
    /// # Errors
    /// Of the file system.
    pub(in crate::plugin) async fn forget(&self) -> Result<()> {
        self.blocking(remove).await?;
        self.metrics.sealed_state_ends(None);
        Ok(())
    }

    /// # Errors
    /// The KEK of this machine would be one of those that wrap what is stored in etcd.
    fn is_another(&self, service: &Service) -> Result<()> {
        if service.keks().lineages().contains(&self.kek.lineage()) {
            return Err(SealedStateError::InUse(self.kek.name().to_owned()));
        }
        Ok(())
    }

    /// Ends what was taken up as the time of day says by now: it may have been behind when the machine started.
    fn follow_the_clock(&self, service: &Service) {
        let now = moment(service);
        for (version, end) in &*lock(&self.ends) {
            let left = Duration::try_from(end.duration_since(now.wall)).unwrap_or_default();
            service.cache().shorten(version, now.clock.saturating_add(left));
        }
    }

    /// How long anything in it may be used after a KEK unwrapped it last.
    fn longest(&self, service: &Service) -> Duration {
        self.max_age.min(service.cache().limit())
    }

    fn later_every(&self, service: &Service) -> Duration {
        LATER_EVERY.min(self.longest(service) / 24)
    }

    async fn blocking<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Path) -> io::Result<T> + Send + 'static,
    ) -> Result<T> {
        let file = self.file.clone();
        Ok(blocking(move || work(&file)).await?)
    }
}

fn moment(service: &Service) -> Moment {
    Moment { wall: Timestamp::now(), clock: service.cache().now() }
}

/// The time of day at which `handover` was made.
fn sealed_at(handover: &Handover, service: &Service) -> Option<Timestamp> {
    let now = moment(service);
    let ago = SignedDuration::try_from(now.clock.saturating_sub(handover.made)).ok()?;
    now.wall.checked_sub(ago).ok()
}

fn read(file: &Path) -> io::Result<Option<Vec<u8>>> {
    match files::read(file, u64::try_from(MAX_BYTES).unwrap_or(u64::MAX)) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        read => read.map(Some),
    }
}

fn remove(file: &Path) -> io::Result<()> {
    match fs::remove_file(file) {
        // A file system that can only be read says so of a file that is not there, too.
        Err(_) if !file.try_exists().unwrap_or(true) => Ok(()),
        // What is removed must not be there again after a power cut.
        removed => removed.and_then(|()| File::open(files::folder_of(file))?.sync_all()),
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
