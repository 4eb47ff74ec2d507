//! Publishing with confirms.

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use lapin::options::BasicPublishOptions;
use lapin::types::{AMQPValue, FieldTable};
use lapin::{BasicProperties, Channel, Confirmation};

use super::line::{LEADERLESS, Live, explain};
use super::topology::{self, REFUSED, WORK};
use super::{KnownLane, RabbitQueue, unreachable};
use crate::batch::{Lane, Message};
use crate::error::{Error, Result};
use crate::queue::Published;

/// Messages published before their confirms are awaited. A full queue is detected only then.
const WINDOW: usize = 250;
/// How often the queues of a route are announced: the store may lose the announcement.
const NOTED: Duration = Duration::from_secs(20);
/// Header with a message's signature.
pub(super) const SIGNATURE: &str = "signature";

/// Destination of a message.
pub(super) enum Address {
    /// A route, by the name of its queue.
    Lane(String),
    /// A delay queue, and the route's queue after that.
    Retry { queue: String, lane: String },
    /// The queue of refused messages, for manual inspection.
    Refused,
}

impl Address {
    /// Returns the exchange and the routing key.
    fn route(&self) -> (&str, &str) {
        match self {
            Address::Lane(lane) => (WORK, lane),
            Address::Retry { queue, lane } => (queue, lane),
            Address::Refused => ("", REFUSED),
        }
    }

    /// Returns the queue that the exchange routes to.
    fn queue(&self) -> &str {
        match self {
            Address::Lane(lane) => lane,
            Address::Retry { queue, .. } => queue,
            Address::Refused => REFUSED,
        }
    }
}

impl RabbitQueue {
    pub(super) async fn publish_block(&self, block: &[(Lane, Message)]) -> Result<Published> {
        let lanes: BTreeSet<(&Lane, bool)> =
            block.iter().map(|(lane, message)| (lane, message.priority.is_urgent())).collect();
        self.note(lanes).await?;
        let tried = format!("publishing at the broker {}", self.0.publishing.name());
        let mut published = Published::default();
        for (part, window) in block.chunks(WINDOW).enumerate() {
            let live = self.0.publishing.live().await?;
            let at = AtomicUsize::new(0);
            let sent = self.publish_window(&live, window, &at, &tried);
            let refused = match tokio::time::timeout(self.0.settings.confirm_within, sent).await {
                Ok(refused) => refused?,
                Err(_) => {
                    let queue = queue_for(&window[at.into_inner()]);
                    return Err(unconfirmed(&live, &format!("{tried}, to {queue}")));
                }
            };
            published.refused.extend(refused.into_iter().map(|at| part * WINDOW + at));
        }
        Ok(published)
    }

    /// Publishes a window of messages and returns the positions that were rejected. Stores the position that is being
    /// confirmed in `waits_for`.
    async fn publish_window(
        &self,
        live: &Live,
        window: &[(Lane, Message)],
        waits_for: &AtomicUsize,
        tried: &str,
    ) -> Result<Vec<usize>> {
        let channel = live.first().await;
        let mut left: Vec<usize> = (0..window.len()).collect();
        let mut refused = Vec::new();
        // A second attempt for missing queues, and a third if another one goes missing meanwhile.
        for _ in 0..3 {
            let mut confirms = Vec::with_capacity(left.len());
            for at in &left {
                let (_, message) = &window[*at];
                let queue = queue_for(&window[*at]);
                live.declare_once(&channel, &queue).await.map_err(|error| explain(tried, &error))?;
                let address = Address::Lane(queue);
                let confirm = self.send(&channel, &address, &message.encode(), None).await;
                confirms.push((*at, confirm.map_err(|error| explain(tried, &error))?));
            }
            left.clear();
            for (at, confirm) in confirms {
                waits_for.store(at, Ordering::Relaxed);
                match confirm.await.map_err(|error| explain(tried, &error))? {
                    Confirmation::Ack(None) => {}
                    // No queue is bound to that key any more.
                    Confirmation::Ack(Some(_)) => {
                        live.note_declared(&queue_for(&window[at]), false);
                        left.push(at);
                    }
                    Confirmation::Nack(_) | Confirmation::NotRequested => refused.push(at),
                }
            }
            if left.is_empty() {
                break;
            }
        }
        refused.extend(left);
        refused.sort_unstable();
        Ok(refused)
    }

    /// Publishes one message, and returns when it is confirmed.
    pub(super) async fn publish_one(&self, address: &Address, body: &[u8], reason: Option<&str>) -> Result<()> {
        let tried = format!("publishing to {} at the broker {}", address.queue(), self.0.publishing.name());
        // A second attempt for a missing queue.
        for _ in 0..2 {
            let live = self.0.publishing.live().await?;
            let sent = async {
                // The channel is not held while the confirm is awaited.
                let confirm = {
                    let channel = live.first().await;
                    live.declare_once(&channel, address.queue()).await?;
                    self.send(&channel, address, body, reason).await?
                };
                confirm.await
            };
            match tokio::time::timeout(self.0.settings.confirm_within, sent).await {
                Ok(Ok(Confirmation::Ack(None))) => return Ok(()),
                Ok(Ok(Confirmation::Ack(Some(_)))) => live.note_declared(address.queue(), false),
                Ok(Ok(_)) => return Err(unreachable(&tried, "the queue is full")),
                Ok(Err(error)) => return Err(explain(&tried, &error)),
                Err(_) => return Err(unconfirmed(&live, &tried)),
            }
        }
        Err(unreachable(&tried, "the queue is deleted again and again"))
    }

    async fn send(
        &self,
        channel: &Channel,
        address: &Address,
        body: &[u8],
        reason: Option<&str>,
    ) -> lapin::Result<lapin::PublisherConfirm> {
        let mut headers = FieldTable::default();
        // Refused messages are not signed: a signature would make them valid for whoever requeues them.
        if let Some(key) = self.0.settings.key.as_ref().filter(|_| reason.is_none()) {
            headers.insert(SIGNATURE.into(), AMQPValue::LongString(key.sign(body).into()));
        }
        if let Some(reason) = reason {
            headers.insert("reason".into(), AMQPValue::LongString(reason.into()));
        }
        let properties = BasicProperties::default()
            .with_content_type("application/json".into())
            .with_delivery_mode(2)
            .with_headers(headers);
        let options = BasicPublishOptions { mandatory: true, ..BasicPublishOptions::default() };
        let (exchange, key) = address.route();
        channel.basic_publish(exchange.into(), key.into(), options, body, properties).await
    }

    /// Announces the queues of these routes to consumers: the route's own, or the one for high priority.
    pub(super) async fn note(&self, lanes: impl IntoIterator<Item = (&Lane, bool)>) -> Result<()> {
        let new: Vec<(String, Lane, bool)> = {
            let known = self.known();
            let lanes =
                lanes.into_iter().map(|(lane, is_urgent)| (topology::queue_of(lane, is_urgent), lane, is_urgent));
            let is_new = |queue: &String| known.noted.get(queue).is_none_or(|at| at.elapsed() > NOTED);
            let new = lanes.filter(|(queue, ..)| is_new(queue));
            new.map(|(queue, lane, is_urgent)| (queue, lane.clone(), is_urgent)).collect()
        };
        if new.is_empty() {
            return Ok(());
        }
        let of = |wanted: bool| -> Vec<Lane> {
            let its = new.iter().filter(|(_, _, is_urgent)| *is_urgent == wanted);
            its.map(|(_, lane, _)| lane.clone()).collect()
        };
        self.0.roster.note_queues(&of(false), &of(true)).await?;
        let mut known = self.known();
        let now = Instant::now();
        known.noted.retain(|_, at| at.elapsed() <= NOTED);
        for (queue, lane, is_urgent) in new {
            known.lanes.insert(queue.clone(), KnownLane { lane, is_urgent, noted_at: Some(now) });
            known.noted.insert(queue, now);
        }
        Ok(())
    }
}

/// Returns the queue that a message is published to.
fn queue_for((lane, message): &(Lane, Message)) -> String {
    topology::queue_of(lane, message.priority.is_urgent())
}

fn unconfirmed(live: &Live, tried: &str) -> Error {
    match live.is_blocked() {
        true => unreachable(tried, "it takes no messages now: it is short of memory or disk")
            .hint("see `rabbitmq-diagnostics alarms`; publishing goes on when the alarm is over"),
        false => unreachable(tried, "it does not confirm").hint(LEADERLESS),
    }
}
