//! `scripts/bench plugin`: this plugin against a tonic server that only echoes and against a plugin in Go, in one
//! interleaved run. Prints Markdown tables of ratios and of medians. Started as `plugin echo …`, it is the echo server.
#![allow(missing_docs, clippy::unwrap_used, clippy::doc_markdown, reason = "a measurement, not a library")]

mod echo;
mod load;
mod report;
mod subject;

use std::time::{Duration, Instant};

use load::{Call, Load};
use report::{Series, mebibytes};
use subject::Subject;

#[allow(clippy::all, clippy::pedantic)]
mod v2 {
    tonic::include_proto!("v2");
}

/// Each round measures everything once; the first one only warms up.
const ROUNDS: usize = 21;
/// How long one subject is loaded with one kind of call.
const SLICE: Duration = Duration::from_millis(400);
const IN_FLIGHT: [usize; 2] = [1, 32];
/// Starts of each process that are timed.
const STARTS: usize = 31;
const MEMORY_CALLS: usize = 100_000;

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    match arguments.first().map(String::as_str) {
        Some("echo") => runtime.block_on(echo::serve(&arguments[1..])),
        _ => runtime.block_on(bench()),
    }
}

async fn bench() {
    let folder = tempfile::tempdir().unwrap();
    let mut ours = Subject::ours(folder.path());
    ours.wait_good().await;
    let shape = Load::new(&ours).await.shape();
    let mut subjects = vec![ours, Subject::echo(folder.path(), shape), Subject::go(folder.path())];

    for subject in &mut subjects {
        subject.wait_good().await;
    }
    let idle: Vec<_> = subjects.iter().map(Subject::memory).collect();
    throughput(&subjects).await;
    memory(&subjects, &idle).await;
    remote_calls(&subjects[0]).await;
    stored(&subjects).await;
    drop(subjects);
    starts(folder.path(), shape).await;
}

/// Calls per second, and the server's own CPU time per call, which a busy machine disturbs least.
async fn throughput(subjects: &[Subject]) {
    let mut loads = Vec::new();
    for subject in subjects {
        loads.push(Load::new(subject).await);
    }
    let mut rates = Series::new(subjects);
    let mut cpu = Series::new(subjects);
    for round in 0..ROUNDS {
        for in_flight in IN_FLIGHT {
            for call in [Call::Status, Call::Encrypt, Call::Decrypt] {
                let row = format!("{call:?}, {in_flight} in flight");
                // Nobody is always first.
                for turn in 0..subjects.len() {
                    let which = (round + turn) % subjects.len();
                    let before = subjects[which].cpu();
                    let started = Instant::now();
                    let calls = loads[which].run_for(call, in_flight, SLICE).await;
                    #[allow(clippy::cast_precision_loss, reason = "a count of calls fits a double")]
                    if round > 0 {
                        let spent = subjects[which].cpu().saturating_sub(before);
                        rates.add(&row, which, calls as f64 / started.elapsed().as_secs_f64());
                        cpu.add(&row, which, spent.as_secs_f64() * 1e6 / calls as f64);
                    }
                }
            }
        }
        eprintln!("round {} of {ROUNDS}", round + 1);
    }
    rates.print("Calls per second over the unix socket");
    cpu.print("CPU time of the server process per call, in microseconds (less is better)");
}

async fn memory(subjects: &[Subject], idle: &[subject::Memory]) {
    println!("\n### Resident memory in MiB (anonymous part in parentheses)\n");
    println!(
        "| | idle, after the start | after {MEMORY_CALLS} calls | after another {MEMORY_CALLS} |\n|---|---|---|---|"
    );
    for (subject, idle) in subjects.iter().zip(idle) {
        let mut cells = vec![mebibytes(idle)];
        for _ in 0..2 {
            let load = Load::new(subject).await;
            load.run_times(Call::Encrypt, 32, MEMORY_CALLS / 2).await;
            load.run_times(Call::Decrypt, 32, MEMORY_CALLS / 2).await;
            cells.push(mebibytes(&subject.memory()));
        }
        println!("| {} | {} |", subject.name, cells.join(" | "));
    }
}

async fn remote_calls(ours: &Subject) {
    let load = Load::new(ours).await;
    println!(
        "\n### Requests to the KEK (`kube_envelope_kek_requests_total`) while {MEMORY_CALLS} calls of each kind run\n"
    );
    println!("| | wrap | unwrap | version (background) |\n|---|---|---|---|");
    for call in [Call::Status, Call::Encrypt, Call::Decrypt] {
        let before = ours.kek_requests();
        load.run_times(call, 32, MEMORY_CALLS).await;
        let after = ours.kek_requests();
        let grew = |operation| after.get(operation).unwrap_or(&0) - before.get(operation).unwrap_or(&0);
        println!("| {call:?} | {} | {} | {} |", grew("wrap"), grew("unwrap"), grew("version"));
    }
}

async fn stored(subjects: &[Subject]) {
    println!("\n### Bytes stored in etcd with each object, in addition to the object itself\n");
    println!("| | sealed seed | key_id | annotations | total overhead |\n|---|---|---|---|---|");
    for subject in subjects.iter().filter(|subject| subject.encrypts) {
        let stored = Load::new(subject).await.stored();
        println!(
            "| {} | {} | {} | {} | {} |",
            subject.name, stored.ciphertext, stored.key_id, stored.annotations, stored.overhead
        );
    }
}

/// From the start of the process to the first good Status on its socket.
async fn starts(folder: &std::path::Path, shape: load::Shape) {
    let kinds: [(&str, &dyn Fn() -> Subject); 4] = [
        ("kube-envelope, first start (new DEK, wrapped and verified)", &|| {
            Subject::forget(folder);
            Subject::ours(folder)
        }),
        ("kube-envelope, later start (DEK unwrapped and verified)", &|| Subject::ours(folder)),
        ("echo", &|| Subject::echo(folder, shape)),
        ("Go reference", &|| Subject::go(folder)),
    ];
    let mut times = vec![Vec::new(); kinds.len()];
    for _ in 0..STARTS {
        for (which, (_, start)) in kinds.iter().enumerate() {
            let started = Instant::now();
            let mut subject = start();
            subject.wait_good().await;
            times[which].push(started.elapsed().as_secs_f64() * 1e3);
        }
    }
    println!("\n### Time from process start to the first successful Status, in ms ({STARTS} starts each)\n");
    println!("| | median | fastest | slowest |\n|---|---|---|---|");
    for ((name, _), mut times) in kinds.iter().zip(times) {
        let median = report::median(&mut times);
        println!("| {name} | {median:.1} | {:.1} | {:.1} |", times[0], times[times.len() - 1]);
    }
}
