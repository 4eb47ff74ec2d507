//! Copies pending pushes while this process leads: a batch at a time of each rule, limited to what was pushed.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

use imgsync_model::batch::{BatchId, PushedReference, PushedRepository};
use imgsync_oci::Digest;
use imgsync_oci::error::Result;
use imgsync_oci::humanize::pluralize;
use imgsync_registry::event::Events;
use imgsync_store::{BatchState, PendingPush, Postponed, PushRule, ReceivedPush};
use jiff::{SignedDuration, Timestamp};
use tokio::sync::{Notify, watch};
use tokio_util::sync::CancellationToken;

use super::debounce::Debounce;
use crate::orchestrator::{Backend, LaggingPushes, Leadership, describe_push, is_leader, push_metrics};
use crate::push_rechecks::{PushFailures, RECHECK_DELAYS};
use crate::serve::active_config::{ActiveConfig, ActiveRule};
use crate::serve::scheduler::Scheduler;
use crate::serve::{emit_notice, warn, warn_repeatedly};

/// Interval between checks for pushes that another coordinator has received, or that become due.
const POLL_INTERVAL: Duration = Duration::from_millis(500);
/// The same without hooks: only pushes of an earlier configuration can be pending.
const IDLE_POLL_INTERVAL: Duration = Duration::from_secs(10);
/// Pause after a batch could not begin because another one of its rule is running.
const BLOCKED_PAUSE: Duration = Duration::from_secs(1);
/// Interval between checks of the runs of whole rules.
const RUN_POLL_INTERVAL: Duration = Duration::from_secs(5);
/// Delays before a tag is asked for again that does not show what was pushed. Then what it shows counts.
const LAG_DELAYS: [Duration; 5] = [
    Duration::from_secs(5),
    Duration::from_secs(15),
    Duration::from_secs(60),
    Duration::from_secs(300),
    Duration::from_secs(900),
];
/// Delay between further attempts to find a push, after those of [`RECHECK_DELAYS`]; also of a push whose batch does not end.
const RETRY_DELAY: Duration = Duration::from_secs(60 * 60);
/// Attempts to find a push, over a day, and to run a whole rule.
const MAX_ATTEMPTS: u8 = 26;
const MAX_WHOLE_ATTEMPTS: u8 = 4;
/// How long pushes of a rule that the configuration does not have are left to another coordinator, which may have it.
const UNKNOWN_RULE_REST: SignedDuration = SignedDuration::from_mins(10);
/// Minimum interval between two checks, however many notifications arrive.
const MIN_POLL_INTERVAL: Duration = Duration::from_millis(50);

/// Copies what was pushed.
pub(in crate::serve) struct PushService {
    pub(in crate::serve) backend: Backend,
    pub(in crate::serve) active_config: watch::Receiver<Arc<ActiveConfig>>,
    pub(in crate::serve) scheduler: Scheduler,
    /// Notified of pushes that this process has received.
    pub(in crate::serve) arrived: Arc<Notify>,
    pub(in crate::serve) events: Events,
    pub(in crate::serve) stop: CancellationToken,
}

/// What this process remembers between its checks.
#[derive(Default)]
struct PushState {
    debounce: Debounce,
    /// Rules of which a batch is running, until when they are left alone.
    blocked: HashMap<String, Instant>,
    /// Running batches, with their pushes.
    running: HashMap<BatchId, RunningPushes>,
    /// Runs of whole rules because of too many pushes.
    whole_runs: HashSet<BatchId>,
    /// The newest ended run of each rule that hooks trigger.
    last_runs: HashMap<Digest, BatchId>,
    runs_read_at: Option<Instant>,
}

/// The pushes of a running batch.
struct RunningPushes {
    pushes: Vec<PendingPush>,
    /// Those whose tags do not show what was pushed.
    lagging: LaggingPushes,
}

impl PushService {
    /// Copies pushes while this process leads, until stopped.
    pub(in crate::serve) async fn run(&self, mut leadership: watch::Receiver<Leadership>) {
        let lead = async {
            let mut state = PushState::default();
            loop {
                if !is_leader(&leadership.borrow()) {
                    state = PushState::default();
                    push_metrics::set_pending(0);
                }
                let lease = match leadership.wait_for(is_leader).await {
                    Ok(lease) => lease.clone(),
                    Err(_) => return,
                };
                // A process that was suspended goes no step further once another one leads.
                if let Some(lease) = lease
                    && let Some(Err(error)) = lease.run(self.check(&mut state)).await
                {
                    warn_repeatedly(&self.events, "copying what was pushed", &error);
                }
                tokio::time::sleep(MIN_POLL_INTERVAL).await;
                let has_hooks = !self.active_config.borrow().hooks.is_empty();
                let pause = if has_hooks { POLL_INTERVAL } else { IDLE_POLL_INTERVAL };
                tokio::select! {
                    () = self.arrived.notified() => {}
                    () = tokio::time::sleep(pause) => {}
                }
            }
        };
        tokio::select! {
            () = lead => {}
            () = self.stop.cancelled() => {}
        }
    }

    /// Begins the batches that are due.
    async fn check(&self, state: &mut PushState) -> Result<()> {
        self.observe_ended(state).await?;
        self.count_missed(state).await?;
        let pending = self.backend.store.pending_pushes().await?;
        push_metrics::set_unreadable(self.backend.store.unreadable_pushes());
        let running: HashSet<_> = state.running.values().flat_map(|running| &running.pushes).map(identify).collect();
        let pending: Vec<PendingPush> = pending.into_iter().filter(|push| !running.contains(&identify(push))).collect();
        drop(running);
        push_metrics::set_pending(pending.len());
        if pending.is_empty() {
            return Ok(());
        }
        let current = self.active_config.borrow().clone();
        let now = Instant::now();
        state.blocked.retain(|_, until| *until > now);
        let time = self.backend.clock.now();
        let is_postponed = |push: &PendingPush| push.not_before.is_some_and(|until| until > time);
        let arrived: Vec<PendingPush> = pending.iter().filter(|push| !is_postponed(push)).cloned().collect();
        let due: Vec<PendingPush> = state.debounce.find_due(&arrived, now).into_iter().cloned().collect();
        let mut rules: BTreeMap<&str, (Vec<&PendingPush>, bool)> = BTreeMap::new();
        for push in &pending {
            let (all, is_whole) = rules.entry(&push.rule).or_default();
            all.push(push);
            *is_whole |= push.pushed.is_none() && !is_postponed(push);
        }
        for (id, (all, is_whole)) in rules {
            let Some(rule) = current.rules.iter().find(|rule| rule.id == id) else {
                self.move_pushes(&current, all).await?;
                continue;
            };
            if state.blocked.contains_key(id) || current.waits_for_files(rule) {
                continue;
            }
            let due = due.iter().filter(|push| push.rule == id);
            let chosen: Vec<PendingPush> = match is_whole {
                // The run of the whole rule has all of them.
                true if due.clone().any(|push| push.pushed.is_none()) => all.into_iter().cloned().collect(),
                true => Vec::new(),
                false => due.cloned().collect(),
            };
            if !chosen.is_empty() {
                self.begin(state, &current, rule, (chosen, is_whole)).await?;
            }
        }
        Ok(())
    }

    /// Begins a batch of pushes, or of the whole rule, unless one is running.
    async fn begin(
        &self,
        state: &mut PushState,
        current: &Arc<ActiveConfig>,
        rule: &ActiveRule,
        (pushes, is_whole): (Vec<PendingPush>, bool),
    ) -> Result<()> {
        let lagging = LaggingPushes::default();
        let started = match is_whole {
            true => self.scheduler.start_whole(current, rule).await?,
            false => self.scheduler.start_pushes(current, rule, group(&pushes), &lagging).await?,
        };
        let Ok(batch) = started else {
            state.blocked.insert(rule.id.clone(), Instant::now() + BLOCKED_PAUSE);
            return Ok(());
        };
        // They stay until the batch has found them; if this process does not see that, another one tries again.
        self.postpone(&pushes).await?;
        state.debounce.remove(&pushes);
        state.running.insert(batch, RunningPushes { pushes, lagging });
        match is_whole {
            true => {
                push_metrics::count_whole_rule();
                state.whole_runs.insert(batch);
                emit_notice(&self.events, &format!("{}: too many pushes; running the whole rule", rule.title()));
            }
            false => push_metrics::count_batch(),
        }
        Ok(())
    }

    /// Postpones pushes whose batch has begun, in case this process does not see its end, or the policy of the rule refuses
    /// them.
    async fn postpone(&self, pushes: &[PendingPush]) -> Result<()> {
        let mut delays: BTreeMap<Duration, Vec<PendingPush>> = BTreeMap::new();
        for push in pushes {
            let (checks, delay) = (push.postponed.checks, delay_after(push.postponed.checks));
            let postponed = Postponed { checks: checks.saturating_add(1), ..push.postponed };
            delays.entry(delay).or_default().push(PendingPush { postponed, ..push.clone() });
        }
        self.postpone_by(delays).await
    }

    async fn postpone_by(&self, delays: BTreeMap<Duration, Vec<PendingPush>>) -> Result<()> {
        for (delay, pushes) in delays {
            let until = self.backend.clock.now().saturating_add(SignedDuration::try_from(delay).unwrap_or_default());
            self.backend.store.postpone_pushes(&pushes, until.unwrap_or(Timestamp::MAX)).await?;
        }
        Ok(())
    }

    /// Records how long the batches that have ended took since their pushes, and removes those that they found: the
    /// plan is complete, the repository was listed, and the policy did not refuse the image.
    async fn observe_ended(&self, state: &mut PushState) -> Result<()> {
        let running: Vec<BatchId> = state.running.keys().copied().collect();
        for id in running {
            let Some(batch) = self.backend.store.batch(id).await? else {
                // Its record was removed: they are tried again.
                state.running.remove(&id);
                continue;
            };
            let Some(ended) = batch.ended_at else { continue };
            let refused = PushFailures::read(&*self.backend.store, id).await?.refused;
            let unlisted: HashSet<String> =
                self.backend.store.listing_failures(id).await?.into_iter().map(|failure| failure.repository).collect();
            // Who cancels a batch does not want its pushes.
            let is_complete = batch.plan_completed_at.is_some() || batch.state == BatchState::Cancelled;
            let Some(RunningPushes { pushes, lagging }) = state.running.get(&id) else { continue };
            let (mut done, mut given_up) = (Vec::new(), Vec::new());
            // Neither counts as a check of what the policy refuses.
            let mut again: BTreeMap<Duration, Vec<PendingPush>> = BTreeMap::new();
            for push in pushes {
                let Postponed { checks, lags, failures } = push.postponed;
                let is_missing = !is_complete || is_unlisted(push, &unlisted);
                let is_lagging = lagging.contains(&describe(push));
                let lag_delay = LAG_DELAYS.get(usize::from(lags)).filter(|_| is_lagging && !is_missing);
                if let Some(delay) = lag_delay {
                    let postponed = Postponed { lags: lags + 1, ..push.postponed };
                    again.entry(*delay).or_default().push(PendingPush { postponed, ..push.clone() });
                    continue;
                }
                let limit = if push.pushed.is_some() { MAX_ATTEMPTS } else { MAX_WHOLE_ATTEMPTS };
                match is_missing {
                    true if failures.saturating_add(1) < limit => {
                        let postponed = Postponed { failures: failures.saturating_add(1), ..push.postponed };
                        again.entry(delay_after(failures)).or_default().push(PendingPush { postponed, ..push.clone() });
                    }
                    true => given_up.push(push.clone()),
                    false if is_refused(push, &refused) && usize::from(checks) < RECHECK_DELAYS.len() => {}
                    false => {
                        if is_lagging {
                            // Pushed or deleted again since.
                            push_metrics::count("outdated", 1);
                            tracing::info!("{} does not show what was pushed, as a hook told", describe(push));
                        }
                        done.push(push.clone());
                    }
                }
            }
            self.postpone_by(again).await?;
            self.backend.store.remove_pushes(&done).await?;
            self.backend.store.remove_pushes(&given_up).await?;
            for push in &given_up {
                let (name, attempts) = (describe(push), push.postponed.failures.saturating_add(1));
                warn(
                    &self.events,
                    &format!("gave up {name}, which was pushed: none of {attempts} attempts to find it succeeded"),
                );
            }
            push_metrics::count("given_up", given_up.len() as u64);
            // What is tried again was pushed long before.
            for push in done.iter().filter(|push| push.postponed == Postponed::default()) {
                let lag = ended.duration_since(push.first_at);
                push_metrics::observe_lag(Duration::try_from(lag).unwrap_or_default());
            }
            state.running.remove(&id);
        }
        Ok(())
    }

    /// Counts what runs of whole rules have copied although hooks should have told of it.
    async fn count_missed(&self, state: &mut PushState) -> Result<()> {
        if state.runs_read_at.is_some_and(|at| at.elapsed() < RUN_POLL_INTERVAL) {
            return Ok(());
        }
        state.runs_read_at = Some(Instant::now());
        let current = self.active_config.borrow().clone();
        let is_triggered = |rule: &&ActiveRule| current.hooks.values().any(|hook| hook.triggers(&rule.id));
        let triggered: Vec<&ActiveRule> = current.rules.iter().filter(is_triggered).collect();
        if triggered.is_empty() {
            return Ok(());
        }
        let rules: Vec<Digest> = triggered.iter().map(|rule| rule.batch_identity.clone()).collect();
        state.last_runs.retain(|rule, _| rules.contains(rule));
        for batch in self.backend.store.newest_batches(&rules, None, 1).await? {
            if batch.ended_at.is_none() {
                continue;
            }
            // The first run that this process sees may be the first of the rule, which copies all.
            let is_new = state.last_runs.insert(batch.rules.clone(), batch.id).is_some_and(|last| last != batch.id);
            let is_whole = state.whole_runs.remove(&batch.id);
            let copied = batch.counts.copied;
            if !is_new || is_whole || copied == 0 {
                continue;
            }
            push_metrics::count_missed(copied);
            let title = triggered.iter().find(|rule| rule.batch_identity == batch.rules).map(|rule| rule.title());
            let tags = pluralize(copied, "tag", "tags");
            let title = title.unwrap_or_default();
            emit_notice(&self.events, &format!("{title}: its run copied {tags} of which no hook had told"));
        }
        Ok(())
    }

    /// Gives the pushes of a rule that the configuration no longer has to those that want them now, and a run of the whole
    /// rule to the rule of its name. What none wants is dropped. Both later if another coordinator may have received them
    /// with a newer configuration, which may want something else of them.
    async fn move_pushes(&self, current: &ActiveConfig, pushes: Vec<&PendingPush>) -> Result<()> {
        let (mut moved, mut whole, mut removed) = (Vec::new(), Vec::new(), Vec::new());
        let mut lost = 0;
        let time = self.backend.clock.now();
        for push in pushes {
            let has_rested = time.duration_since(push.last_at) >= UNKNOWN_RULE_REST;
            let is_older = !self.backend.is_cluster() || push.last_at < current.loaded_at;
            if !is_older && !has_rested {
                continue;
            }
            if push.pushed.is_none()
                && let Some(edited) = current.rules.iter().find(|rule| rule.name == push.rule_name)
            {
                whole.push(edited.push_rule());
                removed.push(push.clone());
                continue;
            }
            let mut rules: Vec<PushRule> = Vec::new();
            let mut may_be_wanted = false;
            if let Some((registry, repository, reference)) = &push.pushed {
                let hooks = current.hooks.values().filter(|hook| hook.config.registry == *registry);
                for hook in hooks {
                    rules.extend(hook.wanted_by(repository, reference));
                    may_be_wanted |= hook.unread_rules().next().is_some();
                }
                rules.sort_unstable();
                rules.dedup();
                if !rules.is_empty() {
                    let (registry, repository, reference) = (registry.clone(), repository.clone(), reference.clone());
                    moved.push(ReceivedPush { id: None, registry, repository, reference, rules });
                    removed.push(push.clone());
                    continue;
                }
            }
            // Files that name images and are not read yet may name it.
            if has_rested && !may_be_wanted {
                lost += push.notifications;
                removed.push(push.clone());
            }
        }
        if !moved.is_empty() {
            self.backend.store.add_pushes(moved).await?;
        }
        if !whole.is_empty() {
            self.backend.store.add_whole_runs(whole).await?;
        }
        if lost > 0 {
            push_metrics::count("rule_gone", lost);
            let pushes = pluralize(lost, "notification", "notifications");
            warn(&self.events, &format!("dropped {pushes} of pushes: their rule is not in the configuration any more"));
        }
        self.backend.store.remove_pushes(&removed).await
    }
}

/// Returns the delay after a number of attempts to find a push, or of checks of it.
fn delay_after(attempts: u8) -> Duration {
    *RECHECK_DELAYS.get(usize::from(attempts)).unwrap_or(&RETRY_DELAY)
}

/// Identifies a push, until its next notification.
fn identify(push: &PendingPush) -> (&str, String, i64, u64) {
    (&push.rule, describe(push), push.first_at.as_millisecond(), push.notifications)
}

/// Returns whether what was pushed is among what could not be listed. Any failure counts for the run of a whole rule.
fn is_unlisted(push: &PendingPush, unlisted: &HashSet<String>) -> bool {
    let Some((registry, repository, _)) = &push.pushed else { return !unlisted.is_empty() };
    let repository = format!("{registry}/{repository}");
    let concerns = |failed: &String| {
        *failed == repository || failed.strip_prefix(&repository).is_some_and(|rest| rest.starts_with(" (by"))
    };
    unlisted.contains(&describe(push)) || unlisted.iter().any(concerns)
}

/// Returns whether the policy refused a pushed tag.
fn is_refused(push: &PendingPush, refused: &HashSet<String>) -> bool {
    matches!(push.pushed, Some((_, _, PushedReference::Tag(..)))) && refused.contains(&describe(push))
}

/// Names what was pushed.
fn describe(push: &PendingPush) -> String {
    match &push.pushed {
        Some((registry, repository, reference)) => describe_push((registry, repository), reference),
        None => format!("a run of the whole rule {}", push.rule),
    }
}

/// Groups pushes by repository.
fn group(pushes: &[PendingPush]) -> Vec<PushedRepository> {
    let mut groups: Vec<PushedRepository> = Vec::new();
    let mut positions: HashMap<(&str, &str), usize> = HashMap::new();
    for (registry, repository, reference) in pushes.iter().filter_map(|push| push.pushed.as_ref()) {
        let at = *positions.entry((registry.as_str(), repository.as_str())).or_insert_with(|| {
            let (registry, repository) = (registry.clone(), repository.clone());
            groups.push(PushedRepository { registry, repository, references: Vec::new() });
            groups.len() - 1
        });
        groups[at].references.push(reference.clone());
    }
    groups
}
