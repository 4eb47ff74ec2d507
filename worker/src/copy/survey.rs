//! Previews a copy without writing, for `--dry-run`.

use std::collections::HashSet;

use super::choose::Chosen;
use super::ends::Ends;
use super::find::{Root, find};
use super::listed::Listed;
use super::moves::Moves;
use super::{Job, Outcome};
use imgsync_common::batch::ForeignLayers;
use imgsync_common::error::{Error, Result};
use imgsync_common::image::{Descriptor, Digest, Manifest};
use imgsync_common::registry::Context;

/// Preview of a copy.
#[derive(Debug, Clone)]
pub struct Survey {
    /// Whether the target would change.
    pub outcome: Outcome,
    /// Digest the target would have.
    pub digest: Digest,
    /// Number of manifests to push.
    pub manifests: usize,
    /// Number of blobs missing in the target repository.
    pub blobs: usize,
    /// Bytes of the missing blobs.
    pub bytes: u64,
    /// Bytes of the image's blobs already present in the target repository.
    pub bytes_there: u64,
}

pub(super) async fn survey(job: &Job, ends: &Ends, moves: &mut Moves, context: &Context) -> Result<Survey> {
    let chosen = match find(job, ends, moves).await?.root {
        Root::Unchanged(digest, _) => {
            return Ok(Survey {
                outcome: Outcome::Unchanged,
                digest,
                manifests: 0,
                blobs: 0,
                bytes: 0,
                bytes_there: 0,
            });
        }
        Root::Changed(chosen) => chosen,
    };
    chosen.warn_of_unnamed(job, context);
    let Chosen { root, only, .. } = chosen;
    let mut survey = Survey {
        outcome: Outcome::Copied,
        digest: root.digest().clone(),
        manifests: 0,
        blobs: 0,
        bytes: 0,
        bytes_there: 0,
    };
    let mut seen: HashSet<Digest> = HashSet::new();
    let mut waiting: Vec<Manifest> = vec![root];
    while let Some(manifest) = waiting.pop() {
        // Layouts do not check for cancellation.
        if context.cancel.is_cancelled() {
            return Err(Error::cancelled(format!("comparing {} with {}", job.source, job.target)));
        }
        survey.manifests += 1;
        let blobs = manifest.blobs_with(job.foreign_layers == ForeignLayers::Copy);
        let mut blobs: Vec<&Descriptor> = blobs.into_iter().filter(|blob| seen.insert(blob.digest.clone())).collect();
        for child in manifest.children() {
            let is_left =
                manifest.digest() == &survey.digest && only.as_ref().is_some_and(|only| !only.contains(&child.digest));
            if !is_left && seen.insert(child.digest.clone()) {
                match ends.source.listed(child, &ends.source_tally).await? {
                    Listed::Manifest(manifest) => waiting.push(manifest),
                    Listed::Blob(_) => blobs.push(child),
                }
            }
        }
        for blob in blobs {
            if ends.target.has_blob(blob).await? {
                survey.bytes_there += blob.size;
            } else {
                survey.blobs += 1;
                survey.bytes += blob.size;
            }
        }
    }
    Ok(survey)
}
