//! A throttling registry is left alone by all workers, and no other route waits for it (fault row 23). The digest cache
//! is imported.

use std::time::Duration;

use imgsync_tests::Imgsync;
use imgsync_tests::cluster::{TestCluster, number};
use imgsync_tests::fault::{FaultAction, FaultRegistry, RequestMatcher};

use crate::shared_batch::{fill, rules};

#[tokio::test]
async fn a_target_that_throttles_delays_its_own_routes_alone_and_costs_no_attempts() {
    let cluster = TestCluster::start();
    let (source, throttled, free) =
        tokio::join!(FaultRegistry::start(), FaultRegistry::start(), FaultRegistry::start());
    let images = fill(&source, 2, 15);
    // Longer than a worker waits with a task in hand: the task is rescheduled and its route held.
    let rule = throttled.on(RequestMatcher::any()).always().act(FaultAction::too_many_requests("31"));
    let config = format!(
        "rules:\n- {{from: {s}/r00, to: {t}/m, naming: keep}}\n- {{from: {s}/r01, to: {f}/m, naming: keep}}\n",
        s = source.host(),
        t = throttled.host(),
        f = free.host()
    );
    let _workers = cluster.start_workers(2, 4).await;
    let mut run =
        cluster.imgsync(&config).args(["run", "--json", "--attempts", "2"]).limit(Duration::from_secs(200)).spawn();
    free.wait_until(|free| free.tags_in_all() == 15, Duration::from_secs(30)).await;
    assert_eq!(throttled.tags_in_all(), 0, "at full speed while the other was left alone");
    let asked = throttled.total();
    rule.remove();
    let output = tokio::time::timeout(Duration::from_secs(180), run.wait()).await.expect("it ends").assert_code(0);
    let json = output.json();
    assert_eq!((number(&json, "/counts/copied"), number(&json, "/counts/failed")), (30, 0), "{json}");
    assert!(asked <= 30, "it was asked {asked} times before it was left alone");
    for (repository, tag, image) in &images {
        let target = if repository == "r00" { &throttled } else { &free };
        target.assert_holds(&format!("m/{repository}"), tag, image);
    }
}

#[tokio::test]
async fn the_digest_cache_of_one_process_is_imported_into_the_cluster() {
    let cluster = TestCluster::start();
    let (source, target) = tokio::join!(FaultRegistry::start(), FaultRegistry::start());
    fill(&source, 3, 20);
    let config = rules(&source, &target, 3);
    let alone = Imgsync::new();
    alone.file("imgsync.yaml", &config);
    alone.again().arg("run").run().await.assert_code(0);
    let file = alone.work_dir().join("cache.jsonl");
    alone.again().args(["cache", "export"]).arg(&file).run().await.assert_code(0);
    let imported = cluster.imgsync("").args(["cache", "import"]).arg(&file).run().await.assert_code(0);
    assert!(imported.stderr.contains("60 tags"), "{}", imported.stderr);
    let back = cluster.imgsync("").args(["cache", "export"]).run().await.assert_code(0);
    assert_eq!(back.stdout, std::fs::read_to_string(&file).unwrap());

    target.clear_requests();
    let _workers = cluster.start_workers(1, 8).await;
    let json = cluster.imgsync(&config).args(["run", "--json"]).run().await.assert_code(0).json();
    assert_eq!(number(&json, "/counts/unchanged"), 60, "{json}");
    assert!(target.total() <= 53, "the handful that each run asks for, and no more: {}", target.total());
}
