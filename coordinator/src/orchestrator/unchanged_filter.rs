//! Filters out tasks whose target is already up to date, according to the listings and the digest cache.

use std::collections::{HashMap, HashSet};
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use futures_util::StreamExt as _;
use imgsync_model::batch::{
    BatchOptions, Endpoint, ForeignLayers, RepositoryLocator, RuleOptions, TaskResult, TaskSpec,
};
use imgsync_model::naming::flatten_name;
use imgsync_oci::error::{ErrorKind, Result};
use imgsync_oci::{Digest, Tag};
use imgsync_registry::{Access, Client, Context, ManifestRef, Repository, TrafficCounters};
use imgsync_store::{CacheScope, CachedTag, age, is_in_future};
use jiff::Timestamp;

use super::backend::Backend;
use super::digest_tags::DigestTagIndex;
use crate::discovery::find_tags;
use crate::presets;

/// Maximum number of cached tags that a run checks at the target.
const MAX_SPOT_CHECKS: usize = 50;
/// Maximum number of these per repository.
const MAX_SPOT_CHECKS_PER_REPOSITORY: usize = 10;
/// Maximum number of concurrent spot checks.
const MAX_CONCURRENT_SPOT_CHECKS: usize = 10;

/// Filters unchanged tasks, for one run.
pub(super) struct UnchangedFilter {
    backend: Backend,
    client: Client,
    context: Context,
    options: BatchOptions,
    counters: Arc<TrafficCounters>,
    /// Manifest directory of imgsync 2.1.
    legacy_manifests: Option<PathBuf>,
    spot_checks_left: AtomicUsize,
    /// Whether the run has warned of future times in the digest cache.
    warned_of_future: AtomicBool,
    targets: Mutex<HashMap<Endpoint, Arc<TargetState>>>,
}

/// State of a target in this run.
#[derive(Debug, Default)]
struct TargetState {
    /// A spot check failed: everything is checked again.
    is_invalidated: AtomicBool,
    /// Its listings have no digests.
    lists_no_digests: AtomicBool,
}

/// Result of looking up tasks: those unchanged, and those with new digest tags.
struct LookupResult {
    unchanged: Vec<usize>,
    with_new_digest_tags: HashSet<usize>,
}

impl UnchangedFilter {
    pub(super) fn new(
        backend: &Backend,
        client: &Client,
        context: &Context,
        options: BatchOptions,
        legacy_manifests: Option<PathBuf>,
        counters: Arc<TrafficCounters>,
    ) -> UnchangedFilter {
        UnchangedFilter {
            backend: backend.clone(),
            client: client.clone(),
            context: context.clone(),
            options,
            counters,
            legacy_manifests,
            spot_checks_left: AtomicUsize::new(MAX_SPOT_CHECKS),
            warned_of_future: AtomicBool::new(false),
            targets: Mutex::default(),
        }
    }

    /// Marks the tasks of one source repository that are unchanged.
    pub(super) async fn filter(
        &self,
        tasks: Vec<TaskSpec>,
        digest_tags: &DigestTagIndex,
    ) -> Result<Vec<(TaskSpec, Option<TaskResult>)>> {
        let mut results: Vec<(TaskSpec, Option<TaskResult>)> = tasks.into_iter().map(|task| (task, None)).collect();
        if self.options.force || self.options.prime || self.options.verify.is_some() {
            return Ok(results);
        }
        let mut groups: HashMap<(u32, Arc<RepositoryLocator>), Vec<usize>> = HashMap::new();
        for (at, (task, _)) in results.iter().enumerate() {
            groups.entry((task.rule, task.target.repository.clone())).or_default().push(at);
        }
        let mut groups: Vec<_> = groups.into_iter().collect();
        groups.sort_by(|a, b| a.1.cmp(&b.1));
        for ((rule, home), members) in groups {
            let rule = self.options.rule(rule)?.clone();
            let LookupResult { unchanged, with_new_digest_tags } =
                self.look_up_repository(&rule, &home, &results, &members, digest_tags).await?;
            for at in unchanged {
                results[at].1 = Some(TaskResult::Unchanged);
            }
            for at in with_new_digest_tags {
                results[at].0.digest_tags = results[at].0.digest_tags.with_new();
            }
        }
        Ok(results)
    }

    /// Returns the digest of each task's source tag, as far as the listing or the digest cache has it.
    pub(super) async fn source_digests(&self, tasks: &[TaskSpec]) -> Result<Vec<Option<Digest>>> {
        let mut digests: Vec<Option<Digest>> = tasks.iter().map(|task| task.digest.clone()).collect();
        let mut groups: HashMap<(u32, &RepositoryLocator), Vec<usize>> = HashMap::new();
        for (at, task) in tasks.iter().enumerate().filter(|(_, task)| task.digest.is_none()) {
            groups.entry((task.rule, &*task.target.repository)).or_default().push(at);
        }
        for ((rule, repository), members) in groups {
            let options = self.options.rule(rule)?.fingerprint().into();
            let scope = CacheScope { repository: repository.clone(), options };
            let tags: Vec<Tag> = members.iter().map(|at| tasks[*at].target.tag.clone()).collect();
            for (at, known) in members.into_iter().zip(self.backend.store.cached_tags(&scope, &tags).await?) {
                digests[at] = known.map(|known| known.source);
            }
        }
        Ok(digests)
    }

    /// Finds the tasks of one target repository that are unchanged, and those with new digest tags.
    async fn look_up_repository(
        &self,
        rule: &RuleOptions,
        home: &Arc<RepositoryLocator>,
        tasks: &[(TaskSpec, Option<TaskResult>)],
        members: &[usize],
        digest_tags: &DigestTagIndex,
    ) -> Result<LookupResult> {
        let target = self.target_state(home.endpoint());
        let scope = CacheScope { repository: (**home).clone(), options: rule.fingerprint().into() };
        let tags: Vec<Tag> = members.iter().map(|at| tasks[*at].0.target.tag.clone()).collect();
        let mut known = self.backend.store.cached_tags(&scope, &tags).await?;
        let is_plain = rule.platforms.is_empty() && rule.policy.is_none();
        if is_plain && rule.foreign_layers == ForeignLayers::Keep {
            self.import_legacy_manifests(&scope, tasks, members, &mut known).await?;
        }
        let with_new_digest_tags = self.find_new_digest_tags(rule, &scope, tasks, members, &known, digest_tags).await?;
        let now = self.backend.clock.now();
        self.warn_of_future_times(&known, now);
        let immutable = rule.immutable()?;
        let (mut cached, mut doubtful, mut frozen) = (Vec::new(), Vec::new(), Vec::new());
        for ((at, tag), known) in members.iter().copied().zip(&tags).zip(known) {
            let (task, _) = &tasks[at];
            let never_moves = immutable.iter().any(|pattern| pattern.matches(task.source.tag.as_str()));
            match known {
                // Never checked again. If the tag has moved all the same, its task reports that.
                Some(known) if never_moves => match task.digest.as_ref().is_none_or(|listed| *listed == known.source) {
                    true => frozen.push(at),
                    false => doubtful.push((at, Some(known))),
                },
                Some(known) if rule.is_cache_fresh(tag.as_str(), age(known.seen_at, now)) => cached.push((at, known)),
                known => doubtful.push((at, known)),
            }
        }
        if !self.spot_checks_pass(home, tasks, &cached).await {
            target.is_invalidated.store(true, Ordering::Relaxed);
            let forgotten = self.backend.store.forget_endpoint(home.endpoint()).await?;
            self.context.warn(format!(
                "{}: a spot check failed; dropped the {forgotten} cached tags of this target and checking them again",
                home.endpoint()
            ));
        }
        if target.is_invalidated.load(Ordering::Relaxed) {
            doubtful.extend(cached.drain(..).map(|(at, _)| (at, None)));
        }
        // A listed digest that differs from the cached one is to be copied; a tag without a listed digest is checked by
        // its task.
        let mut unchanged = cached;
        unchanged.retain(|(at, known)| {
            !with_new_digest_tags.contains(at) && tasks[*at].0.digest.as_ref() == Some(&known.source)
        });
        doubtful.retain(|(at, _)| !with_new_digest_tags.contains(at) && tasks[*at].0.digest.is_some());
        frozen.retain(|at| !with_new_digest_tags.contains(at));
        let mut results = self.with_fresh_referrers(rule, &scope, tasks, unchanged).await?;
        results.extend(frozen);
        results.extend(self.filter_by_listing(rule, &scope, &target, tasks, doubtful).await?);
        Ok(LookupResult { unchanged: results, with_new_digest_tags })
    }

    /// Warns once per run of cache entries with times in the future, which do not count.
    fn warn_of_future_times(&self, known: &[Option<CachedTag>], now: Timestamp) {
        let seen = known.iter().flatten().flat_map(|known| [Some(known.seen_at), known.referrers_at]).flatten();
        let Some(latest) = seen.filter(|at| is_in_future(*at, now)).max() else { return };
        if !self.warned_of_future.swap(true, Ordering::Relaxed) {
            self.context.warn(format!(
                "the digest cache has times in the future, such as {}: a clock was or is wrong; checking these tags \
                 again",
                latest.strftime("%Y-%m-%d")
            ));
        }
    }

    /// Returns the unchanged tasks whose referrers are fresh.
    async fn with_fresh_referrers(
        &self,
        rule: &RuleOptions,
        scope: &CacheScope,
        tasks: &[(TaskSpec, Option<TaskResult>)],
        unchanged: Vec<(usize, CachedTag)>,
    ) -> Result<Vec<usize>> {
        let now = self.backend.clock.now();
        let (mut results, mut cache_updates) = (Vec::new(), Vec::new());
        for (at, known) in unchanged {
            let tag = &tasks[at].0.target.tag;
            match known.referrers_at {
                Some(asked) if rule.referrers.copies_any() => {
                    if rule.are_referrers_fresh(tag.as_str(), age(asked, now)) {
                        results.push(at);
                    }
                }
                None if rule.referrers.copies_any() => {
                    results.push(at);
                    let referrers_at = initial_referrers_time(rule, tag, now);
                    cache_updates.push((tag.clone(), CachedTag { referrers_at, ..known }));
                }
                _ => results.push(at),
            }
        }
        if !cache_updates.is_empty() {
            self.backend.store.cache_tags(scope, cache_updates).await?;
        }
        Ok(results)
    }

    /// Finds images whose digest tags in the source listing differ from the cached ones. An image filtered to some
    /// platforms is another image, and has none.
    async fn find_new_digest_tags(
        &self,
        rule: &RuleOptions,
        scope: &CacheScope,
        tasks: &[(TaskSpec, Option<TaskResult>)],
        members: &[usize],
        known: &[Option<CachedTag>],
        digest_tags: &DigestTagIndex,
    ) -> Result<HashSet<usize>> {
        let mut news = HashSet::new();
        if digest_tags.is_empty() || rule.filters_platforms() || !rule.referrers.copies_any() {
            return Ok(news);
        }
        let (mut wanted, mut tags) = (Vec::new(), Vec::new());
        for (at, known) in members.iter().zip(known) {
            let image = tasks[*at].0.digest.as_ref().or(known.as_ref().map(|known| &known.source));
            for (kind, digest) in image.map_or(&[][..], |image| digest_tags.for_image(image)) {
                let Some(image) = image else { continue };
                wanted.push((*at, digest.as_ref()));
                tags.push(kind.tag_for(image));
            }
        }
        if tags.is_empty() {
            return Ok(news);
        }
        let seen = self.backend.store.cached_tags(scope, &tags).await?;
        for ((at, digest), seen) in wanted.into_iter().zip(seen) {
            if seen.is_none_or(|seen| digest.is_some_and(|digest| seen.source != *digest)) {
                news.insert(at);
            }
        }
        Ok(news)
    }

    /// Imports the manifest files of imgsync 2.1 for tags that are not cached: one file per tag under the source name,
    /// with the manifest synced last. Where its bytes are unmodified, their digest is that of the target.
    async fn import_legacy_manifests(
        &self,
        scope: &CacheScope,
        tasks: &[(TaskSpec, Option<TaskResult>)],
        members: &[usize],
        known: &mut [Option<CachedTag>],
    ) -> Result<()> {
        let Some(folder) = &self.legacy_manifests else { return Ok(()) };
        let mut cache_updates = Vec::new();
        for (at, known) in members.iter().zip(known).filter(|(_, known)| known.is_none()) {
            let (task, _) = &tasks[*at];
            let Some((registry, path)) = task.source.repository.registry() else { continue };
            let of = |name: &str| folder.join(name).join(format!("{}.json", task.source.tag));
            let name = format!("{registry}/{path}");
            let mut file = of(&name);
            // Files of a repository that has moved are under its former name, which the target's name contains.
            if let Some(original) = presets::original_name(&name)
                && let Some((_, target)) = task.target.repository.registry()
                && target.basename() == flatten_name(&original)
            {
                file = of(&original);
            }
            let Ok(bytes) = tokio::fs::read(&file).await else { continue };
            let synced = tokio::fs::metadata(&file).await.ok().and_then(|metadata| metadata.modified().ok());
            let Some(seen_at) = synced.and_then(|time| Timestamp::try_from(time).ok()) else { continue };
            let digest = Digest::sha256(&bytes);
            let hint = CachedTag { source: digest.clone(), target: digest, seen_at, referrers_at: None };
            cache_updates.push((task.target.tag.clone(), hint.clone()));
            *known = Some(hint);
        }
        self.backend.store.cache_tags(scope, cache_updates).await
    }

    /// Checks a sample of the cached tags at the target. Returns false if one of them is missing or different.
    async fn spot_checks_pass(
        &self,
        home: &Arc<RepositoryLocator>,
        tasks: &[(TaskSpec, Option<TaskResult>)],
        cached: &[(usize, CachedTag)],
    ) -> bool {
        let Some(repository) = self.target_repository(home) else { return true };
        let wanted = (cached.len() / 100).clamp(1, MAX_SPOT_CHECKS_PER_REPOSITORY).min(cached.len());
        let mut granted = 0;
        let _ = self.spot_checks_left.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |left| {
            granted = left.min(wanted);
            Some(left - granted)
        });
        let chosen: Vec<_> = rand::seq::index::sample(&mut rand::rng(), cached.len(), granted)
            .into_iter()
            .map(|at| (tasks[cached[at].0].0.target.tag.clone(), cached[at].1.target.clone()))
            .collect();
        let asked = futures_util::stream::iter(chosen)
            .map(|(tag, digest)| {
                let repository = &repository;
                async move {
                    match repository.head_manifest(&ManifestRef::Tag(tag)).await {
                        Ok(Some(head)) => head.digest == digest,
                        Ok(None) => false,
                        // A target that does not respond says nothing about its tags; the tasks will report that.
                        Err(_) => true,
                    }
                }
            })
            .buffer_unordered(MAX_CONCURRENT_SPOT_CHECKS)
            .collect::<Vec<bool>>()
            .await;
        asked.into_iter().all(|lives| lives)
    }

    /// Finds unchanged tags in the target's own listing if that has digests, with one request per page.
    async fn filter_by_listing(
        &self,
        rule: &RuleOptions,
        scope: &CacheScope,
        target: &TargetState,
        tasks: &[(TaskSpec, Option<TaskResult>)],
        doubtful: Vec<(usize, Option<CachedTag>)>,
    ) -> Result<Vec<usize>> {
        // For one tag a HEAD costs as little, and tells more.
        if doubtful.len() < 2 || target.lists_no_digests.load(Ordering::Relaxed) {
            return Ok(Vec::new());
        }
        let Some(repository) = self.target_repository(&scope.repository) else { return Ok(Vec::new()) };
        let doubtful = self.exclude_partial(rule, scope, tasks, doubtful).await?;
        let wanted: Vec<&str> = doubtful.iter().map(|(at, _)| tasks[*at].0.target.tag.as_str()).collect();
        let listing = match find_tags(&repository, &wanted).await {
            Ok(Some(listing)) => listing,
            Ok(None) => {
                target.lists_no_digests.store(true, Ordering::Relaxed);
                return Ok(Vec::new());
            }
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(Vec::new()),
            Err(error) => {
                self.context.warn(format!("{error}; checking its tags one by one"));
                return Ok(Vec::new());
            }
        };
        let seen_at = self.backend.clock.now();
        let (mut results, mut cache_updates) = (Vec::new(), Vec::new());
        for (at, known) in doubtful {
            let (task, _) = &tasks[at];
            let (Some(source), Some(there)) = (&task.digest, listing.digest(task.target.tag.as_str())) else {
                continue;
            };
            // A platform selection has another digest than its source, which only the cache knows.
            let wanted: Option<&Digest> = match rule.filters_platforms() {
                false => Some(source),
                true => known.as_ref().filter(|known| known.source == *source).map(|known| &known.target),
            };
            if wanted == Some(there) {
                results.push(at);
                let asked = known.as_ref().filter(|known| known.source == *source).and_then(|known| known.referrers_at);
                let referrers_at = asked.or_else(|| initial_referrers_time(rule, &task.target.tag, seen_at));
                let known = CachedTag { source: source.clone(), target: there.clone(), seen_at, referrers_at };
                cache_updates.push((task.target.tag.clone(), known));
            }
        }
        self.backend.store.cache_tags(scope, cache_updates).await?;
        Ok(results)
    }

    /// Excludes tags that may be incomplete or refused although the digest matches, because they were copied with other
    /// options.
    async fn exclude_partial(
        &self,
        rule: &RuleOptions,
        scope: &CacheScope,
        tasks: &[(TaskSpec, Option<TaskResult>)],
        mut doubtful: Vec<(usize, Option<CachedTag>)>,
    ) -> Result<Vec<(usize, Option<CachedTag>)>> {
        if rule.foreign_layers == ForeignLayers::Copy {
            doubtful.retain(|(_, known)| known.is_some());
        }
        if rule.policy.is_some() {
            // The target may have an image that the policy has not accepted.
            let is_accepted = |at: usize, known: &CachedTag| tasks[at].0.digest.as_ref() == Some(&known.source);
            doubtful.retain(|(at, known)| known.as_ref().is_some_and(|known| is_accepted(*at, known)));
        }
        let unknown: Vec<usize> = doubtful.iter().filter(|(_, known)| known.is_none()).map(|(at, _)| *at).collect();
        if unknown.is_empty() || rule.filters_platforms() {
            return Ok(doubtful);
        }
        let tags: Vec<Tag> = unknown.iter().map(|at| tasks[*at].0.target.tag.clone()).collect();
        let marks = self.backend.store.cached_tags(&scope.partial_images(), &tags).await?;
        let partial: HashSet<usize> =
            unknown.into_iter().zip(marks).filter(|(_, mark)| mark.is_some()).map(|(at, _)| at).collect();
        doubtful.retain(|(at, _)| !partial.contains(at));
        Ok(doubtful)
    }

    fn target_repository(&self, home: &RepositoryLocator) -> Option<Repository> {
        let (registry, path) = home.registry()?;
        self.client.repository(registry, &path, Access::Push, &self.context, &self.counters).ok()
    }

    fn target_state(&self, end: &Endpoint) -> Arc<TargetState> {
        self.targets.lock().unwrap_or_else(PoisonError::into_inner).entry(end.clone()).or_default().clone()
    }
}

/// Returns the initial time of the last referrers check, for an image that never had one.
fn initial_referrers_time(rule: &RuleOptions, tag: &Tag, now: Timestamp) -> Option<Timestamp> {
    let wanted = rule.referrers.copies_any();
    wanted.then(|| now.checked_sub(rule.initial_referrers_age(tag.as_str())).unwrap_or(now))
}
