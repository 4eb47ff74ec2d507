//! Manifests by HEAD, GET, PUT and DELETE (OCI distribution-spec, "Pulling manifests", "Pushing Manifests"). Digests
//! are always computed from the body; a differing header is not trusted.

use std::sync::atomic::Ordering;

use ::http::{Method, StatusCode, header};

use super::context::RequestKind;
use super::request_body::RequestBody;
use super::transport::RequestSpec;
use super::{Access, Repository, providers};
use imgsync_oci::error::{Error, ErrorKind, Result};
use imgsync_oci::{Digest, Manifest, ManifestError, MediaType, Tag};

/// All types that can be copied, and schema 1, so that it is recognised rather than converted by the registry.
const ACCEPT: [&str; 6] = [
    "application/vnd.oci.image.index.v1+json",
    "application/vnd.oci.image.manifest.v1+json",
    "application/vnd.docker.distribution.manifest.list.v2+json",
    "application/vnd.docker.distribution.manifest.v2+json",
    "application/vnd.docker.distribution.manifest.v1+prettyjws;q=0.1",
    "*/*;q=0.1",
];
/// Hint for refused Docker manifests.
const OCI_ONLY: &str = "the registry may take OCI images alone (zot: set `\"compat\": [\"docker2s2\"]` under `http`); the \
                        image is not converted, as that would change its digest";
/// Hint for immutable tags.
const IMMUTABLE: &str =
    "the tag is immutable at the target; allow overwriting there, exclude the tag, or list it in `immutable:`";
/// Hint for manifests larger than the target accepts.
const BODY_LIMIT: &str =
    "raise the limit of request bodies at the target, or at the proxy before it (nginx: client_max_body_size)";
const CONTENT_DIGEST: &str = "docker-content-digest";

/// Reference to a manifest.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ManifestRef {
    /// By tag, which can move.
    Tag(Tag),
    /// By digest, which cannot change.
    Digest(Digest),
}

impl std::fmt::Display for ManifestRef {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            ManifestRef::Tag(tag) => write!(f, "{tag}"),
            ManifestRef::Digest(digest) => write!(f, "{digest}"),
        }
    }
}

/// Result of a HEAD request for a manifest.
#[derive(Debug, Clone)]
pub struct ManifestHead {
    /// The digest.
    pub digest: Digest,
    /// The media type; [`MediaType::Missing`] if the registry does not send one.
    pub media_type: MediaType,
}

/// Result of a PUT of a manifest.
#[derive(Debug, Default)]
pub struct ManifestPut {
    /// Whether the registry adds it to its subject's referrers itself (`OCI-Subject`).
    pub subject_kept: bool,
    /// Why the registry refused the PUT, although the tag points at the manifest.
    pub refusal: Option<Error>,
}

impl ManifestPut {
    /// Whether it was refused for missing permission, and not because the tag is immutable.
    pub fn is_denied(&self) -> bool {
        self.refusal.as_ref().is_some_and(|error| error.kind() == ErrorKind::Denied && !says_immutable(error))
    }
}

/// Result of a DELETE.
#[derive(Debug)]
pub enum DeleteResult {
    /// Deleted.
    Done,
    /// The registry reports that it does not exist.
    Missing,
    /// The registry does not support this kind of deletion, with its message: by tag, by digest, or at all.
    Unsupported(Error),
}

impl Repository {
    /// `registry/repository:tag` or `…@digest`, for messages.
    pub(crate) fn display_reference(&self, reference: &ManifestRef) -> String {
        match reference {
            ManifestRef::Tag(tag) => format!("{}:{tag}", self.label()),
            ManifestRef::Digest(digest) => format!("{}@{digest}", self.label()),
        }
    }

    /// Returns the digest of a manifest without reading its body; `None` if it does not exist. Falls back to a GET if
    /// the registry does not support HEAD properly. Some answer 401 or 403 for a missing tag or repository: with push
    /// access that counts as missing, and the push shows whether access is denied.
    pub async fn head_manifest(&self, reference: &ManifestRef) -> Result<Option<ManifestHead>> {
        self.head_manifest_as(reference, RequestKind::Request).await
    }

    /// Returns what [`Repository::head_manifest`] does, but asks only the registry itself: a mirror may still have what
    /// a tag showed before.
    pub async fn head_manifest_at_registry(&self, reference: &ManifestRef) -> Result<Option<ManifestHead>> {
        self.head_manifest_here(reference, RequestKind::Request).await
    }

    pub(crate) async fn head_manifest_as(
        &self,
        reference: &ManifestRef,
        kind: RequestKind,
    ) -> Result<Option<ManifestHead>> {
        let at_mirror = |mirror: Repository| async move {
            let missing = || Error::new(ErrorKind::NotFound, mirror.display_reference(reference), "not found");
            mirror.head_manifest_here(reference, kind).await?.ok_or_else(missing)
        };
        if self.has_mirrors()
            && let Some(head) = Box::pin(self.try_mirrors(at_mirror)).await?
        {
            return Ok(Some(head));
        }
        match self.head_manifest_here(reference, kind).await {
            // From the registry and not from a proxy.
            Err(error)
                if self.access == Access::Push
                    && error.kind() == ErrorKind::Denied
                    && error.status().is_some_and(|status| status != 407) =>
            {
                Ok(None)
            }
            asked => asked,
        }
    }

    pub(super) async fn head_manifest_here(
        &self,
        reference: &ManifestRef,
        kind: RequestKind,
    ) -> Result<Option<ManifestHead>> {
        let operation = format!("checking {}", self.display_reference(reference));
        let head = self
            .with_retries(|| async {
                let request = self.manifest_request(Method::HEAD, reference, &operation).kind(kind);
                let response = self.send(request).await?;
                match response.status() {
                    StatusCode::OK => {
                        let header_digest =
                            response.text_header(CONTENT_DIGEST).and_then(|text| text.parse::<Digest>().ok());
                        let media_type = MediaType::new(response.text_header(header::CONTENT_TYPE).unwrap_or_default());
                        Ok(HeadResult::Found(header_digest.map(|digest| ManifestHead { digest, media_type })))
                    }
                    StatusCode::NOT_FOUND => {
                        if response.text_header(header::SERVER).is_some_and(providers::has_unreliable_heads) {
                            self.registry.heads_unreliable.store(true, Ordering::Relaxed);
                        }
                        Ok(HeadResult::Missing)
                    }
                    StatusCode::METHOD_NOT_ALLOWED | StatusCode::NOT_IMPLEMENTED => Ok(HeadResult::Found(None)),
                    _ => Err(self.error_from_response(response, &operation).await),
                }
            })
            .await?;
        match head {
            // For a push, a wrong "missing" costs a request and no image. The same for referrers, which mostly do not
            // exist.
            HeadResult::Missing
                if (self.access == Access::Push || kind == RequestKind::Referrers)
                    && !self.registry.heads_unreliable.load(Ordering::Relaxed) =>
            {
                Ok(None)
            }
            HeadResult::Found(Some(head)) => Ok(Some(head)),
            // Some answer every HEAD with 404, or without the required headers.
            HeadResult::Missing | HeadResult::Found(None) => match self.get_manifest_here(reference, kind).await {
                Ok(manifest) => {
                    self.registry.heads_unreliable.store(true, Ordering::Relaxed);
                    Ok(Some(ManifestHead {
                        digest: manifest.digest().clone(),
                        media_type: manifest.media_type().clone(),
                    }))
                }
                Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
                Err(error) => Err(error),
            },
        }
    }

    /// Returns a manifest, verified against the requested digest, else against the response's digest header, if any.
    pub async fn get_manifest(&self, reference: &ManifestRef) -> Result<Manifest> {
        self.get_manifest_as(reference, RequestKind::Request).await
    }

    pub(crate) async fn get_manifest_as(&self, reference: &ManifestRef, kind: RequestKind) -> Result<Manifest> {
        let at_mirror = |mirror: Repository| async move { mirror.get_manifest_here(reference, kind).await };
        if self.has_mirrors()
            && let Some(manifest) = Box::pin(self.try_mirrors(at_mirror)).await?
        {
            return Ok(manifest);
        }
        self.get_manifest_here(reference, kind).await
    }

    async fn get_manifest_here(&self, reference: &ManifestRef, kind: RequestKind) -> Result<Manifest> {
        let operation = format!("reading {}", self.display_reference(reference));
        let mut retry = self.new_retry();
        let mut read_again = false;
        loop {
            match self.get_manifest_once(reference, kind, &operation).await {
                Ok(manifest) => return Ok(manifest),
                // A mismatch may be a transfer error: read once more, then fail.
                Err(error) if error.kind() == ErrorKind::Corrupt && !read_again => read_again = true,
                Err(error) => self.wait_before_retry(&mut retry, error).await?,
            }
        }
    }

    async fn get_manifest_once(&self, reference: &ManifestRef, kind: RequestKind, operation: &str) -> Result<Manifest> {
        let response = self.send(self.manifest_request(Method::GET, reference, operation).kind(kind)).await?;
        if response.status() != StatusCode::OK {
            let missing = response.status() == StatusCode::NOT_FOUND;
            let error = self.error_from_response(response, operation).await;
            return Err(if missing { error.with_hint("check the repository's name and the tag") } else { error });
        }
        let header_digest = response.text_header(CONTENT_DIGEST).and_then(|text| text.parse::<Digest>().ok());
        let content_type = MediaType::new(response.text_header(header::CONTENT_TYPE).unwrap_or_default());
        let bytes = response.bytes(Manifest::MAX_BYTES, operation).await?;
        let digest = match (reference, header_digest) {
            (ManifestRef::Digest(digest), _) => digest.clone(),
            (ManifestRef::Tag(_), Some(header_digest)) => header_digest,
            (ManifestRef::Tag(_), None) => Digest::sha256(&bytes),
        };
        if !digest.verifies(&bytes) {
            let found = Digest::from_bytes(digest.algorithm(), &bytes);
            return Err(Error::new(
                ErrorKind::Corrupt,
                operation,
                format!("the manifest should have the digest {digest}, its bytes have {found}"),
            )
            .with_hint("the source, or a proxy in front of it, alters content; nothing was written"));
        }
        Manifest::parse_as(bytes, digest, &content_type).map_err(|error| {
            let kind = match error {
                ManifestError::Schema1 => ErrorKind::Outdated,
                ManifestError::Unknown(_) => ErrorKind::Unsupported,
                ManifestError::Unparsable(_) | ManifestError::TooLarge => ErrorKind::InvalidResponse,
            };
            Error::new(kind, operation, error.to_string()).with_source(error)
        })
    }

    /// Puts a manifest under a tag or its digest, with its bytes unchanged.
    pub async fn put_manifest(&self, reference: &ManifestRef, manifest: &Manifest) -> Result<ManifestPut> {
        self.put_manifest_as(reference, manifest, RequestKind::Request).await
    }

    pub(crate) async fn put_manifest_as(
        &self,
        reference: &ManifestRef,
        manifest: &Manifest,
        kind: RequestKind,
    ) -> Result<ManifestPut> {
        let operation = format!("writing {}", self.display_reference(reference));
        let once = || async {
            let request = RequestSpec::new(Method::PUT, self.url(&format!("manifests/{reference}")), &operation)
                .header(header::CONTENT_TYPE, manifest.media_type().as_str())
                .body(RequestBody::Bytes(manifest.bytes().clone()))
                .kind(kind);
            let response = self.send(request).await?;
            if !response.status().is_success() {
                let error = self.error_from_response(response, &operation).await;
                return Err(match () {
                    () if wants_oci(&error, manifest) => error.with_hint(OCI_ONLY),
                    () if lacks_content(&error) => error.with_kind(ErrorKind::Incomplete),
                    () if error.status() == Some(413) => error.with_hint(BODY_LIMIT),
                    () => error,
                });
            }
            let header_digest = response.text_header(CONTENT_DIGEST).and_then(|text| text.parse::<Digest>().ok());
            let subject_kept = response.headers().contains_key("oci-subject");
            response.drain().await;
            if let Some(header_digest) = header_digest
                && header_digest.algorithm() == manifest.digest().algorithm()
                && header_digest != *manifest.digest()
            {
                return Err(Error::new(
                    ErrorKind::Corrupt,
                    &operation,
                    format!("{} was sent, the registry stored {header_digest}", manifest.digest()),
                ));
            }
            Ok(ManifestPut { subject_kept, refusal: None })
        };
        match self.with_retries(|| self.with_provisioning(&once)).await {
            // Immutable tags refuse even the same manifest. Its subject was handled when it was first written.
            Err(error)
                if matches!(reference, ManifestRef::Tag(_))
                    && kind == RequestKind::Request
                    && matches!(error.kind(), ErrorKind::Refused | ErrorKind::Denied) =>
            {
                match self.head_manifest(reference).await {
                    Ok(Some(head)) if head.digest == *manifest.digest() => {
                        Ok(ManifestPut { subject_kept: true, refusal: Some(error) })
                    }
                    Ok(Some(_)) if says_immutable(&error) => {
                        Err(error.with_kind(ErrorKind::Immutable).with_hint(IMMUTABLE))
                    }
                    _ => Err(error),
                }
            }
            put => put,
        }
    }

    /// Deletes a tag, or a manifest by digest with all its tags. Requires [`Access::Delete`].
    pub async fn delete_manifest(&self, reference: &ManifestRef) -> Result<DeleteResult> {
        let operation = format!("deleting {}", self.display_reference(reference));
        self.with_retries(|| async {
            let url = self.url(&format!("manifests/{reference}"));
            let response = self.send(RequestSpec::new(Method::DELETE, url, &operation)).await?;
            let status = response.status();
            if status.is_success() {
                response.drain().await;
                return Ok(DeleteResult::Done);
            }
            let error = self.error_from_response(response, &operation).await;
            match status {
                StatusCode::NOT_FOUND => Ok(DeleteResult::Missing),
                // distribution 2.8 answers 405 for a tag, others 400 (DIGEST_INVALID) or 501; with deletion disabled,
                // all answer 405.
                StatusCode::METHOD_NOT_ALLOWED | StatusCode::NOT_IMPLEMENTED => Ok(DeleteResult::Unsupported(error)),
                StatusCode::BAD_REQUEST if error.kind() == ErrorKind::Refused => Ok(DeleteResult::Unsupported(error)),
                _ => Err(error),
            }
        })
        .await
    }

    fn manifest_request<'a>(&self, method: Method, reference: &ManifestRef, operation: &'a str) -> RequestSpec<'a> {
        // One header for each: some registries read only the first line of a combined one.
        ACCEPT.iter().fold(
            RequestSpec::new(method, self.url(&format!("manifests/{reference}")), operation),
            |request, accept| request.header(header::ACCEPT, accept),
        )
    }
}

/// Whether a registry refused to move a tag. ECR: `TAG_INVALID`, "… cannot be overwritten because the tag is
/// immutable"; Harbor: 412, "configured as immutable"; Artifact Registry: "The repository has enabled tag
/// immutability"; others have codes of their own, `TAG_IMMUTABLE` or `TAG_ALREADY_EXISTS`.
fn says_immutable(error: &Error) -> bool {
    let code = error.code().unwrap_or_default().to_ascii_uppercase();
    let detail = error.message().to_ascii_lowercase();
    code.contains("IMMUTABLE")
        || code.contains("ALREADY_EXISTS")
        || ["immutab", "cannot be overwritten", "alreadyexists"].iter().any(|word| detail.contains(word))
}

/// Whether a manifest may have been refused for its Docker media type.
fn wants_oci(error: &Error, manifest: &Manifest) -> bool {
    let is_docker = manifest.media_type().as_str().starts_with("application/vnd.docker.");
    is_docker && (error.status() == Some(415) || error.code() == Some("MANIFEST_INVALID"))
}

/// Whether a manifest was refused because content that it references is missing: an index's child or a subject.
fn lacks_content(error: &Error) -> bool {
    matches!(error.status(), Some(400 | 404)) && matches!(error.code(), Some("MANIFEST_UNKNOWN" | "BLOB_UNKNOWN"))
}

enum HeadResult {
    Missing,
    Found(Option<ManifestHead>),
}
