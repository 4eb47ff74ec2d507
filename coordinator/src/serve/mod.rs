//! `imgsync serve`: rules are run at their times, and people and programs are told how it goes.
//!
//! [`Office`] is all of it together. `current` holds what the configuration means now; `timetable` begins batches; who leads
//! and who works is in [`batches`](crate::batches). `router` puts together what is answered: `api` (JSON, and in `live` the
//! events), `page` (the dashboard). `access` says who may ask.

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

/// Says something to people, as an event.
fn say(events: &Events, what: &str) {
    events.emit(Event::Notice { message: what.to_owned() });
}

/// Warns people, as an event.
fn warn(events: &Events, what: &str) {
    events.emit(Event::Warning { message: what.to_owned() });
}

/// Warns people of an error that comes again and again while its cause lasts, as an event.
fn warn_repeatedly(events: &Events, what: &str, error: &Error) {
    let kind = format!("{what}: {}", error.class());
    events.emit(Event::RepeatedWarning { kind, message: error.to_string() });
}
