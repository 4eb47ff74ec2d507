//! Handing messages over, and knowing that they were.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use lapin::options::BasicPublishOptions;
use lapin::types::{AMQPValue, FieldTable, ShortString};
use lapin::{BasicProperties, Channel, Confirmation};

use super::line::{Live, explain};
use super::topology::{self, WORK};
use super::{RabbitQueue, unreachable};
use crate::batch::{Lane, Message};
use crate::error::Result;
use crate::queue::Published;
use crate::store::LANE_KEPT;

/// Messages whose confirmations are waited for at a time. A queue that is full is known to be so only then.
const WINDOW: usize = 250;
/// How long a broker may take to confirm a window.
const CONFIRM: Duration = Duration::from_secs(30);
/// The header with a message's signature.
pub(super) const SIGNATURE: &str = "signature";

/// Where a message goes.
pub(super) struct Address {
    pub(super) exchange: String,
    /// The name of a lane's queue, which is kept on the way.
    pub(super) key: String,
}

impl RabbitQueue {
    pub(super) async fn publish_block(&self, block: &[(Lane, Message)]) -> Result<Published> {
        let lanes: BTreeSet<&Lane> = block.iter().map(|(lane, _)| lane).collect();
        self.note(&lanes).await?;
        let tried = format!("publishing at the broker {}", self.0.publishing.name());
        let mut published = Published::default();
        for (part, window) in block.chunks(WINDOW).enumerate() {
            let live = self.0.publishing.live().await?;
            let sent = self.publish_window(&live, window, &tried);
            let refused = match tokio::time::timeout(CONFIRM, sent).await {
                Ok(refused) => refused?,
                Err(_) => {
                    return Err(match live.is_blocked() {
                        true => unreachable(&tried, "it takes no messages now: it is short of memory or disk")
                            .hint("see `rabbitmq-diagnostics alarms`; publishing goes on when the alarm is over"),
                        false => unreachable(&tried, "it does not confirm"),
                    });
                }
            };
            published.refused.extend(refused.into_iter().map(|at| part * WINDOW + at));
        }
        Ok(published)
    }

    /// Publishes some messages and says which there was no room for.
    async fn publish_window(&self, live: &Live, window: &[(Lane, Message)], tried: &str) -> Result<Vec<usize>> {
        let channel = live.channels()[0].lock().await;
        let mut left: Vec<usize> = (0..window.len()).collect();
        let mut refused = Vec::new();
        // Once more for queues that turn out to be gone, and once again should that happen meanwhile.
        for _ in 0..3 {
            let mut confirms = Vec::with_capacity(left.len());
            for at in &left {
                let (lane, message) = &window[*at];
                let queue = topology::queue_of(lane);
                if !live.is_declared(&queue) {
                    let declared = topology::declare_lane(&channel, &queue, &self.0.settings).await;
                    declared.map_err(|error| explain(tried, &error))?;
                    live.note_declared(&queue, true);
                }
                let address = Address { exchange: WORK.to_owned(), key: queue };
                let confirm = self.send(&channel, &address, &message.encode(), None).await;
                confirms.push((*at, confirm.map_err(|error| explain(tried, &error))?));
            }
            left.clear();
            for (at, confirm) in confirms {
                match confirm.await.map_err(|error| explain(tried, &error))? {
                    Confirmation::Ack(None) => {}
                    // Nobody has that queue any more.
                    Confirmation::Ack(Some(_)) => {
                        live.note_declared(&topology::queue_of(&window[at].0), false);
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
        let tried = format!("publishing at the broker {}", self.0.publishing.name());
        let live = self.0.publishing.live().await?;
        let sent = async {
            // The channel is not held while the confirmation is waited for.
            let confirm = {
                let channel = live.channels()[0].lock().await;
                if address.exchange == WORK && !live.is_declared(&address.key) {
                    topology::declare_lane(&channel, &address.key, &self.0.settings).await?;
                    live.note_declared(&address.key, true);
                }
                self.send(&channel, address, body, reason).await?
            };
            confirm.await
        };
        match tokio::time::timeout(CONFIRM, sent).await {
            Ok(Ok(Confirmation::Ack(None))) => Ok(()),
            Ok(Ok(Confirmation::Ack(Some(_)))) => {
                live.note_declared(&address.key, false);
                Err(unreachable(&tried, "a queue is gone"))
            }
            Ok(Ok(_)) => Err(unreachable(&tried, "a queue is full")),
            Ok(Err(error)) => Err(explain(&tried, &error)),
            Err(_) => Err(unreachable(&tried, "it does not confirm")),
        }
    }

    async fn send(
        &self,
        channel: &Channel,
        address: &Address,
        body: &[u8],
        reason: Option<&str>,
    ) -> lapin::Result<lapin::PublisherConfirm> {
        let mut headers = FieldTable::default();
        if let Some(key) = &self.0.settings.key {
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
        let (exchange, key): (ShortString, ShortString) =
            (address.exchange.as_str().into(), address.key.as_str().into());
        channel.basic_publish(exchange, key, options, body, properties).await
    }

    /// Lets those who take know of these lanes.
    async fn note(&self, lanes: &BTreeSet<&Lane>) -> Result<()> {
        let stale = |at: &Instant| at.elapsed() > LANE_KEPT / 30;
        let new: Vec<Lane> = {
            let known = self.known();
            let is_new = |lane: &&&Lane| known.noted.get(**lane).is_none_or(stale);
            lanes.iter().filter(is_new).map(|lane| (*lane).clone()).collect()
        };
        if new.is_empty() {
            return Ok(());
        }
        self.0.roster.note_lanes(&new).await?;
        let mut known = self.known();
        for lane in new {
            known.lanes.insert(topology::queue_of(&lane), lane.clone());
            known.noted.insert(lane, Instant::now());
        }
        Ok(())
    }
}
