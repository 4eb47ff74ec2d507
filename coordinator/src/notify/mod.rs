//! Tells people and programs how a batch went: a group of Telegram, and webhooks. What cannot be told is a warning, never a
//! failed run.

mod post;
mod split;
mod telegram;
mod webhook;

use std::path::Path;
use std::time::Duration;

use imgsync_common::batch::BatchId;
use imgsync_common::config::{Notify, When};
use imgsync_common::error::Result;
use imgsync_common::retry::Policy;
use imgsync_common::store::{Named, Store};

use self::post::Post;
use self::telegram::Telegram;
use self::webhook::Webhook;
use crate::report::{Level, Report};

/// Tries of one request.
const ATTEMPTS: u32 = 5;
/// The longest pause between two.
const MAX_DELAY: Duration = Duration::from_secs(15);
/// A server that asks to wait for longer than this is not waited for.
const MAX_WAIT: Duration = Duration::from_secs(90);
/// For how long it is remembered that a batch was told of: longer than two coordinators can see the same end apart.
const TOLD: Duration = Duration::from_secs(3600);

/// Who is told.
#[derive(Debug)]
pub struct Notifier {
    telegram: Option<(Telegram, When)>,
    webhooks: Vec<(Webhook, When)>,
}

impl Notifier {
    /// As configured. Templates are read now, relative ones from this folder; what is wrong with one is an error. What fails
    /// in passing is tried again after this pause at first.
    pub fn new(notify: &Notify, folder: &Path, first_delay: Duration) -> Result<Notifier> {
        let max_delay = MAX_DELAY.max(first_delay);
        let post = Post::new(Policy {
            attempts: ATTEMPTS,
            first_delay,
            max_delay,
            max_wait: MAX_WAIT,
            patience: Duration::ZERO,
        });
        let telegram = notify.telegram.as_ref().and_then(|it| Some((Telegram::new(it, post.clone())?, it.on)));
        let webhook = |it| Ok((Webhook::new(it, folder, post.clone())?, it.on));
        let webhooks = notify.webhooks.iter().map(webhook).collect::<Result<_>>()?;
        Ok(Notifier { telegram, webhooks })
    }

    /// Whether nobody is told of anything.
    pub fn is_empty(&self) -> bool {
        self.telegram.is_none() && self.webhooks.is_empty()
    }

    /// Tells all who want to hear of it. Says whom it could not tell, and why.
    pub async fn tell(&self, report: &Report<'_>, level: Level) -> Vec<String> {
        let counts = &report.batch.counts;
        let failed = counts.failed + counts.cancelled + counts.open() > 0 || !report.unlisted.is_empty();
        let is_met = |on: &When| on.is_met(counts.copied > 0, failed);
        let mut warnings = Vec::new();
        if let Some((telegram, on)) = &self.telegram
            && is_met(on)
            && let Err(error) = telegram.tell(report, level).await
        {
            warnings.push(format!("Telegram was not told: {error}"));
        }
        for (webhook, on) in &self.webhooks {
            if is_met(on)
                && let Err(error) = webhook.tell(report, level).await
            {
                warnings.push(format!("a webhook was not told: {error}"));
            }
        }
        warnings
    }
}

/// Whether a batch is this coordinator's to tell of: of several that see it end, one tells. A store that does not answer
/// makes nobody silent.
pub async fn is_ours_to_tell(store: &dyn Store, batch: BatchId, name: &str) -> bool {
    !matches!(store.acquire(&format!("told:{batch}"), name, TOLD).await, Ok(Named::Others { .. }))
}
