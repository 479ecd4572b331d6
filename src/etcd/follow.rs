//! What is stored in and taken from one etcd cluster, as it happens: a watch that tells of each value how it is stored
//! and how the one before it was.

use std::time::Duration;

use futures::stream;
use tonic::codec::Streaming;
use tonic::metadata::MetadataValue;
use tonic::transport::Channel;
use tonic::{Request, Status};

use super::cluster::{EtcdCluster, end_of};
use super::connect::EtcdError;
use super::proto::event::EventType;
use super::proto::watch_client::WatchClient;
use super::proto::watch_request::RequestUnion;
use super::proto::{Event, KeyValue, WatchCreateRequest, WatchProgressRequest, WatchRequest, WatchResponse};
use super::stored::Stored;

/// How often etcd is asked how far it is. One answer is some 30 bytes.
const ASKS_EVERY: Duration = Duration::from_secs(1);
/// How long etcd may send nothing, although it is asked.
const SILENCE: Duration = Duration::from_secs(30);

/// One change of one key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Change {
    /// The whole key, prefix included.
    pub key: String,
    /// The revision of the change.
    pub revision: i64,
    /// How it is stored from now on; `None` where the key was removed.
    pub now: Option<Stored>,
    /// How it was stored.
    pub before: Before,
}

/// What a key held before a change.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Before {
    /// It did not exist.
    Absent,
    /// A value that was stored like this.
    Value(Stored),
    /// A value that etcd has compacted meanwhile.
    Compacted,
}

/// What a watch tells.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Followed {
    /// All changes of one or several revisions.
    Changes(Vec<Change>),
    /// There is no other change up to this revision.
    UpTo(i64),
    /// Changes before this revision were compacted before they were sent.
    Compacted(i64),
}

/// A watch on one cluster.
#[derive(Debug)]
pub struct Follower {
    answers: Streaming<WatchResponse>,
    /// Changes of revisions that are not complete yet: etcd sends large ones in fragments.
    incomplete: Vec<Change>,
}

impl EtcdCluster {
    /// Follows every change under `prefix` after a revision. `turn` chooses the member, so that the next attempt asks
    /// another one.
    ///
    /// # Errors
    /// [`EtcdError::Refused`] if the member answers with an error or does not answer.
    pub async fn follow(&self, prefix: &str, after: i64, turn: usize) -> Result<Follower, EtcdError> {
        let members: Vec<_> = self.channels().collect();
        let member = members.get(turn.checked_rem(members.len()).unwrap_or_default());
        let member = member.ok_or_else(|| refused(Status::unavailable("the cluster has no member")))?;
        Follower::begin(member.clone(), prefix, after.saturating_add(1), ASKS_EVERY).await
    }
}

impl Follower {
    /// Follows what one member tells from a revision on, and asks it at intervals how far it is.
    pub(super) async fn begin(member: Channel, prefix: &str, from: i64, every: Duration) -> Result<Self, EtcdError> {
        let create = WatchCreateRequest {
            key: prefix.into(),
            range_end: end_of(prefix),
            start_revision: from,
            // With what each key held before, so that nothing has to be remembered for each value.
            prev_kv: true,
            // An answer that is larger than a gRPC message comes in parts.
            fragment: true,
            progress_notify: true,
            ..WatchCreateRequest::default()
        };
        let mut request = Request::new(requests(create, every));
        // A member that was cut off from the others would otherwise go on saying that nothing changes.
        request.metadata_mut().insert("hasleader", MetadataValue::from_static("true"));
        let mut client = WatchClient::new(member).max_decoding_message_size(usize::MAX);
        let answers = client.watch(request).await.map_err(refused)?.into_inner();
        Ok(Self { answers, incomplete: Vec::new() })
    }

    /// What comes next. A call that is dropped loses nothing.
    ///
    /// # Errors
    /// [`EtcdError::Refused`] when the watch ended, and another one must be begun.
    pub async fn next(&mut self) -> Result<Followed, EtcdError> {
        loop {
            let answer = tokio::time::timeout(SILENCE, self.answers.message()).await;
            let answer = answer.map_err(|_| refused(Status::deadline_exceeded("the watch sends nothing")))?;
            let answer = answer.map_err(refused)?;
            let answer = answer.ok_or_else(|| refused(Status::unavailable("etcd ended the watch")))?;
            if let Some(followed) = self.take(answer)? {
                return Ok(followed);
            }
        }
    }

    fn take(&mut self, answer: WatchResponse) -> Result<Option<Followed>, EtcdError> {
        if answer.compact_revision > 0 {
            return Ok(Some(Followed::Compacted(answer.compact_revision)));
        }
        if answer.canceled {
            return Err(refused(Status::unavailable(answer.cancel_reason)));
        }
        if answer.created {
            return Ok(None);
        }
        let has_events = !answer.events.is_empty();
        self.incomplete.extend(answer.events.into_iter().filter_map(change));
        if answer.fragment {
            return Ok(None);
        }
        if has_events || !self.incomplete.is_empty() {
            return Ok(Some(Followed::Changes(std::mem::take(&mut self.incomplete))));
        }
        Ok(answer.header.map(|header| Followed::UpTo(header.revision)))
    }
}

/// One watch, and then the question how far it is, again and again.
fn requests(create: WatchCreateRequest, every: Duration) -> impl futures::Stream<Item = WatchRequest> + Send + 'static {
    let first = RequestUnion::CreateRequest(create);
    stream::unfold(Some(first), move |request| async move {
        let union = match request {
            Some(create) => create,
            None => {
                tokio::time::sleep(every).await;
                RequestUnion::ProgressRequest(WatchProgressRequest {})
            }
        };
        Some((WatchRequest { request_union: Some(union) }, None))
    })
}

fn change(event: Event) -> Option<Change> {
    let is_removal = event.r#type() == EventType::Delete;
    let pair = event.kv?;
    let stored = |pair: &KeyValue| Stored::of(&pair.value);
    // etcd sends no former value for a key that was just created, nor where it is compacted: only the revisions tell which.
    let is_first = !is_removal && pair.create_revision == pair.mod_revision;
    let before = match &event.prev_kv {
        _ if is_first => Before::Absent,
        Some(before) => Before::Value(stored(before)),
        None => Before::Compacted,
    };
    Some(Change {
        now: (!is_removal).then(|| stored(&pair)),
        before,
        revision: pair.mod_revision,
        key: String::from_utf8_lossy(&pair.key).into_owned(),
    })
}

fn refused(status: Status) -> EtcdError {
    EtcdError::Refused(Box::new(status))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pair(value: &[u8], created: i64, modified: i64) -> KeyValue {
        KeyValue { value: value.into(), create_revision: created, mod_revision: modified, ..KeyValue::default() }
    }

    #[test]
    fn what_a_key_held_before_is_told_unless_it_is_compacted() {
        let before = |kind: EventType, kv, prev_kv| change(Event { r#type: kind.into(), kv, prev_kv }).unwrap().before;
        let (first, second) = (pair(b"a", 4, 4), pair(b"b", 4, 7));
        assert_eq!(before(EventType::Put, Some(first.clone()), None), Before::Absent);
        assert_eq!(before(EventType::Put, Some(second.clone()), Some(first)), Before::Value(Stored::Plain));
        assert_eq!(before(EventType::Put, Some(second.clone()), None), Before::Compacted);
        assert_eq!(before(EventType::Delete, Some(pair(b"", 0, 9)), Some(second)), Before::Value(Stored::Plain));
        assert_eq!(before(EventType::Delete, Some(pair(b"", 0, 9)), None), Before::Compacted);
    }

    #[test]
    fn a_removal_leaves_nothing_stored() {
        let removed = Event { r#type: EventType::Delete.into(), kv: Some(pair(b"", 0, 9)), prev_kv: None };
        assert_eq!(change(removed).unwrap().now, None);
    }
}
