//! What coordinator and shards tell each other, and what that costs etcd.

use std::time::{Duration, Instant};

use kube_envelope::rotation::cluster::resources::Resource;
use kube_envelope::rotation::cluster::{Access, Cluster, api::Api};
use kube_envelope::rotation::shards::assignment::{Assignment, Divided, Division};
use kube_envelope::rotation::shards::board::{Board, Phase, Source};
use kube_envelope::rotation::shards::coordinator::{Coordinator, Heard};
use kube_envelope::rotation::shards::report::LOOKS_EVERY;
use kube_envelope::rotation::shards::report::{Counts, Report, report_interval};

use crate::control_plane::{ControlPlane, Shape};
use crate::support::ADMIN;

/// The sum of some counters of etcd.
async fn etcd_counters(plane: &ControlPlane, names: &[&str]) -> f64 {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    let mut stream = tokio::net::TcpStream::connect(plane.etcd.url().trim_start_matches("http://")).await.unwrap();
    stream.write_all(b"GET /metrics HTTP/1.0\r\n\r\n").await.unwrap();
    let mut text = String::new();
    stream.read_to_string(&mut text).await.unwrap();
    let of = |name: &str| {
        let line = text.lines().find(|line| line.split([' ', '{']).next() == Some(name));
        let line = line.unwrap_or_else(|| panic!("{name} is no counter of this etcd"));
        line.rsplit_once(' ').unwrap().1.parse::<f64>().unwrap()
    };
    names.iter().map(|name| of(name)).sum()
}

/// What etcd writes to its log and answers to its clients in a second.
async fn etcd_bytes_a_second(plane: &ControlPlane, measured: Duration) -> f64 {
    const BYTES: [&str; 2] = ["etcd_disk_wal_write_bytes_total", "etcd_network_client_grpc_sent_bytes_total"];
    let before = etcd_counters(plane, &BYTES).await;
    tokio::time::sleep(measured).await;
    (etcd_counters(plane, &BYTES).await - before) / measured.as_secs_f64()
}

/// A shard as far as the others notice it: it looks at the orders, and reports as often as it should.
async fn pretend_shard(api: Api, index: u32, shards: usize) {
    let board = Board::new(api);
    let (mut told, mut count) = (None::<Instant>, 0);
    loop {
        tokio::time::sleep(LOOKS_EVERY).await;
        let Ok((_, Some(orders))) = board.orders(Source::Cache).await else { continue };
        if orders.phase != Phase::Rewrite || told.is_some_and(|told| told.elapsed() < report_interval(shards)) {
            continue;
        }
        (told, count) = (Some(Instant::now()), count + 12_345);
        let counts = Counts { rewritten: count, newer: count / 7, ..Counts::default() };
        let report = Report {
            rotation: orders.rotation,
            generation: orders.generation,
            shares_done: 11,
            finished: false,
            concurrency: 64,
            counts: (0..12).map(|at| (format!("widgets{at}.example.com"), counts)).collect(),
            problem: None,
        };
        board.report(index, &report).await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_64_shards_tell_each_other_about_12_resources_costs_etcd_less_than_20_kb_a_second() {
    const SHARDS: u32 = 64;
    let plane = ControlPlane::start(Shape::of(1)).await;
    let kubeconfig = Some(plane.servers[0].kubeconfig(ADMIN));
    let cluster = Cluster::connect(&Access { kubeconfig, ..Access::default() }).await.unwrap();
    let idle = etcd_bytes_a_second(&plane, Duration::from_secs(20)).await;

    let divided = |at: usize| Divided {
        resource: Resource {
            group: "example.com".into(),
            version: "v1".into(),
            plural: format!("widgets{at}"),
            namespaced: true,
        },
        adopted_at: Some(1_000_000),
        mutators: Vec::new(),
        division: Division::ByName,
    };
    let assignment = Assignment {
        servers: vec![plane.servers[0].url()],
        rate: None,
        concurrency: 1,
        shards: SHARDS as usize,
        resources: (0..12).map(divided).collect(),
    };
    let mut coordinator = Coordinator::take(cluster.entry().clone(), jiff::Timestamp::now()).await.unwrap();
    let shards: Vec<_> =
        (0..SHARDS).map(|index| tokio::spawn(pretend_shard(cluster.entry().clone(), index, 64))).collect();
    let heard = |_: Heard<'_>| {};
    let measured = async {
        // All of them have begun by then.
        tokio::time::sleep(Duration::from_secs(20)).await;
        etcd_bytes_a_second(&plane, Duration::from_secs(40)).await
    };
    let busy = tokio::select! {
        ended = coordinator.direct(&assignment, &heard) => panic!("no shard has finished: {ended:?}"),
        busy = measured => busy,
    };
    shards.iter().for_each(tokio::task::JoinHandle::abort);
    eprintln!("etcd: {idle:.0} bytes a second idle, {busy:.0} with {SHARDS} shards");
    assert!(busy > idle + 1_000.0, "it was measured: {idle} {busy}");
    assert!(busy - idle < 20_000.0, "{idle:.0} bytes a second before, {busy:.0} with {SHARDS} shards");
}
