//! One rotation at a time: a Lease in the cluster that the run holds and renews while it works.
//!
//! Two times keep two runs apart. Another run takes the Lease when it has seen it unchanged for `EXPIRES_AFTER`; a run
//! that could not renew it for `STOPS_AFTER`, which is less, stands still. So when another one begins, this one has
//! stopped, whatever cut it off from the API server.
#![cfg_attr(not(test), deny(clippy::arithmetic_side_effects))]

mod holder;

use std::future::poll_fn;
use std::pin::pin;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::task::Poll;
use std::time::Duration;

use rustix::time::{ClockId, clock_gettime};
use serde::Deserialize;
use serde_json::{Value, json};
use tokio::time::Instant;

pub use self::holder::Holder;
use crate::rotation::cluster::api::{Api, ApiError};
use crate::rotation::cluster::canary::NAMESPACE;
use crate::rotation::error::RotationError;

const NAME: &str = "rotate-keys";
const RENEW_INTERVAL: Duration = Duration::from_secs(10);
/// A Lease that was not renewed for this long belongs to a run that is gone. No clock of another machine is asked:
/// what counts is that nothing in it changes.
const EXPIRES_AFTER: Duration = Duration::from_mins(1);
/// A run that could not renew its Lease for this long stands still. Its shards do so 20 s after it, which is still well
/// before another run takes the Lease.
const STOPS_AFTER: Duration = Duration::from_secs(30);
const LOOK_INTERVAL: Duration = Duration::from_secs(2);
/// A renewal that takes longer is tried again.
const ANSWERS_WITHIN: Duration = Duration::from_secs(8);

/// The Lease, held by this run.
pub struct Lease {
    api: Api,
    holder: Holder,
    /// Time since boot, as this machine counts it.
    clock: Clock,
    /// When it was renewed last, in milliseconds of that clock: taken before the request was sent.
    renewed: AtomicU64,
}

type Clock = Box<dyn Fn() -> Duration + Send + Sync>;

/// Why a Lease must not be relied upon any more.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Lost {
    /// Another run has taken it: its name.
    Taken(String),
    /// It has not been renewed for long enough that another run may be about to take it.
    Silent(Duration),
}

#[derive(Debug, Default, Deserialize)]
struct Found {
    metadata: Metadata,
    #[serde(default)]
    spec: Spec,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Metadata {
    resource_version: String,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Spec {
    holder_identity: String,
    renew_time: String,
}

impl Lease {
    /// Takes the Lease, unless another run renews it. One that a dead process left on this machine is taken at once.
    ///
    /// # Errors
    /// [`RotationError::Unusable`], naming the other run; or that the Lease cannot be read or written.
    pub async fn take(api: Api, holder: Holder, report: &(dyn Fn(&str) + Sync)) -> Result<Self, RotationError> {
        Self::take_by(Box::new(since_boot), api, holder, report).await
    }

    async fn take_by(
        clock: Clock,
        api: Api,
        holder: Holder,
        report: &(dyn Fn(&str) + Sync),
    ) -> Result<Self, RotationError> {
        let lease = Self { api, holder, clock, renewed: AtomicU64::new(0) };
        let mut watched: Option<(Spec, Instant)> = None;
        loop {
            // Before the request: the Lease is held from when it was asked for, not from when the answer came.
            let began = (lease.clock)();
            let found = lease.ensured().await.map_err(failed())?;
            let other = Holder(found.spec.holder_identity.clone());
            // The holder names boot, pid namespace, pid and start of the process, so that a run that was killed on this
            // machine is known to be gone.
            let is_free = other == Holder::nobody() || other == lease.holder || other.is_gone();
            let is_new = watched.is_none();
            let (first, since) = watched.get_or_insert_with(|| (found.spec.clone(), Instant::now()));
            // It was renewed while it was watched: somebody lives.
            if !is_free && *first != found.spec {
                return Err(RotationError::Unusable(format!(
                    "another rotate-keys is running on this cluster: {}. Let it end, or stop it",
                    other.0
                )));
            }
            let has_expired = since.elapsed() > EXPIRES_AFTER;
            if is_free || has_expired {
                if !lease.write(&found.metadata.resource_version, &lease.holder).await.map_err(failed())? {
                    // Somebody else was faster, and is watched from the start.
                    watched = None;
                    continue;
                }
                lease.note(began);
                if has_expired && !is_free {
                    let seconds = EXPIRES_AFTER.as_secs();
                    report(&format!("{} has not renewed its Lease for {seconds} s: this run takes its place", other.0));
                }
                return Ok(lease);
            }
            if is_new {
                report(&format!(
                    "whether another rotate-keys is alive ({}): if it does not renew its Lease within {} s, this run takes \
                     its place",
                    other.0,
                    EXPIRES_AFTER.as_secs()
                ));
            }
            tokio::time::sleep(LOOK_INTERVAL).await;
        }
    }

    /// Renews the Lease again and again; returns when it must not be relied upon any more. Whatever runs beside this is
    /// to be polled after it: then nothing is begun once the time is over, also by a process that was stopped itself.
    pub async fn keep(&self) -> Lost {
        let mut renewing = pin!(self.renew_on_and_on());
        poll_fn(|context| {
            let silent = self.silent_for();
            if silent >= STOPS_AFTER { Poll::Ready(Lost::Silent(silent)) } else { renewing.as_mut().poll(context) }
        })
        .await
    }

    /// Renews the Lease after a silence: waits for the API server up to `patience`.
    ///
    /// # Errors
    /// [`RotationError::Paused`], naming the run that has taken it meanwhile, or what the API server says.
    pub async fn regain(&self, patience: Duration) -> Result<(), RotationError> {
        let began = Instant::now();
        loop {
            match self.renew().await {
                Ok(None) => return Ok(()),
                Ok(Some(other)) => return Err(taken(&other)),
                Err(why) if began.elapsed() >= patience => {
                    return Err(RotationError::Paused(format!(
                        "the Lease {NAME} in {NAMESPACE}, which keeps a second rotation out, could not be renewed: {why}"
                    )));
                }
                Err(_) => tokio::time::sleep(LOOK_INTERVAL).await,
            }
        }
    }

    /// Gives the Lease back, so that the next run need not wait.
    pub async fn release(&self) {
        if let Ok(found) = self.read().await
            // Another run may have taken it meanwhile, and must not lose it.
            && found.spec.holder_identity == self.holder.0
        {
            let _ = self.write(&found.metadata.resource_version, &Holder::nobody()).await;
        }
    }

    async fn renew_on_and_on(&self) -> Lost {
        loop {
            match self.renew().await {
                Ok(None) => tokio::time::sleep(RENEW_INTERVAL).await,
                Ok(Some(other)) => return Lost::Taken(other),
                Err(_) => tokio::time::sleep(LOOK_INTERVAL).await,
            }
        }
    }

    /// Renews it once. The run that has it instead, if another one has.
    async fn renew(&self) -> Result<Option<String>, String> {
        let began = (self.clock)();
        let renewed = async {
            loop {
                let found = self.ensured().await?;
                let other = found.spec.holder_identity;
                // An empty holder is not another run: somebody deleted the Lease, or emptied it by hand.
                if !other.is_empty() && other != self.holder.0 {
                    return Ok(Some(other));
                }
                if self.write(&found.metadata.resource_version, &self.holder).await? {
                    return Ok(None);
                }
            }
        };
        let in_time = tokio::time::timeout(ANSWERS_WITHIN, renewed).await;
        let ended = in_time.map_err(|_| format!("no answer within {} s", ANSWERS_WITHIN.as_secs()))?;
        let other = ended.map_err(|error: ApiError| error.to_string())?;
        if other.is_none() {
            self.note(began);
        }
        Ok(other)
    }

    fn note(&self, renewed: Duration) {
        self.renewed.store(u64::try_from(renewed.as_millis()).unwrap_or(u64::MAX), Relaxed);
    }

    /// How long ago the last renewal began.
    fn silent_for(&self) -> Duration {
        (self.clock)().saturating_sub(Duration::from_millis(self.renewed.load(Relaxed)))
    }

    /// The Lease, which is made where there is none: somebody may have deleted it.
    async fn ensured(&self) -> Result<Found, ApiError> {
        match self.read().await {
            Err(error) if error.status() == Some(404) => {
                self.create().await?;
                self.read().await
            }
            found => found,
        }
    }

    async fn create(&self) -> Result<(), ApiError> {
        let home = json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": NAMESPACE}});
        let lease = json!({
            "apiVersion": "coordination.k8s.io/v1", "kind": "Lease", "metadata": {"name": NAME, "namespace": NAMESPACE},
            "spec": {},
        });
        for (path, document) in [("/api/v1/namespaces".to_owned(), home), (folder(), lease)] {
            let answer = self.api.post(&path, &document).await?;
            if answer.status != 409 {
                self.api.success(answer)?;
            }
        }
        Ok(())
    }

    async fn read(&self) -> Result<Found, ApiError> {
        self.api.get_json(&format!("{}/{NAME}", folder())).await
    }

    /// Writes a holder and the time, unless the Lease has changed since `version`. Whether it was written.
    async fn write(&self, version: &str, holder: &Holder) -> Result<bool, ApiError> {
        let now = jiff::Timestamp::now().strftime("%Y-%m-%dT%H:%M:%S.%6fZ").to_string();
        let patch: Value = json!({
            // Refused with 409 if it was written since it was read: of two runs that see a free Lease, one gets it.
            "metadata": {"resourceVersion": version},
            "spec": {
                "holderIdentity": holder.0,
                "leaseDurationSeconds": EXPIRES_AFTER.as_secs(),
                "renewTime": now,
            },
        });
        let answer = self.api.patch(&format!("{}/{NAME}", folder()), &patch.to_string()).await?;
        match answer.status {
            409 => Ok(false),
            _ => self.api.success(answer).map(|_| true),
        }
    }
}

/// What a run says whose place another one has taken.
pub fn taken(other: &str) -> RotationError {
    RotationError::Paused(format!("another rotate-keys took this one's place: {other}"))
}

/// Time since boot. It goes on while the machine is suspended, as the clocks of others do.
fn since_boot() -> Duration {
    let now = clock_gettime(ClockId::Boottime);
    Duration::new(now.tv_sec.try_into().unwrap_or_default(), now.tv_nsec.try_into().unwrap_or_default())
}

fn folder() -> String {
    format!("/apis/coordination.k8s.io/v1/namespaces/{NAMESPACE}/leases")
}

fn failed() -> impl FnOnce(ApiError) -> RotationError {
    RotationError::api(format!("hold the Lease {NAME} in {NAMESPACE}, which keeps a second rotation out"))
}

#[cfg(test)]
mod tests;
