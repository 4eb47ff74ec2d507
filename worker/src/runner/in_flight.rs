//! A message being processed, and its delivery until acknowledgement: a second after the ledger has granted the lease
//! of the last task, or when a shorter task ends. From then on the lease, not the broker, recovers a lost task.

use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use imgsync_model::batch::{Message, Route};
use imgsync_queue::Delivery;

use super::Runner;

/// A message being processed.
pub(super) struct InFlightMessage {
    pub(super) route: Route,
    pub(super) message: Message,
    /// Whether it has a slot of its own, beside those of other messages.
    pub(super) has_own_slot: bool,
    /// `None` once acknowledged or requeued.
    delivery: Mutex<Option<Delivery>>,
}

impl InFlightMessage {
    pub(super) fn new(delivery: Delivery, has_own_slot: bool) -> InFlightMessage {
        let (route, message) = (delivery.route.clone(), delivery.message.clone());
        InFlightMessage { route, message, has_own_slot, delivery: Mutex::new(Some(delivery)) }
    }

    /// Takes the delivery, to acknowledge or requeue it; `None` if that has happened.
    pub(super) fn take_delivery(&self) -> Option<Delivery> {
        self.delivery.lock().unwrap_or_else(PoisonError::into_inner).take()
    }
}

impl Runner {
    /// Acknowledges a delivery. After an error the broker redelivers it, and the ledger knows the results.
    pub(super) async fn acknowledge(&self, delivered: &InFlightMessage) {
        if let Some(delivery) = delivered.take_delivery()
            && let Err(error) = delivery.acknowledge().await
        {
            self.warn_repeated("the queue is unavailable", &error);
        }
    }

    /// Requeues a delivery. After an error the broker redelivers it unchanged.
    pub(super) async fn requeue_delivery(&self, delivery: Delivery, wait: Duration) {
        if let Err(error) = delivery.requeue_after(wait).await {
            self.warn_repeated("the queue is unavailable", &error);
        }
    }
}
