//! GitLab's container registry.

use super::{Login, Personality, Throttle};
use crate::fault::{Bearer, FaultRegistry, Habits, Kind};

pub(super) fn personality() -> Personality {
    Personality {
        name: "GitLab",
        registry: "registry.gitlab.com",
        api: "registry.gitlab.com",
        others: &["gitlab.com", "cdn.registry.gitlab-static.net"],
        repository: "group/project/app",
        neighbour: "group/project/other",
        login: Login::Password { key: "registry.gitlab.com", user: "deploy", password: "gldt-1" },
        settings: "",
        to_do: "make the project",
        habits: "401 for a repository that is not there yet, tokens of another host, blobs by 307, limits as text",
        takes_docker: true,
        makes_repositories: false,
        expires: true,
        counts_pulls_of_targets: false,
        chunk: None,
        throttle: Throttle {
            status: 429,
            headers: &[("retry-after", "1"), ("ratelimit-remaining", "0"), ("content-type", "text/plain")],
            body: "Retry later\n",
            reads: Kind::ManifestGet,
            writes: Kind::UploadMount,
        },
        play: || {
            let bearer = Bearer::user("deploy", "gldt-1").service("container_registry").without_expiry();
            FaultRegistry::builder().bearer(bearer).page(100).without_single_post().habits(Habits {
                host: Some("registry.gitlab.com"),
                token_path: Some("/jwt/auth"),
                realm: Some("https://gitlab.com/jwt/auth"),
                missing_repository: Some(401),
                blobs_at: Some(("cdn.registry.gitlab-static.net", 307)),
                ..Habits::default()
            })
        },
    }
}
