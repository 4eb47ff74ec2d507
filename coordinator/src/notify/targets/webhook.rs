//! Webhooks: the data of a report as JSON, or rendered by a template.

use std::path::Path;
use std::time::Duration;

use async_trait::async_trait;
use imgsync_config::{NotifyCondition, NotifyConfig, WebhookConfig, WebhookUrl};
use imgsync_model::batch::SigningKey;
use imgsync_oci::error::{Error, ErrorKind, Result};
use reqwest::header::{CONTENT_TYPE, HeaderMap, HeaderName, HeaderValue};
use serde::Serialize;
use serde_json::json;

use crate::notify::http_sender::{HttpReply, HttpSender, status_error};
use crate::notify::notification::{Notification, NotificationEvent, TEST_MESSAGE, ThrottleNotice};
use crate::notify::target::{NotificationTarget, TargetContext};
use crate::report::{Report, ReportData, ReportFormat, ReportLevel, ReportTemplate};

/// Header with the signature of the body: `sha256=` and HMAC-SHA256 in hexadecimal digits.
const SIGNATURE: HeaderName = HeaderName::from_static("x-imgsync-signature");
/// Timeout of a request.
const SEND_TIMEOUT: Duration = Duration::from_secs(30);

/// A webhook.
#[derive(Debug)]
struct Webhook {
    url: WebhookUrl,
    headers: HeaderMap,
    template: Option<ReportTemplate>,
    key: Option<SigningKey>,
    on: NotifyCondition,
    http: HttpSender,
}

/// Payload without a template.
#[derive(Serialize)]
struct BatchEndedPayload<'a> {
    event: &'static str,
    #[serde(flatten)]
    view: &'a ReportData,
}

/// Builds the configured webhooks.
pub(super) fn build(notify: &NotifyConfig, context: &TargetContext<'_>) -> Result<Vec<Box<dyn NotificationTarget>>> {
    let webhooks = notify.webhooks.iter().map(|it| Webhook::new(it, context.folder, context.http.clone()));
    webhooks.map(|webhook| Ok(Box::new(webhook?) as Box<dyn NotificationTarget>)).collect()
}

#[async_trait]
impl NotificationTarget for Webhook {
    fn key(&self) -> &'static str {
        "webhook"
    }

    fn address(&self) -> String {
        self.url.expose().to_string()
    }

    fn label(&self) -> String {
        self.url.to_string()
    }

    fn wants(&self, event: NotificationEvent) -> bool {
        event.meets(self.on)
    }

    async fn send(&self, notification: &Notification<'_>) -> Result<()> {
        match notification {
            Notification::BatchEnded { report, level } => self.send_report(report, *level).await,
            Notification::RegistryThrottled(notice) => self.send_throttle_notice(notice).await,
            Notification::Test => self.post_event(json!({"event": "test", "message": TEST_MESSAGE})).await,
        }
    }

    fn describe_failure(&self, error: &Error) -> String {
        format!("webhook notification failed: {error}")
    }
}

impl Webhook {
    /// Creates the webhook from its configuration.
    fn new(configured: &WebhookConfig, folder: &Path, http: HttpSender) -> Result<Webhook> {
        let form = configured.template.as_deref().map_or(ReportFormat::Json, ReportFormat::from_template_path);
        let template = match &configured.template {
            Some(path) => Some(ReportTemplate::read(&folder.join(path), form)?),
            None => None,
        };
        let mut headers = HeaderMap::new();
        headers.insert(
            CONTENT_TYPE,
            HeaderValue::from_static(match form {
                ReportFormat::Json => "application/json",
                ReportFormat::Html => "text/html; charset=utf-8",
                ReportFormat::Markdown | ReportFormat::Text | ReportFormat::Legacy => "text/plain; charset=utf-8",
            }),
        );
        for (name, value) in &configured.headers {
            let operation = format!("reading the headers of the webhook {}", configured.url);
            let invalid = |_| Error::new(ErrorKind::Invalid, &operation, format!("`{name}` cannot be sent"));
            let mut value = HeaderValue::from_str(value.expose()).map_err(|error| invalid(error.to_string()))?;
            value.set_sensitive(true);
            let name = HeaderName::from_bytes(name.as_bytes()).map_err(|error| invalid(error.to_string()))?;
            headers.insert(name, value);
        }
        let key = configured.secret.as_ref().map(SigningKey::new);
        Ok(Webhook { url: configured.url.clone(), headers, template, key, on: configured.on, http })
    }

    /// Posts the report.
    async fn send_report(&self, report: &Report<'_>, level: ReportLevel) -> Result<()> {
        let operation = format!("posting to {}", self.url);
        let view = ReportData::load(report, level).await?;
        let body = match &self.template {
            Some(template) => template.render(&view)?,
            None => serde_json::to_string(&BatchEndedPayload { event: "batch.ended", view: &view })
                .map_err(|error| Error::new(ErrorKind::Local, &operation, error.to_string()))?,
        };
        self.post_body(&operation, self.headers.clone(), body).await
    }

    /// Posts that a registry holds up a batch.
    async fn send_throttle_notice(&self, throttled: &ThrottleNotice) -> Result<()> {
        let ThrottleNotice { batch, registry, why, until, open } = throttled;
        self.post_event(json!({
            "event": "registry.throttled", "batch": batch.to_string(), "registry": registry.to_string(), "reason": why,
            "until": until.to_string(), "open": open,
        }))
        .await
    }

    /// Posts an event without a report, always as JSON, because templates are for reports.
    async fn post_event(&self, body: serde_json::Value) -> Result<()> {
        let mut headers = self.headers.clone();
        headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
        self.post_body(&format!("posting to {}", self.url), headers, body.to_string()).await
    }

    async fn post_body(&self, operation: &str, mut headers: HeaderMap, body: String) -> Result<()> {
        if let Some(key) = &self.key
            && let Ok(signature) = HeaderValue::from_str(&format!("sha256={}", key.sign(body.as_bytes())))
        {
            headers.insert(SIGNATURE, signature);
        }
        let url = self.url.expose();
        let request = |client: &reqwest::Client| client.post(url.clone()).headers(headers.clone()).body(body.clone());
        let read = |answer: &HttpReply| match answer.status.is_success() {
            true => None,
            // The body is omitted from the error: it could echo a secret.
            false => Some(status_error(operation, answer, &format!("HTTP {}", answer.status))),
        };
        self.http.send(url, operation, SEND_TIMEOUT, request, read).await
    }
}
