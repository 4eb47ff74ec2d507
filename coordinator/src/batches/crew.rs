//! Worker coverage of a batch: running workers, and routes that none of them serves.

use std::collections::BTreeSet;

use imgsync_common::batch::{BatchId, Lane, Options, TaskState};
use imgsync_common::error::Result;
use imgsync_common::image::RegistryName;
use imgsync_common::registry::{Client, Hold};
use imgsync_common::store::{Batch, BrokerAlarm, Heartbeat, Store};
use imgsync_worker::runner::{moment, store_holds};

/// Maximum number of open tasks, per state, that are read to find their routes.
const SAMPLE: usize = 1_000;

/// Workers of a cluster, and the routes of a batch that they do not cover.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Crew {
    /// Running workers.
    pub workers: Vec<Heartbeat>,
    /// Routes with open tasks of the batch that no running worker serves, with each worker's reason.
    pub unserved: Vec<(Lane, Vec<String>)>,
    /// Alarm for which the broker blocks publishers.
    pub broker_alarm: Option<BrokerAlarm>,
}

impl Crew {
    /// Loads the workers and the unserved routes of a batch.
    pub async fn of(store: &dyn Store, batch: &Batch) -> Result<Crew> {
        let workers = store.workers().await?;
        let mut unserved = Vec::new();
        if batch.control.is_live() && batch.counts.waiting > 0 {
            for lane in open_lanes(store, batch).await? {
                if let Some(why) = whether_unserved(&workers, &lane) {
                    unserved.push((lane, why));
                }
            }
        }
        let broker_alarm = store.broker_alarm().await?;
        Ok(Crew { workers, unserved, broker_alarm })
    }

    /// Returns the tasks of a batch that workers are running, as (worker, source, target).
    pub fn at_work(&self, batch: BatchId) -> impl Iterator<Item = (&str, &str, &str)> {
        self.workers.iter().flat_map(move |worker| {
            let its = worker.running.iter().filter(move |doing| doing.batch == batch);
            its.map(|doing| (worker.worker.as_str(), doing.source.as_str(), doing.target.as_str()))
        })
    }

    /// Describes what keeps the batch from making progress; empty if nothing does.
    pub fn complaints(&self) -> Vec<String> {
        let mut complaints: Vec<String> = self.broker_alarm.iter().map(BrokerAlarm::complaint).collect();
        if self.workers.is_empty() && !self.unserved.is_empty() {
            complaints.push("no worker lives: start some (imgsync-worker)".to_owned());
            return complaints;
        }
        let unserved =
            self.unserved.iter().map(|(lane, why)| format!("no living worker serves {lane}: {}", why.join("; ")));
        let refused = self.workers.iter().filter(|worker| worker.refused > 0).map(|worker| {
            let why = worker.refused_why.as_deref().unwrap_or("no reason was given");
            format!("{} has refused {} messages; the last: {why}", worker.worker, worker.refused)
        });
        complaints.extend(unserved.chain(refused));
        complaints
    }
}

/// Describes the registries whose rate limits hold up a batch.
pub async fn waits(store: &dyn Store, batch: &Batch, client: &Client) -> Result<Vec<String>> {
    let words = |(registry, hold): &(RegistryName, Hold)| {
        format!("{registry} {}: nothing is begun there before {}", hold.why, moment(hold.wait))
    };
    Ok(holds(store, batch, client).await?.iter().map(words).collect())
}

/// Returns the registries whose rate limits hold up a batch, as known for the credentials of this process.
pub async fn holds(store: &dyn Store, batch: &Batch, client: &Client) -> Result<Vec<(RegistryName, Hold)>> {
    if !batch.control.is_live() || batch.counts.open() == 0 {
        return Ok(Vec::new());
    }
    let lanes: Vec<Lane> = open_lanes(store, batch).await?.into_iter().collect();
    let holds = store_holds(&lanes, store, client).await?;
    Ok(holds.into_iter().map(|((registry, _), hold)| (registry, hold)).collect())
}

/// Returns the routes of a batch's waiting tasks.
async fn open_lanes(store: &dyn Store, batch: &Batch) -> Result<BTreeSet<Lane>> {
    let options = Options::decode(&batch.options, &format!("batch {}", batch.id))?;
    let mut lanes = BTreeSet::new();
    for state in [TaskState::Queued, TaskState::Retry, TaskState::New] {
        for row in store.tasks(batch.id, Some(state), 0, SAMPLE).await? {
            let planned = row.task.planned;
            lanes.insert(options.lane(planned.source.home.end(), planned.target.home.end()));
        }
    }
    Ok(lanes)
}

/// Returns each worker's reason if no worker serves a route, and `None` if one does.
pub(super) fn whether_unserved(workers: &[Heartbeat], lane: &Lane) -> Option<Vec<String>> {
    let mut reasons = Vec::new();
    for worker in workers.iter().filter(|worker| !worker.draining) {
        let unserved = worker.unserved.iter().find(|unserved| unserved.lane == *lane)?;
        reasons.push(format!("{}: {}", worker.worker, unserved.reason));
    }
    Some(reasons)
}

#[cfg(test)]
mod tests {
    use imgsync_common::store::Unserved;
    use jiff::Timestamp;

    use super::*;

    fn worker(name: &str, unserved: &[&Lane]) -> Heartbeat {
        Heartbeat {
            worker: name.into(),
            host: "here".into(),
            version: "3".into(),
            started_at: Timestamp::UNIX_EPOCH,
            slots: 1,
            draining: false,
            running: Vec::new(),
            unserved: unserved.iter().map(|lane| Unserved { lane: (*lane).clone(), reason: "no way".into() }).collect(),
            refused: 0,
            refused_why: None,
        }
    }

    #[test]
    fn a_lane_is_unserved_when_every_living_worker_says_so() {
        let lane = Lane::anonymous("gcr.io".parse().unwrap(), "r.example".parse().unwrap());
        assert_eq!(whether_unserved(&[], &lane), Some(vec![]));
        assert_eq!(whether_unserved(&[worker("a", &[&lane]), worker("b", &[])], &lane), None);
        let reasons = whether_unserved(&[worker("a", &[&lane]), worker("b", &[&lane])], &lane).unwrap();
        assert_eq!(reasons, ["a: no way", "b: no way"]);
        let leaving = Heartbeat { draining: true, ..worker("b", &[]) };
        assert!(whether_unserved(&[worker("a", &[&lane]), leaving], &lane).is_some());
        let crew = Crew {
            workers: vec![worker("a", &[&lane])],
            unserved: vec![(lane, vec!["a: no way".into()])],
            broker_alarm: None,
        };
        assert_eq!(crew.complaints(), ["no living worker serves gcr.io>r.example: a: no way"]);
        assert!(Crew { workers: vec![], ..crew }.complaints()[0].contains("no worker lives"));
    }
}
