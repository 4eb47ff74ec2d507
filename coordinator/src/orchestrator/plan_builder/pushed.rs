//! Plans what was pushed, as hooks told: the rules as always, limited to these tags. A notification says where to look;
//! what is copied is what the source shows.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures_util::future::BoxFuture;
use futures_util::{FutureExt as _, StreamExt as _};
use imgsync_config::{Rule, RuleSource};
use imgsync_model::batch::{Failure, PushedReference, PushedRepository, TagLocator, TaskResult, TaskSpec};
use imgsync_model::select::TagSelection;
use imgsync_oci::error::{Error, ErrorKind, Result};
use imgsync_oci::retry::RetryBudget;
use imgsync_oci::{Digest, DigestTag, RegistryName, RepositoryName, Tag};
use imgsync_registry::{Access, Context, ListedTag, ManifestRef, Repository};
use imgsync_store::{TagProvenance, tag_lease_name};
use jiff::Timestamp;

use super::super::plan::{Planner, RepositoryPlan};
use super::super::push_metrics;
use super::{LocatorCache, PlanBuilder, local_source};
use crate::discovery::{RepositoryListing, list_repository};
use crate::presets::{SourceSelector, source_selectors};

/// First pause before a tag is asked for again that does not show what was pushed; it doubles up to the maximum. Some
/// registries notify before they set the tag.
const FIRST_TAG_PAUSE: Duration = Duration::from_millis(50);
const MAX_TAG_PAUSE: Duration = Duration::from_secs(2);
/// Time after which what the tag shows counts.
const TAG_DEADLINE: Duration = Duration::from_secs(15);
/// Time after which a source tag that imgsync itself is writing is copied as it is.
const WRITE_DEADLINE: Duration = Duration::from_secs(15);
const WRITE_POLL_INTERVAL: Duration = Duration::from_millis(100);
/// Concurrent requests for tags and manifests of a repository.
const MAX_CONCURRENT_REQUESTS: usize = 8;
/// Tags of a repository that are asked for the image of a new signature, if the digest cache does not know it.
const MAX_ASKED_TAGS: usize = 200;

/// What was pushed to a repository, as its registry shows it.
#[derive(Debug, Default)]
struct ShownPushes {
    /// Pushed tags with their digests; `None` if the tag does not exist.
    tags: HashMap<Tag, Option<Digest>>,
    /// Images that have new digest tags or referrers.
    images: HashSet<Digest>,
    /// Whether the sender did not say what was pushed.
    is_unknown: bool,
}

/// Result of one request about a push.
enum Shown {
    Tag(Tag, Option<Digest>),
    Subject(Option<Digest>),
    Unknown,
}

impl ShownPushes {
    /// Returns a listing of the pushed tags and of digest tags, if each tag is selected by itself. Else, `None`: the others
    /// count.
    fn narrow_listing(&self, selections: [&TagSelection; 2], listing: &RepositoryListing) -> Option<RepositoryListing> {
        let is_simple = |selection: &TagSelection| {
            let TagSelection { include: _, exclude: _, range, since, newest, min } = selection;
            range.is_none() && since.is_none() && newest.is_none() && min.is_none()
        };
        if !self.images.is_empty() || self.is_unknown || !selections.into_iter().all(is_simple) {
            return None;
        }
        let names: HashSet<&str> = self.tags.keys().map(Tag::as_str).collect();
        let is_kept =
            |listed: &&ListedTag| names.contains(listed.tag.as_str()) || DigestTag::parse_tag(&listed.tag).is_some();
        Some(RepositoryListing {
            registry: listing.registry.clone(),
            repository: listing.repository.clone(),
            tags: listing.tags.iter().filter(is_kept).cloned().collect(),
            children: Vec::new(),
            manifests: listing.manifests,
            is_named: false,
            is_tree: listing.is_tree,
            missing_dates_reason: listing.missing_dates_reason.clone(),
            memory: listing.memory.clone(),
        })
    }
}

impl PlanBuilder<'_> {
    /// Plans the pushes, except those of the segments that the plan has.
    pub(super) async fn list_pushed(&self, pushed: &[PushedRepository], done: &HashSet<String>) -> Result<()> {
        let mut planner = Planner::new();
        let mut reads: Vec<BoxFuture<'_, _>> = Vec::with_capacity(pushed.len());
        for pushed in pushed {
            reads.push(async move { (pushed, self.read_pushes(pushed).await) }.boxed());
        }
        let mut shown = futures_util::stream::iter(reads).buffer_unordered(self.query_limit.max(1));
        while let Some((pushed, read)) = shown.next().await {
            if self.context.cancel.is_cancelled() {
                return Ok(());
            }
            let planned = match read {
                Ok(Some((pushes, listing))) => self.plan_pushes(&mut planner, &pushes, listing, done).await,
                Ok(None) => Ok(()),
                Err(error) if error.is_cancelled() => Err(error),
                Err(error) => {
                    let repository = format!("{}/{}", pushed.registry, pushed.repository);
                    self.record_unlisted(repository, &error).await
                }
            };
            match planned {
                Err(error) if error.is_cancelled() => return Ok(()),
                planned => planned?,
            }
        }
        Ok(())
    }

    /// Asks the registry what was pushed, and lists the repository. Returns `None` if nothing of it is there.
    async fn read_pushes(&self, pushed: &PushedRepository) -> Result<Option<(ShownPushes, RepositoryListing)>> {
        let context = Context { budget: RetryBudget::default(), ..self.context.clone() };
        let PushedRepository { registry, repository: name, references } = pushed;
        let repository = self.client.repository(registry, name, Access::Pull, &context, &self.counters.0)?;
        let mut reads: Vec<BoxFuture<'_, _>> = Vec::with_capacity(references.len());
        for reference in references {
            let repository = &repository;
            reads.push(async move { (reference, self.read_push(repository, reference).await) }.boxed());
        }
        let mut answers = futures_util::stream::iter(reads).buffer_unordered(MAX_CONCURRENT_REQUESTS);
        let mut pushes = ShownPushes::default();
        while let Some((reference, answer)) = answers.next().await {
            let shown = match answer {
                Ok(shown) => shown,
                Err(error) if error.is_cancelled() => return Err(error),
                // The other pushes of the repository count.
                Err(error) => {
                    self.record_unlisted(describe_push((registry, name), reference), &error).await?;
                    continue;
                }
            };
            match shown {
                Shown::Tag(tag, digest) => {
                    // What is pushed under a digest tag belongs to the image that it names.
                    if DigestTag::parse_tag(tag.as_str()).is_some() {
                        match DigestTag::subject(tag.as_str()) {
                            Some(image) => _ = pushes.images.insert(image),
                            None => self.context.warn(format!(
                                "{registry}/{name}:{tag} was pushed and names only a part of the digest of its image: the next \
                                 run of the rule finds it"
                            )),
                        }
                    }
                    pushes.tags.insert(tag, digest);
                }
                Shown::Subject(image) => pushes.images.extend(image),
                Shown::Unknown => pushes.is_unknown = true,
            }
        }
        drop(answers);
        let is_any_there = pushes.tags.values().any(Option::is_some) || !pushes.images.is_empty() || pushes.is_unknown;
        if !is_any_there {
            return Ok(None);
        }
        let listing = list_repository(&repository).await?;
        Ok(Some((pushes, listing)))
    }

    async fn read_push(&self, repository: &Repository, reference: &PushedReference) -> Result<Shown> {
        match reference {
            PushedReference::Tag(tag, digest) => {
                let shown = self.wait_for_tag(repository, tag, digest.as_ref()).await?;
                Ok(Shown::Tag(tag.clone(), shown))
            }
            PushedReference::Manifest(digest) => {
                // A manifest without a tag is a part of an index, or a referrer, which names its image.
                match repository.get_manifest(&ManifestRef::Digest(digest.clone())).await {
                    Ok(manifest) => {
                        Ok(Shown::Subject(manifest.parsed().subject.as_ref().map(|subject| subject.digest.clone())))
                    }
                    Err(error) if error.kind() == ErrorKind::NotFound => Ok(Shown::Subject(None)),
                    // What imgsync cannot read names no image that it copies.
                    Err(error) if is_unreadable(error.kind()) => {
                        self.context.warn(format!("ignored what was pushed: {error}"));
                        Ok(Shown::Subject(None))
                    }
                    Err(error) => Err(error),
                }
            }
            PushedReference::Unknown => Ok(Shown::Unknown),
        }
    }

    /// Asks for a tag until it shows the digest that was pushed, and returns what it shows at last; `None` if it does
    /// not exist.
    async fn wait_for_tag(
        &self,
        repository: &Repository,
        tag: &Tag,
        pushed: Option<&Digest>,
    ) -> Result<Option<Digest>> {
        let (began, mut pause) = (Instant::now(), FIRST_TAG_PAUSE);
        loop {
            let head = repository.head_manifest(&ManifestRef::Tag(tag.clone())).await?;
            let shown = head.map(|head| head.digest);
            if shown.is_some() && pushed.is_none_or(|pushed| shown.as_ref() == Some(pushed)) {
                return Ok(shown);
            }
            if began.elapsed() + pause > TAG_DEADLINE {
                // Pushed or deleted again since; or the registry's answer is old, and the next run of the rule copies it.
                push_metrics::count("outdated", 1);
                let name = format!("{}/{}:{tag}", repository.registry(), repository.name());
                let shows = shown.as_ref().map_or("nothing".to_owned(), Digest::to_string);
                tracing::info!("{name} still shows {shows} and not what was pushed, as a hook told");
                return Ok(shown);
            }
            push_metrics::count_wait();
            tokio::select! {
                () = tokio::time::sleep(pause) => {}
                () = self.context.cancel.cancelled() => return Err(Error::cancelled("waiting for a pushed tag")),
            }
            pause = (pause * 2).min(MAX_TAG_PAUSE);
        }
    }

    async fn plan_pushes(
        &self,
        planner: &mut Planner,
        pushes: &ShownPushes,
        mut listing: RepositoryListing,
        done: &HashSet<String>,
    ) -> Result<()> {
        pin_tags(&mut listing, &pushes.tags);
        let now = self.backend.clock.now();
        let name = format!("{}/{}", listing.registry, listing.repository);
        for (number, rule) in self.rules.iter().enumerate() {
            for (part, selector) in source_selectors(&rule.source).unwrap_or_default().iter().enumerate() {
                let reads = *selector.pattern.registry() == listing.registry
                    && selector.pattern.matches(listing.repository.as_str());
                let key = format!("{number} {part} {name}");
                if !reads || done.contains(&key) {
                    continue;
                }
                let narrow = pushes.narrow_listing([&selector.selection, &rule.selection], &listing);
                let listing = narrow.as_ref().unwrap_or(&listing);
                let plan = planner.plan(number, rule, Some(selector), listing, now);
                match &plan.refused {
                    Some(error) => self.record_unlisted(self.describe_repository(rule, name.clone()), error).await?,
                    None => self.add_pushes(key, now, (rule, number, selector), plan, pushes).await?,
                }
            }
        }
        Ok(())
    }

    /// Adds the tasks of the pushes to the plan.
    async fn add_pushes(
        &self,
        key: String,
        listed_at: Timestamp,
        (rule, number, selector): (&Rule, usize, &SourceSelector),
        plan: RepositoryPlan,
        pushes: &ShownPushes,
    ) -> Result<()> {
        let RepositoryPlan { tasks: planned, failed, digest_tags, memory: _memory, .. } = plan;
        let mut locators = LocatorCache {
            folder: self.folder,
            local_source: local_source(rule, self.folder)?,
            locators: HashMap::new(),
        };
        let mut tasks = Vec::with_capacity(planned.len());
        for task in &planned {
            tasks.push(locators.task_spec(task)?);
        }
        let of_images = self.find_images(&tasks, &pushes.images).await?;
        let is_pushed = |task: &TaskSpec| {
            pushes.is_unknown || pushes.tags.contains_key(&task.source.tag) || of_images.contains(&task.source.tag)
        };
        tasks.retain(is_pushed);
        self.refuse_loops(&mut tasks).await?;
        let taken = self.take_collisions(rule, selector, &mut tasks).await?;
        let mut tasks = self.unchanged_filter.filter(tasks, &digest_tags).await?;
        for (task, result) in tasks.iter_mut().filter(|(task, _)| of_images.contains(&task.source.tag)) {
            *result = None;
            task.digest_tags = task.digest_tags.with_new();
        }
        tasks.extend(taken);
        for failed in failed.into_iter().filter(|failed| pushes.tags.contains_key(&failed.source.tag)) {
            match locators.failed_task_spec(number, &failed) {
                Some(task) => tasks.push((task, Some(TaskResult::Failed(Failure::from_error(&failed.error, 1))))),
                None => self.record_unlisted(failed.source.to_string(), &failed.error).await?,
            }
        }
        self.append(key, listed_at, tasks).await
    }

    /// Finds the source tags of these images: in the listing, in the digest cache, or else by asking for the tags that
    /// are in neither, such as those that were refused before they were signed.
    async fn find_images(&self, tasks: &[TaskSpec], images: &HashSet<Digest>) -> Result<HashSet<Tag>> {
        if images.is_empty() {
            return Ok(HashSet::new());
        }
        let known = self.unchanged_filter.source_digests(tasks).await?;
        let mut found = HashSet::new();
        let mut unknown: BTreeMap<&Tag, &TagLocator> = BTreeMap::new();
        for (task, known) in tasks.iter().zip(&known) {
            match known {
                Some(digest) if images.contains(digest) => _ = found.insert(task.source.tag.clone()),
                Some(_) => {}
                None => _ = unknown.insert(&task.source.tag, &task.source),
            }
        }
        if unknown.len() > MAX_ASKED_TAGS {
            let (all, name) = (unknown.len(), &tasks[0].source.repository);
            self.context.warn(format!(
                "{name}: only {MAX_ASKED_TAGS} of {all} tags are asked for the image of what was pushed; the next run of the \
                 rule finds the others"
            ));
        }
        let mut reads: Vec<BoxFuture<'_, _>> = Vec::new();
        for source in unknown.into_values().take(MAX_ASKED_TAGS) {
            reads.push(async move { (source, self.head_source(source).await) }.boxed());
        }
        let mut unread = None;
        let mut answers = futures_util::stream::iter(reads).buffer_unordered(MAX_CONCURRENT_REQUESTS);
        while let Some((source, answer)) = answers.next().await {
            match answer {
                Ok(Some(digest)) if images.contains(&digest) => _ = found.insert(source.tag.clone()),
                Ok(_) => {}
                Err(error) if error.is_cancelled() => return Err(error),
                Err(error) => unread = Some((source.repository.to_string(), error)),
            }
        }
        drop(answers);
        // What was pushed stays pending, and is tried again.
        if let Some((repository, error)) = unread {
            self.record_unlisted(repository, &error).await?;
        }
        Ok(found)
    }

    async fn head_source(&self, source: &TagLocator) -> Result<Option<Digest>> {
        let Some((registry, path)) = source.repository.registry() else { return Ok(None) };
        let repository = self.client.repository(registry, &path, Access::Pull, self.context, &self.counters.0)?;
        Ok(repository.head_manifest(&ManifestRef::Tag(source.tag.clone())).await?.map(|head| head.digest))
    }

    /// Drops tasks whose source is the copy that imgsync made of their target: the notification was of that copy.
    async fn refuse_loops(&self, tasks: &mut Vec<TaskSpec>) -> Result<()> {
        if tasks.is_empty() {
            return Ok(());
        }
        let store = &self.backend.store;
        // The notification of a copy comes before the copy is recorded.
        let leases: Vec<String> = tasks.iter().map(|task| tag_lease_name(&task.source)).collect();
        let began = Instant::now();
        while let Some((lease, _)) = store.first_held(&leases).await? {
            if began.elapsed() >= WRITE_DEADLINE {
                let waited = WRITE_DEADLINE.as_secs();
                self.context
                    .warn(format!("{lease} is still held after {waited} s: a circle of rules may not be noticed"));
                break;
            }
            tokio::select! {
                () = tokio::time::sleep(WRITE_POLL_INTERVAL) => {}
                () = self.context.cancel.cancelled() => return Err(Error::cancelled("waiting for a copy to a source tag")),
            }
        }
        let mut written: HashMap<_, Vec<TagProvenance>> = HashMap::new();
        for task in tasks.iter() {
            let target = &task.target.repository;
            if !written.contains_key(target) {
                written.insert(target.clone(), store.provenance_by_source(target).await?);
            }
        }
        let is_own_copy = |task: &TaskSpec| {
            let records = written.get(&task.target.repository).into_iter().flatten();
            records.filter(|record| record.is_authentic && record.target == task.source).any(|record| {
                record.source_tag == task.target.tag && task.digest.as_ref().is_none_or(|now| *now == record.digest)
            })
        };
        tasks.retain(|task| {
            let is_loop = is_own_copy(task);
            if is_loop {
                push_metrics::count("loop", 1);
                self.context.warn(format!(
                    "{} is not copied to {}: it is the copy that imgsync made of that tag, so the rules form a circle",
                    task.source, task.target
                ));
            }
            !is_loop
        });
        Ok(())
    }

    /// Removes tasks whose target tag was written from another source, and returns them as failures: which source has
    /// the tag is decided by a run of the whole rule.
    async fn take_collisions(
        &self,
        rule: &Rule,
        selector: &SourceSelector,
        tasks: &mut Vec<TaskSpec>,
    ) -> Result<Vec<(TaskSpec, Option<TaskResult>)>> {
        // Of one repository, or the moved repositories of a preset, there is no other source.
        let may_collide = matches!(rule.source, RuleSource::Repositories(_)) && selector.pattern.repository().is_none();
        let Some(source) = tasks.first().filter(|_| may_collide).map(|task| task.source.repository.clone()) else {
            return Ok(Vec::new());
        };
        let store = &self.backend.store;
        let ours: HashSet<TagLocator> =
            store.provenance_by_source(&source).await?.into_iter().map(|record| record.target).collect();
        let mut written: HashMap<Arc<_>, HashMap<Tag, Digest>> = HashMap::new();
        for task in tasks.iter() {
            let target = &task.target.repository;
            if !written.contains_key(target) {
                written.insert(target.clone(), store.written_digests(target).await?);
            }
        }
        let is_taken = |task: &TaskSpec| {
            let by_any = written.get(&task.target.repository).is_some_and(|tags| tags.contains_key(&task.target.tag));
            by_any && !ours.contains(&task.target)
        };
        let (taken, free): (Vec<_>, Vec<_>) = std::mem::take(tasks).into_iter().partition(is_taken);
        *tasks = free;
        let failed = |task: TaskSpec| {
            let detail = format!("{} is already the target of another source", task.target);
            let error = Error::new(ErrorKind::Collision, format!("copying {}", task.source), detail)
                .with_hint("set a different `naming` or `to` for one of the two; a run of the whole rule names both");
            (task, Some(TaskResult::Failed(Failure::from_error(&error, 1))))
        };
        Ok(taken.into_iter().map(failed).collect())
    }
}

/// Names a push, as failures of listings do.
pub(crate) fn describe_push(
    (registry, repository): (&RegistryName, &RepositoryName),
    reference: &PushedReference,
) -> String {
    reference.name_in(registry, repository)
}

/// Whether a manifest is none that imgsync can read, and will not be one later.
fn is_unreadable(kind: ErrorKind) -> bool {
    matches!(kind, ErrorKind::Unsupported | ErrorKind::Outdated | ErrorKind::InvalidResponse | ErrorKind::Corrupt)
}

/// Sets the digests of these tags in a listing, and adds those that it lacks: it may be older than the push. A tag that
/// does not exist is removed.
fn pin_tags(listing: &mut RepositoryListing, tags: &HashMap<Tag, Option<Digest>>) {
    for (tag, digest) in tags {
        let found = listing.tags.binary_search_by(|listed| listed.tag.as_str().cmp(tag.as_str()));
        match (found, digest) {
            (Ok(at), Some(digest)) => listing.tags[at].digest = Some(digest.clone()),
            (Ok(at), None) => drop(listing.tags.remove(at)),
            (Err(at), Some(digest)) => {
                let (tag, digest) = (tag.to_string(), Some(digest.clone()));
                listing.tags.insert(at, ListedTag { tag, digest, created: None, media_type: None });
            }
            (Err(_), None) => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_listing_shows_what_the_tags_show() {
        let listed = |tag: &str, digest: Option<Digest>| ListedTag {
            tag: tag.to_owned(),
            digest,
            created: None,
            media_type: None,
        };
        let (old, new) = (Digest::sha256(b"old"), Digest::sha256(b"new"));
        let mut listing = RepositoryListing {
            registry: "r.example".parse().unwrap(),
            repository: "a".parse().unwrap(),
            tags: vec![listed("1", Some(old.clone())), listed("2", None), listed("4", Some(old.clone()))],
            children: Vec::new(),
            manifests: 0,
            is_named: false,
            is_tree: false,
            missing_dates_reason: None,
            memory: None,
        };
        let shown = [("1", Some(new.clone())), ("2", None), ("3", Some(new.clone())), ("9", None)];
        let shown = shown.into_iter().map(|(tag, digest)| (tag.parse().unwrap(), digest)).collect();
        pin_tags(&mut listing, &shown);
        let wanted = [listed("1", Some(new.clone())), listed("3", Some(new)), listed("4", Some(old))];
        assert_eq!(listing.tags, wanted);
    }
}
