//! Quay.

use super::{ProfileLogin, RegistryProfile, ThrottleResponse};
use crate::fault::{Bearer, FaultRegistry, Quirks, RequestType};

pub(super) fn profile() -> RegistryProfile {
    RegistryProfile {
        name: "Quay",
        registry: "quay.io",
        api: "quay.io",
        other_hosts: &["cdn01.quay.io"],
        repository: "team/app",
        other_repository: "team/other",
        login: ProfileLogin::Password { key: "quay.io", user: "team+robot", password: "secret" },
        settings: "",
        required_setup: "nothing",
        quirks: "token service at `/v2/auth`; no token if `delete` or several scopes are requested; mounts require \
                 `from`; pages of 50; a very large `n` gets 413; blobs redirect with 302",
        takes_docker: true,
        makes_repositories: false,
        expires: true,
        counts_pulls_of_targets: false,
        chunk: None,
        throttle: ThrottleResponse {
            status: 429,
            headers: &[("content-type", "text/html")],
            body: "<html>\r\n<head><title>429 Too Many Requests</title></head>\r\n<body>nginx</body></html>",
            reads: RequestType::ManifestGet,
            writes: RequestType::UploadMount,
        },
        builder: || {
            let bearer = Bearer::user("team+robot", "secret").anonymous_pull(true).service("quay.io");
            FaultRegistry::builder().bearer(bearer).page(50).without_single_post().quirks(Quirks {
                host: Some("quay.io"),
                token_path: Some("/v2/auth"),
                realm: Some("https://quay.io/v2/auth"),
                multi_scope_status: Some(400),
                no_delete_tokens: true,
                mount_without_from_status: Some(400),
                max_page_entries: Some((1000, 413)),
                blob_redirect: Some(("cdn01.quay.io", 302)),
                catalog_status: Some(401),
                ..Quirks::default()
            })
        },
    }
}
