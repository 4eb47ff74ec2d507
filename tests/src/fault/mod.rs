//! A whole registry in memory that misbehaves on command and remembers every request.
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

/// The registry. It stops when it is dropped.
#[derive(Debug)]
pub struct FaultRegistry {
    inner: Arc<Inner>,
    address: SocketAddr,
}

impl FaultRegistry {
    /// A plain registry: HTTP, no credentials, all of the specification.
    pub async fn start() -> Self {
        Self::builder().start().await
    }

    /// A registry with options.
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

    /// `127.0.0.1:PORT`, as it is written in references.
    pub fn host(&self) -> String {
        self.address.to_string()
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// `http://127.0.0.1:PORT`, or `https://…`.
    pub fn url(&self) -> String {
        self.inner.url()
    }

    /// The realm of its token service, to be named by another registry.
    pub fn token_url(&self) -> String {
        format!("{}/token", self.url())
    }

    /// Begins a rule: what is to happen to requests that match. Among several, the first that is still live wins.
    pub fn on(&self, what: impl Into<Match>) -> On<'_> {
        On::new(&self.inner, what.into())
    }

    /// Forgets all rules.
    pub fn clear_rules(&self) {
        self.inner.rules.lock().expect("no test panics in here").clear();
    }

    /// Every request so far, in the order of arrival.
    pub fn requests(&self) -> Vec<Record> {
        self.inner.log.all()
    }

    /// Requests of a kind, without those for tags that belong to other images: see [`FaultRegistry::referrer_requests`].
    pub fn count(&self, kind: Kind) -> u64 {
        self.inner.log.count(|request| request.kind == kind && !request.is_about_a_companion())
    }

    /// Requests that a condition holds for.
    pub fn count_where(&self, wanted: impl Fn(&Record) -> bool) -> u64 {
        self.inner.log.count(wanted)
    }

    /// Requests of a kind, without those for tags that belong to other images.
    pub fn requests_of(&self, kind: Kind) -> Vec<Record> {
        let wanted = |request: &Record| request.kind == kind && !request.is_about_a_companion();
        self.requests().into_iter().filter(wanted).collect()
    }

    /// Requests, without pings, tokens, logins, what was read at the signed addresses of blobs, and what is asked of
    /// referrers.
    pub fn total(&self) -> u64 {
        let aside = |kind| matches!(kind, Kind::Ping | Kind::Token | Kind::ApiLogin | Kind::Signed | Kind::Referrers);
        self.inner.log.count(|request| !aside(request.kind) && !request.is_about_a_companion())
    }

    /// Requests, with pings and tokens.
    pub fn total_with_all(&self) -> u64 {
        self.inner.log.count(|_| true)
    }

    /// Requests for referrers: by the API, by the fallback tag, or by cosign's tags.
    pub fn referrer_requests(&self) -> Vec<Record> {
        let about = |request: &Record| request.kind == Kind::Referrers || request.is_about_a_companion();
        self.requests().into_iter().filter(about).collect()
    }

    /// Bytes of all bodies sent.
    pub fn bytes_sent(&self) -> u64 {
        self.inner.log.sum(|request| request.sent)
    }

    /// Bytes of all bodies received.
    pub fn bytes_received(&self) -> u64 {
        self.inner.log.sum(|request| request.received)
    }

    /// Forgets the requests so far.
    pub fn clear_requests(&self) {
        self.inner.misled.store(0, Ordering::SeqCst);
        self.inner.log.clear();
    }

    /// A line for each request, for a test's message.
    pub fn describe_requests(&self) -> String {
        let lines: Vec<_> = self.requests().iter().map(ToString::to_string).collect();
        lines.join("\n")
    }

    /// The most requests that were being answered at the same time.
    pub fn peak_in_flight(&self) -> u64 {
        self.inner.peak.load(Ordering::SeqCst)
    }

    /// Requests that are being answered now, their bodies included.
    pub fn in_flight(&self) -> u64 {
        self.inner.in_flight()
    }

    /// Connections accepted so far.
    pub fn connections(&self) -> u64 {
        self.inner.connections.load(Ordering::SeqCst)
    }

    /// Requests that were for nothing, and that only this registry's habits are to blame for: those that it answered with
    /// a challenge, whose body it broke off, or that it gave a useless answer.
    pub fn misled(&self) -> u64 {
        self.inner.misled.load(Ordering::SeqCst)
    }

    /// What answers were varied, and how: a line for each.
    pub fn varied(&self) -> Vec<(Kind, String)> {
        self.inner.varied.lock().expect("the list is whole").clone()
    }

    /// Closes every connection that is open; new ones are accepted.
    pub fn cut_all(&self) {
        self.inner.cut_all();
    }

    /// The next connections are closed to their first request by GOAWAY: only where HTTP/2 is spoken, which wants TLS.
    pub fn take_leave(&self, connections: u64) {
        self.inner.leaves.store(connections, Ordering::SeqCst);
    }

    /// How many connections are still to be closed so.
    pub fn leaves_to_take(&self) -> u64 {
        self.inner.leaves.load(Ordering::SeqCst)
    }

    /// Makes all tokens that its own service issued so far expire at once.
    pub fn expire_tokens(&self) {
        self.inner.expire_tokens();
    }

    /// Waits until a condition on the registry holds.
    ///
    /// # Panics
    /// With the log of requests, when it does not hold in time.
    pub async fn wait_until(&self, condition: impl Fn(&Self) -> bool, limit: Duration) {
        let mut changes = self.inner.log.changes();
        let wait = async {
            while !condition(self) {
                // Some conditions are about content, which changes without a request: look again now and then.
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
