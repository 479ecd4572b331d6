//! `KekError`: why a KEK did not answer, by what the operator must do about it.

use std::error::Error;
use std::fmt;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::error_chain::joined;
use crate::telemetry::KekOutcome;

/// What kind of failure it is. Whether to retry, coast or wipe is decided from this alone.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum KekCause {
    /// Not reached, or the backend's own fault: wait. Also every vendor error that no mapping knows.
    Unavailable,
    /// Asked too often: wait longer.
    Throttled,
    /// Credentials are missing, expired or not accepted: renew them.
    Unauthenticated,
    /// Policy or key state forbids it, definitely: key disabled, pending deletion, permission withdrawn.
    Denied,
    /// The KEK has no such version (any more), or this text names none.
    UnknownVersion,
    /// The data do not match: tampered with, or made by another key or for another context.
    Rejected,
    /// The configuration cannot work; a person must change it.
    Misconfigured,
}

impl KekCause {
    /// Whether the same request may succeed a moment later with nobody doing anything.
    pub fn is_transient(self) -> bool {
        matches!(self, Self::Unavailable | Self::Throttled)
    }

    /// The word for it in logs, metrics and status.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Unavailable => "unavailable",
            Self::Throttled => "throttled",
            Self::Unauthenticated => "unauthenticated",
            Self::Denied => "denied",
            Self::UnknownVersion => "unknown version",
            Self::Rejected => "rejected",
            Self::Misconfigured => "misconfigured",
        }
    }
}

impl From<KekCause> for KekOutcome {
    fn from(cause: KekCause) -> Self {
        match cause {
            KekCause::Unavailable => Self::Unavailable,
            KekCause::Throttled => Self::Throttled,
            KekCause::Unauthenticated => Self::Unauthenticated,
            KekCause::Denied => Self::Denied,
            KekCause::UnknownVersion => Self::UnknownVersion,
            KekCause::Rejected => Self::Rejected,
            KekCause::Misconfigured => Self::Misconfigured,
        }
    }
}

impl fmt::Display for KekCause {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// Why a KEK did not do what it was asked; the vendor's error is kept as source.
#[derive(Debug)]
pub struct KekError {
    cause: KekCause,
    message: String,
    by_policy: bool,
    retry_after: Option<Duration>,
    source: Option<Box<dyn Error + Send + Sync>>,
}

impl KekError {
    /// An error of this cause. `message` says what failed and on what; it holds no secret.
    pub fn new(cause: KekCause, message: impl Into<String>) -> Self {
        Self { cause, message: message.into(), by_policy: false, retry_after: None, source: None }
    }

    /// Short for [`KekCause::Misconfigured`].
    pub fn misconfigured(message: impl Into<String>) -> Self {
        Self::new(KekCause::Misconfigured, message)
    }

    /// Short for [`KekCause::Unavailable`].
    pub fn unavailable(message: impl Into<String>) -> Self {
        Self::new(KekCause::Unavailable, message)
    }

    /// A denial by what the credentials may do, and not by the state of the key: other credentials may do more.
    pub fn denied_by_policy(message: impl Into<String>) -> Self {
        Self { by_policy: true, ..Self::new(KekCause::Denied, message) }
    }

    /// A vendor's error that no mapping knows: counts as transient, and says so.
    pub fn unmapped(message: impl fmt::Display) -> Self {
        // Of the two possible mistakes this one costs retries; a wrong Denied would clear the keys from memory.
        Self::new(KekCause::Unavailable, format!("unmapped answer, taken as transient: {message}"))
    }

    /// Keeps the vendor's error.
    #[must_use]
    pub fn with_source(mut self, source: impl Into<Box<dyn Error + Send + Sync>>) -> Self {
        self.source = Some(source.into());
        self
    }

    /// Keeps the vendor's wish when to come back.
    #[must_use]
    pub fn with_retry_after(mut self, wait: Option<Duration>) -> Self {
        self.retry_after = wait;
        self
    }

    /// What kind of failure it is.
    pub fn cause(&self) -> KekCause {
        self.cause
    }

    /// Whether other credentials may do more: see [`KekError::denied_by_policy`].
    pub fn is_by_policy(&self) -> bool {
        self.by_policy
    }

    /// When the vendor wants to be asked again, where it said so.
    pub(crate) fn retry_after(&self) -> Option<Duration> {
        self.retry_after
    }

    /// The whole chain in one line, for logs and status.
    pub fn chain(&self) -> String {
        format!("{}: {}", self.cause, self.problem())
    }

    /// The chain without the cause's word, where the reader knows that the configuration is meant.
    pub fn problem(&self) -> String {
        joined(self.message.clone(), self.source())
    }
}

impl fmt::Display for KekError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.cause, self.message)
    }
}

impl Error for KekError {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        self.source.as_deref().map(|source| source as _)
    }
}
