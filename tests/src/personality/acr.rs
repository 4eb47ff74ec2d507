//! Azure's Container Registry.

use super::{Login, Personality, Throttle};
use crate::fault::{Bearer, FaultRegistry, Habits, Kind, Patches, Refresh, TokenField};

pub(super) fn personality() -> Personality {
    Personality {
        name: "ACR",
        registry: "team.azurecr.io",
        api: "team.azurecr.io",
        others: &["neu.data.azurecr.io"],
        repository: "mirror/app",
        neighbour: "mirror/other",
        login: Login::IdentityToken("refresh-1"),
        settings: "",
        to_do: "nothing; behind a name of your own `chunk: 10MiB`",
        habits: "refresh tokens by POST, several scopes refused with 400, bodies above 20 MB cut (blobs go in PATCHes), a \
                 PATCH sent again ends the session, `bytes a-b/c` refused, 429 on PUTs of manifests, blobs by 307",
        takes_docker: true,
        makes_repositories: false,
        expires: true,
        counts_pulls_of_targets: false,
        chunk: Some(16 << 20),
        throttle: Throttle {
            status: 429,
            headers: &[("retry-after", "1"), ("content-type", "application/json")],
            body: r#"{"errors":[{"code":"TOOMANYREQUESTS","message":"too many requests to the registry"}]}"#,
            reads: Kind::ManifestGet,
            writes: Kind::ManifestPut,
        },
        play: || {
            let bearer = Bearer::user("nobody", "nothing").field(TokenField::AccessToken).without_expiry();
            let bearer = bearer.refresh(Refresh::Accept("refresh-1".to_owned())).service("team.azurecr.io");
            FaultRegistry::builder().bearer(bearer).relative_locations().not_resumable().page(100).habits(Habits {
                host: Some("team.azurecr.io"),
                token_path: Some("/oauth2/token"),
                realm: Some("https://team.azurecr.io/oauth2/token"),
                many_scopes: Some(400),
                blobs_at: Some(("neu.data.azurecr.io", 307)),
                patches: Patches::StrictlyOnce,
                longest_body: Some(20_000_000),
                ..Habits::default()
            })
        },
    }
}
