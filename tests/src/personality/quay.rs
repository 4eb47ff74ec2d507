//! Quay.

use super::{Login, Personality, Throttle};
use crate::fault::{Bearer, FaultRegistry, Habits, Kind};

pub(super) fn personality() -> Personality {
    Personality {
        name: "Quay",
        registry: "quay.io",
        api: "quay.io",
        others: &["cdn01.quay.io"],
        repository: "team/app",
        neighbour: "team/other",
        login: Login::Password { key: "quay.io", user: "team+robot", password: "secret" },
        settings: "",
        to_do: "nothing",
        habits: "tokens at `/v2/auth`, no token at all for who asks for `delete` or for several scopes, a mount wants `from`, pages of 50, a very \
                 large `n` answered 413, blobs by 302",
        takes_docker: true,
        makes_repositories: false,
        expires: true,
        counts_pulls_of_targets: false,
        chunk: None,
        throttle: Throttle {
            status: 429,
            headers: &[("content-type", "text/html")],
            body: "<html>\r\n<head><title>429 Too Many Requests</title></head>\r\n<body>nginx</body></html>",
            reads: Kind::ManifestGet,
            writes: Kind::UploadMount,
        },
        play: || {
            let bearer = Bearer::user("team+robot", "secret").anonymous_pull(true).service("quay.io");
            FaultRegistry::builder().bearer(bearer).page(50).without_single_post().habits(Habits {
                host: Some("quay.io"),
                token_path: Some("/v2/auth"),
                realm: Some("https://quay.io/v2/auth"),
                many_scopes: Some(400),
                never_delete: true,
                nameless_mount: Some(400),
                most_entries: Some((1000, 413)),
                blobs_at: Some(("cdn01.quay.io", 302)),
                no_catalog: Some(401),
                ..Habits::default()
            })
        },
    }
}
