//! The stored format and its limits: what goes into etcd, and what comes back from it.
//!
//! Ciphertext, format 1: `KE` ‖ format (1) ‖ DEK id (16) ‖ salt (32) ‖ nonce (12) ‖ AES-256-GCM(seed) ‖ tag (16).
//! The one annotation beside it, `dek.kube-envelope.io`, holds the DEK wrapped by every KEK (`proto/envelope.proto`).
//! Both together are self-contained: with one of the KEKs they open, whatever else is lost. The format is frozen as a whole,
//! and so it is in one file as a whole.

use std::ops::RangeInclusive;

use prost::Message;
use rand::CryptoRng;

use crate::crypto::seal::{OVERHEAD, open_seed, seal_seed};
use crate::crypto::secret::{Dek, DekId, Seed};
use crate::kek::{ClusterName, KekVersion, Lineage, MAX_VERSION_BYTES, WrapContext, WrappedDek};
use crate::key_id::KeyId;

#[allow(missing_docs, clippy::pedantic, reason = "generated from proto/envelope.proto, which documents it")]
pub(crate) mod record {
    tonic::include_proto!("kube_envelope.v1");
}

/// The annotation that the wrapped DEK is stored under: a fully qualified domain name, as kube-apiserver demands.
pub const ANNOTATION: &str = "dek.kube-envelope.io";

/// The longest ciphertext in bytes that kube-apiserver stores (k8s.io/apiserver, kmsv2/envelope.go).
pub const MAX_CIPHERTEXT_BYTES: usize = 1024;

/// The most bytes of annotations, keys and values together, that kube-apiserver stores.
pub const MAX_ANNOTATION_BYTES: usize = 32 * 1024;

/// The longest seed in bytes whose ciphertext still fits.
pub const MAX_SEED_BYTES: usize = MAX_CIPHERTEXT_BYTES - HEADER_BYTES - OVERHEAD;

/// The most KEKs that may wrap one DEK: a Decrypt asks no more of them.
pub(crate) const MAX_WRAPS: usize = 16;

const MAX_SHOWN_CHARACTERS: usize = 80;
const MAGIC: [u8; 2] = *b"KE";
const FORMAT: u8 = 1;

/// No format of kube-envelope has the number of a printable character: what begins with its mark by chance, and is text,
/// is another plugin's.
const NO_FORMATS: RangeInclusive<u8> = b' '..=b'~';
const HEADER_BYTES: usize = MAGIC.len() + 1 + 16;

/// Why stored bytes are refused. None of these asks a KEK anything.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum CiphertextError {
    /// Zero bytes, where a format number was expected.
    #[error("ciphertext is empty")]
    Empty,
    /// Longer than anything this program makes.
    #[error("ciphertext has {0} bytes; at most {MAX_CIPHERTEXT_BYTES} are possible")]
    TooLong(usize),
    /// Shorter than anything this program makes.
    #[error("ciphertext has {0} bytes, fewer than the smallest possible; it is truncated")]
    TooShort(usize),
    /// Another program's ciphertext.
    #[error(
        "ciphertext does not begin with the mark of kube-envelope: another plugin made it; list that plugin under \
         takeover"
    )]
    Foreign,
    /// A later program's ciphertext.
    #[error("ciphertext has format {0}, and this program knows format {FORMAT}; use a newer version of kube-envelope")]
    UnknownFormat(u8),
    /// The annotation is not there.
    #[error("annotation {ANNOTATION} is missing; the wrapped key is in it")]
    NoAnnotation,
    /// The annotation holds something else.
    #[error("annotation {ANNOTATION} is damaged: {0}")]
    BadAnnotation(&'static str),
    /// Made for another cluster.
    #[error("ciphertext belongs to cluster \"{theirs}\", and this plugin serves \"{ours}\"")]
    OtherCluster {
        /// The cluster it was made for.
        theirs: ClusterName,
        /// The cluster of this plugin's configuration.
        ours: ClusterName,
    },
    /// The `key_id` names another generation than the annotation.
    #[error("key_id {0:?} does not belong to this ciphertext's wrapped key")]
    OtherKeyId(String),
    /// The tag of AES-256-GCM does not match.
    #[error("ciphertext does not open: it was changed, or belongs to another object")]
    DoesNotOpen,
}

/// Why nothing can be made to be stored.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum SealError {
    /// A seed that no ciphertext has room for.
    #[error("plaintext has {0} bytes; 1 to {MAX_SEED_BYTES} are possible")]
    SeedSize(usize),
    /// The wrapped DEKs are larger than the API server stores.
    #[error("annotation has {0} bytes, but the API server stores at most {MAX_ANNOTATION_BYTES}; configure fewer KEKs")]
    AnnotationTooLong(usize),
    /// More KEKs than a Decrypt would ask.
    #[error("{0} KEKs are configured to wrap, but at most {MAX_WRAPS} are possible; remove some under keks")]
    TooManyKeks(usize),
    /// What a KEK made could not be read again.
    #[error("the wrapped keys could not be read again: {0}")]
    Unreadable(#[from] CiphertextError),
}

/// Whether kube-envelope made this, in whatever format: it says so by its first bytes or by its annotation. What it made
/// is shown to no key of another plugin's.
pub(crate) fn is_own(ciphertext: &[u8], has_annotation: bool) -> bool {
    has_annotation || matches!(ciphertext.strip_prefix(&MAGIC), Some([format, ..]) if !NO_FORMATS.contains(format))
}

/// A ciphertext whose form is right.
#[derive(Debug)]
pub struct Ciphertext<'a> {
    /// Which DEK opens it.
    pub dek_id: DekId,
    header: &'a [u8],
    sealed: &'a [u8],
}

impl<'a> Ciphertext<'a> {
    /// Checks length, mark and format.
    ///
    /// # Errors
    /// What is wrong with the form; nothing is opened here.
    pub fn parse(bytes: &'a [u8]) -> Result<Self, CiphertextError> {
        match bytes.len() {
            0 => return Err(CiphertextError::Empty),
            length if length > MAX_CIPHERTEXT_BYTES => return Err(CiphertextError::TooLong(length)),
            _ => {}
        }
        // As much of the mark as is there: what was cut short within it is truncated, and no other plugin's.
        if !bytes.starts_with(&MAGIC[..bytes.len().min(MAGIC.len())]) {
            return Err(CiphertextError::Foreign);
        }
        if let Some(&format) = bytes.get(MAGIC.len())
            && format != FORMAT
        {
            return Err(if NO_FORMATS.contains(&format) {
                CiphertextError::Foreign
            } else {
                CiphertextError::UnknownFormat(format)
            });
        }
        if bytes.len() <= HEADER_BYTES + OVERHEAD {
            return Err(CiphertextError::TooShort(bytes.len()));
        }
        let (header, sealed) = bytes.split_at(HEADER_BYTES);
        let dek_id = DekId(header[MAGIC.len() + 1..].try_into().expect("the header ends with 16 bytes of id"));
        Ok(Self { dek_id, header, sealed })
    }

    /// Opens the seed with the DEK that [`Ciphertext::dek_id`] names.
    ///
    /// # Errors
    /// [`CiphertextError::DoesNotOpen`] if DEK, cluster, `key_id` or the bytes are not those of the sealing.
    pub fn open(&self, dek: &Dek, cluster: &ClusterName, key_id: &str) -> Result<Seed, CiphertextError> {
        open_seed(dek, &aad(self.header, cluster, key_id), self.sealed).map_err(|_| CiphertextError::DoesNotOpen)
    }
}

/// Seals `seed` into a ciphertext of format 1, bound to the cluster and the `key_id`.
///
/// ```
/// use kube_envelope::crypto::seal::{dek_id, os_random};
/// use kube_envelope::crypto::secret::{Dek, Seed};
/// use kube_envelope::envelope::{Ciphertext, CiphertextError, seal};
/// use kube_envelope::kek::ClusterName;
/// use kube_envelope::key_id::KeyId;
///
/// let dek = Dek::generate(&mut os_random());
/// let key_id = KeyId::derive(1, []);
/// let (prod, staging): (ClusterName, ClusterName) = ("prod".parse()?, "staging".parse()?);
/// let stored = seal(&dek, dek_id(&dek), &prod, &key_id, &Seed::new(vec![1; 32]), &mut os_random())?;
///
/// let ciphertext = Ciphertext::parse(&stored)?;
/// assert_eq!(ciphertext.dek_id, dek_id(&dek));
/// assert_eq!(ciphertext.open(&dek, &prod, key_id.as_str())?.expose(), [1; 32]);
/// assert_eq!(ciphertext.open(&dek, &staging, key_id.as_str()).err(), Some(CiphertextError::DoesNotOpen));
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
///
/// # Errors
/// [`SealError::SeedSize`] for a seed of 0 or more than [`MAX_SEED_BYTES`] bytes.
pub fn seal(
    dek: &Dek,
    dek_id: DekId,
    cluster: &ClusterName,
    key_id: &KeyId,
    seed: &Seed,
    rng: &mut impl CryptoRng,
) -> Result<Vec<u8>, SealError> {
    let length = seed.expose().len();
    if length == 0 || length > MAX_SEED_BYTES {
        return Err(SealError::SeedSize(length));
    }
    let mut bytes = Vec::with_capacity(HEADER_BYTES + OVERHEAD + length);
    bytes.extend(MAGIC);
    bytes.push(FORMAT);
    bytes.extend(dek_id.0);
    let sealed = seal_seed(dek, &aad(&bytes, cluster, key_id.as_str()), seed, rng);
    bytes.extend(sealed);
    Ok(bytes)
}

/// Binds a seed to its header, cluster and generation: each with its length before it (8 bytes, big endian).
fn aad(header: &[u8], cluster: &ClusterName, key_id: &str) -> Vec<u8> {
    let mut aad = Vec::with_capacity(24 + header.len() + cluster.as_str().len() + key_id.len());
    for part in [header, cluster.as_str().as_bytes(), key_id.as_bytes()] {
        // Without the lengths, bytes could move from one part to the next and give the same associated data.
        aad.extend((part.len() as u64).to_be_bytes());
        aad.extend(part);
    }
    aad
}

/// A DEK as it is stored: wrapped by every KEK of its generation.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WrappedDekSet {
    /// The cluster it was made for.
    pub cluster: ClusterName,
    /// The configuration's epoch when it was made.
    pub epoch: u64,
    /// One wrap for each KEK.
    pub wraps: Vec<WrappedDek>,
}

impl WrappedDekSet {
    /// The generation that this DEK belongs to.
    pub fn key_id(&self) -> KeyId {
        KeyId::derive(self.epoch, self.versions())
    }

    /// The KEK versions that wrapped it.
    pub fn versions(&self) -> impl Iterator<Item = &KekVersion> {
        self.wraps.iter().map(|wrap| &wrap.version)
    }

    /// The KEKs that wrapped it.
    pub(crate) fn lineages(&self) -> impl Iterator<Item = Lineage> {
        self.wraps.iter().map(|wrap| wrap.version.lineage)
    }

    /// What each wrap is bound to.
    pub fn context(&self, dek_id: DekId) -> WrapContext {
        WrapContext { cluster: self.cluster.clone(), dek_id }
    }

    /// The annotation's value.
    ///
    /// # Errors
    /// When key and value together are more than the API server stores, or more KEKs wrapped than are ever asked.
    pub fn encode(&self) -> Result<Vec<u8>, SealError> {
        if self.wraps.len() > MAX_WRAPS {
            return Err(SealError::TooManyKeks(self.wraps.len()));
        }
        let wraps = self.wraps.iter().map(|wrap| record::Wrap {
            lineage: wrap.version.lineage.0.to_vec(),
            version: wrap.version.version.clone(),
            blob: wrap.blob.clone(),
        });
        let set =
            record::WrappedDekSet { cluster: self.cluster.to_string(), epoch: self.epoch, wraps: wraps.collect() };
        let bytes = set.encode_to_vec();
        match ANNOTATION.len() + bytes.len() {
            length if length > MAX_ANNOTATION_BYTES => Err(SealError::AnnotationTooLong(length)),
            _ => Ok(bytes),
        }
    }

    /// Reads an annotation's value.
    ///
    /// # Errors
    /// [`CiphertextError::BadAnnotation`] if it is not what [`WrappedDekSet::encode`] makes.
    pub fn decode(bytes: &[u8]) -> Result<Self, CiphertextError> {
        // Before it is decoded: the API server cannot have stored it.
        if bytes.len() > MAX_ANNOTATION_BYTES {
            return Err(CiphertextError::BadAnnotation("it is longer than the API server stores"));
        }
        let set =
            record::WrappedDekSet::decode(bytes).map_err(|_| CiphertextError::BadAnnotation("not a wrapped key"))?;
        if set.wraps.is_empty() {
            return Err(CiphertextError::BadAnnotation("no KEK wrapped it"));
        }
        if set.wraps.len() > MAX_WRAPS {
            return Err(CiphertextError::BadAnnotation("more KEKs wrapped it than can be configured"));
        }
        let wraps = set.wraps.into_iter().map(decode_wrap).collect::<Result<Vec<_>, _>>()?;
        let mut lineages: Vec<_> = wraps.iter().map(|wrap| wrap.version.lineage).collect();
        // Which of the two a KEK would be asked with could not be told.
        lineages.sort_unstable();
        if lineages.windows(2).any(|pair| pair[0] == pair[1]) {
            return Err(CiphertextError::BadAnnotation("one KEK wrapped it twice"));
        }
        let cluster =
            set.cluster.parse().map_err(|_| CiphertextError::BadAnnotation("its cluster has no such name"))?;
        Ok(Self { cluster, epoch: set.epoch, wraps })
    }

    /// Whether this DEK was made for `cluster` and `key_id` names its generation.
    ///
    /// # Errors
    /// [`CiphertextError::OtherCluster`] or [`CiphertextError::OtherKeyId`].
    pub fn check(&self, cluster: &ClusterName, key_id: &str) -> Result<(), CiphertextError> {
        if self.cluster != *cluster {
            return Err(CiphertextError::OtherCluster { theirs: self.cluster.clone(), ours: cluster.clone() });
        }
        if key_id != self.key_id().as_str() {
            return Err(CiphertextError::OtherKeyId(shown(key_id)));
        }
        Ok(())
    }
}

/// As much of a text from outside as an error shows.
fn shown(text: &str) -> String {
    text.chars().take(MAX_SHOWN_CHARACTERS).collect()
}

fn decode_wrap(wrap: record::Wrap) -> Result<WrappedDek, CiphertextError> {
    let lineage = wrap.lineage.try_into().map_err(|_| CiphertextError::BadAnnotation("a lineage is not 16 bytes"))?;
    if wrap.version.len() > MAX_VERSION_BYTES {
        return Err(CiphertextError::BadAnnotation("a version is too long"));
    }
    if wrap.blob.is_empty() {
        return Err(CiphertextError::BadAnnotation("a wrap is empty"));
    }
    Ok(WrappedDek { version: KekVersion { lineage: Lineage(lineage), version: wrap.version }, blob: wrap.blob })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::crypto::seal::dek_id;

    fn cluster(name: &str) -> ClusterName {
        name.parse().unwrap()
    }

    fn wrap_record() -> record::Wrap {
        record::Wrap { lineage: vec![1; 16], version: "1".into(), blob: vec![1] }
    }

    fn key_id() -> KeyId {
        KeyId::derive(1, [])
    }

    #[test]
    fn todays_seed_becomes_111_bytes_and_comes_back() {
        let dek = Dek::generate(&mut rand::rng());
        let id = dek_id(&dek);
        let bytes = seal(&dek, id, &cluster("c"), &key_id(), &Seed::new(vec![9; 32]), &mut rand::rng()).unwrap();
        assert_eq!(bytes.len(), 111);
        let parsed = Ciphertext::parse(&bytes).unwrap();
        assert_eq!(parsed.dek_id, id);
        assert_eq!(parsed.open(&dek, &cluster("c"), key_id().as_str()).unwrap().expose(), [9; 32]);
        assert_eq!(parsed.open(&dek, &cluster("d"), key_id().as_str()).unwrap_err(), CiphertextError::DoesNotOpen);
        assert_eq!(parsed.open(&dek, &cluster("c"), "other").unwrap_err(), CiphertextError::DoesNotOpen);
    }

    #[test]
    fn the_longest_seed_fits_the_api_servers_limit_and_one_byte_more_is_refused() {
        // k8s.io/apiserver, kmsv2/envelope.go: `encryptedDEKSourceMaxSize` and `annotationsMaxSize`.
        assert_eq!((MAX_CIPHERTEXT_BYTES, MAX_ANNOTATION_BYTES, MAX_SEED_BYTES), (1024, 32_768, 945));
        let dek = Dek::generate(&mut rand::rng());
        let seal =
            |length| seal(&dek, dek_id(&dek), &cluster("c"), &key_id(), &Seed::new(vec![1; length]), &mut rand::rng());
        assert_eq!(seal(MAX_SEED_BYTES).unwrap().len(), MAX_CIPHERTEXT_BYTES);
        assert_eq!(seal(MAX_SEED_BYTES + 1).unwrap_err(), SealError::SeedSize(MAX_SEED_BYTES + 1));
        assert_eq!(seal(0).unwrap_err(), SealError::SeedSize(0));
    }

    #[test]
    fn an_annotation_that_would_ask_one_kek_twice_or_too_many_is_refused() {
        let wrap = |home: usize| WrappedDek {
            version: KekVersion { lineage: Lineage::derive("test", &[&home.to_string()]), version: "1".into() },
            blob: vec![1],
        };
        let set = |homes: &[usize]| WrappedDekSet {
            cluster: cluster("c"),
            epoch: 1,
            wraps: homes.iter().copied().map(wrap).collect(),
        };
        let twice = WrappedDekSet::decode(&set(&[1, 2, 1]).encode().unwrap());
        assert_eq!(twice.unwrap_err(), CiphertextError::BadAnnotation("one KEK wrapped it twice"));
        let most: Vec<_> = (0..MAX_WRAPS).collect();
        assert!(WrappedDekSet::decode(&set(&most).encode().unwrap()).is_ok());
        let too_many: Vec<_> = (0..=MAX_WRAPS).collect();
        assert_eq!(set(&too_many).encode().unwrap_err(), SealError::TooManyKeks(MAX_WRAPS + 1));
    }

    #[test]
    fn an_error_shows_little_of_a_text_from_outside() {
        let set = WrappedDekSet { cluster: cluster("c"), epoch: 1, wraps: vec![] };
        assert!(set.check(&cluster("c"), &"k".repeat(20_000)).unwrap_err().to_string().len() < 200);
        let foreign = record::WrappedDekSet { cluster: "x".repeat(20_000), epoch: 1, wraps: vec![wrap_record()] };
        assert!(WrappedDekSet::decode(&foreign.encode_to_vec()).unwrap_err().to_string().len() < 200);
    }
}
