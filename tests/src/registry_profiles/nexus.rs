//! Sonatype Nexus.

use super::{ProfileLogin, RegistryProfile, ThrottleResponse};
use crate::fault::{ErrorFormat, FaultRegistry, ManifestHeadStyle, NextPageLink, Quirks, RequestType};

pub(super) fn profile() -> RegistryProfile {
    RegistryProfile {
        name: "Nexus",
        registry: "nexus.example.com",
        api: "nexus.example.com",
        other_hosts: &[],
        repository: "mirror/app",
        other_repository: "mirror/other",
        login: ProfileLogin::Password { key: "nexus.example.com", user: "admin", password: "secret" },
        settings: "",
        required_setup: "nothing",
        quirks: "a HEAD of a manifest gets 404 by tag, and a response without `Docker-Content-Digest` by digest; Link \
                 has `http:` behind TLS; Basic auth; errors are web pages",
        takes_docker: true,
        makes_repositories: false,
        expires: false,
        counts_pulls_of_targets: false,
        chunk: None,
        throttle: ThrottleResponse {
            status: 503,
            headers: &[("content-type", "text/html")],
            body: "<html><head><title>503 Service Unavailable</title></head></html>",
            reads: RequestType::ManifestGet,
            writes: RequestType::UploadMount,
        },
        builder: || {
            FaultRegistry::builder()
                .basic("admin", "secret")
                .page(100)
                .without_single_post()
                .without_referrers()
                .quirks(Quirks {
                    host: Some("nexus.example.com"),
                    server: Some("Nexus/3.70.1-02 (OSS)"),
                    heads: ManifestHeadStyle::Useless,
                    errors: ErrorFormat::Html,
                    links: NextPageLink::PlainHttp,
                    ..Quirks::default()
                })
        },
    }
}
