//! One rotation at a time: a Lease in the cluster that the run holds and renews while it works.

use std::time::{Duration, Instant};

use serde::Deserialize;
use serde_json::{Value, json};

use crate::rotation::cluster::api::{Api, ApiError};
use crate::rotation::cluster::canary::NAMESPACE;
use crate::rotation::error::RotationError;

const NAME: &str = "rotate-keys";
const RENEW_INTERVAL: Duration = Duration::from_secs(10);
/// A Lease that was not renewed for this long belongs to a run that is gone. No clock of another machine is asked:
/// what counts is that `renewTime` does not change.
const EXPIRES_AFTER: Duration = Duration::from_mins(1);
const LOOK_INTERVAL: Duration = Duration::from_secs(2);

/// Who holds the Lease: this run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Holder(String);

impl Holder {
    /// This process, on this machine.
    pub fn this_process() -> Self {
        let host = read("/proc/sys/kernel/hostname");
        let pid = std::process::id();
        Self(format!("{host} pid {pid} start {} in {}", start_of(pid).unwrap_or_default(), place()))
    }

    /// Whether this names a process that ran on this machine, in this pid namespace, and is gone.
    fn is_gone(&self) -> bool {
        let parts: Vec<_> = self.0.split(' ').collect();
        let [_, "pid", pid, "start", start, "in", at] = parts.as_slice() else { return false };
        let same_process = pid.parse().ok().and_then(start_of).is_some_and(|running| running == *start);
        *at == place() && !same_process
    }
}

/// Which boot of which machine, and which pid namespace: where a pid means one process.
fn place() -> String {
    let boot = read("/proc/sys/kernel/random/boot_id");
    let namespace = std::fs::read_link("/proc/self/ns/pid").map(|link| link.display().to_string()).unwrap_or_default();
    format!("{boot}/{namespace}")
}

fn read(file: &str) -> String {
    std::fs::read_to_string(file).unwrap_or_default().trim().to_owned()
}

/// When a process started, in ticks since boot: field 22 of `proc_pid_stat(5)`, counted after the name in brackets.
fn start_of(pid: u32) -> Option<String> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    stat.rsplit_once(')')?.1.split_whitespace().nth(19).map(str::to_owned)
}

/// The Lease, held by this run.
pub struct Lease {
    api: Api,
    holder: Holder,
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

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Spec {
    #[serde(default)]
    holder_identity: String,
    #[serde(default)]
    renew_time: String,
}

impl Lease {
    /// Takes the Lease, unless another run renews it. One that a dead process left on this machine is taken at once.
    ///
    /// # Errors
    /// [`RotationError::Unusable`], naming the other run; or that the Lease cannot be read or written.
    pub async fn take(api: Api, holder: Holder, waiting: &(dyn Fn(&str) + Sync)) -> Result<Self, RotationError> {
        let lease = Self { api, holder };
        let (began, mut first) = (Instant::now(), None);
        loop {
            let found = lease.ensured().await?;
            let other = Holder(found.spec.holder_identity.clone());
            let free = other.0.is_empty() || other == lease.holder || other.is_gone();
            if free || began.elapsed() > EXPIRES_AFTER {
                if lease.write(&found.metadata.resource_version, &lease.holder).await? {
                    return Ok(lease);
                }
                first = None;
                continue;
            }
            let renewed = first.get_or_insert_with(|| found.spec.renew_time.clone());
            if *renewed != found.spec.renew_time {
                return Err(RotationError::Unusable(format!(
                    "another rotate-keys works on this cluster: {}. Let it end, or stop it",
                    other.0
                )));
            }
            if began.elapsed() < LOOK_INTERVAL {
                waiting(&format!(
                    "whether another rotate-keys is alive ({}), at most {} s",
                    other.0,
                    EXPIRES_AFTER.as_secs()
                ));
            }
            tokio::time::sleep(LOOK_INTERVAL).await;
        }
    }

    /// Renews the Lease again and again. Returns when another run has taken it, with that run's name.
    pub async fn keep(&self) -> String {
        loop {
            tokio::time::sleep(RENEW_INTERVAL).await;
            // An API server that is away for a moment is waited for by the run itself.
            let Ok(found) = self.read().await else { continue };
            if found.spec.holder_identity != self.holder.0 {
                return found.spec.holder_identity;
            }
            let _ = self.write(&found.metadata.resource_version, &self.holder).await;
        }
    }

    /// Gives the Lease back, so that the next run need not wait.
    pub async fn release(&self) {
        if let Ok(found) = self.read().await
            && found.spec.holder_identity == self.holder.0
        {
            let _ = self.write(&found.metadata.resource_version, &Holder(String::new())).await;
        }
    }

    async fn ensured(&self) -> Result<Found, RotationError> {
        match self.read().await {
            Err(error) if error.status() == Some(404) => {
                self.create().await.map_err(failed())?;
                self.read().await.map_err(failed())
            }
            found => found.map_err(failed()),
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
    async fn write(&self, version: &str, holder: &Holder) -> Result<bool, RotationError> {
        let now = jiff::Timestamp::now().strftime("%Y-%m-%dT%H:%M:%S.%6fZ").to_string();
        let patch: Value = json!({
            "metadata": {"resourceVersion": version},
            "spec": {
                "holderIdentity": holder.0,
                "leaseDurationSeconds": EXPIRES_AFTER.as_secs(),
                "renewTime": now,
            },
        });
        let lease = format!("{}/{NAME}", folder());
        let answer = self.api.patch(&lease, &patch.to_string()).await.map_err(failed())?;
        match answer.status {
            409 => Ok(false),
            _ => self.api.success(answer).map(|_| true).map_err(failed()),
        }
    }
}

fn folder() -> String {
    format!("/apis/coordination.k8s.io/v1/namespaces/{NAMESPACE}/leases")
}

fn failed() -> impl FnOnce(ApiError) -> RotationError {
    RotationError::api(format!("hold the Lease {NAME} in {NAMESPACE}, which keeps a second rotation out"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_holder_is_gone_when_its_process_on_this_machine_is() {
        let own = Holder::this_process();
        assert!(!own.is_gone());
        let mut child = std::process::Command::new("true").spawn().unwrap();
        let other = Holder(own.0.replace(&format!("pid {} ", std::process::id()), &format!("pid {} ", child.id())));
        child.wait().unwrap();
        assert!(other.is_gone());
        assert!(!Holder("elsewhere pid 1 start 1 in another/pid:[1]".into()).is_gone(), "nothing is known of it");
        assert!(!Holder("some text".into()).is_gone());
    }
}
