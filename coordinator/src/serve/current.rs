//! The active configuration, and its reload while serving.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use imgsync_common::config::{Config, Destination, Notify, Rule, Source};
use imgsync_common::error::{Class, Error, Result};
use imgsync_common::event::Events;
use imgsync_common::image::Digest;
use imgsync_common::registry::credentials::Environment;
use imgsync_common::registry::{Client, ClientSettings, SharedPace};
use imgsync_common::retry::Policy;
use imgsync_common::schedule::Schedule;
use imgsync_worker::copy::{Copier, Limits};
use imgsync_worker::settings::{LONGEST_SLEEP, SLOT_PATIENCE};
use jiff::Timestamp;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use super::{say, warn};
use crate::batches::{Care, House, Run, RunSettings, SERVE_ROLE, WatchedRule, copier, fingerprint};
use crate::notify::Notifier;
use crate::words::many;

const LOOK_EVERY: Duration = Duration::from_secs(1);
/// Hex digits of a rule's identity that make its id.
const ID_LENGTH: usize = 12;

/// A loaded configuration.
#[derive(Debug, Clone)]
pub struct Given {
    /// The configuration.
    pub config: Config,
    /// Base folder of relative paths.
    pub folder: PathBuf,
    /// Settings of the registry client.
    pub client: ClientSettings,
    /// Notification targets.
    pub notify: Notify,
}

/// Source of the configuration, for reloads.
pub struct Origin {
    /// File to watch for changes, if there is one.
    pub file: Option<PathBuf>,
    /// Loads and validates the configuration. The error is a message for users.
    pub read: Box<dyn Fn() -> std::result::Result<Given, String> + Send + Sync>,
}

/// Runtime options that the configuration does not contain, from CLI flags.
#[derive(Debug, Clone)]
pub struct Manner {
    /// Number of concurrent image copies; overrides the configuration.
    pub concurrency: Option<usize>,
    /// Number of concurrent repository listings.
    pub query_limit: usize,
    /// Attempts per request that makes no progress.
    pub attempts: u32,
    /// Upper bound of the first retry delay.
    pub first_delay: Duration,
    /// Timeout of a stream that makes no progress.
    pub stall: Duration,
    /// Time limit for running tasks after the first stop signal.
    pub drain: Duration,
}

/// The active configuration, with the clients and rules built from it.
pub struct Current {
    /// The whole configuration.
    pub config: Config,
    /// Base folder of relative paths.
    pub folder: PathBuf,
    /// Registry client.
    pub client: Client,
    /// Image copier.
    pub copier: Copier,
    /// Sends the notifications.
    pub notifier: Arc<Notifier>,
    /// The rules, in the order of the file.
    pub rules: Vec<Known>,
    /// Identity of a batch of all rules.
    all_rules: Digest,
    run: RunSettings,
}

/// A rule of the active configuration.
#[derive(Debug, Clone)]
pub struct Known {
    /// Prefix of the rule's identity, which does not depend on notation, name and schedule.
    pub id: String,
    /// Display name.
    pub name: String,
    /// Identity of a batch of this rule alone.
    pub rules: Digest,
    /// Whether the configuration sets the name.
    is_named: bool,
    /// Source.
    pub from: String,
    /// Targets.
    pub to: Vec<String>,
    /// Schedule, if there is one.
    pub schedule: Option<Schedule>,
    /// Longest time between two scheduled runs, as of the load.
    interval: Option<Duration>,
    /// The configuration with this rule alone.
    config: Config,
}

/// Result of the last load of the configuration.
#[derive(Debug, Clone)]
pub struct Reading {
    /// Time of the load.
    pub at: Timestamp,
    /// Why the load failed; the previous configuration is still in use.
    pub error: Option<String>,
}

impl Current {
    /// Builds clients and rules from a loaded configuration.
    ///
    /// # Errors
    /// `Invalid` if a rule cannot run here or a template is wrong.
    pub fn of(given: Given, house: &House, manner: &Manner) -> Result<Current> {
        let Given { config, folder, mut client, notify } = given;
        if house.is_cluster() {
            refuse_layouts(&config)?;
        }
        client.retry = Policy {
            attempts: manner.attempts,
            first_delay: manner.first_delay,
            max_delay: client.retry.max_delay.max(manner.first_delay),
            max_wait: LONGEST_SLEEP,
            patience: SLOT_PATIENCE,
        };
        client.stall = manner.stall;
        let is_cluster = house.is_cluster();
        client.pace = Some(SharedPace { store: house.store.clone(), careful: is_cluster, alone: !is_cluster });
        let client = Client::new(client, Environment::from_process());
        let limits = Limits { time: config.timeout, time_is_exact: false, ..Limits::default() };
        let run = RunSettings {
            name: None,
            force: false,
            prime: false,
            priority: None,
            manifests: None,
            verify: None,
            slice: None,
            query_limit: manner.query_limit,
            concurrency: manner.concurrency.unwrap_or(config.concurrency),
            attempts: manner.attempts,
            time: (config.timeout, false),
            drain: manner.drain,
            detach: true,
            care: Care::default(),
        };
        Ok(Current {
            notifier: Arc::new(Notifier::new(&notify, &folder, Duration::from_secs(1))?),
            copier: copier(house, &client, limits),
            rules: config.rules.iter().map(|rule| Known::of(rule, &config)).collect(),
            all_rules: fingerprint(&config, None),
            config,
            folder,
            client,
            run,
        })
    }

    /// Returns the number of concurrent image copies in this process.
    pub fn concurrency(&self) -> usize {
        self.run.concurrency
    }

    /// Returns the number of attempts per task that fails with a transient error.
    pub fn attempts(&self) -> u32 {
        self.run.attempts
    }

    /// Returns the rule with this id or name.
    pub fn rule(&self, wanted: &str) -> Option<&Known> {
        let by_id = self.rules.iter().find(|rule| rule.id == wanted);
        by_id.or_else(|| self.rules.iter().find(|rule| rule.name == wanted))
    }

    /// Returns the rules as metrics describe them.
    pub(super) fn watched_rules(&self) -> Vec<WatchedRule> {
        let watched = |rule: &Known| WatchedRule {
            label: rule.metrics_label().to_owned(),
            from: rule.from.clone(),
            to: rule.to.join(", "),
            batches: [rule.rules.clone(), self.all_rules.clone()],
            interval: rule.interval,
        };
        self.rules.iter().map(watched).collect()
    }

    /// Returns the configuration of a batch of one rule or of all rules.
    pub fn config_of(&self, rules: &Digest) -> Option<&Config> {
        let one = self.rules.iter().find(|rule| rule.rules == *rules).map(|rule| &rule.config);
        one.or_else(|| (self.all_rules == *rules).then_some(&self.config))
    }

    /// Creates a run that lists, and leaves the tasks to the leader.
    pub(super) fn run<'a>(
        &'a self,
        house: &'a House,
        config: &'a Config,
        events: Events,
        stop: &CancellationToken,
    ) -> Run<'a> {
        Run {
            house,
            config,
            folder: &self.folder,
            client: self.client.clone(),
            copier: self.copier.clone(),
            settings: self.run.clone(),
            role: SERVE_ROLE,
            events,
            drain: stop.child_token(),
            abort: stop.child_token(),
        }
    }
}

impl Known {
    fn of(rule: &Rule, config: &Config) -> Known {
        let mut config = config.clone();
        config.rules = vec![rule.clone()];
        let rules = fingerprint(&config, None);
        let id = rule.identity().hex()[..ID_LENGTH].to_owned();
        let now = Timestamp::now();
        Known {
            interval: rule.schedule.as_ref().and_then(|schedule| schedule.longest_interval(now, &id)),
            id,
            name: rule.title(),
            is_named: rule.name.is_some(),
            rules,
            from: rule.reads(),
            to: rule.writes(),
            schedule: rule.schedule.clone(),
            config,
        }
    }

    /// Returns the rule's name in metric labels.
    fn metrics_label(&self) -> &str {
        &self.name
    }

    /// Returns a short description: the name, if it is set, and what the rule copies.
    pub fn title(&self) -> String {
        let copies = format!("{} to {}", self.from, self.to.join(", "));
        match self.is_named {
            true => format!("{} ({copies})", self.name),
            false => copies,
        }
    }

    pub(super) fn config(&self) -> &Config {
        &self.config
    }
}

/// Rejects image layouts: a layout is on one machine, and tasks run on others.
fn refuse_layouts(config: &Config) -> Result<()> {
    let is_layout = |rule: &&Rule| {
        matches!(rule.source, Source::Layout(_)) || rule.to.iter().any(|to| matches!(to, Destination::Layout(_)))
    };
    match config.rules.iter().find(is_layout) {
        Some(rule) => {
            let detail = "an image layout works in one process only, and a cluster is configured";
            Err(Error::new(Class::Invalid, format!("serving {}", rule.place()), detail)
                .hint("serve it with a configuration without `cluster:`, and without IMGSYNC_BROKER and IMGSYNC_STORE"))
        }
        None => Ok(()),
    }
}

/// Reloads the configuration on SIGHUP and when its file changes, until stopped. An invalid configuration is
/// reported, and the previous one stays in use.
pub(super) async fn keep(
    origin: &Origin,
    (house, manner): (&House, &Manner),
    current: &watch::Sender<Arc<Current>>,
    readings: &watch::Sender<Reading>,
    events: &Events,
    stop: &CancellationToken,
) {
    let mut hangup = Hangup::new();
    let mut known = origin.content();
    while !stop.is_cancelled() {
        let asked = tokio::select! {
            () = hangup.received() => true,
            () = tokio::time::sleep(LOOK_EVERY) => false,
            () = stop.cancelled() => return,
        };
        let content = origin.content();
        // A missing file is being replaced.
        if !asked && (content == known || content.is_none()) {
            continue;
        }
        known = content;
        let made = (origin.read)().and_then(|given| {
            Current::of(given, house, manner).map_err(|error| match error.advice() {
                Some(advice) => format!("{error}\nhint: {advice}"),
                None => error.to_string(),
            })
        });
        let error = match made {
            Ok(next) => {
                say(
                    events,
                    &format!("read its configuration again: {}", many(next.rules.len() as u64, "rule", "rules")),
                );
                current.send_replace(Arc::new(next));
                None
            }
            Err(error) => {
                warn(events, &format!("the configuration is wrong, and the one before still holds:\n{}", error.trim()));
                Some(error)
            }
        };
        readings.send_replace(Reading { at: Timestamp::now(), error });
    }
}

impl Origin {
    fn content(&self) -> Option<Vec<u8>> {
        std::fs::read(self.file.as_ref()?).ok()
    }
}

/// SIGHUP, which requests a reload of the configuration.
struct Hangup(#[cfg(unix)] Option<tokio::signal::unix::Signal>);

impl Hangup {
    #[cfg(unix)]
    fn new() -> Hangup {
        Hangup(tokio::signal::unix::signal(tokio::signal::unix::SignalKind::hangup()).ok())
    }

    #[cfg(not(unix))]
    fn new() -> Hangup {
        Hangup()
    }

    async fn received(&mut self) {
        #[cfg(unix)]
        if let Some(signal) = &mut self.0
            && signal.recv().await.is_some()
        {
            return;
        }
        std::future::pending().await
    }
}

impl std::fmt::Debug for Current {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Current({} rules)", self.rules.len())
    }
}
