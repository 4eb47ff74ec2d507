//! Which lanes there are, how fast their registries may be asked, and which of them are left alone.

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

/// The most lanes that are shown, those that were used last.
const MOST: usize = 200;

/// Lanes, and the registries at their ends.
#[derive(Debug, Clone, Serialize, PartialEq)]
pub(super) struct LanesShape {
    lanes: Vec<LaneShape>,
    registries: Vec<RegistryShape>,
}

/// A lane.
#[derive(Debug, Clone, Serialize, PartialEq)]
pub(super) struct LaneShape {
    lane: String,
    source: EndShape,
    target: EndShape,
    /// Tasks that the queue has for it; none where the queue does not answer.
    waiting: Option<u64>,
    /// Until when nothing of it is begun.
    throttled_until: Option<Timestamp>,
    /// Why.
    throttled_why: Option<String>,
    /// What living workers say that leave it alone.
    unserved: Vec<String>,
}

#[derive(Debug, Clone, Serialize, PartialEq)]
struct EndShape {
    end: String,
    user: Option<String>,
}

/// How a registry may be asked.
#[derive(Debug, Clone, Serialize, PartialEq)]
pub(super) struct RegistryShape {
    registry: String,
    /// Requests a second that are configured, or documented for it.
    requests_per_second: Option<f64>,
    /// Requests a second that were learnt from its refusals.
    learnt_per_second: Option<f64>,
    /// Requests that may be open at a time.
    concurrency: Option<usize>,
    /// Until when it is left alone.
    throttled_until: Option<Timestamp>,
    /// Why.
    throttled_why: Option<String>,
}

/// What is known of the lanes now.
pub(super) async fn look(house: &House, client: &Client, workers: &[Heartbeat]) -> Result<LanesShape> {
    let mut aged = house.store.lanes_by_age().await?;
    aged.sort_by_key(|(_, age)| *age);
    let mut lanes: Vec<Lane> = aged.into_iter().take(MOST).map(|(lane, _)| lane).collect();
    lanes.sort();
    // A broker that is away takes nothing from what the store knows.
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
        // To a tenth: it moves with each request.
        learnt_per_second: learnt.map(|rate| (rate * 10.0).round() / 10.0),
        concurrency: settings.concurrency,
        throttled_until: hold.map(|(wait, _)| moment(*wait)),
        throttled_why: hold.map(|(_, why)| why.clone()),
    })
}

/// To the second, so that what stays is the same each time that it is looked at.
fn moment(wait: Duration) -> Timestamp {
    let at = Timestamp::now().checked_add(wait).unwrap_or(Timestamp::MAX);
    Timestamp::from_second((at.as_millisecond() + 500).div_euclid(1000)).unwrap_or(at)
}
