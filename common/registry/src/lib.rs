//! Client of OCI registries (distribution-spec v1.1), usable without the rest of imgsync: what copying images needs.
//!
//! A [`Client`] holds connections, credentials and settings. A [`Repository`] is a handle to one repository, with an
//! [`Access`] and the [`Context`] of its requests. [`imgsync_oci::retry`] decides what is retried.

mod aimd;
mod auth;
mod bandwidth;
mod blobs;
mod catalog;
pub mod challenge;
mod client;
mod concurrency;
mod context;
mod credential_pool;
pub mod credentials;
mod environment_proxies;
pub mod error_body;
pub mod event;
mod failure;
#[cfg(test)]
mod fuzz;
mod header_time;
mod http;
mod limits;
pub mod link;
mod listing_memory;
mod manifests;
mod mirrors;
mod mount_support;
mod page_reader;
mod pagination;
pub mod providers;
pub mod quota_headers;
pub mod range;
mod rate_limiter;
mod referrers;
mod registry;
mod rejection_backoff;
mod repository;
mod request_body;
mod request_class;
mod resizable_semaphore;
mod response;
pub mod retry_after;
mod send_progress;
mod settings;
mod ssrf;
mod tags;
mod throttling;
mod transport;
mod uploads;
pub mod wait;

pub use auth::Access;
pub use bandwidth::BandwidthMeter;
pub use blobs::{BlobStream, OpenBlob};
pub use catalog::{CatalogPages, RegistryCatalog};
pub use client::Client;
pub use context::{Context, TrafficCounters, TrafficSnapshot};
pub use http::non_registry_client;
pub use limits::limits;
pub use listing_memory::{ListingGroup, ListingShare};
pub use manifests::{DeleteResult, ManifestHead, ManifestPut, ManifestRef};
pub use page_reader::BoundedList;
pub use providers::api::{ListedPages, ListedTag, ProviderApi};
pub use rate_limiter::RateLimitHold;
pub use referrers::FallbackTag;
pub use rejection_backoff::REJECTION_TIMEOUT;
pub use repository::Repository;
pub use send_progress::SendProgress;
pub use settings::{ClientSettings, QuotaReserve, RegistrySettings, SharedRateLimit};
pub use tags::{ListedManifest, TagPage, TagPages};
pub use uploads::{StartedUpload, UploadBody, UploadSession};

use registry::{Registry, base_url, is_loopback};

/// Repositories cached for each registry, in each cache: those without the referrers API, those that were created,
/// those that a provider's API does not list.
const MAX_CACHED_REPOSITORIES: usize = 10_000;
