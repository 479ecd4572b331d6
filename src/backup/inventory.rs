//! [`Inventory`]: how the values of a source are stored, counted without any key: resource × provider × `key_id` × KEK
//! versions.

use std::collections::{BTreeMap, BTreeSet};

use super::source::{Item, Source, SourceError};
use crate::crypto::seal::digest;
use crate::crypto::secret::DekId;
use crate::envelope::{ANNOTATION, Ciphertext, WrappedDekSet};
use crate::etcd::{EncryptedObject, Record, Stored, folder_of};
use crate::kek::KekVersion;

/// What values have in common that are counted together.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Shape {
    /// The folder of their resource, such as `secrets`.
    pub folder: String,
    /// How they are stored, and which keys they need.
    pub stored: Stored,
}

/// How many values have a shape.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Count {
    /// Values that are current.
    pub objects: u64,
    /// Values that were replaced or deleted since, and that etcd has not compacted yet.
    pub older: u64,
    /// The first and the last revision at which one of them was stored.
    pub revisions: (i64, i64),
    /// Different wrapped seeds among them, by their digests: each costs an API server one Decrypt at its start.
    pub seeds: BTreeSet<[u8; 16]>,
}

/// One row of the table.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Row {
    /// What these values have in common.
    pub shape: Shape,
    /// How many there are, and how many seeds they need.
    pub count: Count,
}

/// A wrapped DEK of kube-envelope that values need.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DekInUse {
    /// Its id, as every ciphertext under it names it.
    pub id: DekId,
    /// The DEK, wrapped by every KEK of its generation.
    pub wrapped: WrappedDekSet,
}

/// Everything that was counted.
#[derive(Clone, Debug, Default)]
pub struct Inventory {
    shapes: BTreeMap<Shape, Count>,
    deks: BTreeMap<[u8; 32], DekInUse>,
    /// The newest revision of each etcd cluster.
    pub revisions: Vec<i64>,
    /// Whether something beside the prefix could not be read.
    pub is_partial: bool,
}

impl Inventory {
    /// Counts everything under `prefix`, which ends with a slash.
    ///
    /// # Errors
    /// If the source cannot be read to its end.
    pub async fn take(source: &Source, prefix: &str) -> Result<Self, SourceError> {
        let mut inventory = Self::default();
        // Of a snapshot everything can be read at once; what lies beside the prefix is looked for in an etcd below.
        let mut reading = source.read(if source.snapshot().is_some() { "" } else { prefix })?;
        while let Some(page) = reading.next().await? {
            for item in &page {
                inventory.count(item, prefix);
            }
        }
        inventory.revisions = reading.revisions;
        if let Source::Etcd(etcd) = source {
            for cluster in &etcd.clusters {
                let each = |record: &Record| {
                    inventory.count(&Item { record: record.clone(), current: true }, prefix);
                };
                let is_read = cluster.scan_beside(prefix, each).await?;
                inventory.is_partial |= !is_read;
            }
        }
        Ok(inventory)
    }

    /// The rows, in the order of resources.
    pub fn rows(&self) -> impl Iterator<Item = Row> {
        self.shapes.iter().map(|(shape, count)| Row { shape: shape.clone(), count: count.clone() })
    }

    /// Every wrapped DEK of kube-envelope.
    pub fn deks(&self) -> impl Iterator<Item = &DekInUse> {
        self.deks.values()
    }

    /// Every KEK version that some value names. For each value any one of its own suffices.
    pub fn kek_versions(&self) -> BTreeSet<KekVersion> {
        self.deks().flat_map(|dek| dek.wrapped.versions().cloned()).collect()
    }

    fn count(&mut self, item: &Item, prefix: &str) {
        let key = String::from_utf8_lossy(&item.record.key);
        let stored = Stored::of(&item.record.value);
        let folder = match key.strip_prefix(prefix) {
            Some(below) => folder_of(below).to_owned(),
            // Another API server's, with a prefix of its own. Whatever else lies in this etcd needs no key.
            None if stored == Stored::Plain => return,
            None => key.rsplit_once('/').map_or(&*key, |(folder, _)| folder).to_owned(),
        };
        let shape = Shape { folder, stored };
        let count = self.shapes.entry(shape).or_default();
        let revision = item.record.mod_revision;
        count.revisions = match count.revisions {
            (0, 0) => (revision, revision),
            (first, last) => (first.min(revision), last.max(revision)),
        };
        if item.current {
            count.objects += 1;
        } else {
            count.older += 1;
        }
        if let Some((_, object)) = EncryptedObject::of(&item.record.value) {
            let hash = digest(&[&object.encrypted_dek_source]);
            // Half of the digest is enough to count by, and a large cluster has many.
            let mut seed = [0; 16];
            seed.copy_from_slice(&hash[..16]);
            count.seeds.insert(seed);
            self.note_dek(&object);
        }
    }

    fn note_dek(&mut self, object: &EncryptedObject) {
        let Some(annotation) = object.annotations.get(ANNOTATION) else { return };
        let Ok(ciphertext) = Ciphertext::parse(&object.encrypted_dek_source) else { return };
        let name = digest(&[&ciphertext.dek_id.0, annotation]);
        // Decoded once for each: thousands of values share an annotation.
        if !self.deks.contains_key(&name)
            && let Ok(wrapped) = WrappedDekSet::decode(annotation)
        {
            self.deks.insert(name, DekInUse { id: ciphertext.dek_id, wrapped });
        }
    }
}
