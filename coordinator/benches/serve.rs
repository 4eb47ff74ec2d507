//! Cost of event streams: `imgsync serve` runs a batch of 100,000 tasks, alternately without clients and with 50 on its
//! event stream. Prints seconds and memory of each run, and the medians.
//!
//! `cargo bench --bench serve`; `BENCH_TASKS` and `BENCH_PAIRS` make it smaller.
#![allow(clippy::print_stdout, clippy::unwrap_used, reason = "a benchmark prints, and fails where it cannot go on")]

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use imgsync_tests::fault::FaultRegistry;
use imgsync_tests::images;
use imgsync_tests::program::Imgsync;
use imgsync_tests::serve_process::ServeProcess;
use jiff::Timestamp;
use serde_json::{Value, json};

const TAGS: usize = 100;
const WATCHERS: usize = 50;

/// Duration of a batch, and memory of the coordinator.
struct RunMeasurement {
    seconds: f64,
    mib: f64,
    event_bytes: u64,
}

#[tokio::main]
async fn main() {
    let of = |name: &str, usual: usize| std::env::var(name).ok().and_then(|text| text.parse().ok()).unwrap_or(usual);
    let (tasks, pairs) = (of("BENCH_TASKS", 100_000), of("BENCH_PAIRS", 5));
    if cfg!(debug_assertions) {
        println!("a debug build: these numbers mean little");
    }
    let (source, target) = tokio::join!(FaultRegistry::start(), FaultRegistry::start());
    let repositories = tasks / TAGS;
    for repository in 0..repositories {
        let image = images::single(&format!("bench-{repository}"));
        for (registry, name) in [(&source, format!("p/r{repository}")), (&target, format!("m/p/r{repository}"))] {
            registry.push(&name, "v0", &image);
            (1..TAGS).for_each(|tag| registry.move_tag(&name, &format!("v{tag}"), &image.root));
        }
    }
    let config =
        format!("defaults: {{to: {}/m, naming: keep}}\nrules:\n- from: {}/p/**\n", target.host(), source.host());
    let mut watched = (Vec::new(), Vec::new());
    let mut alone = (Vec::new(), Vec::new());
    println!("{:<10} {:>9} {:>9} {:>9} {:>12}", "", "seconds", "tasks/s", "MiB", "events MiB");
    for _ in 0..pairs {
        for watchers in [0, WATCHERS] {
            let ran = run(&config, watchers, tasks).await;
            source.clear_requests();
            target.clear_requests();
            let into = if watchers == 0 { &mut alone } else { &mut watched };
            into.0.push(ran.seconds);
            into.1.push(ran.mib);
            println!(
                "{:<10} {:>9.2} {:>9.0} {:>9.1} {:>12.1}",
                format!("{watchers} watch"),
                ran.seconds,
                tasks as f64 / ran.seconds,
                ran.mib,
                ran.event_bytes as f64 / f64::from(1 << 20)
            );
        }
    }
    let slower: Vec<f64> =
        watched.0.iter().zip(&alone.0).map(|(with, without)| (with / without - 1.0) * 100.0).collect();
    let more: Vec<f64> = watched.1.iter().zip(&alone.1).map(|(with, without)| with - without).collect();
    println!(
        "{WATCHERS} watchers, {tasks} tasks: {:+.1} % time (aim < 5), {:+.1} MiB (aim < 100), medians of {pairs} pairs",
        median(slower),
        median(more)
    );
}

async fn run(config: &str, watchers: usize, tasks: usize) -> RunMeasurement {
    let program = Imgsync::at(env!("CARGO_BIN_EXE_imgsync"));
    program.file("imgsync.yaml", config);
    let mut served = ServeProcess::start(&program, &[]).await;
    let event_bytes = Arc::new(AtomicU64::new(0));
    let mut clients = tokio::task::JoinSet::new();
    for _ in 0..watchers {
        let request = served.request(reqwest::Method::GET, "events").timeout(Duration::from_secs(3600));
        let event_bytes = event_bytes.clone();
        let mut response = request.send().await.unwrap();
        clients.spawn(async move {
            while let Ok(Some(chunk)) = response.chunk().await {
                event_bytes.fetch_add(chunk.len() as u64, Ordering::Relaxed);
            }
        });
    }
    let (_, schedules) = served.get("schedules").await;
    let rule = schedules[0]["rule"].as_str().unwrap();
    let (status, started) = served.post(&format!("schedules/{rule}/start"), &json!({})).await;
    assert_eq!(status, 202, "{started}");
    let path = format!("batches/{}", started["batch"].as_str().unwrap());
    let batch = loop {
        let (_, batch) = served.get(&path).await;
        if !batch["ended"].is_null() {
            break batch;
        }
        tokio::time::sleep(Duration::from_millis(250)).await;
    };
    assert_eq!(batch["counts"]["unchanged"], tasks, "{batch:#}");
    let at = |name: &str, batch: &Value| batch[name].as_str().unwrap().parse::<Timestamp>().unwrap();
    let seconds = at("ended", &batch).duration_since(at("started", &batch)).as_secs_f64();
    let mib = served.running.peak_rss_bytes() as f64 / f64::from(1 << 20);
    let event_bytes = event_bytes.load(Ordering::Relaxed);
    served.stop().await.assert_code(0);
    clients.shutdown().await;
    RunMeasurement { seconds, mib, event_bytes }
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}
