//! Docker Hub.

use std::time::Duration;

use super::{ProfileLogin, RegistryProfile, ThrottleResponse};
use crate::fault::{Bearer, FaultRegistry, Quirks, RequestType, TokenField};

pub(super) fn profile() -> RegistryProfile {
    RegistryProfile {
        name: "Docker Hub",
        registry: "docker.io",
        api: "registry-1.docker.io",
        other_hosts: &["auth.docker.io", "production.cloudflare.docker.com"],
        repository: "library/app",
        other_repository: "library/other",
        login: ProfileLogin::Password { key: "https://index.docker.io/v1/", user: "gcrxio", password: "dckr_pat_1" },
        // fault/vendor serves the vendor's API, which has a host of its own.
        settings: "listing: registry",
        required_setup: "nothing; log in for more pulls",
        quirks: "API and token service on other hosts; credentials stored under `https://index.docker.io/v1/`; GETs of \
                 manifests count as pulls (`ratelimit-*`); after 100 pulls, 429 as plain text; blobs redirect with \
                 307; no catalog; mounts with `origin` fail",
        takes_docker: true,
        makes_repositories: false,
        expires: true,
        counts_pulls_of_targets: false,
        chunk: None,
        throttle: ThrottleResponse {
            status: 429,
            headers: &[
                ("retry-after", "1"),
                ("content-type", "text/plain"),
                ("docker-ratelimit-source", "203.0.113.7"),
            ],
            body: "You have reached your pull rate limit.\n",
            reads: RequestType::ManifestGet,
            writes: RequestType::ManifestPut,
        },
        builder: || {
            let bearer = Bearer::user("gcrxio", "dckr_pat_1").anonymous_pull(true).field(TokenField::Both);
            FaultRegistry::builder()
                .bearer(bearer.service("registry.docker.io").ttl(Duration::from_secs(300)))
                .page(100)
                .without_single_post()
                .quirks(Quirks {
                    host: Some("registry-1.docker.io"),
                    realm: Some("https://auth.docker.io/token"),
                    announced_pull_quota: Some(100),
                    fails_on_mount_origin: true,
                    blob_redirect: Some(("production.cloudflare.docker.com", 307)),
                    catalog_status: Some(404),
                    ..Quirks::default()
                })
        },
    }
}
