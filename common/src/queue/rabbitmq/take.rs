//! Receiving, acknowledging and requeueing messages.

use std::sync::{Arc, PoisonError};
use std::time::{Duration, Instant};

use async_trait::async_trait;
use lapin::Acker;
use lapin::message::BasicGetMessage;
use lapin::options::{BasicAckOptions, BasicNackOptions};
use lapin::types::AMQPValue;
use tokio_util::sync::CancellationToken;

use super::line::Live;
use super::publish::{Address, SIGNATURE};
use super::topology::{self, DEAD};
use super::{IDLE, KnownLane, LEADER_RESTS, RECONNECTS, RESTS, RabbitQueue};
use crate::batch::{Decoded, Lane, MAX_MESSAGE_BYTES, Message};
use crate::error::Result;
use crate::image::Digest;
use crate::printable::printable;
use crate::queue::{Dead, Delivery, Lanes, Receipt, URGENT_TURNS};
use crate::repeated;

/// Delay before a message of an unknown, newer version is offered again.
const NEWER: Duration = Duration::from_secs(60);

/// Result of validating a received message.
enum Opened {
    /// A task's message.
    Message(Box<Message>),
    /// A message for a newer worker.
    Newer(u64),
    /// A message to refuse: kind of refusal, and reason.
    Refused(&'static str, String),
}

impl RabbitQueue {
    /// Waits for a message of these routes. Never drop it before it ends: the broker would assume that we have what it
    /// is about to deliver.
    pub(super) async fn take_one(
        &self,
        wanted: &Lanes,
        only_urgent: bool,
        cancel: &CancellationToken,
    ) -> Result<Option<Delivery>> {
        if let Some(delivery) = self.look(wanted, only_urgent, cancel).await? {
            return Ok(Some(delivery));
        }
        // While there is no message, one consumer of the same routes polls for all.
        let watch = self.watch(wanted, only_urgent);
        let _watches = tokio::select! {
            watches = watch.lock() => watches,
            () = cancel.cancelled() => return Ok(None),
        };
        loop {
            if let Some(delivery) = self.look(wanted, only_urgent, cancel).await? {
                return Ok(Some(delivery));
            }
            tokio::select! {
                () = tokio::time::sleep_until(self.look_again(wanted, only_urgent).into()) => {}
                () = cancel.cancelled() => return Ok(None),
            }
        }
    }

    /// Polls the queues of these routes once. A queue that fails does not block the others.
    async fn look(&self, wanted: &Lanes, only_urgent: bool, cancel: &CancellationToken) -> Result<Option<Delivery>> {
        self.read_lanes().await?;
        let mut live = self.0.taking.live().await?;
        let (mut trouble, mut reconnects) = (None, 0);
        for (queue, lane) in self.lanes_in_turn(wanted, only_urgent) {
            if cancel.is_cancelled() {
                return Ok(None);
            }
            match self.get(&live, &queue, &lane).await {
                Ok(None) => self.known().note_answer(&queue, true),
                Ok(delivery) => {
                    self.known().note_answer(&queue, false);
                    return Ok(delivery);
                }
                // The queue's leader moves: the broker closes the connection of whoever requests a message (541). That
                // costs only the connection: running tasks were acknowledged.
                Err(error) if !live.is_connected() && reconnects < RECONNECTS => {
                    reconnects += 1;
                    self.known().let_rest(&queue, LEADER_RESTS);
                    repeated::info(&format!("a connection lost at {queue}"), &format!("{error}; connecting again"));
                    live = self.0.taking.live().await?;
                }
                Err(error) if live.answers().await => {
                    self.known().let_rest(&queue, RESTS);
                    let line = format!("{error}; the lane is left alone for a while");
                    repeated::warn(&format!("taking from {queue}"), &line);
                    trouble = Some(error);
                }
                Err(error) => return Err(error),
            }
        }
        trouble.map_or(Ok(None), Err)
    }

    /// Returns the lock of the consumer that polls for all that wait for these routes.
    fn watch(&self, wanted: &Lanes, only_urgent: bool) -> Arc<tokio::sync::Mutex<()>> {
        let mut known = self.known();
        known.watches.retain(|(_, watch)| watch.strong_count() > 0);
        let same = known.watches.iter().find(|((lanes, urgent), _)| lanes == wanted && *urgent == only_urgent);
        if let Some(watch) = same.and_then(|(_, watch)| watch.upgrade()) {
            return watch;
        }
        let watch = Arc::default();
        known.watches.push(((wanted.clone(), only_urgent), Arc::downgrade(&watch)));
        watch
    }

    /// Returns when to poll again after finding nothing: when the first queue is due, and soon in any case, for there
    /// may be new queues.
    fn look_again(&self, wanted: &Lanes, only_urgent: bool) -> Instant {
        let known = self.known();
        let lanes = known.lanes.iter().filter(|(queue, its)| {
            wanted.contains(&its.lane) && (its.is_urgent || !only_urgent) && !known.rests(queue)
        });
        let first = lanes.filter_map(|(queue, its)| known.ask_again(queue, its)).min();
        let (now, most) = (Instant::now(), Instant::now() + IDLE[1]);
        first.map_or(most, |first| first.clamp(now + IDLE[0] / 4, most))
    }

    /// Returns the queues to poll of the selected routes, starting with another one each time, and with high priority
    /// in most turns.
    fn lanes_in_turn(&self, wanted: &Lanes, only_urgent: bool) -> Vec<(String, Lane)> {
        let mut known = self.known();
        let now = Instant::now();
        let is_due = |queue: &str, its: &KnownLane| known.ask_again(queue, its).is_none_or(|at| at <= now);
        let lanes = known
            .lanes
            .iter()
            .filter(|(queue, its)| wanted.contains(&its.lane) && !known.rests(queue) && is_due(queue, its));
        let (mut urgent, mut plain) = (Vec::new(), Vec::new());
        for (queue, its) in lanes {
            let row = if its.is_urgent { &mut urgent } else { &mut plain };
            row.push((queue.clone(), its.lane.clone()));
        }
        known.turn = known.turn.wrapping_add(1);
        let begins_plain = known.turn.is_multiple_of(URGENT_TURNS);
        // Each list continues from where it was when it last went first.
        let turn = if begins_plain { known.turn / URGENT_TURNS } else { known.turn };
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
    async fn get(&self, live: &Live, queue: &str, lane: &Lane) -> Result<Option<Delivery>> {
        let tried = format!("taking from {queue} at the broker {}", self.0.taking.name());
        while let Some(got) = live.get(queue, &tried).await? {
            let redelivered = got.redelivered;
            let receipt = RabbitReceipt { queue: self.clone(), name: queue.to_owned(), acker: Some(got.acker.clone()) };
            if let Some((message, receipt)) = self.sort_out(&got, receipt).await? {
                return Ok(Some(Delivery::new(lane.clone(), message, redelivered, Box::new(receipt))));
            }
        }
        Ok(None)
    }

    /// Gets the next dead letter.
    pub(super) async fn next_dead(&self) -> Result<Option<Dead>> {
        let tried = format!("taking from {DEAD} at the broker {}", self.0.taking.name());
        let live = self.0.taking.live().await?;
        while let Some(got) = live.get(DEAD, &tried).await? {
            // A dead letter keeps its routing key: the queue of its route.
            let name = got.routing_key.to_string();
            let why = format!("{} in {name}", death(&got, &name));
            let receipt = RabbitReceipt { queue: self.clone(), name: name.clone(), acker: Some(got.acker.clone()) };
            if let Some((message, receipt)) = self.sort_out(&got, receipt).await? {
                self.read_lanes().await?;
                let known = self.known().lanes.get(&name).map(|its| its.lane.clone());
                let lane = known.unwrap_or_else(|| {
                    let target = message.targets[0].place.home.end().clone();
                    Lane::anonymous(message.source.home.end().clone(), target)
                });
                return Ok(Some(Dead::new(lane, message, why, Box::new(receipt))));
            }
        }
        Ok(None)
    }

    /// Returns the message if it is a task's; moves any other one to the queue where it belongs.
    async fn sort_out(
        &self,
        got: &BasicGetMessage,
        receipt: RabbitReceipt,
    ) -> Result<Option<(Message, RabbitReceipt)>> {
        match self.open(got) {
            Opened::Message(message) => return Ok(Some((*message, receipt))),
            Opened::Newer(version) => {
                self.note_newer(version);
                let address = self.address(receipt.name.clone(), NEWER);
                receipt.move_to(&address, &got.data, None).await?;
            }
            Opened::Refused(kind, reason) => {
                let reason = printable(&reason).into_owned();
                self.note_refusal(kind, format!("a message was refused: {reason}"));
                let stub = stub_of(&got.data, &reason);
                let body = stub.as_deref().unwrap_or(&got.data);
                receipt.move_to(&Address::Refused, body, Some(&reason)).await?;
            }
        }
        Ok(None)
    }

    fn open(&self, got: &BasicGetMessage) -> Opened {
        if got.data.len() > MAX_MESSAGE_BYTES {
            let reason = format!("it has {} bytes, and {MAX_MESSAGE_BYTES} are allowed", got.data.len());
            return Opened::Refused("too large", reason);
        }
        if let Some(key) = &self.0.settings.key {
            let signature = got.properties.headers().as_ref().and_then(|headers| headers.inner().get(SIGNATURE));
            match signature.and_then(as_text) {
                None => {
                    return Opened::Refused(
                        "unsigned",
                        "it is not signed, and here messages have to be (cluster.key)".into(),
                    );
                }
                Some(signature) if !key.verifies(&got.data, &signature) => {
                    return Opened::Refused("another key", "it is signed with another key (cluster.key)".into());
                }
                Some(_) => {}
            }
        }
        match Message::decode(&got.data) {
            Decoded::Message(message) => Opened::Message(Box::new(message)),
            Decoded::NewerVersion(version) => Opened::Newer(version),
            Decoded::Garbage(reason) => Opened::Refused("unreadable", reason),
        }
    }

    fn note_refusal(&self, kind: &str, what: String) {
        repeated::warn(&format!("a refused message: {kind}"), &what);
        let mut refused = self.0.refused.lock().unwrap_or_else(PoisonError::into_inner);
        *refused = (refused.0 + 1, Some(what));
    }

    /// Warns once about each unknown version.
    fn note_newer(&self, version: u64) {
        let is_new = self.known().newer.replace(version) != Some(version);
        if is_new {
            tracing::warn!("messages of version {version} are left for a newer worker");
        }
    }

    /// Returns the address for a delay of at least `wait`, as far as one is offered.
    pub(super) fn address(&self, queue: String, wait: Duration) -> Address {
        if wait.is_zero() {
            return Address::Lane(queue);
        }
        let delays = &self.0.settings.retry_delays;
        let delay = delays.iter().find(|delay| **delay >= wait).unwrap_or(&delays[delays.len() - 1]);
        Address::Retry { queue: topology::retry_queue(*delay), lane: queue }
    }
}

/// Builds the stub kept instead of an oversized message: its size, its digest and the reason.
fn stub_of(body: &[u8], reason: &str) -> Option<Vec<u8>> {
    (body.len() > MAX_MESSAGE_BYTES).then(|| {
        let digest = Digest::sha256(body).to_string();
        let stub = serde_json::json!({"refused": reason, "bytes": body.len(), "digest": digest});
        stub.to_string().into_bytes()
    })
}

/// Returns why a message was dead-lettered: `delivery_limit`, `rejected`. It may have expired in delay queues before.
fn death(got: &BasicGetMessage, queue: &str) -> String {
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

struct RabbitReceipt {
    queue: RabbitQueue,
    /// The route's queue.
    name: String,
    /// `None` once it was used.
    acker: Option<Acker>,
}

impl RabbitReceipt {
    /// Acknowledges. A closed channel is no error: the message is redelivered, and the ledger knows the result.
    async fn ack(&mut self) {
        if let Some(acker) = self.acker.take()
            && let Err(error) = acker.ack(BasicAckOptions::default()).await
        {
            let line = format!("a message of {} will be delivered again: {error}", self.name);
            repeated::info(&format!("a late acknowledgement in {}", self.name), &line);
        }
    }

    /// Publishes the message elsewhere, then acknowledges it here.
    async fn move_to(mut self, address: &Address, body: &[u8], reason: Option<&str>) -> Result<()> {
        self.queue.publish_one(address, body, reason).await?;
        self.ack().await;
        Ok(())
    }
}

#[async_trait]
impl Receipt for RabbitReceipt {
    async fn acknowledge(mut self: Box<Self>) -> Result<()> {
        self.ack().await;
        Ok(())
    }

    /// Publishes anew instead of rejecting, which would count as a failed delivery.
    async fn give_back(self: Box<Self>, message: Message, after: Duration) -> Result<()> {
        let address = self.queue.address(self.name.clone(), after);
        (*self).move_to(&address, &message.encode(), None).await
    }
}

impl Drop for RabbitReceipt {
    fn drop(&mut self) {
        let Some(acker) = self.acker.take() else { return };
        if let Ok(runtime) = tokio::runtime::Handle::try_current() {
            runtime.spawn(async move {
                let _ = acker.nack(BasicNackOptions { requeue: true, ..BasicNackOptions::default() }).await;
            });
        }
    }
}
