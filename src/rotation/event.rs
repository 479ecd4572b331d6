//! What a person may want to see while a rotation goes on.

use crate::rotation::cluster::resources::Resource;
use crate::rotation::journal::State;
use crate::rotation::rewrite::Tally;

/// Something that a person may want to see.
#[derive(Debug)]
pub enum Event<'a> {
    /// The rotation enters a state.
    State(State),
    /// It waits for something.
    Waiting(&'a str),
    /// Something worth knowing.
    Note(&'a str),
    /// A pass over a resource goes on.
    Progress {
        /// What is gone through.
        resource: &'a Resource,
        /// What was done in this pass so far.
        tally: &'a Tally,
        /// About how many objects there are.
        objects: u64,
        /// Requests under way, at most, just now.
        concurrency: usize,
    },
}

/// Who is told of events.
pub type Reporter<'a> = &'a (dyn Fn(Event<'_>) + Send + Sync);
