//! The engine on a scripted source, in paused time.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};

use futures::future::join_all;
use tokio::time::sleep;

use super::*;

/// Gives out numbered credentials; what the script says comes first.
#[derive(Default)]
struct Scripted {
    loads: AtomicUsize,
    script: Mutex<VecDeque<Step>>,
    content: Mutex<Option<Result<Content, KekCause>>>,
    life: Mutex<Option<Duration>>,
    slow: Mutex<Duration>,
}

#[derive(Clone, Copy, Debug)]
enum Step {
    Fail(KekCause),
    Same(usize),
}

impl fmt::Debug for Scripted {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Scripted")
    }
}

#[async_trait]
impl Source for Arc<Scripted> {
    type Credential = usize;

    fn name(&self) -> &'static str {
        "test credentials"
    }

    async fn content(&self) -> Result<Option<Content>, KekError> {
        match self.content.lock().unwrap().clone() {
            None => Ok(None),
            Some(Ok(content)) => Ok(Some(content)),
            Some(Err(cause)) => Err(KekError::new(cause, "no file")),
        }
    }

    async fn load(&self, _: Option<Content>) -> Result<Loaded<usize>, KekError> {
        let slow = *self.slow.lock().unwrap();
        sleep(slow).await;
        let number = self.loads.fetch_add(1, SeqCst) + 1;
        let step = self.script.lock().unwrap().pop_front();
        let number = match step {
            Some(Step::Fail(cause)) => return Err(KekError::new(cause, "scripted")),
            Some(Step::Same(number)) => number,
            None => number,
        };
        let life = *self.life.lock().unwrap();
        Ok(Loaded::for_time(Arc::new(number), life))
    }

    fn same(&self, one: &usize, other: &usize) -> bool {
        one == other
    }
}

impl Scripted {
    fn new(script: &[Step]) -> (Arc<Self>, Renewing<Arc<Self>>) {
        let source = Arc::new(Self { script: Mutex::new(script.iter().copied().collect()), ..Self::default() });
        (source.clone(), Renewing::new(source))
    }

    fn set_content(&self, text: &str) {
        *self.content.lock().unwrap() = Some(Ok(Content::for_tests(text)));
    }

    fn loads(&self) -> usize {
        self.loads.load(SeqCst)
    }
}

async fn accepts(_: Arc<usize>) -> Result<usize, KekError> {
    Ok(0)
}

/// A key store that refuses all credentials up to this number.
fn refuses_up_to(number: usize) -> impl Fn(Arc<usize>) -> futures::future::Ready<Result<usize, KekError>> {
    move |given| {
        let refused = KekError::new(KekCause::Unauthenticated, "refused");
        futures::future::ready(if *given <= number { Err(refused) } else { Ok(*given) })
    }
}

fn denies_up_to(number: usize) -> impl Fn(Arc<usize>) -> futures::future::Ready<Result<usize, KekError>> {
    move |given| {
        let denied = KekError::denied_by_policy("denied");
        futures::future::ready(if *given <= number { Err(denied) } else { Ok(*given) })
    }
}

#[tokio::test(start_paused = true)]
async fn a_hundred_callers_load_once() {
    let (source, renewing) = Scripted::new(&[]);
    *source.slow.lock().unwrap() = Duration::from_millis(500);
    let all = join_all((0..100).map(|_| renewing.with(accepts))).await;
    assert!(all.iter().all(Result::is_ok));
    assert_eq!(source.loads(), 1);
}

#[tokio::test(start_paused = true)]
async fn a_load_goes_on_when_its_caller_gives_up_and_serves_the_next_one() {
    let (source, renewing) = Scripted::new(&[]);
    *source.slow.lock().unwrap() = Duration::from_millis(2_200);
    assert!(timeout(Duration::from_millis(500), renewing.get()).await.is_err());
    assert_eq!(renewing.get().await.unwrap_or_else(|error| panic!("{error}")).credential.as_ref(), &1);
    assert_eq!(source.loads(), 1, "one login, and not one for each caller");
}

#[tokio::test(start_paused = true)]
async fn a_load_that_takes_longer_than_callers_wait_is_named_and_not_begun_again() {
    let (source, renewing) = Scripted::new(&[]);
    *source.slow.lock().unwrap() = Duration::from_secs(5);
    for _ in 0..2 {
        let error = renewing.get().await.unwrap_err();
        assert_eq!(error.cause(), KekCause::Unavailable);
        assert!(error.to_string().contains("test credentials"), "{error}");
    }
    sleep(Duration::from_secs(2)).await;
    assert_eq!(*renewing.get().await.unwrap().credential, 1);
    assert_eq!(source.loads(), 1);
}

#[tokio::test(start_paused = true)]
async fn credentials_are_renewed_ahead_without_waiting_and_serve_while_the_renewal_fails() {
    let (source, renewing) = Scripted::new(&[]);
    *source.life.lock().unwrap() = Some(Duration::from_mins(1));
    assert_eq!(*renewing.get().await.unwrap().credential, 1);
    sleep(Duration::from_secs(41)).await;
    source.script.lock().unwrap().push_back(Step::Fail(KekCause::Unavailable));
    assert_eq!(*renewing.get().await.unwrap().credential, 1);
    sleep(Duration::from_millis(10)).await;
    assert_eq!(*renewing.get().await.unwrap().credential, 1, "the renewal failed");
    sleep(Duration::from_secs(1)).await;
    assert_eq!(*renewing.get().await.unwrap().credential, 1, "it is tried again without waiting");
    sleep(Duration::from_millis(10)).await;
    assert_eq!(*renewing.get().await.unwrap().credential, 3);
}

#[tokio::test(start_paused = true)]
async fn refused_credentials_are_dropped_and_the_call_is_made_once_more() {
    let (source, renewing) = Scripted::new(&[]);
    assert_eq!(renewing.with(refuses_up_to(1)).await.unwrap(), 2);
    assert_eq!(renewing.with(refuses_up_to(9)).await.unwrap_err().cause(), KekCause::Unauthenticated);
    assert_eq!(source.loads(), 3, "and not a third time");
}

#[tokio::test(start_paused = true)]
async fn a_content_that_was_refused_is_not_shown_again_until_it_changes() {
    let (source, renewing) = Scripted::new(&[Step::Fail(KekCause::Unauthenticated)]);
    source.set_content("one");
    assert_eq!(renewing.get().await.unwrap_err().cause(), KekCause::Unauthenticated);
    for _ in 0..100 {
        let error = renewing.get().await.unwrap_err();
        assert_eq!(error.cause(), KekCause::Unauthenticated);
        assert!(error.to_string().contains("not shown again until the file changes"), "{error}");
        sleep(Duration::from_mins(10)).await;
    }
    assert_eq!(source.loads(), 1);
    source.set_content("two");
    assert_eq!(*renewing.get().await.unwrap().credential, 2, "at once");
}

#[tokio::test(start_paused = true)]
async fn a_token_that_the_key_store_refuses_is_not_taken_from_the_same_file_again() {
    let (source, renewing) = Scripted::new(&[Step::Same(1), Step::Same(1)]);
    source.set_content("one");
    assert_eq!(renewing.with(refuses_up_to(1)).await.unwrap_err().cause(), KekCause::Unauthenticated);
    assert_eq!(renewing.get().await.unwrap_err().cause(), KekCause::Unauthenticated);
    assert_eq!(source.loads(), 2);
    source.set_content("two");
    assert_eq!(renewing.with(refuses_up_to(1)).await.unwrap(), 3);
}

#[tokio::test(start_paused = true)]
async fn a_new_content_is_taken_into_use_only_once_it_has_worked() {
    let (source, renewing) = Scripted::new(&[]);
    source.set_content("one");
    renewing.get().await.unwrap();
    source.set_content("a bad one");
    source.script.lock().unwrap().push_back(Step::Fail(KekCause::Unauthenticated));
    for _ in 0..5 {
        assert_eq!(*renewing.get().await.unwrap().credential, 1, "the former ones still serve");
        sleep(Duration::from_secs(1)).await;
    }
    assert_eq!(source.loads(), 2, "the bad one was shown once");
    source.set_content("a good one");
    renewing.get().await.unwrap();
    sleep(Duration::from_secs(1)).await;
    assert_eq!(*renewing.get().await.unwrap().credential, 3);
}

#[tokio::test(start_paused = true)]
async fn a_file_that_is_away_ends_nothing_that_still_holds() {
    let (source, renewing) = Scripted::new(&[]);
    *source.content.lock().unwrap() = Some(Err(KekCause::Unavailable));
    assert_eq!(renewing.get().await.unwrap_err().cause(), KekCause::Unavailable);
    source.set_content("one");
    renewing.get().await.unwrap();
    *source.content.lock().unwrap() = Some(Err(KekCause::Unavailable));
    assert_eq!(*renewing.get().await.unwrap().credential, 1);
}

#[tokio::test(start_paused = true)]
async fn a_denial_counts_only_for_credentials_that_are_fresh() {
    let (source, renewing) = Scripted::new(&[]);
    renewing.get().await.unwrap();
    assert_eq!(renewing.with(denies_up_to(1)).await.unwrap_err().cause(), KekCause::Denied, "just loaded");
    sleep(Duration::from_secs(10)).await;
    assert_eq!(renewing.with(denies_up_to(1)).await.unwrap(), 2, "newer ones have the permission");
    sleep(Duration::from_secs(10)).await;
    source.script.lock().unwrap().push_back(Step::Same(2));
    assert_eq!(renewing.with(denies_up_to(2)).await.unwrap_err().cause(), KekCause::Denied, "there are no newer ones");
    sleep(Duration::from_secs(10)).await;
    source.script.lock().unwrap().push_back(Step::Fail(KekCause::Unavailable));
    assert_eq!(renewing.with(denies_up_to(9)).await.unwrap_err().cause(), KekCause::Unavailable, "nobody could tell");
}

#[tokio::test(start_paused = true)]
async fn a_source_that_was_away_is_asked_again_within_half_a_second() {
    let (source, renewing) = Scripted::new(&[Step::Fail(KekCause::Unavailable)]);
    assert!(renewing.get().await.is_err());
    assert!(renewing.get().await.is_err(), "not at every call");
    assert_eq!(source.loads(), 1);
    sleep(Duration::from_millis(500)).await;
    assert_eq!(*renewing.get().await.unwrap().credential, 2);
}

#[tokio::test(start_paused = true)]
async fn a_source_without_a_file_that_refuses_is_asked_ever_less() {
    let (source, renewing) = Scripted::new(&[Step::Fail(KekCause::Unauthenticated); 1000]);
    for _ in 0..3600 {
        let _ = renewing.get().await;
        sleep(Duration::from_secs(1)).await;
    }
    assert!((50..80).contains(&source.loads()), "{} in an hour", source.loads());
}

#[test]
fn a_life_from_outside_overflows_no_clock() {
    let loaded = Loaded::for_time(Arc::new(()), Some(Duration::from_secs(u64::MAX)));
    assert!(loaded.lasts() && loaded.ends.is_some());
}
