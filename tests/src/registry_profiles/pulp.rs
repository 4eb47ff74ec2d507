//! pulp, the container registry of Red Hat's products.

use super::{ProfileLogin, RegistryProfile, ThrottleResponse};
use crate::fault::{Bearer, ErrorFormat, FaultRegistry, Quirks, RequestType};

pub(super) fn profile() -> RegistryProfile {
    RegistryProfile {
        name: "pulp",
        registry: "pulp.example.com",
        api: "pulp.example.com",
        other_hosts: &["content.example.com"],
        repository: "mirror/app",
        other_repository: "mirror/other",
        login: ProfileLogin::Password { key: "pulp.example.com", user: "admin", password: "secret" },
        settings: "",
        required_setup: "nothing",
        quirks: "PATCH gets 204; responses to GETs lack `Docker-Content-Digest`; no referrers; blobs redirect with \
                 302; errors are plain text; 502 under load",
        takes_docker: true,
        makes_repositories: false,
        expires: true,
        counts_pulls_of_targets: false,
        chunk: None,
        throttle: ThrottleResponse {
            status: 502,
            headers: &[("content-type", "text/html")],
            body: "<html><head><title>502 Bad Gateway</title></head></html>",
            reads: RequestType::ManifestGet,
            writes: RequestType::UploadMount,
        },
        builder: || {
            let bearer = Bearer::user("admin", "secret").service("pulp.example.com");
            FaultRegistry::builder().bearer(bearer).without_referrers().without_single_post().not_resumable().quirks(
                Quirks {
                    host: Some("pulp.example.com"),
                    token_path: Some("/token/"),
                    realm: Some("https://pulp.example.com/token/"),
                    get_without_digest: true,
                    errors: ErrorFormat::Text,
                    blob_redirect: Some(("content.example.com", 302)),
                    patch_status: Some(204),
                    ..Quirks::default()
                },
            )
        },
    }
}
