//! Whether the API servers still agree on the target key, checked at an interval.

use std::time::{Duration, Instant};

use crate::rotation::adoption::{Adoption, Obstacle, Wanted, still_holds};
use crate::rotation::cluster::Cluster;
use crate::rotation::cluster::api::chain;
use crate::rotation::error::RotationError;

/// How many consecutive checks may fail before agreement counts as lost.
const MISSED_LOOKS: u32 = 2;

/// Looks at the servers' agreement again and again; ends when it is lost.
pub(super) async fn watch(
    cluster: &Cluster,
    wanted: &Wanted,
    adoption: &Adoption,
    interval: Duration,
) -> Result<String, RotationError> {
    let mut missed = 0;
    loop {
        let began = Instant::now();
        tokio::time::sleep(interval).await;
        if let Some(why) = look_again(cluster, wanted, adoption, &mut missed).await? {
            return Ok(format!("{why} (seen after {} s)", began.elapsed().as_secs()));
        }
    }
}

/// One look; says why when agreement counts as lost.
pub(super) async fn look_again(
    cluster: &Cluster,
    wanted: &Wanted,
    adoption: &Adoption,
    missed: &mut u32,
) -> Result<Option<String>, RotationError> {
    match still_holds(cluster, wanted, adoption).await {
        Ok(()) => {
            *missed = 0;
            Ok(None)
        }
        Err(obstacle) => {
            let why = lost(obstacle)?;
            *missed += 1;
            Ok((*missed >= MISSED_LOOKS).then_some(why))
        }
    }
}

/// Why agreement is lost, unless it is something that only a person can put right.
pub(super) fn lost(obstacle: Obstacle) -> Result<String, RotationError> {
    match obstacle {
        Obstacle::NotYet(why) | Obstacle::Closed(why) | Obstacle::Unreadable(why) => Ok(why),
        Obstacle::Failed(error) => Ok(chain(&error)),
        Obstacle::TargetChanged(why) => Err(RotationError::Paused(format!(
            "{why}: another rotation began meanwhile; give this one up (--abort) and start over"
        ))),
    }
}
