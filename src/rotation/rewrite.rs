//! Going through all objects of a resource, page by page, with as many requests under way as the server bears:
//! to rewrite them, to try whether they would be refused, or to have them read.

mod fate;
pub mod pace;
pub mod reads;
pub mod risk;
mod tally;

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use futures::stream::{FuturesUnordered, StreamExt};

use self::fate::{Fate, fate};
pub use self::tally::Tally;
use crate::rotation::cluster::api::{Answer, Api, ApiError, Metadata, MetadataList, Partial};
use crate::rotation::cluster::listing::{
    FIRST_WAIT, Folder, LONGEST_WAIT, PAGE, Page, TRIES, is_undecryptable, page_after,
};
use crate::rotation::cluster::webhooks::webhook_that_failed;
use crate::rotation::error::RotationError;
use crate::rotation::leftovers::keys_in_etcd::{KeysInEtcd, Position};
use crate::rotation::rewrite::pace::Pace;
use crate::rotation::rewrite::risk::Risk;

/// An object that fails while others get through is given up after this time: it alone is at fault.
const ALONE_AFTER: Duration = Duration::from_secs(20);
/// And after this many tries.
const ALONE_TRIES: u32 = 4;
/// While a webhook is out of order, a request that is under way for this long waits for it, and takes no other's place.
const HANGS: Duration = Duration::from_secs(2);
/// How many requests may wait for such a webhook.
const HANGING: usize = 256;
/// What is asked for each object.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ask {
    /// The empty patch: stored again if it is stored under another key than the server's.
    Rewrite,
    /// The empty patch that is only tried: admission and validation answer as they would.
    DryRun,
    /// Read from etcd, and metadata answered.
    Read,
}

/// One pass over objects.
pub struct Sweep<'a> {
    /// Through which server.
    pub api: &'a Api,
    /// Over what, one after the other.
    pub folders: Vec<Folder>,
    /// Whether objects are stored, only tried, or read.
    pub ask: Ask,
    /// Objects with a greater resource version are left alone.
    pub adopted_at: Option<u64>,
    /// What would change objects beyond their ciphertext: these are left; `None` stores them again all the same.
    pub risk: Option<&'a Risk>,
    /// How many requests at once, and how many a second.
    pub pace: &'a mut Pace,
    /// What was done so far; kept when the pass is dropped half way.
    pub tally: &'a mut Tally,
    /// Where the objects' keys are read if the API cannot list them.
    pub keys: Option<&'a KeysInEtcd>,
}

/// Where a page begins.
enum From {
    /// At this continue token; empty at the start.
    Api(String),
    /// At this key in etcd.
    Etcd(Option<Position>),
}

struct Object {
    path: String,
    metadata: Metadata,
    tries: u32,
    first_failed: Option<Instant>,
    /// The webhook that could not be called for it.
    webhook: Option<String>,
    /// Whether it is only tried whether storing it would change it.
    tried_first: bool,
}

/// What follows from an answer.
enum Next {
    /// Nothing: it is counted.
    Done,
    /// The object is sent again at this time.
    Again(Instant, Object),
    /// It got no useful answer for long enough that something is wrong: with the server, or with this object alone.
    GiveUp(Object, Option<u16>, String),
}

type Answered = (Object, Instant, Result<Answer, ApiError>);

impl Sweep<'_> {
    /// Goes through all objects. `seen` is called after each answer.
    ///
    /// # Errors
    /// [`RotationError::Paused`] when the server does not answer any more.
    pub async fn run(mut self, seen: &mut (dyn FnMut(&Tally, usize) + Send)) -> Result<(), RotationError> {
        let (api, ask, keys) = (self.api, self.ask, self.keys);
        if let Some(risk) = self.risk {
            self.tally.withheld_all = self.tally.withheld_all.take().or_else(|| risk.converted.clone());
            if self.tally.withheld_all.is_some() {
                // Both are worth knowing: a conversion webhook may be away as well.
                if let Some(folder) = self.folders.first()
                    && let Ok(Page::Unlistable(why)) = page_after(api, folder, String::new()).await
                {
                    self.tally.unlistable = Some(why);
                }
                return Ok(());
            }
        }
        let mut folders = std::mem::take(&mut self.folders).into_iter();
        let mut queue: VecDeque<Object> = VecDeque::new();
        let mut later: Vec<(Instant, Object)> = Vec::new();
        let (mut under_way, mut sent) = (FuturesUnordered::new(), Vec::new());
        let mut page = folders.next().map(|folder| Box::pin(page_of(api, keys, folder, From::Api(String::new()))));
        loop {
            let now = Instant::now();
            call_up(&mut queue, &mut later, now);
            while self.has_room(&sent, now)
                && self.pace.next() <= now
                && let Some(object) = queue.pop_front()
            {
                self.pace.sent(now);
                sent.push(now);
                under_way.push(answer(api, if object.tried_first { Ask::DryRun } else { ask }, object, now));
            }
            if queue.is_empty() && later.is_empty() && under_way.is_empty() && page.is_none() {
                return Ok(());
            }
            let wake = self.wake(&queue, &later, &sent, now);
            tokio::select! {
                Some(answered) = under_way.next(), if !under_way.is_empty() => {
                    if let Some(at) = sent.iter().position(|began| *began == answered.1) {
                        sent.swap_remove(at);
                    }
                    match self.settle(answered)? {
                        Next::Done => {}
                        Next::Again(at, object) => later.push((at, object)),
                        Next::GiveUp(object, status, message) => self.give_up(object, status, &message).await?,
                    }
                    seen(self.tally, self.pace.limit());
                }
                // The next page is fetched while this one is being sent, and no more than one ahead: names of a large
                // resource would fill the memory.
                fetched = async { page.as_mut().expect("checked").await }, if page.is_some() && queue.len() < PAGE as usize => {
                    let (folder, fetched, next) = fetched;
                    if let Some(list) = self.accept_page(fetched?) {
                        queue.extend(self.select_objects(&folder, list.items));
                    }
                    let next = next.map(|from| (folder, from));
                    let next = next.or_else(|| folders.next().map(|folder| (folder, From::Api(String::new()))));
                    page = next.map(|(folder, from)| Box::pin(page_of(api, keys, folder, from)));
                }
                () = tokio::time::sleep_until(wake.unwrap_or(now).into()), if wake.is_some() => {}
            }
        }
    }

    /// Whether one more request may be under way.
    fn has_room(&self, sent: &[Instant], now: Instant) -> bool {
        if !self.pace.webhooks.is_open() {
            return sent.len() < self.pace.limit();
        }
        let hanging = sent.iter().filter(|began| now.duration_since(**began) >= HANGS).count();
        // Those that hang at a webhook are counted apart: they cost the API server nothing, and would keep all others
        // from being sent.
        sent.len() - hanging < self.pace.limit() && hanging < HANGING
    }

    /// When there is something to do even if nobody answers.
    fn wake(
        &self,
        queue: &VecDeque<Object>,
        later: &[(Instant, Object)],
        sent: &[Instant],
        now: Instant,
    ) -> Option<Instant> {
        let may_send = if queue.is_empty() {
            None
        } else if self.has_room(sent, now) {
            Some(self.pace.next())
        } else {
            self.pace.webhooks.is_open().then(|| now + HANGS / 4)
        };
        later.iter().map(|(at, _)| *at).chain(may_send).min()
    }

    fn accept_page(&mut self, page: Page) -> Option<MetadataList> {
        match page {
            Page::Listed(list) => Some(list),
            Page::Absent => None,
            Page::Unlistable(why) => {
                self.tally.unlistable = Some(why);
                None
            }
        }
    }

    fn select_objects(&mut self, folder: &Folder, items: Vec<Partial>) -> Vec<Object> {
        let mut chosen = Vec::with_capacity(items.len());
        for Partial { metadata } in items {
            if !folder.names.contains(&metadata.name) {
                continue;
            }
            let version: Option<u64> = metadata.resource_version.parse().ok();
            // Its last write came after all servers had the target key.
            if matches!((version, self.adopted_at), (Some(version), Some(at)) if version > at) {
                self.tally.newer += 1;
                continue;
            }
            let path = folder.resource.object_path(metadata.namespace.as_deref(), &metadata.name);
            let schemas = self.risk.and_then(|risk| risk.schemas.as_ref());
            if let Some(field) = schemas.and_then(|schemas| schemas.dropped(&metadata.fields)) {
                let why = format!("its field {field} is no longer in the schema, so a rewrite would drop it");
                self.tally.withheld.insert(path, why);
                continue;
            }
            let tried_first = self.ask == Ask::Rewrite && self.risk.is_some_and(|risk| !risk.mutators.is_empty());
            chosen.push(Object { path, metadata, tries: 0, first_failed: None, webhook: None, tried_first });
        }
        chosen
    }

    /// Takes an answer in; returns the object where it must be asked again.
    fn settle(&mut self, (mut object, began, result): Answered) -> Result<Next, RotationError> {
        let now = Instant::now();
        let (status, retry_after, message) = match result {
            Ok(answer) if answer.status == 200 => {
                self.pace.answered(now.duration_since(began), now);
                if let Some(webhook) = &object.webhook {
                    self.pace.webhooks.recovered(webhook);
                }
                return Ok(self.stored(object, &answer)?.map_or(Next::Done, |again| Next::Again(now, again)));
            }
            Ok(answer) => (Some(answer.status), answer.retry_after, answer.refusal().message),
            Err(error) => (error.status(), None, error.to_string()),
        };
        object.tries += 1;
        let alone = self.fails_alone(&mut object, now);
        let tries = match fate(status, &message) {
            Fate::Gone => {
                self.tally.gone += 1;
                return Ok(Next::Done);
            }
            Fate::Refused => 0,
            Fate::Undecryptable => {
                self.tally.undecryptable.insert(object.path, message);
                return Ok(Next::Done);
            }
            Fate::Full => return Err(RotationError::Paused(format!("etcd is full (alarm NOSPACE): {message}"))),
            Fate::Unauthorized => TRIES,
            Fate::Again { overloaded, tries } => {
                if overloaded && !alone {
                    self.pace.throttled(retry_after, now);
                }
                let webhook = webhook_that_failed(&message);
                object.webhook = webhook.map(Into::into).or(object.webhook);
                webhook.map_or(tries, |webhook| self.pace.webhooks.failed(webhook))
            }
        };
        // An object that fails alone is given up before its tries are over; credentials that are refused are never an
        // object's own fault.
        if object.tries < tries && !(alone && status != Some(401)) {
            let times = 2u32.saturating_pow(object.tries.saturating_sub(1));
            let wait = FIRST_WAIT.saturating_mul(times).min(LONGEST_WAIT);
            return Ok(Next::Again(now + retry_after.unwrap_or(wait).max(wait), object));
        }
        match status {
            Some(401) => Err(RotationError::Paused(format!("the credentials are refused; renew them: {message}"))),
            None | Some(408 | 429 | 501..) if !alone => Ok(Next::GiveUp(object, status, message)),
            _ => {
                self.refuse(object.path, status, &message);
                Ok(Next::Done)
            }
        }
    }

    /// An object got no useful answer. If others did and the server is well, it alone is at fault.
    async fn give_up(&mut self, object: Object, status: Option<u16>, message: &str) -> Result<(), RotationError> {
        let others_did = status != Some(429) && self.pace.was_ever_good();
        // 429 is never of one object. Whether it is the server or this object is asked of the server.
        if others_did && self.api.get("/readyz", "text/plain").await.is_ok_and(|answer| answer.status == 200) {
            self.refuse(object.path, status, message);
            return Ok(());
        }
        Err(RotationError::Paused(format!("{} got no useful response in {TRIES} attempts: {message}", object.path)))
    }

    /// Whether an object goes on failing while others get through.
    fn fails_alone(&self, object: &mut Object, now: Instant) -> bool {
        let first = *object.first_failed.get_or_insert(now);
        object.tries >= ALONE_TRIES
            && now.duration_since(first) >= ALONE_AFTER
            && self.pace.was_good_after(now.checked_sub(ALONE_AFTER / 2).unwrap_or(first))
    }

    fn refuse(&mut self, path: String, status: Option<u16>, message: &str) {
        self.tally.refused.insert(path, format!("{}: {message}", status.unwrap_or(0)));
    }

    /// Takes a success in; returns the object where it was only tried so far.
    fn stored(&mut self, object: Object, answer: &Answer) -> Result<Option<Object>, RotationError> {
        if self.ask == Ask::Read {
            self.tally.fresh += 1;
            return Ok(None);
        }
        let what = || format!("rewrite {}", object.path);
        let Partial { metadata } = self.api.parse(&answer.body).map_err(RotationError::api(what()))?;
        let changed = altered(&object.metadata, &metadata);
        let tried = self.ask == Ask::DryRun || object.tried_first;
        if let Some(risk) = self.risk.filter(|_| changed && tried) {
            self.tally.withheld.insert(object.path, format!("{} would change it", risk.suspects()));
            return Ok(None);
        }
        // The try changed nothing, so it is stored now.
        if object.tried_first {
            return Ok(Some(Object { tried_first: false, tries: 0, first_failed: None, ..object }));
        }
        // A dry run stores nothing, and so cannot tell whether there was something to store.
        if self.ask == Ask::DryRun || metadata.resource_version == object.metadata.resource_version {
            self.tally.fresh += 1;
        } else {
            self.tally.rewritten += 1;
        }
        if changed {
            self.tally.name_altered(object.path);
        }
        Ok(None)
    }
}

/// Moves what is due to be sent again into the queue.
fn call_up(queue: &mut VecDeque<Object>, later: &mut Vec<(Instant, Object)>, now: Instant) {
    // From behind, since `swap_remove` moves the last one to where one is taken out.
    for at in (0..later.len()).rev().filter(|at| later[*at].0 <= now).collect::<Vec<_>>() {
        // In front of those that have not been tried: a few that go on failing are then found early, and not after
        // everything else.
        queue.push_front(later.swap_remove(at).1);
    }
}

/// Whether an admission webhook changed the object. What a client changes meanwhile shows in managedFields, and what a
/// webhook changes does not.
fn altered(before: &Metadata, after: &Metadata) -> bool {
    before.content.is_some() && after.content != before.content && after.managed_fields == before.managed_fields
}

/// A page, and where the next one begins.
async fn page_of(
    api: &Api,
    keys: Option<&KeysInEtcd>,
    folder: Folder,
    from: From,
) -> (Folder, Result<Page, RotationError>, Option<From>) {
    let position = match from {
        From::Etcd(position) => position,
        From::Api(token) => match page_after(api, &folder, token).await {
            // One value that does not open makes the whole list fail. In etcd the keys can be read without opening
            // anything, and the others are then asked for one by one.
            Ok(Page::Unlistable(why)) if keys.is_some() && is_undecryptable(&why) => None,
            Ok(Page::Listed(mut list)) => {
                let next = list.metadata.next.take().filter(|token| !token.is_empty()).map(From::Api);
                return (folder, Ok(Page::Listed(list)), next);
            }
            other => return (folder, other, None),
        },
    };
    let Some(keys) = keys else { return (folder, Ok(Page::Absent), None) };
    match keys.page(&folder, position).await {
        Ok((list, next)) => (folder, Ok(Page::Listed(list)), next.map(|position| From::Etcd(Some(position)))),
        Err(error) => (folder, Err(error), None),
    }
}

async fn answer(api: &Api, ask: Ask, object: Object, began: Instant) -> Answered {
    let result = match ask {
        Ask::Rewrite => api.patch(&object.path, "{}").await,
        Ask::DryRun => api.patch(&format!("{}?dryRun=All", object.path), "{}").await,
        Ask::Read => api.get_metadata(&object.path).await,
    };
    (object, began, result)
}
