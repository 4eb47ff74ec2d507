//! Parameters of a copy.

use std::sync::Arc;

use imgsync_common::batch::{ForeignLayers, Referrers};
use imgsync_common::image::{Company, Digest, Platform};
use imgsync_common::naming::BackupName;
use imgsync_common::registry::Tally;

use super::{Location, Member};

/// One image to copy.
#[derive(Debug, Clone)]
pub struct Job {
    /// Source; `latest` for a registry reference without tag and digest.
    pub source: Location,
    /// Target; without a tag the image is pushed under the source tag, or by digest if that has none.
    pub target: Location,
    /// Platforms to copy from an index.
    pub platforms: Platforms,
    /// Referrers to copy.
    pub referrers: Referrers,
    /// Referrers to look for if the target is up to date.
    pub ask_unchanged: Ask,
    /// Digest tags of the image, as found in a listing of the source.
    pub company: Company,
    /// Whether foreign layers are copied.
    pub foreign_layers: ForeignLayers,
    /// Pushes even content that is already present.
    pub force: bool,
    /// Digest of the source tag from a recent listing.
    pub listed: Option<Digest>,
    /// Digest of the source tag from a recent HEAD.
    pub said: Option<Digest>,
    /// What is known of the target tag.
    pub target_tag: TargetTag,
    /// Whether a target tag with another digest is overwritten.
    pub overwrite: Overwrite,
    /// Membership among copies of the same image to other registries.
    pub together: Option<Arc<Member>>,
    /// Traffic counters of source and target; they also count for a copy that fails.
    pub tallies: (Arc<Tally>, Arc<Tally>),
}

/// Platforms to copy from an index.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum Platforms {
    /// All: the index unchanged.
    #[default]
    All,
    /// One child, in place of the index.
    One(Platform),
    /// A new index with these platforms only, which has another digest.
    Some(Vec<Platform>),
    /// The index unchanged, with these children only; not every target accepts that.
    Sparse(Vec<Platform>),
}

impl Platforms {
    /// Creates the selection of a rule: these platforms, in a filtered index or a sparse one; all, if there are none.
    pub fn of_rule(platforms: &[Platform], sparse: bool) -> Platforms {
        match (platforms.is_empty(), sparse) {
            (true, _) => Platforms::All,
            (false, false) => Platforms::Some(platforms.to_vec()),
            (false, true) => Platforms::Sparse(platforms.to_vec()),
        }
    }
}

/// Referrers to look for if the target is up to date.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Ask {
    /// None.
    Nothing,
    /// Referrers of the image; those of its children only if the image has any.
    #[default]
    Root,
    /// Referrers of the image and of all its children.
    All,
}

/// What is known of a target tag before the copy.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum TargetTag {
    /// Nothing: ask the target.
    #[default]
    Unknown,
    /// The tag was recently seen with this digest.
    Believed(Digest),
}

/// Whether a target tag with another digest is overwritten.
#[derive(Debug, Clone, Default, PartialEq)]
pub enum Overwrite {
    /// Overwrites the tag.
    #[default]
    Allowed,
    /// Fails the copy and leaves the tag unchanged.
    Never,
    /// Overwrites the tag and keeps its old manifest under another tag.
    Keeping(BackupName),
}

impl Job {
    /// Creates a request with the default options.
    pub fn new(source: impl Into<Location>, target: impl Into<Location>) -> Job {
        Job {
            source: source.into(),
            target: target.into(),
            platforms: Platforms::All,
            referrers: Referrers::All,
            ask_unchanged: Ask::default(),
            company: Company::default(),
            foreign_layers: ForeignLayers::default(),
            force: false,
            listed: None,
            said: None,
            target_tag: TargetTag::Unknown,
            overwrite: Overwrite::Allowed,
            together: None,
            tallies: (Tally::new(), Tally::new()),
        }
    }
}
