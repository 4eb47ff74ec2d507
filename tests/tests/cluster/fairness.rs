//! Fairness between batches of one route: how many tasks of one start before the first task of another.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use imgsync_tests::cluster::{TestCluster, number};
use imgsync_tests::fault::{FaultAction, FaultRegistry, RecordedRequest, RequestMatcher, RequestType};
use imgsync_tests::images;
use imgsync_tests::program::RunningProgram;
use serde_json::Value;
use tokio::sync::Semaphore;

use crate::support::{WAIT_TIMEOUT, assert_sums, kill, until};

/// Duration of each image of a slow repository: four slots do some twenty a second.
const SLOW_IMAGE_DELAY: Duration = Duration::from_millis(200);
const SLOTS: usize = 4;

/// A cluster with a worker between two registries.
struct RouteFixture {
    cluster: TestCluster,
    source: FaultRegistry,
    target: FaultRegistry,
}

/// Reports whether a request is for a manifest by tag, in a repository below this path.
fn is_first_request_below(request: &RecordedRequest, below: &str) -> bool {
    matches!(request.kind, RequestType::ManifestGet | RequestType::ManifestHead)
        && request.repository.as_deref().is_some_and(|repository| repository.starts_with(below))
        && request.reference.as_deref().is_some_and(|reference| !reference.contains(':'))
}

impl RouteFixture {
    async fn new() -> RouteFixture {
        let cluster = TestCluster::start();
        let (source, target) = tokio::join!(FaultRegistry::start(), FaultRegistry::start());
        RouteFixture { cluster, source, target }
    }

    /// Pushes one image under this many tags, in repositories of at most a thousand.
    fn fill(&self, below: &str, tags: usize) {
        let image = images::single(below);
        for tag in 0..tags {
            let (repository, name) = (format!("{below}/r{}", tag / 1000), format!("v{}", tag % 1000));
            match tag % 1000 {
                0 => self.source.push(&repository, &name, &image),
                _ => self.source.move_tag(&repository, &name, &image.root),
            }
        }
    }

    /// Slows down every image below this path.
    fn slow_down(&self, below: &'static str) {
        let its = RequestMatcher::any().when(move |request| is_first_request_below(request, below));
        self.source.on(its).always().act(FaultAction::Delay(SLOW_IMAGE_DELAY));
    }

    fn config(&self, below: &str, more: &str) -> String {
        let (source, target) = (self.source.host(), self.target.host());
        format!("defaults: {{to: {target}/m, naming: keep}}\nrules:\n- from: {source}/{below}/**\n{more}")
    }

    fn run(&self, below: &str, more: &str, arguments: &[&str]) -> RunningProgram {
        self.cluster.imgsync(&self.config(below, more)).args(["run", "--json"]).args(arguments).spawn()
    }

    /// Counts the started images below this path.
    fn started_images(&self, below: &str) -> usize {
        self.started_before(below, None)
    }

    /// Counts them up to the first image below another path.
    fn started_before(&self, below: &str, other: Option<&str>) -> usize {
        let requests = self.source.requests();
        let earlier =
            requests.iter().take_while(|request| other.is_none_or(|other| !is_first_request_below(request, other)));
        let its = earlier.filter(|request| is_first_request_below(request, below));
        its.map(|request| (&request.repository, &request.reference)).collect::<BTreeSet<_>>().len()
    }

    /// Waits until this many images below this path have started.
    async fn wait_for(&self, below: &str, images: usize) {
        until(&format!("{images} images of {below}"), WAIT_TIMEOUT, || self.started_images(below) >= images).await;
    }
}

fn assert_copied(json: &Value, images: u64) {
    assert_sums(json);
    assert_eq!(number(json, "/counts/copied"), images, "{json}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_small_batch_behind_20000_tasks_of_its_route_waits_for_a_few_hundred() {
    let route = RouteFixture::new().await;
    route.fill("large", 20_000);
    route.fill("small", 10);
    route.slow_down("large");
    let _worker = route.cluster.start_workers(1, SLOTS).await;
    let mut large = route.run("large", "", &[]);
    route.wait_for("large", 150).await;
    let before = route.started_images("large");
    let json = route.run("small", "", &[]).wait().await.assert_code(0).json();
    assert_copied(&json, 10);
    let ahead = route.started_before("large", Some("small")) - before;
    // What the route drains in ten seconds, and what it drained while the small batch was listed.
    assert!(ahead < 600, "{ahead} images of the large batch began first");
    assert!(large.is_running(), "{}", large.stderr());
    kill(&mut large).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_batch_of_high_priority_is_before_all_that_stands_ahead_and_says_so() {
    let route = RouteFixture::new().await;
    route.fill("large", 20_000);
    route.fill("urgent", 10);
    route.slow_down("large");
    let _worker = route.cluster.start_workers(1, SLOTS).await;
    let mut large = route.run("large", "", &[]);
    route.wait_for("large", 150).await;
    let before = route.started_images("large");
    let json = route.run("urgent", "  priority: high\n", &[]).wait().await.assert_code(0).json();
    assert_copied(&json, 10);
    let ahead = route.started_before("large", Some("urgent")) - before;
    assert!(ahead < 150, "{ahead} images of the large batch began first");
    let shown = route.cluster.imgsync("").args(["batch", "show", "--json"]).run().await.assert_code(0);
    assert_eq!(shown.json()["priority"], "high", "{}", shown.stdout);
    let shown = route.cluster.imgsync("").args(["batch", "show"]).run().await.assert_code(0);
    assert!(shown.stdout.contains("Priority: high"), "{}", shown.stdout);
    let queues = route.cluster.broker.message_counts();
    assert_eq!(queues.keys().filter(|queue| queue.starts_with("w.!")).count(), 1, "{queues:?}");
    // Tasks of normal priority do not starve.
    let began = route.started_images("large");
    route.wait_for("large", began + 20).await;
    kill(&mut large).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_task_of_high_priority_has_a_slot_where_all_others_are_busy() {
    let route = RouteFixture::new().await;
    route.fill("large", 2_000);
    route.fill("urgent", 10);
    let gate = Arc::new(Semaphore::new(0));
    let its = RequestMatcher::any().when(|request| is_first_request_below(request, "large"));
    let stalled = route.source.on(its).always().act(FaultAction::Gate(gate.clone()));
    let _worker = route.cluster.start_workers(1, SLOTS).await;
    let mut large = route.run("large", "", &[]);
    until("every slot is busy", WAIT_TIMEOUT, || stalled.hits() == SLOTS as u64).await;
    let json = route.run("urgent", "", &["--priority", "high"]).wait().await.assert_code(0).json();
    assert_copied(&json, 10);
    assert_eq!(stalled.hits(), SLOTS as u64, "no slot was free meanwhile, and none was taken from those that are busy");
    assert!(large.is_running(), "{}", large.stderr());
    kill(&mut large).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_batch_of_low_priority_has_a_fourth_of_a_normal_ones_share() {
    let route = RouteFixture::new().await;
    for below in ["low", "normal"] {
        route.fill(below, 5_000);
        route.slow_down(below);
    }
    let _worker = route.cluster.start_workers(1, SLOTS).await;
    let mut low = route.run("low", "", &["--priority", "low"]);
    route.wait_for("low", 50).await;
    let mut normal = route.run("normal", "", &[]);
    // Both have filled their shares by then.
    route.wait_for("normal", 150).await;
    let before = route.started_images("low");
    route.wait_for("normal", 400).await;
    let beside = route.started_images("low") - before;
    assert!((15..=160).contains(&beside), "{beside} of low priority beside 250 of normal");
    kill(&mut low).await;
    kill(&mut normal).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_route_that_stands_still_holds_up_no_other_of_its_batch() {
    let route = RouteFixture::new().await;
    route.fill("still", 3_000);
    let other = FaultRegistry::start().await;
    let image = images::single("other");
    (0..20).for_each(|tag| other.push("other/r0", &format!("v{tag}"), &image));
    // Its tags are listed after the others have filled their queue.
    let listed = Arc::new(Semaphore::new(0));
    other.on(RequestType::Tags).always().act(FaultAction::Gate(listed.clone()));
    let stalled = RequestMatcher::any().when(|request| is_first_request_below(request, "still"));
    let stalled = route.source.on(stalled).always().act(FaultAction::StallForever);
    // One worker far from a source that does not respond, and one next to the other.
    let worker = |registry: &str| {
        let worker = route.cluster.worker("").args(["--concurrency", "4", "--registries", registry]);
        worker.spawn()
    };
    let (_far, _near) = (worker(&route.source.host()), worker(&other.host()));
    let config = format!("{}- from: {}/other/r0\n", route.config("still", ""), other.host());
    let mut run = route.cluster.imgsync(&config).args(["run", "--json"]).spawn();
    until("the far one is busy", WAIT_TIMEOUT, || stalled.hits() >= 4).await;
    route.cluster.wait_for_batch(|shown| number(shown, "/counts/total") == 3_000, WAIT_TIMEOUT).await;
    listed.add_permits(100);
    let shown = route.cluster.wait_for_batch(|shown| number(shown, "/counts/copied") == 20, WAIT_TIMEOUT).await;
    assert_eq!(number(&shown, "/counts/total"), 3_020, "{shown:#}");
    let queue_name = format!("w.{}>{}", route.source.host(), route.target.host());
    let waiting = route.cluster.broker.message_count(&queue_name);
    assert!(waiting < 200, "{waiting} messages of a route that drains nothing are with the broker");
    kill(&mut run).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_worker_whose_slots_are_stuck_holds_nothing_that_another_could_do() {
    let route = RouteFixture::new().await;
    route.fill("all", 200);
    // Its connections to the source get no response.
    let unresponsive = FaultRegistry::start().await;
    let stuck = unresponsive.on(RequestMatcher::any()).always().act(FaultAction::StallForever);
    let stuck_worker =
        format!("registries:\n  \"{}\": {{endpoint: \"{}\"}}\n", route.source.host(), unresponsive.url());
    let stuck_worker = route.cluster.worker(&stuck_worker).args(["--concurrency", "4"]).spawn();
    stuck_worker.wait_for_line(|line| line.starts_with("worker "), WAIT_TIMEOUT).await;
    let mut run = route.run("all", "", &[]);
    until("it is stuck", WAIT_TIMEOUT, || stuck.hits() >= 1).await;
    let _near = route.cluster.start_workers(1, SLOTS).await;
    let shown = route.cluster.wait_for_batch(|shown| number(shown, "/counts/copied") >= 196, WAIT_TIMEOUT).await;
    assert_eq!(number(&shown, "/counts/running"), 4, "{shown:#}");
    let queue_name = format!("w.{}>{}", route.source.host(), route.target.host());
    let held = || route.cluster.broker.message_count(&queue_name);
    until("what runs is acknowledged, and nothing else is held", WAIT_TIMEOUT, || held() == 0).await;
    kill(&mut run).await;
}
