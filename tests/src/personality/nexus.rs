//! Sonatype Nexus.

use super::{Login, Personality, Throttle};
use crate::fault::{Errors, FaultRegistry, Habits, Heads, Kind, Links};

pub(super) fn personality() -> Personality {
    Personality {
        name: "Nexus",
        registry: "nexus.example.com",
        api: "nexus.example.com",
        others: &[],
        repository: "mirror/app",
        neighbour: "mirror/other",
        login: Login::Password { key: "nexus.example.com", user: "admin", password: "secret" },
        settings: "",
        to_do: "nothing",
        habits: "HEADs of manifests answered 404 by tag and without a digest by digest, Link with `http:` behind TLS, Basic, \
                 web pages as errors",
        takes_docker: true,
        makes_repositories: false,
        expires: false,
        counts_pulls_of_targets: false,
        chunk: None,
        throttle: Throttle {
            status: 503,
            headers: &[("content-type", "text/html")],
            body: "<html><head><title>503 Service Unavailable</title></head></html>",
            reads: Kind::ManifestGet,
            writes: Kind::UploadMount,
        },
        play: || {
            FaultRegistry::builder()
                .basic("admin", "secret")
                .page(100)
                .without_single_post()
                .without_referrers()
                .habits(Habits {
                    host: Some("nexus.example.com"),
                    server: Some("Nexus/3.70.1-02 (OSS)"),
                    heads: Heads::Useless,
                    errors: Errors::Html,
                    links: Links::PlainHttp,
                    ..Habits::default()
                })
        },
    }
}
