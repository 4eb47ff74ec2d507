//! What the two ends have, found out with as few requests as can be.

use imgsync_common::error::{Class, Error, Result};
use imgsync_common::image::Digest;
use imgsync_common::registry::ManifestRef;

use super::choose::{Chosen, choose};
use super::ends::Ends;
use super::{Job, Overwrite, Platforms, TargetTag};

/// What the two ends have.
pub(super) struct Found {
    pub(super) root: Root,
    /// What the source's tag is, where that is not the root: where platforms were chosen.
    pub(super) source_digest: Option<Digest>,
    /// Whether the target tag exists, so that part of the image may be there.
    pub(super) target_has_tag: bool,
}

pub(super) enum Root {
    /// The digest that the target has; and the manifest, where it was read.
    Unchanged(Digest, Option<Chosen>),
    Changed(Chosen),
}

/// Finds what to copy with as few requests as can be: the target's tag is asked for first, so that an image that is not
/// there yet costs the source no HEAD. Where platforms are chosen, what the source's tag is says nothing of what the
/// target's should be: the source's manifest is read, and what is chosen of it compared.
pub(super) async fn find(job: &Job, ends: &Ends) -> Result<Found> {
    let there = match &ends.target_ref {
        Some(reference) if job.target_tag == TargetTag::Unknown => ends.target.manifest_head(reference).await?,
        _ => None,
    };
    let target_has_tag = there.is_some() || job.target_tag == TargetTag::Outdated;
    let tag_now = there.as_ref().map(|head| head.digest.clone());
    let there = there.filter(|_| !job.force).map(|head| head.digest);
    let unchanged = |digest| Ok(Found { root: Root::Unchanged(digest, None), source_digest: None, target_has_tag });
    let known = job.listed.clone().or_else(|| match &ends.source_ref {
        Some(ManifestRef::Digest(digest)) => Some(digest.clone()),
        _ => None,
    });
    let comparable = there.as_ref().filter(|_| matches!(job.platforms, Platforms::All | Platforms::Sparse(_)));
    let reference = match (comparable, known) {
        (Some(there), Some(known)) if *there == known => return unchanged(known),
        (_, Some(known)) => Some(ManifestRef::Digest(known)),
        (None, None) => ends.source_ref.clone(),
        (Some(there), None) => match &ends.source_ref {
            None => None,
            Some(reference) => {
                let Some(head) = ends.source.manifest_head(reference).await? else { return Err(missing(job)) };
                if head.digest == *there {
                    return unchanged(head.digest);
                }
                Some(ManifestRef::Digest(head.digest))
            }
        },
    };
    let root = match ends.source.manifest_get(reference.as_ref()).await {
        // What was listed is gone already: the tag has moved on.
        Err(error) if error.class() == Class::NotFound && job.listed.is_some() => {
            ends.source.manifest_get(ends.source_ref.as_ref()).await?
        }
        root => root?,
    };
    let source_digest = root.digest().clone();
    let chosen = choose(root, job, ends).await?;
    let root = match there.as_ref() == Some(chosen.root.digest()) {
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
    Ok(Found { root, source_digest: Some(source_digest), target_has_tag })
}

pub(super) fn missing(job: &Job) -> Error {
    Error::new(Class::NotFound, format!("reading {}", job.source), "the registry does not have it")
        .hint("check the repository's name and the tag; `imgsync tags` lists them")
}
