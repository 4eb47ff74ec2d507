//! Routes a worker takes tasks from: those it is allowed and able to serve, and that no registry's rate limit holds.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use imgsync_common::batch::{End, Lane, Place};
use imgsync_common::error::{Class, Error, Result};
use imgsync_common::image::RegistryName;
use imgsync_common::naming::Base;
use imgsync_common::queue::Lanes;
use imgsync_common::registry::{Client, Context, Hold};
use imgsync_common::store::{Account, AccountPart, Store, Unserved};
use jiff::Timestamp;
use tokio::sync::watch;

/// Interval at which routes and registry limits are refreshed.
const LOOK_EVERY: Duration = Duration::from_secs(2);
/// Backoff for an unreachable registry: first and maximum; doubles after each failed probe.
const OUT_OF_REACH: [Duration; 2] = [Duration::from_secs(5), Duration::from_secs(120)];
/// Deadlines closer than this count as equal.
const SAME: Duration = Duration::from_millis(500);
/// Time until the next evaluation when there is no deadline.
const FAR: Duration = Duration::from_secs(3600);

/// Limits the routes and targets of a worker.
#[derive(Debug, Clone, Default)]
pub struct Allowed {
    /// Only routes with one of these as source or target; all routes if empty.
    pub registries: BTreeSet<RegistryName>,
    /// Only targets below one of these; all targets if empty.
    pub targets: Vec<Base>,
}

/// Selects the routes a worker serves. Clones share their state.
#[derive(Clone)]
pub struct Serving(Arc<Inner>);

struct Inner {
    allowed: Allowed,
    state: Mutex<State>,
    /// Counts changes.
    changed: watch::Sender<u64>,
}

#[derive(Default)]
struct State {
    /// Routes held by a registry's rate limit: until when, and why.
    parked: HashMap<Lane, (Instant, String)>,
    /// Registries to which connections fail.
    out_of_reach: HashMap<RegistryName, OutOfReach>,
    /// Routes this worker may not or cannot serve, and why.
    unserved: BTreeMap<Lane, String>,
    /// Routes evaluated as servable.
    served: BTreeSet<Lane>,
    /// Why the worker takes no tasks at all.
    full: Option<String>,
}

struct OutOfReach {
    why: String,
    wait: Duration,
    ask_at: Instant,
}

impl Serving {
    /// Creates a selector that serves every route in scope.
    pub fn new(allowed: Allowed) -> Serving {
        Serving(Arc::new(Inner { allowed, state: Mutex::default(), changed: watch::Sender::new(0) }))
    }

    /// Returns the routes to take from, and until when that is valid; `None` if nothing may be taken.
    pub(super) fn lanes(&self) -> (Option<Lanes>, Instant) {
        let mut state = self.state();
        let now = Instant::now();
        if state.full.is_some() {
            return (None, now + FAR);
        }
        state.parked.retain(|_, (until, _)| *until > now);
        let until = state.parked.values().map(|(until, _)| *until).min().unwrap_or(now + FAR);
        let except: BTreeSet<Lane> = state.parked.keys().chain(state.unserved.keys()).cloned().collect();
        match except.is_empty() {
            true => (Some(Lanes::All), until),
            false => (Some(Lanes::Except(except)), until),
        }
    }

    /// Subscribes to changes of the routes.
    pub(crate) fn changes(&self) -> watch::Receiver<u64> {
        self.0.changed.subscribe()
    }

    /// Stops taking tasks for the given reason, or resumes with `None`. Returns whether that is a change.
    pub(crate) fn set_full(&self, why: Option<String>) -> bool {
        let mut state = self.state();
        let is_new = state.full != why;
        if is_new {
            state.full = why;
            drop(state);
            self.tell();
        }
        is_new
    }

    /// Holds a route for this long. Returns whether it was not held before.
    pub(super) fn park(&self, lane: &Lane, wait: Duration, why: &str) -> bool {
        let now = Instant::now();
        let until = now + wait.min(FAR * 24);
        let mut state = self.state();
        let before = state.parked.get(lane).map(|(until, _)| *until).filter(|until| *until > now);
        // A repetition moments later is no change.
        if before.is_none_or(|before| before + SAME < until) {
            // Format the deadline once, so that the text of a route does not change.
            let why = format!("{why}; left alone until {}", moment(wait));
            state.parked.insert(lane.clone(), (until, why));
            drop(state);
            self.tell();
        }
        before.is_none()
    }

    /// Records that a registry is unreachable: its routes are not served until a probe succeeds.
    pub(super) fn lost_reach(&self, registry: &RegistryName, lane: &Lane, why: &str) {
        let why = format!("{registry} cannot be reached from here: {why}");
        let mut state = self.state();
        state.unserved.insert(lane.clone(), why.clone());
        let wait = OUT_OF_REACH[0];
        state.out_of_reach.entry(registry.clone()).or_insert_with(|| OutOfReach {
            why,
            wait,
            ask_at: Instant::now() + wait,
        });
        drop(state);
        self.tell();
    }

    /// Returns the routes not served, and why.
    pub fn unserved(&self) -> Vec<Unserved> {
        let state = self.state();
        let now = Instant::now();
        let parked = state
            .parked
            .iter()
            .filter(|(_, (until, _))| *until > now)
            .map(|(lane, (_, why))| Unserved { lane: lane.clone(), reason: why.clone() });
        // These are served in principle, but not now.
        let full = state.full.iter().flat_map(|why| {
            let served = state.served.iter().filter(|lane| !state.unserved.contains_key(lane));
            served.map(|lane| Unserved { lane: lane.clone(), reason: why.clone() })
        });
        let unserved = state.unserved.iter().map(|(lane, why)| Unserved { lane: lane.clone(), reason: why.clone() });
        let mut all: Vec<Unserved> = unserved.chain(full).chain(parked).collect();
        all.sort_by(|a, b| a.lane.cmp(&b.lane));
        all.dedup_by(|a, b| a.lane == b.lane);
        all
    }

    /// Checks that this worker may write the target tag.
    pub(super) fn check_target(&self, target: &Place) -> Result<()> {
        let targets = &self.0.allowed.targets;
        if targets.is_empty() || targets.iter().any(|base| is_below(target, base)) {
            return Ok(());
        }
        let bases: Vec<String> = targets.iter().map(Base::to_string).collect();
        let detail = format!("the configuration of this worker allows pushing below {} only", bases.join(", "));
        Err(Error::new(Class::Denied, format!("writing {target}"), detail)
            .hint("add the target to the worker's configuration (`defaults: {to: …}`), or leave all targets out of it"))
    }

    /// Refreshes the state of the routes until dropped.
    pub async fn keep(&self, store: &dyn Store, client: &Client) {
        loop {
            // On a store error nothing changes.
            if let Ok(lanes) = store.lanes().await {
                let unserved = self.look(&lanes, client).await;
                self.follow_pace(&lanes, store, client).await;
                let mut state = self.state();
                state.served = lanes.into_iter().filter(|lane| !unserved.contains_key(lane)).collect();
                if state.unserved != unserved {
                    state.unserved = unserved;
                    drop(state);
                    self.tell();
                }
            }
            tokio::time::sleep(LOOK_EVERY).await;
        }
    }

    /// Returns the routes that cannot be served, and why.
    async fn look(&self, lanes: &[Lane], client: &Client) -> BTreeMap<Lane, String> {
        let mut users: HashMap<RegistryName, Option<String>> = HashMap::new();
        let mut unserved = BTreeMap::new();
        self.ask_those_out_of_reach(client).await;
        for lane in lanes {
            if let Some(reason) = self.why_not(lane, client, &mut users).await {
                unserved.insert(lane.clone(), reason);
            }
        }
        unserved
    }

    /// Whether tasks of a route can run here. The route may be new and not evaluated yet.
    pub(super) async fn may_serve(&self, lane: &Lane, client: &Client) -> bool {
        if self.state().served.contains(lane) {
            return true;
        }
        let reason = self.why_not(lane, client, &mut HashMap::new()).await;
        let is_served = reason.is_none();
        match reason {
            None => _ = self.state().served.insert(lane.clone()),
            Some(reason) => _ = self.state().unserved.insert(lane.clone(), reason),
        }
        self.tell();
        is_served
    }

    /// Returns why a route cannot be served; `None` if it can.
    async fn why_not(
        &self,
        lane: &Lane,
        client: &Client,
        users: &mut HashMap<RegistryName, Option<String>>,
    ) -> Option<String> {
        if let Some(reason) = self.forbidden(lane).or_else(|| self.out_of_reach(lane)) {
            return Some(reason);
        }
        let ends = [(&lane.source, &lane.source_credential), (&lane.target, &lane.target_credential)];
        for (end, wanted) in ends {
            let (Some(registry), Some(wanted)) = (end.registry(), wanted) else { continue };
            if !users.contains_key(registry) {
                let user = client.user_of(registry).await;
                users.insert(registry.clone(), user.ok().flatten());
            }
            if users[registry].as_deref() != Some(&**wanted) {
                return Some(format!("there is no credential of `{wanted}` for {registry} here"));
            }
        }
        None
    }

    fn forbidden(&self, lane: &Lane) -> Option<String> {
        let Allowed { registries, targets } = &self.0.allowed;
        let ends = [lane.source.registry(), lane.target.registry()];
        let (Some(_), Some(target)) = (ends[0], ends[1]) else {
            return Some("image layouts are on the machine that lists them".to_owned());
        };
        if !registries.is_empty() && !ends.iter().flatten().any(|registry| registries.contains(registry)) {
            return Some("not among its --registries".to_owned());
        }
        if !targets.is_empty() && !targets.iter().any(|base| base.registry == *target) {
            return Some(format!("its configuration does not allow pushing to {target}"));
        }
        None
    }

    fn out_of_reach(&self, lane: &Lane) -> Option<String> {
        let state = self.state();
        let ends = [lane.source.registry(), lane.target.registry()];
        ends.into_iter().flatten().find_map(|end| state.out_of_reach.get(end)).map(|out| out.why.clone())
    }

    /// Probes the unreachable registries whose backoff has passed.
    async fn ask_those_out_of_reach(&self, client: &Client) {
        let now = Instant::now();
        let due: Vec<RegistryName> = {
            let state = self.state();
            let due = state.out_of_reach.iter().filter(|(_, out)| out.ask_at <= now);
            due.map(|(registry, _)| registry.clone()).collect()
        };
        for registry in due {
            let answer = client.ping(&registry, &Context::default()).await;
            let mut state = self.state();
            match answer {
                Ok(()) => _ = state.out_of_reach.remove(&registry),
                Err(error) => {
                    if let Some(out) = state.out_of_reach.get_mut(&registry) {
                        out.wait = (out.wait * 2).min(OUT_OF_REACH[1]);
                        out.ask_at = Instant::now() + out.wait;
                        out.why = format!("{registry} cannot be reached from here: {}", error.detail());
                    }
                }
            }
        }
    }

    /// Holds the routes of registries whose rate limit or used-up quota other workers have reported.
    async fn follow_pace(&self, lanes: &[Lane], store: &dyn Store, client: &Client) {
        // On a store error nothing changes.
        let Ok(holds) = store_holds(lanes, store, client).await else { return };
        for lane in lanes {
            // A short wait is spent while holding a slot.
            if let Some((registry, Hold { wait, why })) =
                of_lane(&holds, lane).filter(|(_, hold)| hold.wait > LOOK_EVERY)
            {
                self.park(lane, *wait, &format!("{registry} {why}"));
            }
        }
    }

    fn tell(&self) {
        self.0.changed.send_modify(|changes| *changes += 1);
    }

    fn state(&self) -> std::sync::MutexGuard<'_, State> {
        self.0.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Returns the longest hold on either endpoint of a route, as known to this process.
pub(super) fn own_hold(lane: &Lane, client: &Client) -> Option<(RegistryName, Hold)> {
    let ends = [(lane.source.registry(), true), (lane.target.registry(), false)];
    let holds = ends.into_iter().filter_map(|(end, pulls)| Some((end?.clone(), client.hold(end?, pulls)?)));
    holds.max_by_key(|(_, hold)| hold.wait).filter(|(_, hold)| hold.wait > LOOK_EVERY)
}

/// Holds by registry and role: source (true) or target (false).
pub type Holds = BTreeMap<(RegistryName, bool), Hold>;

/// Loads the holds on the endpoints of routes from the store: rate limits, and used-up quotas of all accounts with
/// which this process pulls.
pub async fn store_holds(lanes: &[Lane], store: &dyn Store, client: &Client) -> Result<Holds> {
    let ends = lanes.iter().flat_map(|lane| [(lane.source.registry(), true), (lane.target.registry(), false)]);
    let ends: BTreeSet<(RegistryName, bool)> = ends.filter_map(|(end, pulls)| Some((end?.clone(), pulls))).collect();
    let (mut asked, mut of): (Vec<Account>, Vec<usize>) = Default::default();
    for (registry, pulls) in &ends {
        let accounts = client.accounts(registry, *pulls).await;
        of.push(accounts.len());
        let part = if *pulls { AccountPart::Pulls } else { AccountPart::All };
        asked.extend(accounts.iter().flat_map(|account| [account.clone(), account.of(part)]));
    }
    let until = store.not_before(&asked).await?;
    let now = Timestamp::now();
    let wait = |until: &Option<Timestamp>| {
        until.and_then(|until| Duration::try_from(until.duration_since(now)).ok()).unwrap_or_default()
    };
    let mut pairs = until.chunks_exact(2).map(|pair| (wait(&pair[0]), wait(&pair[1])));
    let mut holds = Holds::new();
    for (end, accounts) in ends.into_iter().zip(of) {
        // One usable account suffices.
        let Some((all, part)) = pairs.by_ref().take(accounts).min_by_key(|(all, part)| *all.max(part)) else {
            continue;
        };
        let why = if part > all { "has no pulls left, or no more than are kept" } else { "asked to be left alone" };
        let hold = Hold { wait: all.max(part), why: why.to_owned() };
        if !hold.wait.is_zero() {
            holds.insert(end, hold);
        }
    }
    Ok(holds)
}

/// Returns the longest hold on either endpoint of a route.
fn of_lane<'a>(holds: &'a Holds, lane: &Lane) -> Option<(&'a RegistryName, &'a Hold)> {
    let ends = [(lane.source.registry(), true), (lane.target.registry(), false)];
    let found = ends.into_iter().filter_map(|(end, pulls)| holds.get_key_value(&(end?.clone(), pulls)));
    found.map(|((registry, _), hold)| (registry, hold)).max_by_key(|(_, hold)| hold.wait)
}

/// Formats the end of a wait in UTC, rounded up to the second.
pub fn moment(wait: Duration) -> String {
    let at = Timestamp::now().checked_add(wait).unwrap_or(Timestamp::MAX);
    let at = at.checked_add(Duration::from_millis(999)).unwrap_or(at);
    format!("{} UTC", at.strftime("%Y-%m-%d %H:%M:%S"))
}

fn is_below(target: &Place, base: &Base) -> bool {
    let End::Registry(registry) = target.home.end() else { return false };
    let below = base.prefix.as_ref().is_none_or(|prefix| {
        let rest = target.home.path().strip_prefix(prefix.as_str());
        rest.is_some_and(|rest| rest.starts_with('/'))
    });
    *registry == base.registry && below
}

impl std::fmt::Debug for Serving {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Serving")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lane(source: &str, target: &str) -> Lane {
        Lane::anonymous(source.parse().unwrap(), target.parse().unwrap())
    }

    fn base(text: &str) -> Base {
        let (registry, prefix) = text.split_once('/').map_or((text, None), |(registry, rest)| (registry, Some(rest)));
        Base { registry: registry.parse().unwrap(), prefix: prefix.map(|prefix| prefix.parse().unwrap()) }
    }

    fn place(path: &str) -> Place {
        let home = imgsync_common::batch::Home::new("r.example".parse().unwrap(), path).unwrap();
        Place { home: Arc::new(home), tag: "v1".parse().unwrap() }
    }

    #[test]
    fn a_worker_serves_the_lanes_of_its_registries() {
        let registries = BTreeSet::from(["gcr.io".parse().unwrap()]);
        let serving = Serving::new(Allowed { registries, ..Allowed::default() });
        assert_eq!(serving.forbidden(&lane("gcr.io", "r.example")), None);
        assert_eq!(serving.forbidden(&lane("r.example", "gcr.io")), None, "at either end");
        assert!(serving.forbidden(&lane("quay.io", "r.example")).unwrap().contains("--registries"));
        assert!(serving.forbidden(&lane("oci:/srv", "r.example")).unwrap().contains("layouts"));
    }

    #[test]
    fn a_worker_pushes_below_what_its_configuration_names() {
        let serving = Serving::new(Allowed { targets: vec![base("r.example/mirror")], ..Allowed::default() });
        assert!(serving.check_target(&place("mirror/a")).is_ok());
        for outside in ["mirrors/a", "other/a", "mirror"] {
            let error = serving.check_target(&place(outside)).unwrap_err();
            assert_eq!(error.class(), Class::Denied, "{outside}");
            assert!(error.to_string().contains("r.example/mirror"), "{error}");
        }
        assert!(serving.forbidden(&lane("gcr.io", "elsewhere.example")).unwrap().contains("elsewhere.example"));
        assert_eq!(serving.forbidden(&lane("gcr.io", "r.example")), None);
    }

    #[test]
    fn what_is_parked_is_left_alone_until_then() {
        let serving = Serving::new(Allowed::default());
        let mut changes = serving.changes();
        assert_eq!(serving.lanes().0, Some(Lanes::All));
        serving.park(&lane("gcr.io", "r.example"), Duration::from_secs(60), "gcr.io asked to be left alone");
        assert!(changes.has_changed().unwrap());
        changes.mark_unchanged();
        let (Some(lanes), until) = serving.lanes() else { panic!("other lanes are served") };
        assert!(!lanes.contains(&lane("gcr.io", "r.example")));
        assert!(lanes.contains(&lane("quay.io", "r.example")));
        assert!(until <= Instant::now() + Duration::from_secs(60));
        assert!(serving.unserved()[0].reason.contains("asked to be left alone; left alone until 2"));
        assert!(serving.unserved()[0].reason.ends_with(" UTC"), "{:?}", serving.unserved());
        serving.park(&lane("gcr.io", "r.example"), Duration::ZERO, "shorter");
        let (lanes, _) = serving.lanes();
        assert!(!lanes.unwrap().contains(&lane("gcr.io", "r.example")), "the longer wait holds");
        serving.set_full(Some("its traffic is used up".to_owned()));
        assert_eq!(serving.lanes().0, None);
        serving.set_full(None);
        assert!(serving.lanes().0.is_some());
    }
}
