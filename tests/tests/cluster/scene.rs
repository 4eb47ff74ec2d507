//! Two registries, a cluster, and images to copy: what most stories of faults begin with.

use std::sync::Arc;
use std::time::{Duration, Instant};

use imgsync_tests::cluster::{Cluster, number};
use imgsync_tests::fault::{Action, FaultRegistry, Kind, Match, RuleHandle};
use imgsync_tests::images::{Image, Layer};
use imgsync_tests::program::{Output, Running, Signal};
use serde_json::Value;
use tokio::sync::Semaphore;

use crate::fleet::{fill, rules};

/// More than enough for what should not take long.
pub(crate) const PATIENCE: Duration = Duration::from_secs(90);

/// A cluster between two registries.
pub(crate) struct Scene {
    pub(crate) cluster: Cluster,
    pub(crate) source: FaultRegistry,
    pub(crate) target: FaultRegistry,
    pub(crate) config: String,
    pub(crate) images: Vec<(String, String, Image)>,
}

impl Scene {
    /// Small images in some repositories, of so many tags each.
    pub(crate) async fn new(repositories: usize, tags: usize) -> Self {
        Self::with(Cluster::start(), repositories, tags).await
    }

    pub(crate) async fn with(cluster: Cluster, repositories: usize, tags: usize) -> Self {
        let (source, target) = tokio::join!(FaultRegistry::start(), FaultRegistry::start());
        let images = fill(&source, repositories, tags);
        let config = rules(&source, &target, repositories);
        Self { cluster, source, target, config, images }
    }

    /// One more image, with a layer of so many bytes. Returns the layer's digest.
    pub(crate) fn add_large(&mut self, repository: &str, tag: &str, bytes: u64) -> String {
        let image = Image::single(&format!("large-{repository}-{tag}")).layer(Layer::Synthetic(bytes)).build();
        self.source.push(repository, tag, &image);
        let blob = image.largest_blob();
        self.images.push((repository.to_owned(), tag.to_owned(), image));
        blob
    }

    /// Starts `imgsync run`.
    pub(crate) fn run(&self) -> Running {
        self.cluster.imgsync(&self.config).args(["run", "--json"]).spawn()
    }

    /// Tags at the target are not put before the gate is opened, but for the first few.
    pub(crate) fn hold_tags_after(&self, few: u64) -> Gate {
        let is_tag = |request: &imgsync_tests::fault::Record| {
            request.reference.as_deref().is_some_and(|reference| !reference.contains(':'))
        };
        let gate = Arc::new(Semaphore::new(0));
        let rule = self.target.on(Match::kind(Kind::ManifestPut).when(is_tag)).skip(few).always();
        Gate { rule: rule.act(Action::Gate(gate.clone())), gate }
    }

    /// How often a tag was put at the target.
    pub(crate) fn puts(&self, repository: &str, tag: &str) -> u64 {
        let repository = format!("m/{repository}");
        self.target.count_where(|request| {
            request.kind == Kind::ManifestPut
                && request.status == Some(201)
                && request.repository.as_deref() == Some(&repository)
                && request.reference.as_deref() == Some(tag)
        })
    }

    /// Demands that every image is at the target, that each was counted once, and nothing else was.
    pub(crate) fn assert_whole(&self, json: &Value) {
        assert_sums(json);
        let total = self.images.len() as u64;
        assert_eq!(number(json, "/counts/total"), total, "{json}");
        assert_eq!(number(json, "/counts/copied") + number(json, "/counts/unchanged"), total, "{json}");
        self.assert_target();
    }

    /// Demands that every image is at the target.
    pub(crate) fn assert_target(&self) {
        for (repository, tag, image) in &self.images {
            self.target.assert_holds(&format!("m/{repository}"), tag, image);
        }
        self.target.assert_tags_complete();
    }

    /// Demands that a run ended well, with all that there is.
    pub(crate) fn assert_ended_whole(&self, ended: &Output) {
        let Output { code, stderr, .. } = ended;
        assert_eq!(*code, Some(0), "{stderr}");
        self.assert_whole(&ended.json());
    }
}

/// Requests that wait.
pub(crate) struct Gate {
    rule: RuleHandle,
    gate: Arc<Semaphore>,
}

impl Gate {
    /// Lets all through that wait or will come.
    pub(crate) fn open(&self) {
        self.rule.remove();
        self.gate.add_permits(100_000);
    }

    /// How many have come.
    pub(crate) fn waiting(&self) -> u64 {
        self.rule.hits()
    }

    /// Waits until so many have come.
    pub(crate) async fn wait_for(&self, count: u64) {
        until(&format!("{count} requests at the gate"), PATIENCE, || self.waiting() >= count).await;
    }
}

/// Waits for a condition.
pub(crate) async fn until(what: &str, limit: Duration, condition: impl Fn() -> bool) {
    let started = Instant::now();
    while !condition() {
        assert!(started.elapsed() < limit, "{what}: not within {limit:?}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// Demands that the counts of outcomes add up to the total.
pub(crate) fn assert_sums(json: &Value) {
    let parts = ["waiting", "running", "copied", "unchanged", "failed", "cancelled"];
    let sum: u64 = parts.iter().map(|part| number(json, &format!("/counts/{part}"))).sum();
    assert_eq!(sum, number(json, "/counts/total"), "{json}");
}

/// Ends a process without warning, and waits until it has ended.
pub(crate) async fn kill(running: &mut Running) {
    running.signal(Signal::KILL);
    running.wait().await;
}

/// The requests for a blob at a registry that have begun to be answered, by the client's port.
pub(crate) fn readers(registry: &FaultRegistry, blob: &str) -> Vec<u16> {
    let requests = registry.requests_of(Kind::BlobGet);
    let its = requests.iter().filter(|request| request.reference.as_deref() == Some(blob));
    its.map(|request| request.remote_port).collect()
}

/// Waits until a blob has been asked for so often, and says by which of the workers the last time.
pub(crate) async fn reader_of(registry: &FaultRegistry, blob: &str, times: usize, workers: &[Running]) -> usize {
    registry.wait_until(|registry| readers(registry, blob).len() >= times, PATIENCE).await;
    let port = readers(registry, blob)[times - 1];
    let found = workers.iter().position(|worker| worker.has_connection_from(port));
    found.unwrap_or_else(|| panic!("none of the workers has the connection from port {port}"))
}
