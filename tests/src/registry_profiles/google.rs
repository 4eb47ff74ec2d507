//! Google's Container Registry and Artifact Registry.

use super::{ProfileLogin, RegistryProfile, ThrottleResponse};
use crate::fault::{Bearer, FaultRegistry, PatchHandling, Quirks, RequestType, TokenField};

pub(super) fn profile() -> RegistryProfile {
    RegistryProfile {
        name: "GCR, Artifact Registry",
        registry: "europe-docker.pkg.dev",
        api: "europe-docker.pkg.dev",
        other_hosts: &["storage.googleapis.com"],
        repository: "project/mirror/app",
        other_repository: "project/mirror/other",
        login: ProfileLogin::Password {
            key: "europe-docker.pkg.dev",
            user: "_json_key",
            password: "{\"type\":\"service_account\"}",
        },
        settings: "",
        required_setup: "nothing; log in with `credentials: gcp`, `_json_key` or the helper `gcloud`",
        quirks: "token service at `/v2/token`; one scope per token (several get 403); 401 without a challenge except \
                 at `/v2/`; only one PATCH per upload; listings contain digests, children and times; blobs redirect \
                 with 302",
        takes_docker: true,
        makes_repositories: false,
        expires: true,
        counts_pulls_of_targets: false,
        chunk: None,
        throttle: ThrottleResponse {
            status: 429,
            headers: &[("content-type", "application/json")],
            body: r#"{"errors":[{"code":"TOOMANYREQUESTS","message":"Quota exceeded for quota metric 'Requests per project per region'"}]}"#,
            reads: RequestType::ManifestGet,
            writes: RequestType::ManifestPut,
        },
        builder: || {
            let bearer = Bearer::user("_json_key", "{\"type\":\"service_account\"}").field(TokenField::Both);
            FaultRegistry::builder()
                .bearer(bearer.service("europe-docker.pkg.dev"))
                .google()
                .rate((5000.0 / 60.0, 5000.0))
                .quirks(Quirks {
                    host: Some("europe-docker.pkg.dev"),
                    token_path: Some("/v2/token"),
                    realm: Some("https://europe-docker.pkg.dev/v2/token"),
                    bare_401: true,
                    multi_scope_status: Some(403),
                    blob_redirect: Some(("storage.googleapis.com", 302)),
                    patches: PatchHandling::One(405),
                    ..Quirks::default()
                })
        },
    }
}
