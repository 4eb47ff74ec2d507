//! One batch by several workers: distribution, counts, and control from any process.

use std::time::Duration;

use imgsync_tests::cluster::{TestCluster, number};
use imgsync_tests::fault::FaultRegistry;
use imgsync_tests::images::{Layer, TestImage};

const WAIT_TIMEOUT: Duration = Duration::from_secs(60);

/// Pushes small images to several repositories. Returns repository, tag and image.
pub(crate) fn fill(source: &FaultRegistry, repositories: usize, tags: usize) -> Vec<(String, String, TestImage)> {
    let mut images = Vec::new();
    for repository in 0..repositories {
        for tag in 0..tags {
            let image = TestImage::single(&format!("fleet-{repository}-{tag}"))
                .layer(Layer::Shared(format!("base-{}", repository % 3), 20_000))
                .layer(Layer::File(500))
                .build();
            let (repository, tag) = (format!("r{repository:02}"), format!("v{tag}"));
            source.push(&repository, &tag, &image);
            images.push((repository, tag, image));
        }
    }
    images
}

/// Builds the rules that copy them to `m/`.
pub(crate) fn rules(source: &FaultRegistry, target: &FaultRegistry, repositories: usize) -> String {
    let rules: String = (0..repositories).map(|n| format!("- from: {}/r{n:02}\n", source.host())).collect();
    format!("defaults: {{to: {}/m, naming: keep}}\nrules:\n{rules}", target.host())
}

#[tokio::test]
async fn two_workers_share_a_batch_and_the_counts_agree_with_the_target() {
    let cluster = TestCluster::start();
    let (source, target) = tokio::join!(FaultRegistry::start(), FaultRegistry::start());
    let images = fill(&source, 5, 12);
    let config = rules(&source, &target, 5);
    let workers = cluster.start_workers(2, 4).await;
    let run = cluster.imgsync(&config).args(["run", "--json"]).run().await.assert_code(0);
    let json = run.json();
    assert_eq!(number(&json, "/counts/total"), 60);
    assert_eq!(number(&json, "/counts/copied"), 60, "{json}");
    for (repository, tag, image) in &images {
        target.assert_holds(&format!("m/{repository}"), tag, image);
    }
    for worker in &workers {
        let log = worker.stderr();
        assert!(log.contains("copied "), "both had a part in it:\n{log}");
    }

    // A second run queues only what the plain listing cannot show to be unchanged, and copies nothing.
    let again = cluster.imgsync(&config).args(["run", "--json"]).run().await.assert_code(0).json();
    assert_eq!(number(&again, "/counts/unchanged"), 60, "{again}");
    assert_eq!(number(&again, "/bytes/copied"), 0);
    assert!(number(&again, "/requests/target") <= 50 + 5, "the handful that is asked for: {again}");
    let listed = cluster.imgsync("").args(["batch", "list", "--json"]).run().await.assert_code(0);
    assert_eq!(listed.stdout.lines().count(), 2);
    cluster
        .wait_for_batch(
            |shown| shown["state"] == "done" && shown["workers"].as_array().unwrap().len() == 2,
            WAIT_TIMEOUT,
        )
        .await;
}
