//! Bodies of requests.

use bytes::Bytes;
use reqwest::Body;

use super::send_progress::SendProgress;

/// Body of a request.
pub(crate) enum RequestBody {
    Empty,
    Bytes(Bytes),
    /// Can be sent once only, and reports its progress.
    Stream(Body, ProgressFn),
}

/// Returns the progress of a body.
pub(crate) type ProgressFn = Box<dyn Fn() -> SendProgress + Send + Sync>;

impl std::fmt::Debug for RequestBody {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            RequestBody::Empty => f.write_str("Nothing"),
            RequestBody::Bytes(bytes) => write!(f, "{} bytes", bytes.len()),
            RequestBody::Stream(..) => f.write_str("Stream"),
        }
    }
}
