//! Amazon Elastic Container Registry. Repositories are created by `provision/ecr.rs`.

use imgsync_rate_limit::RateLimitCategory;

use super::Provider;

pub(super) const AMAZON: Provider = Provider {
    hosts: &[".amazonaws.com"],
    per_operation: &[(RateLimitCategory::ManifestPuts, 10.0), (RateLimitCategory::UploadStarts, 100.0)],
    source: "https://docs.aws.amazon.com/AmazonECR/latest/userguide/service-quotas.html (PutImage 10, InitiateLayerUpload 100 a second)",
    ..Provider::NONE
};
