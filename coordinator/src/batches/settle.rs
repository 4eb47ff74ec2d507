//! Filters out tasks whose target is already up to date, according to the listings and the digest cache.

use std::collections::{HashMap, HashSet};
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use futures_util::StreamExt as _;
use imgsync_common::batch::{End, ForeignLayers, Home, Options, Planned, RuleOptions, Verdict};
use imgsync_common::error::{Class, Result};
use imgsync_common::image::{Digest, Tag};
use imgsync_common::naming::flat;
use imgsync_common::registry::{Access, Client, Context, ManifestRef, Repository, Tally};
use imgsync_common::store::{CacheScope, Known, age, is_ahead};
use jiff::Timestamp;

use super::companions::Companions;
use super::house::House;
use crate::enumerate::find;
use crate::presets;

/// Maximum number of cached tags that a run checks at the target.
const CANARIES: usize = 50;
/// Maximum number of these per repository.
const CANARIES_OF_ONE: usize = 10;
/// Maximum number of concurrent spot checks.
const CANARIES_AT_ONCE: usize = 10;

/// Filters unchanged tasks, for one run.
pub(super) struct Settler {
    house: House,
    client: Client,
    context: Context,
    options: Options,
    tally: Arc<Tally>,
    /// Manifest directory of imgsync 2.1.
    manifests: Option<PathBuf>,
    canaries: AtomicUsize,
    /// Whether the run has warned of future times in the digest cache.
    told_of_future: AtomicBool,
    targets: Mutex<HashMap<End, Arc<TargetState>>>,
}

/// State of a target in this run.
#[derive(Debug, Default)]
struct TargetState {
    /// A spot check failed: everything is checked again.
    distrusted: AtomicBool,
    /// Its listings have no digests.
    lists_no_digests: AtomicBool,
}

/// Result of looking up tasks: those unchanged, and those with new digest tags.
struct Looked {
    unchanged: Vec<usize>,
    news: HashSet<usize>,
}

impl Settler {
    pub(super) fn new(
        house: &House,
        client: &Client,
        context: &Context,
        options: Options,
        manifests: Option<PathBuf>,
        tally: Arc<Tally>,
    ) -> Settler {
        Settler {
            house: house.clone(),
            client: client.clone(),
            context: context.clone(),
            options,
            tally,
            manifests,
            canaries: AtomicUsize::new(CANARIES),
            told_of_future: AtomicBool::new(false),
            targets: Mutex::default(),
        }
    }

    /// Marks the tasks of one source repository that are unchanged.
    pub(super) async fn settle(
        &self,
        tasks: Vec<Planned>,
        companions: &Companions,
    ) -> Result<Vec<(Planned, Option<Verdict>)>> {
        let mut settled: Vec<(Planned, Option<Verdict>)> = tasks.into_iter().map(|task| (task, None)).collect();
        if self.options.force || self.options.prime || self.options.verify.is_some() {
            return Ok(settled);
        }
        let mut groups: HashMap<(u32, Arc<Home>), Vec<usize>> = HashMap::new();
        for (at, (task, _)) in settled.iter().enumerate() {
            groups.entry((task.rule, task.target.home.clone())).or_default().push(at);
        }
        let mut groups: Vec<_> = groups.into_iter().collect();
        groups.sort_by(|a, b| a.1.cmp(&b.1));
        for ((rule, home), members) in groups {
            let rule = self.options.rule(rule)?.clone();
            let Looked { unchanged, news } = self.look(&rule, &home, &settled, &members, companions).await?;
            for at in unchanged {
                settled[at].1 = Some(Verdict::Unchanged);
            }
            for at in news {
                settled[at].0.company = settled[at].0.company.with_news();
            }
        }
        Ok(settled)
    }

    /// Finds the tasks of one target repository that are unchanged, and those with new digest tags.
    async fn look(
        &self,
        rule: &RuleOptions,
        home: &Arc<Home>,
        tasks: &[(Planned, Option<Verdict>)],
        members: &[usize],
        companions: &Companions,
    ) -> Result<Looked> {
        let target = self.target(home.end());
        let scope = CacheScope { home: (**home).clone(), options: rule.fingerprint().into() };
        let tags: Vec<Tag> = members.iter().map(|at| tasks[*at].0.target.tag.clone()).collect();
        let mut known = self.house.store.known(&scope, &tags).await?;
        if rule.platforms.is_empty() && rule.foreign_layers == ForeignLayers::Keep {
            self.take_hints(&scope, tasks, members, &mut known).await?;
        }
        let news = self.news(rule, &scope, tasks, members, &known, companions).await?;
        let now = self.house.clock.now();
        self.tell_of_future(&known, now);
        let immutable = rule.immutable()?;
        let (mut believed, mut doubtful, mut frozen) = (Vec::new(), Vec::new(), Vec::new());
        for ((at, tag), known) in members.iter().copied().zip(&tags).zip(known) {
            let (task, _) = &tasks[at];
            let never_moves = immutable.iter().any(|pattern| pattern.matches(task.source.tag.as_str()));
            match known {
                // Never checked again. If the tag has moved all the same, its task reports that.
                Some(known) if never_moves => match task.digest.as_ref().is_none_or(|listed| *listed == known.source) {
                    true => frozen.push(at),
                    false => doubtful.push((at, Some(known))),
                },
                Some(known) if rule.believes(tag.as_str(), age(known.seen_at, now)) => believed.push((at, known)),
                known => doubtful.push((at, known)),
            }
        }
        if !self.canaries_live(home, tasks, &believed).await {
            target.distrusted.store(true, Ordering::Relaxed);
            let forgotten = self.house.store.forget_end(home.end()).await?;
            self.context.warn(format!(
                "{} does not have what it was believed to have: all of its {forgotten} known tags are asked for again",
                home.end()
            ));
        }
        if target.distrusted.load(Ordering::Relaxed) {
            doubtful.extend(believed.drain(..).map(|(at, _)| (at, None)));
        }
        // A listed digest that differs from the cached one is to be copied; a tag without a listed digest is checked by
        // its task.
        let mut unchanged = believed;
        unchanged.retain(|(at, known)| !news.contains(at) && tasks[*at].0.digest.as_ref() == Some(&known.source));
        doubtful.retain(|(at, _)| !news.contains(at) && tasks[*at].0.digest.is_some());
        frozen.retain(|at| !news.contains(at));
        let mut settled = self.not_due(rule, &scope, tasks, unchanged).await?;
        settled.extend(frozen);
        settled.extend(self.by_listing(rule, &scope, &target, tasks, doubtful).await?);
        Ok(Looked { unchanged: settled, news })
    }

    /// Warns once per run of cache entries with times in the future, which do not count.
    fn tell_of_future(&self, known: &[Option<Known>], now: Timestamp) {
        let seen = known.iter().flatten().flat_map(|known| [Some(known.seen_at), known.referrers_at]).flatten();
        let Some(latest) = seen.filter(|at| is_ahead(*at, now)).max() else { return };
        if !self.told_of_future.swap(true, Ordering::Relaxed) {
            self.context.warn(format!(
                "target tags were last seen in the future, such as {}: a clock was wrong then, or is now; they are asked for \
                 again",
                latest.strftime("%Y-%m-%d")
            ));
        }
    }

    /// Returns the unchanged tasks whose referrers are fresh.
    async fn not_due(
        &self,
        rule: &RuleOptions,
        scope: &CacheScope,
        tasks: &[(Planned, Option<Verdict>)],
        unchanged: Vec<(usize, Known)>,
    ) -> Result<Vec<usize>> {
        let now = self.house.clock.now();
        let (mut settled, mut learnt) = (Vec::new(), Vec::new());
        for (at, known) in unchanged {
            let tag = &tasks[at].0.target.tag;
            match known.referrers_at {
                Some(asked) if rule.referrers.are_wanted() => {
                    if rule.knows_referrers(tag.as_str(), age(asked, now)) {
                        settled.push(at);
                    }
                }
                None if rule.referrers.are_wanted() => {
                    settled.push(at);
                    let referrers_at = head_start(rule, tag, now);
                    learnt.push((tag.clone(), Known { referrers_at, ..known }));
                }
                _ => settled.push(at),
            }
        }
        if !learnt.is_empty() {
            self.house.store.learn(scope, learnt).await?;
        }
        Ok(settled)
    }

    /// Finds images whose digest tags in the source listing differ from the cached ones. An image filtered to some
    /// platforms is another image, and has none.
    async fn news(
        &self,
        rule: &RuleOptions,
        scope: &CacheScope,
        tasks: &[(Planned, Option<Verdict>)],
        members: &[usize],
        known: &[Option<Known>],
        companions: &Companions,
    ) -> Result<HashSet<usize>> {
        let mut news = HashSet::new();
        if companions.is_empty() || rule.cuts() || !rule.referrers.are_wanted() {
            return Ok(news);
        }
        let (mut wanted, mut tags) = (Vec::new(), Vec::new());
        for (at, known) in members.iter().zip(known) {
            let image = tasks[*at].0.digest.as_ref().or(known.as_ref().map(|known| &known.source));
            for (kind, digest) in image.map_or(&[][..], |image| companions.of_image(image)) {
                let Some(image) = image else { continue };
                wanted.push((*at, digest.as_ref()));
                tags.push(kind.tag_of(image));
            }
        }
        if tags.is_empty() {
            return Ok(news);
        }
        let seen = self.house.store.known(scope, &tags).await?;
        for ((at, digest), seen) in wanted.into_iter().zip(seen) {
            if seen.is_none_or(|seen| digest.is_some_and(|digest| seen.source != *digest)) {
                news.insert(at);
            }
        }
        Ok(news)
    }

    /// Imports the manifest files of imgsync 2.1 for tags that are not cached: one file per tag under the source name,
    /// with the manifest synced last. Where its bytes are unmodified, their digest is that of the target.
    async fn take_hints(
        &self,
        scope: &CacheScope,
        tasks: &[(Planned, Option<Verdict>)],
        members: &[usize],
        known: &mut [Option<Known>],
    ) -> Result<()> {
        let Some(folder) = &self.manifests else { return Ok(()) };
        let mut learnt = Vec::new();
        for (at, known) in members.iter().zip(known).filter(|(_, known)| known.is_none()) {
            let (task, _) = &tasks[*at];
            let Some((registry, path)) = task.source.home.registry() else { continue };
            let of = |name: &str| folder.join(name).join(format!("{}.json", task.source.tag));
            let name = format!("{registry}/{path}");
            let mut file = of(&name);
            // Files of a repository that has moved are under its former name, which the target's name contains.
            if let Some(original) = presets::original_of(&name)
                && let Some((_, target)) = task.target.home.registry()
                && target.basename() == flat(&original)
            {
                file = of(&original);
            }
            let Ok(bytes) = tokio::fs::read(&file).await else { continue };
            let synced = tokio::fs::metadata(&file).await.ok().and_then(|metadata| metadata.modified().ok());
            let Some(seen_at) = synced.and_then(|time| Timestamp::try_from(time).ok()) else { continue };
            let digest = Digest::sha256(&bytes);
            let hint = Known { source: digest.clone(), target: digest, seen_at, referrers_at: None };
            learnt.push((task.target.tag.clone(), hint.clone()));
            *known = Some(hint);
        }
        self.house.store.learn(scope, learnt).await
    }

    /// Checks a sample of the cached tags at the target. Returns false if one of them is missing or different.
    async fn canaries_live(
        &self,
        home: &Arc<Home>,
        tasks: &[(Planned, Option<Verdict>)],
        believed: &[(usize, Known)],
    ) -> bool {
        let Some(repository) = self.repository(home) else { return true };
        let wanted = (believed.len() / 100).clamp(1, CANARIES_OF_ONE).min(believed.len());
        let mut granted = 0;
        let _ = self.canaries.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |left| {
            granted = left.min(wanted);
            Some(left - granted)
        });
        let chosen: Vec<_> = rand::seq::index::sample(&mut rand::rng(), believed.len(), granted)
            .into_iter()
            .map(|at| (tasks[believed[at].0].0.target.tag.clone(), believed[at].1.target.clone()))
            .collect();
        let asked = futures_util::stream::iter(chosen)
            .map(|(tag, digest)| {
                let repository = &repository;
                async move {
                    match repository.manifest_head(&ManifestRef::Tag(tag)).await {
                        Ok(Some(head)) => head.digest == digest,
                        Ok(None) => false,
                        // A target that does not respond says nothing about its tags; the tasks will report that.
                        Err(_) => true,
                    }
                }
            })
            .buffer_unordered(CANARIES_AT_ONCE)
            .collect::<Vec<bool>>()
            .await;
        asked.into_iter().all(|lives| lives)
    }

    /// Finds unchanged tags in the target's own listing if that has digests, with one request per page.
    async fn by_listing(
        &self,
        rule: &RuleOptions,
        scope: &CacheScope,
        target: &TargetState,
        tasks: &[(Planned, Option<Verdict>)],
        doubtful: Vec<(usize, Option<Known>)>,
    ) -> Result<Vec<usize>> {
        // For one tag a HEAD costs as little, and tells more.
        if doubtful.len() < 2 || target.lists_no_digests.load(Ordering::Relaxed) {
            return Ok(Vec::new());
        }
        let Some(repository) = self.repository(&scope.home) else { return Ok(Vec::new()) };
        let doubtful = self.whole(rule, scope, tasks, doubtful).await?;
        let wanted: Vec<&str> = doubtful.iter().map(|(at, _)| tasks[*at].0.target.tag.as_str()).collect();
        let listing = match find(&repository, &wanted).await {
            Ok(Some(listing)) => listing,
            Ok(None) => {
                target.lists_no_digests.store(true, Ordering::Relaxed);
                return Ok(Vec::new());
            }
            Err(error) if error.class() == Class::NotFound => return Ok(Vec::new()),
            Err(error) => {
                self.context.warn(format!("{error}; its tags are asked for one by one"));
                return Ok(Vec::new());
            }
        };
        let seen_at = self.house.clock.now();
        let (mut settled, mut learnt) = (Vec::new(), Vec::new());
        for (at, known) in doubtful {
            let (task, _) = &tasks[at];
            let (Some(source), Some(there)) = (&task.digest, listing.digest(task.target.tag.as_str())) else {
                continue;
            };
            // A platform selection has another digest than its source, which only the cache knows.
            let wanted: Option<&Digest> = match rule.cuts() {
                false => Some(source),
                true => known.as_ref().filter(|known| known.source == *source).map(|known| &known.target),
            };
            if wanted == Some(there) {
                settled.push(at);
                let asked = known.as_ref().filter(|known| known.source == *source).and_then(|known| known.referrers_at);
                let referrers_at = asked.or_else(|| head_start(rule, &task.target.tag, seen_at));
                let known = Known { source: source.clone(), target: there.clone(), seen_at, referrers_at };
                learnt.push((task.target.tag.clone(), known));
            }
        }
        self.house.store.learn(scope, learnt).await?;
        Ok(settled)
    }

    /// Excludes tags that may be incomplete although the digest matches, because they were copied with other options.
    async fn whole(
        &self,
        rule: &RuleOptions,
        scope: &CacheScope,
        tasks: &[(Planned, Option<Verdict>)],
        mut doubtful: Vec<(usize, Option<Known>)>,
    ) -> Result<Vec<(usize, Option<Known>)>> {
        if rule.foreign_layers == ForeignLayers::Copy {
            doubtful.retain(|(_, known)| known.is_some());
        }
        let unknown: Vec<usize> = doubtful.iter().filter(|(_, known)| known.is_none()).map(|(at, _)| *at).collect();
        if unknown.is_empty() || rule.cuts() {
            return Ok(doubtful);
        }
        let tags: Vec<Tag> = unknown.iter().map(|at| tasks[*at].0.target.tag.clone()).collect();
        let marks = self.house.store.known(&scope.parts(), &tags).await?;
        let partial: HashSet<usize> =
            unknown.into_iter().zip(marks).filter(|(_, mark)| mark.is_some()).map(|(at, _)| at).collect();
        doubtful.retain(|(at, _)| !partial.contains(at));
        Ok(doubtful)
    }

    fn repository(&self, home: &Home) -> Option<Repository> {
        let (registry, path) = home.registry()?;
        self.client.repository(registry, &path, Access::Push, &self.context, &self.tally).ok()
    }

    fn target(&self, end: &End) -> Arc<TargetState> {
        self.targets.lock().unwrap_or_else(PoisonError::into_inner).entry(end.clone()).or_default().clone()
    }
}

/// Returns the initial time of the last referrers check, for an image that never had one.
fn head_start(rule: &RuleOptions, tag: &Tag, now: Timestamp) -> Option<Timestamp> {
    let wanted = rule.referrers.are_wanted();
    wanted.then(|| now.checked_sub(rule.referrers_head_start(tag.as_str())).unwrap_or(now))
}
