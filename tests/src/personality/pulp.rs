//! pulp, the container registry of Red Hat's products.

use super::{Login, Personality, Throttle};
use crate::fault::{Bearer, Errors, FaultRegistry, Habits, Kind};

pub(super) fn personality() -> Personality {
    Personality {
        name: "pulp",
        registry: "pulp.example.com",
        api: "pulp.example.com",
        others: &["content.example.com"],
        repository: "mirror/app",
        neighbour: "mirror/other",
        login: Login::Password { key: "pulp.example.com", user: "admin", password: "secret" },
        settings: "",
        to_do: "nothing",
        habits: "PATCH answers 204, GET without a digest, no referrers, blobs by 302, text as errors, 502 when it is too much",
        takes_docker: true,
        makes_repositories: false,
        expires: true,
        counts_pulls_of_targets: false,
        chunk: None,
        throttle: Throttle {
            status: 502,
            headers: &[("content-type", "text/html")],
            body: "<html><head><title>502 Bad Gateway</title></head></html>",
            reads: Kind::ManifestGet,
            writes: Kind::UploadMount,
        },
        play: || {
            let bearer = Bearer::user("admin", "secret").service("pulp.example.com");
            FaultRegistry::builder().bearer(bearer).without_referrers().without_single_post().not_resumable().habits(
                Habits {
                    host: Some("pulp.example.com"),
                    token_path: Some("/token/"),
                    realm: Some("https://pulp.example.com/token/"),
                    get_without_digest: true,
                    errors: Errors::Text,
                    blobs_at: Some(("content.example.com", 302)),
                    patch_status: Some(204),
                    ..Habits::default()
                },
            )
        },
    }
}
