//! Less than all platforms of an index: the one case in which a manifest's bytes are not passed on as they came.

use bytes::Bytes;
use imgsync_common::error::{Class, Error, Result};
use imgsync_common::image::{Descriptor, Kind, Manifest, Platform};
use serde_json::Value;

use super::ends::Ends;
use super::{Job, Platforms};

/// Of an attestation in an index: the child that it is about (BuildKit).
const ABOUT: &str = "vnd.docker.reference.digest";

/// What of the root is wanted.
pub(super) async fn choose(root: Manifest, job: &Job, ends: &Ends) -> Result<Manifest> {
    let Kind::Index { manifests } = root.kind() else { return Ok(root) };
    match &job.platforms {
        Platforms::All => Ok(root),
        Platforms::One(wanted) => {
            let child = find(manifests, wanted).ok_or_else(|| lacks(manifests, wanted, job))?;
            ends.source.child(&child.digest).await
        }
        Platforms::Some(wanted) => {
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
            match is_kept.iter().all(|kept| *kept) {
                true => Ok(root),
                false => smaller(&root, &is_kept, job),
            }
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
    Error::new(Class::NotFound, tried, "the image is not made for that platform")
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
