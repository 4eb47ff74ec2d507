//! Less than all platforms of an index: the one case in which a manifest's bytes are not passed on as they came.

use std::collections::HashSet;

use bytes::Bytes;
use imgsync_common::error::{Class, Error, Result};
use imgsync_common::image::{Descriptor, Digest, Kind, Manifest, Platform};
use serde_json::Value;

use super::ends::Ends;
use super::{Job, Platforms};

/// Of an attestation in an index: the child that it is about (BuildKit).
const ABOUT: &str = "vnd.docker.reference.digest";

/// What of an image is wanted.
pub(super) struct Chosen {
    /// What the target's tag is to point at.
    pub(super) root: Manifest,
    /// Of its children these alone, where it is an index that stays as it is.
    pub(super) only: Option<HashSet<Digest>>,
    /// Whether it was made here, so that nothing at the source refers to it.
    pub(super) is_cut: bool,
}

impl Chosen {
    fn whole(root: Manifest) -> Chosen {
        Chosen { root, only: None, is_cut: false }
    }
}

/// What of the root is wanted.
pub(super) async fn choose(root: Manifest, job: &Job, ends: &Ends) -> Result<Chosen> {
    let Kind::Index { manifests } = root.kind() else { return Ok(Chosen::whole(root)) };
    match &job.platforms {
        Platforms::All => Ok(Chosen::whole(root)),
        Platforms::One(wanted) => {
            let child = find(manifests, wanted).ok_or_else(|| lacks(manifests, wanted, job))?;
            ends.source.child(&child.digest).await.map(Chosen::whole)
        }
        Platforms::Some(wanted) | Platforms::Sparse(wanted) => {
            for wanted in wanted {
                find(manifests, wanted).ok_or_else(|| lacks(manifests, wanted, job))?;
            }
            let kept = |child: &Descriptor| {
                child.platform.as_ref().is_some_and(|platform| wanted.iter().any(|wanted| platform.serves(wanted)))
            };
            let is_kept: Vec<bool> = manifests
                .iter()
                .map(|child| match child.annotations.get(ABOUT) {
                    Some(about) => manifests.iter().any(|other| kept(other) && other.digest.to_string() == *about),
                    None => kept(child),
                })
                .collect();
            if is_kept.iter().all(|kept| *kept) {
                return Ok(Chosen::whole(root));
            }
            if matches!(job.platforms, Platforms::Sparse(_)) {
                let kept = manifests.iter().zip(&is_kept).filter(|(_, kept)| **kept);
                let only = kept.map(|(child, _)| child.digest.clone()).collect();
                return Ok(Chosen { root, only: Some(only), is_cut: false });
            }
            let root = smaller(&root, &is_kept, job)?;
            Ok(Chosen { root, only: None, is_cut: true })
        }
    }
}

fn find<'a>(manifests: &'a [Descriptor], wanted: &Platform) -> Option<&'a Descriptor> {
    manifests.iter().find(|child| child.platform.as_ref().is_some_and(|platform| platform.serves(wanted)))
}

fn lacks(manifests: &[Descriptor], wanted: &Platform, job: &Job) -> Error {
    let has: Vec<String> = manifests
        .iter()
        .filter_map(|child| child.platform.as_ref())
        .map(ToString::to_string)
        .filter(|name| name != "unknown/unknown")
        .collect();
    let tried = format!("choosing {wanted} of {}", job.source);
    Error::new(Class::Unsupported, tried, "the image is not made for that platform")
        .hint(format!("it has: {}", has.join(", ")))
}

/// The index with some of its children alone; everything else in it stays.
fn smaller(root: &Manifest, is_kept: &[bool], job: &Job) -> Result<Manifest> {
    let invalid = |error: String| Error::new(Class::BadAnswer, format!("choosing platforms of {}", job.source), error);
    let mut index: Value = serde_json::from_slice(root.bytes()).map_err(|error| invalid(error.to_string()))?;
    if let Some(children) = index.get_mut("manifests").and_then(Value::as_array_mut) {
        let mut kept = is_kept.iter();
        children.retain(|_| kept.next().copied().unwrap_or(false));
    }
    let bytes = serde_json::to_vec(&index).map_err(|error| invalid(error.to_string()))?;
    Manifest::parse(Bytes::from(bytes), root.media_type()).map_err(|error| invalid(error.to_string()))
}
