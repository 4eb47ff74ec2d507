//! zot, without its compat option.

use super::{ProfileLogin, RegistryProfile, ThrottleResponse};
use crate::fault::{ErrorFormat, FaultRegistry, Quirks, RequestType};

pub(super) fn profile() -> RegistryProfile {
    RegistryProfile {
        name: "zot",
        registry: "zot.example.com",
        api: "zot.example.com",
        other_hosts: &[],
        repository: "mirror/app",
        other_repository: "mirror/other",
        login: ProfileLogin::None,
        settings: "",
        required_setup: "in zot's configuration, `\"compat\": [\"docker2s2\"]` under `http`, for images with Docker's \
                         media types",
        quirks: "Docker's media types get 415; rate limits are plain text; referrers API",
        takes_docker: false,
        makes_repositories: false,
        expires: false,
        counts_pulls_of_targets: false,
        chunk: None,
        throttle: ThrottleResponse {
            status: 429,
            headers: &[("content-type", "text/plain")],
            body: "Too Many Requests\n",
            reads: RequestType::ManifestGet,
            writes: RequestType::ManifestPut,
        },
        builder: || {
            FaultRegistry::builder().relative_locations().quirks(Quirks {
                host: Some("zot.example.com"),
                oci_only: Some(415),
                errors: ErrorFormat::Oci,
                ..Quirks::default()
            })
        },
    }
}
