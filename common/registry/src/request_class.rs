//! Classes of requests, for rate limits and quotas.

use imgsync_rate_limit::RateLimitCategory;

use super::aimd::OperationKind;

/// Class of a request for rate limits and quotas.
#[derive(Debug, Clone, Copy)]
pub(crate) struct RequestClass {
    /// Index of the credential in the pool.
    pub(crate) credential_index: usize,
    pub(crate) operation: OperationKind,
    /// Whether pull quotas count it.
    pub(crate) reads_manifest: bool,
    /// Operation that some registries limit separately.
    pub(crate) account_part: Option<RateLimitCategory>,
    /// Whether it continues a blob read that was started before.
    pub(crate) is_continuation: bool,
}

impl RequestClass {
    /// Index of the backoff. Registries may reject one kind while others succeed.
    pub(crate) fn backoff_index(&self) -> usize {
        match (self.operation, self.account_part) {
            (OperationKind::Manifests, _) if self.reads_manifest => 0,
            (OperationKind::Manifests, _) => 1,
            (OperationKind::Blobs, _) => 2,
            (OperationKind::List, _) => 3,
            (OperationKind::Push, Some(RateLimitCategory::ManifestPuts)) => 4,
            (OperationKind::Push, _) => 5,
        }
    }

    /// A request that is not part of a copy: for a token or a challenge.
    pub(crate) fn auxiliary(credential_index: usize) -> RequestClass {
        RequestClass {
            credential_index,
            operation: OperationKind::List,
            reads_manifest: false,
            account_part: None,
            is_continuation: false,
        }
    }
}
