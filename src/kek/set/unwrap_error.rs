//! Why no KEK of a set unwrapped a DEK, and what follows from it.

use crate::kek::{KekCause, KekError, KekVersion};

/// Why no KEK unwrapped a DEK.
#[derive(Debug, thiserror::Error)]
pub enum UnwrapError {
    /// None of the wraps belongs to a configured KEK; nobody was asked.
    #[error("wrapped by none of the configured KEKs; add the KEK that wrapped it under keks or retired")]
    NoKek,
    /// None of the wraps belongs to a KEK that is known to be configured, and one of them cannot be opened, so that it is
    /// not known which it is; nobody was asked.
    #[error("wrapped by none of the configured KEKs, unless by KEK {0}, which cannot be opened; /status says why")]
    Unidentified(String),
    /// The private half of the one KEK that could unwrap it is not here; nobody was asked.
    #[error(
        "only break-glass KEK {0} could unwrap it, and its private half is not here: give it with --break-glass FILE"
    )]
    OnlyBreakGlass(String),
    /// Every KEK that could unwrap it failed.
    #[error("{}", .0.iter().map(ToString::to_string).collect::<Vec<_>>().join("; "))]
    Failed(Vec<Refusal>),
}

/// One KEK that did not unwrap a DEK.
#[derive(Debug, thiserror::Error)]
#[error("{name}: {}", error.chain())]
pub struct Refusal {
    /// The KEK's configured name.
    pub name: String,
    /// The version that had wrapped.
    pub version: KekVersion,
    /// What it said.
    pub error: KekError,
}

impl UnwrapError {
    /// The one cause to act upon: as long as one KEK may still answer, that it does not just now.
    pub fn cause(&self) -> KekCause {
        let errors = match self {
            Self::NoKek => return KekCause::UnknownVersion,
            Self::Unidentified(_) => return KekCause::Unavailable,
            // Not lost: a person can bring the key.
            Self::OnlyBreakGlass(_) => return KekCause::Misconfigured,
            Self::Failed(errors) => errors,
        };
        errors
            .iter()
            .map(|refusal| refusal.error.cause())
            // In the order of how soon it may pass by itself: as long as one KEK may answer again, the API server is told to
            // retry.
            .min_by_key(|cause| match cause {
                KekCause::Unavailable => 0,
                KekCause::Throttled => 1,
                KekCause::Unauthenticated => 2,
                KekCause::Misconfigured => 3,
                KekCause::Denied => 4,
                KekCause::UnknownVersion => 5,
                KekCause::Rejected => 6,
            })
            .unwrap_or(KekCause::Unavailable)
    }
}
