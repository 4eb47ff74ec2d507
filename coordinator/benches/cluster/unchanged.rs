//! A run of unchanged tags in a cluster: the listings show that, and nothing is queued.

use imgsync_tests::fault::FaultRegistry;
use imgsync_tests::program::Output;
use imgsync_tests::{TestCluster, images};

use crate::setup::{self, MIB, json_count};

/// Tags per repository.
const TAGS: usize = 100;

pub(crate) async fn run(tags: usize) {
    setup::title(&format!("{tags} unchanged tags, Google style at both ends, by the cluster, two workers waiting"));
    println!(
        "{:<34} {:>8} {:>8} {:>9} {:>8} {:>8} {:>8} {:>11}",
        "", "seconds", "CPU s", "peak MiB", "source", "target", "queued", "store B/tag"
    );
    let repositories = tags / TAGS;
    let cluster = setup::start_cluster();
    let google = || FaultRegistry::builder().google().start();
    let (source, target) = tokio::join!(google(), google());
    for repository in 0..repositories {
        let image = images::single(&format!("unchanged-{repository}"));
        for (registry, name) in [(&source, format!("p/r{repository}")), (&target, format!("m/p/r{repository}"))] {
            registry.push(&name, "v0", &image);
            (1..TAGS).for_each(|tag| registry.move_tag(&name, &format!("v{tag}"), &image.root));
        }
    }
    let _fleet = cluster.start_workers(2, 20).await;
    let rules =
        format!("defaults: {{to: {}/m, naming: keep}}\nrules:\n- from: {}/p/**\n", target.host(), source.host());
    let rate_limited = format!(
        "registries:\n  \"{}\": {{requests_per_second: 10000}}\n  \"{}\": {{requests_per_second: 10000}}\n{rules}",
        source.host(),
        target.host()
    );
    for (what, config) in
        [("first run", &rules), ("second run", &rules), ("third, requests_per_second: 10000", &rate_limited)]
    {
        source.clear_requests();
        target.clear_requests();
        let output = run_imgsync(&cluster, config).await;
        assert_eq!(json_count(&output, "unchanged"), (repositories * TAGS) as u64, "{}", output.stdout);
        // A route has a queue once something was published in it.
        let queued = cluster.broker.message_counts().keys().filter(|name| name.starts_with("w.")).count();
        assert_eq!(queued, 0);
        let bytes = cluster.store.key_memory_bytes("imgsync:*");
        println!(
            "{what:<34} {:>8.2} {:>8.2} {:>9} {:>8} {:>8} {queued:>8} {:>11.1}",
            output.elapsed.as_secs_f64(),
            output.cpu_seconds,
            output.peak_rss_bytes / MIB,
            source.total(),
            target.total(),
            bytes as f64 / (repositories * TAGS) as f64
        );
    }
}

async fn run_imgsync(cluster: &TestCluster, config: &str) -> Output {
    let run = cluster.imgsync(config).args(["run", "--json", "--quiet"]);
    run.limit(std::time::Duration::from_secs(600)).run().await.assert_code(0)
}
