//! How much a machine may move in a month: what it has moved is kept in the store, and at the limit it takes no more.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bytesize::ByteSize;
use imgsync_common::event::{Event, Events};
use imgsync_common::registry::Client;
use imgsync_common::store::Store;
use jiff::Timestamp;

use crate::runner::Serving;

/// How often what was moved is noted.
const NOTE_EVERY: Duration = Duration::from_secs(5);

/// A budget of bytes for each month (UTC).
#[derive(Debug)]
pub struct Traffic {
    limit: u64,
    machine: String,
    /// What the store was told of.
    noted: AtomicU64,
}

impl Traffic {
    /// So many bytes a month, for this machine.
    pub fn new(limit: u64) -> Traffic {
        Traffic { limit, machine: crate::host_name(), noted: AtomicU64::new(0) }
    }

    /// Notes what is moved until dropped, and lets nothing be taken while the month's budget is used up. What runs goes on.
    pub async fn keep(&self, store: &dyn Store, client: &Client, serving: &Serving, events: &Events) {
        loop {
            tokio::time::sleep(NOTE_EVERY).await;
            self.note(store, client, serving, events).await;
        }
    }

    /// Notes what was moved since the last time: once before anything is taken, and once when all has ended.
    pub async fn note(&self, store: &dyn Store, client: &Client, serving: &Serving, events: &Events) {
        let moved = client.moved();
        let month = Timestamp::now().strftime("%Y-%m").to_string();
        // What could not be noted is noted with what comes after.
        match store.note_traffic(&self.machine, &month, moved - self.noted.load(Ordering::Relaxed)).await {
            Ok(total) => {
                self.noted.store(moved, Ordering::Relaxed);
                let why = (total >= self.limit).then(|| {
                    let (machine, limit) = (&self.machine, ByteSize(self.limit));
                    format!("{machine} has moved all of {limit} in {month}: it takes no more before the next month")
                });
                if serving.set_full(why.clone())
                    && let Some(message) = why
                {
                    events.emit(Event::Warning { message });
                }
            }
            Err(error) => tracing::warn!("{error}"),
        }
    }
}
