//! Setup shared by the benchmarks.

use std::path::Path;

use imgsync_model::batch::{BatchId, BatchOptions, Endpoint, RepositoryLocator, RuleOptions, TagLocator};
use imgsync_oci::Digest;
use imgsync_store::{Ledger as _, NewBatch, RedisOptions as StoreOptions, RedisStore};
use imgsync_tests::TestCluster;
use imgsync_tests::program::Output;
use imgsync_tests::servers::RedisServerOptions;
use imgsync_worker::cluster::{ClusterEndpoints, ClusterOverrides};

pub(crate) const MIB: u64 = 1 << 20;
/// Registries that receive no requests.
pub(crate) const SOURCE: &str = "source.test";
pub(crate) const TARGET: &str = "target.test";

/// Prints the machine on which the numbers are measured.
pub(crate) fn describe_machine() {
    let processors = std::thread::available_parallelism().map_or(0, usize::from);
    let of = |file: &str, name: &str| {
        let text = std::fs::read_to_string(file).unwrap_or_default();
        let line = text.lines().find_map(|line| line.strip_prefix(name)?.split_once(':'));
        line.map(|(_, value)| value.trim().to_owned()).unwrap_or_default()
    };
    println!(
        "{processors} processors ({}), {} of memory; all on this machine: broker, store, registries, programs",
        of("/proc/cpuinfo", "model name"),
        of("/proc/meminfo", "MemTotal")
    );
    if cfg!(debug_assertions) {
        println!("a debug build: these numbers mean little");
    }
}

/// Prints a title.
pub(crate) fn title(text: &str) {
    println!("\n== {text}");
}

/// Starts broker and store, the store as docs/how-to/cluster.md recommends it.
pub(crate) fn start_cluster() -> TestCluster {
    TestCluster::start_with("", RedisServerOptions { fsync_every_second: true, ..RedisServerOptions::default() })
}

/// Connects to the store of the cluster.
pub(crate) async fn connect_store(cluster: &TestCluster) -> RedisStore {
    let given = ClusterOverrides {
        broker: vec![cluster.broker.url()],
        store: Some(cluster.store.url()),
        ..ClusterOverrides::default()
    };
    let addresses = ClusterEndpoints::resolve(None, &given, Path::new("")).unwrap().unwrap();
    addresses.connect_store(StoreOptions::default()).await.unwrap()
}

/// Creates a batch of one rule.
pub(crate) async fn new_batch(store: &RedisStore) -> BatchId {
    let id = BatchId::generate();
    let rules = vec![RuleOptions {
        verify_every_seconds: 7 * 24 * 60 * 60,
        referrers_every_seconds: 7 * 24 * 60 * 60,
        ..RuleOptions::default()
    }];
    let options = BatchOptions { rules, timeout_seconds: 600, ..BatchOptions::default() }.encode();
    let rules = Digest::sha256(id.to_string().as_bytes());
    store.create(NewBatch { id, rules, options, supersedes: None, fence: None }).await.unwrap();
    id
}

pub(crate) fn repository_locator(registry: &str, path: &str) -> RepositoryLocator {
    RepositoryLocator::new(Endpoint::Registry(registry.parse().unwrap()), path).unwrap()
}

pub(crate) fn tag_locator(home: &std::sync::Arc<RepositoryLocator>, tag: &str) -> TagLocator {
    TagLocator { repository: home.clone(), tag: tag.parse().unwrap() }
}

/// Returns a count of a run that printed JSON.
pub(crate) fn json_count(output: &Output, name: &str) -> u64 {
    imgsync_tests::cluster::number(&output.json(), &format!("/counts/{name}"))
}
