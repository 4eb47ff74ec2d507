//! Webhooks: the data of a report as JSON, or rendered by a template.

use std::path::Path;
use std::time::Duration;

use imgsync_common::batch::SigningKey;
use imgsync_common::config;
use imgsync_common::error::{Class, Error, Result};
use reqwest::header::{CONTENT_TYPE, HeaderMap, HeaderName, HeaderValue};
use serde::Serialize;
use serde_json::json;

use super::Throttled;
use super::post::{Answer, Post, refused};
use crate::report::{Form, Level, Report, Template, View};

/// Header with the signature of the body: `sha256=` and HMAC-SHA256 in hexadecimal digits.
const SIGNATURE: HeaderName = HeaderName::from_static("x-imgsync-signature");
/// Timeout of a request.
const LIMIT: Duration = Duration::from_secs(30);

/// A webhook.
#[derive(Debug)]
pub(super) struct Webhook {
    url: config::WebhookUrl,
    headers: HeaderMap,
    template: Option<Template>,
    key: Option<SigningKey>,
    post: Post,
}

/// Payload without a template.
#[derive(Serialize)]
struct Ended<'a> {
    event: &'static str,
    #[serde(flatten)]
    view: &'a View,
}

impl Webhook {
    /// Creates the webhook from its configuration.
    pub(super) fn new(configured: &config::Webhook, folder: &Path, post: Post) -> Result<Webhook> {
        let form = configured.template.as_deref().map_or(Form::Json, Form::of_template);
        let template = match &configured.template {
            Some(path) => Some(Template::read(&folder.join(path), form)?),
            None => None,
        };
        let mut headers = HeaderMap::new();
        headers.insert(
            CONTENT_TYPE,
            HeaderValue::from_static(match form {
                Form::Json => "application/json",
                Form::Html => "text/html; charset=utf-8",
                Form::Markdown | Form::Text => "text/plain; charset=utf-8",
            }),
        );
        for (name, value) in &configured.headers {
            let tried = format!("reading the headers of the webhook {}", configured.url);
            let invalid = |_| Error::new(Class::Invalid, &tried, format!("`{name}` cannot be sent"));
            let mut value = HeaderValue::from_str(value.expose()).map_err(|error| invalid(error.to_string()))?;
            value.set_sensitive(true);
            let name = HeaderName::from_bytes(name.as_bytes()).map_err(|error| invalid(error.to_string()))?;
            headers.insert(name, value);
        }
        let key = configured.secret.as_ref().map(SigningKey::new);
        Ok(Webhook { url: configured.url.clone(), headers, template, key, post })
    }

    /// Identifies the recipient by its URL, which contains a secret.
    pub(super) fn address(&self) -> String {
        self.url.expose().to_string()
    }

    /// Posts the report.
    pub(super) async fn tell(&self, report: &Report<'_>, level: Level) -> Result<()> {
        let tried = format!("posting to {}", self.url);
        let view = View::of(report, level).await?;
        let body = match &self.template {
            Some(template) => template.render(&view)?,
            None => serde_json::to_string(&Ended { event: "batch.ended", view: &view })
                .map_err(|error| Error::new(Class::Local, &tried, error.to_string()))?,
        };
        self.send(&tried, self.headers.clone(), body).await
    }

    /// Posts that a registry holds up a batch, always as JSON, because templates are for reports.
    pub(super) async fn tell_throttled(&self, throttled: &Throttled) -> Result<()> {
        let Throttled { batch, registry, why, until, open } = throttled;
        let body = json!({
            "event": "registry.throttled", "batch": batch.to_string(), "registry": registry.to_string(), "why": why,
            "until": until.to_string(), "open": open,
        });
        let mut headers = self.headers.clone();
        headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
        self.send(&format!("posting to {}", self.url), headers, body.to_string()).await
    }

    async fn send(&self, tried: &str, mut headers: HeaderMap, body: String) -> Result<()> {
        if let Some(key) = &self.key
            && let Ok(signature) = HeaderValue::from_str(&format!("sha256={}", key.sign(body.as_bytes())))
        {
            headers.insert(SIGNATURE, signature);
        }
        let url = self.url.expose();
        let request = |client: &reqwest::Client| client.post(url.clone()).headers(headers.clone()).body(body.clone());
        let read = |answer: &Answer| match answer.status.is_success() {
            true => None,
            // The body is omitted from the error: it could echo a secret.
            false => Some(refused(tried, answer, &format!("HTTP {}", answer.status))),
        };
        self.post.send(url, tried, LIMIT, request, read).await
    }
}
