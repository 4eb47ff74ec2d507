//! Amazon ECR Public.

use super::{ProfileLogin, RegistryProfile, ThrottleResponse};
use crate::fault::{Bearer, FaultRegistry, PatchHandling, Quirks, RequestType};

pub(super) fn profile() -> RegistryProfile {
    RegistryProfile {
        name: "ECR Public",
        registry: "public.ecr.aws",
        api: "public.ecr.aws",
        other_hosts: &["d2glxqk2uabbnd.cloudfront.net"],
        repository: "a1b2c3/app",
        other_repository: "a1b2c3/other",
        login: ProfileLogin::Password { key: "public.ecr.aws", user: "AWS", password: "secret" },
        settings: "",
        required_setup: "create the repositories, or `create: true`",
        quirks: "an expired token gets 400 without a challenge; repositories must exist; responses to GETs \
                 lack `Docker-Content-Digest`; opaque cursors for pages; blobs redirect with 307",
        takes_docker: true,
        makes_repositories: true,
        expires: true,
        counts_pulls_of_targets: false,
        chunk: None,
        throttle: ThrottleResponse {
            status: 400,
            headers: &[("content-type", "application/json")],
            body: r#"{"errors":[{"code":"TOOMANYREQUESTS","message":"Rate limit exceeded"}]}"#,
            reads: RequestType::ManifestGet,
            writes: RequestType::UploadMount,
        },
        builder: || {
            let bearer = Bearer::user("AWS", "secret").anonymous_pull(true).service("public.ecr.aws").without_expiry();
            FaultRegistry::builder().bearer(bearer).page(100).without_single_post().not_resumable().quirks(Quirks {
                host: Some("public.ecr.aws"),
                token_path: Some("/token/"),
                realm: Some("https://public.ecr.aws/token/"),
                expired_response: Some((
                    400,
                    "Your Authorization Token has expired. Please run 'aws ecr-public get-login-password'",
                )),
                no_new_repositories: true,
                rates: &[
                    (RequestType::ManifestPut, 10.0),
                    (RequestType::UploadStart, 100.0),
                    (RequestType::UploadMount, 100.0),
                ],
                get_without_digest: true,
                blob_redirect: Some(("d2glxqk2uabbnd.cloudfront.net", 307)),
                patches: PatchHandling::FirstStays,
                patch_status: Some(201),
                max_page_entries: Some((1000, 405)),
                opaque_cursors: true,
                catalog_status: Some(404),
                ..Quirks::default()
            })
        },
    }
}
