//! Routes a worker takes tasks from: those it is allowed and able to serve, and that no registry's rate limit holds.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use imgsync_model::batch::{Endpoint, Route, TagLocator};
use imgsync_model::naming::TargetBase;
use imgsync_oci::RegistryName;
use imgsync_oci::error::{Error, ErrorKind, Result};
use imgsync_queue::RouteFilter;
use imgsync_registry::{Client, Context, RateLimitHold};
use imgsync_store::{Account, RateLimitCategory, Store, UnservedRoute};
use jiff::Timestamp;
use tokio::sync::watch;

/// Interval at which routes and registry limits are refreshed.
const REFRESH_INTERVAL: Duration = Duration::from_secs(2);
/// Backoff for an unreachable registry: first and maximum; doubles after each failed probe.
const PROBE_BACKOFF: [Duration; 2] = [Duration::from_secs(5), Duration::from_secs(120)];
/// Deadlines closer than this count as equal.
const DEADLINE_TOLERANCE: Duration = Duration::from_millis(500);
/// Time until the next evaluation when there is no deadline.
const NO_DEADLINE: Duration = Duration::from_secs(3600);

/// Limits the routes and targets of a worker.
#[derive(Debug, Clone, Default)]
pub struct WorkerScope {
    /// Only routes with one of these as source or target; all routes if empty.
    pub registries: BTreeSet<RegistryName>,
    /// Only targets below one of these; all targets if empty.
    pub targets: Vec<TargetBase>,
}

/// Selects the routes a worker serves. Clones share their state.
#[derive(Clone)]
pub struct RouteSelector(Arc<Inner>);

struct Inner {
    scope: WorkerScope,
    state: Mutex<SelectorState>,
    /// Counts changes.
    changed: watch::Sender<u64>,
}

#[derive(Default)]
struct SelectorState {
    /// Routes held by a registry's rate limit: until when, and why.
    held: HashMap<Route, (Instant, String)>,
    /// Registries to which connections fail.
    unreachable: HashMap<RegistryName, UnreachableRegistry>,
    /// Routes this worker may not or cannot serve, and why.
    unserved: BTreeMap<Route, String>,
    /// Routes evaluated as servable.
    served: BTreeSet<Route>,
    /// Why the worker takes no tasks at all.
    paused: Option<String>,
}

struct UnreachableRegistry {
    reason: String,
    backoff: Duration,
    probe_at: Instant,
}

impl RouteSelector {
    /// Creates a selector that serves every route in scope.
    pub fn new(scope: WorkerScope) -> RouteSelector {
        RouteSelector(Arc::new(Inner { scope, state: Mutex::default(), changed: watch::Sender::new(0) }))
    }

    /// Returns the routes to take from, and until when that is valid; `None` if nothing may be taken.
    pub(super) fn current_filter(&self) -> (Option<RouteFilter>, Instant) {
        let mut state = self.state();
        let now = Instant::now();
        if state.paused.is_some() {
            return (None, now + NO_DEADLINE);
        }
        state.held.retain(|_, (until, _)| *until > now);
        let until = state.held.values().map(|(until, _)| *until).min().unwrap_or(now + NO_DEADLINE);
        let except: BTreeSet<Route> = state.held.keys().chain(state.unserved.keys()).cloned().collect();
        match except.is_empty() {
            true => (Some(RouteFilter::All), until),
            false => (Some(RouteFilter::Except(except)), until),
        }
    }

    /// Subscribes to changes of the routes.
    pub(crate) fn subscribe(&self) -> watch::Receiver<u64> {
        self.0.changed.subscribe()
    }

    /// Stops taking tasks for the given reason, or resumes with `None`. Returns whether that is a change.
    pub(crate) fn set_paused(&self, why: Option<String>) -> bool {
        let mut state = self.state();
        let is_new = state.paused != why;
        if is_new {
            state.paused = why;
            drop(state);
            self.notify_changed();
        }
        is_new
    }

    /// Holds a route for this long. Returns whether it was not held before.
    pub(super) fn hold_route(&self, route: &Route, wait: Duration, why: &str) -> bool {
        let now = Instant::now();
        let until = now + wait.min(NO_DEADLINE * 24);
        let mut state = self.state();
        let before = state.held.get(route).map(|(until, _)| *until).filter(|until| *until > now);
        // A repetition moments later is no change.
        if before.is_none_or(|before| before + DEADLINE_TOLERANCE < until) {
            // Format the deadline once, so that the text of a route does not change.
            let why = format!("{why}; held until {}", format_deadline(wait));
            state.held.insert(route.clone(), (until, why));
            drop(state);
            self.notify_changed();
        }
        before.is_none()
    }

    /// Records that a registry is unreachable: its routes are not served until a probe succeeds.
    pub(super) fn mark_unreachable(&self, registry: &RegistryName, route: &Route, reason: &str) {
        let reason = format!("{registry} is unreachable from this worker: {reason}");
        let mut state = self.state();
        state.unserved.insert(route.clone(), reason.clone());
        let backoff = PROBE_BACKOFF[0];
        state.unreachable.entry(registry.clone()).or_insert_with(|| UnreachableRegistry {
            reason,
            backoff,
            probe_at: Instant::now() + backoff,
        });
        drop(state);
        self.notify_changed();
    }

    /// Returns the routes not served, and why.
    pub fn unserved_routes(&self) -> Vec<UnservedRoute> {
        let state = self.state();
        let now = Instant::now();
        let parked = state
            .held
            .iter()
            .filter(|(_, (until, _))| *until > now)
            .map(|(route, (_, why))| UnservedRoute { route: route.clone(), reason: why.clone() });
        // These are served in principle, but not now.
        let full = state.paused.iter().flat_map(|why| {
            let served = state.served.iter().filter(|route| !state.unserved.contains_key(route));
            served.map(|route| UnservedRoute { route: route.clone(), reason: why.clone() })
        });
        let unserved =
            state.unserved.iter().map(|(route, why)| UnservedRoute { route: route.clone(), reason: why.clone() });
        let mut all: Vec<UnservedRoute> = unserved.chain(full).chain(parked).collect();
        all.sort_by(|a, b| a.route.cmp(&b.route));
        all.dedup_by(|a, b| a.route == b.route);
        all
    }

    /// Checks that this worker may write the target tag.
    pub(super) fn check_target(&self, target: &TagLocator) -> Result<()> {
        let targets = &self.0.scope.targets;
        if targets.is_empty() || targets.iter().any(|base| is_below(target, base)) {
            return Ok(());
        }
        let bases: Vec<String> = targets.iter().map(TargetBase::to_string).collect();
        let detail = format!("the configuration of this worker allows pushing below {} only", bases.join(", "));
        Err(Error::new(ErrorKind::Denied, format!("writing {target}"), detail).with_hint(
            "add the target to the worker's configuration (`defaults: {to: …}`), or remove all targets from it; if `to` of \
             a rule was changed while its batch runs, run the rules again: a batch keeps the targets that it was \
             started with",
        ))
    }

    /// Refreshes the state of the routes until dropped.
    pub async fn refresh_loop(&self, store: &dyn Store, client: &Client) {
        loop {
            // On a store error nothing changes.
            if let Ok(routes) = store.routes().await {
                let unserved = self.evaluate(&routes, client).await;
                self.apply_rate_limits(&routes, store, client).await;
                let mut state = self.state();
                state.served = routes.into_iter().filter(|route| !unserved.contains_key(route)).collect();
                if state.unserved != unserved {
                    state.unserved = unserved;
                    drop(state);
                    self.notify_changed();
                }
            }
            tokio::time::sleep(REFRESH_INTERVAL).await;
        }
    }

    /// Returns the routes that cannot be served, and why.
    async fn evaluate(&self, routes: &[Route], client: &Client) -> BTreeMap<Route, String> {
        let mut users: HashMap<RegistryName, Option<String>> = HashMap::new();
        let mut unserved = BTreeMap::new();
        self.probe_unreachable(client).await;
        for route in routes {
            if let Some(reason) = self.rejection_reason(route, client, &mut users).await {
                unserved.insert(route.clone(), reason);
            }
        }
        unserved
    }

    /// Whether tasks of a route can run here. The route may be new and not evaluated yet.
    pub(super) async fn can_serve(&self, route: &Route, client: &Client) -> bool {
        if self.state().served.contains(route) {
            return true;
        }
        let reason = self.rejection_reason(route, client, &mut HashMap::new()).await;
        let is_served = reason.is_none();
        match reason {
            None => _ = self.state().served.insert(route.clone()),
            Some(reason) => _ = self.state().unserved.insert(route.clone(), reason),
        }
        self.notify_changed();
        is_served
    }

    /// Returns why a route cannot be served; `None` if it can.
    async fn rejection_reason(
        &self,
        route: &Route,
        client: &Client,
        users: &mut HashMap<RegistryName, Option<String>>,
    ) -> Option<String> {
        if let Some(reason) = self.scope_rejection(route).or_else(|| self.unreachable_reason(route)) {
            return Some(reason);
        }
        let endpoints = [(&route.source, &route.source_credential), (&route.target, &route.target_credential)];
        for (endpoint, wanted) in endpoints {
            let (Some(registry), Some(wanted)) = (endpoint.registry(), wanted) else { continue };
            if !users.contains_key(registry) {
                let user = client.find_username(registry).await;
                users.insert(registry.clone(), user.ok().flatten());
            }
            if users[registry].as_deref() != Some(&**wanted) {
                return Some(format!("this worker has no credentials of `{wanted}` for {registry}"));
            }
        }
        None
    }

    fn scope_rejection(&self, route: &Route) -> Option<String> {
        let WorkerScope { registries, targets } = &self.0.scope;
        let endpoints = [route.source.registry(), route.target.registry()];
        let (Some(_), Some(target)) = (endpoints[0], endpoints[1]) else {
            return Some("image layouts are only served on the machine that has them".to_owned());
        };
        if !registries.is_empty() && !endpoints.iter().flatten().any(|registry| registries.contains(registry)) {
            return Some("excluded by --registries of this worker".to_owned());
        }
        if !targets.is_empty() && !targets.iter().any(|base| base.registry == *target) {
            return Some(format!("the configuration of this worker does not allow pushing to {target}"));
        }
        None
    }

    fn unreachable_reason(&self, route: &Route) -> Option<String> {
        let state = self.state();
        let endpoints = [route.source.registry(), route.target.registry()];
        endpoints
            .into_iter()
            .flatten()
            .find_map(|endpoint| state.unreachable.get(endpoint))
            .map(|out| out.reason.clone())
    }

    /// Probes the unreachable registries whose backoff has passed.
    async fn probe_unreachable(&self, client: &Client) {
        let now = Instant::now();
        let due: Vec<RegistryName> = {
            let state = self.state();
            let due = state.unreachable.iter().filter(|(_, out)| out.probe_at <= now);
            due.map(|(registry, _)| registry.clone()).collect()
        };
        for registry in due {
            let answer = client.ping(&registry, &Context::default()).await;
            let mut state = self.state();
            match answer {
                Ok(()) => _ = state.unreachable.remove(&registry),
                Err(error) => {
                    if let Some(out) = state.unreachable.get_mut(&registry) {
                        out.backoff = (out.backoff * 2).min(PROBE_BACKOFF[1]);
                        out.probe_at = Instant::now() + out.backoff;
                        out.reason = format!("{registry} is unreachable from this worker: {}", error.message());
                    }
                }
            }
        }
    }

    /// Holds the routes of registries whose rate limit or used-up quota other workers have reported.
    async fn apply_rate_limits(&self, routes: &[Route], store: &dyn Store, client: &Client) {
        // On a store error nothing changes.
        let Ok(holds) = load_rate_limit_holds(routes, store, client).await else { return };
        for route in routes {
            // A short wait is spent while holding a slot.
            if let Some((registry, RateLimitHold { wait, reason })) =
                longest_route_hold(&holds, route).filter(|(_, hold)| hold.wait > REFRESH_INTERVAL)
            {
                self.hold_route(route, *wait, &format!("{registry} {reason}"));
            }
        }
    }

    fn notify_changed(&self) {
        self.0.changed.send_modify(|changes| *changes += 1);
    }

    fn state(&self) -> std::sync::MutexGuard<'_, SelectorState> {
        self.0.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Returns the longest hold on either endpoint of a route, as known to this process.
pub(super) fn local_hold(route: &Route, client: &Client) -> Option<(RegistryName, RateLimitHold)> {
    let endpoints = [(route.source.registry(), true), (route.target.registry(), false)];
    let holds = endpoints
        .into_iter()
        .filter_map(|(endpoint, pulls)| Some((endpoint?.clone(), client.rate_limit_hold(endpoint?, pulls)?)));
    holds.max_by_key(|(_, hold)| hold.wait).filter(|(_, hold)| hold.wait > REFRESH_INTERVAL)
}

/// Holds by registry and role: source (true) or target (false).
pub type RateLimitHolds = BTreeMap<(RegistryName, bool), RateLimitHold>;

/// Loads the holds on the endpoints of routes from the store: rate limits, and used-up quotas of all accounts with
/// which this process pulls.
pub async fn load_rate_limit_holds(routes: &[Route], store: &dyn Store, client: &Client) -> Result<RateLimitHolds> {
    let endpoints = routes.iter().flat_map(|route| [(route.source.registry(), true), (route.target.registry(), false)]);
    let endpoints: BTreeSet<(RegistryName, bool)> =
        endpoints.filter_map(|(endpoint, pulls)| Some((endpoint?.clone(), pulls))).collect();
    let (mut limited, mut of): (Vec<Account>, Vec<usize>) = Default::default();
    for (registry, pulls) in &endpoints {
        let accounts = client.accounts(registry, *pulls).await;
        of.push(accounts.len());
        let part = if *pulls { RateLimitCategory::Pulls } else { RateLimitCategory::All };
        limited.extend(accounts.iter().flat_map(|account| [account.clone(), account.with_category(part)]));
    }
    let until = store.blocked_until(&limited).await?;
    let now = Timestamp::now();
    let wait = |until: &Option<Timestamp>| {
        until.and_then(|until| Duration::try_from(until.duration_since(now)).ok()).unwrap_or_default()
    };
    let mut pairs = until.chunks_exact(2).map(|pair| (wait(&pair[0]), wait(&pair[1])));
    let mut holds = RateLimitHolds::new();
    for (endpoint, accounts) in endpoints.into_iter().zip(of) {
        // One usable account suffices.
        let Some((all, part)) = pairs.by_ref().take(accounts).min_by_key(|(all, part)| *all.max(part)) else {
            continue;
        };
        let why = if part > all { "has no pulls left beyond its reserve" } else { "is rate limiting" };
        let hold = RateLimitHold { wait: all.max(part), reason: why.to_owned() };
        if !hold.wait.is_zero() {
            holds.insert(endpoint, hold);
        }
    }
    Ok(holds)
}

/// Returns the longest hold on either endpoint of a route.
fn longest_route_hold<'a>(holds: &'a RateLimitHolds, route: &Route) -> Option<(&'a RegistryName, &'a RateLimitHold)> {
    let endpoints = [(route.source.registry(), true), (route.target.registry(), false)];
    let found = endpoints.into_iter().filter_map(|(endpoint, pulls)| holds.get_key_value(&(endpoint?.clone(), pulls)));
    found.map(|((registry, _), hold)| (registry, hold)).max_by_key(|(_, hold)| hold.wait)
}

/// Formats the end of a wait in UTC, rounded up to the second.
pub fn format_deadline(wait: Duration) -> String {
    let at = Timestamp::now().checked_add(wait).unwrap_or(Timestamp::MAX);
    let at = at.checked_add(Duration::from_millis(999)).unwrap_or(at);
    format!("{} UTC", at.strftime("%Y-%m-%d %H:%M:%S"))
}

fn is_below(target: &TagLocator, base: &TargetBase) -> bool {
    let Endpoint::Registry(registry) = target.repository.endpoint() else { return false };
    let below = base.prefix.as_ref().is_none_or(|prefix| {
        let rest = target.repository.path().strip_prefix(prefix.as_str());
        rest.is_some_and(|rest| rest.starts_with('/'))
    });
    *registry == base.registry && below
}

impl std::fmt::Debug for RouteSelector {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Serving")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn route(source: &str, target: &str) -> Route {
        Route::anonymous(source.parse().unwrap(), target.parse().unwrap())
    }

    fn base(text: &str) -> TargetBase {
        let (registry, prefix) = text.split_once('/').map_or((text, None), |(registry, rest)| (registry, Some(rest)));
        TargetBase { registry: registry.parse().unwrap(), prefix: prefix.map(|prefix| prefix.parse().unwrap()) }
    }

    fn tag_locator(path: &str) -> TagLocator {
        let home = imgsync_model::batch::RepositoryLocator::new("r.example".parse().unwrap(), path).unwrap();
        TagLocator { repository: Arc::new(home), tag: "v1".parse().unwrap() }
    }

    #[test]
    fn a_worker_serves_the_routes_of_its_registries() {
        let registries = BTreeSet::from(["gcr.io".parse().unwrap()]);
        let selector = RouteSelector::new(WorkerScope { registries, ..WorkerScope::default() });
        assert_eq!(selector.scope_rejection(&route("gcr.io", "r.example")), None);
        assert_eq!(selector.scope_rejection(&route("r.example", "gcr.io")), None, "at either end");
        assert!(selector.scope_rejection(&route("quay.io", "r.example")).unwrap().contains("--registries"));
        assert!(selector.scope_rejection(&route("oci:/srv", "r.example")).unwrap().contains("layouts"));
    }

    #[test]
    fn a_worker_pushes_below_what_its_configuration_names() {
        let selector =
            RouteSelector::new(WorkerScope { targets: vec![base("r.example/mirror")], ..WorkerScope::default() });
        assert!(selector.check_target(&tag_locator("mirror/a")).is_ok());
        for outside in ["mirrors/a", "other/a", "mirror"] {
            let error = selector.check_target(&tag_locator(outside)).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Denied, "{outside}");
            assert!(error.to_string().contains("r.example/mirror"), "{error}");
        }
        assert!(selector.scope_rejection(&route("gcr.io", "elsewhere.example")).unwrap().contains("elsewhere.example"));
        assert_eq!(selector.scope_rejection(&route("gcr.io", "r.example")), None);
    }

    #[test]
    fn a_held_route_is_not_served_until_its_deadline() {
        let selector = RouteSelector::new(WorkerScope::default());
        let mut changes = selector.subscribe();
        assert_eq!(selector.current_filter().0, Some(RouteFilter::All));
        selector.hold_route(&route("gcr.io", "r.example"), Duration::from_secs(60), "gcr.io is rate limiting");
        assert!(changes.has_changed().unwrap());
        changes.mark_unchanged();
        let (Some(filter), until) = selector.current_filter() else { panic!("other routes are served") };
        assert!(!filter.contains(&route("gcr.io", "r.example")));
        assert!(filter.contains(&route("quay.io", "r.example")));
        assert!(until <= Instant::now() + Duration::from_secs(60));
        assert!(selector.unserved_routes()[0].reason.contains("is rate limiting; held until 2"));
        assert!(selector.unserved_routes()[0].reason.ends_with(" UTC"), "{:?}", selector.unserved_routes());
        selector.hold_route(&route("gcr.io", "r.example"), Duration::ZERO, "shorter");
        let (filter, _) = selector.current_filter();
        assert!(!filter.unwrap().contains(&route("gcr.io", "r.example")), "the longer wait holds");
        selector.set_paused(Some("its traffic is used up".to_owned()));
        assert_eq!(selector.current_filter().0, None);
        selector.set_paused(None);
        assert!(selector.current_filter().0.is_some());
    }
}
