//! Chaos test: random faults for a while, then none, and everything must be right.
//!
//! `IMGSYNC_CHAOS_SECONDS` sets the duration (20 by default), `IMGSYNC_SEED` the faults; the seed used is printed.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use imgsync_tests::cluster::{TestCluster, number};
use imgsync_tests::fault::{FaultAction, FaultRegistry, RequestMatcher, RequestType};
use imgsync_tests::images::{Layer, TestImage};
use imgsync_tests::program::RunningProgram;
use rand::rngs::StdRng;
use rand::{Rng as _, SeedableRng as _};
use serde_json::Value;

use crate::support::{assert_sums, chosen, kill, print_line};

const WORKERS: usize = 4;
const SLOTS: usize = 6;
const REPOSITORIES: usize = 10;
const TAGS: usize = 100;
/// One image in this many has a large layer, which should not be transferred twice.
const IMAGES_PER_LARGE_LAYER: usize = 25;
const LARGE_LAYER_BYTES: u64 = 2 << 20;
/// Maximum concurrent runs of the same rules: one runs, one waits, one joins the waiting one.
const MAX_OVERLAPPING_RUNS: usize = 3;
/// Batch number of the rules that run again and again.
const REPEATED_BATCH: usize = 999;
/// Time limit for recovery after the faults.
const RECOVERY_TIMEOUT: Duration = Duration::from_secs(240);

/// Faults injected so far.
#[derive(Debug, Default)]
struct FaultCounts {
    workers_killed: usize,
    coordinators_killed: usize,
    brokers_restarted: usize,
    stores_restarted: usize,
    runs_killed: usize,
    /// Exit codes of the runs of the repeated rules, with their counts.
    runs_ended: BTreeMap<i32, usize>,
}

/// A batch and its images.
struct ChaosBatch {
    id: String,
    config: String,
    images: Vec<(String, String, TestImage)>,
}

/// Rules that are run again while earlier runs still go on, as by cron.
struct RepeatedRuns {
    batch: ChaosBatch,
    runs: Vec<RunningProgram>,
}

struct ChaosRun {
    cluster: TestCluster,
    source: FaultRegistry,
    target: FaultRegistry,
    workers: Vec<RunningProgram>,
    coordinator: RunningProgram,
    batches: Vec<ChaosBatch>,
    repeated: RepeatedRuns,
    random: StdRng,
    fault_counts: FaultCounts,
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn after_chaos_every_tag_is_right_and_every_count_adds_up() {
    let length = Duration::from_secs(chosen("IMGSYNC_CHAOS_SECONDS").unwrap_or(20));
    let seed: u64 = chosen("IMGSYNC_SEED").unwrap_or_else(rand::random);
    print_line(&format!("faults for {} s; IMGSYNC_SEED={seed} repeats them", length.as_secs()));
    let faulty = Arc::new(AtomicBool::new(true));
    let mut chaos = ChaosRun::start(seed, &faulty).await;
    let began = Instant::now();
    while began.elapsed() < length {
        chaos.keep_batches_running().await;
        chaos.run_repeated().await;
        chaos.inject_fault().await;
        let pause = chaos.random.random_range(300..2_500);
        tokio::time::sleep(Duration::from_millis(pause).min(length.saturating_sub(began.elapsed()))).await;
    }
    faulty.store(false, Ordering::SeqCst);
    print_line(&format!("no more faults, after {:?} and {} batches", chaos.fault_counts, chaos.batches.len()));
    chaos.wait_and_check().await;
}

impl ChaosRun {
    async fn start(seed: u64, faulty: &Arc<AtomicBool>) -> ChaosRun {
        let cluster = TestCluster::with_own_broker();
        let (source, target) = tokio::join!(FaultRegistry::start(), FaultRegistry::start());
        for (salt, registry) in [(1, &source), (2, &target)] {
            inject_registry_faults(registry, seed.wrapping_add(salt), faulty);
        }
        let mut workers = Vec::new();
        for _ in 0..WORKERS {
            workers.push(worker(&cluster));
        }
        let coordinator = coordinator(&cluster);
        let coordinator_leads =
            coordinator.wait_for_line(|line| line.ends_with("elected leader"), Duration::from_secs(60));
        coordinator_leads.await;
        let (random, fault_counts) = (StdRng::seed_from_u64(seed), FaultCounts::default());
        let images = fill(&source, REPEATED_BATCH);
        let config = config(&source, &target, REPEATED_BATCH);
        let repeated = RepeatedRuns { batch: ChaosBatch { id: String::new(), config, images }, runs: Vec::new() };
        ChaosRun { cluster, source, target, workers, coordinator, batches: Vec::new(), repeated, random, fault_counts }
    }

    /// Keeps two batches running.
    async fn keep_batches_running(&mut self) {
        let listed = self.cluster.imgsync("").args(["batch", "list", "--json"]).run().await;
        if listed.code != Some(0) {
            return;
        }
        let alive = |line: &&str| serde_json::from_str::<Value>(line).is_ok_and(|batch| batch["ended"].is_null());
        for _ in listed.stdout.lines().filter(alive).count()..2 {
            let part = self.batches.len();
            let images = fill(&self.source, part);
            let config = config(&self.source, &self.target, part);
            // The coordinator may have been killed a moment ago, which leaves none for a batch.
            let run = self.cluster.imgsync(&config).args(["run", "--detach", "--attempts", "50"]).run().await;
            let id = run.stdout.trim().to_owned();
            match run.code {
                Some(0) => self.batches.push(ChaosBatch { id, config, images }),
                Some(3) => return,
                code => panic!("{code:?}: {}", run.stderr),
            }
        }
    }

    /// Starts the repeated rules once more next to the runs that go on, and sometimes kills one of those.
    async fn run_repeated(&mut self) {
        if !self.repeated.runs.is_empty() && self.random.random_range(0..6) == 0 {
            let victim = self.random.random_range(0..self.repeated.runs.len());
            let mut run = self.repeated.runs.swap_remove(victim);
            kill(&mut run).await;
            self.fault_counts.runs_killed += 1;
        }
        self.reap_repeated().await;
        if self.repeated.runs.len() < MAX_OVERLAPPING_RUNS {
            let arguments = ["run", "--attempts", "50", "--if-running", "wait"];
            self.repeated.runs.push(self.cluster.imgsync(&self.repeated.batch.config).args(arguments).spawn());
        }
    }

    /// Records the exit codes of repeated runs. Under faults images may fail (1), and broker or store may be down for
    /// longer than a run waits (3).
    async fn reap_repeated(&mut self) {
        let runs = std::mem::take(&mut self.repeated.runs);
        for mut run in runs {
            if run.is_running() {
                self.repeated.runs.push(run);
                continue;
            }
            let output = run.wait().await;
            match output.code {
                Some(code @ (0 | 1 | 3)) => *self.fault_counts.runs_ended.entry(code).or_default() += 1,
                code => panic!("{code:?}: {}", output.stderr),
            }
        }
    }

    /// Waits for the end of the repeated runs. A final run completes what they left, and no batch of theirs is shown as
    /// running without a run.
    async fn wait_for_repeated(&mut self) {
        let started = Instant::now();
        while !self.repeated.runs.is_empty() {
            self.reap_repeated().await;
            let left = || self.repeated.runs.iter().map(RunningProgram::stderr).collect::<Vec<_>>().join("\n---\n");
            assert!(started.elapsed() < RECOVERY_TIMEOUT, "{} runs do not end: {}", self.repeated.runs.len(), left());
            tokio::time::sleep(Duration::from_millis(500)).await;
        }
        let part = &self.repeated.batch;
        let last =
            self.cluster.imgsync(&part.config).args(["run", "--attempts", "50"]).limit(RECOVERY_TIMEOUT).run().await;
        last.assert_code(0);
        for (repository, tag, image) in &part.images {
            self.target.assert_holds(&format!("m/{repository}"), tag, image);
        }
        print_line(&format!(
            "{} killed, others ended: {:?}",
            self.fault_counts.runs_killed, self.fault_counts.runs_ended
        ));
        let listed = self.cluster.imgsync("").args(["batch", "list", "--json"]).run().await.assert_code(0);
        for line in listed.stdout.lines() {
            let batch: Value = serde_json::from_str(line).expect("a line of JSON");
            assert_sums(&batch);
            assert_eq!(number(&batch, "/counts/running"), 0, "nobody runs anything any more: {batch}");
            assert_ne!(batch["state"], "running", "{batch}");
        }
    }

    /// Injects a fault.
    async fn inject_fault(&mut self) {
        match self.random.random_range(0..10) {
            0..5 => {
                let victim = self.random.random_range(0..WORKERS);
                kill(&mut self.workers[victim]).await;
                self.workers[victim] = worker(&self.cluster);
                self.fault_counts.workers_killed += 1;
            }
            5 | 6 => {
                kill(&mut self.coordinator).await;
                self.coordinator = coordinator(&self.cluster);
                self.fault_counts.coordinators_killed += 1;
            }
            7 | 8 => {
                tokio::task::block_in_place(|| self.cluster.store.restart());
                self.fault_counts.stores_restarted += 1;
            }
            _ => {
                tokio::task::block_in_place(|| self.cluster.broker.restart());
                self.fault_counts.brokers_restarted += 1;
            }
        }
    }

    /// Waits for the end of all batches, and checks the result.
    async fn wait_and_check(mut self) {
        // A program killed last may have been killed during its start.
        for worker in &mut self.workers {
            if !worker.is_running() {
                *worker = self::worker(&self.cluster);
            }
        }
        if !self.coordinator.is_running() {
            self.coordinator = coordinator(&self.cluster);
        }
        assert!(!self.batches.is_empty(), "there was no work");
        for part in &self.batches {
            let shown = self.ended(part).await;
            assert_sums(&shown);
            assert_eq!(number(&shown, "/counts/total"), part.images.len() as u64, "{shown}");
            if number(&shown, "/counts/failed") > 0 {
                print_line(&format!("{} failed in passing, and go again", number(&shown, "/counts/failed")));
                let again = self.cluster.imgsync(&part.config).args(["batch", "requeue", &part.id]).run().await;
                again.assert_code(0);
            }
            let shown = self.ended(part).await;
            assert_sums(&shown);
            let done = number(&shown, "/counts/copied") + number(&shown, "/counts/unchanged");
            assert_eq!(done, part.images.len() as u64, "{shown}");
            for (repository, tag, image) in &part.images {
                self.target.assert_holds(&format!("m/{repository}"), tag, image);
            }
        }
        self.wait_for_repeated().await;
        self.target.assert_tags_complete();
        self.target.assert_children_came_first();
        self.assert_large_moved_once();
    }

    async fn ended(&self, part: &ChaosBatch) -> Value {
        let started = Instant::now();
        loop {
            let shown = self.cluster.imgsync("").args(["batch", "show", &part.id, "--json"]).run().await;
            let shown = shown.assert_code(0).json();
            if !shown["ended"].is_null() {
                return shown;
            }
            let coordinator = self.coordinator.stderr();
            assert!(
                started.elapsed() < RECOVERY_TIMEOUT,
                "it does not end: {shown:#}\n--- the coordinator\n{coordinator}"
            );
            tokio::time::sleep(Duration::from_millis(500)).await;
        }
    }

    /// Asserts that a large blob is uploaded once, unless a kill or an outage came between the upload and its record.
    fn assert_large_moved_once(&self) {
        let mut uploads: HashMap<String, usize> = HashMap::new();
        for put in self.target.requests_of_kind(RequestType::UploadPut) {
            if put.status == Some(201) && put.received >= LARGE_LAYER_BYTES {
                *uploads.entry(put.reference.unwrap_or_default()).or_default() += 1;
            }
        }
        let again: usize = uploads.values().map(|times| times - 1).sum();
        let explained = self.fault_counts.workers_killed * SLOTS;
        print_line(&format!("{} large blobs, {again} uploads more than those", uploads.len()));
        assert!(again <= explained, "{again} uploads were done again, {explained} can be explained: {uploads:?}");
    }
}

fn worker(cluster: &TestCluster) -> RunningProgram {
    let slots = SLOTS.to_string();
    let arguments = ["--concurrency", &slots, "--attempts", "20", "--wait", "120"];
    cluster.worker("").args(arguments).spawn()
}

fn coordinator(cluster: &TestCluster) -> RunningProgram {
    // It does not wait for broker and store at its start, like a service that is restarted by its supervisor.
    cluster.imgsync("").args(["serve", "--listen", "127.0.0.1:0"]).spawn()
}

/// Makes some responses errors and some connections break, selected by the seed.
fn inject_registry_faults(registry: &FaultRegistry, seed: u64, faulty: &Arc<AtomicBool>) {
    let chance = |salt: u64, per_mille: u64| {
        let faulty = faulty.clone();
        RequestMatcher::any().when(move |request| {
            let number = request.n.wrapping_add(salt << 40).wrapping_add(seed);
            let mixed = StdRng::seed_from_u64(number).random_range(0..1000);
            mixed < per_mille && faulty.load(Ordering::SeqCst)
        })
    };
    registry.on(chance(1, 15)).always().act(FaultAction::error(500, "UNKNOWN"));
    registry.on(chance(2, 10)).always().act(FaultAction::too_many_requests("1"));
    registry.on(chance(3, 10)).always().act(FaultAction::CutBefore);
    registry.on(chance(4, 10)).always().act(FaultAction::CutInsteadOfAnswer);
}

fn config(source: &FaultRegistry, target: &FaultRegistry, part: usize) -> String {
    let rules: String = (0..REPOSITORIES).map(|n| format!("- from: {}/p{part}/r{n}\n", source.host())).collect();
    format!("defaults: {{to: {}/m, naming: keep}}\nrules:\n{rules}", target.host())
}

fn fill(source: &FaultRegistry, part: usize) -> Vec<(String, String, TestImage)> {
    let mut images = Vec::new();
    for repository in 0..REPOSITORIES {
        for tag in 0..TAGS {
            let image = TestImage::single(&format!("chaos-{part}-{repository}-{tag}"))
                .layer(Layer::Shared(format!("base-{}", repository % 3), 5_000))
                .layer(if tag % IMAGES_PER_LARGE_LAYER == 0 {
                    Layer::Synthetic(LARGE_LAYER_BYTES)
                } else {
                    Layer::File(200)
                })
                .build();
            let (repository, tag) = (format!("p{part}/r{repository}"), format!("v{tag}"));
            source.push(&repository, &tag, &image);
            images.push((repository, tag, image));
        }
    }
    images
}
