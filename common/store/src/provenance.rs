//! Provenance of target tags. See [`ProvenanceStore`].

use std::collections::HashMap;

use async_trait::async_trait;
use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use imgsync_model::batch::{RepositoryLocator, TagLocator};
use imgsync_oci::error::Result;
use imgsync_oci::{Digest, Tag};

/// Provenance of a target tag written by imgsync.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TagProvenance {
    /// The target tag.
    pub target: TagLocator,
    /// The source tag that it is a copy of.
    pub source_tag: Tag,
    /// Digest of the written manifest.
    pub digest: Digest,
    /// When the source was first seen without that tag, to the second. `None` while the source has it.
    pub missing_since: Option<Timestamp>,
    /// Since when no configured rule produces this target from this source, to the second. `None` while a rule does.
    pub unclaimed_since: Option<Timestamp>,
    /// Whether the record was written with our key; always true without a key. Other records are never acted on.
    pub is_authentic: bool,
}

/// Provenance of target tags: which tags imgsync wrote, from which source. The basis for pruning tags whose source is
/// gone.
///
/// # Contract
/// A target tag has one provenance record, the last one. A tag that was only found equal has none: it belongs to
/// somebody else. The store may lose records, and never invents one. Recording a tag again clears its missing and
/// unclaimed times. A store that others can write to authenticates its records, and reports whether a record is
/// authentic; [`ProvenanceStore::set_missing_since`] and [`ProvenanceStore::set_unclaimed_since`] never change a record
/// that is not.
///
/// A record is kept for as long as a rule may prune its target (`prune`): it is deleted when the target tag was removed
/// or overwritten by somebody else, or some time after the last rule that produces it is gone. Records do not expire by
/// themselves.
#[async_trait]
pub trait ProvenanceStore: Send + Sync {
    /// Records that a target tag was written.
    async fn record_provenance(&self, source: &TagLocator, target: &TagLocator, digest: &Digest) -> Result<()>;

    /// Returns the target tags written from a source repository, ordered by target and tag.
    async fn provenance_by_source(&self, source: &RepositoryLocator) -> Result<Vec<TagProvenance>>;

    /// Returns the digests written to the tags of a target repository, from any source.
    async fn written_digests(&self, target: &RepositoryLocator) -> Result<HashMap<Tag, Digest>>;

    /// Sets since when the source tags of these target tags are missing; `None` where they are back. Skips targets that
    /// have another source by now.
    async fn set_missing_since(
        &self,
        source: &RepositoryLocator,
        targets: Vec<(TagLocator, Option<Timestamp>)>,
    ) -> Result<()>;

    /// Sets since when no configured rule produces these target tags from this source; `None` where one does again.
    /// Skips targets that have another source by now.
    async fn set_unclaimed_since(
        &self,
        source: &RepositoryLocator,
        targets: Vec<(TagLocator, Option<Timestamp>)>,
    ) -> Result<()>;

    /// Returns the source repositories of recorded target tags, in order.
    async fn provenance_sources(&self) -> Result<Vec<RepositoryLocator>>;

    /// Deletes the records of these target tags that name this source.
    async fn forget_provenance(&self, source: &RepositoryLocator, targets: &[TagLocator]) -> Result<()>;
}

/// Prune outcome of a target tag whose source is gone, or of a rule whose pruning was refused as a whole.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum PruneOutcome {
    /// Removed.
    Removed,
    /// Kept: not written by imgsync, or still needed.
    Left,
    /// Not removed: the removal failed, or the state that decides could not be read.
    Failed,
    /// Nothing of the rule was removed.
    Refused,
}

impl PruneOutcome {
    /// Returns the name used in JSON and reports.
    pub fn as_str(self) -> &'static str {
        match self {
            PruneOutcome::Removed => "removed",
            PruneOutcome::Left => "left",
            PruneOutcome::Failed => "failed",
            PruneOutcome::Refused => "refused",
        }
    }

    /// Returns whether a person should look at it.
    pub fn needs_attention(self) -> bool {
        matches!(self, PruneOutcome::Failed | PruneOutcome::Refused)
    }
}

/// A prune outcome in a batch's report (`prune`).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PruneRecord {
    /// The source tag that is gone, or the sources of the rule if all its pruning was refused.
    pub source: String,
    /// The target tag, or the targets of the rule if all its pruning was refused.
    pub target: String,
    /// Outcome.
    pub outcome: PruneOutcome,
    /// Digest that was removed, or would have been.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub digest: Option<Digest>,
    /// Reason, safe to print. Empty if it was removed.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub reason: String,
}
