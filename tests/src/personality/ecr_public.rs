//! Amazon ECR Public.

use super::{Login, Personality, Throttle};
use crate::fault::{Bearer, FaultRegistry, Habits, Kind, Patches};

pub(super) fn personality() -> Personality {
    Personality {
        name: "ECR Public",
        registry: "public.ecr.aws",
        api: "public.ecr.aws",
        others: &["d2glxqk2uabbnd.cloudfront.net"],
        repository: "a1b2c3/app",
        neighbour: "a1b2c3/other",
        login: Login::Password { key: "public.ecr.aws", user: "AWS", password: "secret" },
        settings: "",
        to_do: "make the repositories, or `create: true`",
        habits: "a token that has run out is answered 400 without a challenge, repositories must be made, GET without a \
                 digest, opaque cursors, blobs by 307",
        takes_docker: true,
        makes_repositories: true,
        expires: true,
        counts_pulls_of_targets: false,
        chunk: None,
        throttle: Throttle {
            status: 400,
            headers: &[("content-type", "application/json")],
            body: r#"{"errors":[{"code":"TOOMANYREQUESTS","message":"Rate limit exceeded"}]}"#,
            reads: Kind::ManifestGet,
            writes: Kind::UploadMount,
        },
        play: || {
            let bearer = Bearer::user("AWS", "secret").anonymous_pull(true).service("public.ecr.aws").without_expiry();
            FaultRegistry::builder().bearer(bearer).page(100).without_single_post().not_resumable().habits(Habits {
                host: Some("public.ecr.aws"),
                token_path: Some("/token/"),
                realm: Some("https://public.ecr.aws/token/"),
                expired: Some((
                    400,
                    "Your Authorization Token has expired. Please run 'aws ecr-public get-login-password'",
                )),
                no_new_repositories: true,
                rates: &[(Kind::ManifestPut, 10.0), (Kind::UploadStart, 100.0), (Kind::UploadMount, 100.0)],
                get_without_digest: true,
                blobs_at: Some(("d2glxqk2uabbnd.cloudfront.net", 307)),
                patches: Patches::FirstStays,
                patch_status: Some(201),
                most_entries: Some((1000, 405)),
                opaque_cursors: true,
                no_catalog: Some(404),
                ..Habits::default()
            })
        },
    }
}
