//! What is known to be at the targets, learnt by this process: which repository has a blob, and which manifests are
//! whole where. It saves requests and bytes; it is never needed for the result to be right.

use std::collections::{HashMap, HashSet};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use imgsync_common::batch::{End, Home};
use imgsync_common::error::Result;
use imgsync_common::generational::GenerationalCache;
use imgsync_common::image::{Digest, RegistryName, RepositoryName, Tag};
use imgsync_common::store::{BlobIndex, LEASE, LeaseGuard, Leased, Leases, PROOF_TTL, Proof};
use rand::Rng as _;
use tokio::sync::OnceCell;
use tokio_util::sync::CancellationToken;

/// How often the lease of a blob that another worker is moving is asked for again: a random time between these.
const POLL_INTERVAL: (Duration, Duration) = (Duration::from_millis(200), Duration::from_millis(800));
/// Entries of each kind that are kept, so that memory does not grow with the number of tags.
const CAPACITY: usize = 100_000;

type BlobKey = (RegistryName, Digest);
type PlaceKey = (RegistryName, RepositoryName, Digest);

/// See the module.
#[derive(Default)]
pub(crate) struct Known {
    state: Mutex<State>,
    /// What other processes, and earlier ones, have learnt of blobs.
    index: Option<Arc<dyn BlobIndex>>,
    /// Who moves what, and under which name this process does.
    leases: Option<(Arc<dyn Leases>, Arc<str>)>,
}

#[derive(Debug)]
struct State {
    /// For a blob of a registry, a repository that has it.
    homes: GenerationalCache<BlobKey, RepositoryName>,
    /// Blobs that are in a repository.
    blobs: GenerationalCache<PlaceKey, ()>,
    /// Manifests that are in a repository, with all that they need, and the source that brought them.
    manifests: GenerationalCache<PlaceKey, Option<Home>>,
    /// Which source repositories have shown that they hold a blob, and which blobs anybody can read; and when.
    proofs: GenerationalCache<Proof, Instant>,
    /// Whether a registry answers a mount of a blob that it has with 201.
    mounts: HashMap<RegistryName, Arc<OnceCell<bool>>>,
    /// Blobs that are on their way to a registry.
    flights: HashMap<BlobKey, Arc<tokio::sync::Mutex<()>>>,
}

impl Default for State {
    fn default() -> State {
        State {
            homes: GenerationalCache::new(CAPACITY),
            blobs: GenerationalCache::new(CAPACITY),
            manifests: GenerationalCache::new(CAPACITY),
            proofs: GenerationalCache::new(CAPACITY),
            mounts: HashMap::new(),
            flights: HashMap::new(),
        }
    }
}

impl Known {
    /// What is known to this process, and to others through an index.
    pub(crate) fn shared(index: Arc<dyn BlobIndex>) -> Known {
        Known { index: Some(index), ..Known::default() }
    }

    /// The same, where others work at the same time: what is moved by one is waited for by all.
    pub(crate) fn among_workers(index: Arc<dyn BlobIndex>, leases: Arc<dyn Leases>, holder: &str) -> Known {
        Known { index: Some(index), leases: Some((leases, holder.into())), ..Known::default() }
    }

    fn state(&self) -> std::sync::MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn has_blob(&self, registry: &RegistryName, repository: &RepositoryName, digest: &Digest) -> bool {
        self.state().blobs.get(&(registry.clone(), repository.clone(), digest.clone())).is_some()
    }

    /// A repository of the registry that has the blob.
    pub(crate) async fn home_of(&self, registry: &RegistryName, digest: &Digest) -> Option<RepositoryName> {
        if let Some(home) = self.state().homes.get(&(registry.clone(), digest.clone())) {
            return Some(home.clone());
        }
        // A hint that cannot be had is done without.
        let end = End::Registry(registry.clone());
        let found = self.index.as_ref()?.blob_homes(&end, std::slice::from_ref(digest)).await.ok()?;
        found.into_iter().next().flatten().and_then(|home| home.path().parse().ok())
    }

    /// The blob is in the repository, for this process and others to know.
    pub(crate) async fn learn_blob(&self, registry: &RegistryName, repository: &RepositoryName, digest: &Digest) {
        self.add_blob(registry, repository, digest);
        if let Some(index) = &self.index {
            let _ =
                index.learn_blobs(&Home::in_registry(registry.clone(), repository), std::slice::from_ref(digest)).await;
        }
    }

    fn add_blob(&self, registry: &RegistryName, repository: &RepositoryName, digest: &Digest) {
        let mut state = self.state();
        state.homes.insert((registry.clone(), digest.clone()), repository.clone());
        state.blobs.insert((registry.clone(), repository.clone(), digest.clone()), ());
    }

    /// What was believed of a blob was wrong.
    pub(crate) async fn forget_blob(&self, registry: &RegistryName, repository: &RepositoryName, digest: &Digest) {
        self.drop_blob(registry, repository, digest);
        if let Some(index) = &self.index {
            let _ = index.forget_blob(&Home::in_registry(registry.clone(), repository), digest).await;
        }
    }

    fn drop_blob(&self, registry: &RegistryName, repository: &RepositoryName, digest: &Digest) {
        let mut state = self.state();
        state.blobs.remove(&(registry.clone(), repository.clone(), digest.clone()));
        let key = (registry.clone(), digest.clone());
        if state.homes.get(&key).is_some_and(|home| home == repository) {
            state.homes.remove(&key);
        }
    }

    /// Whether a source repository is known to hold a blob, or anybody to be able to read it.
    pub(crate) async fn is_proved(&self, source: &Home, digest: &Digest) -> bool {
        let proofs = [Proof::held_by(source, digest), Proof::public(digest)];
        {
            let mut state = self.state();
            if proofs.iter().any(|proof| state.proofs.get(proof).is_some_and(|at| at.elapsed() < PROOF_TTL)) {
                return true;
            }
        }
        // What the store does not say is asked for at the source.
        let Some(index) = &self.index else { return false };
        index.proofs(&proofs).await.is_ok_and(|found| found.contains(&true))
    }

    /// A source repository has shown that it holds a blob; `is_public`: by giving its bytes to somebody without credentials,
    /// from a public address.
    pub(crate) fn learn_proof(&self, source: &Home, digest: &Digest, is_public: bool) -> Proof {
        let proof = match is_public {
            true => Proof::public(digest),
            false => Proof::held_by(source, digest),
        };
        self.state().proofs.insert(proof, Instant::now());
        proof
    }

    /// Has other processes, and later ones, know of proofs too.
    pub(crate) async fn share_proofs(&self, proofs: &[Proof]) {
        if let Some(index) = &self.index {
            // One that is lost is asked for again.
            let _ = index.learn_proofs(proofs).await;
        }
    }

    /// Whether mounts tell what the registry has: filled by whoever finds out first, and never changed.
    pub(crate) fn mounts(&self, registry: &RegistryName) -> Arc<OnceCell<bool>> {
        self.state().mounts.entry(registry.clone()).or_default().clone()
    }

    /// Whether a manifest is there as a whole, as this source has it. Another source has to show what it has.
    pub(crate) fn has_manifest(
        &self,
        registry: &RegistryName,
        repository: &RepositoryName,
        digest: &Digest,
        source: Option<&Home>,
    ) -> bool {
        let key = (registry.clone(), repository.clone(), digest.clone());
        self.state().manifests.get(&key).is_some_and(|brought_by| brought_by.as_ref() == source)
    }

    pub(crate) fn add_manifest(
        &self,
        registry: &RegistryName,
        repository: &RepositoryName,
        digest: &Digest,
        source: Option<&Home>,
    ) {
        self.state().manifests.insert((registry.clone(), repository.clone(), digest.clone()), source.cloned());
    }

    pub(crate) fn forget_manifest(&self, registry: &RegistryName, repository: &RepositoryName, digest: &Digest) {
        self.state().manifests.remove(&(registry.clone(), repository.clone(), digest.clone()));
    }

    /// Waits until no other worker is moving the blob to the registry, or one has done so: then it need not be leased. The
    /// lease tells the others to wait. A store that does not answer stops nobody: to move a blob twice does no harm.
    pub(crate) async fn lease_blob(
        &self,
        registry: &RegistryName,
        digest: &Digest,
        cancel: &CancellationToken,
    ) -> Option<LeaseGuard> {
        let (index, (leases, holder)) = (self.index.as_ref()?, self.leases.as_ref()?);
        let end = End::Registry(registry.clone());
        let name = format!("blob:{registry}/{digest}");
        let holder = use_of(holder);
        loop {
            let homes = index.blob_homes(&end, std::slice::from_ref(digest)).await.ok()?;
            if homes.into_iter().flatten().next().is_some() {
                return None;
            }
            if let Leased::Acquired(lease) =
                LeaseGuard::try_acquire(leases.clone(), &name, &holder, LEASE).await.ok()?
            {
                return Some(lease);
            }
            tokio::select! {
                () = tokio::time::sleep(random_between(POLL_INTERVAL)) => {}
                () = cancel.cancelled() => return None,
            }
        }
    }

    /// Acquires the lease of a tag that several images share. None where there are no other workers. A store that does not
    /// answer is an error: what two write at once is lost for one.
    pub(crate) async fn lease_tag(
        &self,
        registry: &RegistryName,
        repository: &RepositoryName,
        tag: &Tag,
        cancel: &CancellationToken,
    ) -> Result<Option<LeaseGuard>> {
        let Some((leases, holder)) = self.leases.as_ref() else { return Ok(None) };
        let place = format!("{registry}/{repository}:{tag}");
        // Sooner than for a blob: it is a matter of a few requests.
        let poll_interval = random_between(POLL_INTERVAL) / 4;
        let (name, holder) = (format!("tag:{place}"), use_of(holder));
        let terms = (LEASE, poll_interval);
        let tried = format!("writing {place}");
        LeaseGuard::acquire(leases.clone(), (&name, &holder), terms, cancel, &tried).await.map(Some)
    }

    /// Waits until nobody else in this process is moving the blob to the registry, and keeps others waiting until the
    /// guard is dropped. Never take a second one while holding one.
    pub(crate) async fn flight(&self, registry: &RegistryName, digest: &Digest) -> tokio::sync::OwnedMutexGuard<()> {
        let lock = {
            let mut state = self.state();
            // Those that nobody holds or waits for are of no more use.
            if state.flights.len() > 1024 {
                state.flights.retain(|_, lock| Arc::strong_count(lock) > 1);
            }
            state.flights.entry((registry.clone(), digest.clone())).or_default().clone()
        };
        lock.lock_owned().await
    }
}

/// Each use has a holder of its own: that one is let go late ends no later one.
fn use_of(holder: &str) -> Arc<str> {
    static USES: AtomicU64 = AtomicU64::new(0);
    format!("{holder}#{}", USES.fetch_add(1, Ordering::Relaxed)).into()
}

fn random_between((least, most): (Duration, Duration)) -> Duration {
    rand::rng().random_range(least..most)
}

impl std::fmt::Debug for Known {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Known")
    }
}

/// A set of digests that is filled from many places at once.
#[derive(Debug, Default)]
pub(crate) struct Seen(Mutex<HashSet<Digest>>);

impl Seen {
    /// Whether it was not seen before.
    pub(crate) fn first_time(&self, digest: &Digest) -> bool {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).insert(digest.clone())
    }

    /// Whether it was seen.
    pub(crate) fn has(&self, digest: &Digest) -> bool {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).contains(digest)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_proof_is_of_one_source_unless_anybody_can_read_the_blob() {
        let home = |name: &str| Home::in_registry("s.example".parse().unwrap(), &name.parse().unwrap());
        let (private, public) = (Digest::sha256(b"private"), Digest::sha256(b"public"));
        let known = Known::default();
        known.learn_proof(&home("one"), &private, false);
        known.learn_proof(&home("one"), &public, true);
        assert!(known.is_proved(&home("one"), &private).await && !known.is_proved(&home("two"), &private).await);
        assert!(known.is_proved(&home("two"), &public).await);
    }

    #[test]
    fn a_manifest_is_known_for_the_source_that_brought_it() {
        let home = |name: &str| Home::in_registry("s.example".parse().unwrap(), &name.parse().unwrap());
        let (registry, name) = ("r.example".parse().unwrap(), "a".parse().unwrap());
        let (digest, known) = (Digest::sha256(b"x"), Known::default());
        known.add_manifest(&registry, &name, &digest, Some(&home("one")));
        assert!(known.has_manifest(&registry, &name, &digest, Some(&home("one"))));
        assert!(!known.has_manifest(&registry, &name, &digest, Some(&home("two"))));
    }

    #[tokio::test]
    async fn a_blob_is_found_by_registry_and_forgotten_where_it_was_wrong() {
        let (registry, one, two) = ("r.example".parse().unwrap(), "a/one".parse().unwrap(), "a/two".parse().unwrap());
        let digest = Digest::sha256(b"x");
        let known = Known::default();
        known.learn_blob(&registry, &one, &digest).await;
        assert_eq!(known.home_of(&registry, &digest).await, Some(one.clone()));
        assert!(!known.has_blob(&registry, &two, &digest));
        known.forget_blob(&registry, &one, &digest).await;
        assert_eq!(known.home_of(&registry, &digest).await, None);
    }
}
