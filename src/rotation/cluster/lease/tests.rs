//! Several runs, each with a line to the API server that is slow and cut at times, and processes that are killed, in paused
//! time: at no moment do two of them work.

use std::sync::{Arc, Mutex};

use futures::future::join_all;
use http::{Method, Request, Response};
use http_body_util::BodyExt;
use kube::client::Body;
use tokio::time::{sleep, timeout};

use super::*;

const RUNS: u64 = 3;
const LASTS: Duration = Duration::from_hours(3);

/// The Lease as etcd has it.
#[derive(Default)]
struct Stored {
    version: u64,
    spec: Value,
}

impl Stored {
    fn answer(&mut self, method: &Method, patch: &Value) -> Response<Body> {
        if method == Method::PATCH {
            if patch["metadata"]["resourceVersion"] != self.version.to_string().as_str() {
                return Response::builder().status(409).body(Body::empty()).unwrap();
            }
            (self.version, self.spec) = (self.version + 1, patch["spec"].clone());
        }
        let lease = json!({"metadata": {"resourceVersion": self.version.to_string()}, "spec": self.spec});
        Response::new(Body::from(lease.to_string().into_bytes()))
    }
}

/// Everything that happens follows from its seed.
struct Dice(u64);

impl Dice {
    fn below(&mut self, limit: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % limit
    }
}

/// What all runs share, and what became of them.
struct World {
    seed: u64,
    stored: Mutex<Stored>,
    dice: Mutex<Dice>,
    began: Instant,
    working: Mutex<Option<u64>>,
    taken: AtomicU64,
    silent: AtomicU64,
    replaced: AtomicU64,
}

impl World {
    fn below(&self, limit: u64) -> u64 {
        self.dice.lock().unwrap().below(limit)
    }

    fn up_to(&self, seconds: u64) -> Duration {
        Duration::from_millis(self.below(seconds * 1000))
    }

    fn begins(&self, run: u64) {
        let other = self.working.lock().unwrap().replace(run);
        let (seed, at) = (self.seed, self.began.elapsed());
        assert_eq!(other, None, "seed {seed}: run {run} begins while another one works, at {at:?}");
    }

    fn stops(&self, run: u64) {
        assert_eq!(self.working.lock().unwrap().take(), Some(run));
    }
}

/// The line of one run to the API server. It is cut for up to three minutes, again and again.
fn line(world: &Arc<World>) -> Api {
    let cut_until = Arc::new(Mutex::new(Instant::now()));
    let (cuts, at) = (cut_until.clone(), world.clone());
    tokio::spawn(async move {
        loop {
            sleep(at.up_to(300)).await;
            *cuts.lock().unwrap() = Instant::now() + at.up_to(180);
        }
    });
    let world = world.clone();
    let service = tower::service_fn(move |request: Request<Body>| {
        let (world, cut_until) = (world.clone(), cut_until.clone());
        async move {
            let is_cut = move || Instant::now() < *cut_until.lock().unwrap();
            if is_cut() && world.below(2) == 0 {
                return Err(std::io::Error::other("refused"));
            }
            let (method, body) = (request.method().clone(), request.into_body().collect().await.unwrap().to_bytes());
            let patch: Value = serde_json::from_slice(&body).unwrap_or_default();
            let (there, back) = (world.up_to(3), world.up_to(3));
            // What was sent arrives, also when nobody waits for the answer any more.
            let arrives = tokio::spawn(async move {
                sleep(there).await;
                world.stored.lock().unwrap().answer(&method, &patch)
            });
            if is_cut() {
                return std::future::pending().await;
            }
            let answer = arrives.await.unwrap();
            sleep(back).await;
            if is_cut() { std::future::pending().await } else { Ok(answer) }
        }
    });
    Api::new(kube::Client::new(service, "default"), "api".into(), None)
}

/// Runs of one operator, one after the other, until the time is over.
async fn operator(number: u64, world: Arc<World>) {
    let api = line(&world);
    for life in 0.. {
        sleep(world.up_to(60)).await;
        let holder = Holder(format!("host pid {number} start {life} in elsewhere"));
        let began = world.began;
        let clock: Clock = Box::new(move || began.elapsed());
        let Ok(lease) = Lease::take_by(clock, api.clone(), holder, &|_| {}).await else { continue };
        world.taken.fetch_add(1, Relaxed);
        world.begins(number);
        let works_for = world.up_to(400);
        let ends = Instant::now() + works_for;
        loop {
            let lost = timeout(ends.saturating_duration_since(Instant::now()), lease.keep()).await;
            world.stops(number);
            match lost {
                Ok(Lost::Silent(_)) => {
                    world.silent.fetch_add(1, Relaxed);
                    if lease.regain(Duration::from_mins(20)).await.is_err() {
                        world.replaced.fetch_add(1, Relaxed);
                        break;
                    }
                    world.begins(number);
                }
                Ok(Lost::Taken(_)) => break,
                // It has ended; killed, it leaves the Lease as it is.
                Err(_) => {
                    if world.below(2) == 0 {
                        lease.release().await;
                    }
                    break;
                }
            }
        }
    }
}

async fn history(seed: u64) -> Arc<World> {
    let world = Arc::new(World {
        seed,
        stored: Mutex::default(),
        dice: Mutex::new(Dice(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)),
        began: Instant::now(),
        working: Mutex::default(),
        taken: AtomicU64::default(),
        silent: AtomicU64::default(),
        replaced: AtomicU64::default(),
    });
    world.stored.lock().unwrap().spec = json!({});
    let all = join_all((0..RUNS).map(|number| operator(number, world.clone())));
    assert!(timeout(LASTS, all).await.is_err(), "they go on for ever");
    world
}

#[tokio::test(start_paused = true)]
async fn at_no_moment_do_two_runs_work_whatever_their_lines_do() {
    let (mut taken, mut silent, mut replaced) = (0, 0, 0);
    for seed in 1..=8 {
        let world = history(seed).await;
        taken += world.taken.load(Relaxed);
        silent += world.silent.load(Relaxed);
        replaced += world.replaced.load(Relaxed);
    }
    let told =
        format!("{taken} runs began, {silent} times one stood still, {replaced} times another had begun meanwhile");
    assert!(taken > 200 && silent > 200 && replaced > 50, "{told}");
}
