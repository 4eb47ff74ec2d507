//! Harbor.

use super::{ProfileLogin, RegistryProfile, ThrottleResponse};
use crate::fault::{Bearer, CreateApi, FaultRegistry, ManifestHeadStyle, Quirks, RequestType};

pub(super) fn profile() -> RegistryProfile {
    RegistryProfile {
        name: "Harbor",
        registry: "harbor.example.com",
        api: "harbor.example.com",
        other_hosts: &[],
        repository: "mirror/app",
        other_repository: "mirror/other",
        login: ProfileLogin::Password { key: "harbor.example.com", user: "robot$mirror", password: "secret" },
        settings: "",
        required_setup: "create the project, or `create: true`",
        quirks: "projects must exist (401); HEAD and GET return different lengths; `NOT_FOUND` for unknown manifests; \
                 a failed mount gets 404; no token if `offline_token` is requested; GETs of manifests at the target \
                 would count as pulls, so imgsync sends none",
        takes_docker: true,
        makes_repositories: true,
        expires: true,
        counts_pulls_of_targets: true,
        chunk: None,
        throttle: ThrottleResponse {
            status: 429,
            headers: &[("retry-after", "1"), ("content-type", "application/json")],
            body: r#"{"errors":[{"code":"TOO_MANY_REQUEST","message":"the request is limited"}]}"#,
            reads: RequestType::ManifestGet,
            writes: RequestType::ManifestPut,
        },
        builder: || {
            let bearer = Bearer::user("robot$mirror", "secret").service("harbor-registry");
            FaultRegistry::builder().bearer(bearer).without_single_post().not_resumable().quirks(Quirks {
                host: Some("harbor.example.com"),
                token_path: Some("/service/token"),
                realm: Some("https://harbor.example.com/service/token"),
                no_offline_token: true,
                missing_manifest: Some((404, "NOT_FOUND")),
                heads: ManifestHeadStyle::OtherLength,
                missing_mount_status: Some(404),
                needs_projects: true,
                create_api: Some(CreateApi::Harbor { user: "robot$mirror", password: "secret" }),
                ..Quirks::default()
            })
        },
    }
}
