//! A fleet at a source that counts requests.

use std::time::Duration;

use imgsync_tests::cluster::{Cluster, number};
use imgsync_tests::fault::FaultRegistry;

use crate::fleet::{fill, rules};

/// Requests at the source, and those that it refused, of a batch of 60 images by so many workers.
async fn batch(workers: usize, settings: &str) -> (u64, u64) {
    let cluster = Cluster::start();
    let source = FaultRegistry::builder().rate((20.0, 20.0)).start().await;
    let target = FaultRegistry::start().await;
    let images = fill(&source, 3, 20);
    let config = match settings {
        "" => String::new(),
        settings => format!("registries: {{\"{}\": {{{settings}}}}}\n", source.host()),
    };
    let mut running = Vec::new();
    for _ in 0..workers {
        running.push(cluster.worker(&config).args(["--concurrency", "2"]).spawn());
    }
    for worker in &running {
        worker.wait_for_line(|line| line.starts_with("worker "), Duration::from_secs(30)).await;
    }
    let config = format!("{config}{}", rules(&source, &target, 3));
    let json = cluster.imgsync(&config).args(["run", "--json"]).run().await.assert_code(0).json();
    assert_eq!(number(&json, "/counts/copied"), 60, "{json}");
    for (repository, tag, image) in &images {
        target.assert_holds(&format!("m/{repository}"), tag, image);
    }
    (source.total_with_all(), source.count_where(|request| request.status == Some(429)))
}

#[tokio::test]
async fn eight_workers_keep_a_limit_that_is_configured() {
    let (total, refused) = batch(8, "requests_per_second: 20").await;
    assert!(refused * 100 <= total, "{refused} of {total} requests were refused");
}

#[tokio::test]
async fn a_limit_that_nobody_told_us_refuses_eight_workers_no_more_than_one() {
    let ((_, one), (total, eight)) = (batch(1, "").await, batch(8, "").await);
    assert!(one > 0, "the limit was met");
    assert!(eight <= one + 16, "{one} requests of one worker were refused, {eight} (of {total}) of eight");
}
