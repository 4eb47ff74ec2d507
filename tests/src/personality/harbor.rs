//! Harbor.

use super::{Login, Personality, Throttle};
use crate::fault::{Bearer, FaultRegistry, Habits, Heads, Kind, Makes};

pub(super) fn personality() -> Personality {
    Personality {
        name: "Harbor",
        registry: "harbor.example.com",
        api: "harbor.example.com",
        others: &[],
        repository: "mirror/app",
        neighbour: "mirror/other",
        login: Login::Password { key: "harbor.example.com", user: "robot$mirror", password: "secret" },
        settings: "",
        to_do: "make the project, or `create: true`",
        habits: "projects must be made (401), HEAD and GET differ in length, unknown manifests as `NOT_FOUND`, a mount that fails is 404, no token for who \
                 asks for `offline_token`; as a target its manifests are never GET, which it would count as pulls",
        takes_docker: true,
        makes_repositories: true,
        expires: true,
        counts_pulls_of_targets: true,
        chunk: None,
        throttle: Throttle {
            status: 429,
            headers: &[("retry-after", "1"), ("content-type", "application/json")],
            body: r#"{"errors":[{"code":"TOO_MANY_REQUEST","message":"the request is limited"}]}"#,
            reads: Kind::ManifestGet,
            writes: Kind::ManifestPut,
        },
        play: || {
            let bearer = Bearer::user("robot$mirror", "secret").service("harbor-registry");
            FaultRegistry::builder().bearer(bearer).without_single_post().not_resumable().habits(Habits {
                host: Some("harbor.example.com"),
                token_path: Some("/service/token"),
                realm: Some("https://harbor.example.com/service/token"),
                no_offline_token: true,
                missing_manifest: Some((404, "NOT_FOUND")),
                heads: Heads::OtherLength,
                missing_mount: Some(404),
                needs_projects: true,
                makes: Some(Makes::Harbor { user: "robot$mirror", password: "secret" }),
                ..Habits::default()
            })
        },
    }
}
