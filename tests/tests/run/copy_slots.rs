//! `--concurrency` limits the images that are copied; as many again are compared, or wait for a slot.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use imgsync_tests::fault::{FaultAction, FaultRegistry, RequestMatcher, RequestType};
use imgsync_tests::images;
use imgsync_tests::program::{Imgsync, RunningProgram};
use rustix::process::Signal;
use tokio::sync::Semaphore;

use super::end_to_end::{configured, run};

const WAIT_TIMEOUT: Duration = Duration::from_secs(60);
/// The offer of a blob, with which a copy begins to write.
const OFFER: &[RequestType] = &[RequestType::UploadStart, RequestType::UploadMount];

/// Starts two registries, the source with an image in each of `count` repositories, and the program that mirrors them.
async fn repositories(count: usize) -> (FaultRegistry, FaultRegistry, Imgsync) {
    let (source, target) = tokio::join!(FaultRegistry::start(), FaultRegistry::start());
    for number in 0..count {
        source.push(&format!("r{number}"), "1", &images::single(&format!("slots-{number}")));
    }
    let program = configured(&format!(
        "defaults: {{to: {}/m, naming: keep}}\nrules: [{{from: '{}/r*'}}]\n",
        target.host(),
        source.host()
    ));
    (source, target, program)
}

/// Adds a rule that holds such requests until its gate is opened.
fn hold(registry: &FaultRegistry, requests: impl Into<RequestMatcher>) -> Arc<Semaphore> {
    let gate = Arc::new(Semaphore::new(0));
    registry.on(requests).always().act(FaultAction::Gate(gate.clone()));
    gate
}

fn open(gate: &Semaphore) {
    gate.add_permits(10_000);
}

/// Returns the number of repositories for which there were requests of these kinds.
fn asked(registry: &FaultRegistry, kinds: &[RequestType]) -> usize {
    let requests = registry.requests().into_iter().filter(|request| kinds.contains(&request.kind));
    requests.filter_map(|request| request.repository).collect::<BTreeSet<_>>().len()
}

/// Waits until the number of repositories asked is `count`, then looks a while whether it stays.
async fn stays_at(registry: &FaultRegistry, kinds: &[RequestType], count: usize) {
    registry.wait_until(|registry| asked(registry, kinds) >= count, WAIT_TIMEOUT).await;
    tokio::time::sleep(Duration::from_millis(300)).await;
    assert_eq!(asked(registry, kinds), count, "{}", registry.describe_requests());
}

/// Starts a run with four slots. Returns when four images are offered to the target, which does not respond until the
/// gate is opened, and four more wait for a slot.
async fn start_held_run(
    source: &FaultRegistry,
    target: &FaultRegistry,
    program: &Imgsync,
) -> (RunningProgram, Arc<Semaphore>) {
    let gate = hold(target, RequestMatcher::kinds(OFFER));
    let file = program.work_dir().join("imgsync.yaml");
    let running = program.again().args(["run", "--json", "--concurrency", "4", "-c"]).arg(&file).spawn();
    tokio::join!(stays_at(source, &[RequestType::ManifestGet], 8), stays_at(target, OFFER, 4));
    (running, gate)
}

#[tokio::test]
async fn twice_as_many_tags_are_compared_at_a_time_as_images_are_copied() {
    const TAGS: usize = 30;
    let (source, target, program) = repositories(TAGS).await;
    // Below four slots, a tag is compared in the slot in which it would be copied.
    for (slots, compared) in [(6, 12), (4, 8), (3, 3), (1, 1)] {
        let slots = slots.to_string();
        let arguments = ["--concurrency", &slots];
        run(&program, &arguments).await.assert_code(0);
        source.clear_requests();
        let gate = hold(&source, RequestType::ManifestHead);
        let ((), output) = tokio::join!(
            async {
                stays_at(&source, &[RequestType::ManifestHead], compared).await;
                open(&gate);
            },
            run(&program, &arguments)
        );
        let json = output.assert_code(0).json();
        assert_eq!(json["counts"]["unchanged"], TAGS, "{json}");
        assert_eq!(source.count(RequestType::ManifestHead), TAGS as u64, "one request for each");
        source.clear_rules();
    }
    assert_eq!(target.tags_in_all(), TAGS);
}

#[tokio::test]
async fn no_more_images_are_copied_at_a_time_than_there_are_slots_while_others_wait_for_one() {
    const TAGS: usize = 30;
    let (source, target, program) = repositories(TAGS).await;
    let gate = hold(&target, RequestMatcher::kinds(OFFER));
    let ((), output) = tokio::join!(
        async {
            // Ten manifests are read; five of these images have a slot.
            tokio::join!(stays_at(&source, &[RequestType::ManifestGet], 10), stays_at(&target, OFFER, 5));
            open(&gate);
        },
        run(&program, &["--concurrency", "5"])
    );
    let json = output.assert_code(0).json();
    assert_eq!(json["counts"]["copied"], TAGS, "{json}");
    target.assert_tags_complete();
}

#[tokio::test]
async fn an_interrupted_run_starts_none_of_the_images_that_wait_for_a_slot_and_the_next_run_copies_them() {
    const TAGS: usize = 12;
    let (source, target, program) = repositories(TAGS).await;
    let (mut running, gate) = start_held_run(&source, &target, &program).await;
    running.signal(Signal::INT);
    // It says so once it takes no more tasks; copies in progress may finish.
    target.wait_until(|_| running.stderr().contains("finishing copies in progress"), WAIT_TIMEOUT).await;
    open(&gate);
    running.wait().await;
    assert_eq!(target.tags_in_all(), 4, "{}", target.describe_requests());
    assert_eq!(asked(&target, OFFER), 4);
    let json = run(&program, &[]).await.assert_code(0).json();
    assert_eq!((&json["counts"]["copied"], &json["counts"]["failed"]), (&8.into(), &0.into()), "{json}");
    assert_eq!(target.tags_in_all(), TAGS);
}

#[tokio::test]
async fn the_wait_for_a_slot_does_not_count_for_the_time_limit_of_an_image() {
    const TAGS: usize = 8;
    let (_source, target, program) = repositories(TAGS).await;
    // Each image takes three seconds. The last four wait as long for their slots.
    target.on(RequestType::ManifestPut).always().act(FaultAction::Delay(Duration::from_secs(3)));
    let arguments = ["--concurrency", "4", "--timeout", "5s", "--attempts", "1"];
    let json = run(&program, &arguments).await.assert_code(0).json();
    assert_eq!(json["counts"]["copied"], TAGS, "{json}");
}

#[tokio::test]
async fn a_paused_batch_copies_none_of_the_images_that_wait_for_a_slot_until_it_is_resumed() {
    const TAGS: usize = 12;
    let (source, target, program) = repositories(TAGS).await;
    let (mut running, gate) = start_held_run(&source, &target, &program).await;
    let batch = async |command: &str| program.again().args(["batch", command]).run().await.assert_code(0);
    batch("pause").await;
    open(&gate);
    target.wait_until(|target| target.tags_in_all() == 4, WAIT_TIMEOUT).await;
    stays_at(&target, OFFER, 4).await;
    batch("resume").await;
    let json = running.wait().await.assert_code(0).json();
    assert_eq!((&json["counts"]["copied"], &json["counts"]["failed"]), (&TAGS.into(), &0.into()), "{json}");
    assert_eq!(target.tags_in_all(), TAGS);
}
