//! The active configuration.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use imgsync_config::{Config, HookConfig, NotifyConfig, Rule, RuleTarget, unprotected_hook};
use imgsync_model::batch::BatchOptions;
use imgsync_model::schedule::Schedule;
use imgsync_oci::error::{Error, ErrorKind, Result};
use imgsync_oci::retry::RetryPolicy;
use imgsync_oci::{Digest, Reference};
use imgsync_registry::credentials::CredentialEnvironment;
use imgsync_registry::{Client, ClientSettings, SharedRateLimit};
use imgsync_store::{Batch, PushRule};
use imgsync_worker::copy::{Copier, CopyLimits};
use imgsync_worker::settings::{MAX_WAIT_IN_SLOT, RATE_LIMIT_DEADLINE_IN_SLOT};
use imgsync_worker::task_events::TaskEvents;
use jiff::Timestamp;
use tokio_util::sync::CancellationToken;

use super::active_hook::{ActiveHook, HookRule};
use super::named_images::NamedImages;
use crate::notify::Notifier;
use crate::orchestrator::{
    Backend, LaggingPushes, ReclaimPolicy, Run, RunSettings, SERVE_ROLE, WatchedRule, build_copier, fingerprint,
    pushes_fingerprint,
};
use crate::presets::source_selectors;

/// A loaded configuration.
#[derive(Debug, Clone)]
pub struct LoadedConfig {
    /// The configuration.
    pub config: Config,
    /// Base folder of relative paths.
    pub folder: PathBuf,
    /// Settings of the registry client.
    pub client: ClientSettings,
    /// Notification targets.
    pub notify: NotifyConfig,
}

/// Source of the configuration, for reloads.
pub struct ConfigSource {
    /// File to watch for changes, if there is one.
    pub file: Option<PathBuf>,
    /// Loads and validates the configuration. The error is a message for users.
    pub read: Box<dyn Fn() -> std::result::Result<LoadedConfig, String> + Send + Sync>,
}

/// Runtime options that the configuration does not contain, from CLI flags.
#[derive(Debug, Clone)]
pub struct RuntimeOptions {
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
pub struct ActiveConfig {
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
    pub rules: Vec<ActiveRule>,
    /// When this process loaded the configuration.
    pub(super) loaded_at: Timestamp,
    /// The hooks by name.
    pub(super) hooks: BTreeMap<String, ActiveHook>,
    /// Identity of a batch of all rules.
    all_rules_identity: Digest,
    run_settings: RunSettings,
}

/// A rule of the active configuration.
#[derive(Debug, Clone)]
pub struct ActiveRule {
    /// Prefix of the rule's identity, which does not depend on notation, name and schedule.
    pub id: String,
    /// Display name.
    pub name: String,
    /// Identity of a batch of this rule alone.
    pub batch_identity: Digest,
    /// Identity of a batch of what was pushed.
    pushes_identity: Digest,
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
    /// The images of a rule that names each.
    named_images: Option<Arc<NamedImages>>,
    /// The configuration with this rule alone.
    config: Config,
}

/// Result of the last load of the configuration.
#[derive(Debug, Clone)]
pub struct ReloadStatus {
    /// Time of the load.
    pub at: Timestamp,
    /// Why the load failed; the previous configuration is still in use.
    pub error: Option<String>,
}

impl ActiveConfig {
    /// Builds clients and rules from a loaded configuration. What is known of files that name images is kept from the one
    /// before.
    ///
    /// # Errors
    /// `Invalid` if a rule cannot run here or a template is wrong.
    pub fn new(
        loaded: LoadedConfig,
        backend: &Backend,
        options: &RuntimeOptions,
        former: Option<&ActiveConfig>,
    ) -> Result<ActiveConfig> {
        let LoadedConfig { config, folder, mut client, notify } = loaded;
        if backend.is_cluster() {
            refuse_layouts(&config)?;
        }
        if let Some(address) = config.serve.listen
            && let Some(why) = unprotected_hook(&config.hooks, address)
        {
            return Err(Error::new(ErrorKind::Invalid, "serving hooks", why)
                .with_hint("write a `secret` for it; `openssl rand -hex 32` makes one"));
        }
        refuse_archives(&config)?;
        client.retry = RetryPolicy {
            attempts: options.attempts,
            first_delay: options.first_delay,
            max_delay: client.retry.max_delay.max(options.first_delay),
            max_retry_after: MAX_WAIT_IN_SLOT,
            rate_limit_timeout: RATE_LIMIT_DEADLINE_IN_SLOT,
        };
        client.stall_timeout = options.stall;
        let is_cluster = backend.is_cluster();
        client.shared_rate_limit =
            Some(SharedRateLimit { store: backend.store.clone(), slow_start: is_cluster, exclusive: !is_cluster });
        let client = Client::new(client, CredentialEnvironment::from_process());
        let limits = CopyLimits { timeout: config.timeout, timeout_is_exact: false, ..CopyLimits::default() };
        let run_settings = RunSettings {
            name: None,
            force: false,
            legacy_report: false,
            prime: false,
            priority: None,
            manifests: None,
            verify: None,
            slice: None,
            pushed: None,
            lagging_pushes: LaggingPushes::default(),
            query_limit: options.query_limit,
            concurrency: options.concurrency.unwrap_or(config.concurrency),
            attempts: options.attempts,
            timeout: (config.timeout, false),
            drain: options.drain,
            detach: true,
            reclaim_policy: ReclaimPolicy::default(),
        };
        let mut without_rules = config.clone();
        without_rules.rules.clear();
        let mut rules: Vec<ActiveRule> =
            config.rules.iter().map(|rule| ActiveRule::new(rule, &without_rules, &folder)).collect();
        for rule in &mut rules {
            rule.keep_named_images(former);
        }
        Ok(ActiveConfig {
            hooks: config.hooks.iter().map(|(name, hook)| (name.clone(), active_hook(hook, &rules))).collect(),
            notifier: Arc::new(
                Notifier::new(&notify, &folder, Duration::from_secs(1))?.with_dashboard(config.serve.dashboard_url()),
            ),
            copier: build_copier(backend, &client, limits),
            rules,
            loaded_at: backend.clock.now(),
            all_rules_identity: fingerprint(&config, None),
            config,
            folder,
            client,
            run_settings,
        })
    }

    /// Returns the number of concurrent image copies in this process.
    pub fn concurrency(&self) -> usize {
        self.run_settings.concurrency
    }

    /// Returns the number of attempts per task that fails with a transient error.
    pub fn attempts(&self) -> u32 {
        self.run_settings.attempts
    }

    /// Returns the rule with this id or name.
    pub fn rule(&self, wanted: &str) -> Option<&ActiveRule> {
        let by_id = self.rules.iter().find(|rule| rule.id == wanted);
        by_id.or_else(|| self.rules.iter().find(|rule| rule.name == wanted))
    }

    /// Returns the identities of the batches that run a rule: of the rule alone, and of all rules together.
    pub(super) fn identities_of(&self, rule: &ActiveRule) -> [Digest; 2] {
        [rule.batch_identity.clone(), self.all_rules_identity.clone()]
    }

    /// Returns the identities of all batches of a rule: those of [`ActiveConfig::identities_of`], and of pushes.
    pub(super) fn all_identities_of(&self, rule: &ActiveRule) -> Vec<Digest> {
        let mut identities = Vec::from(rule.own_identities());
        if self.all_rules_identity != rule.batch_identity {
            identities.push(self.all_rules_identity.clone());
        }
        identities
    }

    /// Returns the identity of the batches that run all rules together.
    pub(super) fn all_rules_identity(&self) -> &Digest {
        &self.all_rules_identity
    }

    /// Returns the identities of all batches of this configuration.
    pub(super) fn batch_identities(&self) -> Vec<Digest> {
        let mut identities: Vec<Digest> = self.rules.iter().map(|rule| rule.batch_identity.clone()).collect();
        identities.push(self.all_rules_identity.clone());
        identities.sort_unstable();
        identities.dedup();
        identities
    }

    /// Returns the rule that batches with this identity run alone.
    pub(super) fn rule_of_batch(&self, identity: &Digest) -> Option<&ActiveRule> {
        self.rules.iter().find(|rule| rule.batch_identity == *identity || rule.pushes_identity == *identity)
    }

    /// Returns the named images of the rules that hooks may trigger.
    pub(super) fn triggered_images(&self) -> Vec<Arc<NamedImages>> {
        let is_triggered = |rule: &&ActiveRule| self.hooks.values().any(|hook| hook.triggers(&rule.id));
        self.rules.iter().filter(is_triggered).filter_map(|rule| rule.named_images.clone()).collect()
    }

    /// Returns whether pushes of a rule wait until its images, which files name, are known.
    pub(super) fn waits_for_files(&self, rule: &ActiveRule) -> bool {
        rule.named_images.as_ref().is_some_and(|images| images.is_unread())
            && self.hooks.values().any(|hook| hook.triggers(&rule.id))
    }

    /// Returns the rules as metrics describe them.
    pub(super) fn watched_rules(&self) -> Vec<WatchedRule> {
        let watched = |rule: &ActiveRule| WatchedRule {
            label: rule.metrics_label().to_owned(),
            from: rule.from.clone(),
            to: rule.to.join(", "),
            batches: self.identities_of(rule),
            interval: rule.interval,
        };
        self.rules.iter().map(watched).collect()
    }

    /// Returns the configuration of a batch of one rule or of all rules.
    pub fn config_for(&self, rules: &Digest) -> Option<&Config> {
        let one = self.rule_of_batch(rules).map(|rule| &rule.config);
        one.or_else(|| (self.all_rules_identity == *rules).then_some(&self.config))
    }

    /// Creates a run that lists, and leaves the tasks to the leader.
    pub(super) fn build_run<'a>(
        &'a self,
        backend: &'a Backend,
        config: &'a Config,
        events: TaskEvents,
        stop: &CancellationToken,
    ) -> Run<'a> {
        Run {
            backend,
            config,
            folder: &self.folder,
            client: self.client.clone(),
            copier: self.copier.clone(),
            settings: self.run_settings.clone(),
            role: SERVE_ROLE,
            events,
            drain: stop.child_token(),
            abort: stop.child_token(),
        }
    }
}

/// Returns a configuration limited to the rules of a batch: all, or those that `run --rule` chose. `None` if they are
/// not those of the configuration any more.
pub fn config_of_batch(config: &Config, batch: &Batch) -> Option<Config> {
    if batch.rules == fingerprint(config, None) {
        return Some(config.clone());
    }
    let options = BatchOptions::decode(&batch.options, "a batch").ok()?;
    let mut limited = config.clone();
    limited.rules.retain(|rule| options.rules.iter().any(|its| its.name == rule.title()));
    [fingerprint(&limited, None), pushes_fingerprint(&limited)].contains(&batch.rules).then_some(limited)
}

impl ActiveRule {
    fn new(rule: &Rule, without_rules: &Config, folder: &Path) -> ActiveRule {
        let mut config = without_rules.clone();
        config.rules = vec![rule.clone()];
        let (batch_identity, pushes_identity) = (fingerprint(&config, None), pushes_fingerprint(&config));
        let id = rule.id();
        let now = Timestamp::now();
        ActiveRule {
            interval: rule.schedule.as_ref().and_then(|schedule| schedule.longest_interval(now, &id)),
            id,
            name: rule.title(),
            is_named: rule.name.is_some(),
            batch_identity,
            pushes_identity,
            from: rule.source_label(),
            to: rule.target_labels(),
            schedule: rule.schedule.clone(),
            named_images: NamedImages::from_rule(rule, folder).map(Arc::new),
            config,
        }
    }

    /// Takes over what a former configuration has read of the same files.
    fn keep_named_images(&mut self, former: Option<&ActiveConfig>) {
        let Some(images) = &mut self.named_images else { return };
        let former = former.iter().flat_map(|former| &former.rules).filter_map(|rule| rule.named_images.as_ref());
        if let Some(same) = former.into_iter().find(|former| former.has_files_of(images)) {
            *images = same.clone();
        }
    }

    /// Returns the identities of the batches of this rule alone, and of pushes.
    pub(super) fn own_identities(&self) -> [Digest; 2] {
        [self.batch_identity.clone(), self.pushes_identity.clone()]
    }

    /// Returns whether a batch copied what was pushed, by this rule.
    pub(super) fn is_of_pushes(&self, batch: &Batch) -> bool {
        batch.rules == self.pushes_identity
    }

    /// Returns the rule as hooks trigger it.
    fn hook_rule(&self) -> Option<HookRule<'_>> {
        let rule = self.config.rules.first()?;
        Some(HookRule { id: &self.id, rule, named: self.named_images.as_ref() })
    }

    /// Returns the rule as pushes name it.
    pub(super) fn push_rule(&self) -> PushRule {
        PushRule { id: self.id.clone(), name: self.name.clone() }
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

    /// Returns whether a source of the rule is at this registry, also one that a preset names.
    pub(super) fn reads_from(&self, registry: &str) -> bool {
        let sources = self.config.rules.iter().flat_map(|rule| source_selectors(&rule.source).unwrap_or_default());
        sources.into_iter().any(|source| source.pattern.registry().as_str() == registry)
    }

    /// Returns whether the rule reads the repository of a reference.
    pub(super) fn reads_repository(&self, reference: &Reference) -> bool {
        let sources = self.config.rules.iter().flat_map(|rule| source_selectors(&rule.source).unwrap_or_default());
        sources.into_iter().any(|source| source.reads(&reference.registry, &reference.repository))
    }

    pub(super) fn config(&self) -> &Config {
        &self.config
    }
}

fn active_hook(hook: &HookConfig, rules: &[ActiveRule]) -> ActiveHook {
    let rules: Vec<HookRule<'_>> = rules.iter().filter_map(ActiveRule::hook_rule).collect();
    ActiveHook::new(hook.clone(), &rules)
}

/// Rejects archives as targets: each run of some rules would replace what other rules have written to the file.
fn refuse_archives(config: &Config) -> Result<()> {
    let writes_archive = |rule: &&Rule| rule.to.iter().any(|to| matches!(to, RuleTarget::Archive(..)));
    match config.rules.iter().find(writes_archive) {
        Some(rule) => {
            let detail = "`imgsync serve` does not write archives: it runs each rule by its own schedule";
            Err(Error::new(ErrorKind::Invalid, format!("serving {}", rule.label()), detail)
                .with_hint("write them with `imgsync run`, from cron for example, or to a folder (oci:DIR)"))
        }
        None => Ok(()),
    }
}

/// Rejects image layouts: a layout is on one machine, and tasks run on others.
fn refuse_layouts(config: &Config) -> Result<()> {
    let is_layout = |rule: &&Rule| rule.source.is_local() || rule.to.iter().any(RuleTarget::is_local);
    match config.rules.iter().find(is_layout) {
        Some(rule) => {
            let detail = "image layouts and archives work in one process only, and a cluster is configured";
            Err(Error::new(ErrorKind::Invalid, format!("serving {}", rule.label()), detail).with_hint(
                "serve it with a configuration without `cluster:`, and without IMGSYNC_BROKER and IMGSYNC_STORE",
            ))
        }
        None => Ok(()),
    }
}

impl std::fmt::Debug for ActiveConfig {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Current({} rules)", self.rules.len())
    }
}
