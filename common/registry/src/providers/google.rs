//! Google Container Registry and Artifact Registry. Their tag lists are recognized by their content and not by the host,
//! since others list so too; see `tags.rs`.

mod access_token;
mod identity;
mod key_file;

use super::Provider;

pub(super) static GOOGLE: Provider = Provider {
    name: "Google",
    hosts: &["gcr.io", ".gcr.io", ".pkg.dev"],
    requests_per_second: Some(80.0),
    source: "https://cloud.google.com/artifact-registry/quotas (5,000 requests a minute; GCR: 50,000 in ten minutes)",
    identity: Some(&identity::GoogleIdentity),
    ..Provider::NONE
};
