//! Amazon ECR, a private registry.

use super::{Login, Personality, Throttle};
use crate::fault::{FaultRegistry, Habits, Kind, Makes, Patches};

const HOST: &str = "123456789012.dkr.ecr.eu-west-1.amazonaws.com";

pub(super) fn personality() -> Personality {
    Personality {
        name: "ECR",
        registry: HOST,
        api: HOST,
        others: &["prod-eu-west-1-starport-layer-bucket.s3.eu-west-1.amazonaws.com", "api.ecr.eu-west-1.amazonaws.com"],
        repository: "mirror/app",
        neighbour: "mirror/other",
        login: Login::Helper { user: "AWS", passwords: ["twelve-hours", "twelve-more"] },
        settings: "",
        to_do: "make the repositories, or `create: true`; use the credential helper `ecr-login`, a password of `aws ecr get-login-password` \
                lasts 12 h",
        habits: "Basic with a password that runs out (403), repositories must be made, GET without a digest, `n` above 1000 \
                 and `last` refused, opaque cursors, PATCH answers 201 and drops what follows, mounts of committed blobs \
                 alone, tags that cannot be moved, limits for
                 each kind of request, blobs by 307",
        takes_docker: true,
        makes_repositories: true,
        expires: true,
        counts_pulls_of_targets: false,
        chunk: None,
        throttle: Throttle {
            status: 429,
            headers: &[("content-type", "application/json")],
            body: r#"{"errors":[{"code":"TOOMANYREQUESTS","message":"Rate exceeded"}]}"#,
            reads: Kind::ManifestGet,
            writes: Kind::UploadMount,
        },
        play: || {
            FaultRegistry::builder()
                .basic("AWS", "twelve-hours")
                .page(100)
                .without_single_post()
                .not_resumable()
                .habits(Habits {
                    host: Some(HOST),
                    expired: Some((403, "Your authorization token has expired. Reauthenticate and try again.")),
                    next_password: Some("twelve-more"),
                    no_new_repositories: true,
                    makes: Some(Makes::Ecr {
                        account: "123456789012",
                        region: "eu-west-1",
                        key: ("AKIAIOSFODNN7EXAMPLE", "wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY"),
                        session: "of some/hours+==",
                    }),
                    rates: &[(Kind::ManifestPut, 10.0), (Kind::UploadStart, 100.0), (Kind::UploadMount, 100.0)],
                    get_without_digest: true,
                    media_type_in_body: true,
                    immutable: &["mirror/fixed"],
                    blobs_at: Some(("prod-eu-west-1-starport-layer-bucket.s3.eu-west-1.amazonaws.com", 307)),
                    mounts_committed_only: true,
                    patches: Patches::FirstStays,
                    patch_status: Some(201),
                    most_entries: Some((1000, 405)),
                    opaque_cursors: true,
                    no_catalog: Some(405),
                    ..Habits::default()
                })
        },
    }
}
