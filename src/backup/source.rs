//! Where values are read from: one snapshot file, or the clusters of a running etcd. Both give them page by page, so
//! that memory stays flat.

use super::mvcc::Keyspace;
use super::snapshot::{Snapshot, SnapshotError};
use crate::etcd::{EtcdClusters, EtcdError, Pages, Record};

/// What is read.
#[derive(Debug)]
pub enum Source {
    /// A snapshot file.
    Snapshot(Snapshot),
    /// A running etcd, or several that one API server uses.
    Etcd(EtcdClusters),
}

/// Why values cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum SourceError {
    /// The file is at fault.
    #[error(transparent)]
    Snapshot(#[from] SnapshotError),
    /// etcd cannot be reached, or answered with an error.
    #[error(transparent)]
    Etcd(#[from] EtcdError),
}

/// One value of etcd, current or superseded.
#[derive(Clone, Debug)]
pub struct Item {
    /// Key and value.
    pub record: Record,
    /// Whether it is the key's current value. Only a snapshot has others, too.
    pub current: bool,
}

/// The values of a source, page by page.
#[derive(Debug)]
pub struct Reading<'a> {
    prefix: &'a str,
    place: Place<'a>,
    /// The newest revision of each etcd cluster that was read to its end.
    pub revisions: Vec<i64>,
}

#[derive(Debug)]
enum Place<'a> {
    Snapshot(&'a Snapshot, Keyspace<'a>),
    Etcd(Vec<Pages<'a>>),
}

impl Source {
    /// The snapshot, where it is one.
    pub fn snapshot(&self) -> Option<&Snapshot> {
        match self {
            Self::Snapshot(snapshot) => Some(snapshot),
            Self::Etcd(_) => None,
        }
    }

    /// Reads everything under `prefix`, which ends with a slash.
    ///
    /// # Errors
    /// If a snapshot is damaged.
    pub fn read<'a>(&'a self, prefix: &'a str) -> Result<Reading<'a>, SourceError> {
        let (place, revisions) = match self {
            Self::Snapshot(snapshot) => {
                (Place::Snapshot(snapshot, snapshot.keyspace()?), vec![snapshot.about().revision])
            }
            Self::Etcd(etcd) => {
                // Reversed, since the one that is being read is the last of the list.
                let pages = etcd.clusters.iter().rev().map(|cluster| cluster.pages(prefix));
                (Place::Etcd(pages.collect()), Vec::new())
            }
        };
        Ok(Reading { prefix, place, revisions })
    }
}

impl Reading<'_> {
    /// The next page; `None` after the last one.
    ///
    /// # Errors
    /// If the snapshot is damaged, or etcd answers with an error.
    pub async fn next(&mut self) -> Result<Option<Vec<Item>>, SourceError> {
        match &mut self.place {
            Place::Snapshot(snapshot, keyspace) => {
                let Some(page) = snapshot.next_page(keyspace)? else { return Ok(None) };
                let below = page.into_iter().filter(|(record, _)| record.key.starts_with(self.prefix.as_bytes()));
                Ok(Some(below.map(|(record, current)| Item { record, current }).collect()))
            }
            Place::Etcd(clusters) => {
                while let Some(pages) = clusters.last_mut() {
                    if let Some(page) = pages.next().await? {
                        return Ok(Some(page.into_iter().map(|record| Item { record, current: true }).collect()));
                    }
                    self.revisions.push(pages.scanned().revision);
                    clusters.pop();
                }
                Ok(None)
            }
        }
    }
}
