//! Worker coverage of a batch: running workers, and routes that none of them serves.

use std::collections::BTreeSet;

use imgsync_model::batch::{BatchId, BatchOptions, Route, TaskState};
use imgsync_oci::RegistryName;
use imgsync_oci::error::Result;
use imgsync_oci::humanize::pluralize;
use imgsync_registry::{Client, RateLimitHold};
use imgsync_store::{Batch, BrokerAlarm, Heartbeat, Store};
use imgsync_worker::runner::{format_deadline, load_rate_limit_holds};

/// Maximum number of open tasks, per state, that are read to find their routes.
const MAX_SAMPLED_TASKS: usize = 1_000;

/// Workers of a cluster, and the routes of a batch that they do not cover.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WorkerCoverage {
    /// Running workers.
    pub workers: Vec<Heartbeat>,
    /// Routes with open tasks of the batch that no running worker serves, with each worker's reason.
    pub unserved: Vec<(Route, Vec<String>)>,
    /// Alarm for which the broker blocks publishers.
    pub broker_alarm: Option<BrokerAlarm>,
}

impl WorkerCoverage {
    /// Loads the workers and the unserved routes of a batch.
    pub async fn load(store: &dyn Store, batch: &Batch) -> Result<WorkerCoverage> {
        let workers = store.workers().await?;
        let mut unserved = Vec::new();
        if batch.state.is_live() && batch.counts.waiting > 0 {
            for route in open_routes(store, batch).await? {
                if let Some(why) = unserved_reasons(&workers, &route) {
                    unserved.push((route, why));
                }
            }
        }
        let broker_alarm = store.broker_alarm().await?;
        Ok(WorkerCoverage { workers, unserved, broker_alarm })
    }

    /// Returns the tasks of a batch that workers are running, as (worker, source, target).
    pub fn running_tasks(&self, batch: BatchId) -> impl Iterator<Item = (&str, &str, &str)> {
        self.workers.iter().flat_map(move |worker| {
            let its = worker.running.iter().filter(move |doing| doing.batch == batch);
            its.map(|doing| (worker.worker.as_str(), doing.source.as_str(), doing.target.as_str()))
        })
    }

    /// Describes what keeps the batch from making progress; empty if nothing does.
    pub fn problems(&self) -> Vec<String> {
        let mut problems: Vec<String> = self.broker_alarm.iter().map(BrokerAlarm::describe).collect();
        if self.workers.is_empty() && !self.unserved.is_empty() {
            problems.push("no worker is running: start imgsync-worker".to_owned());
            return problems;
        }
        let unserved =
            self.unserved.iter().map(|(route, why)| format!("no running worker serves {route}: {}", why.join("; ")));
        let refused = self.workers.iter().filter(|worker| worker.refused > 0).map(|worker| {
            let why = worker.refusal_reason.as_deref().unwrap_or("no reason given");
            let messages = pluralize(worker.refused, "message", "messages");
            format!("{} rejected {messages}, last reason: {why}", worker.worker)
        });
        problems.extend(unserved.chain(refused));
        problems
    }
}

/// Describes the registries whose rate limits hold up a batch.
pub async fn rate_limit_messages(store: &dyn Store, batch: &Batch, client: &Client) -> Result<Vec<String>> {
    let describe = |(registry, hold): &(RegistryName, RateLimitHold)| {
        format!("{registry} {}: held until {}", hold.reason, format_deadline(hold.wait))
    };
    Ok(rate_limit_holds(store, batch, client).await?.iter().map(describe).collect())
}

/// Returns the registries whose rate limits hold up a batch, as known for the credentials of this process.
pub(super) async fn rate_limit_holds(
    store: &dyn Store,
    batch: &Batch,
    client: &Client,
) -> Result<Vec<(RegistryName, RateLimitHold)>> {
    if !batch.state.is_live() || batch.counts.unfinished() == 0 {
        return Ok(Vec::new());
    }
    let routes: Vec<Route> = open_routes(store, batch).await?.into_iter().collect();
    let holds = load_rate_limit_holds(&routes, store, client).await?;
    Ok(holds.into_iter().map(|((registry, _), hold)| (registry, hold)).collect())
}

/// Returns the routes of a batch's waiting tasks.
async fn open_routes(store: &dyn Store, batch: &Batch) -> Result<BTreeSet<Route>> {
    let options = BatchOptions::decode(&batch.options, &format!("batch {}", batch.id))?;
    let mut routes = BTreeSet::new();
    for state in [TaskState::Queued, TaskState::Retry, TaskState::New] {
        for row in store.tasks(batch.id, Some(state), 0, MAX_SAMPLED_TASKS).await? {
            let planned = row.task.spec;
            routes.insert(options.route(planned.source.repository.endpoint(), planned.target.repository.endpoint()));
        }
    }
    Ok(routes)
}

/// Returns each worker's reason if no worker serves a route, and `None` if one does.
pub(crate) fn unserved_reasons(workers: &[Heartbeat], route: &Route) -> Option<Vec<String>> {
    let mut reasons = Vec::new();
    for worker in workers.iter().filter(|worker| !worker.draining) {
        let unserved = worker.unserved.iter().find(|unserved| unserved.route == *route)?;
        reasons.push(format!("{}: {}", worker.worker, unserved.reason));
    }
    Some(reasons)
}

#[cfg(test)]
mod tests {
    use imgsync_store::UnservedRoute;
    use jiff::Timestamp;

    use super::*;

    fn worker(name: &str, unserved: &[&Route]) -> Heartbeat {
        Heartbeat {
            worker: name.into(),
            host: "here".into(),
            version: "3".into(),
            started_at: Timestamp::UNIX_EPOCH,
            config_hash: None,
            slots: 1,
            draining: false,
            running: Vec::new(),
            unserved: unserved
                .iter()
                .map(|route| UnservedRoute { route: (*route).clone(), reason: "no way".into() })
                .collect(),
            refused: 0,
            refusal_reason: None,
            broker_nodes: Vec::new(),
            store_master: None,
        }
    }

    #[test]
    fn a_route_is_unserved_when_no_live_worker_serves_it() {
        let route = Route::anonymous("gcr.io".parse().unwrap(), "r.example".parse().unwrap());
        assert_eq!(unserved_reasons(&[], &route), Some(vec![]));
        assert_eq!(unserved_reasons(&[worker("a", &[&route]), worker("b", &[])], &route), None);
        let reasons = unserved_reasons(&[worker("a", &[&route]), worker("b", &[&route])], &route).unwrap();
        assert_eq!(reasons, ["a: no way", "b: no way"]);
        let leaving = Heartbeat { draining: true, ..worker("b", &[]) };
        assert!(unserved_reasons(&[worker("a", &[&route]), leaving], &route).is_some());
        let coverage = WorkerCoverage {
            workers: vec![worker("a", &[&route])],
            unserved: vec![(route, vec!["a: no way".into()])],
            broker_alarm: None,
        };
        assert_eq!(coverage.problems(), ["no running worker serves gcr.io>r.example: a: no way"]);
        assert!(WorkerCoverage { workers: vec![], ..coverage }.problems()[0].contains("no worker is running"));
    }
}
