//! The trait that each kind of notification target implements.

use std::fmt;
use std::path::Path;

use async_trait::async_trait;
use imgsync_oci::error::{Error, Result};
use imgsync_oci::retry::RetryPolicy;

use super::http_sender::HttpSender;
use super::notification::{Notification, NotificationEvent};

/// A notification target: a chat, a mailbox, a URL.
#[async_trait]
pub(super) trait NotificationTarget: fmt::Debug + Send + Sync {
    /// Returns the configuration key of its kind.
    fn key(&self) -> &'static str;

    /// Returns the address, which no other target of its kind has. May contain secrets: only a hash is stored.
    fn address(&self) -> String;

    /// Returns where notifications go, for people, without secrets.
    fn label(&self) -> String;

    /// Returns whether the target is notified of an event.
    fn wants(&self, event: NotificationEvent) -> bool;

    /// Sends a notification, with retries after transient errors.
    async fn send(&self, notification: &Notification<'_>) -> Result<()>;

    /// Formats an error of `send` as a warning.
    fn describe_failure(&self, error: &Error) -> String;
}

/// Settings shared by all targets.
pub(super) struct TargetContext<'a> {
    /// Folder of relative paths.
    pub(super) folder: &'a Path,
    /// Retries of targets that do not use HTTP.
    pub(super) policy: RetryPolicy,
    /// Sends HTTP requests, with the same retries.
    pub(super) http: HttpSender,
}

/// Formats an error with its hint.
pub(super) fn with_hint(error: &Error) -> String {
    match error.hint() {
        Some(advice) => format!("{error} ({advice})"),
        None => error.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use imgsync_config::NotifyCondition;

    use super::*;

    #[test]
    fn a_throttled_registry_meets_every_condition_and_a_batch_its_own() {
        let unchanged = NotificationEvent::BatchEnded { copied: false, failed: false };
        let copied = NotificationEvent::BatchEnded { copied: true, failed: false };
        let failed = NotificationEvent::BatchEnded { copied: false, failed: true };
        let events = [unchanged, copied, failed, NotificationEvent::RegistryThrottled];
        for (condition, expected) in [
            (NotifyCondition::Always, [true, true, true, true]),
            (NotifyCondition::Changes, [false, true, true, true]),
            (NotifyCondition::Failure, [false, false, true, true]),
        ] {
            assert_eq!(events.map(|event| event.meets(condition)), expected, "{condition:?}");
        }
    }
}
