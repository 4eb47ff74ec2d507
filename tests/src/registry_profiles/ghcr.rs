//! GitHub's Container Registry.

use super::{ProfileLogin, RegistryProfile, ThrottleResponse};
use crate::fault::{Bearer, FaultRegistry, PatchHandling, Quirks, RequestType};

pub(super) fn profile() -> RegistryProfile {
    RegistryProfile {
        name: "GHCR",
        registry: "ghcr.io",
        api: "ghcr.io",
        other_hosts: &["pkg-containers.githubusercontent.com"],
        repository: "owner/app",
        other_repository: "owner/other",
        login: ProfileLogin::Password { key: "ghcr.io", user: "owner", password: "ghp_1" },
        // fault/vendor serves the vendor's API, which has a host of its own.
        settings: "listing: registry",
        required_setup: "nothing",
        quirks: "of several PATCHes of an upload, only the last one is kept; response bodies break off; relative Link \
                 and Location; rate limits are 403 with `Retry-After`; blobs redirect with 307; no catalog",
        takes_docker: true,
        makes_repositories: false,
        expires: true,
        counts_pulls_of_targets: false,
        chunk: None,
        throttle: ThrottleResponse {
            status: 403,
            headers: &[("retry-after", "1"), ("x-ratelimit-remaining", "0"), ("content-type", "text/plain")],
            body: "You have exceeded a secondary rate limit.",
            reads: RequestType::ManifestGet,
            writes: RequestType::ManifestPut,
        },
        builder: || {
            let bearer = Bearer::user("owner", "ghp_1").anonymous_pull(true).service("ghcr.io").without_expiry();
            FaultRegistry::builder()
                .rate((2000.0 / 60.0, 2000.0))
                .bearer(bearer)
                .relative_locations()
                .page(100)
                .without_single_post()
                .http1_only()
                .quirks(Quirks {
                    host: Some("ghcr.io"),
                    blob_redirect: Some(("pkg-containers.githubusercontent.com", 307)),
                    truncates_one_body_in: Some(7),
                    patches: PatchHandling::LastWins,
                    catalog_status: Some(405),
                    ..Quirks::default()
                })
        },
    }
}
