//! The DEKs in memory, as one process hands them to the one that is started after it: never written to a disk. Their ages
//! are counted from the start of the machine, which memory does not outlive.

use std::sync::Arc;
use std::time::Duration;

use prost::Message;
use zeroize::{Zeroize, Zeroizing};

use super::clock::AT_START;
use super::contacts::Vouched;
use crate::crypto::seal::dek_id;
use crate::crypto::secret::{DEK_BYTES, Dek, DekId};
use crate::kek::{ClusterName, KekVersion, Lineage};

/// Of the bytes; another one is not read.
const FORMAT: u32 = 1;

/// Above anything that a plugin keeps.
pub const MAX_BYTES: usize = 4 << 20;

/// What is handed over.
#[derive(Debug)]
pub struct Handover {
    /// When it was made, by the clock of this machine.
    pub made: Duration,
    /// The cluster whose DEKs they are.
    pub cluster: ClusterName,
    /// The epoch that was in use.
    pub epoch: u64,
    /// Every DEK that was in memory.
    pub deks: Vec<HeldDek>,
    /// When each KEK version unwrapped last.
    pub opened: Vec<Vouched>,
}

/// A DEK, and what it was unwrapped from.
#[derive(Clone, Debug)]
pub struct HeldDek {
    /// Its id, which commits to its 32 bytes.
    pub id: DekId,
    /// The DEK, shared with the cache that holds it.
    pub dek: Arc<Dek>,
    /// What wrapped it.
    pub versions: Vec<KekVersion>,
    /// Digest of the wraps.
    pub wraps: [u8; 32],
}

/// Why bytes are not a handover that can be used here.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum HandoverError {
    /// Damaged, or of another release.
    #[error("it cannot be read ({0})")]
    Unreadable(&'static str),
    /// The configuration names another cluster or epoch.
    #[error("it belongs to cluster {cluster} at epoch {epoch}")]
    OtherUse {
        /// The cluster that it was made for.
        cluster: String,
        /// The epoch that it was made at.
        epoch: u64,
    },
}

#[derive(Clone, PartialEq, Message)]
struct Record {
    #[prost(uint32, tag = "1")]
    format: u32,
    #[prost(string, tag = "2")]
    cluster: String,
    #[prost(uint64, tag = "3")]
    epoch: u64,
    #[prost(message, repeated, tag = "4")]
    deks: Vec<DekRecord>,
    #[prost(message, repeated, tag = "5")]
    opened: Vec<VersionRecord>,
    /// Milliseconds since the machine's start.
    #[prost(int64, tag = "6")]
    made: i64,
}

#[derive(Clone, PartialEq, Message)]
struct DekRecord {
    #[prost(bytes = "vec", tag = "1")]
    dek: Vec<u8>,
    #[prost(message, repeated, tag = "2")]
    versions: Vec<VersionRecord>,
    #[prost(bytes = "vec", tag = "3")]
    wraps: Vec<u8>,
}

#[derive(Clone, PartialEq, Message)]
struct VersionRecord {
    #[prost(bytes = "vec", tag = "1")]
    lineage: Vec<u8>,
    #[prost(string, tag = "2")]
    version: String,
    /// Milliseconds since the machine's start, negative before a reboot; 0 where that is said elsewhere.
    #[prost(int64, tag = "3")]
    opened: i64,
    /// The same.
    #[prost(int64, optional, tag = "4")]
    until: Option<i64>,
}

impl VersionRecord {
    fn of(version: &KekVersion) -> Self {
        Self { lineage: version.lineage.0.to_vec(), version: version.version.clone(), opened: 0, until: None }
    }

    fn vouched(vouched: &Vouched) -> Self {
        let (opened, until) = (since_start(vouched.opened), vouched.until.map(since_start));
        Self { opened, until, ..Self::of(&vouched.version) }
    }

    fn read(&self) -> Result<KekVersion, HandoverError> {
        let lineage = self.lineage.as_slice().try_into();
        let lineage = lineage.map_err(|_| HandoverError::Unreadable("a lineage is not 16 bytes"))?;
        Ok(KekVersion { lineage: Lineage(lineage), version: self.version.clone() })
    }

    /// None where it was over before the clock began.
    fn read_vouched(&self) -> Result<Option<Vouched>, HandoverError> {
        let version = self.read()?;
        let until = self.until.map(at).map_or(Some(None), |until| until.map(Some));
        let vouched = at(self.opened).zip(until);
        Ok(vouched.map(|(opened, until)| Vouched { version, opened, until }))
    }
}

/// Milliseconds from the machine's start to `time` of its clock.
fn since_start(time: Duration) -> i64 {
    let signed = |time: Duration| i64::try_from(time.as_millis()).unwrap_or(i64::MAX);
    signed(time).saturating_sub(signed(AT_START))
}

/// The other way; none before the clock began.
fn at(since_start: i64) -> Option<Duration> {
    let begin = i64::try_from(AT_START.as_millis()).unwrap_or(i64::MAX);
    u64::try_from(since_start.saturating_add(begin)).ok().map(Duration::from_millis)
}

// The decoder puts the DEKs into vectors of its own, which are none of the types that clear themselves.
impl Drop for Record {
    fn drop(&mut self) {
        self.deks.iter_mut().for_each(|dek| dek.dek.zeroize());
    }
}

impl Handover {
    /// Format 1 in protobuf, with every DEK in clear; at most [`MAX_BYTES`].
    pub fn encode(&self) -> Zeroizing<Vec<u8>> {
        let versions = |dek: &HeldDek| dek.versions.iter().map(VersionRecord::of).collect();
        let deks = self.deks.iter().map(|held| DekRecord {
            dek: held.dek.expose().to_vec(),
            versions: versions(held),
            wraps: held.wraps.to_vec(),
        });
        let record = Record {
            format: FORMAT,
            cluster: self.cluster.to_string(),
            epoch: self.epoch,
            deks: deks.collect(),
            opened: self.opened.iter().map(VersionRecord::vouched).collect(),
            made: since_start(self.made),
        };
        // With all of its room from the start: a vector that grows leaves copies behind.
        let mut bytes = Zeroizing::new(Vec::with_capacity(record.encoded_len()));
        record.encode(&mut *bytes).expect("a vector takes everything");
        bytes
    }

    /// Reads what an earlier process of this machine left for `cluster` and `epoch`.
    ///
    /// # Errors
    /// Why it cannot be used.
    pub fn decode(bytes: &[u8], cluster: &ClusterName, epoch: u64) -> Result<Self, HandoverError> {
        let mut record = Record::decode(bytes).map_err(|_| HandoverError::Unreadable("not a record"))?;
        if record.format != FORMAT {
            return Err(HandoverError::Unreadable("another format"));
        }
        if record.cluster != cluster.as_str() || record.epoch != epoch {
            return Err(HandoverError::OtherUse { cluster: record.cluster.clone(), epoch: record.epoch });
        }
        let mut deks = Vec::new();
        for held in &mut record.deks {
            let mut bytes = Zeroizing::new([0; DEK_BYTES]);
            let is_whole = held.dek.len() == DEK_BYTES;
            if is_whole {
                bytes.copy_from_slice(&held.dek);
            }
            let dek = Dek::from_unwrapped(&mut *bytes).filter(|_| is_whole);
            let dek = Arc::new(dek.ok_or(HandoverError::Unreadable("a DEK is not 32 bytes"))?);
            let versions = held.versions.iter().map(VersionRecord::read).collect::<Result<_, _>>()?;
            // The id is computed, not read: a damaged record cannot put another DEK under the id of one that is in use.
            let wraps = held.wraps.as_slice().try_into();
            let wraps = wraps.map_err(|_| HandoverError::Unreadable("a digest is not 32 bytes"))?;
            deks.push(HeldDek { id: dek_id(&dek), dek, versions, wraps });
        }
        let mut opened = Vec::new();
        for record in &record.opened {
            opened.extend(record.read_vouched()?);
        }
        let made = at(record.made).ok_or(HandoverError::Unreadable("it was made before the clock began"))?;
        Ok(Self { made, cluster: cluster.clone(), epoch, deks, opened })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn handover() -> Handover {
        let dek = Arc::new(Dek::generate(&mut rand::rng()));
        let version = KekVersion { lineage: Lineage::derive("test", &["a"]), version: "1".into() };
        let deks = vec![HeldDek { id: dek_id(&dek), dek, versions: vec![version.clone()], wraps: [7; 32] }];
        let cluster = "it".parse().unwrap();
        Handover {
            made: Duration::from_secs(2),
            cluster,
            epoch: 1,
            deks,
            opened: vec![Vouched { version, opened: Duration::from_millis(1234), until: Some(Duration::from_secs(9)) }],
        }
    }

    fn read(bytes: &[u8], cluster: &str, epoch: u64) -> Result<Handover, HandoverError> {
        Handover::decode(bytes, &cluster.parse().unwrap(), epoch)
    }

    #[test]
    fn what_is_handed_over_is_what_was_held() {
        let handed = handover();
        let taken = read(&handed.encode(), "it", 1).unwrap();
        assert_eq!(taken.opened, handed.opened);
        let (one, other) = (&taken.deks[0], &handed.deks[0]);
        assert_eq!((one.id, &one.versions, one.dek.expose()), (other.id, &other.versions, other.dek.expose()));
        assert_eq!(one.wraps, other.wraps);
    }

    #[test]
    fn another_cluster_or_epoch_is_refused() {
        let bytes = handover().encode();
        for (cluster, epoch) in [("other", 1), ("it", 2)] {
            let refused = read(&bytes, cluster, epoch).unwrap_err();
            assert_eq!(refused, HandoverError::OtherUse { cluster: "it".into(), epoch: 1 });
        }
    }

    #[test]
    fn damaged_bytes_give_an_error_or_another_dek_id_and_never_a_dek_under_a_wrong_name() {
        let handed = handover();
        let bytes = handed.encode();
        for at in 0..bytes.len() {
            let mut damaged = bytes.to_vec();
            damaged[at] ^= 1;
            if let Ok(taken) = read(&damaged, "it", 1) {
                assert!(taken.deks.iter().all(|one| one.id == dek_id(&one.dek)), "byte {at}");
            }
            assert!(read(&bytes[..at], "it", 1).map_or(true, |taken| taken.deks.len() <= 1), "cut at {at}");
        }
    }
}
