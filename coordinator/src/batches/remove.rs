//! Removes target tags whose source is gone. Each is asked for once more at both ends before it goes; one that cannot be
//! removed alone goes by its digest only if no other tag needs that.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::sync::Arc;

use futures_util::{StreamExt as _, TryStreamExt as _};
use imgsync_common::batch::{BatchId, Home, Place, Requests};
use imgsync_common::config::Rule;
use imgsync_common::error::{Class, Error, Result};
use imgsync_common::image::{Digest, Manifest, Tag};
use imgsync_common::registry::{Access, Client, Context, Deleted, ManifestRef, Repository, Tally};
use imgsync_common::store::{CacheScope, LEASE, Named, PruneOutcome, Pruned, Spent, target_tag};

use super::house::House;
use super::prune::{Due, Pruning};

/// Tags of one target repository that are asked for at a time.
const AT_ONCE: usize = 8;
/// In a repository with more tags than this nothing is removed by digest: it would take too long to be sure of it.
const MOST_TAGS: usize = 5_000;
/// Why a tag is left of which somebody else may have said that it is ours.
const UNAUTHENTICATED: &str = "the record of where it came from was not written with this cluster.key";
/// Indexes within indexes.
const MAX_DEPTH: usize = 16;

/// Removes what is due, for one batch.
pub(super) struct Remover<'a> {
    pub(super) house: &'a House,
    pub(super) client: &'a Client,
    pub(super) context: &'a Context,
    pub(super) rules: &'a [Rule],
    pub(super) batch: BatchId,
    /// Under which name tags are held while they are removed.
    pub(super) holder: &'a str,
}

/// What became of a tag, and why.
type Became = (PruneOutcome, String);

impl Remover<'_> {
    /// Removes what may go, and writes down what became of each. An error is the store's.
    pub(super) async fn run(&self, prunings: Vec<Pruning>) -> Result<()> {
        let mut due: BTreeMap<(usize, Arc<Home>), Vec<Due>> = BTreeMap::new();
        for mut pruning in prunings {
            let rule = pruning.rule;
            for one in pruning.take_unauthenticated() {
                self.note(rule, &one, (PruneOutcome::Left, UNAUTHENTICATED.to_owned())).await?;
            }
            match pruning.decide() {
                Ok(all) => {
                    for one in all {
                        due.entry((rule, one.target.home.clone())).or_default().push(one);
                    }
                }
                Err(why) => self.refuse(rule, why).await?,
            }
        }
        if due.is_empty() {
            return Ok(());
        }
        let planned = self.planned(due.values().flatten().map(|due| &due.target).collect()).await?;
        let tallies = (Tally::new(), Tally::new());
        for ((rule, home), all) in due {
            if self.context.cancel.is_cancelled() {
                break;
            }
            self.remove_from(rule, &home, all, &planned, &tallies).await?;
        }
        let requests = Requests { source: tallies.0.read().requests, target: tallies.1.read().requests };
        self.house.store.spend(self.batch, Spent { requests, ..Spent::default() }).await
    }

    async fn refuse(&self, rule: usize, why: String) -> Result<()> {
        let (source, target) = (crate::report::from(&self.rules[rule]), crate::report::to(&self.rules[rule]));
        self.context.warn(format!("nothing of {source} is removed at its targets: {why}"));
        let line =
            Pruned { source, target: target.join(", "), outcome: PruneOutcome::Refused, digest: None, reason: why };
        self.house.store.note_pruned(self.batch, line).await
    }

    /// Which of these target tags this batch writes: from another source by now.
    async fn planned(&self, targets: HashSet<&Place>) -> Result<HashSet<Place>> {
        const PAGE: usize = 5_000;
        let mut planned = HashSet::new();
        let mut from = 0;
        loop {
            let rows = self.house.store.tasks(self.batch, None, from, PAGE).await?;
            let Some(last) = rows.last() else { return Ok(planned) };
            from = last.task.index + 1;
            let here = rows.into_iter().map(|row| row.task.planned.target);
            planned.extend(here.filter(|target| targets.contains(target)));
        }
    }

    /// Removes what is due in one target repository.
    async fn remove_from(
        &self,
        rule: usize,
        home: &Arc<Home>,
        all: Vec<Due>,
        planned: &HashSet<Place>,
        tallies: &(Arc<Tally>, Arc<Tally>),
    ) -> Result<()> {
        let Some((registry, path)) = home.registry() else { return Ok(()) };
        // Reading with the same access: who may only be let in to push would take a refusal for a missing tag.
        let target = self.client.repository(registry, &path, Access::Delete, self.context, &tallies.1)?;
        let mut sure: Vec<Due> = Vec::new();
        for due in all {
            match self.is_due(&due, &target, planned, &tallies.0).await {
                Ok(None) => sure.push(due),
                Ok(Some(became)) => self.note(rule, &due, became).await?,
                Err(error) => self.note(rule, &due, failed(&error)).await?,
            }
        }
        let going: BTreeSet<Tag> = sure.iter().map(|due| due.target.tag.clone()).collect();
        let mut needed = None;
        for due in sure {
            if self.context.cancel.is_cancelled() {
                break;
            }
            let became = match self.hold(&due.target).await? {
                false => (PruneOutcome::Left, "another process is writing it".to_owned()),
                true => {
                    let removed = remove(&due, &target, &going, &mut needed).await;
                    self.house.store.release(&target_tag(&due.target), self.holder).await?;
                    removed.unwrap_or_else(|error| failed(&error))
                }
            };
            if became.0 == PruneOutcome::Removed {
                self.forget(rule, &due).await?;
            }
            self.note(rule, &due, became).await?;
        }
        Ok(())
    }

    /// Whether it still is ours and still is missing: then none.
    async fn is_due(
        &self,
        due: &Due,
        target: &Repository,
        planned: &HashSet<Place>,
        tally: &Arc<Tally>,
    ) -> Result<Option<Became>> {
        let left = |why: &str| Ok(Some((PruneOutcome::Left, why.to_owned())));
        if planned.contains(&due.target) {
            return left("another image is copied there by now");
        }
        let Some((registry, path)) = due.source.home.registry() else { return left("its source is no registry") };
        let source = self.client.repository(registry, &path, Access::Pull, self.context, tally)?;
        if source.manifest_head(&ManifestRef::Tag(due.source.tag.clone())).await?.is_some() {
            self.house.store.note_missing(&due.source.home, vec![(due.target.clone(), None)]).await?;
            return left("the source has it all the same, though it does not list it");
        }
        let there = target.manifest_head(&ManifestRef::Tag(due.target.tag.clone())).await?;
        let is_ours = there.as_ref().is_some_and(|head| head.digest == due.digest);
        if is_ours {
            return Ok(None);
        }
        // Whoever moved it or removed it: it is not ours any more.
        self.house.store.forget_origins(&due.source.home, std::slice::from_ref(&due.target)).await?;
        match there {
            Some(head) => left(&format!("it was written by hand: it is {} now", head.digest)),
            None => left("it is gone already"),
        }
    }

    /// Takes the tag for this process alone, as who writes it does.
    async fn hold(&self, target: &Place) -> Result<bool> {
        let named = self.house.store.acquire(&target_tag(target), self.holder, LEASE).await?;
        Ok(matches!(named, Named::Yours { .. }))
    }

    async fn forget(&self, rule: usize, due: &Due) -> Result<()> {
        let store = &self.house.store;
        store.forget_origins(&due.source.home, std::slice::from_ref(&due.target)).await?;
        let options = super::run::rule_options(&self.rules[rule]).fingerprint().into();
        let scope = CacheScope { home: (*due.target.home).clone(), options };
        store.forget_tags(&scope, std::slice::from_ref(&due.target.tag)).await
    }

    async fn note(&self, rule: usize, due: &Due, (outcome, reason): Became) -> Result<()> {
        if outcome == PruneOutcome::Failed {
            self.context.warn(format!("{} was not removed ({}): {reason}", due.target, self.rules[rule].place()));
        }
        let line = Pruned {
            source: due.source.to_string(),
            target: due.target.to_string(),
            outcome,
            digest: Some(due.digest.clone()),
            reason,
        };
        self.house.store.note_pruned(self.batch, line).await
    }
}

fn failed(error: &Error) -> Became {
    let words = match error.advice() {
        Some(advice) => format!("{error} ({advice})"),
        None => error.to_string(),
    };
    (PruneOutcome::Failed, words)
}

/// Removes a tag that is certain to go; `going` are all such tags of the repository, and `needed` what the others need, once
/// that was looked for.
async fn remove(
    due: &Due,
    target: &Repository,
    going: &BTreeSet<Tag>,
    needed: &mut Option<HashMap<Digest, Tag>>,
) -> Result<Became> {
    let tag = ManifestRef::Tag(due.target.tag.clone());
    let removed = || (PruneOutcome::Removed, String::new());
    // It may have been moved since it was looked at.
    match target.manifest_head(&tag).await? {
        None => return Ok(removed()),
        Some(head) if head.digest != due.digest => {
            return Ok((PruneOutcome::Left, format!("it was written by hand: it is {} now", head.digest)));
        }
        Some(_) => {}
    }
    let alone = match target.manifest_delete(&tag).await? {
        Deleted::Done | Deleted::Missing if target.manifest_head(&tag).await?.is_none() => return Ok(removed()),
        Deleted::Done => {
            let tried = format!("deleting {}", due.target);
            return Err(Error::new(Class::BadAnswer, tried, "the registry took that, and the tag is still there"));
        }
        Deleted::Missing => None,
        Deleted::Unsupported(error) => Some(error),
    };
    if needed.is_none() {
        *needed = Some(needed_by_others(target, going).await?);
    }
    if let Some(user) = needed.as_ref().and_then(|needed| needed.get(&due.digest)) {
        let why = format!("the registry removes no tag alone, and the tag {user} needs the same image");
        return Ok((PruneOutcome::Left, why));
    }
    match target.manifest_delete(&ManifestRef::Digest(due.digest.clone())).await? {
        Deleted::Done | Deleted::Missing if target.manifest_head(&tag).await?.is_none() => Ok(removed()),
        Deleted::Done | Deleted::Missing => {
            let tried = format!("deleting {}", due.target);
            Err(Error::new(Class::BadAnswer, tried, "the registry removed its digest, and the tag is still there"))
        }
        Deleted::Unsupported(error) => {
            let hint = "the registry deletes nothing: allow it there (distribution: storage.delete.enabled), or leave `prune` out";
            Err(alone.unwrap_or(error).hint(hint))
        }
    }
}

/// What the tags of a repository need that do not go: each digest with one of the tags that need it.
async fn needed_by_others(target: &Repository, going: &BTreeSet<Tag>) -> Result<HashMap<Digest, Tag>> {
    let tried = format!("looking what the tags of {}/{} need", target.registry(), target.name());
    let mut tags: Vec<Tag> = Vec::new();
    let mut pages = target.tags();
    while let Some(page) = pages.next_page().await? {
        for name in page.tags {
            let tag = name.parse::<Tag>().map_err(|error| Error::new(Class::BadAnswer, &tried, error.to_string()))?;
            if !going.contains(&tag) {
                tags.push(tag);
            }
        }
        if tags.len() > MOST_TAGS {
            let detail = format!("it has more than {MOST_TAGS} tags, and deletes by digest only");
            return Err(Error::new(Class::Unsupported, &tried, detail).hint("remove the tag there by hand"));
        }
    }
    let found: Vec<Vec<(Digest, Tag)>> = futures_util::stream::iter(tags)
        .map(|tag| async move {
            let digests = needed_by(target, &ManifestRef::Tag(tag.clone())).await?;
            Ok::<_, Error>(digests.into_iter().map(|digest| (digest, tag.clone())).collect())
        })
        .buffer_unordered(AT_ONCE)
        .try_collect()
        .await?;
    Ok(found.into_iter().flatten().collect())
}

/// The manifests that a tag needs: its own, and those below an index.
async fn needed_by(target: &Repository, tag: &ManifestRef) -> Result<Vec<Digest>> {
    let Some(head) = target.manifest_head(tag).await? else { return Ok(Vec::new()) };
    let mut needed = vec![head.digest.clone()];
    if head.media_type.is_manifest() {
        return Ok(needed);
    }
    let mut open = vec![(head.digest, true, 0)];
    while let Some((digest, is_manifest, depth)) = open.pop() {
        let manifest: Manifest = match target.manifest_get(&ManifestRef::Digest(digest.clone())).await {
            Ok(manifest) => manifest,
            // A blob needs no manifest. Registries have errors of their own for one that is asked for as a manifest.
            Err(_) if !is_manifest && target.blob_head(&digest).await? => continue,
            // What it lists and does not have, nobody needs any more; what is of an old kind lists nothing.
            Err(error) if matches!(error.class(), Class::NotFound | Class::Unsupported) => continue,
            Err(error) => return Err(error),
        };
        for child in manifest.children() {
            needed.push(child.digest.clone());
            if !child.media_type.is_manifest() && depth < MAX_DEPTH {
                open.push((child.digest.clone(), child.media_type.names_a_manifest(), depth + 1));
            }
        }
    }
    Ok(needed)
}
