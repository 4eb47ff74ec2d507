//! Where target tags came from. See [`Origins`].

use std::collections::HashMap;

use async_trait::async_trait;
use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use crate::batch::{Home, Place};
use crate::error::Result;
use crate::image::{Digest, Tag};

/// A target tag that was written here.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Origin {
    /// The target tag.
    pub target: Place,
    /// The source's tag that it is a copy of.
    pub source_tag: Tag,
    /// What was written.
    pub digest: Digest,
    /// When the source was first seen without that tag, to the second; none while it has it.
    pub missing_since: Option<Timestamp>,
    /// Since when no configured rule makes this target of this source, to the second; none while one does.
    pub unclaimed_since: Option<Timestamp>,
    /// Whether the record is what was written with our key; always, where there is none. What is not is never acted on.
    pub is_authentic: bool,
}

/// Remembers which target tags were written here, and what from: what may be removed once the source has it no more.
///
/// # Contract
/// A target tag has one origin, the last that was noted. It says nothing of a tag that was only found to be equal: such a
/// tag is another's. It may forget, and never says what it was not told. An origin that is noted again is neither missing nor
/// unclaimed. A store that others can write to authenticates what it is told, and says of what it finds whether it holds; what
/// does not is never changed by [`Origins::note_missing`] and [`Origins::note_unclaimed`].
///
/// An origin is kept for as long as a rule may remove its target (`prune`): it is forgotten when the target tag was removed or
/// is another's, or some time after the last rule that makes it is gone. Nothing of it expires by itself.
#[async_trait]
pub trait Origins: Send + Sync {
    /// A target tag was written.
    async fn note_origin(&self, source: &Place, target: &Place, digest: &Digest) -> Result<()>;

    /// The target tags that were written from a source's repository, in the order of target and tag.
    async fn origins(&self, source: &Home) -> Result<Vec<Origin>>;

    /// What was written under the tags of a target's repository, from whatever source.
    async fn written(&self, target: &Home) -> Result<HashMap<Tag, Digest>>;

    /// Since when the source's tags of these target tags are missing; none where they are back. What has another source by
    /// now is left as it is.
    async fn note_missing(&self, source: &Home, targets: Vec<(Place, Option<Timestamp>)>) -> Result<()>;

    /// Since when no configured rule makes these target tags of this source; none where one does again. What has another source
    /// by now is left as it is.
    async fn note_unclaimed(&self, source: &Home, targets: Vec<(Place, Option<Timestamp>)>) -> Result<()>;

    /// The repositories that target tags were written from, in order.
    async fn origin_sources(&self) -> Result<Vec<Home>>;

    /// Forgets what these target tags were made from, as far as that is this source.
    async fn forget_origins(&self, source: &Home, targets: &[Place]) -> Result<()>;
}

/// What became of a target tag whose source is gone, or of a rule whose tags were to be looked through for such.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum PruneOutcome {
    /// It was removed.
    Removed,
    /// It was left, for it is not ours, or is needed.
    Left,
    /// It could not be removed, or what is needed to decide that could not be read.
    Failed,
    /// Nothing of the rule was removed.
    Refused,
}

impl PruneOutcome {
    /// As it is written in JSON and reports.
    pub fn as_str(self) -> &'static str {
        match self {
            PruneOutcome::Removed => "removed",
            PruneOutcome::Left => "left",
            PruneOutcome::Failed => "failed",
            PruneOutcome::Refused => "refused",
        }
    }

    /// Whether somebody should look at it.
    pub fn is_trouble(self) -> bool {
        matches!(self, PruneOutcome::Failed | PruneOutcome::Refused)
    }
}

/// A line of a batch's report about what its rules remove (`prune`).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Pruned {
    /// The source's tag that is gone; what the rule reads, where all of it was refused.
    pub source: String,
    /// The target's tag; where the rule writes, where all of it was refused.
    pub target: String,
    /// What became of it.
    pub outcome: PruneOutcome,
    /// What was removed, or would have been.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub digest: Option<Digest>,
    /// Why, in words, safe to print; empty where it was removed.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub reason: String,
}
