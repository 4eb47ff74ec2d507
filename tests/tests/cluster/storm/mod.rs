//! Storm test of a highly available cluster: three broker nodes, a store with replicas and Sentinels, two coordinators and
//! several workers lose one part after another, and sometimes two at once, while batches run. Every tag is copied, every
//! count adds up, and each worker continues.
//!
//! `IMGSYNC_CHAOS_SECONDS` sets the duration (20 by default), `IMGSYNC_SEED` the losses; the seed used is printed.
//! `IMGSYNC_LOSSES`, such as `broker node frozen + worker frozen`, injects these losses together, again and again.

mod losses;
mod recovery;
mod store_nodes;

use std::time::{Duration, Instant};

use imgsync_tests::RabbitMq;
use imgsync_tests::cluster::number;
use imgsync_tests::fault::{FaultAction, FaultRegistry, RequestMatcher, RequestType, RuleHandle};
use imgsync_tests::images::{Layer, TestImage};
use imgsync_tests::program::{Imgsync, Output, RunningProgram};
use imgsync_tests::tcp_proxy::TcpProxy;
use jiff::Timestamp;
use rand::rngs::StdRng;
use rand::seq::SliceRandom as _;
use rand::{Rng as _, SeedableRng as _};
use serde_json::Value;

use self::losses::Loss;
use self::recovery::{Recoveries, Recovery, aim, describe};
use self::store_nodes::StoreNodes;
use crate::support::{WAIT_TIMEOUT, assert_sums, chosen, print_line, until};

const WORKERS: usize = 3;
const SLOTS: usize = 4;
const REPOSITORIES: usize = 20;
const TAGS: usize = 100;
/// Time that the target takes for a tag, in milliseconds, so that a batch lasts for minutes and each worker ends several
/// tasks a second.
const TAG_MS: std::ops::Range<u64> = 500..1_500;
/// Tasks that are always left, so that no worker lacks work.
const MIN_OPEN_TASKS: u64 = 500;
/// Time limit for each worker to continue after a loss.
const RECOVERY_TIMEOUT: Duration = Duration::from_secs(150);
/// Time limit for the rest of the batches, after the last loss.
const END_TIMEOUT: Duration = Duration::from_secs(600);

/// A batch and its images.
struct StormBatch {
    id: String,
    config: String,
    images: Vec<(String, String, TestImage)>,
}

/// The cluster, its registries and its batches.
struct Storm {
    broker: Vec<RabbitMq>,
    broker_relays: Vec<TcpProxy>,
    store: StoreNodes,
    source: FaultRegistry,
    target: FaultRegistry,
    slow: RuleHandle,
    coordinators: Vec<RunningProgram>,
    workers: Vec<RunningProgram>,
    batches: Vec<StormBatch>,
    recoveries: Recoveries,
    began: Instant,
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn after_a_storm_every_tag_is_copied_and_counted_once() {
    let length = Duration::from_secs(chosen("IMGSYNC_CHAOS_SECONDS").unwrap_or(20));
    let seed: u64 = chosen("IMGSYNC_SEED").unwrap_or_else(rand::random);
    print_line(&format!("losses for {} s; IMGSYNC_SEED={seed} repeats them", length.as_secs()));
    let mut random = StdRng::seed_from_u64(seed);
    let mut storm = Storm::start().await;
    let only: String = chosen("IMGSYNC_LOSSES").unwrap_or_default();
    let only: Vec<Loss> =
        Loss::ALL.into_iter().filter(|loss| only.split(" + ").any(|name| name == loss.to_string())).collect();
    let mut kinds = Vec::new();
    while storm.began.elapsed() < length {
        storm.keep_work().await;
        if kinds.is_empty() {
            kinds = Loss::ALL.to_vec();
            kinds.shuffle(&mut random);
        }
        let mut losses = vec![kinds.pop().expect("there are kinds")];
        if random.random_range(0..4) == 0
            && let Some(other) = kinds.iter().rposition(|kind| kind.group() != losses[0].group())
        {
            losses.push(kinds.remove(other));
        }
        if !only.is_empty() {
            losses.clone_from(&only);
        }
        storm.lose_and_recover(&losses, random.random_range(0..1_000)).await;
        tokio::time::sleep(Duration::from_millis(random.random_range(0..2_000))).await;
    }
    storm.end_and_check().await;
}

impl Storm {
    async fn start() -> Self {
        let broker = tokio::task::block_in_place(|| RabbitMq::start_cluster(3));
        let policy =
            ["set_policy", "--apply-to", "queues", "imgsync", "^(w|sync)\\.", r#"{"queue-leader-locator":"balanced"}"#];
        tokio::task::block_in_place(|| broker[0].ctl(&policy));
        let mut broker_relays = Vec::new();
        for node in &broker {
            broker_relays.push(TcpProxy::start(&format!("127.0.0.1:{}", node.port())).await);
        }
        let store = StoreNodes::start().await;
        let (source, target) = tokio::join!(FaultRegistry::start(), FaultRegistry::start());
        let is_tag = |request: &imgsync_tests::fault::RecordedRequest| {
            request.reference.as_deref().is_some_and(|reference| !reference.contains(':'))
        };
        let delay = |_: &imgsync_tests::fault::RecordedRequest| {
            FaultAction::Delay(Duration::from_millis(rand::random_range(TAG_MS)))
        };
        let tags = RequestMatcher::kind(RequestType::ManifestPut).when(is_tag);
        let slow = target.on(tags).always().act(FaultAction::compute(delay));
        let mut storm = Storm {
            broker,
            broker_relays,
            store,
            source,
            target,
            slow,
            coordinators: Vec::new(),
            workers: Vec::new(),
            batches: Vec::new(),
            recoveries: Recoveries::default(),
            began: Instant::now(),
        };
        storm.coordinators = (0..2).map(|_| storm.start_coordinator()).collect();
        storm.workers = (0..WORKERS).map(|_| storm.start_worker()).collect();
        until("a coordinator leads", WAIT_TIMEOUT, || !storm.leaders().is_empty()).await;
        storm.keep_work().await;
        let lost = Timestamp::now();
        let started = Instant::now();
        let work = || storm.workers.iter().all(|one| Recovery::observe(one, lost, started.elapsed()).is_some());
        until("all workers work", WAIT_TIMEOUT, work).await;
        storm.began = Instant::now();
        storm
    }

    fn program(&self, program: Imgsync, config: &str) -> Imgsync {
        let nodes = self.broker.iter().zip(&self.broker_relays);
        let urls: Vec<String> = nodes.map(|(node, relay)| node.url_through(&relay.host())).collect();
        program.file("imgsync.yaml", if config.is_empty() { "registries: {}\n" } else { config });
        program.env("IMGSYNC_BROKER", urls.join(",")).env("IMGSYNC_STORE", self.store.url())
    }

    fn imgsync(&self, config: &str) -> Imgsync {
        self.program(Imgsync::new(), config)
    }

    fn start_coordinator(&self) -> RunningProgram {
        self.imgsync("").args(["serve", "--listen", "127.0.0.1:0"]).spawn()
    }

    fn start_worker(&self) -> RunningProgram {
        let slots = SLOTS.to_string();
        let arguments = ["--concurrency", &slots, "--wait", "120", "--log-format", "json"];
        self.program(Imgsync::worker(), "").args(arguments).spawn()
    }

    /// Returns the positions of the coordinators that lead, by their logs.
    fn leaders(&self) -> Vec<usize> {
        let leads = |running: &RunningProgram| {
            let log = running.stderr();
            let line = log.lines().rfind(|line| {
                line.ends_with("elected leader") || line.contains("standby: ") || line.contains("no longer leader")
            });
            line.is_some_and(|line| line.ends_with("elected leader"))
        };
        (0..self.coordinators.len()).filter(|one| leads(&self.coordinators[*one])).collect()
    }

    /// Waits until one coordinator leads, and returns its position.
    async fn leader(&self) -> usize {
        until("a coordinator leads", WAIT_TIMEOUT, || self.leaders().len() == 1).await;
        self.leaders()[0]
    }

    /// Starts batches until enough tasks are left.
    async fn keep_work(&mut self) {
        let started = Instant::now();
        while self.open_tasks().await < MIN_OPEN_TASKS {
            let part = self.batches.len();
            let images = fill(&self.source, part);
            let config = config(&self.source, &self.target, part);
            loop {
                let run = self.imgsync(&config).args(["run", "--detach", "--attempts", "50"]).run().await;
                let id = run.stdout.trim().to_owned();
                match run.code {
                    Some(0) => break self.batches.push(StormBatch { id, config, images }),
                    // The coordinators or the servers were lost a moment ago.
                    Some(3) if started.elapsed() < RECOVERY_TIMEOUT => {}
                    code => panic!("{code:?}: {}", run.stderr),
                }
            }
        }
    }

    async fn open_tasks(&self) -> u64 {
        let listed = self.imgsync("").args(["batch", "list", "--json"]).run().await.assert_code(0);
        let batches = listed.stdout.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
        batches.map(|batch| number(&batch, "/counts/waiting")).sum()
    }

    /// Injects losses, waits until each worker that is left has continued, and brings back what was lost.
    async fn lose_and_recover(&mut self, losses: &[Loss], which: usize) {
        if losses.contains(&Loss::BrokerKilled) {
            // RabbitMQ 3.10 loses queues that are younger than its last write of metadata.
            tokio::task::block_in_place(|| self.broker.iter().for_each(RabbitMq::sync_metadata));
        }
        let began = Instant::now();
        let lost = Timestamp::now();
        let mut places = Vec::new();
        for loss in losses {
            places.push(self.lose(*loss, which).await);
        }
        let gone = losses.iter().zip(&places).find(|(loss, _)| loss.group() == "worker").map(|(_, place)| *place);
        let left: Vec<usize> = (0..self.workers.len()).filter(|worker| gone != Some(*worker)).collect();
        let least = losses.iter().map(|loss| loss.duration()).max().unwrap_or_default();
        let recoveries = loop {
            let elapsed = began.elapsed();
            let observed = left.iter().map(|worker| Recovery::observe(&self.workers[*worker], lost, elapsed));
            let observed: Vec<Option<Recovery>> = observed.collect();
            if elapsed >= least && observed.iter().all(Option::is_some) {
                break observed.into_iter().flatten().collect::<Vec<_>>();
            }
            assert!(elapsed < RECOVERY_TIMEOUT, "{}: {observed:?}\n{}", describe(losses), self.logs());
            tokio::time::sleep(Duration::from_millis(200)).await;
        };
        let list = |time: fn(&Recovery) -> Duration| {
            let times: Vec<String> = recoveries.iter().map(|one| format!("{:.1}", time(one).as_secs_f64())).collect();
            times.join(", ")
        };
        let is_late = recoveries.iter().any(|one| one.standstill > aim(losses));
        print_line(&format!(
            "{:>4} s  {}: next task after {} s; none for {} s{}",
            self.began.elapsed().as_secs(),
            describe(losses),
            list(|one| one.next_task),
            list(|one| one.standstill),
            if is_late { " (more than aimed at)" } else { "" }
        ));
        if is_late {
            print_line(&self.logs());
        }
        recoveries.into_iter().for_each(|recovery| self.recoveries.record(losses, recovery));
        for (loss, place) in losses.iter().zip(places) {
            self.restore(*loss, place);
        }
        self.wait_until_whole().await;
    }

    /// Returns the last lines of all programs.
    fn logs(&self) -> String {
        let last = |running: &RunningProgram| {
            let log = running.stderr();
            let lines: Vec<&str> = log.lines().rev().take(60).collect();
            lines.into_iter().rev().collect::<Vec<_>>().join("\n")
        };
        let coordinators = self.coordinators.iter().map(|one| format!("--- coordinator\n{}", last(one)));
        let workers = self.workers.iter().map(|one| format!("--- worker\n{}", last(one)));
        let brokers = self.broker.iter().map(|node| {
            let log = node.log();
            let lines: Vec<&str> = log.lines().collect();
            format!("--- broker node\n{}", lines[lines.len().saturating_sub(60)..].join("\n"))
        });
        coordinators.chain(workers).chain(brokers).collect::<Vec<_>>().join("\n")
    }

    /// Waits for the end of all batches, and checks them.
    async fn end_and_check(mut self) {
        self.slow.remove();
        print_line(&format!("no more losses, after {} batches\n{}", self.batches.len(), self.recoveries.table()));
        assert!(!self.recoveries.is_empty(), "nothing was lost");
        let started = Instant::now();
        let mut tags = 0;
        for part in std::mem::take(&mut self.batches) {
            let total = part.images.len() as u64;
            let shown = loop {
                let shown = self.imgsync("").args(["batch", "show", &part.id, "--json"]).run().await;
                let Output { code: Some(0), .. } = shown else { panic!("{}: {}", part.id, shown.stderr) };
                let shown = shown.json();
                if !shown["ended"].is_null() {
                    break shown;
                }
                assert!(started.elapsed() < END_TIMEOUT, "it does not end: {shown:#}\n{}", self.logs());
                tokio::time::sleep(Duration::from_millis(500)).await;
            };
            assert_sums(&shown);
            assert_eq!(number(&shown, "/counts/total"), total, "{shown}");
            let done = number(&shown, "/counts/copied") + number(&shown, "/counts/unchanged");
            assert_eq!(done, total, "each tag is counted once, and none failed: {shown}");
            for (repository, tag, image) in &part.images {
                self.target.assert_holds(&format!("m/{repository}"), tag, image);
            }
            let run = self.imgsync(&part.config).args(["run", "--json"]).limit(END_TIMEOUT).run().await.assert_code(0);
            assert_eq!(number(&run.json(), "/counts/unchanged"), total, "nothing is left for another run");
            tags += total;
        }
        self.target.assert_tags_complete();
        self.target.assert_children_came_first();
        let is_tag = |reference: &str| !reference.contains(':');
        let puts = self.target.count_where(|request| {
            request.kind == RequestType::ManifestPut
                && request.status == Some(201)
                && request.reference.as_deref().is_some_and(is_tag)
        });
        assert!(puts >= tags);
        print_line(&format!("{tags} tags are right and counted once; {} were written again", puts - tags));
    }
}

fn config(source: &FaultRegistry, target: &FaultRegistry, part: usize) -> String {
    let rules: String = (0..REPOSITORIES).map(|n| format!("- from: {}/p{part}/r{n}\n", source.host())).collect();
    format!("defaults: {{to: {}/m, naming: keep}}\nrules:\n{rules}", target.host())
}

/// Pushes the images of a batch to the source.
fn fill(source: &FaultRegistry, part: usize) -> Vec<(String, String, TestImage)> {
    let mut images = Vec::new();
    for repository in 0..REPOSITORIES {
        for tag in 0..TAGS {
            let image = TestImage::single(&format!("storm-{part}-{repository}-{tag}"))
                .layer(Layer::Shared(format!("base-{}", repository % 3), 5_000))
                .layer(Layer::File(200))
                .build();
            let (repository, tag) = (format!("p{part}/r{repository}"), format!("v{tag}"));
            source.push(&repository, &tag, &image);
            images.push((repository, tag, image));
        }
    }
    images
}
