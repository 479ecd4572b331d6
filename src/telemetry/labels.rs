//! The values of metric labels.

use std::fmt;

use prometheus_client::encoding::{EncodeLabelValue, LabelValueEncoder};

/// Which of the three RPCs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Rpc {
    /// `Status`, which an API server polls once a minute.
    Status,
    /// `Encrypt`: a seed is sealed.
    Encrypt,
    /// `Decrypt`: a seed is opened.
    Decrypt,
}

/// What a KEK was asked to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum KekOperation {
    /// Name the active version.
    Version,
    /// Wrap a DEK.
    Wrap,
    /// Unwrap a DEK.
    Unwrap,
    /// Open what another plugin stored.
    TakeOver,
}

/// How an operation of a KEK ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum KekOutcome {
    /// The KEK did what it was asked.
    Ok,
    /// Not reached, or the key store's own fault.
    Unavailable,
    /// Asked too often.
    Throttled,
    /// Credentials are missing, expired or refused.
    Unauthenticated,
    /// Refused by policy or key state.
    Denied,
    /// The version does not exist.
    UnknownVersion,
    /// The data do not match.
    Rejected,
    /// The configuration cannot work.
    Misconfigured,
}

/// How an RPC ended: `ok`, or the cause of the failure.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Outcome(pub Option<&'static str>);

impl fmt::Display for Rpc {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Status => "Status",
            Self::Encrypt => "Encrypt",
            Self::Decrypt => "Decrypt",
        })
    }
}

impl EncodeLabelValue for Rpc {
    fn encode(&self, encoder: &mut LabelValueEncoder<'_>) -> Result<(), std::fmt::Error> {
        self.to_string().encode(encoder)
    }
}

impl EncodeLabelValue for KekOperation {
    fn encode(&self, encoder: &mut LabelValueEncoder<'_>) -> Result<(), std::fmt::Error> {
        let name = match self {
            Self::Version => "version",
            Self::Wrap => "wrap",
            Self::Unwrap => "unwrap",
            Self::TakeOver => "takeover",
        };
        name.encode(encoder)
    }
}

impl EncodeLabelValue for KekOutcome {
    fn encode(&self, encoder: &mut LabelValueEncoder<'_>) -> Result<(), std::fmt::Error> {
        let name = match self {
            Self::Ok => "ok",
            Self::Unavailable => "unavailable",
            Self::Throttled => "throttled",
            Self::Unauthenticated => "unauthenticated",
            Self::Denied => "denied",
            Self::UnknownVersion => "unknown version",
            Self::Rejected => "rejected",
            Self::Misconfigured => "misconfigured",
        };
        name.encode(encoder)
    }
}

impl EncodeLabelValue for Outcome {
    fn encode(&self, encoder: &mut LabelValueEncoder<'_>) -> Result<(), std::fmt::Error> {
        self.0.unwrap_or("ok").encode(encoder)
    }
}
