//! A blob that several workers need is transferred by one (fault rows 26 to 29).

use std::time::Duration;

use imgsync_tests::cluster::{TestCluster, number};
use imgsync_tests::fault::{FaultAction, FaultRegistry, MountPolicy, RequestMatcher, RequestType};
use imgsync_tests::images::{Layer, TestImage};

const WAIT_TIMEOUT: Duration = Duration::from_secs(90);

/// Pushes images to this many repositories, all with the same large layer.
fn fill(
    source: &FaultRegistry,
    repositories: usize,
    tags: usize,
    size: u64,
) -> (Vec<(String, String, TestImage)>, String) {
    let image = |tag| {
        let image = TestImage::single(&format!("flight-{tag}"));
        image.layer(Layer::Shared("large".into(), size)).layer(Layer::File(300)).build()
    };
    let made: Vec<TestImage> = (0..tags).map(image).collect();
    let mut images = Vec::new();
    for repository in 0..repositories {
        for (tag, image) in made.iter().enumerate() {
            let image = image.clone();
            let (repository, tag) = (format!("r{repository:02}"), format!("v{tag}"));
            source.push(&repository, &tag, &image);
            images.push((repository, tag, image));
        }
    }
    let large = images[0].2.largest_blob();
    (images, large)
}

fn rules(source: &FaultRegistry, target: &FaultRegistry) -> String {
    format!("defaults: {{to: {}/m, naming: keep}}\nrules:\n- from: {}/**\n", target.host(), source.host())
}

/// Counts the complete uploads of a blob.
fn uploads(target: &FaultRegistry, digest: &str) -> usize {
    let puts = target.requests_of_kind(RequestType::UploadPut);
    let whole = puts.iter().filter(|put| put.status.is_some_and(|status| status == 201));
    whole.filter(|put| put.parameter("digest").as_deref() == Some(digest)).count()
}

fn reads(source: &FaultRegistry, digest: &str) -> u64 {
    source.count_where(|request| request.kind == RequestType::BlobGet && request.reference.as_deref() == Some(digest))
}

#[tokio::test]
async fn a_layer_of_200_images_in_50_repositories_leaves_the_source_once() {
    let cluster = TestCluster::start();
    let (source, target) = tokio::join!(FaultRegistry::start(), FaultRegistry::start());
    let (images, large) = fill(&source, 50, 4, 64 << 20);
    let _workers = cluster.start_workers(4, 4).await;
    let json = cluster.imgsync(&rules(&source, &target)).args(["run", "--json"]).run().await.assert_code(0).json();
    assert_eq!(number(&json, "/counts/copied"), 200, "{json}");
    assert_eq!((reads(&source, &large), uploads(&target, &large)), (1, 1));
    for (repository, tag, image) in &images {
        target.assert_holds(&format!("m/{repository}"), tag, image);
    }
}

#[tokio::test]
async fn a_worker_killed_at_a_layer_that_all_wait_for_is_followed_by_another() {
    let cluster = TestCluster::start();
    let (source, target) = tokio::join!(FaultRegistry::start(), FaultRegistry::start());
    let (images, large) = fill(&source, 8, 2, 4 << 20);
    // The first upload stalls until its worker is killed.
    source
        .on(RequestMatcher::kind(RequestType::BlobGet).reference(&large))
        .times(1)
        .act(FaultAction::StallAfter { bytes: 1 << 20 });
    let workers = cluster.start_workers(3, 4).await;
    let program = cluster.imgsync(&rules(&source, &target)).args(["run", "--json"]);
    let mut run = program.spawn();
    source.wait_until(|source| reads(source, &large) == 1, WAIT_TIMEOUT).await;
    // The worker with an open upload is the one of the three that holds the lease of the blob.
    let holder = cluster.store.command(&["HGET", &format!("imgsync:lease:blob:{}/{large}", target.host()), "holder"]);
    let name = holder.lines().nth(1).expect("somebody holds it").to_owned();
    let worker = workers.iter().find(|worker| name.contains(&format!("-{}-", worker.pid()))).expect("one of ours");
    worker.signal(imgsync_tests::program::Signal::KILL);
    let output = tokio::time::timeout(WAIT_TIMEOUT, run.wait()).await.expect("another goes on").assert_code(0);
    assert_eq!(number(&output.json(), "/counts/copied"), 16);
    assert_eq!((reads(&source, &large), uploads(&target, &large)), (2, 1));
    for (repository, tag, image) in &images {
        target.assert_holds(&format!("m/{repository}"), tag, image);
    }
}

#[tokio::test]
async fn a_layer_that_one_worker_has_brought_is_not_given_to_a_source_that_only_names_it() {
    let cluster = TestCluster::start();
    let (source, target) = tokio::join!(FaultRegistry::start(), FaultRegistry::start());
    let thief = FaultRegistry::builder().lenient().start().await;
    let (_, large) = fill(&source, 1, 1, 2 << 20);
    let named =
        TestImage::single("named").layer(Layer::Shared("large".into(), 2 << 20)).layer(Layer::File(200)).build();
    thief.push("open", "v0", &named);
    thief.delete_blob("open", &large);
    let _workers = cluster.start_workers(3, 2).await;
    let run = async |from: &FaultRegistry, to: &str| {
        let rules =
            format!("defaults: {{to: {}/{to}, naming: keep}}\nrules:\n- from: {}/**\n", target.host(), from.host());
        cluster.imgsync(&rules).args(["run", "--json", "--retry-delay", "10ms"]).run().await
    };
    run(&source, "private").await.assert_code(0);
    run(&thief, "public").await.assert_code(1);
    assert!(target.has_blob("private/r00", &large));
    assert!(!target.has_blob("public/open", &large), "{}", target.describe_requests());
    assert_eq!(target.tag_digest("public/open", "v0"), None);
    // A source that holds the layer is read, even if another worker has already copied it.
    let honest = FaultRegistry::start().await;
    honest.push("open", "v0", &named);
    run(&honest, "public").await.assert_code(0);
    target.assert_holds("public/open", "v0", &named);
    assert_eq!(reads(&honest, &large), 0, "{}", honest.describe_requests());
}

#[tokio::test]
async fn a_target_without_mounts_or_that_lost_a_blob_has_it_sent_again() {
    let cluster = TestCluster::start();
    let source = FaultRegistry::start().await;
    let (images, large) = fill(&source, 3, 1, 2 << 20);
    let _workers = cluster.start_workers(2, 2).await;
    for mounts in [MountPolicy::Ignore, MountPolicy::Mount] {
        let target = FaultRegistry::builder().mounts(mounts).start().await;
        let json = cluster.imgsync(&rules(&source, &target)).args(["run", "--json"]).run().await.assert_code(0).json();
        assert_eq!(number(&json, "/counts/copied"), 3, "{json}");
        if mounts == MountPolicy::Ignore {
            assert_eq!(uploads(&target, &large), 3, "once for each repository");
            continue;
        }
        // The blob index lists a blob that is gone from the target: it is requested, not found, and sent once.
        images.iter().for_each(|(repository, ..)| target.delete_repository(&format!("m/{repository}")));
        target.clear_requests();
        let program = cluster.imgsync(&rules(&source, &target)).args(["run", "--force", "--json"]);
        let json = program.run().await.assert_code(0).json();
        assert_eq!(number(&json, "/counts/copied"), 3, "{json}");
        for (repository, tag, image) in &images {
            target.assert_holds(&format!("m/{repository}"), tag, image);
        }
        assert!(uploads(&target, &large) <= 2, "by each of the workers at the most");
    }
}
