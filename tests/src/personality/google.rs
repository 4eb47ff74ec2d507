//! Google's Container Registry and Artifact Registry.

use super::{Login, Personality, Throttle};
use crate::fault::{Bearer, FaultRegistry, Habits, Kind, Patches, TokenField};

pub(super) fn personality() -> Personality {
    Personality {
        name: "GCR, Artifact Registry",
        registry: "europe-docker.pkg.dev",
        api: "europe-docker.pkg.dev",
        others: &["storage.googleapis.com"],
        repository: "project/mirror/app",
        neighbour: "project/mirror/other",
        login: Login::Password {
            key: "europe-docker.pkg.dev",
            user: "_json_key",
            password: "{\"type\":\"service_account\"}",
        },
        settings: "",
        to_do: "nothing; `_json_key` or the helper `gcloud` logs in",
        habits: "tokens at `/v2/token`, one scope a token (several: 403), 401 without a challenge but for `/v2/`, one PATCH \
                 only, listings with digests, children and times, blobs by 302",
        takes_docker: true,
        makes_repositories: false,
        expires: true,
        counts_pulls_of_targets: false,
        chunk: None,
        throttle: Throttle {
            status: 429,
            headers: &[("content-type", "application/json")],
            body: r#"{"errors":[{"code":"TOOMANYREQUESTS","message":"Quota exceeded for quota metric 'Requests per project per region'"}]}"#,
            reads: Kind::ManifestGet,
            writes: Kind::ManifestPut,
        },
        play: || {
            let bearer = Bearer::user("_json_key", "{\"type\":\"service_account\"}").field(TokenField::Both);
            FaultRegistry::builder()
                .bearer(bearer.service("europe-docker.pkg.dev"))
                .google()
                .rate((5000.0 / 60.0, 5000.0))
                .habits(Habits {
                    host: Some("europe-docker.pkg.dev"),
                    token_path: Some("/v2/token"),
                    realm: Some("https://europe-docker.pkg.dev/v2/token"),
                    bare_401: true,
                    many_scopes: Some(403),
                    blobs_at: Some(("storage.googleapis.com", 302)),
                    patches: Patches::One(405),
                    ..Habits::default()
                })
        },
    }
}
