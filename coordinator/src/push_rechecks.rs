//! Further checks of pushed images that the policy of their rule refuses: signatures come after the push.

use std::collections::HashSet;
use std::time::Duration;

use imgsync_model::batch::{BatchId, PushedReference};
use imgsync_oci::error::{ErrorKind, Result};
use imgsync_store::{Batch, PendingPush, Store};
use jiff::{SignedDuration, Timestamp};

/// Delays between the checks of an image that the policy of its rule refuses: 1, 5 and 15 minutes after the push.
pub(crate) const RECHECK_DELAYS: [Duration; 3] =
    [Duration::from_secs(60), Duration::from_secs(240), Duration::from_secs(600)];
/// How long after the first notification of a push its refusals are not notified of, however often it is pushed again.
const QUIET_TIME: Duration = Duration::from_secs(16 * 60);
/// Failures of a batch that are read at a time.
const FAILURES_PER_PAGE: usize = 1_000;

/// Failed images of a batch.
#[derive(Debug, Default)]
pub(crate) struct PushFailures {
    /// Source tags that the policy of the rule refused.
    pub(crate) refused: HashSet<String>,
    /// Whether there are other failures.
    has_others: bool,
}

impl PushFailures {
    /// Reads the failures of a batch.
    pub(crate) async fn read(store: &dyn Store, batch: BatchId) -> Result<PushFailures> {
        let (mut failures, mut from) = (PushFailures::default(), 0);
        loop {
            let page = store.failures(batch, from, FAILURES_PER_PAGE).await?;
            let Some(last) = page.last() else { return Ok(failures) };
            from = last.task.index + 1;
            for failed in page {
                match failed.failure.kind {
                    ErrorKind::RefusedByPolicy => _ = failures.refused.insert(failed.task.spec.source.to_string()),
                    _ => failures.has_others = true,
                }
            }
        }
    }
}

/// Returns whether all failures of an ended batch of pushes are refusals by policy that are checked again within
/// minutes. `rules` are the ids of its rules.
pub(crate) async fn are_failures_rechecked(
    store: &dyn Store,
    batch: &Batch,
    rules: &HashSet<String>,
    now: Timestamp,
) -> Result<bool> {
    let failures = PushFailures::read(store, batch.id).await?;
    if failures.has_others || failures.refused.is_empty() {
        return Ok(false);
    }
    let pending = store.pending_pushes().await?.into_iter().filter(|push| rules.contains(&push.rule));
    let rechecked: HashSet<String> = pending.filter_map(|push| name_rechecked(&push, now)).collect();
    Ok(failures.refused.is_subset(&rechecked))
}

/// Returns the name of a pushed tag, if it is checked again within minutes. One that is pushed again and again counts as
/// one that is not: its last check may never come.
fn name_rechecked(push: &PendingPush, now: Timestamp) -> Option<String> {
    let (registry, repository, reference) = push.pushed.as_ref()?;
    let is_left = match usize::from(push.postponed.checks) {
        // The batch has just begun, or it was pushed again.
        0 => true,
        checks => checks <= RECHECK_DELAYS.len() && push.not_before.is_some_and(|until| until > now),
    };
    let quiet_until = push.first_at.saturating_add(SignedDuration::try_from(QUIET_TIME).unwrap_or_default());
    let is_recent = quiet_until.is_ok_and(|until| now < until);
    let is_tag = matches!(reference, PushedReference::Tag(..));
    (is_left && is_recent && is_tag).then(|| reference.name_in(registry, repository))
}

#[cfg(test)]
mod tests {
    use super::*;
    use imgsync_store::Postponed;

    #[test]
    fn a_refusal_is_checked_again_until_the_last_check() {
        let now = Timestamp::from_second(1_000_000).unwrap();
        let later = Some(now + Duration::from_secs(60));
        let push = |checks: u8, not_before: Option<Timestamp>, reference: PushedReference| PendingPush {
            rule: "rule".to_owned(),
            rule_name: String::new(),
            pushed: Some(("r.example".parse().unwrap(), "a".parse().unwrap(), reference)),
            first_at: now,
            last_at: now,
            notifications: 1,
            not_before,
            postponed: Postponed { checks, lags: 5, failures: 7 },
        };
        let tag = || PushedReference::Tag("1".parse().unwrap(), None);
        for (checks, not_before, is_rechecked) in [
            (0, None, true),
            (1, later, true),
            (3, later, true),
            // The last check has begun.
            (3, Some(now), false),
            (4, later, false),
        ] {
            let name = name_rechecked(&push(checks, not_before, tag()), now);
            assert_eq!(name.as_deref(), is_rechecked.then_some("r.example/a:1"), "{checks} {not_before:?}");
        }
        assert_eq!(name_rechecked(&push(0, None, PushedReference::Unknown), now), None);
        // Pushed again every few minutes, and never checked to the end.
        for (minutes, is_quiet) in [(15, true), (16, false), (600, false)] {
            let first_at = now - Duration::from_secs(minutes * 60);
            let pushed_again = PendingPush { first_at, notifications: 9, ..push(1, later, tag()) };
            assert_eq!(name_rechecked(&pushed_again, now).is_some(), is_quiet, "{minutes}");
        }
    }
}
