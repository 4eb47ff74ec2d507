//! Receiving, acknowledging and requeueing messages.

use std::sync::{Arc, PoisonError};
use std::time::{Duration, Instant};

use async_trait::async_trait;
use lapin::Acker;
use lapin::message::BasicGetMessage;
use lapin::options::{BasicAckOptions, BasicNackOptions};
use lapin::types::AMQPValue;
use tokio_util::sync::CancellationToken;

use super::connection::LiveConnection;
use super::publish::{PublishAddress, SIGNATURE_HEADER};
use super::topology::{self, DEAD_LETTER_QUEUE};
use super::{IDLE_POLL_DELAY, LEADER_CHANGE_BACKOFF, MAX_RECONNECTS, QUEUE_BACKOFF, RabbitQueue, RouteQueue};
use crate::{AckHandle, DeadLetter, Delivery, PRIORITY_CYCLE_TURNS, RouteFilter};
use imgsync_model::batch::{DecodedMessage, MAX_MESSAGE_BYTES, Message, Route};
use imgsync_oci::Digest;
use imgsync_oci::error::Result;
use imgsync_oci::sanitize::sanitize;
use imgsync_store::log_throttle;

/// Delay before a message of an unknown, newer version is offered again.
const NEWER_VERSION_DELAY: Duration = Duration::from_secs(60);

/// Result of validating a received message.
enum IncomingMessage {
    /// A task's message.
    Task(Box<Message>),
    /// A message for a newer worker.
    NewerVersion(u64),
    /// A message to refuse: kind of refusal, and reason.
    Refused(&'static str, String),
}

impl RabbitQueue {
    /// Waits for a message of these routes. Never drop it before it ends: the broker would assume that we have what it
    /// is about to deliver.
    pub(super) async fn receive_one(
        &self,
        wanted: &RouteFilter,
        only_urgent: bool,
        cancel: &CancellationToken,
    ) -> Result<Option<Delivery>> {
        if let Some(delivery) = self.poll_queues(wanted, only_urgent, cancel).await? {
            return Ok(Some(delivery));
        }
        // While there is no message, one consumer of the same routes polls for all.
        let watch = self.poll_lock(wanted, only_urgent);
        let _watches = tokio::select! {
            watches = watch.lock() => watches,
            () = cancel.cancelled() => return Ok(None),
        };
        loop {
            if let Some(delivery) = self.poll_queues(wanted, only_urgent, cancel).await? {
                return Ok(Some(delivery));
            }
            tokio::select! {
                () = tokio::time::sleep_until(self.next_poll_at(wanted, only_urgent).into()) => {}
                () = cancel.cancelled() => return Ok(None),
            }
        }
    }

    /// Polls the queues of these routes once. A queue that fails does not block the others.
    async fn poll_queues(
        &self,
        wanted: &RouteFilter,
        only_urgent: bool,
        cancel: &CancellationToken,
    ) -> Result<Option<Delivery>> {
        self.refresh_routes().await?;
        let mut live = self.0.consume_connection.get_or_connect().await?;
        let (mut last_error, mut reconnects) = (None, 0);
        for (queue, route) in self.queues_in_turn(wanted, only_urgent) {
            if cancel.is_cancelled() {
                return Ok(None);
            }
            let asked = Instant::now();
            match self.next_task_message(&live, &queue, &route).await {
                Ok(None) => self.route_table().record_poll(&queue, true),
                Ok(delivery) => {
                    self.route_table().record_poll(&queue, false);
                    return Ok(delivery);
                }
                // The queue's leader moves: the broker closes the connection of whoever requests a message (541). That
                // costs only the connection: running tasks were acknowledged.
                Err(error) if !live.is_connected() && reconnects < MAX_RECONNECTS => {
                    reconnects += 1;
                    self.route_table().back_off(&queue, asked, LEADER_CHANGE_BACKOFF);
                    log_throttle::info(&format!("connection lost at {queue}"), &format!("{error}; reconnecting"));
                    live = self.0.consume_connection.get_or_connect().await?;
                }
                Err(error) if live.is_responsive().await => {
                    let pause = self.route_table().back_off(&queue, asked, QUEUE_BACKOFF);
                    let line = format!("{error}; backing off from this queue for {} s", pause.as_secs_f64().ceil());
                    log_throttle::warn(&format!("consuming from {queue}"), &line);
                    last_error = Some(error);
                    if live.is_retired() {
                        live = self.0.consume_connection.get_or_connect().await?;
                    }
                }
                // It is the node that does not respond, not the queue.
                Err(error) if live.is_retired() && reconnects < MAX_RECONNECTS => {
                    reconnects += 1;
                    log_throttle::info(&format!("node of {queue}"), &format!("{error}; trying the next node"));
                    live = self.0.consume_connection.get_or_connect().await?;
                }
                Err(error) => return Err(error),
            }
        }
        last_error.map_or(Ok(None), Err)
    }

    /// Returns the lock of the consumer that polls for all that wait for these routes.
    fn poll_lock(&self, wanted: &RouteFilter, only_urgent: bool) -> Arc<tokio::sync::Mutex<()>> {
        let mut known = self.route_table();
        known.poll_locks.retain(|(_, watch)| watch.strong_count() > 0);
        let same = known.poll_locks.iter().find(|((routes, urgent), _)| routes == wanted && *urgent == only_urgent);
        if let Some(watch) = same.and_then(|(_, watch)| watch.upgrade()) {
            return watch;
        }
        let watch = Arc::default();
        known.poll_locks.push(((wanted.clone(), only_urgent), Arc::downgrade(&watch)));
        watch
    }

    /// Returns when to poll again after finding nothing: when the first queue is due, and soon in any case, for there
    /// may be new queues.
    fn next_poll_at(&self, wanted: &RouteFilter, only_urgent: bool) -> Instant {
        let known = self.route_table();
        let routes = known.queues.iter().filter(|(queue, its)| {
            wanted.contains(&its.route) && (its.is_urgent || !only_urgent) && !known.is_backing_off(queue)
        });
        let first = routes.filter_map(|(queue, its)| known.next_poll_at(queue, its)).min();
        let (now, most) = (Instant::now(), Instant::now() + IDLE_POLL_DELAY[1]);
        first.map_or(most, |first| first.clamp(now + IDLE_POLL_DELAY[0] / 4, most))
    }

    /// Returns the queues to poll of the selected routes, starting with another one each time, and with high priority
    /// in most turns.
    fn queues_in_turn(&self, wanted: &RouteFilter, only_urgent: bool) -> Vec<(String, Route)> {
        let mut known = self.route_table();
        let now = Instant::now();
        let is_due = |queue: &str, its: &RouteQueue| known.next_poll_at(queue, its).is_none_or(|at| at <= now);
        let routes = known
            .queues
            .iter()
            .filter(|(queue, its)| wanted.contains(&its.route) && !known.is_backing_off(queue) && is_due(queue, its));
        let (mut urgent, mut plain) = (Vec::new(), Vec::new());
        for (queue, its) in routes {
            let row = if its.is_urgent { &mut urgent } else { &mut plain };
            row.push((queue.clone(), its.route.clone()));
        }
        known.next_turn = known.next_turn.wrapping_add(1);
        let begins_plain = known.next_turn.is_multiple_of(PRIORITY_CYCLE_TURNS);
        // Each list continues from where it was when it last went first.
        let turn = if begins_plain { known.next_turn / PRIORITY_CYCLE_TURNS } else { known.next_turn };
        for row in [&mut urgent, &mut plain] {
            let first = turn.checked_rem(row.len()).unwrap_or(0);
            row.rotate_left(first);
        }
        match (only_urgent, begins_plain) {
            (true, _) => urgent,
            (false, true) => plain.into_iter().chain(urgent).collect(),
            (false, false) => urgent.into_iter().chain(plain).collect(),
        }
    }

    /// Gets the next task message of a route, if one is ready.
    async fn next_task_message(&self, live: &LiveConnection, queue: &str, route: &Route) -> Result<Option<Delivery>> {
        let operation = format!("consuming from {queue} at the broker {}", live.node());
        while let Some(got) = live.get_message(queue, &operation).await? {
            let redelivered = got.redelivered;
            let ack_handle =
                RabbitAckHandle { queue: self.clone(), queue_name: queue.to_owned(), acker: Some(got.acker.clone()) };
            if let Some((message, ack_handle)) = self.accept_or_divert(&got, ack_handle).await? {
                return Ok(Some(Delivery::new(route.clone(), message, redelivered, Box::new(ack_handle))));
            }
        }
        Ok(None)
    }

    /// Gets the next dead letter.
    pub(super) async fn next_dead_letter(&self) -> Result<Option<DeadLetter>> {
        let live = self.0.consume_connection.get_or_connect().await?;
        let operation = format!("consuming from {DEAD_LETTER_QUEUE} at the broker {}", live.node());
        while let Some(got) = live.get_message(DEAD_LETTER_QUEUE, &operation).await? {
            // A dead letter keeps its routing key: the queue of its route.
            let name = got.routing_key.to_string();
            let why = format!("{} in {name}", dead_letter_reason(&got, &name));
            let ack_handle =
                RabbitAckHandle { queue: self.clone(), queue_name: name.clone(), acker: Some(got.acker.clone()) };
            if let Some((message, ack_handle)) = self.accept_or_divert(&got, ack_handle).await? {
                self.refresh_routes().await?;
                let known = self.route_table().queues.get(&name).map(|its| its.route.clone());
                let route = known.unwrap_or_else(|| {
                    let target = message.targets[0].locator.repository.endpoint().clone();
                    Route::anonymous(message.source.repository.endpoint().clone(), target)
                });
                return Ok(Some(DeadLetter::new(route, message, why, Box::new(ack_handle))));
            }
        }
        Ok(None)
    }

    /// Returns the message if it is a task's; moves any other one to the queue where it belongs.
    async fn accept_or_divert(
        &self,
        got: &BasicGetMessage,
        ack_handle: RabbitAckHandle,
    ) -> Result<Option<(Message, RabbitAckHandle)>> {
        match self.validate(got) {
            IncomingMessage::Task(message) => return Ok(Some((*message, ack_handle))),
            IncomingMessage::NewerVersion(version) => {
                self.warn_newer_version(version);
                let address = self.address_after(ack_handle.queue_name.clone(), NEWER_VERSION_DELAY);
                ack_handle.republish(&address, &got.data, None).await?;
            }
            IncomingMessage::Refused(kind, reason) => {
                let reason = sanitize(&reason).into_owned();
                self.record_refusal(kind, format!("message refused: {reason}"));
                let stub = refusal_stub(&got.data, &reason);
                let body = stub.as_deref().unwrap_or(&got.data);
                ack_handle.republish(&PublishAddress::Refused, body, Some(&reason)).await?;
            }
        }
        Ok(None)
    }

    fn validate(&self, got: &BasicGetMessage) -> IncomingMessage {
        if got.data.len() > MAX_MESSAGE_BYTES {
            let reason = format!("{} bytes; the limit is {MAX_MESSAGE_BYTES}", got.data.len());
            return IncomingMessage::Refused("too large", reason);
        }
        if let Some(key) = &self.0.settings.key {
            let signature = got.properties.headers().as_ref().and_then(|headers| headers.inner().get(SIGNATURE_HEADER));
            match signature.and_then(as_text) {
                None => {
                    return IncomingMessage::Refused(
                        "unsigned",
                        "not signed, and `cluster.key` requires a signature".into(),
                    );
                }
                Some(signature) if !key.verify(&got.data, &signature) => {
                    return IncomingMessage::Refused("another key", "signed with another `cluster.key`".into());
                }
                Some(_) => {}
            }
        }
        match Message::decode(&got.data) {
            DecodedMessage::Message(message) => IncomingMessage::Task(Box::new(message)),
            DecodedMessage::NewerVersion(version) => IncomingMessage::NewerVersion(version),
            DecodedMessage::Invalid(reason) => IncomingMessage::Refused("unreadable", reason),
        }
    }

    fn record_refusal(&self, kind: &str, what: String) {
        log_throttle::warn(&format!("refused message: {kind}"), &what);
        let mut refused = self.0.refused.lock().unwrap_or_else(PoisonError::into_inner);
        *refused = (refused.0 + 1, Some(what));
    }

    /// Warns once about each unknown version.
    fn warn_newer_version(&self, version: u64) {
        let is_new = self.route_table().newer_version.replace(version) != Some(version);
        if is_new {
            tracing::warn!("messages of version {version} are delayed for a newer worker");
        }
    }

    /// Returns the address for a delay of at least `wait`, as far as one is offered.
    pub(super) fn address_after(&self, queue: String, wait: Duration) -> PublishAddress {
        if wait.is_zero() {
            return PublishAddress::Route(queue);
        }
        let delays = &self.0.settings.retry_delays;
        let delay = delays.iter().find(|delay| **delay >= wait).unwrap_or(&delays[delays.len() - 1]);
        PublishAddress::Retry { queue: topology::retry_queue_name(*delay), route_queue: queue }
    }
}

/// Builds the stub kept instead of an oversized message: its size, its digest and the reason.
fn refusal_stub(body: &[u8], reason: &str) -> Option<Vec<u8>> {
    (body.len() > MAX_MESSAGE_BYTES).then(|| {
        let digest = Digest::sha256(body).to_string();
        let stub = serde_json::json!({"refused": reason, "bytes": body.len(), "digest": digest});
        stub.to_string().into_bytes()
    })
}

/// Returns why a message was dead-lettered: `delivery_limit`, `rejected`. It may have expired in delay queues before.
fn dead_letter_reason(got: &BasicGetMessage, queue: &str) -> String {
    let headers = got.properties.headers().as_ref();
    let deaths = match headers.and_then(|headers| headers.inner().get("x-death")) {
        Some(AMQPValue::FieldArray(deaths)) => deaths.as_slice(),
        _ => &[],
    };
    let of_queue = deaths.iter().find_map(|death| {
        let AMQPValue::FieldTable(death) = death else { return None };
        let word = |name: &str| death.inner().get(name).and_then(as_text);
        word("queue").filter(|name| name == queue).and(word("reason"))
    });
    of_queue.unwrap_or_else(|| "dead".to_owned())
}

fn as_text(value: &AMQPValue) -> Option<String> {
    match value {
        AMQPValue::LongString(text) => Some(String::from_utf8_lossy(text.as_bytes()).into_owned()),
        AMQPValue::ShortString(text) => Some(text.to_string()),
        _ => None,
    }
}

struct RabbitAckHandle {
    queue: RabbitQueue,
    /// The route's queue.
    queue_name: String,
    /// `None` once it was used.
    acker: Option<Acker>,
}

impl RabbitAckHandle {
    /// Acknowledges. A closed channel is no error: the message is redelivered, and the ledger knows the result.
    async fn ack(&mut self) {
        if let Some(acker) = self.acker.take()
            && let Err(error) = acker.ack(BasicAckOptions::default()).await
        {
            let line = format!("a message of {} will be redelivered: {error}", self.queue_name);
            log_throttle::info(&format!("late acknowledgement in {}", self.queue_name), &line);
        }
    }

    /// Publishes the message elsewhere, then acknowledges it here.
    async fn republish(mut self, address: &PublishAddress, body: &[u8], reason: Option<&str>) -> Result<()> {
        self.queue.publish_one(address, body, reason).await?;
        self.ack().await;
        Ok(())
    }
}

#[async_trait]
impl AckHandle for RabbitAckHandle {
    async fn acknowledge(mut self: Box<Self>) -> Result<()> {
        self.ack().await;
        Ok(())
    }

    /// Publishes anew instead of rejecting, which would count as a failed delivery.
    async fn requeue(self: Box<Self>, message: Message, after: Duration) -> Result<()> {
        let address = self.queue.address_after(self.queue_name.clone(), after);
        (*self).republish(&address, &message.encode(), None).await
    }
}

impl Drop for RabbitAckHandle {
    fn drop(&mut self) {
        let Some(acker) = self.acker.take() else { return };
        if let Ok(runtime) = tokio::runtime::Handle::try_current() {
            runtime.spawn(async move {
                let _ = acker.nack(BasicNackOptions { requeue: true, ..BasicNackOptions::default() }).await;
            });
        }
    }
}
