//! Runner tests with an in-memory queue and store: panicking tasks, and leases that expire during a copy.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use imgsync_model::batch::{
    BatchId, BatchOptions, MessageTarget, RepositoryLocator, Route, RuleOptions, TagLocator, TaskResult, TaskSpec,
};
use imgsync_model::event::{TaskCompletion, TaskEvent};
use imgsync_oci::error::ErrorKind;
use imgsync_oci::{Digest, DigestTagHints};
use imgsync_queue::MemoryQueue;
use imgsync_registry::ClientSettings;
use imgsync_registry::credentials::CredentialEnvironment;
use imgsync_registry::event::{Event, Observer};
use imgsync_store::{Batch, CacheScope, ManualClock, NewBatch, PlanSegment, PlanSize, SqliteStore};
use jiff::Timestamp;

use super::*;
use crate::copy::CopyLimits;
use crate::task_events::TaskObserver;

const TEST_TIMEOUT: Duration = Duration::from_secs(30);

/// Calls a function with each event.
struct CallbackObserver<F>(F);

enum AnyEvent<'a> {
    Transfer(&'a Event),
    Task(&'a TaskEvent),
}

impl<F: Fn(AnyEvent<'_>) + Send + Sync> Observer for CallbackObserver<F> {
    fn on_event(&self, event: &Event) {
        (self.0)(AnyEvent::Transfer(event));
    }
}

impl<F: Fn(AnyEvent<'_>) + Send + Sync> TaskObserver for CallbackObserver<F> {
    fn on_task(&self, event: &TaskEvent) {
        (self.0)(AnyEvent::Task(event));
    }
}

struct RunnerFixture {
    runner: Runner,
    store: Arc<dyn Store>,
    batch: BatchId,
    targets: Vec<TagLocator>,
}

impl RunnerFixture {
    /// Creates a batch that copies these tags from one layout to another, and a runner with one slot.
    async fn new(
        clock: &Arc<ManualClock>,
        folder: &Path,
        tags: &[&str],
        on: impl Fn(AnyEvent<'_>) + Send + Sync + 'static,
    ) -> RunnerFixture {
        let queue = Arc::new(MemoryQueue::new());
        let store: Arc<dyn Store> = Arc::new(SqliteStore::in_memory(clock.clone()).await.unwrap());
        let end = |name: &str| format!("oci:{}", folder.join(name).display()).parse().unwrap();
        let (source, target) =
            (RepositoryLocator::new(end("source"), "").unwrap(), RepositoryLocator::new(end("target"), "").unwrap());
        let route = Route::anonymous(source.endpoint().clone(), target.endpoint().clone());
        let (source, target) = (Arc::new(source), Arc::new(target));
        let batch = BatchId::generate();
        let options = BatchOptions { rules: vec![RuleOptions::default()], ..BatchOptions::default() }.encode();
        store
            .create(NewBatch { id: batch, rules: Digest::sha256(b"rules"), options, supersedes: None, fence: None })
            .await
            .unwrap();
        let planned = |tag: &&str| TaskSpec {
            rule: 0,
            source: TagLocator { repository: source.clone(), tag: tag.parse().unwrap() },
            digest: None,
            target: TagLocator { repository: target.clone(), tag: tag.parse().unwrap() },
            digest_tags: DigestTagHints::default(),
        };
        let planned: Vec<TaskSpec> = tags.iter().map(planned).collect();
        let tasks = planned.iter().map(|task| (task.clone(), None)).collect();
        let segment = PlanSegment { key: "0 all".to_owned(), listed_at: clock.now(), tasks };
        store.append(batch, segment).await.unwrap();
        store.complete_plan(batch, PlanSize::default()).await.unwrap();
        let task_refs = (0..).take(tags.len()).map(|index| TaskRef { batch, run: 0, index }).collect();
        store.mark_published(batch, task_refs).await.unwrap();
        let messages: Vec<(Route, Message)> = (0..)
            .zip(&planned)
            .map(|(index, task)| {
                let message = Message {
                    batch,
                    run: 0,
                    rule: 0,
                    source: task.source.clone(),
                    digest: None,
                    listed_at: clock.now(),
                    priority: Default::default(),
                    chunk: None,
                    digest_tags: DigestTagHints::default(),
                    targets: vec![MessageTarget { index, locator: task.target.clone() }],
                };
                (route.clone(), message)
            })
            .collect();
        assert!(queue.publish(&messages).await.unwrap().rejected.is_empty());
        let client = Client::new(ClientSettings::default(), CredentialEnvironment::default());
        let copier = Copier::new(client.clone(), CopyLimits::default());
        let settings =
            RunnerSettings { name: "one".to_owned(), slots: 1, compared_ahead: 0, max_attempts: 1, in_cluster: false };
        let (selector, events) =
            (RouteSelector::new(WorkerScope::default()), TaskEvents::new(Arc::new(CallbackObserver(on))));
        let runner = Runner::new(queue, store.clone(), clock.clone(), (client, copier), settings, selector, events);
        let targets = planned.into_iter().map(|task| task.target).collect();
        RunnerFixture { runner, store, batch, targets }
    }

    /// Runs until the batch has ended.
    async fn run(&self) -> Batch {
        let stop = Shutdown::default();
        let ended = async {
            loop {
                let batch = self.store.batch(self.batch).await.unwrap().unwrap();
                if batch.ended_at.is_some() {
                    stop.drain.cancel();
                    return batch;
                }
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        };
        let (batch, ()) = tokio::time::timeout(TEST_TIMEOUT, async { tokio::join!(ended, self.runner.run(&stop)) })
            .await
            .expect("the batch ends, and nothing runs any more");
        batch
    }
}

/// Writes an image without layers to a layout.
fn write_layout(folder: &Path, tag: &str) -> Digest {
    let blobs = folder.join("blobs/sha256");
    std::fs::create_dir_all(&blobs).unwrap();
    let write = |content: String| {
        let digest = Digest::sha256(content.as_bytes());
        std::fs::write(blobs.join(digest.hex()), &content).unwrap();
        (digest, content.len())
    };
    let (config, size) = write("{}".to_owned());
    let kind = "application/vnd.oci.image.manifest.v1+json";
    let (manifest, its_size) = write(format!(
        r#"{{"schemaVersion":2,"mediaType":"{kind}","config":{{"mediaType":"application/vnd.oci.image.config.v1+json","digest":"{config}","size":{size}}},"layers":[]}}"#
    ));
    let index = format!(
        r#"{{"schemaVersion":2,"manifests":[{{"mediaType":"{kind}","digest":"{manifest}","size":{its_size},"annotations":{{"org.opencontainers.image.ref.name":"{tag}"}}}}]}}"#
    );
    std::fs::write(folder.join("index.json"), index).unwrap();
    std::fs::write(folder.join("oci-layout"), r#"{"imageLayoutVersion":"1.0.0"}"#).unwrap();
    manifest
}

#[tokio::test]
async fn a_task_that_panics_is_a_failed_attempt_and_frees_its_slot() {
    let folder = tempfile::tempdir().unwrap();
    let clock = Arc::new(ManualClock::starting_at(Timestamp::now()));
    // The source is missing: every task fails by itself, except one that panics before its copy and one that panics
    // after.
    let on = |event: AnyEvent<'_>| match event {
        AnyEvent::Task(TaskEvent::Started { task, .. }) if task.index == 1 => panic!("the first {} is odd", "panic"),
        AnyEvent::Task(TaskEvent::Ended { task, .. }) if task.index == 2 => panic!("the second panic"),
        _ => {}
    };
    let fixture = RunnerFixture::new(&clock, folder.path(), &["v0", "v1", "v2", "v3"], on).await;
    let batch = fixture.run().await;
    assert_eq!((batch.counts.failed, batch.counts.total), (4, 4), "{batch:?}");
    assert_eq!(fixture.runner.running_tasks(), []);
    let failures = fixture.store.failures(fixture.batch, 0, 10).await.unwrap();
    let words: BTreeMap<u32, (ErrorKind, String, u32)> = failures
        .into_iter()
        .map(|failed| (failed.task.index, (failed.failure.kind, failed.failure.error, failed.failure.attempts)))
        .collect();
    let (kind, error, attempts) = &words[&1];
    assert_eq!((*kind, *attempts), (ErrorKind::Local, 1));
    assert!(error.contains("internal error: panicked: the first panic is odd"), "{error}");
    // A panic after the result was counted does not change it.
    assert_eq!((words[&2].0, words[&3].0), (ErrorKind::NotFound, ErrorKind::NotFound), "{words:?}");
}

#[tokio::test]
async fn a_tag_whose_lease_expires_before_it_is_recorded_is_not_recorded() {
    let now = Timestamp::now();
    for expires in [false, true] {
        let folder = tempfile::tempdir().unwrap();
        let digest = write_layout(&folder.path().join("source"), "v1");
        let (clock, ends) = (Arc::new(ManualClock::starting_at(now)), Arc::new(Mutex::new(Vec::new())));
        let (its_clock, its_ends) = (clock.clone(), ends.clone());
        let on = move |event: AnyEvent<'_>| match event {
            // The tag is written; for the store, whose clock counts, the lease then expires.
            AnyEvent::Transfer(Event::ManifestPut { .. }) if expires => {
                its_clock.advance(LEASE_TTL + Duration::from_secs(1))
            }
            AnyEvent::Task(TaskEvent::Ended { completion, .. }) => its_ends.lock().unwrap().push(completion.clone()),
            _ => {}
        };
        let fixture = RunnerFixture::new(&clock, folder.path(), &["v1"], on).await;
        let batch = fixture.run().await;
        assert_eq!(batch.counts.copied, 1, "{:?}", ends.lock().unwrap());
        assert!(matches!(ends.lock().unwrap()[..], [TaskCompletion::Finished { result: TaskResult::Copied, .. }]));
        let target = &fixture.targets[0];
        let scope = CacheScope {
            repository: (*target.repository).clone(),
            options: RuleOptions::default().fingerprint().into(),
        };
        let known = fixture.store.cached_tags(&scope, std::slice::from_ref(&target.tag)).await.unwrap();
        let written = fixture.store.written_digests(&target.repository).await.unwrap();
        match expires {
            false => {
                assert_eq!(known[0].as_ref().map(|known| &known.target), Some(&digest));
                assert_eq!(written.get(&target.tag), Some(&digest));
            }
            true => assert_eq!((known, written.len()), (vec![None], 0)),
        }
    }
}
