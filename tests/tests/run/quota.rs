//! A source with a pull quota per window, and a machine with a monthly traffic quota.

use std::time::Duration;

use imgsync_tests::Imgsync;
use imgsync_tests::cluster::number;
use imgsync_tests::fault::{FaultRegistry, RequestType};
use imgsync_tests::images::{Layer, TestImage};

#[tokio::test]
async fn a_batch_larger_than_a_quota_waits_for_its_next_window_and_spends_no_attempt() {
    let source = FaultRegistry::builder().pulls((100, Duration::from_secs(20))).start().await;
    let target = FaultRegistry::start().await;
    let mut images = Vec::new();
    for tag in 0..150 {
        let image = TestImage::single(&format!("quota-{tag}")).layer(Layer::File(300)).build();
        source.push("a", &format!("v{tag}"), &image);
        images.push((format!("v{tag}"), image));
    }
    let config = format!("rules: [{{from: {}/a, to: {}/m, naming: keep}}]\n", source.host(), target.host());
    let imgsync = Imgsync::new();
    imgsync.file("imgsync.yaml", &config);
    // With a single attempt, any refused image would fail.
    let mut run = imgsync.again().args(["run", "--json", "--attempts", "1"]).limit(Duration::from_secs(120)).spawn();
    run.wait_for_line(|line| line.contains("starts before") && line.contains(" UTC"), Duration::from_secs(60)).await;
    let shown = imgsync.again().args(["batch", "show", "--json"]).run().await.assert_code(0).json();
    let waits = shown["rate_limit_messages"].to_string();
    assert!(waits.contains(&source.host()) && waits.contains("held until 2"), "{shown}");
    let json = run.wait().await.assert_code(0).json();
    assert_eq!((number(&json, "/counts/copied"), number(&json, "/counts/failed")), (150, 0), "{json}");
    for (tag, image) in &images {
        target.assert_holds("m/a", tag, image);
    }
    // Only requests in flight when the quota ran out were refused.
    let refused = source.count_where(|request| request.status == Some(429));
    assert!(refused <= 20, "{refused} were refused");

    source.clear_requests();
    imgsync.again().args(["run", "--json"]).run().await.assert_code(0);
    assert_eq!(source.count(RequestType::ManifestGet), 0, "what is unchanged costs no pull");
}

#[tokio::test]
async fn what_a_month_allows_is_kept_from_run_to_run_and_no_more_is_begun() {
    let (source, target) = tokio::join!(FaultRegistry::start(), FaultRegistry::start());
    for tag in 0..3 {
        let image = TestImage::single(&format!("traffic-{tag}")).layer(Layer::File(400_000)).build();
        source.push("a", &format!("v{tag}"), &image);
    }
    let rule = |tags: &str| {
        let (source, target) = (source.host(), target.host());
        format!("monthly_quota: 700KB\nrules: [{{from: {source}/a, tags: {{include: [{tags}]}}, to: {target}/m}}]\n")
    };
    let imgsync = Imgsync::new();
    imgsync.file("imgsync.yaml", rule("v0"));
    imgsync.again().arg("run").run().await.assert_code(0);
    imgsync.file("imgsync.yaml", rule("v1, v2"));
    source.clear_requests();
    let mut run = imgsync.again().arg("run").spawn();
    run.wait_for_line(|line| line.contains("it takes no tasks until next"), Duration::from_secs(60)).await;
    assert_eq!(source.count(RequestType::BlobGet), 0, "{}", source.describe_requests());
    run.signal(imgsync_tests::program::Signal::TERM);
    run.wait().await.assert_code(4);
}
