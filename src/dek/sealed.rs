//! The DEKs in memory as they outlive a reboot: sealed under a key of their own, which a KEK of this machine wraps. Knows
//! no KEK, no disk and no time but what it is given.
//!
//! Between two starts of the machine only the clock tells that anybody can set. So what is sealed says when each KEK
//! version ends that vouches for a DEK, and when it was sealed: a clock that is behind that moment is not believed. An
//! older copy ends earlier than a newer one.
#![cfg_attr(not(test), deny(clippy::arithmetic_side_effects))]

use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use prost::Message;
use zeroize::Zeroizing;

use super::contacts::Vouched;
use super::handover::{self, Handover, HandoverError};
use crate::crypto::seal::{Purpose, digest, open, os_random, seal};
use crate::crypto::secret::{Dek, DekId};
use crate::kek::{ClusterName, KekVersion, Lineage, WrapContext, WrappedDek};

/// Of the bytes; another one is not read.
const FORMAT: u32 = 1;

/// Above anything that a plugin seals.
pub const MAX_BYTES: usize = handover::MAX_BYTES.saturating_add(64 << 10);

/// A clock that was corrected a little between two starts is not one that was turned back.
const SKEW: SignedDuration = SignedDuration::from_mins(-1);

/// Both clocks at one moment.
#[derive(Clone, Copy, Debug)]
pub struct Moment {
    /// The time of day, which outlives a reboot.
    pub wall: Timestamp,
    /// The clock that ages are counted in.
    pub clock: Duration,
}

/// What lies in the state folder.
#[derive(Debug, PartialEq, Eq)]
pub struct SealedState {
    cluster: String,
    epoch: u64,
    /// The id of the key that it is sealed under.
    key: DekId,
    /// That key, wrapped by the KEK of this machine.
    wrapped: WrappedDek,
    sealed: Vec<u8>,
}

/// Why a sealed state cannot be used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SealedError {
    /// Damaged, of another release, or made for another use.
    #[error(transparent)]
    Record(#[from] HandoverError),
    /// Not what was sealed under this key.
    #[error("it was changed")]
    Changed,
    /// The clock was turned back, or was not set yet.
    #[error("this machine's clock is behind the moment at which it was sealed, {0:.0}: set the clock")]
    ClockIsBehind(Timestamp),
    /// Its time is over.
    #[error("its time is over: no KEK had unwrapped for too long")]
    Over,
}

#[derive(Clone, PartialEq, Message)]
struct Record {
    #[prost(uint32, tag = "1")]
    format: u32,
    #[prost(string, tag = "2")]
    cluster: String,
    #[prost(uint64, tag = "3")]
    epoch: u64,
    #[prost(bytes = "vec", tag = "4")]
    key: Vec<u8>,
    #[prost(bytes = "vec", tag = "5")]
    lineage: Vec<u8>,
    #[prost(string, tag = "6")]
    version: String,
    #[prost(bytes = "vec", tag = "7")]
    blob: Vec<u8>,
    #[prost(bytes = "vec", tag = "8")]
    sealed: Vec<u8>,
}

impl SealedState {
    /// Seals `handover`, as [`ending`] gives it, under `key`; `wrapped` is that key, wrapped. `wall` is the time of day at
    /// which the handover was made.
    pub fn seal(handover: &Handover, key: (DekId, &Dek), wrapped: WrappedDek, wall: Timestamp) -> Self {
        let mut state = Self {
            cluster: handover.cluster.to_string(),
            epoch: handover.epoch,
            key: key.0,
            wrapped,
            sealed: Vec::new(),
        };
        let record = handover.encode();
        let moment = wall.as_millisecond().to_be_bytes();
        // With all of its room from the start: a vector that grows leaves copies behind.
        let mut plain = Zeroizing::new(Vec::with_capacity(record.len().saturating_add(moment.len())));
        plain.extend_from_slice(&moment);
        plain.extend_from_slice(&record);
        state.sealed = seal(key.1.expose(), Purpose::SealedState, &state.header(), &plain, &mut os_random());
        state
    }

    /// Format 1, in protobuf.
    pub fn encode(&self) -> Vec<u8> {
        let record = Record {
            format: FORMAT,
            cluster: self.cluster.clone(),
            epoch: self.epoch,
            key: self.key.0.to_vec(),
            lineage: self.wrapped.version.lineage.0.to_vec(),
            version: self.wrapped.version.version.clone(),
            blob: self.wrapped.blob.clone(),
            sealed: self.sealed.clone(),
        };
        record.encode_to_vec()
    }

    /// Reads what [`SealedState::encode`] wrote for `cluster` and `epoch`. Nothing of it is authentic yet.
    ///
    /// # Errors
    /// [`SealedError::Record`].
    pub fn decode(bytes: &[u8], cluster: &ClusterName, epoch: u64) -> Result<Self, SealedError> {
        let unreadable = |what| SealedError::Record(HandoverError::Unreadable(what));
        let record = Record::decode(bytes).map_err(|_| unreadable("not a record"))?;
        if record.format != FORMAT {
            return Err(unreadable("another format"));
        }
        if record.cluster != cluster.as_str() || record.epoch != epoch {
            return Err(HandoverError::OtherUse { cluster: record.cluster, epoch: record.epoch }.into());
        }
        let key = record.key.try_into().map_err(|_| unreadable("the key's id is not 16 bytes"))?;
        let lineage = record.lineage.try_into().map_err(|_| unreadable("a lineage is not 16 bytes"))?;
        let version = KekVersion { lineage: Lineage(lineage), version: record.version };
        let wrapped = WrappedDek { version, blob: record.blob };
        Ok(Self { cluster: record.cluster, epoch, key: DekId(key), wrapped, sealed: record.sealed })
    }

    /// What the KEK is to unwrap.
    pub fn wrapped(&self) -> &WrappedDek {
        &self.wrapped
    }

    /// What its wrap is bound to.
    pub fn context(&self, cluster: &ClusterName) -> WrapContext {
        WrapContext { cluster: cluster.clone(), dek_id: self.key }
    }

    /// Opens it with the unwrapped `key`, its times moved to the clock of `now`. What is over is left out.
    ///
    /// # Errors
    /// Why nothing of it may be used now.
    pub fn open(&self, key: &Dek, cluster: &ClusterName, now: Moment) -> Result<Handover, SealedError> {
        let plain = open(key.expose(), Purpose::SealedState, &self.header(), &self.sealed);
        let plain = plain.map_err(|_| SealedError::Changed)?;
        let (moment, record) = plain.split_first_chunk().ok_or(SealedError::Changed)?;
        let sealed = Timestamp::from_millisecond(i64::from_be_bytes(*moment)).map_err(|_| SealedError::Changed)?;
        let handover = Handover::decode(record, cluster, self.epoch)?;
        let passed = now.wall.duration_since(sealed);
        if passed < SKEW {
            return Err(SealedError::ClockIsBehind(sealed));
        }
        // A clock that was set back a little makes nothing younger.
        let passed = Duration::try_from(passed).unwrap_or_default();
        let made = now.clock.checked_sub(passed).ok_or(SealedError::Over)?;
        let moved = |time: Duration| made.checked_add(time)?.checked_sub(handover.made);
        let vouched = handover.opened.iter().filter_map(|vouched| {
            let until = moved(vouched.until?).filter(|until| *until > now.clock)?;
            Some(Vouched { version: vouched.version.clone(), opened: moved(vouched.opened)?, until: Some(until) })
        });
        let opened: Vec<_> = vouched.collect();
        if opened.is_empty() {
            return Err(SealedError::Over);
        }
        Ok(Handover { made, opened, ..handover })
    }

    /// What stands beside the sealed bytes, and belongs to them.
    fn header(&self) -> [u8; 32] {
        let Self { cluster, epoch, key, wrapped, .. } = self;
        let WrappedDek { version: KekVersion { lineage, version }, blob } = wrapped;
        let (format, epoch) = (FORMAT.to_be_bytes(), epoch.to_be_bytes());
        digest(&[&format, cluster.as_bytes(), &epoch, &key.0, &lineage.0, version.as_bytes(), blob])
    }
}

/// The part of `handover` that may be used after a reboot, each KEK version of it with its end: at most `longest` after it
/// unwrapped last. None where nothing may be.
pub fn ending(mut handover: Handover, longest: Duration) -> Option<Handover> {
    let made = handover.made;
    handover.opened.retain_mut(|vouched| {
        let end = vouched.opened.saturating_add(longest);
        let end = vouched.until.map_or(end, |until| until.min(end));
        vouched.until = Some(end);
        end > made
    });
    let Handover { deks, opened, .. } = &mut handover;
    deks.retain(|dek| dek.versions.iter().any(|version| opened.iter().any(|vouched| vouched.version == *version)));
    (!handover.deks.is_empty()).then_some(handover)
}

#[cfg(test)]
mod tests;
