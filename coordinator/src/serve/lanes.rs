//! Routes with their queues, the rate limits of their registries, and holds.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use imgsync_common::batch::Lane;
use imgsync_common::error::Result;
use imgsync_common::image::RegistryName;
use imgsync_common::registry::{Client, known};
use imgsync_common::store::{AccountPart, Heartbeat};
use imgsync_worker::runner::store_holds;
use jiff::Timestamp;
use serde::Serialize;

use crate::batches::House;

/// Limit of shown routes, the most recently used ones.
const MOST: usize = 200;

/// Routes, and their source and target registries.
#[derive(Debug, Clone, Serialize, PartialEq)]
pub(super) struct LanesShape {
    lanes: Vec<LaneShape>,
    registries: Vec<RegistryShape>,
}

/// A route.
#[derive(Debug, Clone, Serialize, PartialEq)]
pub(super) struct LaneShape {
    lane: String,
    source: EndShape,
    target: EndShape,
    /// Tasks in the queue of the route; none if the broker does not respond.
    waiting: Option<u64>,
    /// Time before which no task of the route starts.
    throttled_until: Option<Timestamp>,
    /// Reason of the hold.
    throttled_why: Option<String>,
    /// Reasons why active workers do not serve the route.
    unserved: Vec<String>,
}

#[derive(Debug, Clone, Serialize, PartialEq)]
struct EndShape {
    end: String,
    user: Option<String>,
}

/// Limits of a registry.
#[derive(Debug, Clone, Serialize, PartialEq)]
pub(super) struct RegistryShape {
    registry: String,
    /// Configured or documented requests per second.
    requests_per_second: Option<f64>,
    /// Requests per second, learned from rejected requests.
    learnt_per_second: Option<f64>,
    /// Concurrent requests.
    concurrency: Option<usize>,
    /// Time before which no request is sent.
    throttled_until: Option<Timestamp>,
    /// Reason of the hold.
    throttled_why: Option<String>,
}

/// Reads the state of the routes.
pub(super) async fn look(house: &House, client: &Client, workers: &[Heartbeat]) -> Result<LanesShape> {
    let mut aged = house.store.lanes_by_age().await?;
    aged.sort_by_key(|(_, age)| *age);
    let mut lanes: Vec<Lane> = aged.into_iter().take(MOST).map(|(lane, _)| lane).collect();
    lanes.sort();
    // Without the broker, what the store knows is still shown.
    let waiting = house.queue.waiting(&lanes).await.ok();
    let holds = store_holds(&lanes, &*house.store, client).await?;
    let mut until: BTreeMap<RegistryName, (Duration, String)> = BTreeMap::new();
    for ((registry, _), hold) in &holds {
        let longest = until.entry(registry.clone()).or_default();
        if hold.wait > longest.0 {
            *longest = (hold.wait, hold.why.clone());
        }
    }
    let shown = lanes.iter().enumerate().map(|(at, lane)| {
        let ends = [lane.source.registry(), lane.target.registry()];
        let throttled = ends.into_iter().flatten().filter_map(|end| until.get_key_value(end));
        let throttled = throttled.max_by_key(|(_, (wait, _))| *wait);
        let reasons = workers.iter().filter_map(|worker| {
            let its = worker.unserved.iter().find(|unserved| unserved.lane == *lane)?;
            Some(format!("{}: {}", worker.worker, its.reason))
        });
        LaneShape {
            lane: lane.to_string(),
            source: EndShape {
                end: lane.source.to_string(),
                user: lane.source_credential.as_deref().map(str::to_owned),
            },
            target: EndShape {
                end: lane.target.to_string(),
                user: lane.target_credential.as_deref().map(str::to_owned),
            },
            waiting: waiting.as_ref().and_then(|waiting| waiting.get(at).copied()),
            throttled_until: throttled.map(|(_, (wait, _))| moment(*wait)),
            throttled_why: throttled.map(|(registry, (_, why))| format!("{registry} {why}")),
            unserved: reasons.collect(),
        }
    });
    let shown: Vec<LaneShape> = shown.collect();
    let registries: BTreeSet<&RegistryName> =
        lanes.iter().flat_map(|lane| [lane.source.registry(), lane.target.registry()]).flatten().collect();
    let mut of_registries = Vec::new();
    for registry in registries {
        of_registries.push(of_registry(house, client, registry, until.get(registry)).await?);
    }
    Ok(LanesShape { lanes: shown, registries: of_registries })
}

async fn of_registry(
    house: &House,
    client: &Client,
    registry: &RegistryName,
    hold: Option<&(Duration, String)>,
) -> Result<RegistryShape> {
    let settings = client.settings().registries.get(registry).cloned().unwrap_or_default();
    let documented = known::of(registry, &settings).and_then(|known| known.requests_per_second);
    let mut accounts = client.accounts(registry, true).await;
    accounts.extend(client.accounts(registry, false).await);
    let parts: Vec<_> = accounts.iter().flat_map(|one| [one.clone(), one.of(AccountPart::Pulls)]).collect();
    let learnt = house.store.learnt(&parts).await?.into_iter().flatten().reduce(f64::min);
    Ok(RegistryShape {
        registry: registry.to_string(),
        requests_per_second: settings.requests_per_second.or(documented),
        // Rounded to a tenth: the rate changes with each request.
        learnt_per_second: learnt.map(|rate| (rate * 10.0).round() / 10.0),
        concurrency: settings.concurrency,
        throttled_until: hold.map(|(wait, _)| moment(*wait)),
        throttled_why: hold.map(|(_, why)| why.clone()),
    })
}

/// Rounds to the second, so that repeated reads return an equal value.
fn moment(wait: Duration) -> Timestamp {
    let at = Timestamp::now().checked_add(wait).unwrap_or(Timestamp::MAX);
    Timestamp::from_second((at.as_millisecond() + 500).div_euclid(1000)).unwrap_or(at)
}
