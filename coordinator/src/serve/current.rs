//! What the configuration means now, and its being read again while serving goes on.

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

/// How often the file is looked at.
const LOOK_EVERY: Duration = Duration::from_secs(1);
/// How many digits of a rule's identity are its id.
const ID_LENGTH: usize = 12;

/// A configuration that was read.
#[derive(Debug, Clone)]
pub struct Given {
    /// What it means.
    pub config: Config,
    /// Where relative paths begin.
    pub folder: PathBuf,
    /// How registries are spoken to.
    pub client: ClientSettings,
    /// Who is told of batches that have ended.
    pub notify: Notify,
}

/// Where the configuration is read from, again and again.
pub struct Origin {
    /// The file that is looked at for changes, if there is one.
    pub file: Option<PathBuf>,
    /// Reads and checks it; what is wrong with it comes in words, for people.
    pub read: Box<dyn Fn() -> std::result::Result<Given, String> + Send + Sync>,
}

/// How work is done, as far as the configuration does not say it.
#[derive(Debug, Clone)]
pub struct Manner {
    /// Images that are copied at a time, in place of what the configuration says.
    pub concurrency: Option<usize>,
    /// Repositories that are listed at a time.
    pub query_limit: usize,
    /// Tries of a request that makes no progress.
    pub attempts: u32,
    /// The longest first pause before trying again.
    pub first_delay: Duration,
    /// A stream in which nothing moves for so long is given up.
    pub stall: Duration,
    /// How long running tasks may go on after the first signal.
    pub drain: Duration,
}

/// What the configuration means now.
pub struct Current {
    /// All of it.
    pub config: Config,
    /// Where relative paths begin.
    pub folder: PathBuf,
    /// Registries.
    pub client: Client,
    /// Copies.
    pub copier: Copier,
    /// Who is told.
    pub notifier: Arc<Notifier>,
    /// Its rules, each for itself, in the order of the file.
    pub rules: Vec<Known>,
    /// The digest over a batch of all rules together.
    all_rules: Digest,
    run: RunSettings,
}

/// A rule by itself.
#[derive(Debug, Clone)]
pub struct Known {
    /// The beginning of its identity: the same however it is written, called and scheduled.
    pub id: String,
    /// What readers know it by.
    pub name: String,
    /// The identity of a batch of this rule alone.
    pub rules: Digest,
    /// Whether it was given that name.
    is_named: bool,
    /// What it copies.
    pub from: String,
    /// Where to.
    pub to: Vec<String>,
    /// When it is run by itself.
    pub schedule: Option<Schedule>,
    /// The longest time between two runs by the schedule, as it looks now.
    interval: Option<Duration>,
    /// The configuration with this rule alone.
    config: Config,
}

/// How the last reading of the configuration went.
#[derive(Debug, Clone)]
pub struct Reading {
    /// When.
    pub at: Timestamp,
    /// What was wrong with it, so that the one before still holds.
    pub error: Option<String>,
}

impl Current {
    /// Makes what work needs from what was read.
    ///
    /// # Errors
    /// `Invalid` where a rule cannot be run here, or a template is wrong.
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

    /// Images that are copied at a time, where that is done here.
    pub fn concurrency(&self) -> usize {
        self.run.concurrency
    }

    /// Tries of a task that fails in passing.
    pub fn attempts(&self) -> u32 {
        self.run.attempts
    }

    /// The rule of this id, or of this name.
    pub fn rule(&self, wanted: &str) -> Option<&Known> {
        let by_id = self.rules.iter().find(|rule| rule.id == wanted);
        by_id.or_else(|| self.rules.iter().find(|rule| rule.name == wanted))
    }

    /// The rules as figures tell of them.
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

    /// The configuration of which a batch is: of one rule, or of all together.
    pub fn config_of(&self, rules: &Digest) -> Option<&Config> {
        let one = self.rules.iter().find(|rule| rule.rules == *rules).map(|rule| &rule.config);
        one.or_else(|| (self.all_rules == *rules).then_some(&self.config))
    }

    /// A run that lists, and leaves the rest to who serves.
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

    /// Names the rule in labels of metrics.
    fn metrics_label(&self) -> &str {
        &self.name
    }

    /// In a few words.
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

/// A layout is on one machine, and the tasks are done on others.
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

/// Reads the configuration again on SIGHUP and when its file has changed, until told to stop. What is wrong leaves the one
/// before in its place, and is said.
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
        // A file that is gone for a moment is being replaced.
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

/// The signal that asks for the configuration to be read again.
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
