//! Sends response bodies, with rate limits and faults.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use axum::body::Body;
use bytes::{Bytes, BytesMut};
use http::{HeaderValue, Response, header};
use tokio_util::sync::CancellationToken;

use super::answer::{Answer, Payload};
use super::script::Action;
use super::state::{InFlight, Inner};

const PIECE: u64 = 64 * 1024;

/// Time for written bytes to leave the process before the connection is dropped.
const FLUSH: Duration = Duration::from_millis(30);

struct Pump {
    inner: Arc<Inner>,
    n: u64,
    payload: Payload,
    at: u64,
    corrupt: Option<u64>,
    stall: Option<u64>,
    cut: Option<u64>,
    drip: Option<(u64, Duration)>,
    pace: Option<u64>,
    connection: CancellationToken,
    in_flight: Option<InFlight>,
}

/// Turns a response into hyper's, with its faults.
pub(super) fn send(
    inner: &Arc<Inner>,
    n: u64,
    head: bool,
    mut answer: Answer,
    actions: &[Action],
    connection: CancellationToken,
    in_flight: InFlight,
) -> Response<Body> {
    let (mut corrupt, mut stall, mut cut, mut drip) = (None, None, None, None);
    let (mut pace, mut announced) = (None, true);
    let mut removed = Vec::new();
    for action in actions {
        match action {
            Action::Corrupt { at } => corrupt = Some(*at),
            Action::StallAfter { bytes } => stall = Some(*bytes),
            Action::Drip { after, every } => drip = Some((*after, *every)),
            Action::CutAfter { bytes } => cut = Some(*bytes),
            Action::Throttle { bytes_per_second } => pace = Some(*bytes_per_second),
            Action::Truncate { to } => answer.body = truncate(answer.body, *to),
            Action::ReplaceBody(bytes) => answer.body = Payload::Bytes(bytes.clone()),
            Action::BigBody { announced: said, .. } => announced = *said,
            Action::SetHeader(name, value) => answer = answer.header(name.as_str(), value),
            Action::RemoveHeader(name) => removed.push(name.as_str()),
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
    inner.log.note(n, |record| {
        record.status = Some(status.as_u16());
        record.done = head || length == 0;
    });
    let body = if head || (length == 0 && cut.is_none() && stall.is_none()) {
        Body::empty()
    } else {
        let pump = Pump {
            inner: Arc::clone(inner),
            n,
            payload: answer.body,
            at: 0,
            corrupt,
            stall,
            cut,
            drip,
            pace,
            connection,
            in_flight: Some(in_flight),
        };
        Body::from_stream(futures_util::stream::unfold(pump, Pump::next))
    };
    let mut response = Response::new(body);
    *response.status_mut() = status;
    *response.headers_mut() = answer.headers;
    response
}

fn truncate(payload: Payload, to: u64) -> Payload {
    let to = to.min(payload.len());
    match payload {
        Payload::Bytes(bytes) => Payload::Bytes(bytes.slice(..to as usize)),
        Payload::Blob(blob, start, _) => Payload::Blob(blob, start, start + to),
        Payload::Filler(_) => Payload::Filler(to),
    }
}

impl Pump {
    async fn next(mut self) -> Option<(io::Result<Bytes>, Self)> {
        if self.cut.is_some_and(|cut| self.at >= cut) {
            tokio::time::sleep(FLUSH).await;
            self.connection.cancel();
            return std::future::pending().await;
        }
        if self.stall.is_some_and(|stall| self.at >= stall) {
            return std::future::pending().await;
        }
        let limit = self.cut.unwrap_or(u64::MAX).min(self.stall.unwrap_or(u64::MAX)).min(self.payload.len());
        // Chunks of a tenth of a second keep a slow body smooth.
        let piece = self.pace.map_or(PIECE, |pace| PIECE.min(pace / 10).max(1));
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
            self.inner.log.note(self.n, |record| record.done = true);
            return None;
        }
        if let Some(pace) = self.pace {
            tokio::time::sleep(Duration::from_secs_f64((end - self.at) as f64 / pace as f64)).await;
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
        self.inner.log.note(self.n, |record| {
            record.sent += sent;
            record.done = done;
        });
        if done {
            // Before the client has the last byte and may send more requests.
            self.in_flight = None;
        }
        Some((Ok(bytes), self))
    }
}
