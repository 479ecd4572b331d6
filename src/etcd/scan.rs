//! Reading one etcd cluster: every value under a prefix, counts, single keys, and whether an old revision is gone.
#![cfg_attr(not(test), deny(clippy::arithmetic_side_effects))]

use tonic::Code;

use super::cluster::{EtcdCluster, end_of, words};
use super::connect::{EtcdError, says_compacted};
use super::proto::{CompactionRequest, KeyValue, RangeRequest, RangeResponse};
use super::record::Record;
use super::stored::plain_length;
use super::stride::Stride;

/// About how much a page may hold, so that memory stays flat however large the values are.
const PAGE_BYTES: usize = 4 << 20;
const FIRST_PAGE: i64 = 100;
const LARGEST_PAGE: i64 = 2_000;
const LAST_CHARACTER: &str = "\u{10ffff}";
/// How many values are processed before the connection is served again.
const AT_ONCE: usize = 50;

/// What was gone through.
#[derive(Clone, Copy, Debug, Default)]
pub struct Scanned {
    /// The oldest revision at which a key was read. Another one than `revision` only if a compaction came between.
    pub from_revision: i64,
    /// The newest revision at which a key was read.
    pub revision: i64,
    /// How many keys.
    pub keys: u64,
}

/// One value as it was stored when it was looked at.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StoredValue {
    /// The whole key, prefix included.
    pub key: String,
    /// How many times the key was written since it exists.
    pub version: i64,
    /// The revision at which it was written.
    pub revision: i64,
    /// Bytes of what it holds once it is decrypted, where that can be told.
    pub plain_length: Option<usize>,
}

impl EtcdCluster {
    /// The value of one key, as it is now.
    ///
    /// # Errors
    /// [`EtcdError::Refused`] if etcd answers with an error.
    pub async fn value(&self, key: &str) -> Result<Option<StoredValue>, EtcdError> {
        let request = RangeRequest { key: key.into(), ..RangeRequest::default() };
        let answer = self.range(&request).await.map_err(refused)?;
        let stored = |pair: &KeyValue| StoredValue {
            key: key.into(),
            version: pair.version,
            revision: pair.mod_revision,
            plain_length: plain_length(&pair.value),
        };
        Ok(answer.kvs.first().map(stored))
    }

    /// Goes through everything under `prefix` as [`Self::pages`] does: key, value, and the revision at which the value was
    /// stored. The next page is fetched while one is processed.
    ///
    /// # Errors
    /// [`EtcdError::Refused`] if etcd answers with an error.
    pub async fn scan(&self, prefix: &str, mut each: impl FnMut(&str, &[u8], i64)) -> Result<Scanned, EtcdError> {
        let mut pages = self.pages(prefix);
        let mut page = pages.next().await?;
        while let Some(records) = page {
            let look = async {
                for records in records.chunks(AT_ONCE) {
                    for record in records {
                        each(&String::from_utf8_lossy(&record.key), &record.value, record.mod_revision);
                    }
                    // The connection is served by the same thread.
                    tokio::task::yield_now().await;
                }
            };
            let (next, ()) = futures::future::join(pages.next(), look).await;
            page = next?;
        }
        Ok(pages.scanned)
    }

    /// Everything under `prefix` as of one revision, in pages. If the revision is compacted meanwhile, the rest is read
    /// as of a newer one: each key is still seen once.
    ///
    /// The whole range is read each time: with a least revision in the request, etcd would load everything after the
    /// first key into memory for each page.
    pub fn pages(&self, prefix: &str) -> Pages<'_> {
        let next = Some(prefix.as_bytes().to_vec());
        let scanned = Scanned::default();
        let (range_end, stride) = (end_of(prefix), Stride::default());
        Pages { cluster: self, next, range_end, stride, limit: FIRST_PAGE, revision: 0, moves_on: true, scanned }
    }

    /// The same as of this revision alone: once it is compacted, etcd's refusal is the error.
    pub(super) fn pages_at(&self, prefix: &str, revision: i64) -> Pages<'_> {
        Pages { revision, moves_on: false, ..self.pages(prefix) }
    }

    /// Goes through everything beside `prefix`. Whether all of it may be read: with etcd's authentication a user may have
    /// no right to anything but the prefix.
    ///
    /// # Errors
    /// [`EtcdError::Refused`] if etcd answers with another error.
    pub async fn scan_beside(&self, prefix: &str, mut each: impl FnMut(&Record)) -> Result<bool, EtcdError> {
        // A single zero byte is the first key there can be, and as the end of a range the end of all keys. kine would find
        // nothing before it; its keys are text, and the last character there is comes after all of them.
        let last = if self.is_kine { LAST_CHARACTER.into() } else { vec![0] };
        for (first, end) in [(vec![0], prefix.as_bytes().to_vec()), (end_of(prefix), last)] {
            let mut pages = Pages { next: Some(first), range_end: end, ..self.pages(prefix) };
            loop {
                match pages.next().await {
                    Ok(Some(page)) => page.iter().for_each(&mut each),
                    Ok(None) => break,
                    Err(EtcdError::Refused(status)) if status.code() == Code::PermissionDenied => return Ok(false),
                    Err(error) => return Err(error),
                }
            }
        }
        Ok(true)
    }

    /// How many keys begin with `prefix`, and as of which revision.
    ///
    /// # Errors
    /// [`EtcdError::Refused`] if etcd answers with an error.
    pub async fn count(&self, prefix: &str) -> Result<(u64, i64), EtcdError> {
        let request =
            RangeRequest { key: prefix.into(), range_end: end_of(prefix), count_only: true, ..RangeRequest::default() };
        let answer = self.range(&request).await.map_err(refused)?;
        Ok((answer.count.unsigned_abs(), answer.header.map_or(0, |header| header.revision)))
    }

    /// The newest revision.
    ///
    /// # Errors
    /// [`EtcdError::Refused`] if etcd answers with an error.
    pub async fn revision(&self) -> Result<i64, EtcdError> {
        // Every answer tells the revision, whether there is such a key or not; and this one lies in what a role for the
        // prefix may read.
        let request = RangeRequest { key: self.prefix().into(), keys_only: true, ..RangeRequest::default() };
        Ok(self.range(&request).await.map_err(refused)?.header.map_or(0, |header| header.revision))
    }

    /// The revision at which a key was last stored, as of `revision`; `None` if it did not exist then.
    ///
    /// # Errors
    /// [`EtcdError::Refused`] if etcd answers with an error.
    pub async fn stored_at(&self, key: &str, revision: i64) -> Result<Option<i64>, EtcdError> {
        let request = RangeRequest { key: key.into(), revision, keys_only: true, ..RangeRequest::default() };
        let answer = self.range(&request).await.map_err(refused)?;
        Ok(answer.kvs.first().map(|pair: &KeyValue| pair.mod_revision))
    }

    /// The first keys under `prefix`, or those after a key, each with the revision at which it was last stored: `limit` of
    /// them, or fewer at the end. `stride` goes from one call to the next.
    ///
    /// # Errors
    /// [`EtcdError::Refused`] if etcd answers with an error.
    pub async fn keys_after(
        &self,
        prefix: &str,
        after: &str,
        limit: usize,
        stride: &mut Stride,
    ) -> Result<Vec<(String, i64)>, EtcdError> {
        let first = if after.is_empty() { prefix.as_bytes().to_vec() } else { behind(after.as_bytes()) };
        let (mut next, range_end, mut keys) = (Some(first), end_of(prefix), Vec::new());
        // A limit of zero would be none.
        while let Some(key) = next.take().filter(|_| keys.len() < limit) {
            let limit = i64::try_from(limit.saturating_sub(keys.len())).unwrap_or(i64::MAX);
            let end = stride.end(&key, &range_end);
            let request =
                RangeRequest { key, range_end: end.clone(), limit, keys_only: true, ..RangeRequest::default() };
            let answer = self.range(&request).await.map_err(refused)?;
            next = following(self.is_kine, &answer, end, &range_end, limit, stride);
            keys.extend(
                answer.kvs.into_iter().map(|pair| (String::from_utf8_lossy(&pair.key).into_owned(), pair.mod_revision)),
            );
        }
        Ok(keys)
    }

    /// How many keys began with `prefix` as of `revision`; `None` where etcd was compacted past it.
    ///
    /// # Errors
    /// [`EtcdError::Refused`] if etcd answers with another error.
    pub async fn count_at(&self, prefix: &str, revision: i64) -> Result<Option<u64>, EtcdError> {
        let request = RangeRequest {
            key: prefix.into(),
            range_end: end_of(prefix),
            revision,
            count_only: true,
            ..RangeRequest::default()
        };
        match self.range(&request).await {
            Ok(answer) => Ok(Some(answer.count.unsigned_abs())),
            // A revision that is not there yet is refused with the same code.
            Err(status) if says_compacted(&status) => Ok(None),
            Err(status) => Err(refused(status)),
        }
    }

    /// Removes all revisions before `revision`, and answers when they have left the database file. Nothing that is
    /// stored now is lost. Compacted already past it counts as done.
    ///
    /// # Errors
    /// [`EtcdError::Refused`] if etcd answers with another error; with authentication it demands the role `root`.
    pub async fn compact(&self, revision: i64) -> Result<(), EtcdError> {
        match self.kv().compact(CompactionRequest { revision, physical: true }).await {
            Ok(_) => Ok(()),
            Err(status) if says_compacted(&status) => Ok(()),
            Err(status) => Err(refused(status)),
        }
    }
}

/// What is under a prefix, page by page; see [`EtcdCluster::pages`].
#[derive(Debug)]
pub struct Pages<'a> {
    cluster: &'a EtcdCluster,
    /// Where the next page begins; `None` after the last one.
    next: Option<Vec<u8>>,
    range_end: Vec<u8>,
    stride: Stride,
    limit: i64,
    /// As of which revision is read; 0 until the first answer, and after a compaction past it.
    revision: i64,
    /// Whether a compaction past that revision leads to a newer one.
    moves_on: bool,
    scanned: Scanned,
}

impl Pages<'_> {
    /// The next page; `None` after the last one.
    ///
    /// # Errors
    /// [`EtcdError::Refused`] if etcd answers with an error.
    pub async fn next(&mut self) -> Result<Option<Vec<Record>>, EtcdError> {
        let Some(key) = self.next.take() else { return Ok(None) };
        let end = self.stride.end(&key, &self.range_end);
        let answer = self.range(key, &end).await?;
        if self.revision == 0 {
            self.revision = answer.header.map_or(0, |header| header.revision);
        }
        if self.scanned.from_revision == 0 {
            self.scanned.from_revision = self.revision;
        }
        self.scanned.revision = self.revision;
        self.scanned.keys = self.scanned.keys.saturating_add(answer.kvs.len() as u64);
        self.next = following(self.cluster.is_kine, &answer, end, &self.range_end, self.limit, &mut self.stride);
        // Values of one folder lie together and are of like size, so the last page tells about the next.
        if !answer.kvs.is_empty() {
            self.limit = next_limit(answer.kvs.len(), answer.kvs.iter().map(|pair| pair.value.len()).sum());
        }
        Ok(Some(answer.kvs.into_iter().map(Record::from).collect()))
    }

    /// What was gone through so far.
    pub fn scanned(&self) -> Scanned {
        self.scanned
    }

    async fn range(&mut self, key: Vec<u8>, end: &[u8]) -> Result<RangeResponse, EtcdError> {
        loop {
            let request = RangeRequest {
                key: key.clone(),
                range_end: end.to_vec(),
                limit: self.limit,
                revision: self.revision,
                ..RangeRequest::default()
            };
            match self.cluster.range(&request).await {
                Err(status) if self.moves_on && says_compacted(&status) && self.revision != 0 => self.revision = 0,
                answer => return answer.map_err(|status| EtcdError::Refused(Box::new(status))),
            }
        }
    }
}

/// Where the page after this answer begins; `None` when it reached the end of everything.
fn following(
    is_kine: bool,
    answer: &RangeResponse,
    end: Vec<u8>,
    range_end: &[u8],
    limit: i64,
    stride: &mut Stride,
) -> Option<Vec<u8>> {
    match (answer.kvs.first(), answer.kvs.last()) {
        (Some(first), Some(last)) if answer.more => {
            // The SQL database behind kine may take only text, which the end of a stride is not.
            if !is_kine {
                stride.full(&first.key, &last.key);
            }
            Some(behind(&last.key))
        }
        _ if end != range_end => {
            // Also where a page has room for one key alone: an empty range must not be followed by another as short.
            if (answer.kvs.len() as u64).saturating_mul(2) <= limit.unsigned_abs() {
                stride.short();
            }
            Some(end)
        }
        _ => None,
    }
}

/// No key lies between a key and the same one with a zero byte behind it.
fn behind(key: &[u8]) -> Vec<u8> {
    [key, &[0]].concat()
}

fn refused(status: tonic::Status) -> EtcdError {
    tracing::debug!(answer = %words(&status), "etcd refused a request");
    EtcdError::Refused(Box::new(status))
}

/// As many keys as fill a page at the size of the last ones.
fn next_limit(keys: usize, bytes: usize) -> i64 {
    let each = bytes.checked_div(keys).unwrap_or(bytes).max(1);
    let more = PAGE_BYTES.checked_div(each).and_then(|more| i64::try_from(more).ok());
    more.unwrap_or(LARGEST_PAGE).clamp(1, LARGEST_PAGE)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_page_shrinks_when_values_are_large() {
        assert_eq!(next_limit(100, 100 * 2_000), 2_000);
        assert_eq!(next_limit(100, 100 * 1_000_000), 4);
        assert_eq!(next_limit(0, 0), 2_000);
    }
}
