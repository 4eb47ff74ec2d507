//! distribution (`registry:2`, `registry:3`) behind a proxy, with blobs in an object store behind a CDN.

use super::{ProfileLogin, RegistryProfile, ThrottleResponse};
use crate::fault::{Bearer, FaultRegistry, Quirks, RefreshPolicy, RequestType};

pub(super) fn profile() -> RegistryProfile {
    RegistryProfile {
        name: "distribution behind a CDN",
        registry: "registry.example.com",
        api: "registry.example.com",
        other_hosts: &["auth.example.com", "cdn.example.com"],
        repository: "mirror/app",
        other_repository: "mirror/other",
        login: ProfileLogin::Password { key: "registry.example.com", user: "mirror", password: "secret" },
        settings: "",
        required_setup: "nothing",
        quirks: "several challenges; blobs redirect with 307 to a signed URL that rejects `Authorization`; 21 KB of \
                 headers; a POST with a body only starts an upload session; an interrupted session is lost; cancelling \
                 requires the `delete` scope; the CDN returns 522",
        takes_docker: true,
        makes_repositories: false,
        expires: true,
        counts_pulls_of_targets: false,
        chunk: None,
        throttle: ThrottleResponse {
            status: 522,
            headers: &[("content-type", "text/html"), ("retry-after", "Thu, 01 Jan 1970 00:00:00 GMT")],
            body: "<!DOCTYPE html><title>registry.example.com | 522: Connection timed out</title>",
            reads: RequestType::BlobGet,
            writes: RequestType::UploadMount,
        },
        builder: || {
            let bearer = Bearer::user("mirror", "secret").service("registry.example.com");
            let bearer = bearer.refresh(RefreshPolicy::Refuse(http::StatusCode::NOT_FOUND));
            FaultRegistry::builder()
                .bearer(bearer)
                .without_single_post()
                .not_resumable()
                .without_referrers()
                .page(100)
                .quirks(Quirks {
                    host: Some("registry.example.com"),
                    realm: Some("https://auth.example.com/token"),
                    extra_challenges: Some("Negotiate, Basic realm=\"registry, of ours\""),
                    blob_redirect: Some(("cdn.example.com", 307)),
                    extra_header_bytes: 21_000,
                    ..Quirks::default()
                })
        },
    }
}
