//! Pushing blobs (OCI distribution-spec, "Pushing blobs"): upload sessions, mounts, and the content in one PUT or in
//! PATCHes.
//!
//! An upload's `Location` is opaque: it is used as received, with only `digest` added.

use std::time::Duration;

use ::http::{Method, StatusCode, header};
use bytes::Bytes;
use reqwest::Body;
use url::Url;

use super::transport::{Answer, Outgoing, Payload};
use super::{Access, Repository, Sent, hop, range};
use crate::error::{Class, Error, Result};
use crate::image::{Digest, RepositoryName};

/// Time limit for cancelling an abandoned upload.
const CANCEL_WITHIN: Duration = Duration::from_millis(700);

/// Result of POST /blobs/uploads/: mounted, or an open session.
#[derive(Debug)]
pub enum Started {
    /// The target mounted it from the other repository; no upload is needed.
    Mounted,
    /// The repository itself has it already.
    Present,
    /// A session is open for the upload.
    Session(Upload),
}

/// An open upload session.
#[derive(Debug, Clone)]
pub struct Upload {
    location: Url,
    /// Network of the host that named the location.
    named_in: hop::Reach,
    digest: Digest,
    min_chunk: u64,
}

/// Content to upload, with its position in the blob.
pub enum Part {
    /// The whole blob, in memory; can be sent again.
    Whole(Bytes),
    /// The bytes from `offset` to before `end`, as a stream.
    Stream {
        /// The content, exactly `end - offset` bytes.
        body: Body,
        /// Progress of the body.
        sent: Box<dyn Fn() -> Sent + Send + Sync>,
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
    pub fn writing(&self, digest: &Digest) -> String {
        format!("writing blob {}@{digest}", self.label())
    }

    /// Starts an upload. With `mount`, the target mounts the blob from that repository if it is there; if that is the
    /// repository itself, the same request tells whether the blob exists.
    ///
    /// A mount saves bytes and must never fail an image: if it cannot work between two repositories, it is tried within
    /// this one; if it cannot work at all, a HEAD and a plain session replace it.
    pub async fn upload_start(&self, digest: &Digest, mount: Option<&RepositoryName>) -> Result<Started> {
        let tried = self.writing(digest);
        if let Some(from) = mount.filter(|_| self.takes_mounts()) {
            let home = Some(&self.name).filter(|home| *home != from);
            for from in [Some(from), home].into_iter().flatten() {
                if self.registry.mounts.may_work(from, &self.name)
                    && let Some(started) = self.mount(digest, from, &tried).await?
                {
                    return Ok(started);
                }
            }
            if self.is_there_after_all(digest).await? {
                return Ok(Started::Present);
            }
        }
        let started = self.with_retries(|| self.in_place(|| self.start_plainly(digest, &tried))).await;
        started.map_err(|error| self.unmade(error))
    }

    async fn start_plainly(&self, digest: &Digest, tried: &str) -> Result<Started> {
        let answer = self.send(self.start_request(None, tried)).await?;
        match answer.status() {
            StatusCode::ACCEPTED | StatusCode::CREATED | StatusCode::OK => {
                Ok(Started::Session(self.session(answer, digest, tried).await?))
            }
            _ => Err(self.refusal(answer, tried).await),
        }
    }

    /// Returns `None` if mounts between these repositories do not work, which is cached.
    async fn mount(&self, digest: &Digest, from: &RepositoryName, tried: &str) -> Result<Option<Started>> {
        match self.with_retries(|| self.in_place(|| self.mount_once(digest, from, tried))).await {
            Ok(started) => Ok(Some(started)),
            Err(error) => match error.class() {
                // The token service may refuse a second scope, or the registry the source repository; a plain session
                // may still work.
                Class::Denied
                | Class::NotFound
                | Class::Refused
                | Class::Incomplete
                | Class::Unsupported
                | Class::Outdated
                | Class::BadAnswer
                | Class::ServerError => {
                    self.registry.mounts.refuse(from, &self.name);
                    Ok(None)
                }
                Class::TokenExpired
                | Class::RateLimited
                | Class::Unreachable
                | Class::TimedOut
                | Class::Corrupt
                | Class::Insecure
                | Class::Invalid
                | Class::Local
                | Class::Collision
                | Class::Immutable
                | Class::Differs
                | Class::Cancelled => Err(error),
            },
        }
    }

    /// Checks for the blob in place of a mount. Errors do not prevent the upload.
    async fn is_there_after_all(&self, digest: &Digest) -> Result<bool> {
        match self.blob_head(digest).await {
            Err(error) if error.is_cancelled() => Err(error),
            found => Ok(found.unwrap_or(false)),
        }
    }

    async fn mount_once(&self, digest: &Digest, from: &RepositoryName, tried: &str) -> Result<Started> {
        let mut request = self.start_request(Some((digest, from)), tried);
        if *from != self.name {
            request.from = Some(from);
        }
        let answer = self.send(request).await?;
        match answer.status() {
            StatusCode::CREATED => {
                let said = answer.text_header("docker-content-digest").and_then(|text| text.parse::<Digest>().ok());
                answer.drain().await;
                if said.is_some_and(|said| said.algorithm() == digest.algorithm() && said != *digest) {
                    return Err(Error::new(Class::Corrupt, tried, "the registry mounted another blob"));
                }
                Ok(if *from == self.name { Started::Present } else { Started::Mounted })
            }
            StatusCode::ACCEPTED => Ok(Started::Session(self.session(answer, digest, tried).await?)),
            status => {
                let error = self.refusal(answer, tried).await;
                // A 400 can concern the other repository; for a mount from this one it concerns mounts.
                let unknown = match status {
                    StatusCode::METHOD_NOT_ALLOWED | StatusCode::NOT_IMPLEMENTED => true,
                    StatusCode::BAD_REQUEST => *from == self.name && error.class() != Class::RateLimited,
                    _ => false,
                };
                if unknown {
                    // Spares the next blob the request.
                    self.registry.mounts.set_unknown();
                }
                Err(error)
            }
        }
    }

    fn start_request<'a>(&self, mount: Option<(&Digest, &RepositoryName)>, tried: &'a str) -> Outgoing<'a> {
        let mut url = self.url("blobs/uploads/");
        if let Some((digest, from)) = mount {
            url.query_pairs_mut().append_pair("mount", &digest.to_string()).append_pair("from", from.as_str());
        }
        Outgoing::new(Method::POST, url, tried).payload(Payload::Bytes(Bytes::new()))
    }

    async fn session(&self, answer: Answer, digest: &Digest, tried: &str) -> Result<Upload> {
        let (location, named_in) = self.location(&answer, "upload location", tried)?;
        let min_chunk = answer.text_header("oci-chunk-min-length").and_then(|text| text.parse().ok()).unwrap_or(0);
        answer.drain().await;
        Ok(Upload { location, named_in, digest: digest.clone(), min_chunk })
    }

    /// Uploads content. The last part completes the upload: the registry verifies the digest and stores the blob. Sent
    /// once, except for [`Part::Whole`], which is retried. A session that is gone is [`Class::NotFound`].
    pub async fn upload_send(&self, upload: &mut Upload, part: Part) -> Result<()> {
        let tried = self.writing(&upload.digest);
        match part {
            Part::Whole(bytes) => {
                self.passed(bytes.len(), &tried).await?;
                let request = Outgoing::new(Method::PUT, upload.commit_url(), &tried)
                    .named_in(upload.named_in)
                    .header(header::CONTENT_TYPE, "application/octet-stream")
                    .payload(Payload::Bytes(bytes.clone()));
                let answer = self.send(request).await?;
                self.tally.sent(bytes.len() as u64);
                self.context.clock.sent(bytes.len() as u64);
                self.committed(answer, upload, &tried).await
            }
            Part::Stream { body, sent, offset, end, last: true } => {
                let mut request = Outgoing::new(Method::PUT, upload.commit_url(), &tried)
                    .named_in(upload.named_in)
                    .header(header::CONTENT_TYPE, "application/octet-stream")
                    .header(header::CONTENT_LENGTH, &(end - offset).to_string())
                    .payload(Payload::Stream(body, sent));
                if offset > 0 && end > offset {
                    request = request.header(header::CONTENT_RANGE, &format!("{offset}-{}", end - 1));
                }
                let answer = self.send(request).await?;
                self.committed(answer, upload, &tried).await
            }
            Part::Stream { body, sent, offset, end, last: false } => {
                let request = Outgoing::new(Method::PATCH, upload.location.clone(), &tried)
                    .named_in(upload.named_in)
                    .header(header::CONTENT_TYPE, "application/octet-stream")
                    .header(header::CONTENT_LENGTH, &(end - offset).to_string())
                    .header(header::CONTENT_RANGE, &format!("{offset}-{}", end - 1))
                    .payload(Payload::Stream(body, sent));
                let answer = self.send(request).await?;
                if !answer.status().is_success() {
                    return Err(self.refusal(answer, &tried).await);
                }
                if answer.headers().contains_key(header::LOCATION) {
                    (upload.location, upload.named_in) = self.location(&answer, "upload location", &tried)?;
                }
                answer.drain().await;
                Ok(())
            }
        }
    }

    /// Waits for the bandwidth limit.
    async fn passed(&self, bytes: usize, tried: &str) -> Result<()> {
        let _pause = self.context.clock.pause();
        let meter = self.meter();
        tokio::select! {
            biased;
            () = self.context.cancel.cancelled() => Err(Error::cancelled(tried)),
            () = meter.pass(bytes) => Ok(()),
        }
    }

    async fn committed(&self, answer: Answer, upload: &Upload, tried: &str) -> Result<()> {
        if !answer.status().is_success() {
            return Err(self.refusal(answer, tried).await);
        }
        let said = answer.text_header("docker-content-digest").and_then(|text| text.parse::<Digest>().ok());
        answer.drain().await;
        match said {
            Some(said) if said.algorithm() == upload.digest.algorithm() && said != upload.digest => {
                Err(Error::new(Class::Corrupt, tried, format!("the registry stored {said}")))
            }
            _ => Ok(()),
        }
    }

    /// Returns how many bytes a session holds after at most `sent` were sent; `None` if it is gone or does not tell, so
    /// that the upload must be restarted.
    pub async fn upload_status(&self, upload: &mut Upload, sent: u64) -> Result<Option<u64>> {
        let tried = format!("asking how far an upload is: {}", self.writing(&upload.digest));
        let (location, named_in) = (upload.location.clone(), upload.named_in);
        let (status, held, next) = self
            .with_retries(|| async {
                let answer = self.send(Outgoing::new(Method::GET, location.clone(), &tried).named_in(named_in)).await?;
                match answer.status() {
                    status if status.is_success() => {
                        let held = answer.text_header(header::RANGE).and_then(range::parse_session_range);
                        let next = match answer.headers().contains_key(header::LOCATION) {
                            true => Some(self.location(&answer, "upload location", &tried)?),
                            false => None,
                        };
                        Ok((status, held, next))
                    }
                    status if status.is_client_error() && status != StatusCode::TOO_MANY_REQUESTS => {
                        Ok((status, None, None))
                    }
                    _ => Err(self.refusal(answer, &tried).await),
                }
            })
            .await?;
        if !status.is_success() {
            return Ok(None);
        }
        if let Some(next) = next {
            (upload.location, upload.named_in) = next;
        }
        Ok(held.and_then(|held| held.continue_from(sent)))
    }

    /// Tries to delete an abandoned session. Never fails, never takes long, works after cancellation.
    pub async fn upload_cancel(&self, upload: Upload) {
        let mut tidy = self.within(&super::Context::default());
        tidy.access = Access::Delete;
        let tried = format!("cancelling: {}", self.writing(&upload.digest));
        let request = Outgoing::new(Method::DELETE, upload.location, &tried).named_in(upload.named_in);
        let _ = tokio::time::timeout(CANCEL_WITHIN, tidy.send(request)).await;
    }
}

impl Upload {
    /// Returns the minimum size of a PATCH other than the last (`OCI-Chunk-Min-Length`).
    pub fn min_chunk(&self) -> u64 {
        self.min_chunk
    }

    /// Returns the origin of the upload URL, for messages: without the query, which may hold a signature.
    pub fn origin(&self) -> String {
        hop::origin(&self.location)
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
        let mut upload = Upload {
            location: "http://h/v2/a/blobs/uploads/u?_state=a%2Fb+c==&x".parse().unwrap(),
            named_in: hop::Reach::Public,
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
