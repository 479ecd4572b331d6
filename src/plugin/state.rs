//! What the plugin can do at this moment: the refresh loop publishes it, the RPCs and the health endpoints read it.

use std::sync::Arc;

use crate::generation::Generation;

/// Why nothing is served from a generation that no KEK vouches for any more, until the loop finds out more.
pub(super) const OVERDUE: &str = "no KEK has unwrapped the active key for maxOfflineAge, or all of them deny it";

/// What the plugin can do at this moment; published as a whole, so that Status and Encrypt never disagree.
#[derive(Clone, Debug)]
pub enum Serving {
    /// No generation was proven yet.
    Waiting {
        /// What is missing.
        reason: String,
    },
    /// Seals and opens.
    Ready {
        /// What it seals under.
        generation: Arc<Generation>,
        /// Why it does not follow the KEKs just now, where it does not: no contact, or a version not adopted.
        trouble: Option<Trouble>,
    },
    /// A KEK withdrew its permission, or was away for longer than `maxOfflineAge`: nothing is sealed or opened.
    Stopped {
        /// The KEK, and what it said; shown by Status and by `/readyz`.
        reason: String,
    },
}

/// Why a plugin that serves deserves a look.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Trouble {
    /// Coasting: no KEK that could unwrap the active DEK answers; served from memory.
    Coasting(String),
    /// Some KEK does not answer or a new generation could not be adopted; the former one goes on.
    Degraded(String),
}

impl Trouble {
    /// The reason in words.
    pub fn reason(&self) -> &str {
        match self {
            Self::Coasting(reason) | Self::Degraded(reason) => reason,
        }
    }
}

impl Serving {
    /// The generation, while there is one to seal under.
    pub fn generation(&self) -> Option<&Arc<Generation>> {
        match self {
            Self::Ready { generation, .. } => Some(generation),
            Self::Waiting { .. } | Self::Stopped { .. } => None,
        }
    }

    /// Why nothing can be sealed, where nothing can.
    pub fn refusal(&self) -> Option<&str> {
        match self {
            Self::Ready { .. } => None,
            Self::Waiting { reason } | Self::Stopped { reason } => Some(reason),
        }
    }
}
