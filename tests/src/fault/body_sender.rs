//! Sends response bodies, with rate limits and faults.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use axum::body::Body;
use bytes::{Bytes, BytesMut};
use http::{HeaderValue, Response, header};
use tokio_util::sync::CancellationToken;

use super::fault_rules::FaultAction;
use super::response::{FaultResponse, ResponseBody};
use super::state::{Inner, OpenRequest};

const CHUNK_BYTES: u64 = 64 * 1024;

/// Time for written bytes to leave the process before the connection is dropped.
const FLUSH_DELAY: Duration = Duration::from_millis(30);

struct BodySender {
    inner: Arc<Inner>,
    n: u64,
    payload: ResponseBody,
    at: u64,
    corrupt: Option<u64>,
    stall: Option<u64>,
    cut: Option<u64>,
    drip: Option<(u64, Duration)>,
    bytes_per_second: Option<u64>,
    connection: CancellationToken,
    in_flight: Option<OpenRequest>,
}

/// Turns a response into hyper's, with its faults.
pub(super) fn send(
    inner: &Arc<Inner>,
    n: u64,
    head: bool,
    mut answer: FaultResponse,
    actions: &[FaultAction],
    connection: CancellationToken,
    in_flight: OpenRequest,
) -> Response<Body> {
    let (mut corrupt, mut stall, mut cut, mut drip) = (None, None, None, None);
    let (mut rate, mut announced) = (None, true);
    let mut removed = Vec::new();
    for action in actions {
        match action {
            FaultAction::Corrupt { at } => corrupt = Some(*at),
            FaultAction::StallAfter { bytes } => stall = Some(*bytes),
            FaultAction::Drip { after, every } => drip = Some((*after, *every)),
            FaultAction::CutAfter { bytes } => cut = Some(*bytes),
            FaultAction::Throttle { bytes_per_second } => rate = Some(*bytes_per_second),
            FaultAction::Truncate { to } => answer.body = truncate(answer.body, *to),
            FaultAction::ReplaceBody(bytes) => answer.body = ResponseBody::Bytes(bytes.clone()),
            FaultAction::BigBody { announced: said, .. } => announced = *said,
            FaultAction::SetHeader(name, value) => answer = answer.header(name.as_str(), value),
            FaultAction::RemoveHeader(name) => removed.push(name.as_str()),
            _ => {}
        }
    }
    let length = answer.body.len();
    if announced && !answer.headers.contains_key(header::CONTENT_LENGTH) && answer.status != 204 {
        answer.headers.insert(header::CONTENT_LENGTH, HeaderValue::from(length));
    }
    for name in removed {
        answer.headers.remove(name);
    }

    let status = answer.status;
    inner.log.update(n, |record| {
        record.status = Some(status.as_u16());
        record.is_body_complete = head || length == 0;
    });
    let body = if head || (length == 0 && cut.is_none() && stall.is_none()) {
        Body::empty()
    } else {
        let pump = BodySender {
            inner: Arc::clone(inner),
            n,
            payload: answer.body,
            at: 0,
            corrupt,
            stall,
            cut,
            drip,
            bytes_per_second: rate,
            connection,
            in_flight: Some(in_flight),
        };
        Body::from_stream(futures_util::stream::unfold(pump, BodySender::next))
    };
    let mut response = Response::new(body);
    *response.status_mut() = status;
    *response.headers_mut() = answer.headers;
    response
}

fn truncate(payload: ResponseBody, to: u64) -> ResponseBody {
    let to = to.min(payload.len());
    match payload {
        ResponseBody::Bytes(bytes) => ResponseBody::Bytes(bytes.slice(..to as usize)),
        ResponseBody::Blob(blob, start, _) => ResponseBody::Blob(blob, start, start + to),
        ResponseBody::Filler(_) => ResponseBody::Filler(to),
    }
}

impl BodySender {
    async fn next(mut self) -> Option<(io::Result<Bytes>, Self)> {
        if self.cut.is_some_and(|cut| self.at >= cut) {
            tokio::time::sleep(FLUSH_DELAY).await;
            self.connection.cancel();
            return std::future::pending().await;
        }
        if self.stall.is_some_and(|stall| self.at >= stall) {
            return std::future::pending().await;
        }
        let limit = self.cut.unwrap_or(u64::MAX).min(self.stall.unwrap_or(u64::MAX)).min(self.payload.len());
        // Chunks of a tenth of a second keep a slow body smooth.
        let piece = self.bytes_per_second.map_or(CHUNK_BYTES, |rate| CHUNK_BYTES.min(rate / 10).max(1));
        let mut end = limit.min(self.at + piece);
        if let Some((after, every)) = self.drip {
            end = match self.at < after {
                true => end.min(after),
                false => end.min(self.at + 1),
            };
            if self.at >= after {
                tokio::time::sleep(every).await;
            }
        }
        if end <= self.at {
            self.inner.log.update(self.n, |record| record.is_body_complete = true);
            return None;
        }
        if let Some(rate) = self.bytes_per_second {
            tokio::time::sleep(Duration::from_secs_f64((end - self.at) as f64 / rate as f64)).await;
        }
        let mut bytes = self.payload.read(self.at, end);
        if let Some(corrupt) = self.corrupt.filter(|corrupt| (self.at..end).contains(corrupt)) {
            let mut changed = BytesMut::from(&bytes[..]);
            changed[(corrupt - self.at) as usize] ^= 0xff;
            bytes = changed.freeze();
        }
        let sent = bytes.len() as u64;
        self.at = end;
        let done = end == self.payload.len();
        self.inner.log.update(self.n, |record| {
            record.sent += sent;
            record.is_body_complete = done;
        });
        if done {
            // Before the client has the last byte and may send more requests.
            self.in_flight = None;
        }
        Some((Ok(bytes), self))
    }
}
