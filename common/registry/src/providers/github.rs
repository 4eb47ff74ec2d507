//! GitHub Container Registry.

use super::Provider;

pub(super) const GITHUB: Provider = Provider {
    hosts: &["ghcr.io"],
    requests_per_second: Some(33.0),
    source: "https://docs.github.com/en/packages (2,000 requests a minute)",
    ..Provider::NONE
};
