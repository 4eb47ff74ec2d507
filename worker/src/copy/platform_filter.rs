//! Platform selection: the one case in which manifest bytes are not passed on unchanged.

use std::collections::HashSet;

use bytes::Bytes;
use imgsync_oci::error::{Error, ErrorKind, Result};
use imgsync_oci::{Descriptor, Digest, Manifest, ManifestKind, Platform};
use imgsync_registry::Context;
use serde_json::Value;

use super::endpoints::Endpoints;
use super::{CopyRequest, PlatformSelection};

/// Annotation of a BuildKit attestation in an index: the digest of its subject.
pub(super) const ATTESTATION_SUBJECT: &str = "vnd.docker.reference.digest";

/// Maximum entries named in a message.
const MAX_NAMED_ENTRIES: usize = 3;

/// An image after platform selection.
pub(super) struct SelectedImage {
    /// Manifest to put under the target tag.
    pub(super) root: Manifest,
    /// Children to copy, for a sparse index.
    pub(super) selected_children: Option<HashSet<Digest>>,
    /// Whether the root was filtered here, so that the source has no referrers of it.
    pub(super) is_filtered: bool,
    /// Descriptions of skipped entries without a platform.
    without_platform: Vec<String>,
}

impl SelectedImage {
    fn unfiltered(root: Manifest) -> SelectedImage {
        SelectedImage { root, selected_children: None, is_filtered: false, without_platform: Vec::new() }
    }

    /// Warns about skipped index entries that no platform selection can match.
    pub(super) fn warn_without_platform(&self, request: &CopyRequest, context: &Context) {
        if !self.without_platform.is_empty() {
            let (count, named) = (self.without_platform.len(), join_first(&self.without_platform));
            context
                .warn(format!("{}: index entries without a platform are skipped: {count} ({named})", request.source));
        }
    }
}

/// Applies the platform selection to a root manifest.
pub(super) async fn select_platforms(
    root: Manifest,
    request: &CopyRequest,
    endpoints: &Endpoints,
) -> Result<SelectedImage> {
    let ManifestKind::Index { manifests } = root.kind() else { return Ok(SelectedImage::unfiltered(root)) };
    match &request.platforms {
        PlatformSelection::All => Ok(SelectedImage::unfiltered(root)),
        PlatformSelection::One(wanted) => {
            let child =
                find_platform(manifests, wanted).ok_or_else(|| missing_platform_error(manifests, wanted, request))?;
            endpoints.source.child_manifest(child).await.map(SelectedImage::unfiltered)
        }
        PlatformSelection::Some(wanted) | PlatformSelection::Sparse(wanted) => {
            for wanted in wanted {
                find_platform(manifests, wanted).ok_or_else(|| missing_platform_error(manifests, wanted, request))?;
            }
            let kept = |child: &Descriptor| {
                child.platform.as_ref().is_some_and(|platform| wanted.iter().any(|wanted| platform.satisfies(wanted)))
            };
            let is_kept: Vec<bool> = manifests
                .iter()
                .map(|child| match child.annotations.get(ATTESTATION_SUBJECT) {
                    Some(about) => manifests.iter().any(|other| kept(other) && other.digest.to_string() == *about),
                    None => kept(child),
                })
                .collect();
            if is_kept.iter().all(|kept| *kept) {
                return Ok(SelectedImage::unfiltered(root));
            }
            let without_platform =
                manifests.iter().filter(|child| has_no_platform(child)).map(describe_entry).collect();
            if matches!(request.platforms, PlatformSelection::Sparse(_)) {
                let kept = manifests.iter().zip(&is_kept).filter(|(_, kept)| **kept);
                let only = kept.map(|(child, _)| child.digest.clone()).collect();
                return Ok(SelectedImage { root, selected_children: Some(only), is_filtered: false, without_platform });
            }
            let root = filtered_index(&root, &is_kept, request)?;
            Ok(SelectedImage { root, selected_children: None, is_filtered: true, without_platform })
        }
    }
}

fn find_platform<'a>(manifests: &'a [Descriptor], wanted: &Platform) -> Option<&'a Descriptor> {
    manifests.iter().find(|child| child.platform.as_ref().is_some_and(|platform| platform.satisfies(wanted)))
}

/// Whether an entry has no platform. Attestations are excluded: they belong to their subject.
fn has_no_platform(child: &Descriptor) -> bool {
    let names_none = |platform: &Platform| {
        [&platform.os, &platform.architecture].iter().all(|part| part.is_empty() || part.as_str() == "unknown")
    };
    child.platform.as_ref().is_none_or(names_none) && !child.annotations.contains_key(ATTESTATION_SUBJECT)
}

/// Describes an index entry without a platform.
fn describe_entry(child: &Descriptor) -> String {
    match child.media_type.as_str() {
        "" => format!("{} without a type", child.digest),
        media_type => format!("{} of type {media_type}", child.digest),
    }
}

/// Joins the first few items and counts the rest.
fn join_first(all: &[String]) -> String {
    let more = all.len().saturating_sub(MAX_NAMED_ENTRIES);
    let shown = all[..all.len() - more].join(", ");
    if more == 0 { shown } else { format!("{shown} and {more} more") }
}

fn missing_platform_error(manifests: &[Descriptor], wanted: &Platform, request: &CopyRequest) -> Error {
    let mut platforms: Vec<String> = Vec::new();
    let attests = |child: &Descriptor| child.annotations.contains_key(ATTESTATION_SUBJECT);
    for child in manifests.iter().filter(|child| !has_no_platform(child) && !attests(child)) {
        let name = child.platform.as_ref().map(ToString::to_string).unwrap_or_default();
        if !platforms.contains(&name) {
            platforms.push(name);
        }
    }
    let unnamed: Vec<String> = manifests.iter().filter(|child| has_no_platform(child)).map(describe_entry).collect();
    let attestations = manifests.iter().filter(|child| attests(child)).count();
    let mut there = Vec::new();
    if !platforms.is_empty() {
        there.push(platforms.join(", "));
    }
    if !unnamed.is_empty() {
        let (count, named) = (unnamed.len(), join_first(&unnamed));
        let entries = if count == 1 { "entry with" } else { "entries with" };
        there.push(format!("{count} {entries} no platform ({named})"));
    }
    if platforms.is_empty() && attestations > 0 {
        there.push(format!("{attestations} attestation{}", if attestations == 1 { "" } else { "s" }));
    }
    let there = if there.is_empty() { "nothing: the index is empty".to_owned() } else { there.join(", and ") };
    let operation = format!("selecting {wanted} of {}", request.source);
    let error = Error::new(ErrorKind::Unsupported, operation, "the image is not available for that platform");
    match (platforms.is_empty(), unnamed.is_empty()) {
        (true, false) => error.with_hint(format!(
            "available: {there}; without `platforms` the whole index is copied, or copy one entry by digest"
        )),
        _ => error.with_hint(format!("available: {there}")),
    }
}

/// Removes children from an index; everything else in it stays.
fn filtered_index(root: &Manifest, is_kept: &[bool], request: &CopyRequest) -> Result<Manifest> {
    let invalid = |error: String| {
        Error::new(ErrorKind::InvalidResponse, format!("selecting platforms of {}", request.source), error)
    };
    let mut index: Value = serde_json::from_slice(root.bytes()).map_err(|error| invalid(error.to_string()))?;
    if let Some(children) = index.get_mut("manifests").and_then(Value::as_array_mut) {
        let mut kept = is_kept.iter();
        children.retain(|_| kept.next().copied().unwrap_or(false));
    }
    let bytes = serde_json::to_vec(&index).map_err(|error| invalid(error.to_string()))?;
    Manifest::parse(Bytes::from(bytes), root.media_type()).map_err(|error| invalid(error.to_string()))
}
