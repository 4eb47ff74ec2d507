//! Cache of the targets' content, as learned by this process: which repository has a blob, and which manifests are
//! complete in which repository. It saves requests and bytes; results are correct without it.

use std::collections::{HashMap, HashSet};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use imgsync_model::batch::{Endpoint, RepositoryLocator};
use imgsync_oci::error::Result;
use imgsync_oci::generational::GenerationalCache;
use imgsync_oci::{Digest, RegistryName, RepositoryName, Tag};
use imgsync_store::{BlobIndex, BlobProof, LEASE_TTL, LeaseGuard, Leases, PROOF_TTL, TryAcquireResult, tag_lease_name};
use rand::Rng as _;
use tokio::sync::OnceCell;
use tokio_util::sync::CancellationToken;

/// Range of the random interval at which a worker polls the lease of a blob that another worker uploads.
const BLOB_LEASE_POLL_INTERVAL: (Duration, Duration) = (Duration::from_millis(200), Duration::from_millis(800));
/// Capacity of each cache, which bounds memory whatever the number of tags.
const MAX_CACHED_ENTRIES: usize = 100_000;

type BlobKey = (RegistryName, Digest);
type RepositoryContentKey = (RegistryName, RepositoryName, Digest);

/// Cache of the targets' content.
#[derive(Default)]
pub(crate) struct TargetCache {
    state: Mutex<TargetCacheState>,
    /// Blob locations learned by other and earlier processes.
    index: Option<Arc<dyn BlobIndex>>,
    /// Lease store, and the holder name of this process.
    leases: Option<(Arc<dyn Leases>, Arc<str>)>,
}

#[derive(Debug)]
struct TargetCacheState {
    /// A repository with the blob, by registry and blob.
    repository_by_blob: GenerationalCache<BlobKey, RepositoryName>,
    /// Blobs by repository.
    blobs: GenerationalCache<RepositoryContentKey, ()>,
    /// Manifests complete in a repository, with the source they were copied from.
    manifests: GenerationalCache<RepositoryContentKey, Option<RepositoryLocator>>,
    /// Proofs that a source repository has a blob, or that a blob is public, and when they were recorded.
    proofs: GenerationalCache<BlobProof, Instant>,
    /// Whether a registry answers a mount of a blob that it has with 201.
    mount_support: HashMap<RegistryName, Arc<OnceCell<bool>>>,
    /// Blobs being transferred to a registry.
    in_flight_blobs: HashMap<BlobKey, Arc<tokio::sync::Mutex<()>>>,
}

impl Default for TargetCacheState {
    fn default() -> TargetCacheState {
        TargetCacheState {
            repository_by_blob: GenerationalCache::new(MAX_CACHED_ENTRIES),
            blobs: GenerationalCache::new(MAX_CACHED_ENTRIES),
            manifests: GenerationalCache::new(MAX_CACHED_ENTRIES),
            proofs: GenerationalCache::new(MAX_CACHED_ENTRIES),
            mount_support: HashMap::new(),
            in_flight_blobs: HashMap::new(),
        }
    }
}

impl TargetCache {
    /// Creates a cache that shares blob locations with other processes.
    pub(crate) fn with_index(index: Arc<dyn BlobIndex>) -> TargetCache {
        TargetCache { index: Some(index), ..TargetCache::default() }
    }

    /// Creates a cache that also coordinates with other workers: one worker transfers a blob, the others wait.
    pub(crate) fn with_leases(index: Arc<dyn BlobIndex>, leases: Arc<dyn Leases>, holder: &str) -> TargetCache {
        TargetCache { index: Some(index), leases: Some((leases, holder.into())), ..TargetCache::default() }
    }

    fn state(&self) -> std::sync::MutexGuard<'_, TargetCacheState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn has_blob(&self, registry: &RegistryName, repository: &RepositoryName, digest: &Digest) -> bool {
        self.state().blobs.get(&(registry.clone(), repository.clone(), digest.clone())).is_some()
    }

    /// Returns a repository of the registry that has the blob.
    pub(crate) async fn repository_with_blob(
        &self,
        registry: &RegistryName,
        digest: &Digest,
    ) -> Option<RepositoryName> {
        if let Some(repository) = self.state().repository_by_blob.get(&(registry.clone(), digest.clone())) {
            return Some(repository.clone());
        }
        // Only a hint: errors are ignored.
        let endpoint = Endpoint::Registry(registry.clone());
        let found = self.index.as_ref()?.find_blobs(&endpoint, std::slice::from_ref(digest)).await.ok()?;
        found.into_iter().next().flatten().and_then(|home| home.path().parse().ok())
    }

    /// Shares with other and later processes that the repository has these blobs, except those that turned out to be
    /// missing.
    pub(crate) async fn share_blobs(&self, registry: &RegistryName, repository: &RepositoryName, blobs: &[Digest]) {
        let Some(index) = &self.index else { return };
        let present = blobs.iter().filter(|digest| self.has_blob(registry, repository, digest));
        let present: Vec<Digest> = present.cloned().collect();
        if !present.is_empty() {
            // Only a hint: errors are ignored.
            let _ = index.record_blobs(&RepositoryLocator::in_registry(registry.clone(), repository), &present).await;
        }
    }

    /// Records that the repository has the blob, in this process.
    pub(crate) fn record_blob(&self, registry: &RegistryName, repository: &RepositoryName, digest: &Digest) {
        let mut state = self.state();
        state.repository_by_blob.insert((registry.clone(), digest.clone()), repository.clone());
        state.blobs.insert((registry.clone(), repository.clone(), digest.clone()), ());
    }

    /// Removes a wrong entry, in this process and in the index.
    pub(crate) async fn forget_blob(&self, registry: &RegistryName, repository: &RepositoryName, digest: &Digest) {
        self.remove_blob(registry, repository, digest);
        if let Some(index) = &self.index {
            let _ = index.forget_blob(&RepositoryLocator::in_registry(registry.clone(), repository), digest).await;
        }
    }

    fn remove_blob(&self, registry: &RegistryName, repository: &RepositoryName, digest: &Digest) {
        let mut state = self.state();
        state.blobs.remove(&(registry.clone(), repository.clone(), digest.clone()));
        let key = (registry.clone(), digest.clone());
        if state.repository_by_blob.get(&key).is_some_and(|home| home == repository) {
            state.repository_by_blob.remove(&key);
        }
    }

    /// Whether the source repository is known to have a blob, or the blob is known to be public.
    pub(crate) async fn is_proved(&self, source: &RepositoryLocator, digest: &Digest) -> bool {
        let proofs = [BlobProof::for_repository(source, digest), BlobProof::for_public_blob(digest)];
        {
            let mut state = self.state();
            if proofs.iter().any(|proof| state.proofs.get(proof).is_some_and(|at| at.elapsed() < PROOF_TTL)) {
                return true;
            }
        }
        // If the store has no answer, the source is asked.
        let Some(index) = &self.index else { return false };
        index.check_proofs(&proofs).await.is_ok_and(|found| found.contains(&true))
    }

    /// Records the proof that a source repository has a blob. `is_public`: the blob was read without credentials from a
    /// public address.
    pub(crate) fn record_proof(&self, source: &RepositoryLocator, digest: &Digest, is_public: bool) -> BlobProof {
        let proof = match is_public {
            true => BlobProof::for_public_blob(digest),
            false => BlobProof::for_repository(source, digest),
        };
        self.state().proofs.insert(proof, Instant::now());
        proof
    }

    /// Shares proofs with other and later processes.
    pub(crate) async fn share_proofs(&self, proofs: &[BlobProof]) {
        if let Some(index) = self.index.as_ref().filter(|_| !proofs.is_empty()) {
            // A lost proof is requested again.
            let _ = index.record_proofs(proofs).await;
        }
    }

    /// Whether mounts tell what the registry has: determined once, by the first caller.
    pub(crate) fn mount_support(&self, registry: &RegistryName) -> Arc<OnceCell<bool>> {
        self.state().mount_support.entry(registry.clone()).or_default().clone()
    }

    /// Whether a manifest copied from this source is complete in the repository. Another source has to prove its
    /// content.
    pub(crate) fn has_manifest(
        &self,
        registry: &RegistryName,
        repository: &RepositoryName,
        digest: &Digest,
        source: Option<&RepositoryLocator>,
    ) -> bool {
        let key = (registry.clone(), repository.clone(), digest.clone());
        self.state().manifests.get(&key).is_some_and(|known_source| known_source.as_ref() == source)
    }

    pub(crate) fn add_manifest(
        &self,
        registry: &RegistryName,
        repository: &RepositoryName,
        digest: &Digest,
        source: Option<&RepositoryLocator>,
    ) {
        self.state().manifests.insert((registry.clone(), repository.clone(), digest.clone()), source.cloned());
    }

    pub(crate) fn forget_manifest(&self, registry: &RegistryName, repository: &RepositoryName, digest: &Digest) {
        self.state().manifests.remove(&(registry.clone(), repository.clone(), digest.clone()));
    }

    /// Acquires the lease of a blob transfer to the registry, waiting for other workers. Returns `None` if another
    /// worker has transferred the blob, or if the store fails: transferring a blob twice is harmless.
    pub(crate) async fn lease_blob(
        &self,
        registry: &RegistryName,
        digest: &Digest,
        cancel: &CancellationToken,
    ) -> Option<LeaseGuard> {
        let (index, (leases, holder)) = (self.index.as_ref()?, self.leases.as_ref()?);
        let endpoint = Endpoint::Registry(registry.clone());
        let name = format!("blob:{registry}/{digest}");
        let holder = unique_holder(holder);
        loop {
            let homes = index.find_blobs(&endpoint, std::slice::from_ref(digest)).await.ok()?;
            if homes.into_iter().flatten().next().is_some() {
                return None;
            }
            if let TryAcquireResult::Acquired(lease) =
                LeaseGuard::try_acquire(leases.clone(), &name, &holder, LEASE_TTL).await.ok()?
            {
                return Some(lease);
            }
            tokio::select! {
                () = tokio::time::sleep(random_between(BLOB_LEASE_POLL_INTERVAL)) => {}
                () = cancel.cancelled() => return None,
            }
        }
    }

    /// Acquires the lease of a tag shared by several images. Returns `None` without other workers. A store failure is
    /// an error: concurrent writes would lose updates.
    pub(crate) async fn lease_tag(
        &self,
        registry: &RegistryName,
        repository: &RepositoryName,
        tag: &Tag,
        cancel: &CancellationToken,
    ) -> Result<Option<LeaseGuard>> {
        let Some((leases, holder)) = self.leases.as_ref() else { return Ok(None) };
        let tag_name = format!("{registry}/{repository}:{tag}");
        // Shorter than for a blob: the lease covers only a few requests.
        let poll_interval = random_between(BLOB_LEASE_POLL_INTERVAL) / 4;
        let (name, holder) = (tag_lease_name(&tag_name), unique_holder(holder));
        let terms = (LEASE_TTL, poll_interval);
        let operation = format!("writing {tag_name}");
        LeaseGuard::acquire(leases.clone(), (&name, &holder), terms, cancel, &operation).await.map(Some)
    }

    /// Waits until no other task of this process is transferring the blob to the registry; others wait until the guard
    /// is dropped. Never acquire a second guard while holding one.
    pub(crate) async fn single_flight(
        &self,
        registry: &RegistryName,
        digest: &Digest,
    ) -> tokio::sync::OwnedMutexGuard<()> {
        let lock = {
            let mut state = self.state();
            // Drop locks that nobody holds or waits for.
            if state.in_flight_blobs.len() > 1024 {
                state.in_flight_blobs.retain(|_, lock| Arc::strong_count(lock) > 1);
            }
            state.in_flight_blobs.entry((registry.clone(), digest.clone())).or_default().clone()
        };
        lock.lock_owned().await
    }
}

/// Returns a holder name unique to each use, so a late release of one lease cannot end a later one.
fn unique_holder(holder: &str) -> Arc<str> {
    static USES: AtomicU64 = AtomicU64::new(0);
    format!("{holder}#{}", USES.fetch_add(1, Ordering::Relaxed)).into()
}

fn random_between((min, max): (Duration, Duration)) -> Duration {
    rand::rng().random_range(min..max)
}

impl std::fmt::Debug for TargetCache {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Known")
    }
}

/// Set of digests that can be filled concurrently.
#[derive(Debug, Default)]
pub(crate) struct DigestSet(Mutex<HashSet<Digest>>);

impl DigestSet {
    /// Inserts a digest; returns whether it is new.
    pub(crate) fn insert(&self, digest: &Digest) -> bool {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).insert(digest.clone())
    }

    /// Whether the set contains a digest.
    pub(crate) fn contains(&self, digest: &Digest) -> bool {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).contains(digest)
    }
}

#[cfg(test)]
mod tests {
    use imgsync_store::{SqliteStore, SystemClock};

    use super::*;

    #[tokio::test]
    async fn a_proof_is_of_one_source_unless_anybody_can_read_the_blob() {
        let home = |name: &str| RepositoryLocator::in_registry("s.example".parse().unwrap(), &name.parse().unwrap());
        let (private, public) = (Digest::sha256(b"private"), Digest::sha256(b"public"));
        let known = TargetCache::default();
        known.record_proof(&home("one"), &private, false);
        known.record_proof(&home("one"), &public, true);
        assert!(known.is_proved(&home("one"), &private).await && !known.is_proved(&home("two"), &private).await);
        assert!(known.is_proved(&home("two"), &public).await);
    }

    #[test]
    fn a_manifest_is_cached_for_the_source_it_was_copied_from() {
        let home = |name: &str| RepositoryLocator::in_registry("s.example".parse().unwrap(), &name.parse().unwrap());
        let (registry, name) = ("r.example".parse().unwrap(), "a".parse().unwrap());
        let (digest, known) = (Digest::sha256(b"x"), TargetCache::default());
        known.add_manifest(&registry, &name, &digest, Some(&home("one")));
        assert!(known.has_manifest(&registry, &name, &digest, Some(&home("one"))));
        assert!(!known.has_manifest(&registry, &name, &digest, Some(&home("two"))));
    }

    #[tokio::test]
    async fn other_processes_know_of_blobs_that_were_shared_and_of_none_that_is_missing() {
        let (registry, name) = ("r.example".parse().unwrap(), "a".parse().unwrap());
        let blobs = [b"x", b"y", b"z"].map(|bytes| Digest::sha256(bytes));
        let store = SqliteStore::in_memory(Arc::new(SystemClock)).await.unwrap();
        let [known, of_another] = [0, 1].map(|_| TargetCache::with_index(Arc::new(store.clone())));
        for blob in &blobs {
            known.record_blob(&registry, &name, blob);
        }
        known.forget_blob(&registry, &name, &blobs[1]).await;
        let found = async || {
            let found = blobs.iter().map(|blob| of_another.repository_with_blob(&registry, blob));
            futures_util::future::join_all(found).await.iter().map(Option::is_some).collect::<Vec<_>>()
        };
        assert_eq!(found().await, [false, false, false], "not shared yet");
        known.share_blobs(&registry, &name, &blobs).await;
        assert_eq!(found().await, [true, false, true]);
    }

    #[tokio::test]
    async fn a_blob_is_found_by_registry_and_forgotten_where_it_was_wrong() {
        let (registry, one, two) = ("r.example".parse().unwrap(), "a/one".parse().unwrap(), "a/two".parse().unwrap());
        let digest = Digest::sha256(b"x");
        let known = TargetCache::default();
        known.record_blob(&registry, &one, &digest);
        assert_eq!(known.repository_with_blob(&registry, &digest).await, Some(one.clone()));
        assert!(!known.has_blob(&registry, &two, &digest));
        known.forget_blob(&registry, &one, &digest).await;
        assert_eq!(known.repository_with_blob(&registry, &digest).await, None);
    }
}
