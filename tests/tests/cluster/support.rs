//! Fixture of most cluster tests: two registries, a cluster, and images to copy.

use std::io::Write as _;
use std::sync::Arc;
use std::time::{Duration, Instant};

use imgsync_tests::cluster::{TestCluster, number};
use imgsync_tests::fault::{FaultAction, FaultRegistry, RequestMatcher, RequestType, RuleHandle};
use imgsync_tests::images::{Layer, TestImage};
use imgsync_tests::program::{Output, RunningProgram, Signal};
use serde_json::Value;
use tokio::sync::Semaphore;

use crate::shared_batch::{fill, rules};

/// Generous limit for anything that should not take long.
pub(crate) const WAIT_TIMEOUT: Duration = Duration::from_secs(90);

/// A cluster between two registries.
pub(crate) struct ClusterFixture {
    pub(crate) cluster: TestCluster,
    pub(crate) source: FaultRegistry,
    pub(crate) target: FaultRegistry,
    pub(crate) config: String,
    pub(crate) images: Vec<(String, String, TestImage)>,
}

impl ClusterFixture {
    /// Creates repositories of small images, with this many tags each.
    pub(crate) async fn new(repositories: usize, tags: usize) -> Self {
        Self::with_cluster(TestCluster::start(), repositories, tags).await
    }

    /// As [`ClusterFixture::new`], for tests that stop the broker or change it as a whole.
    pub(crate) async fn with_own_broker(repositories: usize, tags: usize) -> Self {
        Self::with_cluster(TestCluster::with_own_broker(), repositories, tags).await
    }

    pub(crate) async fn with_cluster(cluster: TestCluster, repositories: usize, tags: usize) -> Self {
        let (source, target) = tokio::join!(FaultRegistry::start(), FaultRegistry::start());
        let images = fill(&source, repositories, tags);
        let config = rules(&source, &target, repositories);
        Self { cluster, source, target, config, images }
    }

    /// Adds an image with a layer of this many bytes. Returns the layer's digest.
    pub(crate) fn add_large(&mut self, repository: &str, tag: &str, bytes: u64) -> String {
        let image = TestImage::single(&format!("large-{repository}-{tag}")).layer(Layer::Synthetic(bytes)).build();
        self.source.push(repository, tag, &image);
        let blob = image.largest_blob();
        self.images.push((repository.to_owned(), tag.to_owned(), image));
        blob
    }

    /// Starts `imgsync run`.
    pub(crate) fn run(&self) -> RunningProgram {
        self.cluster.imgsync(&self.config).args(["run", "--json"]).spawn()
    }

    /// Holds tag PUTs at the target until the gate opens, except for the first few.
    pub(crate) fn gate_tags_after(&self, few: u64) -> RequestGate {
        let is_tag = |request: &imgsync_tests::fault::RecordedRequest| {
            request.reference.as_deref().is_some_and(|reference| !reference.contains(':'))
        };
        let gate = Arc::new(Semaphore::new(0));
        let rule = self.target.on(RequestMatcher::kind(RequestType::ManifestPut).when(is_tag)).skip(few).always();
        RequestGate { rule: rule.act(FaultAction::Gate(gate.clone())), gate }
    }

    /// Counts the PUTs of a tag at the target.
    pub(crate) fn puts(&self, repository: &str, tag: &str) -> u64 {
        let repository = format!("m/{repository}");
        self.target.count_where(|request| {
            request.kind == RequestType::ManifestPut
                && request.status == Some(201)
                && request.repository.as_deref() == Some(&repository)
                && request.reference.as_deref() == Some(tag)
        })
    }

    /// Asserts that every image is at the target and was counted once, and that nothing else was.
    pub(crate) fn assert_whole(&self, json: &Value) {
        assert_sums(json);
        let total = self.images.len() as u64;
        assert_eq!(number(json, "/counts/total"), total, "{json}");
        assert_eq!(number(json, "/counts/copied") + number(json, "/counts/unchanged"), total, "{json}");
        self.assert_target();
    }

    /// Asserts that every image is at the target.
    pub(crate) fn assert_target(&self) {
        for (repository, tag, image) in &self.images {
            self.target.assert_holds(&format!("m/{repository}"), tag, image);
        }
        self.target.assert_tags_complete();
    }

    /// Asserts that a run succeeded with all images.
    pub(crate) fn assert_ended_whole(&self, ended: &Output) {
        let Output { code, stderr, .. } = ended;
        assert_eq!(*code, Some(0), "{stderr}");
        self.assert_whole(&ended.json());
    }
}

/// A gate that holds requests.
pub(crate) struct RequestGate {
    rule: RuleHandle,
    gate: Arc<Semaphore>,
}

impl RequestGate {
    /// Releases all waiting and future requests.
    pub(crate) fn open(&self) {
        self.rule.remove();
        self.gate.add_permits(100_000);
    }

    /// Releases this many waiting or future requests.
    pub(crate) fn release(&self, number: usize) {
        self.gate.add_permits(number);
    }

    /// Counts the requests that have arrived.
    pub(crate) fn waiting(&self) -> u64 {
        self.rule.hits()
    }

    /// Waits until this many requests have arrived.
    pub(crate) async fn wait_for(&self, count: u64) {
        until(&format!("{count} requests at the gate"), WAIT_TIMEOUT, || self.waiting() >= count).await;
    }
}

/// Waits until a condition holds.
pub(crate) async fn until(what: &str, limit: Duration, condition: impl Fn() -> bool) {
    let started = Instant::now();
    while !condition() {
        assert!(started.elapsed() < limit, "{what}: not within {limit:?}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// Asserts that the counts of results add up to the total.
pub(crate) fn assert_sums(json: &Value) {
    let parts = ["waiting", "running", "copied", "unchanged", "failed", "cancelled"];
    let sum: u64 = parts.iter().map(|part| number(json, &format!("/counts/{part}"))).sum();
    assert_eq!(sum, number(json, "/counts/total"), "{json}");
}

/// Kills a process and waits for its exit.
pub(crate) async fn kill(running: &mut RunningProgram) {
    running.signal(Signal::KILL);
    running.wait().await;
}

/// Returns the client ports of the requests for a blob that are being answered.
pub(crate) fn readers(registry: &FaultRegistry, blob: &str) -> Vec<u16> {
    let requests = registry.requests_of_kind(RequestType::BlobGet);
    let its = requests.iter().filter(|request| request.reference.as_deref() == Some(blob));
    its.map(|request| request.remote_port).collect()
}

/// Waits until a blob was requested this often, and returns which worker sent the last request.
pub(crate) async fn reader_of(registry: &FaultRegistry, blob: &str, times: usize, workers: &[RunningProgram]) -> usize {
    registry.wait_until(|registry| readers(registry, blob).len() >= times, WAIT_TIMEOUT).await;
    let port = readers(registry, blob)[times - 1];
    let found = workers.iter().position(|worker| worker.has_connection_from(port));
    found.unwrap_or_else(|| panic!("none of the workers has the connection from port {port}"))
}

/// Prints a line on standard error, whatever captures the output of tests.
pub(crate) fn print_line(line: &str) {
    let _ = writeln!(std::io::stderr(), "{line}");
}

/// Returns the value of a variable of the environment, if it is set and of this type.
pub(crate) fn chosen<T: std::str::FromStr>(name: &str) -> Option<T> {
    std::env::var(name).ok().and_then(|text| text.parse().ok())
}
