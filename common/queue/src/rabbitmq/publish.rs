//! Publishing with confirms.

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use lapin::options::BasicPublishOptions;
use lapin::types::{AMQPValue, FieldTable};
use lapin::{BasicProperties, Channel, Confirmation};

use super::connection::{LEADERLESS_QUEUE_HINT, LiveConnection, broker_error};
use super::topology::{self, REFUSED_QUEUE, WORK_EXCHANGE};
use super::{RabbitQueue, RouteQueue, unreachable_error};
use crate::PublishResult;
use imgsync_model::batch::{Message, Route};
use imgsync_oci::error::{Error, Result};

/// Messages published before their confirms are awaited. A full queue is detected only then.
const CONFIRM_WINDOW: usize = 250;
/// How often the queues of a route are announced: the store may lose the announcement.
const ANNOUNCE_INTERVAL: Duration = Duration::from_secs(20);
/// Header with a message's signature.
pub(super) const SIGNATURE_HEADER: &str = "signature";

/// Destination of a message.
pub(super) enum PublishAddress {
    /// A route, by the name of its queue.
    Route(String),
    /// A delay queue, and the route's queue after that.
    Retry { queue: String, route_queue: String },
    /// The queue of refused messages, for manual inspection.
    Refused,
}

impl PublishAddress {
    /// Returns the exchange and the routing key.
    fn exchange_and_key(&self) -> (&str, &str) {
        match self {
            PublishAddress::Route(route) => (WORK_EXCHANGE, route),
            PublishAddress::Retry { queue, route_queue: route } => (queue, route),
            PublishAddress::Refused => ("", REFUSED_QUEUE),
        }
    }

    /// Returns the queue that the exchange routes to.
    fn destination_queue(&self) -> &str {
        match self {
            PublishAddress::Route(route) => route,
            PublishAddress::Retry { queue, .. } => queue,
            PublishAddress::Refused => REFUSED_QUEUE,
        }
    }
}

impl RabbitQueue {
    pub(super) async fn publish_block(&self, block: &[(Route, Message)]) -> Result<PublishResult> {
        let routes: BTreeSet<(&Route, bool)> =
            block.iter().map(|(route, message)| (route, message.priority.is_urgent())).collect();
        self.announce_queues(routes).await?;
        let mut published = PublishResult::default();
        for (part, window) in block.chunks(CONFIRM_WINDOW).enumerate() {
            let live = self.0.publish_connection.get_or_connect().await?;
            let operation = format!("publishing at the broker {}", live.node());
            let at = AtomicUsize::new(usize::MAX);
            let sent = self.publish_window(&live, window, &at, &operation);
            let refused = match tokio::time::timeout(self.0.settings.confirm_timeout, sent).await {
                Ok(refused) => refused?,
                Err(_) => {
                    let error = match window.get(at.into_inner()) {
                        Some(message) => unconfirmed_error(&live, &format!("{operation}, to {}", queue_for(message))),
                        None => busy_error(&operation),
                    };
                    return Err(error);
                }
            };
            published.rejected.extend(refused.into_iter().map(|at| part * CONFIRM_WINDOW + at));
        }
        Ok(published)
    }

    /// Publishes a window of messages and returns the positions that were rejected. Stores the position that is being
    /// sent or confirmed in `waits_for`, once it has the channel.
    async fn publish_window(
        &self,
        live: &LiveConnection,
        window: &[(Route, Message)],
        waits_for: &AtomicUsize,
        operation: &str,
    ) -> Result<Vec<usize>> {
        let channel = live.control_channel().await;
        let mut left: Vec<usize> = (0..window.len()).collect();
        let mut refused = Vec::new();
        // A second attempt for missing queues, and a third if another one goes missing meanwhile.
        for _ in 0..3 {
            let mut confirms = Vec::with_capacity(left.len());
            for at in &left {
                waits_for.store(*at, Ordering::Relaxed);
                let (_, message) = &window[*at];
                let queue = queue_for(&window[*at]);
                live.ensure_declared(&channel, &queue).await.map_err(|error| broker_error(operation, &error))?;
                let address = PublishAddress::Route(queue);
                let confirm = self.send(&channel, &address, &message.encode(), None).await;
                confirms.push((*at, confirm.map_err(|error| broker_error(operation, &error))?));
            }
            left.clear();
            for (at, confirm) in confirms {
                waits_for.store(at, Ordering::Relaxed);
                match confirm.await.map_err(|error| broker_error(operation, &error))? {
                    Confirmation::Ack(None) => {}
                    // No queue is bound to that key any more.
                    Confirmation::Ack(Some(_)) => {
                        live.set_declared(&queue_for(&window[at]), false);
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
    pub(super) async fn publish_one(&self, address: &PublishAddress, body: &[u8], reason: Option<&str>) -> Result<()> {
        let queue = address.destination_queue();
        let operation = |node: &str| format!("publishing to {queue} at the broker {node}");
        // A second attempt for a missing queue.
        for _ in 0..2 {
            let live = self.0.publish_connection.get_or_connect().await?;
            let operation = operation(live.node());
            let has_channel = AtomicBool::new(false);
            let sent = async {
                // The channel is not held while the confirm is awaited.
                let confirm = {
                    let channel = live.control_channel().await;
                    has_channel.store(true, Ordering::Relaxed);
                    live.ensure_declared(&channel, queue).await?;
                    self.send(&channel, address, body, reason).await?
                };
                confirm.await
            };
            match tokio::time::timeout(self.0.settings.confirm_timeout, sent).await {
                Ok(Ok(Confirmation::Ack(None))) => return Ok(()),
                Ok(Ok(Confirmation::Ack(Some(_)))) => live.set_declared(queue, false),
                Ok(Ok(_)) => return Err(unreachable_error(&operation, "the queue is full")),
                Ok(Err(error)) => return Err(broker_error(&operation, &error)),
                Err(_) if has_channel.into_inner() => return Err(unconfirmed_error(&live, &operation)),
                Err(_) => return Err(busy_error(&operation)),
            }
        }
        Err(unreachable_error(&operation(self.0.publish_connection.name()), "the queue keeps being deleted"))
    }

    async fn send(
        &self,
        channel: &Channel,
        address: &PublishAddress,
        body: &[u8],
        reason: Option<&str>,
    ) -> lapin::Result<lapin::PublisherConfirm> {
        let mut headers = FieldTable::default();
        // Refused messages are not signed: a signature would make them valid for whoever requeues them.
        if let Some(key) = self.0.settings.key.as_ref().filter(|_| reason.is_none()) {
            headers.insert(SIGNATURE_HEADER.into(), AMQPValue::LongString(key.sign(body).into()));
        }
        if let Some(reason) = reason {
            headers.insert("reason".into(), AMQPValue::LongString(reason.into()));
        }
        let properties = BasicProperties::default()
            .with_content_type("application/json".into())
            .with_delivery_mode(2)
            .with_headers(headers);
        let options = BasicPublishOptions { mandatory: true, ..BasicPublishOptions::default() };
        let (exchange, key) = address.exchange_and_key();
        channel.basic_publish(exchange.into(), key.into(), options, body, properties).await
    }

    /// Announces the queues of these routes to consumers: the route's own, or the one for high priority.
    pub(super) async fn announce_queues(&self, routes: impl IntoIterator<Item = (&Route, bool)>) -> Result<()> {
        let new: Vec<(String, Route, bool)> = {
            let known = self.route_table();
            let routes =
                routes.into_iter().map(|(route, is_urgent)| (topology::queue_name(route, is_urgent), route, is_urgent));
            let is_new = |queue: &String| known.announced.get(queue).is_none_or(|at| at.elapsed() > ANNOUNCE_INTERVAL);
            let new = routes.filter(|(queue, ..)| is_new(queue));
            new.map(|(queue, route, is_urgent)| (queue, route.clone(), is_urgent)).collect()
        };
        if new.is_empty() {
            return Ok(());
        }
        let of = |wanted: bool| -> Vec<Route> {
            let its = new.iter().filter(|(_, _, is_urgent)| *is_urgent == wanted);
            its.map(|(_, route, _)| route.clone()).collect()
        };
        self.0.worker_registry.record_queues(&of(false), &of(true)).await?;
        let mut known = self.route_table();
        let now = Instant::now();
        known.announced.retain(|_, at| at.elapsed() <= ANNOUNCE_INTERVAL);
        for (queue, route, is_urgent) in new {
            known.queues.insert(queue.clone(), RouteQueue { route, is_urgent, announced_at: Some(now) });
            known.announced.insert(queue, now);
        }
        Ok(())
    }
}

/// Returns the queue that a message is published to.
fn queue_for((route, message): &(Route, Message)) -> String {
    topology::queue_name(route, message.priority.is_urgent())
}

/// Returns the error of a message that was not sent, because others wait for their confirms. They give the connection up
/// if those never come.
fn busy_error(operation: &str) -> Error {
    unreachable_error(operation, "messages published before are not confirmed yet")
}

/// Returns the error of a message that was not confirmed in time. The caller publishes it again, through another node
/// unless the broker is only low on memory or disk, which concerns all nodes.
fn unconfirmed_error(live: &LiveConnection, operation: &str) -> Error {
    if live.is_blocked() {
        return unreachable_error(operation, "publishing is blocked: the broker is low on memory or disk")
            .with_hint("see `rabbitmq-diagnostics alarms`; publishing resumes when the alarm clears");
    }
    live.retire();
    unreachable_error(operation, "no publisher confirm in time").with_hint(LEADERLESS_QUEUE_HINT)
}
