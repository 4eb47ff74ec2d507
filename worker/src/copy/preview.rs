//! Previews a copy without writing, for `--dry-run`.

use std::collections::HashSet;

use super::endpoints::Endpoints;
use super::index_entry::EntryContent;
use super::platform_filter::SelectedImage;
use super::policy::check_policy;
use super::resolve::{RootStatus, compare_endpoints};
use super::tag_moves::TagMoves;
use super::{CopyOutcome, CopyRequest};
use imgsync_model::batch::ForeignLayers;
use imgsync_oci::error::{Error, Result};
use imgsync_oci::{Descriptor, Digest, Manifest};
use imgsync_registry::Context;

/// Preview of a copy.
#[derive(Debug, Clone)]
pub struct CopyPreview {
    /// Whether the target would change.
    pub outcome: CopyOutcome,
    /// Digest the target would have.
    pub digest: Digest,
    /// Number of manifests to push.
    pub manifests: usize,
    /// Number of blobs missing in the target repository.
    pub blobs: usize,
    /// Bytes of the missing blobs.
    pub bytes: u64,
    /// Bytes of the image's blobs already present in the target repository.
    pub bytes_present: u64,
}

pub(super) async fn preview(
    request: &CopyRequest,
    endpoints: &Endpoints,
    moves: &mut TagMoves,
    context: &Context,
) -> Result<CopyPreview> {
    let found = compare_endpoints(request, endpoints, moves).await?;
    check_policy(request, endpoints, &found).await?;
    let selected = match found.root {
        RootStatus::Unchanged(digest, _) => {
            return Ok(CopyPreview {
                outcome: CopyOutcome::Unchanged,
                digest,
                manifests: 0,
                blobs: 0,
                bytes: 0,
                bytes_present: 0,
            });
        }
        RootStatus::Changed(chosen) => chosen,
    };
    selected.warn_without_platform(request, context);
    let SelectedImage { root, selected_children, .. } = selected;
    let mut preview = CopyPreview {
        outcome: CopyOutcome::Copied,
        digest: root.digest().clone(),
        manifests: 0,
        blobs: 0,
        bytes: 0,
        bytes_present: 0,
    };
    let mut seen: HashSet<Digest> = HashSet::new();
    let mut waiting: Vec<Manifest> = vec![root];
    while let Some(manifest) = waiting.pop() {
        // Layouts do not check for cancellation.
        if context.cancel.is_cancelled() {
            return Err(Error::cancelled(format!("comparing {} with {}", request.source, request.target)));
        }
        preview.manifests += 1;
        let blobs = manifest.blobs_with(request.foreign_layers == ForeignLayers::Copy);
        let mut blobs: Vec<&Descriptor> = blobs.into_iter().filter(|blob| seen.insert(blob.digest.clone())).collect();
        for child in manifest.children() {
            let is_left = manifest.digest() == &preview.digest
                && selected_children.as_ref().is_some_and(|only| !only.contains(&child.digest));
            if !is_left && seen.insert(child.digest.clone()) {
                match endpoints.source.resolve_entry(child, &endpoints.source_traffic).await? {
                    EntryContent::Manifest(manifest) => waiting.push(manifest),
                    EntryContent::Blob(_) => blobs.push(child),
                }
            }
        }
        for blob in blobs {
            if endpoints.target.has_blob(blob).await? {
                preview.bytes_present += blob.size;
            } else {
                preview.blobs += 1;
                preview.bytes += blob.size;
            }
        }
    }
    Ok(preview)
}
