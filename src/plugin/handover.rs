//! Hands the DEKs in memory to the plugin that is started after this one, so that a restart while every KEK is away goes
//! on: through the service manager's store of file descriptors, or a small process that holds one; and over a reboot of
//! the node through the state folder, sealed under a KEK of this machine (`sealed_state`).
//!
//! What is handed over in memory lies where no file system names it. All of it is updated at each change, and taken
//! back when nothing may be used any more: what was denied or became too old is not waiting for the next start.

mod held;
mod holder;
mod keeper;
mod memory;
mod sealed_state;
mod service_manager;

use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use tokio::time::{sleep, timeout};
use tracing::{info, warn};

use self::held::{blocking, held};
pub use self::holder::{Holder, hold};
pub use self::keeper::Keeper;
pub use self::sealed_state::SealedStateFile;
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
    let (mut said, mut used) = (Offer::NotYet, None);
    loop {
        let offered = offer(&service, keeper.clone(), &said, &mut used).await;
        let offered = offered.unwrap_or_else(|error| Offer::Refused(error.to_string()));
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

async fn offer(service: &Service, keeper: Arc<dyn Keeper>, said: &Offer, epoch: &mut Option<u64>) -> io::Result<Offer> {
    let serving = service.serving();
    // What is left when the active generation was stopped is of the same epoch; what was denied must not stay.
    *epoch = serving.generation().map(|generation| generation.wrapped().epoch).or(*epoch);
    let Some(handover) = held(service, epoch.unwrap_or_default()) else {
        if *said == Offer::Nothing {
            return Ok(Offer::Nothing);
        }
        return blocking(move || keeper.forget().map(|()| Offer::Nothing)).await;
    };
    if epoch.is_none() {
        return Ok(Offer::NotYet);
    }
    // The longest of all is enough for the keeper: the next process judges each DEK by the KEK versions that wrapped it.
    let remaining = handover.deks.iter().filter_map(|held| service.cache().remaining(held.id)).max();
    let until = handover.made.saturating_add(remaining.unwrap_or_default());
    blocking(move || keeper.keep(memory::sealed(&handover.encode())?, until).map(|()| Offer::Kept)).await
}
