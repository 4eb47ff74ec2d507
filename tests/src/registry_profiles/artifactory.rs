//! JFrog Artifactory.

use super::{ProfileLogin, RegistryProfile, ThrottleResponse};
use crate::fault::{Bearer, ErrorFormat, FaultRegistry, Quirks, RequestType, TokenField};

pub(super) fn profile() -> RegistryProfile {
    RegistryProfile {
        name: "Artifactory",
        registry: "acme.jfrog.io",
        api: "acme.jfrog.io",
        other_hosts: &["jfrog-prod.s3.amazonaws.com"],
        repository: "docker-local/app",
        other_repository: "docker-local/other",
        login: ProfileLogin::Password { key: "acme.jfrog.io", user: "mirror", password: "secret" },
        settings: "",
        required_setup: "nothing",
        quirks: "403 for a missing tag; Link omits the first part of the repository; HEADs find blobs of all \
                 repositories; errors are `{\"details\":…}`; blobs redirect with 302",
        takes_docker: true,
        makes_repositories: false,
        expires: true,
        counts_pulls_of_targets: false,
        chunk: None,
        throttle: ThrottleResponse {
            status: 429,
            headers: &[("content-type", "application/json")],
            body: r#"{"errors":[{"status":429,"message":"Too many requests"}]}"#,
            reads: RequestType::ManifestGet,
            writes: RequestType::ManifestPut,
        },
        builder: || {
            let bearer = Bearer::user("mirror", "secret").field(TokenField::Both).service("acme.jfrog.io");
            FaultRegistry::builder().bearer(bearer).page(100).without_single_post().quirks(Quirks {
                host: Some("acme.jfrog.io"),
                token_path: Some("/v2/token"),
                realm: Some("https://acme.jfrog.io/v2/token"),
                missing_manifest: Some((403, "DENIED")),
                errors: ErrorFormat::Details,
                heads_find_all_blobs: true,
                blob_redirect: Some(("jfrog-prod.s3.amazonaws.com", 302)),
                links: crate::fault::NextPageLink::WithoutPrefix,
                ..Quirks::default()
            })
        },
    }
}
