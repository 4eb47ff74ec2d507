//! Speedup by more workers when latency dominates: registries that are 100 ms away.

use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use imgsync_tests::fault::{FaultRegistry, RequestType};
use imgsync_tests::images::{Layer, TestImage};
use imgsync_tests::program::Imgsync;
use imgsync_tests::resource_usage::CpuTimes;
use imgsync_tests::tcp_proxy::{Direction, TcpProxy};

use crate::setup::{self, json_count};

const WORKERS: [usize; 4] = [1, 2, 4, 8];
const SLOTS: usize = 4;
/// Round-trip time to a registry.
const ROUND_TRIP: Duration = Duration::from_millis(100);

pub(crate) async fn run(tasks_each: usize) {
    setup::title(&format!(
        "workers of {SLOTS} slots, registries {} ms away, {tasks_each} small images for each worker (aim: 8 give 7.5 times one)",
        ROUND_TRIP.as_millis()
    ));
    println!("{:>7} {:>9} {:>10} {:>7} {:>6}  {:<20}", "workers", "seconds", "images/s", "times", "idle", "");
    let mut one = None;
    for workers in WORKERS {
        let rate = measure(workers, tasks_each, false).await;
        let one = *one.get_or_insert(rate.images_per_second);
        rate.print(workers, one, "");
    }
    let rate = measure(8, tasks_each, true).await;
    rate.print(8, one.unwrap(), "broker and store are as far away too");
}

struct Rate {
    seconds: f64,
    images_per_second: f64,
    idle: f64,
}

impl Rate {
    fn print(&self, workers: usize, one: f64, note: &str) {
        let Rate { seconds, images_per_second, idle } = self;
        let times = images_per_second / one;
        let idle = idle * 100.0;
        println!("{workers:>7} {seconds:>9.1} {images_per_second:>10.2} {times:>7.2} {idle:>5.0}%  {note:<20}");
    }
}

/// Images and servers are new for each step, so that none is cached.
async fn measure(workers: usize, tasks_each: usize, all_far: bool) -> Rate {
    let cluster = setup::start_cluster();
    let (source, target) = tokio::join!(FaultRegistry::start(), FaultRegistry::start());
    let (from, to) = (start_delayed_relay(&source.host()).await, start_delayed_relay(&target.host()).await);
    let total = workers * tasks_each;
    for task in 0..total {
        let image =
            TestImage::single(&format!("far-{workers}-{task}")).layer(Layer::File(2000)).layer(Layer::File(500));
        source.push(&format!("r{}", task % 10), &format!("v{}", task / 10), &image.build());
    }
    let rules: String = (0..10).map(|n| format!("- from: {}/r{n}\n", from.host())).collect();
    let config = format!("defaults: {{to: {}/m, naming: keep}}\nrules:\n{rules}", to.host());
    let (broker, store) = (
        start_delayed_relay(&format!("127.0.0.1:{}", cluster.broker.port())).await,
        start_delayed_relay(&format!("127.0.0.1:{}", cluster.store.port())).await,
    );
    let mut fleet = Vec::new();
    for _ in 0..workers {
        let mut worker = cluster.worker("").args(["--concurrency", &SLOTS.to_string()]);
        if all_far {
            worker = worker
                .env("IMGSYNC_BROKER", format!("amqp://guest:guest@{}/%2f", broker.host()))
                .env("IMGSYNC_STORE", format!("redis://{}", store.host()));
        }
        fleet.push(worker.spawn());
    }
    for worker in &fleet {
        worker.wait_for_line(|line| line.starts_with("worker "), Duration::from_secs(60)).await;
    }
    let run: Imgsync = cluster.imgsync(&config).args(["run", "--json", "--quiet"]).limit(Duration::from_secs(1800));
    // Measures the middle: the start of a batch and its last images do not scale.
    let (first, last) = (total / 10, total * 9 / 10);
    let marks: Arc<Mutex<Vec<(usize, Instant, CpuTimes)>>> = Arc::default();
    let watch = async {
        for mark in [first, last] {
            let is_tag = |request: &imgsync_tests::fault::RecordedRequest| {
                request.kind == RequestType::ManifestPut
                    && request.status == Some(201)
                    && request.reference.as_deref().is_some_and(|reference| !reference.contains(':'))
            };
            while (target.count_where(is_tag) as usize) < mark {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
            let at = (target.count_where(is_tag) as usize, Instant::now(), CpuTimes::now());
            marks.lock().unwrap().push(at);
            if mark == last {
                let (_, _, since) = marks.lock().unwrap()[0];
                return CpuTimes::idle_since(since);
            }
        }
        unreachable!("the last mark is the last")
    };
    let (output, idle) = tokio::join!(run.run(), watch);
    let output = output.assert_code(0);
    assert_eq!(json_count(&output, "copied"), total as u64, "{}", output.stdout);
    let marks = marks.lock().unwrap();
    let (images, time) = (marks[1].0 - marks[0].0, marks[1].1 - marks[0].1);
    let images_per_second = images as f64 / time.as_secs_f64();
    Rate { seconds: output.elapsed.as_secs_f64(), images_per_second, idle }
}

async fn start_delayed_relay(host: &str) -> TcpProxy {
    let relay = TcpProxy::start(host).await;
    relay.delay(Direction::Up, ROUND_TRIP / 2);
    relay.delay(Direction::Down, ROUND_TRIP / 2);
    relay
}
