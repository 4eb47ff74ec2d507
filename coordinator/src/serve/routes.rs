//! Routes with their queues, the rate limits of their registries, and holds.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use imgsync_model::batch::Route;
use imgsync_oci::RegistryName;
use imgsync_oci::error::Result;
use imgsync_registry::{Client, providers};
use imgsync_store::{Heartbeat, RateLimitCategory};
use imgsync_worker::runner::load_rate_limit_holds;
use jiff::Timestamp;
use serde::Serialize;

use super::extract::PageRange;
use super::workers::WorkerResponse;
use crate::orchestrator::{Backend, unserved_reasons};

/// Limit of shown routes, the most recently used ones.
const MAX_ROUTES: usize = 200;

/// Routes, and their source and target registries.
#[derive(Debug, Clone, Serialize, PartialEq)]
pub(super) struct RoutesResponse {
    routes: Vec<RouteResponse>,
    registries: Vec<RegistryLimitsResponse>,
}

impl RoutesResponse {
    /// Returns the routes with queued tasks that no worker serves: source, target and the workers' reasons.
    pub(super) fn unserved(&self) -> impl Iterator<Item = (&str, &str, String)> {
        let waits = |route: &&RouteResponse| !route.served && route.waiting.is_some_and(|waiting| waiting > 0);
        self.routes.iter().filter(waits).filter(|route| !route.unserved_reasons.is_empty()).map(|route| {
            (route.source.endpoint.as_str(), route.target.endpoint.as_str(), route.unserved_reasons.join("; "))
        })
    }

    /// Returns a page of the routes, and their registries.
    pub(super) fn page(mut self, range: PageRange) -> RoutesPage {
        let total = self.routes.len();
        let (page, next) = range.select(&self.routes);
        self.routes = page.to_vec();
        let is_shown = |registry: &RegistryLimitsResponse| {
            self.routes
                .iter()
                .any(|route| route.source.endpoint == registry.registry || route.target.endpoint == registry.registry)
        };
        let registries = self.registries.iter().filter(|registry| is_shown(registry)).cloned().collect();
        RoutesPage { routes: self.routes, registries, next, total }
    }
}

/// A page of the routes.
#[derive(Debug, Clone, Serialize)]
pub(super) struct RoutesPage {
    routes: Vec<RouteResponse>,
    registries: Vec<RegistryLimitsResponse>,
    next: Option<usize>,
    total: usize,
}

/// A route.
#[derive(Debug, Clone, Serialize, PartialEq)]
pub(super) struct RouteResponse {
    route: String,
    source: EndpointResponse,
    target: EndpointResponse,
    /// Tasks in the queue of the route; none if the broker does not respond.
    waiting: Option<u64>,
    /// Time before which no task of the route starts.
    throttled_until: Option<Timestamp>,
    /// Reason of the hold.
    throttle_reason: Option<String>,
    /// Whether a worker serves the route.
    served: bool,
    /// Reasons why active workers do not serve the route.
    unserved_reasons: Vec<String>,
}

#[derive(Debug, Clone, Serialize, PartialEq)]
struct EndpointResponse {
    endpoint: String,
    user: Option<String>,
}

/// Limits of a registry.
#[derive(Debug, Clone, Serialize, PartialEq)]
pub(super) struct RegistryLimitsResponse {
    registry: String,
    /// Configured or documented requests per second.
    requests_per_second: Option<f64>,
    /// Requests per second, learned from rejected requests.
    learned_requests_per_second: Option<f64>,
    /// Concurrent requests.
    concurrency: Option<usize>,
    /// Time before which no request is sent.
    throttled_until: Option<Timestamp>,
    /// Reason of the hold.
    throttle_reason: Option<String>,
}

/// Reads the state of the routes.
pub(super) async fn read_routes(
    backend: &Backend,
    client: &Client,
    workers: &[WorkerResponse],
) -> Result<RoutesResponse> {
    let workers: Vec<Heartbeat> = workers.iter().map(|worker| worker.heartbeat.clone()).collect();
    let mut aged = backend.store.routes_by_age().await?;
    aged.sort_by_key(|(_, age)| *age);
    let mut routes: Vec<Route> = aged.into_iter().take(MAX_ROUTES).map(|(route, _)| route).collect();
    routes.sort();
    // Without the broker, what the store knows is still shown.
    let waiting = backend.queue.count_ready(&routes).await.ok();
    let holds = load_rate_limit_holds(&routes, &*backend.store, client).await?;
    let mut until: BTreeMap<RegistryName, (Duration, String)> = BTreeMap::new();
    for ((registry, _), hold) in &holds {
        let longest = until.entry(registry.clone()).or_default();
        if hold.wait > longest.0 {
            *longest = (hold.wait, hold.reason.clone());
        }
    }
    let shown = routes.iter().enumerate().map(|(at, route)| {
        let ends = [route.source.registry(), route.target.registry()];
        let throttled = ends.into_iter().flatten().filter_map(|end| until.get_key_value(end));
        let throttled = throttled.max_by_key(|(_, (wait, _))| *wait);
        let reasons = workers.iter().filter_map(|worker| {
            let its = worker.unserved.iter().find(|unserved| unserved.route == *route)?;
            Some(format!("{}: {}", worker.worker, its.reason))
        });
        RouteResponse {
            route: route.to_string(),
            source: EndpointResponse {
                endpoint: route.source.to_string(),
                user: route.source_credential.as_deref().map(str::to_owned),
            },
            target: EndpointResponse {
                endpoint: route.target.to_string(),
                user: route.target_credential.as_deref().map(str::to_owned),
            },
            waiting: waiting.as_ref().and_then(|waiting| waiting.get(at).copied()),
            throttled_until: throttled.map(|(_, (wait, _))| rounded_deadline(*wait)),
            throttle_reason: throttled.map(|(registry, (_, why))| format!("{registry} {why}")),
            served: !workers.is_empty() && unserved_reasons(&workers, route).is_none(),
            unserved_reasons: reasons.collect(),
        }
    });
    let shown: Vec<RouteResponse> = shown.collect();
    let registries: BTreeSet<&RegistryName> =
        routes.iter().flat_map(|route| [route.source.registry(), route.target.registry()]).flatten().collect();
    let mut of_registries = Vec::new();
    for registry in registries {
        of_registries.push(read_registry_limits(backend, client, registry, until.get(registry)).await?);
    }
    Ok(RoutesResponse { routes: shown, registries: of_registries })
}

async fn read_registry_limits(
    backend: &Backend,
    client: &Client,
    registry: &RegistryName,
    hold: Option<&(Duration, String)>,
) -> Result<RegistryLimitsResponse> {
    let settings = client.settings().registries.get(registry).cloned().unwrap_or_default();
    let documented = providers::limits_for_registry(registry, &settings).and_then(|limits| limits.requests_per_second);
    let mut accounts = client.accounts(registry, true).await;
    accounts.extend(client.accounts(registry, false).await);
    let parts: Vec<_> =
        accounts.iter().flat_map(|one| [one.clone(), one.with_category(RateLimitCategory::Pulls)]).collect();
    let learned = backend.store.learned_rates(&parts).await?.into_iter().flatten().reduce(f64::min);
    Ok(RegistryLimitsResponse {
        registry: registry.to_string(),
        requests_per_second: settings.requests_per_second.or(documented),
        // Rounded to a tenth: the rate changes with each request.
        learned_requests_per_second: learned.map(|rate| (rate * 10.0).round() / 10.0),
        concurrency: settings.concurrency,
        throttled_until: hold.map(|(wait, _)| rounded_deadline(*wait)),
        throttle_reason: hold.map(|(_, why)| why.clone()),
    })
}

/// Rounds to the second, so that repeated reads return an equal value.
fn rounded_deadline(wait: Duration) -> Timestamp {
    let at = Timestamp::now().checked_add(wait).unwrap_or(Timestamp::MAX);
    Timestamp::from_second((at.as_millisecond() + 500).div_euclid(1000)).unwrap_or(at)
}
