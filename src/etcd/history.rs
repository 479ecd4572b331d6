//! What was stored in one etcd cluster between two revisions, superseded values included.
#![cfg_attr(not(test), deny(clippy::arithmetic_side_effects))]

use std::time::{Duration, Instant};

use futures::stream;
use tonic::Status;
use tonic::transport::Channel;

use super::cluster::{EtcdCluster, end_of};
use super::connect::{EtcdError, says_compacted};
use super::proto::watch_client::WatchClient;
use super::proto::watch_create_request::FilterType;
use super::proto::watch_request::RequestUnion;
use super::proto::{RangeRequest, WatchCreateRequest, WatchProgressRequest, WatchRequest, WatchResponse};

/// How long etcd may send nothing while it is behind.
const WATCH_TIMEOUT: Duration = Duration::from_secs(30);
/// How long one watch may take.
const LONGEST: Duration = Duration::from_mins(10);
/// How often a watch that has nothing to send is asked how far it is.
const ASKS_EVERY: Duration = Duration::from_millis(200);

/// What a look at history covered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct History {
    /// The first revision of which every event was seen: the one after the requested one, or what compaction left.
    pub from: i64,
    /// The last one.
    pub to: i64,
    /// How many values were stored in between.
    pub values: u64,
}

/// How one watch ended.
enum Watched {
    /// It has seen everything up to the end.
    Complete(u64),
    /// It began before the oldest revision that is left.
    Compacted(i64),
}

impl EtcdCluster {
    /// Goes through every value under `prefix` that was stored after revision `after` and up to `to`, whether it was
    /// superseded since or not: key, value, revision. Where etcd was compacted past `after`, what is left of the older
    /// revisions is the newest value of each key; these are gone through, too. A value may be seen twice.
    ///
    /// `newest` is a revision up to `to` at which a value is known to have been stored: etcd before 3.5.8 may say that
    /// everything was sent before it was.
    ///
    /// # Errors
    /// [`EtcdError::Refused`] if etcd answers with an error or stops answering.
    pub async fn history(
        &self,
        prefix: &str,
        after: i64,
        to: i64,
        newest: i64,
        mut each: impl FnMut(&str, &[u8], i64),
    ) -> Result<History, EtcdError> {
        let (mut from, mut values, mut last) =
            (after.saturating_add(1), 0_u64, Status::unavailable("the cluster has no member"));
        for channel in self.channels() {
            while from <= to {
                let range = Range { prefix, from, to, newest };
                match range.watch(channel.clone(), &mut each).await {
                    Ok(Watched::Complete(seen)) => {
                        return Ok(History { from, to, values: values.saturating_add(seen) });
                    }
                    Ok(Watched::Compacted(oldest)) => {
                        // What was superseded before the compaction is gone for good. What was current then can be read
                        // at that revision, and is part of the history.
                        values = values.saturating_add(self.values_at(prefix, oldest, after, &mut each).await?);
                        from = oldest.saturating_add(1);
                    }
                    Err(status) => {
                        last = status;
                        break;
                    }
                }
            }
            if from > to {
                return Ok(History { from, to, values });
            }
        }
        Err(refused(last))
    }

    /// The values as of one revision that were stored after another one.
    async fn values_at(
        &self,
        prefix: &str,
        revision: i64,
        after: i64,
        each: &mut impl FnMut(&str, &[u8], i64),
    ) -> Result<u64, EtcdError> {
        let (mut key, mut values) = (prefix.as_bytes().to_vec(), 0);
        loop {
            let request =
                RangeRequest { key, range_end: end_of(prefix), limit: 500, revision, ..RangeRequest::default() };
            let answer = match self.range(&request).await {
                Ok(answer) => answer,
                // Compacted further meanwhile: the watch from here on says so.
                Err(status) if says_compacted(&status) => return Ok(values),
                Err(status) => return Err(refused(status)),
            };
            for pair in answer.kvs.iter().filter(|pair| pair.mod_revision > after) {
                values = values.saturating_add(1);
                each(&String::from_utf8_lossy(&pair.key), &pair.value, pair.mod_revision);
            }
            let Some(last) = answer.kvs.last().filter(|_| answer.more) else { return Ok(values) };
            key = [last.key.as_slice(), &[0]].concat();
        }
    }
}

/// What one watch is to see.
struct Range<'a> {
    prefix: &'a str,
    from: i64,
    to: i64,
    newest: i64,
}

impl Range<'_> {
    async fn watch(&self, channel: Channel, each: &mut impl FnMut(&str, &[u8], i64)) -> Result<Watched, Status> {
        let create = WatchCreateRequest {
            key: self.prefix.into(),
            range_end: end_of(self.prefix),
            start_revision: self.from,
            // A deletion stores no value.
            filters: vec![FilterType::Nodelete.into()],
            fragment: true,
            ..WatchCreateRequest::default()
        };
        let mut client = WatchClient::new(channel).max_decoding_message_size(usize::MAX);
        let mut answers = client.watch(requests(create, ASKS_EVERY)).await?.into_inner();
        let (mut seen, mut newest_seen, began) = (0_u64, 0, Instant::now());
        loop {
            let answer = tokio::time::timeout(WATCH_TIMEOUT, answers.message()).await;
            let answer = answer.map_err(|_| Status::deadline_exceeded("the watch sends nothing"))??;
            let answer = answer.ok_or_else(|| Status::unavailable("etcd ended the watch"))?;
            if answer.compact_revision > 0 {
                return Ok(Watched::Compacted(answer.compact_revision));
            }
            if answer.canceled {
                return Err(Status::failed_precondition(answer.cancel_reason));
            }
            for pair in answer.events.iter().filter_map(|event| event.kv.as_ref()) {
                newest_seen = pair.mod_revision.max(newest_seen);
                if pair.mod_revision <= self.to {
                    seen = seen.saturating_add(1);
                    each(&String::from_utf8_lossy(&pair.key), &pair.value, pair.mod_revision);
                }
            }
            // A progress answer may come before events that etcd still holds back; the newest known value must have
            // been seen.
            if reaches(&answer, self.to) && (newest_seen >= self.newest || self.newest < self.from) {
                return Ok(Watched::Complete(seen));
            }
            if began.elapsed() > LONGEST {
                return Err(Status::deadline_exceeded("the watch does not end"));
            }
        }
    }
}

/// One watch, and then the question how far it is, again and again.
pub(super) fn requests(
    create: WatchCreateRequest,
    every: Duration,
) -> impl futures::Stream<Item = WatchRequest> + Send + 'static {
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

/// Whether everything up to `to` has been sent. An answer with events may be followed by others of the same revision
/// (a transaction in fragments); one without events says how far the watch is.
fn reaches(answer: &WatchResponse, to: i64) -> bool {
    let is_progress = answer.events.is_empty() && !answer.created && !answer.fragment;
    let newest = answer.events.iter().filter_map(|event| event.kv.as_ref()).map(|pair| pair.mod_revision).max();
    let told = answer.header.as_ref().map_or(0, |header| header.revision);
    (is_progress && told >= to) || newest.is_some_and(|newest| newest > to)
}

fn refused(status: Status) -> EtcdError {
    EtcdError::Refused(Box::new(status))
}

#[cfg(test)]
mod tests {
    use super::super::proto::{Event, KeyValue, ResponseHeader};
    use super::*;

    fn answer(events: &[i64], revision: i64) -> WatchResponse {
        let event =
            |at: &i64| Event { kv: Some(KeyValue { mod_revision: *at, ..KeyValue::default() }), ..Event::default() };
        let header = ResponseHeader { revision, ..ResponseHeader::default() };
        WatchResponse { header: Some(header), events: events.iter().map(event).collect(), ..WatchResponse::default() }
    }

    #[test]
    fn history_ends_where_the_watch_says_that_it_has_sent_everything() {
        assert!(reaches(&answer(&[], 10), 10));
        assert!(!reaches(&answer(&[], 9), 10));
        assert!(!reaches(&answer(&[10], 12), 10), "more of revision 10 may follow");
        assert!(reaches(&answer(&[10, 11], 12), 10));
        let created = WatchResponse { created: true, ..answer(&[], 12) };
        assert!(!reaches(&created, 10), "it only says that there is a watch");
    }
}
