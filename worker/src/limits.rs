//! Limits of a worker, as documented.

use imgsync_common::limits::{DocsPage, Limit};

use crate::copy::{CONSISTENCY_WAIT, MAX_TAG_MOVES, MIN_COPY_RATE};
use crate::{cluster_worker, server, settings};

/// Returns the rows of this crate.
pub fn limits() -> Vec<Limit> {
    use DocsPage::{Operating, Security};
    let connections = "the connection that was without a request for longest is closed";
    vec![
        Limit::time(
            Operating,
            "a draining program waits for its copies",
            settings::DRAIN_TIMEOUT,
            "the copies that remain are aborted",
        ),
        Limit::time(
            Operating,
            "an aborted program cleans up",
            settings::ABORT_TIMEOUT,
            "it ends; what it left is tidied up by the next run",
        ),
        Limit::time(
            Operating,
            "a target that denies what it has just taken is waited for",
            CONSISTENCY_WAIT,
            "the task fails as incomplete",
        ),
        Limit::bytes(
            Security,
            "bytes a second that all images in flight bring together, for more time than `timeout`, at least",
            MIN_COPY_RATE,
            "the image fails when its time is over",
        ),
        Limit::count(Security, "connections to a port of `--listen`", server::MAX_CONNECTIONS as u64, connections),
        Limit::time(
            Security,
            "the head of a request, and a connection without a request",
            server::HEAD_TIMEOUT,
            "the connection is closed",
        ),
        Limit::time(
            Security,
            "a connection without a byte in either direction",
            server::IDLE_TIMEOUT,
            "the connection is closed",
        ),
        Limit::bytes(
            Security,
            "the head of a request to a port of `--listen`",
            server::MAX_HEAD_BYTES as u64,
            "the request is refused",
        ),
        Limit::count(
            DocsPage::Operating,
            "times that a tag is resolved again because its image is gone",
            u64::from(MAX_TAG_MOVES),
            "the task fails with `source keeps changing` and is retried",
        ),
        Limit::time(
            Operating,
            "`/readyz` waits for the store and the broker",
            cluster_worker::READY_CHECK_TIMEOUT,
            "it is 503",
        ),
    ]
}
