//! Pushes that would undo or overwrite what imgsync itself has written: circles of rules, and target tags of other sources.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

use imgsync_config::{Rule, RuleSource};
use imgsync_model::batch::{Failure, TagLocator, TaskResult, TaskSpec};
use imgsync_oci::error::{Error, ErrorKind, Result};
use imgsync_oci::{Digest, Tag};
use imgsync_store::{TagProvenance, tag_lease_name};

use super::super::PlanBuilder;
use crate::orchestrator::push_metrics;
use crate::presets::SourceSelector;

/// Time after which a source tag that imgsync itself is writing is copied as it is.
const WRITE_DEADLINE: Duration = Duration::from_secs(15);
const WRITE_POLL_INTERVAL: Duration = Duration::from_millis(100);

impl PlanBuilder<'_> {
    /// Drops tasks whose source is the copy that imgsync made of their target: the notification was of that copy.
    pub(super) async fn refuse_loops(&self, tasks: &mut Vec<TaskSpec>) -> Result<()> {
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
    pub(super) async fn take_collisions(
        &self,
        rule: &Rule,
        selector: Option<&SourceSelector>,
        tasks: &mut Vec<TaskSpec>,
    ) -> Result<Vec<(TaskSpec, Option<TaskResult>)>> {
        // Of one repository, or the moved repositories of a preset, there is no other source.
        let may_collide = matches!(rule.source, RuleSource::Repositories(_))
            && selector.is_some_and(|selector| selector.pattern.repository().is_none());
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
