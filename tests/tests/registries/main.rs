//! Copies between registries: results and request counts.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a failure of a helper is a failure of the test")]

mod blob_concurrency;
mod client;
mod cloud_helpers;
mod congestion;
mod cost;
mod credential_helpers;
mod docker_registry;
mod expired_tokens;
mod ferro_registry;
mod http2;
mod http2_streams;
mod index_entries;
mod machine_identity;
mod media_types;
mod mirrors;
mod oci_subject;
mod platforms;
mod randomized_responses;
mod rate_limits;
mod referrers;
mod registry_profiles;
mod repository_creation;
mod retry_after;
mod signed_images;
mod slow_links;
mod target_limits;
mod tokens;
mod unusual_responses;
