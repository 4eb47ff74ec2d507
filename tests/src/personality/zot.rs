//! zot, without its compat option.

use super::{Login, Personality, Throttle};
use crate::fault::{Errors, FaultRegistry, Habits, Kind};

pub(super) fn personality() -> Personality {
    Personality {
        name: "zot",
        registry: "zot.example.com",
        api: "zot.example.com",
        others: &[],
        repository: "mirror/app",
        neighbour: "mirror/other",
        login: Login::None,
        settings: "",
        to_do: "at zot: `\"compat\": [\"docker2s2\"]` under `http`, for images of Docker's types",
        habits: "Docker's media types refused with 415, limits as text, referrers by its API",
        takes_docker: false,
        makes_repositories: false,
        expires: false,
        counts_pulls_of_targets: false,
        chunk: None,
        throttle: Throttle {
            status: 429,
            headers: &[("content-type", "text/plain")],
            body: "Too Many Requests\n",
            reads: Kind::ManifestGet,
            writes: Kind::ManifestPut,
        },
        play: || {
            FaultRegistry::builder().relative_locations().habits(Habits {
                host: Some("zot.example.com"),
                oci_only: Some(415),
                errors: Errors::Oci,
                ..Habits::default()
            })
        },
    }
}
