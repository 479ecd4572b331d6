//! `scripts/bench rewrite`: ways of having an API server store every Secret again under a new key, on one real control
//! plane in one interleaved run. Started as `rewrite bare …` it is the bare loop: the limit.
#![allow(missing_docs, clippy::unwrap_used, clippy::doc_markdown, reason = "a measurement, not a library")]

#[path = "../support/mod.rs"]
mod support;

mod bare;
mod control_plane;
mod method;

use control_plane::ControlPlane;
use method::{Figures, METHODS, Method};

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    if arguments.first().is_some_and(|first| first == "bare") {
        return runtime.block_on(bare::run(&arguments[1..]));
    }
    let number = |name: &str, default: usize| std::env::var(name).map_or(default, |text| text.parse().unwrap());
    runtime.block_on(bench(number("BENCH_OBJECTS", 10_000), number("BENCH_ROUNDS", 3)));
}

async fn bench(objects: usize, rounds: usize) {
    let mut control_plane = ControlPlane::start(objects).await;
    let methods = chosen();
    let mut figures: Vec<Vec<Figures>> = vec![Vec::new(); methods.len()];
    for round in 0..rounds {
        // Nobody is always first, and each round is complete.
        for turn in 0..methods.len() {
            let which = (round + turn) % methods.len();
            let target = control_plane.rotate().await;
            let measured = methods[which].run(&control_plane, &target).await;
            let left = control_plane.leftovers(&target).await;
            assert_eq!(left, 0, "{} left objects under an older key", methods[which].name());
            eprintln!("round {}: {}: {:.1} s", round + 1, methods[which].name(), measured.seconds);
            figures[which].push(measured);
        }
    }
    print(objects, rounds, &methods, &figures);
}

/// The limit, and the others whose name has the word of `BENCH_METHOD`.
fn chosen() -> Vec<Method> {
    let word = std::env::var("BENCH_METHOD").unwrap_or_default();
    let (limit, others) = METHODS.split_first().unwrap();
    std::iter::once(*limit).chain(others.iter().copied().filter(|method| method.name().contains(&word))).collect()
}

fn print(objects: usize, rounds: usize, methods: &[Method], figures: &[Vec<Figures>]) {
    println!("\n### {objects} Secrets, {rounds} rounds: medians\n");
    println!(
        "| | objects/s | ratio to the bare loop | API server CPU, ms/object | etcd CPU, ms/object | own CPU, ms/object | own memory, MiB |"
    );
    println!("|---|---|---|---|---|---|---|");
    #[allow(clippy::cast_precision_loss, reason = "a count of objects fits a double")]
    let count = objects as f64;
    // The first method is the limit. Ratios are taken round by round.
    let limit: Vec<f64> = figures[0].iter().map(|figures| figures.seconds).collect();
    for (method, figures) in methods.iter().zip(figures) {
        let of = |value: &dyn Fn(&Figures) -> f64| median(figures.iter().map(value).collect());
        let ratio = median(figures.iter().zip(&limit).map(|(figures, limit)| limit / figures.seconds).collect());
        println!(
            "| {} | {:.0} | **{ratio:.2}** | {:.2} | {:.2} | {:.2} | {:.0} |",
            method.name(),
            of(&|figures| count / figures.seconds),
            of(&|figures| figures.api_server_cpu * 1e3 / count),
            of(&|figures| figures.etcd_cpu * 1e3 / count),
            of(&|figures| figures.own_cpu * 1e3 / count),
            of(&|figures| figures.own_mebibytes),
        );
        if figures.iter().all(|figures| figures.rewrite_seconds.is_finite()) {
            let ratio = median(figures.iter().zip(&limit).map(|(own, limit)| limit / own.rewrite_seconds).collect());
            let rate = of(&|figures| count / figures.rewrite_seconds);
            println!("| … its rewrite alone, without the waits and proofs | {rate:.0} | **{ratio:.2}** | | | | |");
        }
    }
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}
