//! The limits of a worker that the documentation states.

use imgsync_common::limits::{Limit, Page};

use crate::settings;

/// The rows of this crate.
pub fn limits() -> Vec<Limit> {
    vec![Limit::time(
        Page::Operating,
        "a draining program waits for its copies",
        settings::DRAIN_LIMIT,
        "the copies that remain are aborted",
    )]
}
