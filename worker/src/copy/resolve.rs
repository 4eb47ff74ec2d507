//! Compares source and target with as few requests as possible.

use imgsync_oci::Digest;
use imgsync_oci::error::{Error, ErrorKind, Result};
use imgsync_registry::ManifestRef;

use super::endpoints::Endpoints;
use super::platform_filter::{SelectedImage, select_platforms};
use super::tag_moves::TagMoves;
use super::{CopyRequest, Overwrite, PlatformSelection, TargetTagState};

/// Result of comparing source and target.
pub(super) struct Comparison {
    pub(super) root: RootStatus,
    /// Digest of the source tag, if it is not the root: when platforms are selected.
    pub(super) source_digest: Option<Digest>,
    /// Digest from a HEAD of the source tag, if it differs from the content.
    pub(super) head_digest: Option<Digest>,
    /// Whether the target tag exists, so that part of the image may be present.
    pub(super) target_has_tag: bool,
}

pub(super) enum RootStatus {
    /// Digest of the target, and the manifest if it was read.
    Unchanged(Digest, Option<SelectedImage>),
    Changed(SelectedImage),
}

/// Compares source and target with as few requests as possible. It asks for the target tag first, so an image that is
/// missing there costs no HEAD at the source. With a platform selection the source digest says nothing about the
/// target: the manifest is read and filtered before the comparison.
///
/// A HEAD of the source is trusted only if it equals the target. Otherwise the tag is read: a cache in front of a
/// registry may answer HEAD with an old digest, and only content can be verified.
pub(super) async fn compare_endpoints(
    request: &CopyRequest,
    endpoints: &Endpoints,
    moves: &mut TagMoves,
) -> Result<Comparison> {
    let target_head = match &endpoints.target_ref {
        Some(reference) if request.target_tag == TargetTagState::Unknown => {
            endpoints.target.manifest_head(reference).await?
        }
        _ => None,
    };
    let tag_now = target_head.map(|head| head.digest);
    let cached = match &request.target_tag {
        TargetTagState::Cached(digest) => Some(digest),
        TargetTagState::Unknown => None,
    };
    let target_has_tag = tag_now.is_some() || cached.is_some();
    let current = tag_now.as_ref().or(cached).filter(|_| !request.force);
    let unchanged = |digest: &Digest| {
        let root = RootStatus::Unchanged(digest.clone(), None);
        Ok(Comparison { root, source_digest: None, head_digest: None, target_has_tag })
    };
    let comparable =
        current.filter(|_| matches!(request.platforms, PlatformSelection::All | PlatformSelection::Sparse(_)));
    let known = match &endpoints.source_ref {
        Some(ManifestRef::Digest(digest)) => Some(digest),
        _ => request.listed_digest.as_ref(),
    };
    let mut head_digest = request.head_digest.clone();
    let root = match (moves.root.take(), known) {
        (Some(root), _) => root,
        (None, Some(known)) => {
            moves.current = Some(known.clone());
            if comparable == Some(known) {
                return unchanged(known);
            }
            match endpoints.source.manifest_by_digest(known).await {
                // The listed digest is gone: the tag has moved.
                Err(error) if error.kind() == ErrorKind::NotFound && request.listed_digest.is_some() => {
                    endpoints.source.manifest_get(endpoints.source_ref.as_ref()).await?
                }
                root => root?,
            }
        }
        (None, None) => {
            if let (Some(there), Some(reference)) = (comparable, &endpoints.source_ref) {
                if head_digest.is_none() {
                    let head = endpoints.source.manifest_head(reference).await?;
                    head_digest = Some(head.ok_or_else(|| source_missing_error(request))?.digest);
                }
                if head_digest.as_ref() == Some(there) {
                    moves.current = head_digest;
                    return unchanged(there);
                }
            }
            endpoints.source.manifest_get(endpoints.source_ref.as_ref()).await?
        }
    };
    let source_digest = root.digest().clone();
    moves.current = Some(source_digest.clone());
    let differing_head = head_digest.filter(|differing_head| *differing_head != source_digest);
    let selected = select_platforms(root, request, endpoints).await?;
    let root = match current == Some(selected.root.digest()) {
        true => RootStatus::Unchanged(selected.root.digest().clone(), Some(selected)),
        false => {
            check_overwrite(request, tag_now.as_ref(), selected.root.digest())?;
            RootStatus::Changed(selected)
        }
    };
    Ok(Comparison { root, source_digest: Some(source_digest), head_digest: differing_head, target_has_tag })
}

/// Asks for the target tag again, because the comparison is old.
pub(super) async fn refresh_target(request: &CopyRequest, endpoints: &Endpoints, found: &mut Comparison) -> Result<()> {
    let (Some(reference), RootStatus::Changed(selected)) = (&endpoints.target_ref, &found.root) else { return Ok(()) };
    let tag_now = endpoints.target.manifest_head(reference).await?.map(|head| head.digest);
    found.target_has_tag = tag_now.is_some();
    check_overwrite(request, tag_now.as_ref(), selected.root.digest())
}

/// Fails if the target tag has another digest and must not be overwritten.
fn check_overwrite(request: &CopyRequest, tag_now: Option<&Digest>, at_source: &Digest) -> Result<()> {
    let Some(now) = tag_now.filter(|now| request.overwrite == Overwrite::Never && *now != at_source) else {
        return Ok(());
    };
    let operation = format!("copying {} to {}", request.source, request.target);
    let detail = format!("the tag is immutable: the target has {now}, the source has {at_source}");
    Err(Error::new(ErrorKind::Immutable, operation, detail)
        .with_hint("find out why the source tag changed; to accept it, copy it once with `imgsync sync`"))
}

pub(super) fn source_missing_error(request: &CopyRequest) -> Error {
    Error::new(ErrorKind::NotFound, format!("reading {}", request.source), "not found in the registry")
        .with_hint("check the repository's name and the tag; `imgsync tags` lists them")
}
