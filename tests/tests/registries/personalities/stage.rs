//! A registry profile as source or target, and a plain registry on the other side.

use std::time::Duration;

use imgsync_tests::fault::{FaultRegistry, Kind};
use imgsync_tests::images::{Floor, Image};
use imgsync_tests::personality::{Personality, Played};
use imgsync_tests::program::{Imgsync, Output};

/// Time limit of each wait.
pub(super) const LIMIT: Duration = Duration::from_secs(60);
/// Repository of the plain registry.
const PLAIN: &str = "plain/app";

/// Role of the profile.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Role {
    /// The profile is the source.
    Source,
    /// The profile is the target.
    Target,
}

/// The profile and the plain registry.
pub(super) struct Stage {
    pub(super) played: Played,
    pub(super) role: Role,
    plain: FaultRegistry,
}

impl Stage {
    pub(super) async fn set(personality: Personality, role: Role) -> Stage {
        Stage { played: personality.start().await, plain: FaultRegistry::start().await, role }
    }

    fn source(&self) -> (&FaultRegistry, &str) {
        match self.role {
            Role::Source => (&self.played.registry, self.played.personality.repository),
            Role::Target => (&self.plain, PLAIN),
        }
    }

    fn target(&self) -> (&FaultRegistry, &str) {
        match self.role {
            Role::Source => (&self.plain, PLAIN),
            Role::Target => (&self.played.registry, self.played.personality.repository),
        }
    }

    fn plain_reference(&self, tag: &str) -> String {
        format!("{}/{PLAIN}:{tag}", self.plain.host())
    }

    pub(super) fn from(&self, tag: &str) -> String {
        match self.role {
            Role::Source => self.played.reference(tag),
            Role::Target => self.plain_reference(tag),
        }
    }

    pub(super) fn to(&self, tag: &str) -> String {
        match self.role {
            Role::Source => self.plain_reference(tag),
            Role::Target => self.played.reference(tag),
        }
    }

    /// Pushes an image to the source.
    pub(super) fn source_has(&self, tag: &str, image: &Image) {
        let (source, repository) = self.source();
        source.push(repository, tag, image);
    }

    /// Creates a program configured for the profile.
    pub(super) fn introduced(&self) -> Imgsync {
        self.played.introduce(Imgsync::new())
    }

    /// Creates a program that copies a tag.
    pub(super) fn program(&self, tag: &str) -> Imgsync {
        self.introduced().args(["sync", &self.from(tag), &self.to(tag), "--json", "--retry-delay", "10ms"])
    }

    /// Copies a tag.
    pub(super) async fn sync(&self, tag: &str) -> Output {
        self.program(tag).run().await
    }

    /// Asserts that the target has the whole image, pushed in order and without open uploads.
    #[track_caller]
    pub(super) fn assert_arrived(&self, tag: &str, image: &Image) {
        let (target, repository) = self.target();
        target.assert_holds(repository, tag, image);
        target.assert_tags_complete();
        assert_eq!(target.open_uploads(), 0, "{}", self.describe());
    }

    /// Asserts that the requests are within 1.1 times the fewest that this registry allows: the image's floor,
    /// `besides` extra ones, and those that the registry wasted. Then clears them.
    #[track_caller]
    pub(super) fn assert_cost(&self, story: &str, least: Floor, besides: u64) {
        let (source, target) = (self.source().0, self.target().0);
        let floor = least.source + least.target + besides + source.misled() + target.misled();
        let total = source.total() + target.total();
        let ratio = total as f64 / floor as f64;
        assert!(ratio <= 1.1, "{story}: {total} requests, the least is {floor}: {ratio:.2}\n{}", self.describe());
        self.forget();
    }

    /// Clears the recorded requests.
    pub(super) fn forget(&self) {
        self.assert_manners();
        self.plain.clear_requests();
        self.played.registry.clear_requests();
        self.played.registry.clear_rules();
    }

    /// Describes all requests, for assertion messages.
    pub(super) fn describe(&self) -> String {
        let (source, target) = (self.source().0.describe_requests(), self.target().0.describe_requests());
        format!("source:\n{source}\ntarget:\n{target}")
    }

    /// A target that counts manifest GETs as pulls must get none.
    #[track_caller]
    fn assert_manners(&self) {
        if self.role == Role::Target && self.played.personality.counts_pulls_of_targets {
            assert_eq!(self.played.registry.count(Kind::ManifestGet), 0, "{}", self.describe());
        }
    }
}
