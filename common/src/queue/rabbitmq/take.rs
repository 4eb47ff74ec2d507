//! Taking messages, one by one, and letting go of them.

use std::sync::PoisonError;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use lapin::Acker;
use lapin::message::BasicGetMessage;
use lapin::options::{BasicAckOptions, BasicGetOptions, BasicNackOptions};
use lapin::types::AMQPValue;
use rand::Rng as _;
use tokio_util::sync::CancellationToken;

use super::RabbitQueue;
use super::line::{Live, explain};
use super::publish::{Address, SIGNATURE};
use super::topology::{self, DEAD, REFUSED, WORK};
use crate::batch::{Decoded, Lane, Message};
use crate::error::Result;
use crate::printable::printable;
use crate::queue::{Dead, Delivery, Lanes, Receipt};

/// How long to wait where nothing waits to be taken: at first, and at the most.
const IDLE: [Duration; 2] = [Duration::from_millis(20), Duration::from_millis(500)];
/// When a message of a version that is not known here is offered again.
const NEWER: Duration = Duration::from_secs(60);

/// What a message turned out to be.
enum Opened {
    /// A task's.
    Message(Box<Message>),
    /// To be left for a newer worker.
    Newer(u64),
    /// To be refused.
    Refused(String),
}

impl RabbitQueue {
    /// Waits for a message of these lanes. Never to be dropped before it ends: the broker would believe that we have what
    /// it was about to give.
    pub(super) async fn take_one(&self, wanted: &Lanes, cancel: &CancellationToken) -> Result<Option<Delivery>> {
        static NEXT: AtomicUsize = AtomicUsize::new(0);
        let mut idle = IDLE[0];
        loop {
            self.read_lanes().await?;
            let lanes = self.lanes_in_turn(wanted);
            let live = self.0.taking.live().await?;
            let own = NEXT.fetch_add(1, Ordering::Relaxed);
            for (queue, lane) in lanes {
                if cancel.is_cancelled() {
                    return Ok(None);
                }
                if let Some(delivery) = self.get(&live, own, &queue, &lane).await? {
                    return Ok(Some(delivery));
                }
            }
            // Many that wait do not ask at the same moment.
            let pause = rand::rng().random_range(idle / 2..=idle);
            tokio::select! {
                () = tokio::time::sleep(pause) => {}
                () = cancel.cancelled() => return Ok(None),
            }
            idle = (idle * 2).min(IDLE[1]);
        }
    }

    /// The lanes that are wanted, beginning with another one each time.
    fn lanes_in_turn(&self, wanted: &Lanes) -> Vec<(String, Lane)> {
        let mut known = self.known();
        let mut lanes: Vec<(String, Lane)> = known
            .lanes
            .iter()
            .filter(|(_, lane)| wanted.contains(lane))
            .map(|(queue, lane)| (queue.clone(), lane.clone()))
            .collect();
        known.turn = known.turn.wrapping_add(1);
        let turn = known.turn.checked_rem(lanes.len()).unwrap_or(0);
        lanes.rotate_left(turn);
        lanes
    }

    /// The next message of a lane that is a task's, if any waits.
    async fn get(&self, live: &Live, own: usize, queue: &str, lane: &Lane) -> Result<Option<Delivery>> {
        let tried = format!("taking from {queue} at the broker {}", self.0.taking.name());
        loop {
            let channel = live.channels()[own % live.channels().len()].lock().await;
            if !live.is_declared(queue) {
                let declared = topology::declare_lane(&channel, queue, &self.0.settings).await;
                declared.map_err(|error| explain(&tried, &error))?;
                live.note_declared(queue, true);
            }
            let got = channel.basic_get(queue.into(), BasicGetOptions::default()).await;
            drop(channel);
            let Some(got) = got.map_err(|error| explain(&tried, &error))? else { return Ok(None) };
            let redelivered = got.redelivered;
            let receipt = RabbitReceipt { queue: self.clone(), name: queue.to_owned(), acker: Some(got.acker.clone()) };
            match self.open(&got) {
                Opened::Message(message) => {
                    return Ok(Some(Delivery::new(lane.clone(), *message, redelivered, Box::new(receipt))));
                }
                Opened::Newer(version) => {
                    self.note_refusal(format!("a message of version {version} is left for a newer worker"), false);
                    receipt.move_to(&self.retry_address(queue, NEWER), &got.data, None).await?;
                }
                Opened::Refused(reason) => self.refuse(receipt, &got.data, reason).await?,
            }
        }
    }

    /// The next message that the broker gave up on.
    pub(super) async fn next_dead(&self) -> Result<Option<Dead>> {
        let tried = format!("taking from {DEAD} at the broker {}", self.0.taking.name());
        loop {
            let live = self.0.taking.live().await?;
            let channel = live.channels()[0].lock().await;
            let got = channel.basic_get(DEAD.into(), BasicGetOptions::default()).await;
            drop(channel);
            let Some(got) = got.map_err(|error| explain(&tried, &error))? else { return Ok(None) };
            let (why, queue) = death(&got);
            let receipt = RabbitReceipt { queue: self.clone(), name: queue.clone(), acker: Some(got.acker.clone()) };
            match self.open(&got) {
                Opened::Message(message) => {
                    self.read_lanes().await?;
                    let lane = self.known().lanes.get(&queue).cloned().unwrap_or_else(|| {
                        let target = message.targets[0].place.home.end().clone();
                        Lane::anonymous(message.source.home.end().clone(), target)
                    });
                    return Ok(Some(Dead::new(lane, *message, why, Box::new(receipt))));
                }
                Opened::Newer(_) => receipt.move_to(&self.retry_address(&queue, NEWER), &got.data, None).await?,
                Opened::Refused(reason) => self.refuse(receipt, &got.data, reason).await?,
            }
        }
    }

    fn open(&self, got: &BasicGetMessage) -> Opened {
        if let Some(key) = &self.0.settings.key {
            let signature = got.properties.headers().as_ref().and_then(|headers| headers.inner().get(SIGNATURE));
            match signature.and_then(as_text) {
                None => return Opened::Refused("it is not signed, and here messages have to be (cluster.key)".into()),
                Some(signature) if !key.verifies(&got.data, &signature) => {
                    return Opened::Refused("it is signed with another key (cluster.key)".into());
                }
                Some(_) => {}
            }
        }
        match Message::decode(&got.data) {
            Decoded::Message(message) => Opened::Message(Box::new(message)),
            Decoded::NewerVersion(version) => Opened::Newer(version),
            Decoded::Garbage(reason) => Opened::Refused(reason),
        }
    }

    async fn refuse(&self, receipt: RabbitReceipt, body: &[u8], reason: String) -> Result<()> {
        let reason = printable(&reason).into_owned();
        self.note_refusal(format!("a message was refused: {reason}"), true);
        let address = Address { exchange: String::new(), key: REFUSED.to_owned() };
        receipt.move_to(&address, body, Some(&reason)).await
    }

    fn note_refusal(&self, what: String, counts: bool) {
        tracing::warn!("{what}");
        if counts {
            let mut refused = self.0.refused.lock().unwrap_or_else(PoisonError::into_inner);
            *refused = (refused.0 + 1, Some(what));
        }
    }

    /// Where a message of a queue waits for at least so long, as far as that is offered.
    fn retry_address(&self, queue: &str, wait: Duration) -> Address {
        let delays = &self.0.settings.retry_delays;
        let delay = delays.iter().find(|delay| **delay >= wait).unwrap_or(&delays[delays.len() - 1]);
        Address { exchange: topology::retry_queue(*delay), key: queue.to_owned() }
    }
}

/// Why a message is dead, and from which queue.
fn death(got: &BasicGetMessage) -> (String, String) {
    let headers = got.properties.headers().as_ref().map(|headers| headers.inner().clone()).unwrap_or_default();
    let text = |name: &str| headers.get(name).and_then(as_text);
    let reason = text("x-first-death-reason").unwrap_or_else(|| "dead".to_owned());
    let queue = text("x-first-death-queue").unwrap_or_else(|| got.routing_key.to_string());
    (format!("{reason} in {queue}"), queue)
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
    /// The lane's queue.
    name: String,
    /// None once it was used.
    acker: Option<Acker>,
}

impl RabbitReceipt {
    /// Acknowledges. A channel that is gone is no failure: the message is delivered again, and the ledger knows what was
    /// done.
    async fn ack(&mut self) {
        if let Some(acker) = self.acker.take()
            && let Err(error) = acker.ack(BasicAckOptions::default()).await
        {
            tracing::info!("a message of {} will be delivered again: {error}", self.name);
        }
    }

    /// Puts the message elsewhere, and is done with it here.
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

    /// Published anew rather than given back, which would count as a delivery that failed.
    async fn give_back(self: Box<Self>, message: Message, after: Duration) -> Result<()> {
        let address = match after.is_zero() {
            true => Address { exchange: WORK.to_owned(), key: self.name.clone() },
            false => self.queue.retry_address(&self.name, after),
        };
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
