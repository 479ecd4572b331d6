//! A KEK whose private half is elsewhere: it wraps, and is never asked to unwrap.

/// What is known of such a KEK.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OfflineKey {
    /// The public half, as the configuration writes it.
    pub recipient: String,
    /// When its private half was last tried; `None` where nobody has shown that there is one.
    pub proven: Option<jiff::Timestamp>,
}

/// After this a proof is to be given again: people leave, safes are moved, media decay.
pub const PROOF_LASTS: jiff::SignedDuration = jiff::SignedDuration::from_hours(366 * 24);
