//! distribution (`registry:2`, `registry:3`) behind a proxy, with blobs in an object store behind a CDN.

use super::{Login, Personality, Throttle};
use crate::fault::{Bearer, FaultRegistry, Habits, Kind, Refresh};

pub(super) fn personality() -> Personality {
    Personality {
        name: "distribution behind a CDN",
        registry: "registry.example.com",
        api: "registry.example.com",
        others: &["auth.example.com", "cdn.example.com"],
        repository: "mirror/app",
        neighbour: "mirror/other",
        login: Login::Password { key: "registry.example.com", user: "mirror", password: "secret" },
        settings: "",
        to_do: "nothing",
        habits: "several challenges, blobs by 307 to a signed URL that refuses `Authorization`, headers of 21 KB, POST with a \
                 body only opens a session, a session that was cut is gone, cancelling wants `delete`, 522 of the CDN",
        takes_docker: true,
        makes_repositories: false,
        expires: true,
        counts_pulls_of_targets: false,
        chunk: None,
        throttle: Throttle {
            status: 522,
            headers: &[("content-type", "text/html"), ("retry-after", "Thu, 01 Jan 1970 00:00:00 GMT")],
            body: "<!DOCTYPE html><title>registry.example.com | 522: Connection timed out</title>",
            reads: Kind::BlobGet,
            writes: Kind::UploadMount,
        },
        play: || {
            let bearer = Bearer::user("mirror", "secret").service("registry.example.com");
            let bearer = bearer.refresh(Refresh::Refuse(http::StatusCode::NOT_FOUND));
            FaultRegistry::builder()
                .bearer(bearer)
                .without_single_post()
                .not_resumable()
                .without_referrers()
                .page(100)
                .habits(Habits {
                    host: Some("registry.example.com"),
                    realm: Some("https://auth.example.com/token"),
                    more_challenges: Some("Negotiate, Basic realm=\"registry, of ours\""),
                    blobs_at: Some(("cdn.example.com", 307)),
                    long_headers: 21_000,
                    ..Habits::default()
                })
        },
    }
}
