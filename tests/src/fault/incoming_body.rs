//! Reads request bodies, with rate limits and faults.

use std::sync::Arc;
use std::time::Duration;

use axum::body::Body;
use bytes::Bytes;
use http_body_util::BodyExt as _;

use super::fault_rules::FaultAction;
use super::request_log::RecordedRequest;
use super::request_type::RequestType;
use super::state::Inner;

/// An incoming request body.
pub(super) struct IncomingBody {
    inner: Arc<Inner>,
    n: u64,
    remember: bool,
    body: Body,
    rest: Bytes,
    at: u64,
    cut: Option<u64>,
    stall: Option<u64>,
    early: Option<(u64, u16)>,
    drip: Option<(u64, Duration)>,
    bytes_per_second: Option<u64>,
}

/// Reason why a body was not read to its end.
pub(super) enum BodyError {
    /// The client disconnected.
    Gone,
    /// A rule closes the connection here.
    Cut,
    /// A rule responds here with this status.
    Early(u16),
}

impl IncomingBody {
    pub(super) fn new(inner: &Arc<Inner>, record: &RecordedRequest, body: Body, actions: &[FaultAction]) -> Self {
        let (mut cut, mut stall, mut early, mut drip, mut rate) = (None, None, None, None, None);
        for action in actions {
            match action {
                FaultAction::CutUploadAfter { bytes } => cut = Some(*bytes),
                FaultAction::StallUploadAfter { bytes } => stall = Some(*bytes),
                FaultAction::DripUpload { after, every } => drip = Some((*after, *every)),
                FaultAction::AnswerUploadEarly { after, status } => early = Some((*after, *status)),
                FaultAction::Throttle { bytes_per_second } => rate = Some(*bytes_per_second),
                _ => {}
            }
        }
        if matches!(record.kind, RequestType::UploadPatch | RequestType::UploadPut) {
            cut = cut.or(inner.options.quirks.max_upload_body_bytes);
        }
        let upload =
            matches!(record.kind, RequestType::UploadStart | RequestType::UploadPatch | RequestType::UploadPut);
        Self {
            inner: Arc::clone(inner),
            n: record.n,
            remember: !upload,
            body,
            rest: Bytes::new(),
            at: 0,
            cut,
            stall,
            early,
            drip,
            bytes_per_second: rate,
        }
    }

    /// Returns the next chunk, or `None` at the end.
    pub(super) async fn next(&mut self) -> Result<Option<Bytes>, BodyError> {
        if self.cut.is_some_and(|cut| self.at >= cut) {
            return Err(BodyError::Cut);
        }
        if let Some((_, status)) = self.early.filter(|(after, _)| self.at >= *after) {
            return Err(BodyError::Early(status));
        }
        if self.stall.is_some_and(|stall| self.at >= stall) {
            std::future::pending::<()>().await;
        }
        while self.rest.is_empty() {
            match self.body.frame().await {
                None => return Ok(None),
                Some(Err(_)) => return Err(BodyError::Gone),
                Some(Ok(frame)) => self.rest = frame.into_data().unwrap_or_default(),
            }
        }
        let early = self.early.map(|(after, _)| after);
        let limit = [self.cut, self.stall, early].into_iter().flatten().min().map_or(u64::MAX, |limit| limit - self.at);
        let limit = limit.min(self.bytes_per_second.map_or(u64::MAX, |rate| (rate / 10).max(1)));
        let dripping = self.drip.filter(|(after, _)| self.at >= *after).map(|(_, every)| every);
        let limit = match (self.drip, dripping) {
            (_, Some(every)) => {
                tokio::time::sleep(every).await;
                limit.min(1)
            }
            (Some((after, _)), None) => limit.min(after - self.at),
            (None, None) => limit,
        };
        let piece = self.rest.split_to(limit.min(self.rest.len() as u64) as usize);
        self.at += piece.len() as u64;
        self.inner.log.update(self.n, |record| {
            record.received += piece.len() as u64;
            if self.remember && record.body.len() + piece.len() <= 64 * 1024 {
                record.body.extend_from_slice(&piece);
            }
        });
        if let Some(rate) = self.bytes_per_second {
            tokio::time::sleep(Duration::from_secs_f64(piece.len() as f64 / rate as f64)).await;
        }
        Ok(Some(piece))
    }

    /// Reads the whole body. Returns `None` if it exceeds the limit in bytes.
    pub(super) async fn all(&mut self, limit: usize) -> Result<Option<Bytes>, BodyError> {
        let mut all = Vec::new();
        while let Some(piece) = self.next().await? {
            if all.len() + piece.len() > limit {
                return Ok(None);
            }
            all.extend_from_slice(&piece);
        }
        Ok(Some(all.into()))
    }

    /// Reads the body to its end and discards it.
    pub(super) async fn drain(&mut self) -> Result<(), BodyError> {
        while self.next().await?.is_some() {}
        Ok(())
    }
}
