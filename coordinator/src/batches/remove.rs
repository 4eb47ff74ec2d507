//! Prunes target tags whose source is gone, after checking each at both endpoints once more. A tag that cannot be
//! deleted alone is deleted by digest only if no other tag needs that. Two leases are confirmed before each deletion:
//! that of the repository, so that one process prunes it at a time, and that of the tag.

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::sync::Arc;
use std::time::Duration;

use imgsync_common::batch::{BatchId, Home, Place, Requests};
use imgsync_common::config::Rule;
use imgsync_common::error::{Class, Error, Result};
use imgsync_common::image::Tag;
use imgsync_common::registry::{Access, Client, Context, Deleted, ManifestRef, Repository, Tally};
use imgsync_common::store::{CacheScope, LEASE, LeaseGuard, Leased, PruneOutcome, Pruned, Spent, removal, target_tag};

use super::house::House;
use super::needed::{Needed, Use};
use super::prune::{Due, Pruning};

/// Reason for keeping a tag whose provenance record may be forged.
const UNAUTHENTICATED: &str = "the record of where it came from was not written with this cluster.key";
/// Reason for keeping a tag after its lease, or that of its repository, was lost.
const LEASE_LOST: &str = "the lease under which it was to be removed was lost: another process may be at it";

/// Prunes the target tags of one batch.
pub(super) struct Remover<'a> {
    pub(super) house: &'a House,
    pub(super) client: &'a Client,
    pub(super) context: &'a Context,
    pub(super) rules: &'a [Rule],
    pub(super) batch: BatchId,
    /// Holder of the leases.
    pub(super) holder: &'a str,
}

/// Outcome and reason.
type Became = (PruneOutcome, String);

/// Result of checking a candidate at both endpoints.
enum Asked {
    /// May be removed.
    Due { is_index: bool },
    /// Is kept.
    NotDue(Became),
}

/// A candidate that was confirmed.
struct Sure {
    due: Due,
    is_index: bool,
}

impl Remover<'_> {
    /// Removes the candidates of the prune plans and records each outcome. Returns only errors of the store.
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
        let (source, target) = (self.rules[rule].reads(), self.rules[rule].writes());
        self.context.warn(format!("nothing of {source} is removed at its targets: {why}"));
        let line =
            Pruned { source, target: target.join(", "), outcome: PruneOutcome::Refused, digest: None, reason: why };
        self.house.store.note_pruned(self.batch, line).await
    }

    /// Returns which of these target tags the batch writes, now from another source.
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

    /// Removes the candidates of one target repository.
    async fn remove_from(
        &self,
        rule: usize,
        home: &Arc<Home>,
        all: Vec<Due>,
        planned: &HashSet<Place>,
        tallies: &(Arc<Tally>, Arc<Tally>),
    ) -> Result<()> {
        let Some((registry, path)) = home.registry() else { return Ok(()) };
        // Also reads with delete access: with credentials that may only push, a denied read looks like a missing tag.
        let target = self.client.repository(registry, &path, Access::Delete, self.context, &tallies.1)?;
        let lease = match self.lease(&removal(home)).await? {
            Leased::Acquired(lease) => lease,
            Leased::HeldBy(other) => {
                let why = format!("{other} removes tags of this repository at the moment");
                for due in all {
                    self.note(rule, &due, (PruneOutcome::Left, why.clone())).await?;
                }
                return Ok(());
            }
        };
        let mut sure: Vec<Sure> = Vec::new();
        for due in all {
            match self.is_due(&due, &target, planned, &tallies.0).await {
                Ok(Asked::Due { is_index }) => sure.push(Sure { due, is_index }),
                Ok(Asked::NotDue(became)) => self.note(rule, &due, became).await?,
                Err(error) => self.note(rule, &due, failed(&error)).await?,
            }
        }
        let removed = self.remove_all(rule, (&target, home), sure, &lease).await;
        lease.release().await;
        removed
    }

    /// Removes confirmed tags, those of one digest together. Indexes go first: nothing else needs their children once
    /// they are gone.
    async fn remove_all(
        &self,
        rule: usize,
        (target, home): (&Repository, &Arc<Home>),
        mut sure: Vec<Sure>,
        lease: &LeaseGuard,
    ) -> Result<()> {
        sure.sort_by(|a, b| (b.is_index, &a.due.digest).cmp(&(a.is_index, &b.due.digest)));
        let tag_of = |sure: &Sure| sure.due.target.tag.clone();
        let mut going: BTreeSet<Tag> = sure.iter().map(tag_of).collect();
        let mut needed = Needed::default();
        for (at, group) in sure.chunk_by(|a, b| a.due.digest == b.due.digest).scan(0, |at, group| {
            *at += group.len();
            Some((*at, group))
        }) {
            let mut leased = Vec::new();
            for Sure { due, .. } in group {
                match self.lease(&target_tag(&due.target)).await? {
                    Leased::Acquired(tag_lease) => leased.push((due, tag_lease)),
                    Leased::HeldBy(_) => {
                        going.remove(&due.target.tag);
                        self.note(rule, due, (PruneOutcome::Left, "another process is writing it".to_owned())).await?;
                    }
                }
            }
            // An index may list another one that is removed later, or kept.
            let later: Vec<Tag> = sure[at..].iter().filter(|other| other.is_index).map(tag_of).collect();
            for (due, tag_lease) in &leased {
                if self.context.cancel.is_cancelled() {
                    return Ok(());
                }
                let going_now = going.iter().filter(|tag| !later.contains(tag)).cloned().collect();
                let leases = [lease, tag_lease];
                let removed = self.remove(due, (target, home), leases, (&going_now, &mut needed)).await;
                let became = removed.unwrap_or_else(|error| failed(&error));
                match became.0 {
                    PruneOutcome::Removed => self.forget(rule, due).await?,
                    _ => _ = going.remove(&due.target.tag),
                }
                self.note(rule, due, became).await?;
            }
            for (_, tag_lease) in leased {
                tag_lease.release().await;
            }
        }
        Ok(())
    }

    /// Acquires a lease that is not shared with the batch's tasks in this process.
    async fn lease(&self, name: &str) -> Result<Leased> {
        let holder = format!("{}/{}/removal", self.holder, self.batch);
        LeaseGuard::try_acquire(self.house.store.clone(), name, &holder, LEASE).await
    }

    /// Checks that the tag is still what we wrote, and that its source is still missing.
    async fn is_due(
        &self,
        due: &Due,
        target: &Repository,
        planned: &HashSet<Place>,
        tally: &Arc<Tally>,
    ) -> Result<Asked> {
        let left = |why: &str| Ok(Asked::NotDue((PruneOutcome::Left, why.to_owned())));
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
        if let Some(head) = there.as_ref().filter(|head| head.digest == due.digest) {
            return Ok(Asked::Due { is_index: !head.media_type.is_manifest() });
        }
        // Moved or removed by someone else: it is not ours any more.
        self.house.store.forget_origins(&due.source.home, std::slice::from_ref(&due.target)).await?;
        match there {
            Some(head) => left(&format!("it was written by hand: it is {} now", head.digest)),
            None => left("it is gone already"),
        }
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

    /// Removes a confirmed tag. `going` are the tags of the repository that are removed too, `needed` the known usage
    /// of manifests by the others.
    async fn remove(
        &self,
        due: &Due,
        (target, home): (&Repository, &Arc<Home>),
        leases: [&LeaseGuard; 2],
        (going, needed): (&BTreeSet<Tag>, &mut Needed),
    ) -> Result<Became> {
        let tag = ManifestRef::Tag(due.target.tag.clone());
        let removed = || (PruneOutcome::Removed, String::new());
        let lost = || Ok((PruneOutcome::Left, LEASE_LOST.to_owned()));
        // It may have moved since it was checked.
        match target.manifest_head(&tag).await? {
            None => return Ok(removed()),
            Some(head) if head.digest != due.digest => {
                return Ok((PruneOutcome::Left, format!("it was written by hand: it is {} now", head.digest)));
            }
            Some(_) => {}
        }
        let Some(deleted) = under(leases, target.manifest_delete(&tag)).await? else { return lost() };
        let alone = match deleted {
            Deleted::Done | Deleted::Missing if target.manifest_head(&tag).await?.is_none() => return Ok(removed()),
            Deleted::Done => {
                let tried = format!("deleting {}", due.target);
                return Err(Error::new(Class::BadAnswer, tried, "the registry took that, and the tag is still there"));
            }
            Deleted::Missing => None,
            Deleted::Unsupported(error) => Some(error),
        };
        match needed.find_use(&due.digest, &*self.house.store, (target, home), going).await? {
            Some(Use::Tag(user)) => {
                let why = format!("the registry removes no tag alone, and the tag {user} needs the same image");
                return Ok((PruneOutcome::Left, why));
            }
            Some(Use::Writing(lease)) => {
                let why = format!("the registry removes no tag alone, and another one is being written ({lease})");
                return Ok((PruneOutcome::Left, why));
            }
            None => {}
        }
        let digest = ManifestRef::Digest(due.digest.clone());
        let Some(deleted) = under(leases, target.manifest_delete(&digest)).await? else { return lost() };
        match deleted {
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
}

/// Runs a deletion if both leases are confirmed, and stops when one is lost, returning `None`.
async fn under<T>(leases: [&LeaseGuard; 2], delete: impl Future<Output = Result<T>>) -> Result<Option<T>> {
    for lease in leases {
        if !lease.confirm(Duration::ZERO).await? {
            return Ok(None);
        }
    }
    leases[0].run(leases[1].run(delete)).await.flatten().transpose()
}

fn failed(error: &Error) -> Became {
    let words = match error.advice() {
        Some(advice) => format!("{error} ({advice})"),
        None => error.to_string(),
    };
    (PruneOutcome::Failed, words)
}
