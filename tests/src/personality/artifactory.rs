//! JFrog Artifactory.

use super::{Login, Personality, Throttle};
use crate::fault::{Bearer, Errors, FaultRegistry, Habits, Kind, TokenField};

pub(super) fn personality() -> Personality {
    Personality {
        name: "Artifactory",
        registry: "acme.jfrog.io",
        api: "acme.jfrog.io",
        others: &["jfrog-prod.s3.amazonaws.com"],
        repository: "docker-local/app",
        neighbour: "docker-local/other",
        login: Login::Password { key: "acme.jfrog.io", user: "mirror", password: "secret" },
        settings: "",
        to_do: "nothing",
        habits: "403 for a tag that is missing, Link without the first part of the repository, HEADs that find blobs of all \
                 repositories, `{\"details\":…}` as an error, blobs by 302",
        takes_docker: true,
        makes_repositories: false,
        expires: true,
        counts_pulls_of_targets: false,
        chunk: None,
        throttle: Throttle {
            status: 429,
            headers: &[("content-type", "application/json")],
            body: r#"{"errors":[{"status":429,"message":"Too many requests"}]}"#,
            reads: Kind::ManifestGet,
            writes: Kind::ManifestPut,
        },
        play: || {
            let bearer = Bearer::user("mirror", "secret").field(TokenField::Both).service("acme.jfrog.io");
            FaultRegistry::builder().bearer(bearer).page(100).without_single_post().habits(Habits {
                host: Some("acme.jfrog.io"),
                token_path: Some("/v2/token"),
                realm: Some("https://acme.jfrog.io/v2/token"),
                missing_manifest: Some((403, "DENIED")),
                errors: Errors::Details,
                heads_of_all_blobs: true,
                blobs_at: Some(("jfrog-prod.s3.amazonaws.com", 302)),
                links: crate::fault::Links::WithoutPrefix,
                ..Habits::default()
            })
        },
    }
}
