//! Connects to a cluster: broker and store, from the configuration, flags and the environment.

use std::env::VarError;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use imgsync_config::{SecretUrl, StoreUrl};
use imgsync_model::batch::SigningKey;
use imgsync_oci::error::{Error, ErrorKind, Result};
use imgsync_oci::retry::format_duration;
use imgsync_oci::secret::Secret;
use imgsync_oci::secret_url::{ENCODE_HINT, UrlError, join_urls};
use imgsync_queue::{RabbitQueue, RabbitSettings};
use imgsync_store::outage::ServerHealth;
use imgsync_store::{Ledger as _, RedisOptions, RedisStore, SentinelLogin};

use crate::host_check::is_loopback_name;
use crate::settings;

/// Minimum timeout of the first attempt to connect to the store, whatever the wait.
const FIRST_CONNECT_TIMEOUT: Duration = Duration::from_secs(6);
/// Delay between connection attempts.
const CONNECT_RETRY_DELAY: Duration = Duration::from_millis(500);

/// Minimum length of a signing key, in characters: readers of messages could guess a shorter one.
const MIN_KEY_CHARS: usize = 16;

/// Secrets of a cluster from the environment. They have no flags: other users of the machine can see those.
#[derive(Debug, Clone, Default)]
pub struct ClusterSecrets {
    /// IMGSYNC_KEY: key that signs messages.
    pub key: Option<Secret>,
    /// IMGSYNC_SENTINEL_USERNAME: user of the Sentinels.
    pub sentinel_username: Option<String>,
    /// IMGSYNC_SENTINEL_PASSWORD: password of the Sentinels.
    pub sentinel_password: Option<Secret>,
}

impl ClusterSecrets {
    /// Reads the variables.
    ///
    /// # Errors
    /// If one is not UTF-8: without its key, the cluster would be unsigned.
    pub fn from_environment() -> Result<ClusterSecrets> {
        let hint = "generate a key with `openssl rand -hex 32`";
        let key = read_variable("IMGSYNC_KEY", hint)?;
        let hint = "use letters, digits and other ASCII characters";
        // As a template of variables leaves them that was not filled in: not set.
        let given = |name| Ok::<_, Error>(read_variable(name, hint)?.filter(|value| !value.is_empty()));
        Ok(ClusterSecrets {
            key: key.map(Secret::new),
            sentinel_username: given("IMGSYNC_SENTINEL_USERNAME")?,
            sentinel_password: given("IMGSYNC_SENTINEL_PASSWORD")?.map(Secret::new),
        })
    }
}

fn read_variable(name: &str, hint: &str) -> Result<Option<String>> {
    match std::env::var(name) {
        Ok(value) => Ok(Some(value)),
        Err(VarError::NotPresent) => Ok(None),
        Err(VarError::NotUnicode(_)) => {
            let detail = format!("{name} is not UTF-8");
            Err(Error::new(ErrorKind::Invalid, "reading the cluster configuration", detail).with_hint(hint))
        }
    }
}

/// Settings that override the configuration.
#[derive(Debug, Clone, Default)]
pub struct ClusterOverrides {
    /// URLs of the broker's nodes; each value may be several, separated by commas. Empty ones count as unset.
    pub broker: Vec<String>,
    /// URL of the store. An empty one counts as unset.
    pub store: Option<String>,
    /// Secrets.
    pub secrets: ClusterSecrets,
}

/// Addresses of a cluster.
#[derive(Debug, Clone)]
pub struct ClusterEndpoints {
    /// URLs of RabbitMQ: of a server, or of the nodes of a cluster. Never empty.
    pub broker: Vec<SecretUrl>,
    /// URL of Redis.
    pub store: StoreUrl,
    /// Login of the Sentinels.
    pub sentinel_login: Option<SentinelLogin>,
    /// Key that signs messages and the data in the store.
    pub key: Option<Secret>,
    /// CA certificates to trust in addition to the system's, as PEM.
    pub ca: Option<Vec<u8>>,
}

impl ClusterConnection {
    /// Returns the health of broker and store.
    pub fn health(&self) -> [ServerHealth; 2] {
        [self.queue.health().clone(), self.store.health().clone()]
    }
}

/// Connections to broker and store.
#[derive(Debug, Clone)]
pub struct ClusterConnection {
    /// Queue.
    pub queue: RabbitQueue,
    /// Store.
    pub store: RedisStore,
}

impl ClusterEndpoints {
    /// Merges configuration and overrides; `None` if neither names a cluster. Relative paths are resolved against
    /// `folder`.
    pub fn resolve(
        written: Option<&imgsync_config::ClusterConfig>,
        overrides: &ClusterOverrides,
        folder: &Path,
    ) -> Result<Option<ClusterEndpoints>> {
        let broker = match parse_broker_urls(&overrides.broker)? {
            urls if urls.is_empty() => written.map(|cluster| cluster.broker.clone()).unwrap_or_default(),
            urls => urls,
        };
        let broker = Some(broker).filter(|urls| !urls.is_empty());
        let store = match overrides.store.as_ref().filter(|text| !text.is_empty()) {
            Some(text) => {
                let parsed = StoreUrl::parse(text, &imgsync_config::STORE_SCHEMES);
                Some(parsed.map_err(|error| invalid_url("the store", &error))?)
            }
            None => written.and_then(|cluster| cluster.store.clone()),
        };
        let missing = |what: &str, how: &str| {
            Error::new(ErrorKind::Invalid, "reading the cluster configuration", format!("{what} is missing"))
                .with_hint(how)
        };
        let (broker, store) = match (broker, store) {
            (Some(broker), Some(store)) => (broker, store),
            (None, None) if written.is_none() => return Ok(None),
            (None, None) => {
                return Err(missing(
                    "broker and store",
                    "set `broker:` and `store:` under `cluster:`, or remove `cluster:`",
                ));
            }
            (None, Some(_)) => {
                return Err(missing("the broker", "set `cluster: {broker: amqp://…}`, --broker or IMGSYNC_BROKER"));
            }
            (Some(_), None) => {
                return Err(missing("the store", "set `cluster: {store: redis://…}`, --store or IMGSYNC_STORE"));
            }
        };
        let secrets = &overrides.secrets;
        let written_username = written.and_then(|written| written.sentinel_username.clone());
        let username = secrets.sentinel_username.clone().or(written_username);
        let written_password = written.and_then(|written| written.sentinel_password.clone());
        let sentinel_login = match secrets.sentinel_password.clone().or(written_password) {
            Some(password) => Some(SentinelLogin { username, password }),
            None if username.is_some() => {
                return Err(missing(
                    "the password of the Sentinels",
                    "set `sentinel_password` under `cluster:` or IMGSYNC_SENTINEL_PASSWORD, or remove the user",
                ));
            }
            None => None,
        };
        let key = secrets.key.clone().or_else(|| written.and_then(|written| written.key.clone()));
        if let Some(length) = key.as_ref().map(|key| key.expose().chars().count()).filter(|it| *it < MIN_KEY_CHARS) {
            let (detail, hint) = match length {
                0 => (
                    "the signing key is empty (IMGSYNC_KEY, or `key:` under `cluster:`)".to_owned(),
                    "generate one with `openssl rand -hex 32`, or remove it to work without signatures",
                ),
                _ => (
                    format!("the signing key has fewer than {MIN_KEY_CHARS} characters"),
                    "generate one with `openssl rand -hex 32`",
                ),
            };
            return Err(Error::new(ErrorKind::Invalid, "reading the cluster configuration", detail).with_hint(hint));
        }
        let mut ca = Vec::new();
        for pem in written.iter().flat_map(|written| &written.ca) {
            ca.extend(settings::load_certificates(pem, folder)?);
            ca.push(b'\n');
        }
        Ok(Some(ClusterEndpoints { broker, store, sentinel_login, key, ca: Some(ca).filter(|ca| !ca.is_empty()) }))
    }

    /// Returns a warning if there is no signing key. A broker and a store on this machine, as in a first try, need none.
    pub fn unsigned_warning(&self) -> Option<String> {
        let is_local = |url: &SecretUrl| url.expose().host_str().is_some_and(is_loopback_name);
        let is_store_local = self.store.hosts().into_iter().all(is_loopback_name);
        (self.key.is_none() && !(self.broker.iter().all(is_local) && is_store_local)).then(|| {
            format!(
                "the cluster has no key: whoever can write to {} or {} can make workers copy anything; set `cluster.key` \
                 or IMGSYNC_KEY to the same secret for all processes: `openssl rand -hex 32` generates one",
                join_urls(&self.broker),
                self.store
            )
        })
    }

    /// Connects to the store only.
    pub async fn connect_store(&self, options: RedisOptions) -> Result<RedisStore> {
        RedisStore::connect(
            &self.store,
            RedisOptions {
                ca: self.ca.clone(),
                sentinel_login: self.sentinel_login.clone(),
                key: self.key.as_ref().map(SigningKey::new),
                ..options
            },
        )
        .await
    }

    /// Connects to both; retries for `wait` while the errors satisfy `is_retried`. Calls `report` with each new reason for
    /// the wait.
    pub async fn connect_with_retries(
        &self,
        name: &str,
        wait: Duration,
        is_retried: impl Fn(&Error) -> bool,
        report: impl Fn(&str),
    ) -> Result<ClusterConnection> {
        let started = Instant::now();
        let (mut tries, mut last_message) = (0, String::new());
        let mut last: Option<Error> = None;
        let (mut store, mut has_tried_broker) = (None, false);
        loop {
            let left = wait.saturating_sub(started.elapsed());
            let timed_out = || Error::new(ErrorKind::Unreachable, format!("connecting to {}", self.store), "timed out");
            // A server that does not respond at all gets one full attempt.
            let limit = if last.is_none() { left.max(FIRST_CONNECT_TIMEOUT) } else { left };
            let opened = match &store {
                Some(_) => Ok(Ok(())),
                None => {
                    let open = self.connect_store(RedisOptions::long_running());
                    tokio::time::timeout(limit, open).await.map(|opened| opened.map(|opened| store = Some(opened)))
                }
            };
            let error = match (opened, &store) {
                (Ok(Ok(())), Some(store)) => {
                    let connect = self.connect_broker(name, store);
                    // And so does each node of the broker: a name may have several, which have limits of their own.
                    let connected = match std::mem::replace(&mut has_tried_broker, true) {
                        false => Ok(connect.await),
                        true => tokio::time::timeout(wait.saturating_sub(started.elapsed()), connect).await,
                    };
                    match connected {
                        Ok(Ok(queue)) => return Ok(ClusterConnection { queue, store: store.clone() }),
                        Ok(Err(error)) => error,
                        Err(_) => last.take().unwrap_or_else(timed_out),
                    }
                }
                (Ok(Err(error)), _) => error,
                _ => last.take().unwrap_or_else(timed_out),
            };
            tries += 1;
            if !is_retried(&error) || started.elapsed() >= wait {
                return Err(error.with_attempts(tries, started.elapsed()));
            }
            if error.message() != last_message {
                error.message().clone_into(&mut last_message);
                let left = format_duration(wait.saturating_sub(started.elapsed()));
                let hint = error.hint().map(|hint| format!(" ({hint})")).unwrap_or_default();
                report(&format!("{}: {}; retrying for {left}{hint}", error.operation(), error.message()));
            }
            last = Some(error);
            tokio::time::sleep(CONNECT_RETRY_DELAY.min(wait.saturating_sub(started.elapsed()))).await;
        }
    }

    /// Connects to both. `name` is shown in the broker's list of connections.
    pub async fn connect(&self, name: &str) -> Result<ClusterConnection> {
        let store = self.connect_store(RedisOptions::long_running()).await?;
        let queue = self.connect_broker(name, &store).await?;
        Ok(ClusterConnection { queue, store })
    }

    async fn connect_broker(&self, name: &str, store: &RedisStore) -> Result<RabbitQueue> {
        let settings = RabbitSettings {
            name: format!("imgsync {name}"),
            key: self.key.as_ref().map(SigningKey::new),
            ca: self.ca.as_ref().map(|ca| String::from_utf8_lossy(ca).into_owned()),
            ..RabbitSettings::default()
        };
        let queue = RabbitQueue::connect(&self.broker, Arc::new(store.clone()), settings).await?;
        store.watch_for_write_losses();
        Ok(queue)
    }
}

/// Parses the URLs of the broker's nodes. Returns none if all values are empty.
fn parse_broker_urls(values: &[String]) -> Result<Vec<SecretUrl>> {
    let values = values.iter().filter(|value| !value.is_empty());
    let texts: Vec<&str> = values.flat_map(|value| imgsync_config::split_broker_urls(value)).collect();
    let name = |position: usize| match texts.len() {
        1 => "the broker".to_owned(),
        _ => format!("broker node {}", position + 1),
    };
    let parse = |(position, text): (usize, &&str)| parse_url(text, &name(position), &imgsync_config::BROKER_SCHEMES);
    let urls: Vec<SecretUrl> = texts.iter().enumerate().map(parse).collect::<Result<_>>()?;
    imgsync_config::check_broker_urls(&urls).map_err(|error| {
        let operation = format!("reading the URL of {}", name(error.position));
        Error::new(ErrorKind::Invalid, operation, error.message).with_hint(error.hint)
    })?;
    Ok(urls)
}

/// Parses a URL. Errors do not show it: it could contain a password.
fn parse_url(text: &str, what: &str, schemes: &[&str]) -> Result<SecretUrl> {
    SecretUrl::parse(text, schemes).map_err(|error| invalid_url(what, &error))
}

fn invalid_url(what: &str, error: &UrlError) -> Error {
    let invalid = Error::new(ErrorKind::Invalid, format!("reading the URL of {what}"), error.to_string());
    match error.hint() {
        Some(ENCODE_HINT) => invalid.with_hint(format!("{ENCODE_HINT} under `cluster:` in the configuration")),
        Some(hint) => invalid.with_hint(hint),
        None => invalid,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn overrides(broker: Option<&str>, store: Option<&str>) -> ClusterOverrides {
        let broker = broker.into_iter().map(str::to_owned).collect();
        ClusterOverrides { broker, store: store.map(str::to_owned), secrets: ClusterSecrets::default() }
    }

    fn with_key(key: &str) -> ClusterOverrides {
        let secrets = ClusterSecrets { key: Some(Secret::new(key)), ..ClusterSecrets::default() };
        ClusterOverrides { secrets, ..overrides(Some("amqp://b"), Some("redis://s")) }
    }

    fn resolve(overrides: &ClusterOverrides) -> Result<Option<ClusterEndpoints>> {
        ClusterEndpoints::resolve(None, overrides, Path::new(""))
    }

    /// As a template of variables that was not filled in leaves it.
    #[test]
    fn an_empty_key_is_an_error_and_no_cluster_without_signatures() {
        let empty = resolve(&with_key("")).unwrap_err();
        assert!(empty.to_string().contains("IMGSYNC_KEY") && empty.hint().unwrap().contains("remove it"), "{empty}");
        assert!(resolve(&with_key("too short")).unwrap_err().to_string().contains("fewer than"));
        assert!(resolve(&with_key("0123456789abcdef")).unwrap().unwrap().key.is_some());
        // Without a cluster there is nothing to sign.
        let alone = ClusterOverrides { secrets: with_key("").secrets, ..overrides(None, None) };
        assert!(resolve(&alone).unwrap().is_none());
    }

    #[test]
    fn a_cluster_without_a_key_is_warned_of_unless_it_is_on_this_machine() {
        let warning = |broker: &str, store: &str| {
            resolve(&overrides(Some(broker), Some(store))).unwrap().unwrap().unsigned_warning()
        };
        let found = warning("amqp://u:hunter2@b.example", "redis://:hunter2@s.example").unwrap();
        assert!(found.contains("amqp://b.example") && found.contains("openssl rand"), "{found}");
        assert!(!found.contains("hunter2"), "{found}");
        assert!(
            warning("amqp://127.0.0.1", "redis://s.example").is_some(),
            "one of them can be written from elsewhere"
        );
        assert!(warning("amqp://b.example", "redis://[::1]:6379").is_some());
        for [broker, store] in
            [["amqp://localhost", "redis://127.0.0.1:6379"], ["amqp://[::1]:5672", "redis://localhost"]]
        {
            assert_eq!(warning(broker, store), None);
        }
        assert_eq!(resolve(&with_key("0123456789abcdef")).unwrap().unwrap().unsigned_warning(), None);
    }

    #[test]
    fn the_nodes_of_a_broker_are_repeated_or_separated_by_commas() {
        let nodes = |values: &[&str]| {
            let broker = values.iter().map(|value| (*value).to_owned()).collect();
            resolve(&ClusterOverrides { broker, ..overrides(None, Some("redis://s")) })
        };
        for values in [
            &["amqp://u:hunter2@a,amqp://u:hunter2@b:5673"][..],
            &["amqp://u:hunter2@a", "", "amqp://u:hunter2@b:5673"],
        ] {
            let found = nodes(values).unwrap().unwrap();
            assert_eq!(join_urls(&found.broker), "amqp://a, amqp://b:5673");
            assert!(!format!("{found:?}").contains("hunter2"));
        }
        for (values, operation, message) in [
            (&["amqp://a", "amqp://u:hunter2@a:5672"][..], "broker node 2", "named twice"),
            (&["amqp://a/v,amqp://u:hunter2@b/w"], "broker node 2", "virtual host differs"),
            (&["amqp://a,amqp://u:12/34@b"], "broker node 2", "ambiguous"),
            (&["amqp://a,b"], "the broker", "comma"),
            (&["amqp://a", "hunter2"], "broker node 2", "not a URL"),
        ] {
            let error = nodes(values).unwrap_err();
            assert!(error.operation().ends_with(operation) && error.message().contains(message), "{error}");
            assert!(!format!("{error:?}").contains("hunter2") && !error.to_string().contains("34"), "{error}");
        }
        assert!(nodes(&["amqp://a", "amqp://a"]).unwrap_err().hint().is_some());
        assert!(nodes(&[""]).unwrap_err().hint().unwrap().contains("IMGSYNC_BROKER"), "as if it were not set");
    }

    #[test]
    fn the_login_of_sentinels_is_that_of_the_environment_or_of_the_configuration() {
        let written = imgsync_config::ClusterConfig {
            sentinel_username: Some("watcher".to_owned()),
            sentinel_password: Some(Secret::new("written")),
            ..imgsync_config::ClusterConfig::default()
        };
        let login = |written: Option<&imgsync_config::ClusterConfig>, secrets: ClusterSecrets| {
            let store = "redis+sentinel://:hunter2@s1,s2/m";
            let overrides = ClusterOverrides { secrets, ..overrides(Some("amqp://b"), Some(store)) };
            let resolved = ClusterEndpoints::resolve(written, &overrides, Path::new(""))?.unwrap();
            assert_eq!(resolved.store.to_string(), "redis+sentinel://s1:26379,s2:26379/m");
            assert!(!format!("{resolved:?}").contains("hunter2") && !format!("{resolved:?}").contains("written"));
            Ok::<_, Error>(resolved.sentinel_login.map(|login| (login.username, login.password.expose().to_owned())))
        };
        let none = ClusterSecrets::default;
        assert_eq!(login(None, none()).unwrap(), None);
        let found = login(Some(&written), none()).unwrap().unwrap();
        assert_eq!(found, (Some("watcher".to_owned()), "written".to_owned()));
        let given = ClusterSecrets { sentinel_password: Some(Secret::new("given")), ..none() };
        assert_eq!(login(None, given.clone()).unwrap().unwrap(), (None, "given".to_owned()));
        assert_eq!(login(Some(&written), given).unwrap().unwrap().1, "given");
        let user = ClusterSecrets { sentinel_username: Some("watcher".to_owned()), ..none() };
        assert!(login(None, user).unwrap_err().hint().unwrap().contains("IMGSYNC_SENTINEL_PASSWORD"));
        let error = resolve(&overrides(Some("amqp://b"), Some("redis+sentinel://:hunter2@s1"))).unwrap_err();
        assert!(
            error.hint().unwrap().contains("redis+sentinel://") && !error.to_string().contains("hunter2"),
            "{error}"
        );
    }

    #[test]
    fn a_cluster_has_both_or_there_is_none() {
        assert!(resolve(&overrides(None, None)).unwrap().is_none());
        let both = resolve(&overrides(Some("amqp://u:hunter2@b"), Some("redis://s"))).unwrap().unwrap();
        assert_eq!(join_urls(&both.broker), "amqp://b");
        assert!(!format!("{both:?}").contains("hunter2"));
        assert!(resolve(&overrides(Some("amqp://b"), None)).unwrap_err().hint().unwrap().contains("IMGSYNC_STORE"));
        assert!(resolve(&overrides(None, Some("redis://s"))).unwrap_err().hint().unwrap().contains("IMGSYNC_BROKER"));
        let error = resolve(&overrides(Some("http://u:hunter2@b"), Some("redis://s"))).unwrap_err();
        assert!(error.to_string().contains("amqp://") && !error.to_string().contains("hunter2"));
        for password in ["hunter2/3", "12/34", "hunter@2", "hunter#2", "hunter?2", "100%"] {
            let error = resolve(&overrides(Some("amqp://b"), Some(&format!("redis://u:{password}@s")))).unwrap_err();
            assert!(error.hint().unwrap().starts_with("percent-encode the password"), "{error}");
            assert!(!error.to_string().contains("hunter") && !error.to_string().contains("34"), "{error}");
        }
    }
}
