//! Hands the DEKs in memory to the plugin that is started after this one, so that a restart while every KEK is away goes
//! on: through the service manager's store of file descriptors, or a small process that holds one.
//!
//! What is handed over lies in sealed memory that no file system names. It is updated at each change, and taken
//! back when nothing may be used any more: what was denied or became too old is not waiting for the next start.

mod holder;
mod keeper;
mod memory;
mod service_manager;

use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use tokio::time::{sleep, timeout};
use tracing::{info, warn};

pub use self::holder::{Holder, hold};
pub use self::keeper::Keeper;
pub use self::service_manager::ServiceManager;
use super::service::Service;
use crate::dek::handover::Handover;
use crate::kek::ClusterName;

/// Changes come in bursts: an adoption is several.
const GATHERED_FOR: Duration = Duration::from_millis(200);
/// While there is nothing to be kept, or the keeper was not heard yet.
const LOOKS_EVERY: Duration = Duration::from_secs(1);
/// After a keeper did not take it.
const AGAIN_AFTER: Duration = Duration::from_secs(5);

/// The keeper of this process, where it has one.
pub fn keeper(holder: Option<PathBuf>) -> Option<Arc<dyn Keeper>> {
    match holder {
        Some(socket) => Some(Arc::new(Holder::new(socket))),
        None => ServiceManager::of_this_process().map(|manager| Arc::new(manager) as Arc<dyn Keeper>),
    }
}

/// Takes up what an earlier process left. Says in the log what became of it, and whether the keeper was heard.
pub async fn take_over(service: &Service, keeper: Arc<dyn Keeper>, epoch: u64) -> bool {
    let cluster = service.cluster().clone();
    match blocking(move || taken(&*keeper, &cluster, epoch)).await {
        Ok(None) => true,
        Ok(Some(handover)) => {
            info!(deks = handover.deks.len(), "taken over from the process before this one");
            service.cache().take_over(handover.deks, &handover.opened);
            true
        }
        Err(error) => {
            warn!(%error, "nothing is taken over from an earlier process");
            false
        }
    }
}

/// The newest of what is kept and can be used here.
fn taken(keeper: &dyn Keeper, cluster: &ClusterName, epoch: u64) -> io::Result<Option<Handover>> {
    let mut newest: Option<Handover> = None;
    // systemd gives back two where the process was killed between storing the new memory and removing the former one.
    for memory in keeper.take()? {
        let bytes = memory::read(&memory)?;
        match Handover::decode(&bytes, cluster, epoch) {
            Ok(handover) if newest.as_ref().is_none_or(|newest| handover.made > newest.made) => newest = Some(handover),
            Ok(_) => {}
            Err(reason) => warn!(%reason, "the keys that an earlier process handed over are not used"),
        }
    }
    Ok(newest)
}

/// Keeps the keeper up to date, for as long as the process runs. `is_taken`: whether it was heard when it was asked for
/// what it keeps.
pub async fn keep_up(service: Arc<Service>, keeper: Arc<dyn Keeper>, epoch: u64, mut is_taken: bool) {
    // What it keeps is not given up before it was looked at, unless it is not needed any more.
    while !is_taken && service.serving().generation().is_none() {
        sleep(LOOKS_EVERY).await;
        is_taken = take_over(&service, keeper.clone(), epoch).await;
    }
    let mut changes = service.cache().changes();
    let mut said = Offer::NotYet;
    loop {
        let offered =
            offer(&service, keeper.clone(), &said).await.unwrap_or_else(|error| Offer::Refused(error.to_string()));
        if offered != said {
            match &offered {
                Offer::Refused(error) => warn!(error, "the next start will not find the keys of this one"),
                Offer::Kept => info!("the next start will find the keys of this one"),
                Offer::Nothing => info!("nothing is left for the next start"),
                Offer::NotYet => {}
            }
        }
        let is_refused = matches!(offered, Offer::Refused(_));
        said = offered;
        if is_refused {
            sleep(AGAIN_AFTER).await;
            continue;
        }
        if matches!(said, Offer::Nothing | Offer::NotYet) {
            // A generation that comes into use changes nothing in memory.
            let _ = timeout(LOOKS_EVERY, changes.changed()).await;
        } else if changes.changed().await.is_err() {
            return;
        }
        sleep(GATHERED_FOR).await;
        // Before the cache is read for the next offer, so that a change from here on is noticed again.
        changes.mark_unchanged();
    }
}

/// What became of what was offered.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Offer {
    Kept,
    /// There is nothing to be kept.
    Nothing,
    /// What was taken over is not served from yet: what is kept stays.
    NotYet,
    Refused(String),
}

async fn offer(service: &Service, keeper: Arc<dyn Keeper>, said: &Offer) -> io::Result<Offer> {
    let (deks, opened) = service.cache().hand_over();
    let serving = service.serving();
    let epoch = serving.generation().map(|generation| generation.wrapped().epoch);
    // The longest of all is enough for the keeper: the next process judges each DEK by the KEK versions that wrapped it.
    let until = deks.iter().filter_map(|held| service.cache().remaining(held.id)).max();
    let Some(remaining) = until else {
        if *said == Offer::Nothing {
            return Ok(Offer::Nothing);
        }
        return blocking(move || keeper.forget().map(|()| Offer::Nothing)).await;
    };
    let Some(epoch) = epoch else { return Ok(Offer::NotYet) };
    let (cluster, now) = (service.cluster().clone(), service.cache().now());
    blocking(move || {
        let handover = Handover { made: now, cluster, epoch, deks, opened };
        keeper.keep(memory::sealed(&handover.encode())?, now.saturating_add(remaining)).map(|()| Offer::Kept)
    })
    .await
}

async fn blocking<T: Send + 'static>(work: impl FnOnce() -> io::Result<T> + Send + 'static) -> io::Result<T> {
    tokio::task::spawn_blocking(work).await.unwrap_or_else(|error| Err(io::Error::other(error)))
}
