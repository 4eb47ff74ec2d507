//! A handle to one repository of a registry.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use url::Url;

use super::{Access, BandwidthMeter, Client, Context, Registry, TrafficCounters, providers};
use crate::wait::WaitClock;
use imgsync_oci::retry::{RetryPolicy, RetryState};
use imgsync_oci::{RegistryName, RepositoryName};

/// A handle to one repository of a registry.
#[derive(Debug, Clone)]
pub struct Repository {
    pub(crate) client: Client,
    pub(crate) registry: Arc<Registry>,
    /// Position in the rotation of pull credentials.
    pub(crate) pull_index: usize,
    pub(crate) name: RepositoryName,
    pub(crate) access: Access,
    pub(crate) context: Context,
    pub(crate) counters: Arc<TrafficCounters>,
}

impl Repository {
    /// Returns the registry's name.
    pub fn registry(&self) -> &RegistryName {
        &self.registry.name
    }

    /// Returns the repository's path.
    pub fn name(&self) -> &RepositoryName {
        &self.name
    }

    /// Returns the counters of requests and bytes.
    pub fn counters(&self) -> &Arc<TrafficCounters> {
        &self.counters
    }

    /// Returns the context of its requests.
    pub fn context(&self) -> &Context {
        &self.context
    }

    /// Returns the same repository with another context.
    #[must_use]
    pub fn with_context(&self, context: &Context) -> Repository {
        Repository { context: context.clone(), ..self.clone() }
    }

    /// Returns the same repository with a wait clock of its own.
    pub(crate) fn with_own_clock(&self) -> Repository {
        self.with_context(&Context { clock: WaitClock::default(), ..self.context.clone() })
    }

    /// Returns how long a response or a stream may stall.
    pub fn stall_timeout(&self) -> Duration {
        self.client.0.settings.stall_timeout
    }

    /// Returns the meter that uploaded blob bytes pass through.
    pub fn upload_meter(&self) -> BandwidthMeter {
        self.registry.meters[1].clone()
    }

    /// Whether the registry may support blob mounts.
    pub fn supports_mounts(&self) -> bool {
        !self.registry.mount_support.is_unsupported()
    }

    /// Returns the size of each PATCH, if blobs are to be uploaded in chunks.
    pub fn upload_chunk_size(&self) -> Option<u64> {
        let chunk = self.registry.settings.chunk.or_else(|| providers::chunk_bytes(&self.registry.name));
        match self.registry.body_limit.load(Ordering::Relaxed) {
            0 => chunk,
            limit => Some(chunk.map_or(limit, |chunk| chunk.min(limit))),
        }
    }

    /// Records that the registry accepts bodies of this size and refused larger ones.
    pub fn set_body_limit(&self, bytes: u64) {
        self.registry.body_limit.store(bytes, Ordering::Relaxed);
    }

    /// Returns fresh retry state for one request.
    pub fn new_retry(&self) -> RetryState {
        RetryState::new(self.policy(), &self.context.budget)
    }

    /// Returns retry state for listings. Listings of sources are retried for longer, since they have no second chance
    /// and delay nothing else; listings of targets only save requests.
    pub(crate) fn new_listing_retry(&self) -> RetryState {
        let (policy, most) = (self.policy(), RetryPolicy::default());
        if self.access == Access::Push {
            return self.new_retry();
        }
        let (max_retry_after, rate_limit_timeout) =
            (policy.max_retry_after.max(most.max_retry_after), policy.rate_limit_timeout.max(most.rate_limit_timeout));
        RetryState::new(RetryPolicy { max_retry_after, rate_limit_timeout, ..policy }, &self.context.budget)
    }

    pub(crate) fn policy(&self) -> RetryPolicy {
        let policy = self.client.0.settings.retry;
        match self.registry.mirror_state {
            // There is another registry to read from.
            Some(_) => RetryPolicy { attempts: 1, rate_limit_timeout: Duration::ZERO, ..policy },
            None => policy,
        }
    }

    /// `registry/repository`, for messages.
    pub(crate) fn label(&self) -> String {
        match self.access {
            Access::Catalog => self.registry.name.to_string(),
            _ => format!("{}/{}", self.registry.name, self.name),
        }
    }

    /// Builds a URL below this repository. `path` must need no escaping.
    pub(crate) fn url(&self, path: &str) -> Url {
        let mut url = self.registry.base.clone();
        let base = url.path().to_owned();
        url.set_path(&match self.access {
            Access::Catalog => format!("{base}v2/{path}"),
            _ => format!("{base}v2/{}/{path}", self.name),
        });
        url
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::credentials::CredentialEnvironment;
    use crate::{ClientSettings, RegistrySettings};

    #[test]
    fn azure_uploads_are_chunked_and_the_settings_override_the_size() {
        let chunk = |name: &str, chunk| {
            let name: RegistryName = name.parse().unwrap();
            let one = RegistrySettings { chunk, ..Default::default() };
            let settings = ClientSettings { registries: [(name.clone(), one)].into(), ..Default::default() };
            let client = Client::new(settings, CredentialEnvironment::default());
            let (repository, context) = ("a".parse().unwrap(), Context::default());
            client
                .repository(&name, &repository, Access::Push, &context, &TrafficCounters::new())
                .unwrap()
                .upload_chunk_size()
        };
        assert_eq!(chunk("team.azurecr.io", None), Some(16 << 20));
        assert_eq!(chunk("team.azurecr.io", Some(1 << 20)), Some(1 << 20));
        assert_eq!(chunk("azurecr.io.example.com", None), None);
    }
}
