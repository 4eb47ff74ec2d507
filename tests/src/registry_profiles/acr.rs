//! Azure's Container Registry.

use super::{ProfileLogin, RegistryProfile, ThrottleResponse};
use crate::fault::{Bearer, FaultRegistry, PatchHandling, Quirks, RefreshPolicy, RequestType, TokenField};

pub(super) fn profile() -> RegistryProfile {
    RegistryProfile {
        name: "ACR",
        registry: "team.azurecr.io",
        api: "team.azurecr.io",
        other_hosts: &["neu.data.azurecr.io"],
        repository: "mirror/app",
        other_repository: "mirror/other",
        login: ProfileLogin::IdentityToken("refresh-1"),
        settings: "",
        required_setup: "nothing; behind a custom domain, `chunk: 10MiB`",
        quirks: "refresh tokens by POST; several scopes get 400; request bodies are cut off at 20 MB, so blobs \
                 are sent in chunks; a repeated PATCH ends the upload session; `bytes a-b/c` is rejected; PUTs of \
                 manifests get 429; blobs redirect with 307",
        takes_docker: true,
        makes_repositories: false,
        expires: true,
        counts_pulls_of_targets: false,
        chunk: Some(16 << 20),
        throttle: ThrottleResponse {
            status: 429,
            headers: &[("retry-after", "1"), ("content-type", "application/json")],
            body: r#"{"errors":[{"code":"TOOMANYREQUESTS","message":"too many requests to the registry"}]}"#,
            reads: RequestType::ManifestGet,
            writes: RequestType::ManifestPut,
        },
        builder: || {
            let bearer = Bearer::user("nobody", "nothing").field(TokenField::AccessToken).without_expiry();
            let bearer = bearer.refresh(RefreshPolicy::Accept("refresh-1".to_owned())).service("team.azurecr.io");
            FaultRegistry::builder().bearer(bearer).relative_locations().not_resumable().page(100).quirks(Quirks {
                host: Some("team.azurecr.io"),
                token_path: Some("/oauth2/token"),
                realm: Some("https://team.azurecr.io/oauth2/token"),
                multi_scope_status: Some(400),
                blob_redirect: Some(("neu.data.azurecr.io", 307)),
                patches: PatchHandling::StrictlyOnce,
                max_upload_body_bytes: Some(20_000_000),
                ..Quirks::default()
            })
        },
    }
}
