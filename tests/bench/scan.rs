//! `scripts/bench scan`: looking at every value in a real etcd, as `verify` and `verify --watch` do, against reading the same pages
//! and nothing else, which is the limit. Each way is a process of its own, so that its memory is its own; they take turns.
#![allow(missing_docs, clippy::unwrap_used, clippy::doc_markdown, reason = "a measurement, not a library")]

#[path = "../support/mod.rs"]
mod support;

use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use futures::stream::{self, StreamExt};
use kube_envelope::envelope::{ANNOTATION, WrappedDekSet};
use kube_envelope::etcd::{EtcdAccess, EtcdClusters, Followed, Stored};
use kube_envelope::kek::{KekVersion, Lineage, WrappedDek};
use kube_envelope::rotation::cluster::key_id_hash::KeyIdHash;
use kube_envelope::rotation::cluster::resources::Resource;
use kube_envelope::rotation::leftovers::census::Census;
use kube_envelope::rotation::leftovers::judge::Expected;
use kube_envelope::rotation::leftovers::scan::scan_clusters;
use prost::Message;
use support::Etcd;
use tonic::transport::Channel;

#[allow(clippy::all, clippy::pedantic)]
mod proto {
    tonic::include_proto!("etcdserverpb");
}
use proto::kv_client::KvClient;
use proto::request_op::Request;
use proto::{PutRequest, RangeRequest, RequestOp, TxnRequest};

const PREFIX: &str = "/registry/";
/// Of the object; its ciphertext with everything around it is some 430 bytes longer.
const OBJECT_BYTES: usize = 1_000;
/// The page that a scan comes to use for values of this size.
const PAGE: i64 = 2_000;
const KEYS: [&str; 2] = ["old", "new"];
/// In one transaction; etcd takes up to 128.
const PUTS: usize = 100;

/// The ways, the limit first.
const WAYS: [(&str, &str); 4] = [
    ("raw", "range requests of 2,000 keys, answers dropped"),
    ("search", "the search of `verify`"),
    ("census", "the first count of `verify --watch`"),
    ("again", "what `verify --watch` does after 1 % was stored again"),
];

/// What one process took.
#[derive(Clone, Copy, Default)]
struct Figures {
    seconds: f64,
    cpu: f64,
    mebibytes: f64,
}

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    // Commands run on one thread, too.
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    if let [way, url, more @ ..] = arguments.as_slice()
        && WAYS.iter().any(|(name, _)| name == way)
    {
        return runtime.block_on(measured(way, url, more.first().map_or(0, |text| text.parse().unwrap())));
    }
    let number = |name: &str, default: usize| std::env::var(name).map_or(default, |text| text.parse().unwrap());
    runtime.block_on(bench(number("BENCH_VALUES", 100_000), number("BENCH_ROUNDS", 5)));
}

async fn bench(values: usize, rounds: usize) {
    let etcd = Etcd::start_with(&["--quota-backend-bytes=17179869184"]).await;
    let channel = Channel::from_shared(etcd.url().to_owned()).unwrap().connect().await.unwrap();
    let began = Instant::now();
    fill(&channel, 0..values, 0).await;
    eprintln!("{values} values were stored in {:.0} s", began.elapsed().as_secs_f64());
    let mut figures = vec![Vec::new(); WAYS.len()];
    for round in 0..=rounds {
        for turn in 0..WAYS.len() {
            let which = (round + turn) % WAYS.len();
            let way = WAYS[which].0;
            let mut after = 0;
            if way == "again" {
                after = revision(&channel).await;
                fill(&channel, 0..values / 100, 1).await;
            }
            let measured = child(way, etcd.url(), after);
            // The first round is thrown away.
            if round > 0 {
                eprintln!("round {round}: {way}: {:.2} s", measured.seconds);
                figures[which].push(measured);
            }
        }
    }
    print(values, rounds, &figures);
}

fn print(values: usize, rounds: usize, figures: &[Vec<Figures>]) {
    println!("\n### {values} values, {rounds} rounds: medians\n");
    println!("| | values/s | ratio to the time of the first (range) | own CPU, µs/value | own memory, MiB |");
    println!("|---|---|---|---|---|");
    #[allow(clippy::cast_precision_loss, reason = "a count of values fits a double")]
    let count = values as f64;
    for ((_, name), own) in WAYS.iter().zip(figures) {
        let of = |value: &dyn Fn(&Figures) -> f64| median(own.iter().map(value).collect());
        let mut ratios: Vec<f64> = own.iter().zip(&figures[0]).map(|(one, raw)| one.seconds / raw.seconds).collect();
        ratios.sort_by(f64::total_cmp);
        println!(
            "| {name} | {:.0} | **{:.2}** ({:.2}–{:.2}) | {:.1} | {:.0} |",
            of(&|one| count / one.seconds),
            median(ratios.clone()),
            ratios[0],
            ratios[ratios.len() - 1],
            of(&|one| one.cpu * 1e6 / count),
            of(&|one| one.mebibytes),
        );
    }
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

/// Runs one way in a process of its own.
fn child(way: &str, url: &str, after: i64) -> Figures {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.args([way, url, &after.to_string()]).stderr(Stdio::inherit());
    let output = command.output().unwrap();
    assert!(output.status.success(), "{way}");
    let text = String::from_utf8(output.stdout).unwrap();
    let mut numbers = text.split_whitespace().map(|number| number.parse().unwrap());
    let mut next = || numbers.next().unwrap();
    Figures { seconds: next(), cpu: next(), mebibytes: next() }
}

/// What the process does: prints seconds, seconds of CPU, and MiB at most.
async fn measured(way: &str, url: &str, after: i64) {
    let access = EtcdAccess { endpoints: vec![url.to_owned()], ..EtcdAccess::default() };
    let etcd = EtcdClusters::connect(&access, PREFIX).await.unwrap();
    let channel = Channel::from_shared(url.to_owned()).unwrap().connect().await.unwrap();
    let (began, cpu) = (Instant::now(), cpu());
    match way {
        "raw" => raw(&channel).await,
        "search" => {
            let scan = scan_clusters(&etcd, PREFIX, &expected()).await.unwrap();
            assert!(scan.leftovers > 0 && scan.leftovers < scan.looked_at);
        }
        "census" => {
            let mut census = Census::default();
            let count = |key: &str, value: &[u8], _| census.add(&key[PREFIX.len()..], &Stored::of(value));
            let scanned = etcd.clusters[0].scan(PREFIX, count).await.unwrap();
            assert_eq!(census.len(), scanned.keys);
        }
        _ => again(&etcd, after).await,
    }
    println!("{} {} {}", began.elapsed().as_secs_f64(), self::cpu() - cpu, peak_mebibytes());
}

async fn raw(channel: &Channel) {
    let mut client = KvClient::new(channel.clone()).max_decoding_message_size(usize::MAX);
    let (mut key, mut revision) = (PREFIX.as_bytes().to_vec(), 0);
    loop {
        let request =
            RangeRequest { key, range_end: b"/registry0".into(), limit: PAGE, revision, ..RangeRequest::default() };
        let answer = client.range(request).await.unwrap().into_inner();
        revision = answer.header.unwrap().revision;
        let Some(last) = answer.kvs.last().filter(|_| answer.more) else { return };
        key = [last.key.as_slice(), &[0]].concat();
    }
}

async fn again(etcd: &EtcdClusters, after: i64) {
    let end = etcd.clusters[0].revision().await.unwrap();
    let mut follower = etcd.clusters[0].follow(PREFIX, after, 0).await.unwrap();
    let mut census = Census::default();
    loop {
        match follower.next().await.unwrap() {
            Followed::Changes(changes) => {
                for change in &changes {
                    census.add(&change.key[PREFIX.len()..], change.now.as_ref().unwrap());
                }
                if changes.iter().any(|change| change.revision >= end) {
                    return;
                }
            }
            Followed::UpTo(revision) if revision >= end => return,
            _ => {}
        }
    }
}

fn expected() -> Expected {
    let secrets = Resource { group: String::new(), version: "v1".into(), plural: "secrets".into(), namespaced: true };
    let targets = [("kube-envelope".into(), KeyIdHash::of(KEYS[1]))].into();
    Expected {
        resources: vec![(secrets, "kube-envelope".to_owned().into())],
        targets,
        served: Vec::new(),
        patterns: vec![("secrets".into(), true)],
    }
}

/// Stores values as an API server does: under two keys, of some hundred seeds.
async fn fill(channel: &Channel, numbers: std::ops::Range<usize>, key: usize) {
    let batches: Vec<Vec<usize>> = numbers.collect::<Vec<_>>().chunks(PUTS).map(<[usize]>::to_vec).collect();
    stream::iter(batches)
        .for_each_concurrent(8, |batch| {
            let mut client = KvClient::new(channel.clone());
            async move {
                let put = |number: &usize| {
                    let name = format!("{PREFIX}secrets/namespace-{}/name-{number}", number % 1_000);
                    let value = value(*number, usize::from(key > 0 || !number.is_multiple_of(10)));
                    let put = PutRequest { key: name.into(), value, ..PutRequest::default() };
                    RequestOp { request: Some(Request::RequestPut(put)) }
                };
                let request = TxnRequest { success: batch.iter().map(put).collect(), ..TxnRequest::default() };
                client.txn(request).await.unwrap();
            }
        })
        .await;
}

fn value(number: usize, key: usize) -> Vec<u8> {
    let version = KekVersion { lineage: Lineage::derive("keyring", &["a"]), version: "0".repeat(32) };
    let blob = vec![u8::try_from(number % 200).unwrap(); 60];
    let set = WrappedDekSet { cluster: "bench".parse().unwrap(), epoch: 1, wraps: vec![WrappedDek { version, blob }] };
    let object = support::etcd::EncryptedObject {
        encrypted_data: vec![u8::try_from(number % 251).unwrap(); OBJECT_BYTES + 60],
        key_id: KEYS[key].into(),
        encrypted_dek_source: vec![7; 111],
        annotations: [(ANNOTATION.to_owned(), set.encode().unwrap())].into(),
        encrypted_dek_source_type: 1,
    };
    [b"k8s:enc:kms:v2:kube-envelope:".as_slice(), &object.encode_to_vec()].concat()
}

async fn revision(channel: &Channel) -> i64 {
    let request = RangeRequest { key: PREFIX.into(), ..RangeRequest::default() };
    KvClient::new(channel.clone()).range(request).await.unwrap().into_inner().header.unwrap().revision
}

/// Seconds of CPU of this process so far.
fn cpu() -> f64 {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::ProcessCPUTime);
    Duration::new(time.tv_sec.unsigned_abs(), u32::try_from(time.tv_nsec).unwrap()).as_secs_f64()
}

/// The most memory that this process has had.
fn peak_mebibytes() -> f64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap();
    line.trim_end_matches("kB").trim().parse::<f64>().unwrap() / 1024.0
}
