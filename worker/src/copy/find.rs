//! Compares source and target with as few requests as possible.

use imgsync_common::error::{Class, Error, Result};
use imgsync_common::image::Digest;
use imgsync_common::registry::ManifestRef;

use super::choose::{Chosen, choose};
use super::ends::Ends;
use super::moves::Moves;
use super::{Job, Overwrite, Platforms, TargetTag};

/// Result of comparing source and target.
pub(super) struct Found {
    pub(super) root: Root,
    /// Digest of the source tag, if it is not the root: when platforms are selected.
    pub(super) source_digest: Option<Digest>,
    /// Digest from a HEAD of the source tag, if it differs from the content.
    pub(super) said: Option<Digest>,
    /// Whether the target tag exists, so that part of the image may be present.
    pub(super) target_has_tag: bool,
}

pub(super) enum Root {
    /// Digest of the target, and the manifest if it was read.
    Unchanged(Digest, Option<Chosen>),
    Changed(Chosen),
}

/// Compares source and target with as few requests as possible. It asks for the target tag first, so an image that is
/// missing there costs no HEAD at the source. With a platform selection the source digest says nothing about the
/// target: the manifest is read and filtered before the comparison.
///
/// A HEAD of the source is trusted only if it equals the target. Otherwise the tag is read: a cache in front of a
/// registry may answer HEAD with an old digest, and only content can be verified.
pub(super) async fn find(job: &Job, ends: &Ends, moves: &mut Moves) -> Result<Found> {
    let there = match &ends.target_ref {
        Some(reference) if job.target_tag == TargetTag::Unknown => ends.target.manifest_head(reference).await?,
        _ => None,
    };
    let tag_now = there.map(|head| head.digest);
    let believed = match &job.target_tag {
        TargetTag::Believed(digest) => Some(digest),
        TargetTag::Unknown => None,
    };
    let target_has_tag = tag_now.is_some() || believed.is_some();
    let there = tag_now.as_ref().or(believed).filter(|_| !job.force);
    let unchanged = |digest: &Digest| {
        let root = Root::Unchanged(digest.clone(), None);
        Ok(Found { root, source_digest: None, said: None, target_has_tag })
    };
    let comparable = there.filter(|_| matches!(job.platforms, Platforms::All | Platforms::Sparse(_)));
    let known = match &ends.source_ref {
        Some(ManifestRef::Digest(digest)) => Some(digest),
        _ => job.listed.as_ref(),
    };
    let mut said = job.said.clone();
    let root = match (moves.root.take(), known) {
        (Some(root), _) => root,
        (None, Some(known)) => {
            moves.seen = Some(known.clone());
            if comparable == Some(known) {
                return unchanged(known);
            }
            match ends.source.by_digest(known).await {
                // The listed digest is gone: the tag has moved.
                Err(error) if error.class() == Class::NotFound && job.listed.is_some() => {
                    ends.source.manifest_get(ends.source_ref.as_ref()).await?
                }
                root => root?,
            }
        }
        (None, None) => {
            if let (Some(there), Some(reference)) = (comparable, &ends.source_ref) {
                if said.is_none() {
                    let head = ends.source.manifest_head(reference).await?;
                    said = Some(head.ok_or_else(|| missing(job))?.digest);
                }
                if said.as_ref() == Some(there) {
                    moves.seen = said;
                    return unchanged(there);
                }
            }
            ends.source.manifest_get(ends.source_ref.as_ref()).await?
        }
    };
    let source_digest = root.digest().clone();
    moves.seen = Some(source_digest.clone());
    let said = said.filter(|said| *said != source_digest);
    let chosen = choose(root, job, ends).await?;
    let root = match there == Some(chosen.root.digest()) {
        true => Root::Unchanged(chosen.root.digest().clone(), Some(chosen)),
        false => {
            if job.overwrite == Overwrite::Never
                && let Some(now) = tag_now.filter(|now| now != chosen.root.digest())
            {
                let tried = format!("copying {} to {}", job.source, job.target);
                let at_source = chosen.root.digest();
                let detail = format!("the tag never moves, and it is {now} there and {at_source} at the source");
                return Err(Error::new(Class::Immutable, tried, detail)
                    .hint("find out why the source moved it; if it is to be taken, `imgsync sync` copies it once"));
            }
            Root::Changed(chosen)
        }
    };
    Ok(Found { root, source_digest: Some(source_digest), said, target_has_tag })
}

pub(super) fn missing(job: &Job) -> Error {
    Error::new(Class::NotFound, format!("reading {}", job.source), "the registry does not have it")
        .hint("check the repository's name and the tag; `imgsync tags` lists them")
}
