//! Content a target reports as missing when a manifest is put: uploaded if it is missing, waited for if it is there.
//!
//! Three cases look alike. A mount may be answered with 201 without effect: the content is uploaded. Content assumed to
//! be present may be gone: a HEAD tells, and it is uploaded. And a registry may deny for some seconds what it has just
//! accepted (its front ends are eventually consistent): that passes without another upload.

use std::collections::{HashMap, HashSet};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use imgsync_oci::error::{Error, ErrorKind, Result};
use imgsync_oci::{Descriptor, Digest, Manifest, ManifestKind, RepositoryName};
use imgsync_registry::event::{BlobOutcome, Event};
use imgsync_registry::{ManifestRef, Repository};

use super::super::ImageTransfer;

/// Total wait for a target that denies content it has just accepted.
pub(crate) const CONSISTENCY_WAIT: Duration = Duration::from_secs(30);
/// First wait; each following wait doubles, up to [`MAX_WAIT`].
const FIRST_WAIT: Duration = Duration::from_millis(250);
const MAX_WAIT: Duration = Duration::from_secs(8);
/// Waits before content sent in this copy is sent again, if a HEAD does not find it: earlier it is more likely delayed
/// than lost.
const WAITS_BEFORE_RESENDING: u32 = 3;
/// Maximum resends for one manifest: a target that loses the content each time has another problem.
const MAX_RESENDS: u32 = 2;
/// Hint for a target that rejects URLs of foreign layers.
const FOREIGN_URLS_HINT: &str = "the target rejects manifests with foreign layers: allow their URLs in its \
                            configuration (distribution, Harbor: `validation.manifests.urls.allow`)";

/// How the content of one copy got to the target.
#[derive(Debug, Default)]
pub(crate) struct TransferHistory(Mutex<HistoryState>);

#[derive(Debug, Default)]
struct HistoryState {
    mounted_from: HashMap<Digest, RepositoryName>,
    /// Blobs assumed to be present without a request.
    assumed: HashSet<Digest>,
    /// Blobs whose mount or presence the target confirmed and then denied.
    unmountable: HashSet<Digest>,
    /// Manifests put by this copy.
    put: HashSet<Digest>,
}

impl TransferHistory {
    fn state(&self) -> std::sync::MutexGuard<'_, HistoryState> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Records that the target mounted a blob from another of its repositories.
    pub(crate) fn record_mount(&self, blob: &Digest, from: &RepositoryName) {
        self.state().mounted_from.insert(blob.clone(), from.clone());
    }

    /// Records that a blob was assumed to be present without a request.
    pub(crate) fn record_assumed(&self, blob: &Digest) {
        self.state().assumed.insert(blob.clone());
    }

    /// Records that this copy put a manifest.
    pub(crate) fn record_put(&self, manifest: &Digest) {
        self.state().put.insert(manifest.clone());
    }

    /// Whether a blob must be uploaded, whatever the target answers to a mount.
    pub(crate) fn must_upload(&self, blob: &Digest) -> bool {
        self.state().unmountable.contains(blob)
    }
}

/// Refusals of one manifest because of missing content.
#[derive(Debug)]
pub(crate) struct ContentDenials {
    since: Instant,
    refusals: u32,
    waits: u32,
    waited: Duration,
    last_resort: bool,
    /// Resends by blob or manifest.
    resends: HashMap<Digest, u32>,
}

impl ContentDenials {
    pub(crate) fn new() -> ContentDenials {
        ContentDenials {
            since: Instant::now(),
            refusals: 0,
            waits: 0,
            waited: Duration::ZERO,
            last_resort: false,
            resends: HashMap::new(),
        }
    }

    /// Returns the next wait; `None` after the last.
    fn next_wait(&mut self) -> Option<Duration> {
        let left = CONSISTENCY_WAIT.saturating_sub(self.waited);
        let wait = FIRST_WAIT.saturating_mul(1 << self.waits.min(16)).min(MAX_WAIT).min(left);
        self.waits += 1;
        self.waited += wait;
        (!wait.is_zero()).then_some(wait)
    }
}

impl ImageTransfer {
    /// Handles a manifest PUT refused for missing content; after `Ok` the caller retries the PUT. Returns the error if
    /// nothing more can be done.
    pub(crate) async fn send_missing(
        &self,
        manifest: &Manifest,
        error: Error,
        denials: &mut ContentDenials,
    ) -> Result<()> {
        denials.refusals += 1;
        let (refusals, since) = (denials.refusals, denials.since);
        let end = |error: Error| error.with_attempts(refusals, since.elapsed());
        let Some(target) = self.target.repository() else { return Err(end(error)) };
        if self.refuses_urls(manifest, &error) {
            return Err(end(error).with_kind(ErrorKind::Refused).with_hint(FOREIGN_URLS_HINT));
        }
        let named = |descriptor: &&Descriptor| error.missing_content().contains(&descriptor.digest);
        let (mut blobs, children) = (self.blobs_of(manifest), self.children_of(manifest));
        let (listed, mut children): (Vec<_>, Vec<_>) =
            children.into_iter().partition(|child| self.is_listed_blob(&child.digest));
        blobs.extend(listed);
        if blobs.iter().chain(&children).any(named) {
            blobs.retain(named);
            children.retain(named);
        }
        let mut again = Vec::new();
        for blob in &blobs {
            if self.must_resend(target, blob, denials).await? {
                again.push(&blob.digest);
            }
        }
        for child in &children {
            let was_put = self.history.state().put.contains(&child.digest);
            if (!was_put || denials.waits >= WAITS_BEFORE_RESENDING)
                && target.head_manifest(&ManifestRef::Digest(child.digest.clone())).await?.is_none()
            {
                again.push(&child.digest);
            }
        }
        if again.is_empty() && error.missing_content().is_empty() && self.skips_foreign_layers(manifest) {
            return Err(end(error).with_kind(ErrorKind::Refused).with_hint(FOREIGN_URLS_HINT));
        }
        again.retain(|digest| denials.resends.get(*digest).is_none_or(|resends| *resends < MAX_RESENDS));
        if again.is_empty() {
            let Err(error) = self.wait_for_consistency(error, denials).await else { return Ok(()) };
            // The target may be wrong about content that others sent: an upload may help.
            again.extend(
                blobs
                    .iter()
                    .map(|blob| &blob.digest)
                    .filter(|blob| self.blob_outcome(blob) != Some(BlobOutcome::Copied)),
            );
            if denials.last_resort || again.is_empty() || error.is_cancelled() {
                return Err(error);
            }
            denials.last_resort = true;
        }
        for digest in again {
            *denials.resends.entry(digest.clone()).or_default() += 1;
            self.invalidate(target, digest).await;
        }
        self.ensure_content(manifest, 0).await
    }

    /// Waits for the target to become consistent. Returns the error after the last wait.
    pub(crate) async fn wait_for_consistency(&self, error: Error, denials: &mut ContentDenials) -> Result<()> {
        let attempt = denials.refusals.max(denials.waits + 1);
        let Some(wait) = denials.next_wait() else { return Err(error.with_attempts(attempt, denials.since.elapsed())) };
        let (kind, registry) = (error.kind(), error.registry().cloned());
        self.context.events.emit(Event::Retrying { error: error.to_string(), kind, registry, attempt, wait });
        tokio::select! {
            () = tokio::time::sleep(wait) => Ok(()),
            () = self.context.cancel.cancelled() => {
                Err(error.with_attempts(attempt, denials.since.elapsed()).with_kind(ErrorKind::Cancelled))
            }
        }
    }

    /// Whether to upload a blob that the target denies: at once if it was mounted, otherwise if a HEAD does not find
    /// it.
    async fn must_resend(&self, target: &Repository, blob: &Descriptor, denials: &ContentDenials) -> Result<bool> {
        match self.blob_outcome(&blob.digest) {
            Some(BlobOutcome::Mounted) => Ok(true),
            Some(BlobOutcome::Copied) if denials.waits < WAITS_BEFORE_RESENDING => Ok(false),
            Some(BlobOutcome::Copied | BlobOutcome::Reused) | None => Ok(!target.head_blob(&blob.digest).await?),
        }
    }

    /// Removes content that the target lacks from the caches of this copy, the process and the store.
    async fn invalidate(&self, target: &Repository, digest: &Digest) {
        let (registry, name) = (target.registry(), target.name());
        let from = {
            let mut state = self.history.state();
            // Content the target never confirmed can be mounted from where it is now.
            if !state.assumed.remove(digest) {
                state.unmountable.insert(digest.clone());
            }
            state.mounted_from.remove(digest)
        };
        for home in [Some(name), from.as_ref()].into_iter().flatten() {
            self.target_cache.forget_blob(registry, home, digest).await;
        }
        self.target_cache.forget_manifest(registry, name, digest);
        self.forget_transfer(digest);
    }

    /// Whether the target rejects a manifest for the URLs of its foreign layers: it then reports those as missing,
    /// although it need not have them (distribution answers 500).
    fn refuses_urls(&self, manifest: &Manifest, error: &Error) -> bool {
        let ManifestKind::Image { layers, .. } = manifest.kind() else { return false };
        let is_foreign = |digest: &Digest| {
            layers
                .iter()
                .any(|layer| layer.digest == *digest && layer.media_type.is_foreign_layer() && !layer.urls.is_empty())
        };
        let named = error.missing_content();
        !named.is_empty()
            && named.iter().all(is_foreign)
            && (self.skips_foreign_layers(manifest) || error.status() == Some(500))
    }

    /// Whether some layers stay at their foreign URLs.
    fn skips_foreign_layers(&self, manifest: &Manifest) -> bool {
        self.blobs_of(manifest).len() < manifest.blobs_with(true).len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_grow_and_add_up_to_the_limit() {
        let mut denials = ContentDenials::new();
        let waits: Vec<Duration> = std::iter::from_fn(|| denials.next_wait()).collect();
        assert_eq!(waits[..4], [250, 500, 1000, 2000].map(Duration::from_millis));
        assert_eq!(waits.iter().sum::<Duration>(), CONSISTENCY_WAIT);
        assert!(waits.iter().all(|wait| *wait <= MAX_WAIT));
        assert_eq!(denials.next_wait(), None);
    }
}
