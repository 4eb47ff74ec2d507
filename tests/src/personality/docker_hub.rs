//! Docker Hub.

use std::time::Duration;

use super::{Login, Personality, Throttle};
use crate::fault::{Bearer, FaultRegistry, Habits, Kind, TokenField};

pub(super) fn personality() -> Personality {
    Personality {
        name: "Docker Hub",
        registry: "docker.io",
        api: "registry-1.docker.io",
        others: &["auth.docker.io", "production.cloudflare.docker.com"],
        repository: "library/app",
        neighbour: "library/other",
        login: Login::Password { key: "https://index.docker.io/v1/", user: "gcrxio", password: "dckr_pat_1" },
        // fault/vendor serves the vendor's API, which has a host of its own.
        settings: "listing: registry",
        to_do: "nothing; log in for more pulls",
        habits: "API and tokens at hosts of their own, login under `https://index.docker.io/v1/`, GETs of manifests counted \
                 (`ratelimit-*`), 429 as text when
                 100 are used up, blobs by 307, no catalog, `origin` on mounts breaks it",
        takes_docker: true,
        makes_repositories: false,
        expires: true,
        counts_pulls_of_targets: false,
        chunk: None,
        throttle: Throttle {
            status: 429,
            headers: &[
                ("retry-after", "1"),
                ("content-type", "text/plain"),
                ("docker-ratelimit-source", "203.0.113.7"),
            ],
            body: "You have reached your pull rate limit.\n",
            reads: Kind::ManifestGet,
            writes: Kind::ManifestPut,
        },
        play: || {
            let bearer = Bearer::user("gcrxio", "dckr_pat_1").anonymous_pull(true).field(TokenField::Both);
            FaultRegistry::builder()
                .bearer(bearer.service("registry.docker.io").ttl(Duration::from_secs(300)))
                .page(100)
                .without_single_post()
                .habits(Habits {
                    host: Some("registry-1.docker.io"),
                    realm: Some("https://auth.docker.io/token"),
                    pulls: Some(100),
                    breaks_on_origin: true,
                    blobs_at: Some(("production.cloudflare.docker.com", 307)),
                    no_catalog: Some(404),
                    ..Habits::default()
                })
        },
    }
}
