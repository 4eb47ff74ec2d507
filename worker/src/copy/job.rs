//! What is asked of a copy.

use std::sync::Arc;

use imgsync_common::batch::{ForeignLayers, Referrers};
use imgsync_common::image::{Company, Digest, Platform};
use imgsync_common::naming::BackupName;
use imgsync_common::registry::Tally;

use super::{Location, Member};

/// One image to be copied.
#[derive(Debug, Clone)]
pub struct Job {
    /// From where; a registry's without tag and digest is `latest`.
    pub source: Location,
    /// To where; without a tag it is pushed under the source's tag, or by digest where that has none.
    pub target: Location,
    /// Of an index, less than all of it.
    pub platforms: Platforms,
    /// Which of its referrers come along.
    pub referrers: Referrers,
    /// Whether an image that is there already is asked for new referrers.
    pub ask_unchanged: Ask,
    /// What a listing of the source showed of tags that belong to the image.
    pub company: Company,
    /// Whether layers that live elsewhere are copied.
    pub foreign_layers: ForeignLayers,
    /// Push even what is there already.
    pub force: bool,
    /// What the source's tag pointed at when it was listed, shortly ago.
    pub listed: Option<Digest>,
    /// What a HEAD said a moment ago that the source's tag points at.
    pub said: Option<Digest>,
    /// What is known of the target's tag.
    pub target_tag: TargetTag,
    /// What becomes of a target tag that points at something else.
    pub overwrite: Overwrite,
    /// Its place among copies of the same image to other registries.
    pub together: Option<Arc<Member>>,
    /// What counts the requests to source and target, of a copy that fails too.
    pub tallies: (Arc<Tally>, Arc<Tally>),
}

/// Which platforms of an index are wanted.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum Platforms {
    /// All: the index as it is.
    #[default]
    All,
    /// One child in place of the index.
    One(Platform),
    /// An index of these alone, which has a digest of its own.
    Some(Vec<Platform>),
    /// The index as it is, and these of its children alone; not every target takes that.
    Sparse(Vec<Platform>),
}

impl Platforms {
    /// What rules say: these, in an index that is cut to them or left as it is; all, where there are none.
    pub fn of_rule(platforms: &[Platform], sparse: bool) -> Platforms {
        match (platforms.is_empty(), sparse) {
            (true, _) => Platforms::All,
            (false, false) => Platforms::Some(platforms.to_vec()),
            (false, true) => Platforms::Sparse(platforms.to_vec()),
        }
    }
}

/// What of an image that is at the target already is asked for new referrers.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Ask {
    /// Nothing.
    Nothing,
    /// The image itself; what it lists too, where the image has any.
    #[default]
    Root,
    /// The image and all that it lists.
    All,
}

/// What is known of a target's tag before it is asked for.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum TargetTag {
    /// Nothing: ask.
    #[default]
    Unknown,
    /// It points at this, as was seen not long ago.
    Believed(Digest),
}

/// What becomes of a target tag that points at something else.
#[derive(Debug, Clone, Default, PartialEq)]
pub enum Overwrite {
    /// It is moved.
    #[default]
    Allowed,
    /// It stays as it is, and the copy fails.
    Never,
    /// It is moved, and what it pointed to is kept under another tag.
    Keeping(BackupName),
}

impl Job {
    /// A job of which nothing is known yet.
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
