//! Amazon ECR, a private registry.

use super::{ProfileLogin, RegistryProfile, ThrottleResponse};
use crate::fault::{CreateApi, FaultRegistry, PatchHandling, Quirks, RequestType};

const HOST: &str = "123456789012.dkr.ecr.eu-west-1.amazonaws.com";

pub(super) fn profile() -> RegistryProfile {
    RegistryProfile {
        name: "ECR",
        registry: HOST,
        api: HOST,
        other_hosts: &[
            "prod-eu-west-1-starport-layer-bucket.s3.eu-west-1.amazonaws.com",
            "api.ecr.eu-west-1.amazonaws.com",
        ],
        repository: "mirror/app",
        other_repository: "mirror/other",
        login: ProfileLogin::Helper { user: "AWS", passwords: ["twelve-hours", "twelve-more"] },
        settings: "",
        required_setup: "create the repositories, or `create: true`; use `credentials: aws` or the credential helper \
                         `ecr-login`, because a password of `aws ecr get-login-password` expires after 12 hours",
        quirks: "Basic auth with a password that expires (403); repositories must exist; responses to GETs lack \
                 `Docker-Content-Digest`; `n` above 1000 and `last` are rejected; opaque cursors for pages; the first \
                 PATCH of an upload gets 201, and later ones are dropped; only blobs that a manifest references can be \
                 mounted; immutable tags; a rate limit for each kind of request; blobs redirect with 307",
        takes_docker: true,
        makes_repositories: true,
        expires: true,
        counts_pulls_of_targets: false,
        chunk: None,
        throttle: ThrottleResponse {
            status: 429,
            headers: &[("content-type", "application/json")],
            body: r#"{"errors":[{"code":"TOOMANYREQUESTS","message":"Rate exceeded"}]}"#,
            reads: RequestType::ManifestGet,
            writes: RequestType::UploadMount,
        },
        builder: || {
            FaultRegistry::builder()
                .basic("AWS", "twelve-hours")
                .page(100)
                .without_single_post()
                .not_resumable()
                .quirks(Quirks {
                    host: Some(HOST),
                    expired_response: Some((
                        403,
                        "Your authorization token has expired. Reauthenticate and try again.",
                    )),
                    next_password: Some("twelve-more"),
                    no_new_repositories: true,
                    create_api: Some(CreateApi::Ecr {
                        service: "ecr",
                        account: "123456789012",
                        region: "eu-west-1",
                        key: ("AKIAIOSFODNN7EXAMPLE", "wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY"),
                        session: "of some/hours+==",
                    }),
                    rates: &[
                        (RequestType::ManifestPut, 10.0),
                        (RequestType::UploadStart, 100.0),
                        (RequestType::UploadMount, 100.0),
                    ],
                    get_without_digest: true,
                    media_type_in_body: true,
                    immutable: &["mirror/fixed"],
                    blob_redirect: Some(("prod-eu-west-1-starport-layer-bucket.s3.eu-west-1.amazonaws.com", 307)),
                    mounts_committed_only: true,
                    patches: PatchHandling::FirstStays,
                    patch_status: Some(201),
                    max_page_entries: Some((1000, 405)),
                    opaque_cursors: true,
                    catalog_status: Some(405),
                    ..Quirks::default()
                })
        },
    }
}
