//! Manifests by HEAD, GET, PUT and DELETE (OCI distribution-spec, "Pulling manifests", "Pushing Manifests"). Digests
//! are always computed from the body; a differing header is not trusted.

use std::sync::atomic::Ordering;

use ::http::{Method, StatusCode, header};

use super::context::Counted;
use super::transport::{Outgoing, Payload};
use super::{Access, Repository};
use crate::error::{Class, Error, Result};
use crate::image::{Digest, Manifest, ManifestError, MediaType, Tag};

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
    "the target keeps this tag as it is; allow it there, exclude the tag, or name it in `immutable:`";
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
pub struct Head {
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
    pub refused: Option<Error>,
}

impl ManifestPut {
    /// Whether it was refused for missing permission, and not because the tag is immutable.
    pub fn is_denied(&self) -> bool {
        self.refused.as_ref().is_some_and(|error| error.class() == Class::Denied && !says_immutable(error))
    }
}

/// Result of a DELETE.
#[derive(Debug)]
pub enum Deleted {
    /// Deleted.
    Done,
    /// The registry reports that it does not exist.
    Missing,
    /// The registry does not support this kind of deletion, with its message: by tag, by digest, or at all.
    Unsupported(Error),
}

impl Repository {
    /// `registry/repository:tag` or `…@digest`, for messages.
    pub(crate) fn place(&self, reference: &ManifestRef) -> String {
        match reference {
            ManifestRef::Tag(tag) => format!("{}:{tag}", self.label()),
            ManifestRef::Digest(digest) => format!("{}@{digest}", self.label()),
        }
    }

    /// Returns the digest of a manifest without reading its body; `None` if it does not exist. Falls back to a GET if
    /// the registry does not support HEAD properly. Some answer 401 or 403 for a missing tag or repository: with push
    /// access that counts as missing, and the push shows whether access is denied.
    pub async fn manifest_head(&self, reference: &ManifestRef) -> Result<Option<Head>> {
        self.manifest_head_counted(reference, Counted::Request).await
    }

    pub(crate) async fn manifest_head_counted(
        &self,
        reference: &ManifestRef,
        counted: Counted,
    ) -> Result<Option<Head>> {
        let at_mirror = |mirror: Repository| async move {
            let missing = || Error::new(Class::NotFound, mirror.place(reference), "it is not there");
            mirror.manifest_asked(reference, counted).await?.ok_or_else(missing)
        };
        if self.has_mirrors()
            && let Some(head) = Box::pin(self.at_mirrors(at_mirror)).await?
        {
            return Ok(Some(head));
        }
        match self.manifest_asked(reference, counted).await {
            // From the registry and not from a proxy.
            Err(error)
                if self.access == Access::Push
                    && error.class() == Class::Denied
                    && error.status().is_some_and(|status| status != 407) =>
            {
                Ok(None)
            }
            asked => asked,
        }
    }

    pub(super) async fn manifest_asked(&self, reference: &ManifestRef, counted: Counted) -> Result<Option<Head>> {
        let tried = format!("asking for {}", self.place(reference));
        let head = self
            .with_retries(|| async {
                let request = self.manifest_request(Method::HEAD, reference, &tried).counted(counted);
                let answer = self.send(request).await?;
                match answer.status() {
                    StatusCode::OK => {
                        let said = answer.text_header(CONTENT_DIGEST).and_then(|text| text.parse::<Digest>().ok());
                        let media_type = MediaType::new(answer.text_header(header::CONTENT_TYPE).unwrap_or_default());
                        Ok(Asked::There(said.map(|digest| Head { digest, media_type })))
                    }
                    StatusCode::NOT_FOUND => {
                        // Nexus is known for HEADs that find nothing.
                        if answer.text_header(header::SERVER).is_some_and(|server| server.starts_with("Nexus/")) {
                            self.registry.heads_fail.store(true, Ordering::Relaxed);
                        }
                        Ok(Asked::Missing)
                    }
                    StatusCode::METHOD_NOT_ALLOWED | StatusCode::NOT_IMPLEMENTED => Ok(Asked::There(None)),
                    _ => Err(self.refusal(answer, &tried).await),
                }
            })
            .await?;
        match head {
            // For a push, a wrong "missing" costs a request and no image. The same for referrers, which mostly do not
            // exist.
            Asked::Missing
                if (self.access == Access::Push || counted == Counted::Referrers)
                    && !self.registry.heads_fail.load(Ordering::Relaxed) =>
            {
                Ok(None)
            }
            Asked::There(Some(head)) => Ok(Some(head)),
            // Some answer every HEAD with 404, or without the required headers.
            Asked::Missing | Asked::There(None) => match self.manifest_get_here(reference, counted).await {
                Ok(manifest) => {
                    self.registry.heads_fail.store(true, Ordering::Relaxed);
                    Ok(Some(Head { digest: manifest.digest().clone(), media_type: manifest.media_type().clone() }))
                }
                Err(error) if error.class() == Class::NotFound => Ok(None),
                Err(error) => Err(error),
            },
        }
    }

    /// Returns a manifest, verified against the requested digest, else against the response's digest header, if any.
    pub async fn manifest_get(&self, reference: &ManifestRef) -> Result<Manifest> {
        self.manifest_get_counted(reference, Counted::Request).await
    }

    pub(crate) async fn manifest_get_counted(&self, reference: &ManifestRef, counted: Counted) -> Result<Manifest> {
        let at_mirror = |mirror: Repository| async move { mirror.manifest_get_here(reference, counted).await };
        if self.has_mirrors()
            && let Some(manifest) = Box::pin(self.at_mirrors(at_mirror)).await?
        {
            return Ok(manifest);
        }
        self.manifest_get_here(reference, counted).await
    }

    async fn manifest_get_here(&self, reference: &ManifestRef, counted: Counted) -> Result<Manifest> {
        let tried = format!("reading {}", self.place(reference));
        let mut retry = self.retry();
        let mut read_again = false;
        loop {
            match self.manifest_get_once(reference, counted, &tried).await {
                Ok(manifest) => return Ok(manifest),
                // A mismatch may be a transfer error: read once more, then fail.
                Err(error) if error.class() == Class::Corrupt && !read_again => read_again = true,
                Err(error) => self.pause(&mut retry, error).await?,
            }
        }
    }

    async fn manifest_get_once(&self, reference: &ManifestRef, counted: Counted, tried: &str) -> Result<Manifest> {
        let answer = self.send(self.manifest_request(Method::GET, reference, tried).counted(counted)).await?;
        if answer.status() != StatusCode::OK {
            let missing = answer.status() == StatusCode::NOT_FOUND;
            let error = self.refusal(answer, tried).await;
            return Err(if missing { error.hint("check the repository's name and the tag") } else { error });
        }
        let said = answer.text_header(CONTENT_DIGEST).and_then(|text| text.parse::<Digest>().ok());
        let content_type = MediaType::new(answer.text_header(header::CONTENT_TYPE).unwrap_or_default());
        let bytes = answer.bytes(Manifest::MAX_BYTES, tried).await?;
        let digest = match (reference, said) {
            (ManifestRef::Digest(digest), _) => digest.clone(),
            (ManifestRef::Tag(_), Some(said)) => said,
            (ManifestRef::Tag(_), None) => Digest::sha256(&bytes),
        };
        if !digest.verifies(&bytes) {
            let found = Digest::of(digest.algorithm(), &bytes);
            return Err(Error::new(
                Class::Corrupt,
                tried,
                format!("the manifest should have the digest {digest}, its bytes have {found}"),
            )
            .hint("the source, or something between, changes content; nothing was written"));
        }
        Manifest::parse_as(bytes, digest, &content_type).map_err(|error| {
            let class = match error {
                ManifestError::Schema1 => Class::Outdated,
                ManifestError::Unknown(_) => Class::Unsupported,
                ManifestError::Unparsable(_) | ManifestError::TooLarge => Class::BadAnswer,
            };
            Error::new(class, tried, error.to_string()).because(error)
        })
    }

    /// Puts a manifest under a tag or its digest, with its bytes unchanged.
    pub async fn manifest_put(&self, reference: &ManifestRef, manifest: &Manifest) -> Result<ManifestPut> {
        self.manifest_put_counted(reference, manifest, Counted::Request).await
    }

    pub(crate) async fn manifest_put_counted(
        &self,
        reference: &ManifestRef,
        manifest: &Manifest,
        counted: Counted,
    ) -> Result<ManifestPut> {
        let tried = format!("writing {}", self.place(reference));
        let once = || async {
            let request = Outgoing::new(Method::PUT, self.url(&format!("manifests/{reference}")), &tried)
                .header(header::CONTENT_TYPE, manifest.media_type().as_str())
                .payload(Payload::Bytes(manifest.bytes().clone()))
                .counted(counted);
            let answer = self.send(request).await?;
            if !answer.status().is_success() {
                let error = self.refusal(answer, &tried).await;
                return Err(match () {
                    () if wants_oci(&error, manifest) => error.hint(OCI_ONLY),
                    () if lacks_content(&error) => error.as_class(Class::Incomplete),
                    () if error.status() == Some(413) => error.hint(BODY_LIMIT),
                    () => error,
                });
            }
            let said = answer.text_header(CONTENT_DIGEST).and_then(|text| text.parse::<Digest>().ok());
            let subject_kept = answer.headers().contains_key("oci-subject");
            answer.drain().await;
            if let Some(said) = said
                && said.algorithm() == manifest.digest().algorithm()
                && said != *manifest.digest()
            {
                return Err(Error::new(
                    Class::Corrupt,
                    &tried,
                    format!("{} was sent, the registry stored {said}", manifest.digest()),
                ));
            }
            Ok(ManifestPut { subject_kept, refused: None })
        };
        match self.with_retries(|| self.in_place(&once)).await {
            // Immutable tags refuse even the same manifest. Its subject was handled when it was first written.
            Err(error)
                if matches!(reference, ManifestRef::Tag(_))
                    && counted == Counted::Request
                    && matches!(error.class(), Class::Refused | Class::Denied) =>
            {
                match self.manifest_head(reference).await {
                    Ok(Some(head)) if head.digest == *manifest.digest() => {
                        Ok(ManifestPut { subject_kept: true, refused: Some(error) })
                    }
                    Ok(Some(_)) if says_immutable(&error) => Err(error.as_class(Class::Immutable).hint(IMMUTABLE)),
                    _ => Err(error),
                }
            }
            put => put,
        }
    }

    /// Deletes a tag, or a manifest by digest with all its tags. Requires [`Access::Delete`].
    pub async fn manifest_delete(&self, reference: &ManifestRef) -> Result<Deleted> {
        let tried = format!("deleting {}", self.place(reference));
        self.with_retries(|| async {
            let url = self.url(&format!("manifests/{reference}"));
            let answer = self.send(Outgoing::new(Method::DELETE, url, &tried)).await?;
            let status = answer.status();
            if status.is_success() {
                answer.drain().await;
                return Ok(Deleted::Done);
            }
            let error = self.refusal(answer, &tried).await;
            match status {
                StatusCode::NOT_FOUND => Ok(Deleted::Missing),
                // distribution 2.8 answers 405 for a tag, others 400 (DIGEST_INVALID) or 501; with deletion disabled,
                // all answer 405.
                StatusCode::METHOD_NOT_ALLOWED | StatusCode::NOT_IMPLEMENTED => Ok(Deleted::Unsupported(error)),
                StatusCode::BAD_REQUEST if error.class() == Class::Refused => Ok(Deleted::Unsupported(error)),
                _ => Err(error),
            }
        })
        .await
    }

    fn manifest_request<'a>(&self, method: Method, reference: &ManifestRef, tried: &'a str) -> Outgoing<'a> {
        // One header for each: some registries read only the first line of a combined one.
        ACCEPT
            .iter()
            .fold(Outgoing::new(method, self.url(&format!("manifests/{reference}")), tried), |request, accept| {
                request.header(header::ACCEPT, accept)
            })
    }
}

/// Whether a registry refused to move a tag. ECR: `TAG_INVALID`, "… cannot be overwritten because the tag is
/// immutable"; Harbor: 412, "configured as immutable"; Artifact Registry: "The repository has enabled tag
/// immutability"; others have codes of their own, `TAG_IMMUTABLE` or `TAG_ALREADY_EXISTS`.
fn says_immutable(error: &Error) -> bool {
    let code = error.code().unwrap_or_default().to_ascii_uppercase();
    let detail = error.detail().to_ascii_lowercase();
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

enum Asked {
    Missing,
    There(Option<Head>),
}
