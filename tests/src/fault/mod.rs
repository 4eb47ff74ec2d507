//! An in-memory registry that fails on command and records every request.
//!
//! ```no_run
//! # async fn example() {
//! use imgsync_tests::fault::{Action, FaultRegistry, Kind, Match};
//! use imgsync_tests::images;
//!
//! let source = FaultRegistry::start().await;
//! let image = images::single("my-test");
//! source.push("library/app", "1.0", &image);
//! source.on(Match::kind(Kind::BlobGet).reference(&image.largest_blob())).act(Action::CutAfter { bytes: 100 });
//! // … copy …
//! assert_eq!(source.count(Kind::BlobGet), 3);
//! # }
//! ```

mod answer;
mod auth;
mod blobs;
mod content;
mod create;
mod goaway;
mod habits;
mod head;
mod listing;
mod manifests;
mod options;
mod pump;
mod record;
mod route;
mod script;
mod serve;
mod state;
mod upload_body;
mod uploads;
mod vary;
mod vendor;

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use tokio::net::TcpListener;
use tokio::time::timeout;

pub use create::Makes;
pub use habits::{Errors, Habits, Heads, Links, Patches};
pub use options::{Auth, Bearer, Builder, MountPolicy, Refresh, TokenField};
pub use record::Record;
pub use route::Kind;
pub use script::{Action, Match, On, RuleHandle};
pub use vary::Vary;
pub use vendor::Vendor;

use state::Inner;

/// A fault registry, stopped on drop.
#[derive(Debug)]
pub struct FaultRegistry {
    inner: Arc<Inner>,
    address: SocketAddr,
}

impl FaultRegistry {
    /// Starts a registry with default options: HTTP, no credentials, the whole specification.
    pub async fn start() -> Self {
        Self::builder().start().await
    }

    /// Builds a registry with options.
    pub fn builder() -> Builder {
        Builder::default()
    }

    async fn start_with(options: Builder) -> Self {
        let listener = TcpListener::bind(("127.0.0.1", options.port)).await.expect("a loopback port is free");
        let address = listener.local_addr().expect("a listener has an address");
        let inner = Arc::new(Inner::new(options, address));
        tokio::spawn(serve::accept(listener, Arc::clone(&inner)));
        Self { inner, address }
    }

    /// Returns `127.0.0.1:PORT`, as references use it.
    pub fn host(&self) -> String {
        self.address.to_string()
    }

    /// Returns the listening address.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Returns `http://127.0.0.1:PORT` or `https://…`.
    pub fn url(&self) -> String {
        self.inner.url()
    }

    /// Returns the realm of its token service, for use by another registry.
    pub fn token_url(&self) -> String {
        format!("{}/token", self.url())
    }

    /// Starts a rule for matching requests. The first live rule that matches a request applies.
    pub fn on(&self, what: impl Into<Match>) -> On<'_> {
        On::new(&self.inner, what.into())
    }

    /// Removes all rules.
    pub fn clear_rules(&self) {
        self.inner.rules.lock().expect("no test panics in here").clear();
    }

    /// Returns all requests so far, in order of arrival.
    pub fn requests(&self) -> Vec<Record> {
        self.inner.log.all()
    }

    /// Counts requests of a kind, without those for digest tags: see [`FaultRegistry::referrer_requests`].
    pub fn count(&self, kind: Kind) -> u64 {
        self.inner.log.count(|request| request.kind == kind && !request.is_about_a_companion())
    }

    /// Counts requests that match a predicate.
    pub fn count_where(&self, wanted: impl Fn(&Record) -> bool) -> u64 {
        self.inner.log.count(wanted)
    }

    /// Returns requests of a kind, without those for digest tags.
    pub fn requests_of(&self, kind: Kind) -> Vec<Record> {
        let wanted = |request: &Record| request.kind == kind && !request.is_about_a_companion();
        self.requests().into_iter().filter(wanted).collect()
    }

    /// Counts requests, without pings, tokens, logins, reads from signed URLs, and requests for referrers.
    pub fn total(&self) -> u64 {
        let aside = |kind| matches!(kind, Kind::Ping | Kind::Token | Kind::ApiLogin | Kind::Signed | Kind::Referrers);
        self.inner.log.count(|request| !aside(request.kind) && !request.is_about_a_companion())
    }

    /// Counts requests, with pings and tokens.
    pub fn total_with_all(&self) -> u64 {
        self.inner.log.count(|_| true)
    }

    /// Returns requests for referrers: by the API, by the fallback tag, or by cosign's tags.
    pub fn referrer_requests(&self) -> Vec<Record> {
        let about = |request: &Record| request.kind == Kind::Referrers || request.is_about_a_companion();
        self.requests().into_iter().filter(about).collect()
    }

    /// Returns the bytes of all bodies sent.
    pub fn bytes_sent(&self) -> u64 {
        self.inner.log.sum(|request| request.sent)
    }

    /// Returns the bytes of all bodies received.
    pub fn bytes_received(&self) -> u64 {
        self.inner.log.sum(|request| request.received)
    }

    /// Clears the recorded requests.
    pub fn clear_requests(&self) {
        self.inner.misled.store(0, Ordering::SeqCst);
        self.inner.log.clear();
    }

    /// Describes the requests, one a line, for assertion messages.
    pub fn describe_requests(&self) -> String {
        let lines: Vec<_> = self.requests().iter().map(ToString::to_string).collect();
        lines.join("\n")
    }

    /// Returns the highest number of concurrent requests.
    pub fn peak_in_flight(&self) -> u64 {
        self.inner.peak.load(Ordering::SeqCst)
    }

    /// Returns the number of requests in flight, including their bodies.
    pub fn in_flight(&self) -> u64 {
        self.inner.in_flight()
    }

    /// Counts the connections accepted so far.
    pub fn connections(&self) -> u64 {
        self.inner.connections.load(Ordering::SeqCst)
    }

    /// Counts requests wasted by this registry's quirks alone: challenged, with a truncated body, or with a useless
    /// response.
    pub fn misled(&self) -> u64 {
        self.inner.misled.load(Ordering::SeqCst)
    }

    /// Returns the variations made so far, a line for each.
    pub fn varied(&self) -> Vec<(Kind, String)> {
        self.inner.varied.lock().expect("the list is whole").clone()
    }

    /// Closes all open connections. New ones are accepted.
    pub fn cut_all(&self) {
        self.inner.cut_all();
    }

    /// Closes the next connections with GOAWAY at their first request. HTTP/2 only, so it needs TLS.
    pub fn take_leave(&self, connections: u64) {
        self.inner.leaves.store(connections, Ordering::SeqCst);
    }

    /// Returns how many connections are still to be closed with GOAWAY.
    pub fn leaves_to_take(&self) -> u64 {
        self.inner.leaves.load(Ordering::SeqCst)
    }

    /// Expires all tokens that its own token service has issued.
    pub fn expire_tokens(&self) {
        self.inner.expire_tokens();
    }

    /// Waits until a condition on the registry holds.
    ///
    /// # Panics
    /// With the request log, on timeout.
    pub async fn wait_until(&self, condition: impl Fn(&Self) -> bool, limit: Duration) {
        let mut changes = self.inner.log.changes();
        let wait = async {
            while !condition(self) {
                // Some conditions are about content, which changes without a request: poll as well.
                let _ = timeout(Duration::from_millis(50), changes.changed()).await;
            }
        };
        if timeout(limit, wait).await.is_err() {
            panic!("not so within {limit:?}; the requests were:\n{}", self.describe_requests());
        }
    }
}

impl Drop for FaultRegistry {
    fn drop(&mut self) {
        self.inner.stop.cancel();
    }
}
