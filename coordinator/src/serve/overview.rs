//! The overview: totals, and the problems that need somebody, the worst first.

use std::collections::BTreeMap;

use imgsync_model::batch::BatchId;
use imgsync_oci::error::{ErrorKind, Result};
use imgsync_oci::humanize::pluralize;
use imgsync_store::outage::{Outage, OutageKind, ServerHealth};
use imgsync_store::{BROKER_ALARM_HINT, BrokerAlarm, StoreReplication};
use jiff::Timestamp;
use serde::Serialize;

use super::app::AppState;
use super::routes::RoutesResponse;
use super::rules::{RuleResponse, RuleState, count_states};
use super::workers::WorkerResponse;
use crate::batch_view::resume_command;
use crate::orchestrator::push_metrics;
use crate::report::advice;

/// Limit of rules named in a problem.
const MAX_NAMED_RULES: usize = 10;
/// Limit of problems. The others are counted.
const MAX_PROBLEMS: usize = 50;

/// Totals and problems.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub(super) struct OverviewResponse {
    totals: Totals,
    hooks: HookTotals,
    problems: Vec<Problem>,
    /// Problems that are left out.
    more_problems: usize,
}

#[derive(Debug, Clone, PartialEq, Serialize)]
struct Totals {
    rules: usize,
    /// Rules by state.
    states: BTreeMap<&'static str, usize>,
    /// Tags of all rules.
    tags: u64,
    tags_in_sync: u64,
    workers: usize,
    slots: u64,
    /// Slots that run a task.
    busy_slots: u64,
}

/// Notifications that this process has received since it started.
#[derive(Debug, Clone, PartialEq, Serialize)]
struct HookTotals {
    /// Hooks in the configuration.
    configured: usize,
    /// When a push was last accepted.
    last: Option<Timestamp>,
    /// Pushes that wait for their batch, as the leader sees them.
    pending: u64,
    /// Notifications and pushes by outcome; those that there were.
    outcomes: BTreeMap<&'static str, u64>,
}

impl HookTotals {
    fn load(app: &AppState) -> HookTotals {
        let last = push_metrics::last();
        HookTotals {
            configured: app.active_config.borrow().hooks.len(),
            last: if last > 0 { Timestamp::from_second(last).ok() } else { None },
            pending: push_metrics::pending(),
            outcomes: push_metrics::outcomes().into_iter().filter(|(_, number)| *number > 0).collect(),
        }
    }
}

/// What needs somebody, and what to do.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub(super) struct Problem {
    /// `error`: something is not mirrored. `warning`: it may become an error, or is likely a mistake.
    severity: &'static str,
    title: String,
    /// Message of one of the causes; empty if the title says it all.
    detail: String,
    advice: String,
    since: Option<Timestamp>,
    /// The first rules that it concerns.
    rules: Vec<RuleName>,
    /// Rules that are left out.
    more_rules: usize,
    batch: Option<BatchId>,
    worker: Option<String>,
}

#[derive(Debug, Clone, PartialEq, Serialize)]
pub(super) struct RuleName {
    pub(super) rule: String,
    pub(super) name: String,
}

impl RuleName {
    pub(super) fn of(rule: &RuleResponse) -> RuleName {
        RuleName { rule: rule.schedule.rule.clone(), name: rule.schedule.name.clone() }
    }
}

impl Problem {
    fn error(title: impl Into<String>, advice: impl Into<String>) -> Problem {
        Problem {
            severity: "error",
            title: title.into(),
            detail: String::new(),
            advice: advice.into(),
            since: None,
            rules: Vec::new(),
            more_rules: 0,
            batch: None,
            worker: None,
        }
    }

    fn warning(title: impl Into<String>, advice: impl Into<String>) -> Problem {
        Problem { severity: "warning", ..Problem::error(title, advice) }
    }

    fn naming(mut self, rules: &[&RuleResponse]) -> Problem {
        self.rules = rules.iter().take(MAX_NAMED_RULES).map(|rule| RuleName::of(rule)).collect();
        self.more_rules = rules.len() - self.rules.len();
        self
    }
}

impl OverviewResponse {
    /// Reads what the overview shows.
    pub(super) async fn load(
        app: &AppState,
        workers: &[WorkerResponse],
        routes: &RoutesResponse,
    ) -> Result<OverviewResponse> {
        let rules = app.rules().await?;
        let alarm = app.store().broker_alarm().await?;
        let mut problems = Vec::new();
        if let Some(error) = app.reload_status.borrow().error.clone() {
            problems.push(Problem {
                detail: error,
                ..Problem::error(
                    "Cannot reload the configuration; the previous one stays in use",
                    "Correct the file: it is read again when it changes.",
                )
            });
        }
        // An alarm that this process has met itself is shared through the store, too.
        let outages = app.backend.health.iter().flat_map(ServerHealth::current_outages);
        problems.extend(outages.filter(|outage| outage.kind != OutageKind::Blocked).map(outage_problem));
        problems.extend(alarm.map(broker_problem));
        problems.extend(app.store().replication().await?.and_then(|found| replication_problem(&found)));
        problems.extend(failing_problems(&rules));
        problems.extend(interrupted_problems(&rules));
        if app.backend.is_cluster() {
            problems.extend(worker_problems(workers));
        }
        problems.extend(routes.unserved().map(|(source, target, reasons)| Problem {
            detail: reasons,
            ..Problem::error(
                format!("No worker serves {source} → {target}"),
                "Its tasks wait. Give a worker the credentials for both registries, or start one that may use them.",
            )
        }));
        problems.extend(skipped_problem(&rules));
        problems.extend(empty_problem(&rules));
        problems.sort_by_key(|problem| problem.severity != "error");
        let more_problems = problems.len().saturating_sub(MAX_PROBLEMS);
        problems.truncate(MAX_PROBLEMS);
        let tags = || rules.iter().filter_map(|rule| rule.tags);
        Ok(OverviewResponse {
            totals: Totals {
                rules: rules.len(),
                states: count_states(&rules),
                tags: tags().map(|tags| tags.total).sum(),
                tags_in_sync: tags().map(|tags| tags.in_sync).sum(),
                workers: workers.len(),
                slots: workers.iter().map(|worker| u64::from(worker.heartbeat.slots)).sum(),
                busy_slots: workers.iter().map(|worker| worker.heartbeat.running.len() as u64).sum(),
            },
            hooks: HookTotals::load(app),
            problems,
            more_problems,
        })
    }
}

/// Describes an outage of the broker or the store, as this process meets it.
fn outage_problem(outage: Outage) -> Problem {
    let server = capitalize(&outage.server);
    let (title, advice) = match outage.kind {
        OutageKind::Unreachable => (format!("{server} is unreachable"), "Check that it runs, and the network to it."),
        OutageKind::RefusesWrites => {
            (format!("{server} refuses writes"), "Check its memory, its disk and its replicas.")
        }
        OutageKind::Blocked => (format!("{server} blocks publishers"), BROKER_ALARM_HINT),
    };
    let advice = outage.hint.map_or_else(|| advice.to_owned(), |hint| format!("{}.", capitalize(&hint)));
    Problem { since: Some(outage.since), detail: outage.reason, ..Problem::error(title, advice) }
}

/// Describes Sentinels that do not answer, and replicas that the master has lost: another loss may stop the cluster.
fn replication_problem(found: &StoreReplication) -> Option<Problem> {
    let (configured, answering) = (found.sentinels_configured, found.sentinels);
    let mut missing = Vec::new();
    if answering < configured {
        missing.push(format!("{answering} of {}", pluralize(configured, "Sentinel answers", "Sentinels answer")));
    }
    if let (Some(known), Some(connected)) = (found.replicas_known, &found.replicas)
        && (connected.len() as u64) < known
    {
        missing.push(format!("{} of {} connected", connected.len(), pluralize(known, "replica is", "replicas are")));
    }
    (!missing.is_empty()).then(|| Problem {
        detail: missing.join("; "),
        ..Problem::warning(
            "The store has lost servers",
            "Batches go on. Start the servers again: the loss of one more may stop writes or prevent a failover. \
             `SENTINEL RESET` forgets a replica that is gone for good.",
        )
    })
}

fn capitalize(text: &str) -> String {
    let mut letters = text.chars();
    letters.next().map(|first| first.to_uppercase().chain(letters).collect()).unwrap_or_default()
}

fn broker_problem(alarm: BrokerAlarm) -> Problem {
    Problem {
        since: Some(alarm.since),
        detail: alarm.reason,
        ..Problem::error("The broker accepts no messages", BROKER_ALARM_HINT)
    }
}

/// Groups the failing rules by the kind of their errors and the registry that answered: each has its own advice. A rule
/// that runs again fails until a run is good.
fn failing_problems(rules: &[RuleResponse]) -> Vec<Problem> {
    let mut groups: BTreeMap<(Option<ErrorKind>, Option<&str>), Vec<&RuleResponse>> = BTreeMap::new();
    for rule in rules.iter().filter(|rule| rule.state == RuleState::Failing || rule.failing_since.is_some()) {
        let failure = rule.last_failure.as_ref();
        let cause = (failure.and_then(|one| one.kind), failure.and_then(|one| one.registry.as_deref()));
        groups.entry(cause).or_default().push(rule);
    }
    let mut problems: Vec<Problem> = Vec::new();
    for ((kind, registry), rules) in groups {
        let what = pluralize(rules.len() as u64, "rule is failing", "rules are failing");
        let title = match kind {
            Some(kind) => format!("{what}: {}", advice::title(kind).to_lowercase()),
            None => what,
        };
        let title = registry.map_or_else(|| title.clone(), |registry| format!("{title} ({registry})"));
        let advice = kind.map_or("The report of the batch says why.", advice::for_kind);
        let failures = || rules.iter().filter_map(|rule| rule.last_failure.as_ref());
        let problem = Problem {
            since: rules.iter().filter_map(|rule| rule.failing_since).min(),
            detail: failures().find_map(|failure| failure.error.clone()).unwrap_or_default(),
            batch: (rules.len() == 1).then(|| failures().next().map(|failure| failure.batch)).flatten(),
            ..Problem::error(title, advice)
        };
        problems.push(problem.naming(&rules));
    }
    problems.sort_by_key(|problem| std::cmp::Reverse(problem.rules.len() + problem.more_rules));
    problems
}

fn interrupted_problems(rules: &[RuleResponse]) -> Vec<Problem> {
    let interrupted = rules.iter().filter(|rule| rule.state == RuleState::Interrupted);
    let mut batches: BTreeMap<BatchId, Vec<&RuleResponse>> = BTreeMap::new();
    for rule in interrupted {
        if let Some(batch) = rule.last_batch {
            batches.entry(batch).or_default().push(rule);
        }
    }
    let problem = |(batch, rules): (BatchId, Vec<&RuleResponse>)| {
        let advice = format!("`{}` resumes it.", resume_command(batch));
        Problem { batch: Some(batch), ..Problem::error("A batch is interrupted: no process runs it", advice) }
            .naming(&rules)
    };
    batches.into_iter().map(problem).collect()
}

fn worker_problems(workers: &[WorkerResponse]) -> Vec<Problem> {
    let mut problems = Vec::new();
    if workers.iter().all(|worker| worker.heartbeat.draining) {
        let advice = "Nothing is copied until one runs: start imgsync-worker.";
        problems.push(Problem::error("No worker is running", advice));
    }
    problems.extend(workers.iter().filter(|worker| worker.heartbeat.refused > 0).map(|worker| {
        let messages = pluralize(worker.heartbeat.refused, "message", "messages");
        Problem {
            detail: worker.heartbeat.refusal_reason.clone().unwrap_or_default(),
            worker: Some(worker.heartbeat.worker.clone()),
            ..Problem::warning(
                format!("{} rejected {messages}", worker.heartbeat.worker),
                "Give all processes of the cluster the same `cluster.key` and the same version.",
            )
        }
    }));
    let different: Vec<&WorkerResponse> = workers.iter().filter(|worker| worker.config_differs).collect();
    if let Some(first) = different.first() {
        let names: Vec<&str> =
            different.iter().take(MAX_NAMED_RULES).map(|worker| worker.heartbeat.worker.as_str()).collect();
        problems.push(Problem {
            detail: names.join(", "),
            worker: (different.len() == 1).then(|| first.heartbeat.worker.clone()),
            ..Problem::warning(
                format!(
                    "{} another configuration than this coordinator",
                    pluralize(different.len() as u64, "worker uses", "workers use")
                ),
                "Their registry settings or targets differ. Give them the same file, and restart them after a change.",
            )
        });
    }
    problems
}

fn skipped_problem(rules: &[RuleResponse]) -> Option<Problem> {
    let skipped: Vec<&RuleResponse> = rules.iter().filter(|rule| rule.schedule.skipped > 0).collect();
    let runs: u64 = skipped.iter().map(|rule| rule.schedule.skipped).sum();
    (runs > 0).then(|| {
        Problem::warning(
            format!("{} skipped: the batch before had not ended", pluralize(runs, "scheduled run", "scheduled runs")),
            "Run the rule less often, resume its batch if it is paused, or add workers.",
        )
        .naming(&skipped)
    })
}

fn empty_problem(rules: &[RuleResponse]) -> Option<Problem> {
    let empty: Vec<&RuleResponse> = rules.iter().filter(|rule| rule.state == RuleState::NothingSelected).collect();
    (!empty.is_empty()).then(|| {
        Problem::warning(
            pluralize(empty.len() as u64, "rule selects no tag", "rules select no tag"),
            "`imgsync tags` shows which part of the rule drops each tag.",
        )
        .naming(&empty)
    })
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use imgsync_store::StoreReplica;

    use super::*;

    #[test]
    fn servers_of_the_store_that_are_lost_are_counted_against_those_that_there_should_be() {
        let replica = StoreReplica { name: "10.0.0.7:6379".into(), lag: Duration::ZERO };
        let whole = StoreReplication {
            sentinels_configured: 3,
            sentinels: 3,
            replicas_known: Some(2),
            replicas: Some(vec![replica.clone(), replica.clone()]),
        };
        assert_eq!(replication_problem(&whole), None);
        let of_unknown = StoreReplication { replicas: None, ..whole.clone() };
        assert_eq!(replication_problem(&of_unknown), None, "what may not be asked is no problem");
        let damaged = StoreReplication { sentinels: 2, replicas: Some(vec![replica]), ..whole };
        let problem = replication_problem(&damaged).unwrap();
        assert_eq!(problem.severity, "warning");
        assert_eq!(problem.detail, "2 of 3 Sentinels answer; 1 of 2 replicas are connected");
    }

    #[test]
    fn an_outage_is_a_problem_with_its_hint() {
        let broker = ServerHealth::new("the broker amqp://b");
        broker.record_failure(OutageKind::Unreachable, "connection refused", None);
        let problem = outage_problem(broker.current_outages().remove(0));
        assert_eq!(problem.title, "The broker amqp://b is unreachable");
        assert_eq!((problem.severity, problem.detail.as_str()), ("error", "connection refused"));
        assert_eq!(problem.advice, "Check that it runs, and the network to it.");
        broker.record_recovery(OutageKind::Unreachable);
        assert_eq!(broker.current_outages(), []);
        broker.record_failure(OutageKind::RefusesWrites, "OOM", Some("give it more memory"));
        assert_eq!(outage_problem(broker.current_outages().remove(0)).advice, "Give it more memory.");
    }

    #[test]
    fn a_broker_alarm_is_a_problem_with_its_reason_and_its_remedy() {
        let problem = broker_problem(BrokerAlarm { reason: "low on memory".into(), since: Timestamp::UNIX_EPOCH });
        assert_eq!((problem.severity, problem.title.as_str()), ("error", "The broker accepts no messages"));
        assert_eq!((problem.detail.as_str(), problem.since), ("low on memory", Some(Timestamp::UNIX_EPOCH)));
        assert!(problem.advice.contains("rabbitmq-diagnostics alarms"), "{}", problem.advice);
    }
}
