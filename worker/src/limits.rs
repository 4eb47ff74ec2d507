//! Limits of a worker, as documented.

use imgsync_oci::limits::{DocsPage, Limit};

use crate::copy::{CONSISTENCY_WAIT, MAX_SIGNATURE_BYTES, MAX_SIGNATURES, MAX_TAG_MOVES, MIN_COPY_RATE};
use crate::{cluster_worker, server, settings};

/// Returns the rows of this crate.
pub fn limits() -> Vec<Limit> {
    use DocsPage::{Operating, Security};
    let connections = "the connection that has been without a request for the longest time is closed";
    vec![
        Limit::time(
            Operating,
            "draining: time for copies in progress to finish",
            settings::DRAIN_TIMEOUT,
            "remaining copies are aborted",
        ),
        Limit::time(
            Operating,
            "aborting: time to clean up",
            settings::ABORT_TIMEOUT,
            "the process exits; the next run cleans up",
        ),
        Limit::time(
            Operating,
            "wait for a target that reports just-pushed content as missing",
            CONSISTENCY_WAIT,
            "the task fails (error kind `incomplete`)",
        ),
        Limit::bytes(
            Security,
            "minimum rate in bytes per second, of all images in progress together, that extends an image's `timeout`",
            MIN_COPY_RATE,
            "at a lower rate, the image times out",
        ),
        Limit::count(Security, "connections to a port of `--listen`", server::MAX_CONNECTIONS as u64, connections),
        Limit::time(
            Security,
            "time to send the headers of a request, also of the first one after connecting",
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
            "request headers on a `--listen` port",
            server::MAX_HEAD_BYTES as u64,
            "the request is refused",
        ),
        Limit::count(
            DocsPage::Operating,
            "times that a tag is resolved again because it moved and its old manifest is gone",
            u64::from(MAX_TAG_MOVES),
            "the attempt fails with `source keeps changing` and is retried",
        ),
        Limit::count(
            Security,
            "signatures of a manifest that `policy` reads",
            MAX_SIGNATURES as u64,
            "the others do not count, and are counted in the message",
        ),
        Limit::bytes(Security, "a signature that `policy` reads", MAX_SIGNATURE_BYTES, "the signature does not count"),
        Limit::time(
            Operating,
            "`/readyz` checks of store and broker",
            cluster_worker::READY_CHECK_TIMEOUT,
            "it responds with 503",
        ),
    ]
}
