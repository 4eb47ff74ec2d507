//! The limits of a worker that the documentation states.

use imgsync_common::limits::{Limit, Page};

use crate::copy::{CONSISTENCY_WAIT, MIN_COPY_RATE};
use crate::settings;

/// The rows of this crate.
pub fn limits() -> Vec<Limit> {
    vec![
        Limit::time(
            Page::Operating,
            "a draining program waits for its copies",
            settings::DRAIN_LIMIT,
            "the copies that remain are aborted",
        ),
        Limit::time(
            Page::Operating,
            "an aborted program cleans up",
            settings::ABORT_LIMIT,
            "it ends; what it left is tidied up by the next run",
        ),
        Limit::time(
            Page::Operating,
            "a target that denies what it has just taken is waited for",
            CONSISTENCY_WAIT,
            "the task fails as incomplete",
        ),
        Limit::bytes(
            Page::Security,
            "bytes a second that all images in flight bring together, for more time than `timeout`, at least",
            MIN_COPY_RATE,
            "the image fails when its time is over",
        ),
    ]
}
