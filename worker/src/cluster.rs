//! The way into a cluster: broker and store, from the configuration, flags and the environment.

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use imgsync_common::batch::SigningKey;
use imgsync_common::config::{self, SecretUrl};
use imgsync_common::error::{Class, Error, Result};
use imgsync_common::outage::ServerHealth;
use imgsync_common::queue::{RabbitQueue, RabbitSettings};
use imgsync_common::retry::seconds;
use imgsync_common::secret::Secret;
use imgsync_common::store::{RedisOptions, RedisStore};

use crate::settings;

/// How long the first try may take, whatever is said of waiting.
const FIRST_TRY: Duration = Duration::from_secs(6);
/// Between two tries to connect.
const BETWEEN_TRIES: Duration = Duration::from_millis(500);

/// Who reads messages could guess a shorter one.
const SHORTEST_KEY: usize = 16;

/// What was given beside the configuration, which it goes before.
#[derive(Debug, Clone, Default)]
pub struct Given {
    /// The broker's URL.
    pub broker: Option<String>,
    /// The store's URL.
    pub store: Option<String>,
    /// What messages are signed with.
    pub key: Option<Secret>,
}

/// Where a cluster is.
#[derive(Debug, Clone)]
pub struct Addresses {
    /// RabbitMQ.
    pub broker: SecretUrl,
    /// Redis.
    pub store: SecretUrl,
    /// What messages are signed with, and what stands in the store.
    pub key: Option<Secret>,
    /// Certificates to trust besides the system's, as PEM.
    pub ca: Option<Vec<u8>>,
}

impl Cluster {
    /// Returns how broker and store stand.
    pub fn health(&self) -> [ServerHealth; 2] {
        [self.queue.health().clone(), self.store.health().clone()]
    }
}

/// Broker and store, connected.
#[derive(Debug, Clone)]
pub struct Cluster {
    /// The queue.
    pub queue: RabbitQueue,
    /// The store.
    pub store: RedisStore,
}

impl Addresses {
    /// Puts together what was written and what was given; none where neither names a cluster. Relative paths begin in
    /// `folder`.
    pub fn resolve(written: Option<&config::Cluster>, given: &Given, folder: &Path) -> Result<Option<Addresses>> {
        let written_url =
            |pick: fn(&config::Cluster) -> &Option<SecretUrl>| written.and_then(|written| pick(written).clone());
        let broker = match &given.broker {
            Some(text) => Some(url(text, "the broker", &config::BROKER_SCHEMES)?),
            None => written_url(|cluster| &cluster.broker),
        };
        let store = match &given.store {
            Some(text) => Some(url(text, "the store", &config::STORE_SCHEMES)?),
            None => written_url(|cluster| &cluster.store),
        };
        let missing = |what: &str, how: &str| {
            Error::new(Class::Invalid, "reading where the cluster is", format!("{what} is missing")).hint(how)
        };
        let (broker, store) = match (broker, store) {
            (Some(broker), Some(store)) => (broker, store),
            (None, None) if written.is_none() => return Ok(None),
            (None, None) => {
                return Err(missing(
                    "where broker and store are",
                    "`cluster:` takes `broker:` and `store:`, or leave it out",
                ));
            }
            (None, Some(_)) => {
                return Err(missing(
                    "the broker",
                    "name it by `cluster: {broker: amqp://…}`, --broker or IMGSYNC_BROKER",
                ));
            }
            (Some(_), None) => {
                return Err(missing("the store", "name it by `cluster: {store: redis://…}`, --store or IMGSYNC_STORE"));
            }
        };
        let key = given.key.clone().or_else(|| written.and_then(|written| written.key.clone()));
        if key.as_ref().is_some_and(|key| key.expose().chars().count() < SHORTEST_KEY) {
            let detail = format!("the key that messages are signed with has fewer than {SHORTEST_KEY} characters");
            let tried = "reading where the cluster is";
            return Err(Error::new(Class::Invalid, tried, detail).hint("`openssl rand -hex 32` prints a good one"));
        }
        let mut ca = Vec::new();
        for pem in written.iter().flat_map(|written| &written.ca) {
            ca.extend(settings::certificates(pem, folder)?);
            ca.push(b'\n');
        }
        Ok(Some(Addresses { broker, store, key, ca: Some(ca).filter(|ca| !ca.is_empty()) }))
    }

    /// Connects to the store alone.
    pub async fn store(&self, options: RedisOptions) -> Result<RedisStore> {
        RedisStore::connect(
            &self.store,
            RedisOptions { ca: self.ca.clone(), key: self.key.as_ref().map(SigningKey::new), ..options },
        )
        .await
    }

    /// Connects to both, and tries again for `wait` while they fail with an error of `waited_for`. `say` is told what is waited
    /// for, whenever that is another reason.
    pub async fn connect_within(
        &self,
        name: &str,
        wait: Duration,
        waited_for: impl Fn(&Error) -> bool,
        say: impl Fn(&str),
    ) -> Result<Cluster> {
        let started = Instant::now();
        let (mut tries, mut said) = (0, String::new());
        let mut last: Option<Error> = None;
        loop {
            let left = wait.saturating_sub(started.elapsed());
            // What does not answer at all is given the time of one try.
            let limit = if last.is_none() { left.max(FIRST_TRY) } else { left };
            let error = match tokio::time::timeout(limit, self.connect(name)).await {
                Ok(Ok(cluster)) => return Ok(cluster),
                Ok(Err(error)) => error,
                Err(_) => last.take().unwrap_or_else(|| {
                    let tried = format!("connecting to {} and {}", self.broker, self.store);
                    Error::new(Class::Unreachable, tried, "no answer in time")
                }),
            };
            tries += 1;
            if !waited_for(&error) || started.elapsed() >= wait {
                return Err(error.after(tries, started.elapsed()));
            }
            if error.detail() != said {
                error.detail().clone_into(&mut said);
                let left = seconds(wait.saturating_sub(started.elapsed()));
                let hint = error.advice().map(|hint| format!(" ({hint})")).unwrap_or_default();
                say(&format!("{}: {}; trying for {left}{hint}", error.tried(), error.detail()));
            }
            last = Some(error);
            tokio::time::sleep(BETWEEN_TRIES.min(wait.saturating_sub(started.elapsed()))).await;
        }
    }

    /// Connects to both. `name` is shown to those who look at the broker.
    pub async fn connect(&self, name: &str) -> Result<Cluster> {
        let store = self.store(RedisOptions::patient()).await?;
        let settings = RabbitSettings {
            name: format!("imgsync {name}"),
            key: self.key.as_ref().map(SigningKey::new),
            ca: self.ca.as_ref().map(|ca| String::from_utf8_lossy(ca).into_owned()),
            ..RabbitSettings::default()
        };
        let queue = RabbitQueue::connect(&self.broker, Arc::new(store.clone()), settings).await?;
        Ok(Cluster { queue, store })
    }
}

/// What is refused is not shown: it could hold a password.
fn url(text: &str, what: &str, schemes: &[&str]) -> Result<SecretUrl> {
    SecretUrl::parse(text, schemes).map_err(|error| {
        let invalid = Error::new(Class::Invalid, format!("reading the URL of {what}"), error.to_string());
        match error.hint() {
            Some(hint) => invalid.hint(format!("{hint} under `cluster:` in the configuration")),
            None => invalid,
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn given(broker: Option<&str>, store: Option<&str>) -> Given {
        Given { broker: broker.map(str::to_owned), store: store.map(str::to_owned), key: None }
    }

    fn resolve(given: &Given) -> Result<Option<Addresses>> {
        Addresses::resolve(None, given, Path::new(""))
    }

    #[test]
    fn a_cluster_has_both_or_there_is_none() {
        assert!(resolve(&given(None, None)).unwrap().is_none());
        let both = resolve(&given(Some("amqp://u:hunter2@b"), Some("redis://s"))).unwrap().unwrap();
        assert_eq!(both.broker.to_string(), "amqp://b");
        assert!(!format!("{both:?}").contains("hunter2"));
        assert!(resolve(&given(Some("amqp://b"), None)).unwrap_err().advice().unwrap().contains("IMGSYNC_STORE"));
        assert!(resolve(&given(None, Some("redis://s"))).unwrap_err().advice().unwrap().contains("IMGSYNC_BROKER"));
        let error = resolve(&given(Some("http://u:hunter2@b"), Some("redis://s"))).unwrap_err();
        assert!(error.to_string().contains("amqp://") && !error.to_string().contains("hunter2"));
        for password in ["hunter2/3", "12/34", "hunter@2", "hunter#2", "hunter?2", "100%"] {
            let error = resolve(&given(Some("amqp://b"), Some(&format!("redis://u:{password}@s")))).unwrap_err();
            assert!(error.advice().unwrap().starts_with("percent-encode the password"), "{error}");
            assert!(!error.to_string().contains("hunter") && !error.to_string().contains("34"), "{error}");
        }
    }
}
