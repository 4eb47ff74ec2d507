//! A registry profile as source or target, and a plain registry on the other side.

use std::time::Duration;

use imgsync_tests::fault::{FaultRegistry, RequestType};
use imgsync_tests::images::{Floor, TestImage};
use imgsync_tests::program::{Imgsync, Output};
use imgsync_tests::registry_profiles::{RegistryProfile, RunningProfile};

/// Time limit of each wait.
pub(super) const WAIT_TIMEOUT: Duration = Duration::from_secs(60);
/// Repository of the plain registry.
const PLAIN_REPOSITORY: &str = "plain/app";

/// Role of the profile.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum ProfileRole {
    /// The profile is the source.
    Source,
    /// The profile is the target.
    Target,
}

/// The profile and the plain registry.
pub(super) struct Scenario {
    pub(super) profile: RunningProfile,
    pub(super) role: ProfileRole,
    plain: FaultRegistry,
}

impl Scenario {
    pub(super) async fn start(profile: RegistryProfile, role: ProfileRole) -> Scenario {
        Scenario { profile: profile.start().await, plain: FaultRegistry::start().await, role }
    }

    fn source(&self) -> (&FaultRegistry, &str) {
        match self.role {
            ProfileRole::Source => (&self.profile.registry, self.profile.profile.repository),
            ProfileRole::Target => (&self.plain, PLAIN_REPOSITORY),
        }
    }

    fn target(&self) -> (&FaultRegistry, &str) {
        match self.role {
            ProfileRole::Source => (&self.plain, PLAIN_REPOSITORY),
            ProfileRole::Target => (&self.profile.registry, self.profile.profile.repository),
        }
    }

    fn plain_reference(&self, tag: &str) -> String {
        format!("{}/{PLAIN_REPOSITORY}:{tag}", self.plain.host())
    }

    pub(super) fn source_reference(&self, tag: &str) -> String {
        match self.role {
            ProfileRole::Source => self.profile.reference(tag),
            ProfileRole::Target => self.plain_reference(tag),
        }
    }

    pub(super) fn target_reference(&self, tag: &str) -> String {
        match self.role {
            ProfileRole::Source => self.plain_reference(tag),
            ProfileRole::Target => self.profile.reference(tag),
        }
    }

    /// Pushes an image to the source.
    pub(super) fn source_has(&self, tag: &str, image: &TestImage) {
        let (source, repository) = self.source();
        source.push(repository, tag, image);
    }

    /// Creates a program configured for the profile.
    pub(super) fn configured(&self) -> Imgsync {
        self.profile.configure(Imgsync::new())
    }

    /// Creates a program that copies a tag.
    pub(super) fn program(&self, tag: &str) -> Imgsync {
        self.configured().args([
            "sync",
            &self.source_reference(tag),
            &self.target_reference(tag),
            "--json",
            "--retry-delay",
            "10ms",
        ])
    }

    /// Copies a tag.
    pub(super) async fn sync(&self, tag: &str) -> Output {
        self.program(tag).run().await
    }

    /// Asserts that the target has the whole image, pushed in order and without open uploads.
    #[track_caller]
    pub(super) fn assert_arrived(&self, tag: &str, image: &TestImage) {
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
        let floor = least.source + least.target + besides + source.wasted_requests() + target.wasted_requests();
        let total = source.total() + target.total();
        let ratio = total as f64 / floor as f64;
        assert!(ratio <= 1.1, "{story}: {total} requests, the least is {floor}: {ratio:.2}\n{}", self.describe());
        self.forget();
    }

    /// Clears the recorded requests.
    pub(super) fn forget(&self) {
        self.assert_no_target_pulls();
        self.plain.clear_requests();
        self.profile.registry.clear_requests();
        self.profile.registry.clear_rules();
    }

    /// Describes all requests, for assertion messages.
    pub(super) fn describe(&self) -> String {
        let (source, target) = (self.source().0.describe_requests(), self.target().0.describe_requests());
        format!("source:\n{source}\ntarget:\n{target}")
    }

    /// A target that counts manifest GETs as pulls must get none.
    #[track_caller]
    fn assert_no_target_pulls(&self) {
        if self.role == ProfileRole::Target && self.profile.profile.counts_pulls_of_targets {
            assert_eq!(self.profile.registry.count(RequestType::ManifestGet), 0, "{}", self.describe());
        }
    }
}
