//! Google Container Registry and Artifact Registry.

use super::Provider;

pub(super) const GOOGLE: Provider = Provider {
    hosts: &["gcr.io", ".gcr.io", ".pkg.dev"],
    requests_per_second: Some(80.0),
    source: "https://cloud.google.com/artifact-registry/quotas (5,000 requests a minute; GCR: 50,000 in ten minutes)",
    ..Provider::NONE
};
