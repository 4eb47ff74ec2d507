//! Notifications of batches: Telegram, chats, email, webhooks, and pings after success. A failed notification is a
//! warning, never a failed run.

mod chat;
mod delivery;
mod http_sender;
mod notification;
mod split;
mod target;
mod targets;
mod truncating_writer;

use std::collections::BTreeMap;
use std::path::Path;
use std::time::Duration;

use imgsync_config::NotifyConfig;
use imgsync_oci::Digest;
use imgsync_oci::error::Result;
use imgsync_oci::retry::RetryPolicy;

#[cfg(test)]
pub(crate) use self::delivery::DELIVERY_WINDOW;
pub use self::delivery::deliver_once;
pub(crate) use self::delivery::{deliver, is_within_delivery_window, notification_counters};
pub use self::notification::ThrottleNotice;

use self::http_sender::HttpSender;
use self::notification::{Notification, NotificationEvent};
use self::target::{NotificationTarget, TargetContext};
use self::targets::build_targets;
use crate::report::{Report, ReportLevel};

/// Maximum attempts of a request.
const MAX_ATTEMPTS: u32 = 5;
/// Maximum pause between two attempts.
const MAX_DELAY: Duration = Duration::from_secs(15);
/// Maximum `Retry-After` that is waited for.
const MAX_RETRY_AFTER: Duration = Duration::from_secs(90);

/// Notification targets.
#[derive(Debug)]
pub struct Notifier {
    targets: Vec<Box<dyn NotificationTarget>>,
    throttle_threshold: Duration,
    dashboard: Option<String>,
}

/// A target to which a test message was sent.
pub(crate) struct TestedTarget {
    /// Configuration key of its kind.
    pub(crate) kind: &'static str,
    /// Where its notifications go, without secrets.
    pub(crate) label: String,
    /// `None` if nothing was sent.
    pub(crate) result: Option<Result<()>>,
}

impl Notifier {
    /// Creates the targets from the configuration and reads their templates, relative to `folder`. Transient errors are
    /// retried after `first_delay` at first.
    pub fn new(notify: &NotifyConfig, folder: &Path, first_delay: Duration) -> Result<Notifier> {
        Notifier::with_attempts(MAX_ATTEMPTS, notify, folder, first_delay)
    }

    /// Creates the targets for a test, which retries nothing.
    pub(crate) fn for_test(notify: &NotifyConfig, folder: &Path) -> Result<Notifier> {
        Notifier::with_attempts(1, notify, folder, Duration::ZERO)
    }

    fn with_attempts(attempts: u32, notify: &NotifyConfig, folder: &Path, first_delay: Duration) -> Result<Notifier> {
        let policy = RetryPolicy {
            attempts,
            first_delay,
            max_delay: MAX_DELAY.max(first_delay),
            max_retry_after: MAX_RETRY_AFTER,
            rate_limit_timeout: Duration::ZERO,
        };
        let context = TargetContext { folder, policy, http: HttpSender::new(policy) };
        let targets = build_targets(notify, &context)?;
        Ok(Notifier { targets, throttle_threshold: notify.throttled, dashboard: None })
    }

    /// Sets the URL of the dashboard, to which notifications link.
    #[must_use]
    pub fn with_dashboard(mut self, url: Option<String>) -> Notifier {
        self.dashboard = url;
        self
    }

    /// Returns the URL of the dashboard, if it is known.
    pub(crate) fn dashboard(&self) -> Option<&str> {
        self.dashboard.as_deref()
    }

    /// Returns whether there are no targets.
    pub fn is_empty(&self) -> bool {
        self.targets.is_empty()
    }

    /// Returns how long a registry may hold up a batch before [`Notifier::send_throttle_notice`] is called.
    pub fn throttle_threshold(&self) -> Duration {
        self.throttle_threshold
    }

    /// Returns whether any target receives notifications of registry holds.
    pub fn wants_throttle_notices(&self) -> bool {
        self.targets.iter().any(|target| target.wants(NotificationEvent::RegistryThrottled))
    }

    /// Sends the report to all targets whose condition is met. Returns the failures.
    pub async fn send(&self, report: &Report<'_>, level: ReportLevel) -> Vec<String> {
        self.send_to_all(&Notification::BatchEnded { report, level }).await
    }

    /// Notifies all targets but pings of a registry that holds up a batch. Returns the failures.
    pub async fn send_throttle_notice(&self, throttled: &ThrottleNotice) -> Vec<String> {
        self.send_to_all(&Notification::RegistryThrottled(throttled)).await
    }

    /// Returns the configuration keys of the kinds of the targets, each once.
    pub(crate) fn kinds(&self) -> Vec<&'static str> {
        let mut kinds: Vec<&'static str> = self.targets.iter().map(|target| target.key()).collect();
        kinds.dedup();
        kinds
    }

    /// Sends a test message to all targets, or to those of some kinds. A ping is requested only by its kind: it would
    /// count as a successful batch.
    pub(crate) async fn send_test(&self, kinds: &[String]) -> Vec<TestedTarget> {
        let mut tested = Vec::new();
        for target in &self.targets {
            let is_named = kinds.iter().any(|kind| kind == target.key());
            if !is_named && !kinds.is_empty() {
                continue;
            }
            let result = match is_named || target.wants(NotificationEvent::Test) {
                true => Some(target.send(&Notification::Test).await),
                false => None,
            };
            tested.push(TestedTarget { kind: target.key(), label: target.label(), result });
        }
        tested
    }

    /// Sends a notification to all targets that want it. Returns the failures.
    async fn send_to_all(&self, notification: &Notification<'_>) -> Vec<String> {
        let mut warnings = Vec::new();
        for (_, target) in self.targets_for(notification.event()) {
            warnings.extend(send_to(target, notification).await.err());
        }
        warnings
    }

    /// Returns the targets that want to be notified of an event, each with a name that is the same for every
    /// coordinator and contains no secret.
    fn targets_for(&self, event: NotificationEvent) -> Vec<(String, &dyn NotificationTarget)> {
        let mut times: BTreeMap<String, u32> = BTreeMap::new();
        let named = self.targets.iter().filter(|target| target.wants(event)).map(|target| {
            // Addresses contain tokens.
            let name = format!("{} {}", target.key(), Digest::sha256(target.address().as_bytes()).short());
            let times = times.entry(name.clone()).or_default();
            *times += 1;
            (if *times == 1 { name } else { format!("{name} {times}") }, &**target)
        });
        named.collect()
    }
}

/// Sends a notification to one target. The error names the target.
async fn send_to(target: &dyn NotificationTarget, notification: &Notification<'_>) -> std::result::Result<(), String> {
    target.send(notification).await.map_err(|error| target.describe_failure(&error))
}
