//! A cluster of a test's own: a broker, a store, and the programs that use them.

use std::time::{Duration, Instant};

use serde_json::Value;

use crate::program::{Imgsync, Running};
use crate::servers::{RabbitMq, RedisOptions, RedisServer};

/// Broker and store. They end when it is dropped.
#[derive(Debug)]
pub struct Cluster {
    /// The broker.
    pub broker: RabbitMq,
    /// The store.
    pub store: RedisServer,
}

impl Cluster {
    /// Starts both.
    pub fn start() -> Self {
        Self::start_with("", RedisOptions::default())
    }

    /// Starts both, with more lines of `rabbitmq.conf` and options of the store.
    pub fn start_with(broker: &str, store: RedisOptions) -> Self {
        std::thread::scope(|scope| {
            let broker = scope.spawn(|| RabbitMq::start_with(broker));
            let store = RedisServer::start_with(store);
            Self { broker: broker.join().expect("the broker comes up"), store }
        })
    }

    /// `imgsync`, with this configuration, in a home of its own.
    pub fn imgsync(&self, config: &str) -> Imgsync {
        self.configured(Imgsync::new(), config)
    }

    /// `imgsync-worker`, with this configuration, in a home of its own.
    pub fn worker(&self, config: &str) -> Imgsync {
        self.configured(Imgsync::worker(), config)
    }

    fn configured(&self, program: Imgsync, config: &str) -> Imgsync {
        // A file with nothing in it is refused.
        program.file("imgsync.yaml", if config.is_empty() { "registries: {}\n" } else { config });
        program.env("IMGSYNC_BROKER", self.broker.url()).env("IMGSYNC_STORE", self.store.url())
    }

    /// Starts some workers of so many slots.
    pub async fn workers(&self, number: usize, slots: usize) -> Vec<Running> {
        let mut workers = Vec::new();
        for _ in 0..number {
            workers.push(self.worker("").args(["--concurrency", &slots.to_string()]).spawn());
        }
        for worker in &workers {
            worker.wait_for_line(|line| line.starts_with("worker "), Duration::from_secs(30)).await;
        }
        workers
    }

    /// How the newest batch stands, as `batch show --json` has it; none while there is none, or the store does not answer.
    pub async fn show(&self) -> Option<Value> {
        let shown = self.imgsync("").args(["batch", "show", "--json"]).run().await;
        (shown.code == Some(0)).then(|| shown.json())
    }

    /// Waits until the newest batch stands as is wanted, and says how that is.
    ///
    /// # Panics
    /// With how it stands, when it does not in time.
    pub async fn wait_for(&self, wanted: impl Fn(&Value) -> bool, limit: Duration) -> Value {
        let started = Instant::now();
        let mut last = None;
        while started.elapsed() < limit {
            if let Some(shown) = self.show().await {
                if wanted(&shown) {
                    return shown;
                }
                last = Some(shown);
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        panic!("not so within {limit:?}; it stands so: {last:#?}");
    }
}

/// A number in what `--json` prints, such as `/counts/copied`.
pub fn number(json: &Value, pointer: &str) -> u64 {
    json.pointer(pointer).and_then(Value::as_u64).unwrap_or_else(|| panic!("{pointer} is no number in {json}"))
}
