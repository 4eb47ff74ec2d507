//! `imgsync serve`: runs rules on their schedules, and serves the dashboard, the API and the event stream.
//!
//! [`Office`] runs everything. `current` holds the active configuration; `timetable` starts batches; leading and
//! working are in [`batches`](crate::batches). `router` combines the routes: `api` (JSON, with the event stream of
//! `live`) and `page` (the dashboard). `access` authorizes requests.

mod access;
mod api;
mod app;
mod asked;
mod current;
mod groups;
mod lanes;
mod live;
mod office;
mod page;
mod router;
mod shape;
mod timetable;
mod token;
mod trouble;

use imgsync_common::error::Error;
use imgsync_common::event::{Event, Events};

pub use access::Access;
pub use app::App;
pub use current::{Current, Given, Known, Manner, Origin, Reading};
pub use live::Live;
pub use office::{Doors, Office};
pub use router::router;
pub use timetable::{Entry, Timetable};
pub use token::{Token, token};

/// Emits a notice.
fn say(events: &Events, what: &str) {
    events.emit(Event::Notice { message: what.to_owned() });
}

/// Emits a warning.
fn warn(events: &Events, what: &str) {
    events.emit(Event::Warning { message: what.to_owned() });
}

/// Emits a warning about an error that repeats while its cause lasts.
fn warn_repeatedly(events: &Events, what: &str, error: &Error) {
    let kind = format!("{what}: {}", error.class());
    events.emit(Event::RepeatedWarning { kind, message: error.to_string() });
}
