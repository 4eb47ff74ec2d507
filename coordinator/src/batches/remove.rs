//! Removes target tags whose source is gone. Each is asked for once more at both ends before it goes; one that cannot be
//! removed alone goes by its digest only if no other tag needs that. All under two leases, each confirmed before each
//! request that deletes: that of the repository, so that one process removes its tags at a time, and that of the tag.

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

/// Why a tag is left of which somebody else may have said that it is ours.
const UNAUTHENTICATED: &str = "the record of where it came from was not written with this cluster.key";
/// Why a tag is left whose lease, or that of its repository, was lost.
const LEASE_LOST: &str = "the lease under which it was to be removed was lost: another process may be at it";

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

/// The answers of both ends about a tag that is due.
enum Asked {
    /// It may go.
    Due { is_index: bool },
    /// It stays.
    NotDue(Became),
}

/// A tag that is certain to go.
struct Sure {
    due: Due,
    is_index: bool,
}

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
        let (source, target) = (self.rules[rule].reads(), self.rules[rule].writes());
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

    /// Removes tags that are certain to go, those of one digest together. Indexes go first: what one lists is needed by
    /// nobody else once it is gone.
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
            // An index may list another one that goes later, or not.
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

    /// Asks for a lease that nobody shares with this batch in this process.
    async fn lease(&self, name: &str) -> Result<Leased> {
        let holder = format!("{}/{}/removal", self.holder, self.batch);
        LeaseGuard::try_acquire(self.house.store.clone(), name, &holder, LEASE).await
    }

    /// Whether it still is ours and still is missing.
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
        // Whoever moved it or removed it: it is not ours any more.
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

    /// Removes a tag that is certain to go; `going` are the tags of the repository that go, too, and `needed` what the others
    /// need, as far as that was looked for.
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
        // It may have been moved since it was looked at.
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

/// Makes a request that deletes, if these leases are confirmed, and stops when one is lost: then none.
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
