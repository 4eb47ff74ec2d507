//! Setup shared by the benchmarks.

use std::path::Path;

use imgsync_common::batch::{BatchId, End, Home, Options, Place, RuleOptions};
use imgsync_common::image::Digest;
use imgsync_common::store::{Ledger as _, NewBatch, RedisOptions as StoreOptions, RedisStore};
use imgsync_tests::Cluster;
use imgsync_tests::program::Output;
use imgsync_tests::servers::RedisOptions;
use imgsync_worker::cluster::{Addresses, Given};

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
        println!("a build without optimizations: these figures say little");
    }
}

/// Prints a title.
pub(crate) fn title(text: &str) {
    println!("\n== {text}");
}

/// Starts broker and store, the store as docs/cluster.md recommends it.
pub(crate) fn cluster() -> Cluster {
    Cluster::start_with("", RedisOptions { loses_a_second: true, ..RedisOptions::default() })
}

/// Connects to the store of the cluster.
pub(crate) async fn store(cluster: &Cluster) -> RedisStore {
    let given = Given { broker: Some(cluster.broker.url()), store: Some(cluster.store.url()), key: None };
    let addresses = Addresses::resolve(None, &given, Path::new("")).unwrap().unwrap();
    addresses.store(StoreOptions::default()).await.unwrap()
}

/// Creates a batch of one rule.
pub(crate) async fn new_batch(store: &RedisStore) -> BatchId {
    let id = BatchId::generate();
    let rules = vec![RuleOptions {
        verify_every_seconds: 7 * 24 * 60 * 60,
        referrers_every_seconds: 7 * 24 * 60 * 60,
        ..RuleOptions::default()
    }];
    let options = Options { rules, timeout_seconds: 600, ..Options::default() }.encode();
    let rules = Digest::sha256(id.to_string().as_bytes());
    store.create(NewBatch { id, rules, options, supersedes: None }).await.unwrap();
    id
}

pub(crate) fn home(registry: &str, path: &str) -> Home {
    Home::new(End::Registry(registry.parse().unwrap()), path).unwrap()
}

pub(crate) fn place(home: &std::sync::Arc<Home>, tag: &str) -> Place {
    Place { home: home.clone(), tag: tag.parse().unwrap() }
}

/// Returns a count of a run that printed JSON.
pub(crate) fn count(output: &Output, name: &str) -> u64 {
    imgsync_tests::cluster::number(&output.json(), &format!("/counts/{name}"))
}
