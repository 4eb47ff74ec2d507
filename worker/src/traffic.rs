//! How much a machine may move in a month: what it has moved is kept in the store, and at the limit it takes no more.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytesize::ByteSize;
use imgsync_common::event::{Event, Events};
use imgsync_common::registry::Client;
use imgsync_common::store::{RequestId, Store};
use jiff::Timestamp;

use crate::runner::Serving;

/// How often what was moved is noted.
const NOTE_EVERY: Duration = Duration::from_secs(5);

/// A budget of bytes for each month (UTC).
#[derive(Debug)]
pub struct Traffic {
    limit: u64,
    machine: String,
    noted: Mutex<Noted>,
}

/// What the store knows.
#[derive(Debug, Default)]
struct Noted {
    /// What it was told of.
    moved: u64,
    /// What it was told and did not answer: it may know that, and is told again in the same words.
    unanswered: Option<Note>,
}

/// An addition to what was moved in a month.
#[derive(Debug, Clone)]
struct Note {
    request: RequestId,
    month: String,
    bytes: u64,
}

impl Traffic {
    /// So many bytes a month, for this machine.
    pub fn new(limit: u64) -> Traffic {
        Traffic { limit, machine: crate::host_name(), noted: Mutex::default() }
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

    /// What to tell the store: what it did not answer, as it was, else what came since. And whether it is the former.
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

    /// Lets nothing be taken once the limit is reached, and says so.
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
