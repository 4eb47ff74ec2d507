//! Monthly traffic quota of a machine: usage is kept in the store; at the limit the worker takes no more tasks.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytesize::ByteSize;
use imgsync_common::event::{Event, Events};
use imgsync_common::registry::Client;
use imgsync_common::store::{RequestId, Store};
use jiff::Timestamp;

use crate::runner::Serving;

/// Interval at which usage is reported to the store.
const NOTE_EVERY: Duration = Duration::from_secs(5);

/// Quota of bytes per calendar month (UTC).
#[derive(Debug)]
pub struct Traffic {
    limit: u64,
    machine: String,
    noted: Mutex<Noted>,
}

/// Usage known to the store.
#[derive(Debug, Default)]
struct Noted {
    /// Bytes reported.
    moved: u64,
    /// Report without a response: the store may have counted it, so it is repeated unchanged.
    unanswered: Option<Note>,
}

/// An addition to the usage of a month.
#[derive(Debug, Clone)]
struct Note {
    request: RequestId,
    month: String,
    bytes: u64,
}

impl Traffic {
    /// Creates a quota of `limit` bytes per month for this machine.
    pub fn new(limit: u64) -> Traffic {
        Traffic { limit, machine: crate::host_name(), noted: Mutex::default() }
    }

    /// Reports usage until dropped, and stops taking tasks while the quota is used up. Running tasks continue.
    pub async fn keep(&self, store: &dyn Store, client: &Client, serving: &Serving, events: &Events) {
        loop {
            tokio::time::sleep(NOTE_EVERY).await;
            self.note(store, client, serving, events).await;
        }
    }

    /// Reports the usage since the last report: called before the first task is taken and after the last one ended.
    pub async fn note(&self, store: &dyn Store, client: &Client, serving: &Serving, events: &Events) {
        loop {
            let (note, is_repeated) = self.next_note(client.moved());
            match store.note_traffic(&self.machine, &note.month, note.bytes, note.request).await {
                Ok(total) => {
                    let mut noted = self.noted();
                    (noted.moved, noted.unanswered) = (noted.moved + note.bytes, None);
                    drop(noted);
                    if !is_repeated {
                        return self.compare(total, &note.month, serving, events);
                    }
                }
                Err(error) => return tracing::warn!("{error}"),
            }
        }
    }

    /// Returns the next report: a pending one unchanged, else the usage since. The flag tells whether it is a
    /// repetition.
    fn next_note(&self, moved: u64) -> (Note, bool) {
        let mut noted = self.noted();
        if let Some(unanswered) = &noted.unanswered {
            return (unanswered.clone(), true);
        }
        let month = Timestamp::now().strftime("%Y-%m").to_string();
        let note = Note { request: RequestId::generate(), month, bytes: moved - noted.moved };
        noted.unanswered = Some(note.clone());
        (note, false)
    }

    /// Stops taking tasks when the limit is reached, with a warning.
    fn compare(&self, total: u64, month: &str, serving: &Serving, events: &Events) {
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

    fn noted(&self) -> MutexGuard<'_, Noted> {
        self.noted.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
