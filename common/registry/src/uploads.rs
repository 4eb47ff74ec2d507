//! Pushing blobs (OCI distribution-spec, "Pushing blobs"): upload sessions, mounts, and the content in one PUT or in
//! PATCHes.
//!
//! An upload's `Location` is opaque: it is used as received, with only `digest` added.

use std::time::Duration;

use ::http::{Method, StatusCode, header};
use bytes::Bytes;
use reqwest::Body;
use url::Url;

use super::request_body::RequestBody;
use super::transport::{RequestSpec, Response};
use super::{Access, Repository, SendProgress, range, ssrf};
use imgsync_oci::error::{Error, ErrorKind, Result};
use imgsync_oci::{Digest, RepositoryName};

/// Time limit for cancelling an abandoned upload.
const CANCEL_TIMEOUT: Duration = Duration::from_millis(700);

/// Result of POST /blobs/uploads/: mounted, or an open session.
#[derive(Debug)]
pub enum StartedUpload {
    /// The target mounted it from the other repository; no upload is needed.
    Mounted,
    /// The repository itself has it already.
    Present,
    /// A session is open for the upload.
    Session(UploadSession),
}

/// An open upload session.
#[derive(Debug, Clone)]
pub struct UploadSession {
    location: Url,
    /// Network of the host that named the location.
    named_by_scope: ssrf::NetworkScope,
    digest: Digest,
    min_chunk: u64,
}

/// Content to upload, with its position in the blob.
pub enum UploadBody {
    /// The whole blob, in memory; can be sent again.
    Whole(Bytes),
    /// The bytes from `offset` to before `end`, as a stream.
    Stream {
        /// The content, exactly `end - offset` bytes.
        body: Body,
        /// Progress of the body.
        progress: Box<dyn Fn() -> SendProgress + Send + Sync>,
        /// Offset of the first byte.
        offset: u64,
        /// Offset after the last byte.
        end: u64,
        /// Whether the blob ends at `end`.
        last: bool,
    },
}

impl Repository {
    /// Returns the text for uploading a blob, for messages.
    pub fn write_operation(&self, digest: &Digest) -> String {
        format!("writing blob {}@{digest}", self.label())
    }

    /// Starts an upload. With `try_mount`, the target mounts the blob from that repository if it is there; if that is the
    /// repository itself, the same request tells whether the blob exists.
    ///
    /// A mount saves bytes and must never fail an image: if it cannot work between two repositories, it is tried within
    /// this one; if it cannot work at all, a HEAD and a plain session replace it.
    pub async fn start_upload(&self, digest: &Digest, mount: Option<&RepositoryName>) -> Result<StartedUpload> {
        let operation = self.write_operation(digest);
        if let Some(from) = mount.filter(|_| self.supports_mounts()) {
            let home = Some(&self.name).filter(|home| *home != from);
            for from in [Some(from), home].into_iter().flatten() {
                if self.registry.mount_support.is_allowed(from, &self.name)
                    && let Some(started) = self.try_mount(digest, from, &operation).await?
                {
                    return Ok(started);
                }
            }
            if self.probe_blob(digest).await? {
                return Ok(StartedUpload::Present);
            }
        }
        let started = self.with_retries(|| self.with_provisioning(|| self.open_session(digest, &operation))).await;
        started.map_err(|error| self.with_create_hint(error))
    }

    async fn open_session(&self, digest: &Digest, operation: &str) -> Result<StartedUpload> {
        let response = self.send(self.start_request(None, operation)).await?;
        match response.status() {
            StatusCode::ACCEPTED | StatusCode::CREATED | StatusCode::OK => {
                Ok(StartedUpload::Session(self.session_from_response(response, digest, operation).await?))
            }
            _ => Err(self.error_from_response(response, operation).await),
        }
    }

    /// Returns `None` if mounts between these repositories do not work, which is cached.
    async fn try_mount(
        &self,
        digest: &Digest,
        from: &RepositoryName,
        operation: &str,
    ) -> Result<Option<StartedUpload>> {
        match self.with_retries(|| self.with_provisioning(|| self.mount_once(digest, from, operation))).await {
            Ok(started) => Ok(Some(started)),
            Err(error) => match error.kind() {
                // The token service may refuse a second scope, or the registry the source repository; a plain session
                // may still work.
                ErrorKind::Denied
                | ErrorKind::NotFound
                | ErrorKind::Refused
                | ErrorKind::Incomplete
                | ErrorKind::Unsupported
                | ErrorKind::Outdated
                | ErrorKind::InvalidResponse
                | ErrorKind::ServerError => {
                    self.registry.mount_support.record_refusal(from, &self.name);
                    Ok(None)
                }
                ErrorKind::TokenExpired
                | ErrorKind::RateLimited
                | ErrorKind::Unreachable
                | ErrorKind::TimedOut
                | ErrorKind::Corrupt
                | ErrorKind::Insecure
                | ErrorKind::Invalid
                | ErrorKind::Local
                | ErrorKind::Collision
                | ErrorKind::Immutable
                | ErrorKind::RefusedByPolicy
                | ErrorKind::Differs
                | ErrorKind::Cancelled => Err(error),
            },
        }
    }

    /// Checks for the blob in place of a mount. Errors do not prevent the upload.
    async fn probe_blob(&self, digest: &Digest) -> Result<bool> {
        match self.head_blob(digest).await {
            Err(error) if error.is_cancelled() => Err(error),
            found => Ok(found.unwrap_or(false)),
        }
    }

    async fn mount_once(&self, digest: &Digest, from: &RepositoryName, operation: &str) -> Result<StartedUpload> {
        let mut request = self.start_request(Some((digest, from)), operation);
        if *from != self.name {
            request.mount_from = Some(from);
        }
        let response = self.send(request).await?;
        match response.status() {
            StatusCode::CREATED => {
                let stored = response.text_header("docker-content-digest").and_then(|text| text.parse::<Digest>().ok());
                response.drain().await;
                if stored.is_some_and(|stored| stored.algorithm() == digest.algorithm() && stored != *digest) {
                    return Err(Error::new(ErrorKind::Corrupt, operation, "the registry mounted another blob"));
                }
                Ok(if *from == self.name { StartedUpload::Present } else { StartedUpload::Mounted })
            }
            StatusCode::ACCEPTED => {
                Ok(StartedUpload::Session(self.session_from_response(response, digest, operation).await?))
            }
            status => {
                let error = self.error_from_response(response, operation).await;
                // A 400 can concern the other repository; for a mount from this one it concerns mounts.
                let unknown = match status {
                    StatusCode::METHOD_NOT_ALLOWED | StatusCode::NOT_IMPLEMENTED => true,
                    StatusCode::BAD_REQUEST => *from == self.name && error.kind() != ErrorKind::RateLimited,
                    _ => false,
                };
                if unknown {
                    // Spares the next blob the request.
                    self.registry.mount_support.mark_unsupported();
                }
                Err(error)
            }
        }
    }

    fn start_request<'a>(&self, mount: Option<(&Digest, &RepositoryName)>, operation: &'a str) -> RequestSpec<'a> {
        let mut url = self.url("blobs/uploads/");
        if let Some((digest, from)) = mount {
            url.query_pairs_mut().append_pair("mount", &digest.to_string()).append_pair("from", from.as_str());
        }
        RequestSpec::new(Method::POST, url, operation).body(RequestBody::Bytes(Bytes::new()))
    }

    async fn session_from_response(
        &self,
        response: Response,
        digest: &Digest,
        operation: &str,
    ) -> Result<UploadSession> {
        let (location, named_by_scope) = self.resolve_location(&response, "upload location", operation)?;
        let min_chunk = response.text_header("oci-chunk-min-length").and_then(|text| text.parse().ok()).unwrap_or(0);
        response.drain().await;
        Ok(UploadSession { location, named_by_scope, digest: digest.clone(), min_chunk })
    }

    /// Uploads content. The last part completes the upload: the registry verifies the digest and stores the blob. Sent
    /// once, except for [`UploadBody::Whole`], which is retried. A session that is gone is [`ErrorKind::NotFound`].
    pub async fn send_upload(&self, upload: &mut UploadSession, part: UploadBody) -> Result<()> {
        let operation = self.write_operation(&upload.digest);
        match part {
            UploadBody::Whole(bytes) => {
                self.await_bandwidth(bytes.len(), &operation).await?;
                let request = RequestSpec::new(Method::PUT, upload.commit_url(), &operation)
                    .named_by_scope(upload.named_by_scope)
                    .header(header::CONTENT_TYPE, "application/octet-stream")
                    .body(RequestBody::Bytes(bytes.clone()));
                let response = self.send(request).await?;
                self.counters.record_sent(bytes.len() as u64);
                self.context.clock.record_sent(bytes.len() as u64);
                self.verify_commit(response, upload, &operation).await
            }
            UploadBody::Stream { body, progress, offset, end, last: true } => {
                let mut request = RequestSpec::new(Method::PUT, upload.commit_url(), &operation)
                    .named_by_scope(upload.named_by_scope)
                    .header(header::CONTENT_TYPE, "application/octet-stream")
                    .header(header::CONTENT_LENGTH, &(end - offset).to_string())
                    .body(RequestBody::Stream(body, progress));
                if offset > 0 && end > offset {
                    request = request.header(header::CONTENT_RANGE, &format!("{offset}-{}", end - 1));
                }
                let response = self.send(request).await?;
                self.verify_commit(response, upload, &operation).await
            }
            UploadBody::Stream { body, progress, offset, end, last: false } => {
                let request = RequestSpec::new(Method::PATCH, upload.location.clone(), &operation)
                    .named_by_scope(upload.named_by_scope)
                    .header(header::CONTENT_TYPE, "application/octet-stream")
                    .header(header::CONTENT_LENGTH, &(end - offset).to_string())
                    .header(header::CONTENT_RANGE, &format!("{offset}-{}", end - 1))
                    .body(RequestBody::Stream(body, progress));
                let response = self.send(request).await?;
                if !response.status().is_success() {
                    return Err(self.error_from_response(response, &operation).await);
                }
                if response.headers().contains_key(header::LOCATION) {
                    (upload.location, upload.named_by_scope) =
                        self.resolve_location(&response, "upload location", &operation)?;
                }
                response.drain().await;
                Ok(())
            }
        }
    }

    /// Waits for the bandwidth limit.
    async fn await_bandwidth(&self, bytes: usize, operation: &str) -> Result<()> {
        let _pause = self.context.clock.pause();
        let meter = self.upload_meter();
        tokio::select! {
            biased;
            () = self.context.cancel.cancelled() => Err(Error::cancelled(operation)),
            () = meter.acquire(bytes) => Ok(()),
        }
    }

    async fn verify_commit(&self, response: Response, upload: &UploadSession, operation: &str) -> Result<()> {
        if !response.status().is_success() {
            return Err(self.error_from_response(response, operation).await);
        }
        let stored = response.text_header("docker-content-digest").and_then(|text| text.parse::<Digest>().ok());
        response.drain().await;
        match stored {
            Some(stored) if stored.algorithm() == upload.digest.algorithm() && stored != upload.digest => {
                Err(Error::new(ErrorKind::Corrupt, operation, format!("the registry stored {stored}")))
            }
            _ => Ok(()),
        }
    }

    /// Returns how many bytes a session holds after at most `sent` were sent; `None` if it is gone or does not tell, so
    /// that the upload must be restarted.
    pub async fn query_upload_offset(&self, upload: &mut UploadSession, sent: u64) -> Result<Option<u64>> {
        let operation = format!("querying the upload offset: {}", self.write_operation(&upload.digest));
        let (location, named_by_scope) = (upload.location.clone(), upload.named_by_scope);
        let (status, held, next) = self
            .with_retries(|| async {
                let response = self
                    .send(RequestSpec::new(Method::GET, location.clone(), &operation).named_by_scope(named_by_scope))
                    .await?;
                match response.status() {
                    status if status.is_success() => {
                        let held = response.text_header(header::RANGE).and_then(range::parse_session_range);
                        let next = match response.headers().contains_key(header::LOCATION) {
                            true => Some(self.resolve_location(&response, "upload location", &operation)?),
                            false => None,
                        };
                        Ok((status, held, next))
                    }
                    status if status.is_client_error() && status != StatusCode::TOO_MANY_REQUESTS => {
                        Ok((status, None, None))
                    }
                    _ => Err(self.error_from_response(response, &operation).await),
                }
            })
            .await?;
        if !status.is_success() {
            return Ok(None);
        }
        if let Some(next) = next {
            (upload.location, upload.named_by_scope) = next;
        }
        Ok(held.and_then(|held| held.continue_from(sent)))
    }

    /// Tries to delete an abandoned session. Never fails, never takes long, works after cancellation.
    pub async fn cancel_upload(&self, upload: UploadSession) {
        let mut tidy = self.with_context(&super::Context::default());
        tidy.access = Access::Delete;
        let operation = format!("cancelling: {}", self.write_operation(&upload.digest));
        let request =
            RequestSpec::new(Method::DELETE, upload.location, &operation).named_by_scope(upload.named_by_scope);
        let _ = tokio::time::timeout(CANCEL_TIMEOUT, tidy.send(request)).await;
    }
}

impl UploadSession {
    /// Returns the minimum size of a PATCH other than the last (`OCI-Chunk-Min-Length`).
    pub fn min_chunk(&self) -> u64 {
        self.min_chunk
    }

    /// Returns the origin of the upload URL, for messages: without the query, which may hold a signature.
    pub fn origin(&self) -> String {
        ssrf::origin(&self.location)
    }

    fn commit_url(&self) -> Url {
        let mut url = self.location.clone();
        // Built manually: the query is opaque and must not be re-encoded. In a digest only the colon needs escaping.
        let digest = self.digest.to_string().replace(':', "%3A");
        let query = match url.query() {
            None | Some("") => format!("digest={digest}"),
            Some(query) => format!("{query}&digest={digest}"),
        };
        url.set_query(Some(&query));
        url
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_opaque_location_is_passed_on_as_it_came() {
        let digest = Digest::sha256(b"x");
        let mut upload = UploadSession {
            location: "http://h/v2/a/blobs/uploads/u?_state=a%2Fb+c==&x".parse().unwrap(),
            named_by_scope: ssrf::NetworkScope::Public,
            digest: digest.clone(),
            min_chunk: 0,
        };
        let hex = digest.hex();
        assert_eq!(
            upload.commit_url().as_str(),
            format!("http://h/v2/a/blobs/uploads/u?_state=a%2Fb+c==&x&digest=sha256%3A{hex}")
        );
        upload.location = "http://h/v2/a/blobs/uploads/u".parse().unwrap();
        assert_eq!(upload.commit_url().as_str(), format!("http://h/v2/a/blobs/uploads/u?digest=sha256%3A{hex}"));
    }
}
