//! Pings: URLs of a monitoring service (a dead man's switch), requested after each successful batch.

use std::time::Duration;

use async_trait::async_trait;
use imgsync_config::{NotifyConfig, WebhookUrl};
use imgsync_oci::error::{Error, Result};

use crate::notify::http_sender::{HttpReply, HttpSender, status_error};
use crate::notify::notification::{Notification, NotificationEvent};
use crate::notify::target::{NotificationTarget, TargetContext};

/// Timeout of a request.
const PING_TIMEOUT: Duration = Duration::from_secs(30);

/// A URL that is requested.
#[derive(Debug)]
struct Ping {
    url: WebhookUrl,
    http: HttpSender,
}

/// Builds the configured pings.
pub(super) fn build(notify: &NotifyConfig, context: &TargetContext<'_>) -> Result<Vec<Box<dyn NotificationTarget>>> {
    let ping = |url: &WebhookUrl| -> Box<dyn NotificationTarget> {
        Box::new(Ping { url: url.clone(), http: context.http.clone() })
    };
    Ok(notify.pings.iter().map(ping).collect())
}

#[async_trait]
impl NotificationTarget for Ping {
    fn key(&self) -> &'static str {
        "ping"
    }

    fn address(&self) -> String {
        self.url.expose().to_string()
    }

    fn label(&self) -> String {
        self.url.to_string()
    }

    fn wants(&self, event: NotificationEvent) -> bool {
        matches!(event, NotificationEvent::BatchEnded { failed: false, .. })
    }

    async fn send(&self, _: &Notification<'_>) -> Result<()> {
        let operation = format!("requesting {}", self.url);
        let read = |answer: &HttpReply| match answer.status.is_success() {
            true => None,
            false => Some(status_error(&operation, answer, &format!("HTTP {}", answer.status))),
        };
        let request = |client: &reqwest::Client| client.get(self.url.expose().clone());
        self.http.send(self.url.expose(), &operation, PING_TIMEOUT, request, read).await
    }

    fn describe_failure(&self, error: &Error) -> String {
        format!("ping failed: {error}")
    }
}
