//! Platform selection: the one case in which manifest bytes are not passed on unchanged.

use std::collections::HashSet;

use bytes::Bytes;
use imgsync_common::error::{Class, Error, Result};
use imgsync_common::image::{Descriptor, Digest, Kind, Manifest, Platform};
use imgsync_common::registry::Context;
use serde_json::Value;

use super::ends::Ends;
use super::{Job, Platforms};

/// Annotation of a BuildKit attestation in an index: the digest of its subject.
const ABOUT: &str = "vnd.docker.reference.digest";

/// Maximum entries named in a message.
const TOLD: usize = 3;

/// An image after platform selection.
pub(super) struct Chosen {
    /// Manifest to put under the target tag.
    pub(super) root: Manifest,
    /// Children to copy, for a sparse index.
    pub(super) only: Option<HashSet<Digest>>,
    /// Whether the root was filtered here, so that the source has no referrers of it.
    pub(super) is_cut: bool,
    /// Descriptions of skipped entries without a platform.
    unnamed: Vec<String>,
}

impl Chosen {
    fn whole(root: Manifest) -> Chosen {
        Chosen { root, only: None, is_cut: false, unnamed: Vec::new() }
    }

    /// Warns about skipped index entries that no platform selection can match.
    pub(super) fn warn_of_unnamed(&self, job: &Job, context: &Context) {
        if !self.unnamed.is_empty() {
            let (count, named) = (self.unnamed.len(), some(&self.unnamed));
            context.warn(format!("{}: entries that name no platform are left out: {count} ({named})", job.source));
        }
    }
}

/// Applies the platform selection to a root manifest.
pub(super) async fn choose(root: Manifest, job: &Job, ends: &Ends) -> Result<Chosen> {
    let Kind::Index { manifests } = root.kind() else { return Ok(Chosen::whole(root)) };
    match &job.platforms {
        Platforms::All => Ok(Chosen::whole(root)),
        Platforms::One(wanted) => {
            let child = find(manifests, wanted).ok_or_else(|| lacks(manifests, wanted, job))?;
            ends.source.child(child).await.map(Chosen::whole)
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
            let unnamed = manifests.iter().filter(|child| is_unnamed(child)).map(described).collect();
            if matches!(job.platforms, Platforms::Sparse(_)) {
                let kept = manifests.iter().zip(&is_kept).filter(|(_, kept)| **kept);
                let only = kept.map(|(child, _)| child.digest.clone()).collect();
                return Ok(Chosen { root, only: Some(only), is_cut: false, unnamed });
            }
            let root = smaller(&root, &is_kept, job)?;
            Ok(Chosen { root, only: None, is_cut: true, unnamed })
        }
    }
}

fn find<'a>(manifests: &'a [Descriptor], wanted: &Platform) -> Option<&'a Descriptor> {
    manifests.iter().find(|child| child.platform.as_ref().is_some_and(|platform| platform.serves(wanted)))
}

/// Whether an entry has no platform. Attestations are excluded: they belong to their subject.
fn is_unnamed(child: &Descriptor) -> bool {
    let names_none = |platform: &Platform| {
        [&platform.os, &platform.architecture].iter().all(|part| part.is_empty() || part.as_str() == "unknown")
    };
    child.platform.as_ref().is_none_or(names_none) && !child.annotations.contains_key(ABOUT)
}

/// Describes an index entry without a platform.
fn described(child: &Descriptor) -> String {
    match child.media_type.as_str() {
        "" => format!("{} without a type", child.digest),
        media_type => format!("{} of type {media_type}", child.digest),
    }
}

/// Joins the first few items and counts the rest.
fn some(all: &[String]) -> String {
    let more = all.len().saturating_sub(TOLD);
    let told = all[..all.len() - more].join(", ");
    if more == 0 { told } else { format!("{told} and {more} more") }
}

fn lacks(manifests: &[Descriptor], wanted: &Platform, job: &Job) -> Error {
    let mut platforms: Vec<String> = Vec::new();
    let attests = |child: &Descriptor| child.annotations.contains_key(ABOUT);
    for child in manifests.iter().filter(|child| !is_unnamed(child) && !attests(child)) {
        let name = child.platform.as_ref().map(ToString::to_string).unwrap_or_default();
        if !platforms.contains(&name) {
            platforms.push(name);
        }
    }
    let unnamed: Vec<String> = manifests.iter().filter(|child| is_unnamed(child)).map(described).collect();
    let attestations = manifests.iter().filter(|child| attests(child)).count();
    let mut there = Vec::new();
    if !platforms.is_empty() {
        there.push(platforms.join(", "));
    }
    if !unnamed.is_empty() {
        let (count, named) = (unnamed.len(), some(&unnamed));
        let entries = if count == 1 { "entry that names" } else { "entries that name" };
        there.push(format!("{count} {entries} no platform ({named})"));
    }
    if platforms.is_empty() && attestations > 0 {
        there.push(format!("{attestations} attestation{}", if attestations == 1 { "" } else { "s" }));
    }
    let there = if there.is_empty() { "nothing: its index is empty".to_owned() } else { there.join(", and ") };
    let tried = format!("choosing {wanted} of {}", job.source);
    let error = Error::new(Class::Unsupported, tried, "the image is not made for that platform");
    match (platforms.is_empty(), unnamed.is_empty()) {
        (true, false) => error.hint(format!(
            "it has: {there}; without a choice of platforms the image is copied as it is, and an entry by its digest"
        )),
        _ => error.hint(format!("it has: {there}")),
    }
}

/// Removes children from an index; everything else in it stays.
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
