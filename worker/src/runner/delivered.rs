//! A message at work, and its delivery until that is acknowledged: a second after the ledger has granted the lease of its
//! last task, or at the end of a shorter one. From then on the lease brings a lost task back, and not the broker.

use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use imgsync_common::batch::{Lane, Message};
use imgsync_common::queue::Delivery;

use super::Runner;

/// A message at work.
pub(super) struct Delivered {
    pub(super) lane: Lane,
    pub(super) message: Message,
    /// None once it was acknowledged or given back.
    delivery: Mutex<Option<Delivery>>,
}

impl Delivered {
    pub(super) fn new(delivery: Delivery) -> Delivered {
        let (lane, message) = (delivery.lane.clone(), delivery.message.clone());
        Delivered { lane, message, delivery: Mutex::new(Some(delivery)) }
    }

    /// The delivery, to acknowledge it or to give it back; none if either was done.
    pub(super) fn take(&self) -> Option<Delivery> {
        self.delivery.lock().unwrap_or_else(PoisonError::into_inner).take()
    }
}

impl Runner {
    /// Acknowledges a delivery. After an error it is delivered again, and the ledger knows what was done.
    pub(super) async fn acknowledge(&self, delivered: &Delivered) {
        if let Some(delivery) = delivered.take()
            && let Err(error) = delivery.acknowledge().await
        {
            self.warn_of("the queue does not answer", &error);
        }
    }

    /// Gives a delivery back. After an error it is delivered again as it was.
    pub(super) async fn give_back(&self, delivery: Delivery, wait: Duration) {
        if let Err(error) = delivery.give_back_after(wait).await {
            self.warn_of("the queue does not answer", &error);
        }
    }
}
