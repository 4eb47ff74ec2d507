//! GitHub's Container Registry.

use super::{Login, Personality, Throttle};
use crate::fault::{Bearer, FaultRegistry, Habits, Kind, Patches};

pub(super) fn personality() -> Personality {
    Personality {
        name: "GHCR",
        registry: "ghcr.io",
        api: "ghcr.io",
        others: &["pkg-containers.githubusercontent.com"],
        repository: "owner/app",
        neighbour: "owner/other",
        login: Login::Password { key: "ghcr.io", user: "owner", password: "ghp_1" },
        // fault/vendor serves the vendor's API, which has a host of its own.
        settings: "listing: registry",
        to_do: "nothing",
        habits: "of several PATCHes the last one stays, bodies that break off, relative Link and Location, limits as 403 with \
                 `Retry-After`, blobs by 307, no catalog",
        takes_docker: true,
        makes_repositories: false,
        expires: true,
        counts_pulls_of_targets: false,
        chunk: None,
        throttle: Throttle {
            status: 403,
            headers: &[("retry-after", "1"), ("x-ratelimit-remaining", "0"), ("content-type", "text/plain")],
            body: "You have exceeded a secondary rate limit.",
            reads: Kind::ManifestGet,
            writes: Kind::ManifestPut,
        },
        play: || {
            let bearer = Bearer::user("owner", "ghp_1").anonymous_pull(true).service("ghcr.io").without_expiry();
            FaultRegistry::builder()
                .rate((2000.0 / 60.0, 2000.0))
                .bearer(bearer)
                .relative_locations()
                .page(100)
                .without_single_post()
                .http1_only()
                .habits(Habits {
                    host: Some("ghcr.io"),
                    blobs_at: Some(("pkg-containers.githubusercontent.com", 307)),
                    breaks_one_body_in: Some(7),
                    patches: Patches::LastWins,
                    no_catalog: Some(405),
                    ..Habits::default()
                })
        },
    }
}
