//! Docker Hub.

use super::Provider;

/// `docker.io` itself serves a web site. Pulls are counted separately, as response headers tell.
pub(super) const DOCKER_HUB: Provider = Provider {
    hosts: &["docker.io"],
    endpoint: Some("https://registry-1.docker.io"),
    requests_per_second: Some(33.0),
    source: "https://docs.docker.com/docker-hub/usage/ (abuse limit: thousands of requests a minute and address)",
    ..Provider::NONE
};
