//! One control-plane node: its clock, its disk, and the plugin that runs on it.

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use arc_swap::ArcSwap;
use kube_envelope::crypto::secret::Dek;
use kube_envelope::dek::cache::DekCache;
use kube_envelope::dek::clock::Clock;
use kube_envelope::dek::store::DekStore;
use kube_envelope::kek::guard::GuardedKek;
use kube_envelope::kek::set::KekSet;
use kube_envelope::plugin::refresh::{Refresh, Settings};
use kube_envelope::plugin::service::Service;
use kube_envelope::telemetry::Metrics;
use rand::SeedableRng;
use rand::rngs::StdRng;
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::Instant;

use super::disk::{Disk, Mounted};
use super::vendor::{Client, Vendor};

pub const CLUSTER: &str = "simulated";
pub const PROVE: Duration = Duration::from_secs(30);

/// Goes on while the node sleeps, which the timers of its processes do not.
#[derive(Debug)]
pub struct SimClock {
    began: Instant,
    slept: Mutex<Duration>,
    woken: Mutex<Instant>,
}

impl SimClock {
    pub fn sleep(&self, duration: Duration) {
        *self.slept.lock().unwrap() += duration;
        *self.woken.lock().unwrap() = Instant::now();
    }

    /// How long ago it woke up, or was started.
    pub fn awake(&self) -> Duration {
        self.woken.lock().unwrap().elapsed()
    }
}

impl Clock for SimClock {
    fn now(&self) -> Duration {
        Duration::from_secs(1000) + self.began.elapsed() + *self.slept.lock().unwrap()
    }
}

/// A configuration file: numbers of vendors.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Conf {
    pub keks: Vec<usize>,
    pub retired: Vec<usize>,
    pub epoch: u64,
    pub max_offline_age: Duration,
    pub refresh_interval: Duration,
}

impl Conf {
    /// For how long a DEK may be used after its last unwrap.
    pub fn limit(&self) -> Duration {
        self.max_offline_age.max(self.refresh_interval * 2)
    }
}

/// A node.
pub struct Node {
    pub number: usize,
    pub clock: Arc<SimClock>,
    pub disk: Arc<Disk>,
    /// What is in the configuration file.
    pub conf: Conf,
    /// When that changed last, by the node's clock.
    pub conf_changed: Duration,
    /// The vendors of the file before.
    pub former: BTreeSet<usize>,
    pub process: Process,
    incarnations: u64,
    vendors: Vec<Arc<Vendor>>,
    seed: u64,
}

/// A running plugin.
pub struct Process {
    pub service: Arc<Service>,
    pub incarnation: u64,
    pub started: Instant,
    settings: watch::Sender<Settings>,
    is_alive: Arc<AtomicBool>,
    _tasks: JoinSet<()>,
}

impl Drop for Process {
    fn drop(&mut self) {
        self.is_alive.store(false, Ordering::SeqCst);
    }
}

impl Node {
    pub async fn start(number: usize, conf: Conf, vendors: &[Arc<Vendor>], seed: u64) -> Self {
        let clock =
            Arc::new(SimClock { began: Instant::now(), slept: Mutex::default(), woken: Mutex::new(Instant::now()) });
        let disk = Disk::new();
        let mut node = Self {
            number,
            clock: clock.clone(),
            disk: disk.clone(),
            conf: conf.clone(),
            conf_changed: Duration::ZERO,
            former: BTreeSet::new(),
            process: Process::start(&Place { number, clock, disk, vendors, seed }, 0, &conf).await,
            incarnations: 0,
            vendors: vendors.to_vec(),
            seed,
        };
        node.incarnations += 1;
        node
    }

    /// kill -9, and a start with what is on the disk and in the configuration.
    pub async fn restart(&mut self) {
        self.process.is_alive.store(false, Ordering::SeqCst);
        let place = Place {
            number: self.number,
            clock: self.clock.clone(),
            disk: self.disk.clone(),
            vendors: &self.vendors,
            seed: self.seed,
        };
        self.process = Process::start(&place, self.incarnations, &self.conf).await;
        self.incarnations += 1;
    }

    /// Changes the configuration file.
    pub fn reload(&mut self, conf: Conf) {
        let clock = self.clock.clone();
        let settings = settings(&conf, &self.vendors, &clock, self.number, self.process.incarnation, self.seed);
        self.process.settings.send(settings).unwrap();
        self.former = self.conf.keks.iter().chain(&self.conf.retired).copied().collect();
        self.conf = conf;
        self.conf_changed = self.clock.now();
    }

    /// The vendors in the configuration that is in use.
    pub fn in_use(&self) -> BTreeSet<usize> {
        let lineages = self.process.service.keks().lineages();
        (0..self.vendors.len()).filter(|vendor| lineages.contains(&self.vendors[*vendor].lineage())).collect()
    }
}

struct Place<'a> {
    number: usize,
    clock: Arc<SimClock>,
    disk: Arc<Disk>,
    vendors: &'a [Arc<Vendor>],
    seed: u64,
}

impl Process {
    async fn start(place: &Place<'_>, incarnation: u64, conf: &Conf) -> Self {
        let is_alive = Arc::new(AtomicBool::new(true));
        let seed = place.seed ^ (incarnation << 8) ^ (place.number as u64);
        let files = Mounted { disk: place.disk.clone(), is_alive: is_alive.clone() };
        let store = Arc::new(DekStore::open(Arc::new(files)).await.unwrap());
        let settings = settings(conf, place.vendors, &place.clock, place.number, incarnation, seed);
        let cache = Arc::new(DekCache::new(place.clock.clone()));
        let service = Arc::new(Service::new(CLUSTER.parse().unwrap(), settings.keks.clone(), cache, store.clone()));
        let deks = Mutex::new(StdRng::seed_from_u64(seed));
        let refresh =
            Refresh::new(service.clone(), settings.clone(), Arc::new(Metrics::new()), Arc::new(ArcSwap::default()))
                .with_deks(Arc::new(move || Dek::generate(&mut *deks.lock().unwrap())))
                .with_seed(seed);
        let (settings, changed) = watch::channel(settings);
        let mut tasks = JoinSet::new();
        tasks.spawn(store.write_behind());
        tasks.spawn(refresh.run(changed));
        Self { service, incarnation, started: Instant::now(), settings, is_alive, _tasks: tasks }
    }
}

fn settings(
    conf: &Conf,
    vendors: &[Arc<Vendor>],
    clock: &Arc<SimClock>,
    node: usize,
    incarnation: u64,
    seed: u64,
) -> Settings {
    let metrics = Arc::new(Metrics::new());
    let open = |at: &usize| {
        let vendor = vendors[*at].clone();
        let name = vendor.name.to_owned();
        let client = Client { vendor, clock: clock.clone(), node, incarnation };
        Arc::new(GuardedKek::with_seed(name, Box::new(client), metrics.clone(), seed ^ (*at as u64)))
    };
    let keks = KekSet::new(conf.keks.iter().map(open).collect(), conf.retired.iter().map(open).collect());
    Settings {
        keks: keks.unwrap(),
        forget: BTreeSet::new(),
        epoch: conf.epoch,
        takeovers: kube_envelope::kek::takeover::Takeovers::default(),
        max_offline_age: conf.max_offline_age,
        refresh_interval: conf.refresh_interval,
        prove_interval: PROVE,
    }
}
