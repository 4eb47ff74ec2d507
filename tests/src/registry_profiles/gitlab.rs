//! GitLab's container registry.

use super::{ProfileLogin, RegistryProfile, ThrottleResponse};
use crate::fault::{Bearer, FaultRegistry, Quirks, RequestType};

pub(super) fn profile() -> RegistryProfile {
    RegistryProfile {
        name: "GitLab",
        registry: "registry.gitlab.com",
        api: "registry.gitlab.com",
        other_hosts: &["gitlab.com", "cdn.registry.gitlab-static.net"],
        repository: "group/project/app",
        other_repository: "group/project/other",
        login: ProfileLogin::Password { key: "registry.gitlab.com", user: "deploy", password: "gldt-1" },
        settings: "",
        required_setup: "create the project",
        quirks: "401 for a repository that does not exist yet; token service on another host; blobs redirect with 307; \
                 rate limits are plain text",
        takes_docker: true,
        makes_repositories: false,
        expires: true,
        counts_pulls_of_targets: false,
        chunk: None,
        throttle: ThrottleResponse {
            status: 429,
            headers: &[("retry-after", "1"), ("ratelimit-remaining", "0"), ("content-type", "text/plain")],
            body: "Retry later\n",
            reads: RequestType::ManifestGet,
            writes: RequestType::UploadMount,
        },
        builder: || {
            let bearer = Bearer::user("deploy", "gldt-1").service("container_registry").without_expiry();
            FaultRegistry::builder().bearer(bearer).page(100).without_single_post().quirks(Quirks {
                host: Some("registry.gitlab.com"),
                token_path: Some("/jwt/auth"),
                realm: Some("https://gitlab.com/jwt/auth"),
                missing_repository: Some(401),
                blob_redirect: Some(("cdn.registry.gitlab-static.net", 307)),
                ..Quirks::default()
            })
        },
    }
}
