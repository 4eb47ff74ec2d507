//! Parameters of a copy.

use std::sync::Arc;

use imgsync_layout::Layout;
use imgsync_model::batch::{ForeignLayers, ImagePolicy, Referrers};
use imgsync_model::naming::BackupTagTemplate;
use imgsync_oci::{Digest, DigestTagHints, Platform};
use imgsync_registry::TrafficCounters;

use super::{FanOutMember, ImageLocation};

/// One image to copy.
#[derive(Debug, Clone)]
pub struct CopyRequest {
    /// Source; `latest` for a registry reference without tag and digest.
    pub source: ImageLocation,
    /// Target; without a tag the image is pushed under the source tag, or by digest if that has none.
    pub target: ImageLocation,
    /// Platforms to copy from an index.
    pub platforms: PlatformSelection,
    /// Referrers to copy.
    pub referrers: Referrers,
    /// Referrers to look for if the target is up to date.
    pub referrer_refresh: ReferrerRefresh,
    /// Digest tags of the image, as found in a listing of the source.
    pub digest_tag_hints: DigestTagHints,
    /// Whether foreign layers are copied.
    pub foreign_layers: ForeignLayers,
    /// What the image must be, or nothing is copied.
    pub policy: Option<Arc<ImagePolicy>>,
    /// Digest of a source that the policy accepted before. It is not checked again if the target has it.
    pub accepted: Option<Digest>,
    /// Pushes even content that is already present.
    pub force: bool,
    /// Digest of the source tag from a recent listing.
    pub listed_digest: Option<Digest>,
    /// Digest of the source tag from a recent HEAD.
    pub head_digest: Option<Digest>,
    /// What is known of the target tag.
    pub target_tag: TargetTagState,
    /// Whether a target tag with another digest is overwritten.
    pub overwrite: Overwrite,
    /// Membership among copies of the same image to other registries.
    pub fan_out: Option<Arc<FanOutMember>>,
    /// The archive from stdin, if one of the endpoints that are read names it.
    pub stdin_archive: Option<Layout>,
    /// Traffic counters of source and target; they also count for a copy that fails.
    pub traffic: (Arc<TrafficCounters>, Arc<TrafficCounters>),
}

/// Platforms to copy from an index.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum PlatformSelection {
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

impl PlatformSelection {
    /// Creates the selection of a rule: these platforms, in a filtered index or a sparse one; all, if there are none.
    pub fn from_rule(platforms: &[Platform], sparse: bool) -> PlatformSelection {
        match (platforms.is_empty(), sparse) {
            (true, _) => PlatformSelection::All,
            (false, false) => PlatformSelection::Some(platforms.to_vec()),
            (false, true) => PlatformSelection::Sparse(platforms.to_vec()),
        }
    }
}

/// Referrers to look for if the target is up to date.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum ReferrerRefresh {
    /// None.
    Skip,
    /// Referrers of the image; those of its children only if the image has any.
    #[default]
    Root,
    /// Referrers of the image and of all its children.
    All,
}

/// What is known of a target tag before the copy.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum TargetTagState {
    /// Nothing: ask the target.
    #[default]
    Unknown,
    /// The tag was recently seen with this digest.
    Cached(Digest),
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
    WithBackup(BackupTagTemplate),
}

impl CopyRequest {
    /// Creates a request with the default options.
    pub fn new(source: impl Into<ImageLocation>, target: impl Into<ImageLocation>) -> CopyRequest {
        CopyRequest {
            source: source.into(),
            target: target.into(),
            platforms: PlatformSelection::All,
            referrers: Referrers::All,
            referrer_refresh: ReferrerRefresh::default(),
            digest_tag_hints: DigestTagHints::default(),
            foreign_layers: ForeignLayers::default(),
            policy: None,
            accepted: None,
            force: false,
            listed_digest: None,
            head_digest: None,
            target_tag: TargetTagState::Unknown,
            overwrite: Overwrite::Allowed,
            fan_out: None,
            stdin_archive: None,
            traffic: (TrafficCounters::new(), TrafficCounters::new()),
        }
    }

    /// Whether referrers are copied even if the image itself is unchanged.
    pub(super) fn copies_referrers(&self) -> bool {
        self.referrers.copies_any() && self.referrer_refresh != ReferrerRefresh::Skip
    }
}
