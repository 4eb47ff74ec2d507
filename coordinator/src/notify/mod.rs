//! Notifications of batches: Telegram, chats, email, webhooks, and pings after success. A failed notification is a
//! warning, never a failed run.

mod chat;
mod delivery;
mod email;
mod http_sender;
mod notification;
mod split;
mod telegram;
mod truncating_writer;
mod webhook;

use std::collections::BTreeMap;
use std::path::Path;
use std::time::Duration;

use imgsync_config::{NotifyCondition, NotifyConfig, WebhookUrl};
use imgsync_oci::Digest;
use imgsync_oci::error::Result;
use imgsync_oci::retry::RetryPolicy;

#[cfg(test)]
pub(crate) use self::delivery::DELIVERY_WINDOW;
pub use self::delivery::deliver_once;
pub(crate) use self::delivery::{deliver, is_within_delivery_window, notification_counters};
pub use self::notification::ThrottleNotice;

use self::chat::Chat;
use self::email::Email;
use self::http_sender::{HttpReply, HttpSender, status_error};
use self::notification::Notification;
use self::telegram::Telegram;
use self::webhook::Webhook;
use crate::report::{self, Report, ReportFormat, ReportLevel, ReportSpec};

/// Maximum attempts of a request.
const MAX_ATTEMPTS: u32 = 5;
/// Maximum pause between two attempts.
const MAX_DELAY: Duration = Duration::from_secs(15);
/// Maximum `Retry-After` that is waited for.
const MAX_RETRY_AFTER: Duration = Duration::from_secs(90);
/// Timeout of a ping.
const PING_TIMEOUT: Duration = Duration::from_secs(30);

/// Notification targets.
#[derive(Debug)]
pub struct Notifier {
    telegram: Option<(Telegram, NotifyCondition)>,
    webhooks: Vec<(Webhook, NotifyCondition)>,
    chats: Vec<(Chat, NotifyCondition)>,
    emails: Vec<(Email, NotifyCondition)>,
    pings: Vec<WebhookUrl>,
    throttle_threshold: Duration,
    http: HttpSender,
}

impl Notifier {
    /// Creates the targets from the configuration and reads their templates, relative to `folder`. Transient errors are
    /// retried after `first_delay` at first.
    pub fn new(notify: &NotifyConfig, folder: &Path, first_delay: Duration) -> Result<Notifier> {
        let max_delay = MAX_DELAY.max(first_delay);
        let policy = RetryPolicy {
            attempts: MAX_ATTEMPTS,
            first_delay,
            max_delay,
            max_retry_after: MAX_RETRY_AFTER,
            rate_limit_timeout: Duration::ZERO,
        };
        let http = HttpSender::new(policy);
        let telegram = notify.telegram.as_ref().and_then(|it| Some((Telegram::new(it, http.clone())?, it.on)));
        let webhook = |it| Ok((Webhook::new(it, folder, http.clone())?, it.on));
        let webhooks = notify.webhooks.iter().map(webhook).collect::<Result<_>>()?;
        let chats = notify.chats.iter().map(|it| Ok((Chat::new(it, folder, http.clone())?, it.on)));
        let chats = chats.collect::<Result<_>>()?;
        let emails = notify.emails.iter().map(|it| Ok((Email::new(it, folder, policy)?, it.on)));
        let emails = emails.collect::<Result<_>>()?;
        let (pings, throttle_threshold) = (notify.pings.clone(), notify.throttled);
        Ok(Notifier { telegram, webhooks, chats, emails, pings, throttle_threshold, http })
    }

    /// Returns whether there are no targets.
    pub fn is_empty(&self) -> bool {
        !self.wants_throttle_notices() && self.pings.is_empty()
    }

    /// Returns how long a registry may hold up a batch before [`Notifier::send_throttle_notice`] is called.
    pub fn throttle_threshold(&self) -> Duration {
        self.throttle_threshold
    }

    /// Returns whether any target receives notifications of registry holds.
    pub fn wants_throttle_notices(&self) -> bool {
        self.telegram.is_some() || !self.webhooks.is_empty() || !self.chats.is_empty() || !self.emails.is_empty()
    }

    /// Sends the report to all targets whose condition is met. Returns the failures.
    pub async fn send(&self, report: &Report<'_>, level: ReportLevel) -> Vec<String> {
        let mut warnings = Vec::new();
        for (_, recipient) in self.recipients(report) {
            warnings.extend(self.send_to(&recipient, report, level).await.err());
        }
        warnings
    }

    /// Returns the recipients whose condition is met, each with a name that is the same for every coordinator and
    /// contains no secret.
    fn recipients(&self, report: &Report<'_>) -> Vec<(String, Recipient<'_>)> {
        let counts = &report.batch.counts;
        let failed = counts.failed + counts.cancelled + counts.unfinished() > 0 || !report.unlisted.is_empty();
        let is_met = |on: &NotifyCondition| on.is_met(counts.copied > 0, failed);
        let telegram = self.telegram.iter().filter(|(_, on)| is_met(on)).map(|(to, _)| Recipient::Telegram(to));
        let webhooks = self.webhooks.iter().filter(|(_, on)| is_met(on)).map(|(to, _)| Recipient::Webhook(to));
        let chats = self.chats.iter().filter(|(_, on)| is_met(on)).map(|(to, _)| Recipient::Chat(to));
        let emails = self.emails.iter().filter(|(_, on)| is_met(on)).map(|(to, _)| Recipient::Email(to));
        let pings = self.pings.iter().filter(|_| !failed).map(Recipient::Ping);
        let mut times: BTreeMap<String, u32> = BTreeMap::new();
        let named = telegram.chain(webhooks).chain(chats).chain(emails).chain(pings).map(|recipient| {
            let name = recipient.name();
            let times = times.entry(name.clone()).or_default();
            *times += 1;
            (if *times == 1 { name } else { format!("{name} {times}") }, recipient)
        });
        named.collect()
    }

    /// Sends the report to one recipient. The error names the recipient.
    async fn send_to(
        &self,
        to: &Recipient<'_>,
        report: &Report<'_>,
        level: ReportLevel,
    ) -> std::result::Result<(), String> {
        match to {
            Recipient::Telegram(telegram) => telegram
                .send_report(report, level)
                .await
                .map_err(|error| format!("Telegram notification failed: {error}")),
            Recipient::Webhook(webhook) => webhook
                .send_report(report, level)
                .await
                .map_err(|error| format!("webhook notification failed: {error}")),
            Recipient::Chat(chat) => send_chat(chat, report, level)
                .await
                .map_err(|error| format!("{} notification failed: {}", chat.name(), with_hint(&error))),
            Recipient::Email(email) => send_email(email, report, level)
                .await
                .map_err(|error| format!("email notification failed: {}", with_hint(&error))),
            Recipient::Ping(url) => self.ping(url).await.map_err(|error| format!("ping failed: {error}")),
        }
    }

    /// Notifies all targets but pings of a registry that holds up a batch. Returns the failures.
    pub async fn send_throttle_notice(&self, throttled: &ThrottleNotice) -> Vec<String> {
        let message = Notification::for_throttle(throttled);
        let mut warnings = Vec::new();
        if let Some((telegram, _)) = &self.telegram
            && let Err(error) = telegram.send_text(&format!("{}\n\n{}", message.title, message.text)).await
        {
            warnings.push(format!("Telegram notification failed: {error}"));
        }
        for (webhook, _) in &self.webhooks {
            if let Err(error) = webhook.send_throttle_notice(throttled).await {
                warnings.push(format!("webhook notification failed: {error}"));
            }
        }
        for (chat, _) in &self.chats {
            if let Err(error) = chat.send(&message).await {
                warnings.push(format!("{} notification failed: {}", chat.name(), with_hint(&error)));
            }
        }
        for (email, _) in &self.emails {
            if let Err(error) = email.send(&message, None).await {
                warnings.push(format!("email notification failed: {}", with_hint(&error)));
            }
        }
        warnings
    }

    /// Pings a monitoring URL after success.
    async fn ping(&self, url: &WebhookUrl) -> Result<()> {
        let operation = format!("requesting {url}");
        let read = |answer: &HttpReply| match answer.status.is_success() {
            true => None,
            false => Some(status_error(&operation, answer, &format!("HTTP {}", answer.status))),
        };
        let request = |client: &reqwest::Client| client.get(url.expose().clone());
        self.http.send(url.expose(), &operation, PING_TIMEOUT, request, read).await
    }
}

/// A recipient of notifications.
enum Recipient<'a> {
    Telegram(&'a Telegram),
    Webhook(&'a Webhook),
    Chat(&'a Chat),
    Email(&'a Email),
    Ping(&'a WebhookUrl),
}

impl Recipient<'_> {
    fn name(&self) -> String {
        let (kind, address) = match self {
            Recipient::Telegram(telegram) => ("telegram", telegram.address()),
            Recipient::Webhook(webhook) => ("webhook", webhook.address()),
            Recipient::Chat(chat) => (chat.key(), chat.address()),
            Recipient::Email(email) => ("email", email.address()),
            Recipient::Ping(url) => ("ping", url.expose().to_string()),
        };
        // Addresses contain tokens.
        format!("{kind} {}", Digest::sha256(address.as_bytes()).short())
    }
}

async fn send_chat(chat: &Chat, report: &Report<'_>, level: ReportLevel) -> Result<()> {
    chat.send(&Notification::for_report(report, level, chat.template.as_ref()).await?).await
}

async fn send_email(email: &Email, report: &Report<'_>, level: ReportLevel) -> Result<()> {
    let message = Notification::for_report(report, level, email.template.as_ref()).await?;
    let mut page = Vec::new();
    report::write(report, &ReportSpec { format: ReportFormat::Html, level: Some(level), template: None }, &mut page)
        .await?;
    email.send(&message, Some((&format!("imgsync-{}.html", report.batch.id), page))).await
}

fn with_hint(error: &imgsync_oci::error::Error) -> String {
    match error.hint() {
        Some(hint) => format!("{error} ({hint})"),
        None => error.to_string(),
    }
}
