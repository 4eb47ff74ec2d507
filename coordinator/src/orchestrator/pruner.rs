//! Prunes target tags whose source is gone, after checking each at both endpoints once more. A tag that cannot be
//! deleted alone is deleted by digest only if no other tag needs that. Two leases are confirmed before each deletion:
//! that of the repository, so that one process prunes it at a time, and that of the tag.

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::sync::Arc;
use std::time::Duration;

use imgsync_config::Rule;
use imgsync_model::batch::{BatchId, RepositoryLocator, RequestCounts, TagLocator};
use imgsync_oci::Tag;
use imgsync_oci::error::{Error, ErrorKind, Result};
use imgsync_registry::{Access, Client, Context, DeleteResult, ManifestRef, Repository, TrafficCounters};
use imgsync_store::{
    CacheScope, LEASE_TTL, LeaseGuard, PruneOutcome, PruneRecord, TryAcquireResult, Usage, prune_lease_name,
    tag_lease_name,
};

use super::backend::Backend;
use super::manifest_usage::{ManifestUsage, ManifestUse};
use super::prune_plan::{PruneCandidate, PrunePlan};

/// Reason for keeping a tag whose provenance record may be forged.
const UNAUTHENTICATED_REASON: &str = "its provenance record is not signed with this cluster.key";
/// Reason for keeping a tag after its lease, or that of its repository, was lost.
const LEASE_LOST_REASON: &str = "the lease for removing it was lost: another process may be writing it";

/// Prunes the target tags of one batch.
pub(super) struct Pruner<'a> {
    pub(super) backend: &'a Backend,
    pub(super) client: &'a Client,
    pub(super) context: &'a Context,
    pub(super) rules: &'a [Rule],
    pub(super) batch: BatchId,
    /// Holder of the leases.
    pub(super) holder: &'a str,
}

/// Outcome and reason.
type PruneResult = (PruneOutcome, String);

/// Result of checking a candidate at both endpoints.
enum RecheckResult {
    /// May be removed.
    Confirmed { is_index: bool },
    /// Is kept.
    Kept(PruneResult),
}

/// A candidate that was confirmed.
struct ConfirmedCandidate {
    due: PruneCandidate,
    is_index: bool,
}

impl Pruner<'_> {
    /// Removes the candidates of the prune plans and records each outcome. Returns only errors of the store.
    pub(super) async fn run(&self, prune_plans: Vec<PrunePlan>) -> Result<()> {
        let mut due: BTreeMap<(usize, Arc<RepositoryLocator>), Vec<PruneCandidate>> = BTreeMap::new();
        for mut pruning in prune_plans {
            let rule = pruning.rule;
            for one in pruning.take_unauthenticated() {
                self.record_result(rule, &one, (PruneOutcome::Left, UNAUTHENTICATED_REASON.to_owned())).await?;
            }
            match pruning.finalize() {
                Ok(all) => {
                    for one in all {
                        due.entry((rule, one.target.repository.clone())).or_default().push(one);
                    }
                }
                Err(why) => self.record_refusal(rule, why).await?,
            }
        }
        if due.is_empty() {
            return Ok(());
        }
        let planned = self.find_planned_targets(due.values().flatten().map(|due| &due.target).collect()).await?;
        let tallies = (TrafficCounters::new(), TrafficCounters::new());
        for ((rule, home), all) in due {
            if self.context.cancel.is_cancelled() {
                break;
            }
            self.prune_repository(rule, &home, all, &planned, &tallies).await?;
        }
        let requests = RequestCounts { source: tallies.0.snapshot().requests, target: tallies.1.snapshot().requests };
        self.backend.store.add_usage(self.batch, Usage { requests, ..Usage::default() }).await
    }

    async fn record_refusal(&self, rule: usize, reason: String) -> Result<()> {
        let (source, target) = (self.rules[rule].source_label(), self.rules[rule].target_labels());
        self.context.warn(format!("nothing is pruned for {source}: {reason}"));
        let line =
            PruneRecord { source, target: target.join(", "), outcome: PruneOutcome::Refused, digest: None, reason };
        self.backend.store.record_pruned(self.batch, line).await
    }

    /// Returns which of these target tags the batch writes, now from another source.
    async fn find_planned_targets(&self, targets: HashSet<&TagLocator>) -> Result<HashSet<TagLocator>> {
        const PAGE: usize = 5_000;
        let mut planned = HashSet::new();
        let mut from = 0;
        loop {
            let rows = self.backend.store.tasks(self.batch, None, from, PAGE).await?;
            let Some(last) = rows.last() else { return Ok(planned) };
            from = last.task.index + 1;
            let here = rows.into_iter().map(|row| row.task.spec.target);
            planned.extend(here.filter(|target| targets.contains(target)));
        }
    }

    /// Removes the candidates of one target repository.
    async fn prune_repository(
        &self,
        rule: usize,
        home: &Arc<RepositoryLocator>,
        all: Vec<PruneCandidate>,
        planned: &HashSet<TagLocator>,
        tallies: &(Arc<TrafficCounters>, Arc<TrafficCounters>),
    ) -> Result<()> {
        let Some((registry, path)) = home.registry() else { return Ok(()) };
        // Also reads with delete access: with credentials that may only push, a denied read looks like a missing tag.
        let target = self.client.repository(registry, &path, Access::Delete, self.context, &tallies.1)?;
        let lease = match self.acquire_lease(&prune_lease_name(home)).await? {
            TryAcquireResult::Acquired(lease) => lease,
            TryAcquireResult::HeldBy(other) => {
                let why = format!("{other} is pruning this repository");
                for due in all {
                    self.record_result(rule, &due, (PruneOutcome::Left, why.clone())).await?;
                }
                return Ok(());
            }
        };
        let mut confirmed: Vec<ConfirmedCandidate> = Vec::new();
        for due in all {
            match self.recheck(&due, &target, planned, &tallies.0).await {
                Ok(RecheckResult::Confirmed { is_index }) => confirmed.push(ConfirmedCandidate { due, is_index }),
                Ok(RecheckResult::Kept(result)) => self.record_result(rule, &due, result).await?,
                Err(error) => self.record_result(rule, &due, failure_result(&error)).await?,
            }
        }
        let removed = self.remove_confirmed(rule, (&target, home), confirmed, &lease).await;
        lease.release().await;
        removed
    }

    /// Removes confirmed tags, those of one digest together. Indexes go first: nothing else needs their children once
    /// they are gone.
    async fn remove_confirmed(
        &self,
        rule: usize,
        (target, home): (&Repository, &Arc<RepositoryLocator>),
        mut sure: Vec<ConfirmedCandidate>,
        lease: &LeaseGuard,
    ) -> Result<()> {
        sure.sort_by(|a, b| (b.is_index, &a.due.digest).cmp(&(a.is_index, &b.due.digest)));
        let tag_of = |sure: &ConfirmedCandidate| sure.due.target.tag.clone();
        let mut going: BTreeSet<Tag> = sure.iter().map(tag_of).collect();
        let mut needed = ManifestUsage::default();
        for (at, group) in sure.chunk_by(|a, b| a.due.digest == b.due.digest).scan(0, |at, group| {
            *at += group.len();
            Some((*at, group))
        }) {
            let mut leased = Vec::new();
            for ConfirmedCandidate { due, .. } in group {
                match self.acquire_lease(&tag_lease_name(&due.target)).await? {
                    TryAcquireResult::Acquired(tag_lease) => leased.push((due, tag_lease)),
                    TryAcquireResult::HeldBy(_) => {
                        going.remove(&due.target.tag);
                        self.record_result(rule, due, (PruneOutcome::Left, "another process is writing it".to_owned()))
                            .await?;
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
                let removed = self.remove_tag(due, (target, home), leases, (&going_now, &mut needed)).await;
                let result = removed.unwrap_or_else(|error| failure_result(&error));
                match result.0 {
                    PruneOutcome::Removed => self.forget_records(rule, due).await?,
                    _ => _ = going.remove(&due.target.tag),
                }
                self.record_result(rule, due, result).await?;
            }
            for (_, tag_lease) in leased {
                tag_lease.release().await;
            }
        }
        Ok(())
    }

    /// Acquires a lease that is not shared with the batch's tasks in this process.
    async fn acquire_lease(&self, name: &str) -> Result<TryAcquireResult> {
        let holder = format!("{}/{}/removal", self.holder, self.batch);
        LeaseGuard::try_acquire(self.backend.store.clone(), name, &holder, LEASE_TTL).await
    }

    /// Checks that the tag is still what we wrote, and that its source is still missing.
    async fn recheck(
        &self,
        due: &PruneCandidate,
        target: &Repository,
        planned: &HashSet<TagLocator>,
        counters: &Arc<TrafficCounters>,
    ) -> Result<RecheckResult> {
        let left = |why: &str| Ok(RecheckResult::Kept((PruneOutcome::Left, why.to_owned())));
        if planned.contains(&due.target) {
            return left("this batch copies another image there");
        }
        let Some((registry, path)) = due.source.repository.registry() else {
            return left("its source is not a registry");
        };
        let source = self.client.repository(registry, &path, Access::Pull, self.context, counters)?;
        if source.head_manifest(&ManifestRef::Tag(due.source.tag.clone())).await?.is_some() {
            self.backend.store.set_missing_since(&due.source.repository, vec![(due.target.clone(), None)]).await?;
            return left("the source still has the tag, although its listing does not show it");
        }
        let there = target.head_manifest(&ManifestRef::Tag(due.target.tag.clone())).await?;
        if let Some(head) = there.as_ref().filter(|head| head.digest == due.digest) {
            return Ok(RecheckResult::Confirmed { is_index: !head.media_type.is_manifest() });
        }
        // Moved or removed by someone else: it is not ours any more.
        self.backend.store.forget_provenance(&due.source.repository, std::slice::from_ref(&due.target)).await?;
        match there {
            Some(head) => left(&format!("another tool changed it: its digest is now {}", head.digest)),
            None => left("it is already gone"),
        }
    }

    async fn forget_records(&self, rule: usize, due: &PruneCandidate) -> Result<()> {
        let store = &self.backend.store;
        store.forget_provenance(&due.source.repository, std::slice::from_ref(&due.target)).await?;
        let options = super::rule_options::rule_options(&self.rules[rule]).fingerprint().into();
        let scope = CacheScope { repository: (*due.target.repository).clone(), options };
        store.forget_tags(&scope, std::slice::from_ref(&due.target.tag)).await
    }

    async fn record_result(&self, rule: usize, due: &PruneCandidate, (outcome, reason): PruneResult) -> Result<()> {
        if outcome == PruneOutcome::Failed {
            self.context.warn(format!("{} was not removed ({}): {reason}", due.target, self.rules[rule].label()));
        }
        let line = PruneRecord {
            source: due.source.to_string(),
            target: due.target.to_string(),
            outcome,
            digest: Some(due.digest.clone()),
            reason,
        };
        self.backend.store.record_pruned(self.batch, line).await
    }

    /// Removes a confirmed tag. `going` are the tags of the repository that are removed too, `manifest_usage` the known usage
    /// of manifests by the others.
    async fn remove_tag(
        &self,
        due: &PruneCandidate,
        (target, home): (&Repository, &Arc<RepositoryLocator>),
        leases: [&LeaseGuard; 2],
        (going, needed): (&BTreeSet<Tag>, &mut ManifestUsage),
    ) -> Result<PruneResult> {
        let tag = ManifestRef::Tag(due.target.tag.clone());
        let removed = || (PruneOutcome::Removed, String::new());
        let lost = || Ok((PruneOutcome::Left, LEASE_LOST_REASON.to_owned()));
        // It may have moved since it was checked.
        match target.head_manifest(&tag).await? {
            None => return Ok(removed()),
            Some(head) if head.digest != due.digest => {
                return Ok((PruneOutcome::Left, format!("another tool changed it: its digest is now {}", head.digest)));
            }
            Some(_) => {}
        }
        let Some(deleted) = run_under_leases(leases, target.delete_manifest(&tag)).await? else { return lost() };
        let alone = match deleted {
            DeleteResult::Done | DeleteResult::Missing if target.head_manifest(&tag).await?.is_none() => {
                return Ok(removed());
            }
            DeleteResult::Done => {
                let operation = format!("deleting {}", due.target);
                return Err(Error::new(
                    ErrorKind::InvalidResponse,
                    operation,
                    "the registry accepted the request, but the tag still exists",
                ));
            }
            DeleteResult::Missing => None,
            DeleteResult::Unsupported(error) => Some(error),
        };
        match needed.find_use(&due.digest, &*self.backend.store, (target, home), going).await? {
            Some(ManifestUse::Tag(user)) => {
                let why = format!("the registry deletes only by digest, and the tag {user} uses the same image");
                return Ok((PruneOutcome::Left, why));
            }
            Some(ManifestUse::Writing(lease)) => {
                let why = format!("the registry deletes only by digest, and another tag is being written ({lease})");
                return Ok((PruneOutcome::Left, why));
            }
            None => {}
        }
        let digest = ManifestRef::Digest(due.digest.clone());
        let Some(deleted) = run_under_leases(leases, target.delete_manifest(&digest)).await? else { return lost() };
        match deleted {
            DeleteResult::Done | DeleteResult::Missing if target.head_manifest(&tag).await?.is_none() => Ok(removed()),
            DeleteResult::Done | DeleteResult::Missing => {
                let operation = format!("deleting {}", due.target);
                Err(Error::new(
                    ErrorKind::InvalidResponse,
                    operation,
                    "the registry deleted the manifest, but the tag still exists",
                ))
            }
            DeleteResult::Unsupported(error) => {
                let hint = "the registry does not allow deletion: enable it (distribution: storage.delete.enabled), or \
                     remove `prune` from the rule";
                Err(alone.unwrap_or(error).with_hint(hint))
            }
        }
    }
}

/// Runs a deletion if both leases are confirmed, and stops when one is lost, returning `None`.
async fn run_under_leases<T>(leases: [&LeaseGuard; 2], delete: impl Future<Output = Result<T>>) -> Result<Option<T>> {
    for lease in leases {
        if !lease.confirm(Duration::ZERO).await? {
            return Ok(None);
        }
    }
    leases[0].run(leases[1].run(delete)).await.flatten().transpose()
}

fn failure_result(error: &Error) -> PruneResult {
    let text = match error.hint() {
        Some(hint) => format!("{error} ({hint})"),
        None => error.to_string(),
    };
    (PruneOutcome::Failed, text)
}
