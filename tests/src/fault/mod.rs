//! An in-memory registry that fails on command and records every request.
//!
//! ```no_run
//! # async fn example() {
//! use imgsync_tests::fault::{FaultAction, FaultRegistry, RequestMatcher, RequestType};
//! use imgsync_tests::images;
//!
//! let source = FaultRegistry::start().await;
//! let image = images::single("my-test");
//! source.push("library/app", "1.0", &image);
//! source.on(RequestMatcher::kind(RequestType::BlobGet).reference(&image.largest_blob())).act(FaultAction::CutAfter { bytes: 100 });
//! // … copy …
//! assert_eq!(source.count(RequestType::BlobGet), 3);
//! # }
//! ```

mod auth;
mod blobs;
mod body_sender;
mod connections;
mod content;
mod create_api;
mod fault_rules;
mod goaway;
mod incoming_body;
mod listing;
mod manifests;
mod options;
mod quirks;
mod randomized;
mod request_log;
mod request_type;
mod response;
mod response_head;
mod state;
mod uploads;
mod vendor;

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use tokio::net::TcpListener;
use tokio::time::timeout;

pub use create_api::CreateApi;
pub use fault_rules::{FaultAction, FaultRuleBuilder, RequestMatcher, RuleHandle};
pub use options::{AuthMode, Bearer, FaultRegistryBuilder, MountPolicy, RefreshPolicy, TokenField};
pub use quirks::{ErrorFormat, ManifestHeadStyle, NextPageLink, PatchHandling, Quirks};
pub use randomized::RandomizedResponses;
pub use request_log::RecordedRequest;
pub use request_type::RequestType;
pub use vendor::VendorKind;

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
    pub fn builder() -> FaultRegistryBuilder {
        FaultRegistryBuilder::default()
    }

    async fn start_with(options: FaultRegistryBuilder) -> Self {
        let listener = TcpListener::bind(("127.0.0.1", options.port)).await.expect("a loopback port is free");
        let address = listener.local_addr().expect("a listener has an address");
        let inner = Arc::new(Inner::new(options, address));
        tokio::spawn(connections::accept(listener, Arc::clone(&inner)));
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
    pub fn on(&self, what: impl Into<RequestMatcher>) -> FaultRuleBuilder<'_> {
        FaultRuleBuilder::new(&self.inner, what.into())
    }

    /// Removes all rules.
    pub fn clear_rules(&self) {
        self.inner.rules.lock().expect("no test panics in here").clear();
    }

    /// Returns all requests so far, in order of arrival.
    pub fn requests(&self) -> Vec<RecordedRequest> {
        self.inner.log.all()
    }

    /// Counts requests of a kind, without those for digest tags: see [`FaultRegistry::referrer_requests`].
    pub fn count(&self, kind: RequestType) -> u64 {
        self.inner.log.count(|request| request.kind == kind && !request.is_for_digest_tag())
    }

    /// Counts requests that match a predicate.
    pub fn count_where(&self, wanted: impl Fn(&RecordedRequest) -> bool) -> u64 {
        self.inner.log.count(wanted)
    }

    /// Returns requests of a kind, without those for digest tags.
    pub fn requests_of_kind(&self, kind: RequestType) -> Vec<RecordedRequest> {
        let wanted = |request: &RecordedRequest| request.kind == kind && !request.is_for_digest_tag();
        self.requests().into_iter().filter(wanted).collect()
    }

    /// Counts requests, without pings, tokens, logins, reads from signed URLs, and requests for referrers.
    pub fn total(&self) -> u64 {
        let aside = |kind| {
            matches!(
                kind,
                RequestType::Ping
                    | RequestType::Token
                    | RequestType::ApiLogin
                    | RequestType::Signed
                    | RequestType::Referrers
            )
        };
        self.inner.log.count(|request| !aside(request.kind) && !request.is_for_digest_tag())
    }

    /// Counts requests, with pings and tokens.
    pub fn total_with_pings_and_tokens(&self) -> u64 {
        self.inner.log.count(|_| true)
    }

    /// Returns requests for referrers: by the API, by the fallback tag, or by cosign's tags.
    pub fn referrer_requests(&self) -> Vec<RecordedRequest> {
        let about = |request: &RecordedRequest| request.kind == RequestType::Referrers || request.is_for_digest_tag();
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
        self.inner.wasted_requests.store(0, Ordering::SeqCst);
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
    pub fn wasted_requests(&self) -> u64 {
        self.inner.wasted_requests.load(Ordering::SeqCst)
    }

    /// Returns the variations made so far, a line for each.
    pub fn variations(&self) -> Vec<(RequestType, String)> {
        self.inner.variations.lock().expect("the list is whole").clone()
    }

    /// Closes all open connections. New ones are accepted.
    pub fn close_connections(&self) {
        self.inner.close_connections();
    }

    /// Closes the next connections with GOAWAY at their first request. HTTP/2 only, so it needs TLS.
    pub fn send_goaway(&self, connections: u64) {
        self.inner.pending_goaways.store(connections, Ordering::SeqCst);
    }

    /// Returns how many connections are still to be closed with GOAWAY.
    pub fn pending_goaways(&self) -> u64 {
        self.inner.pending_goaways.load(Ordering::SeqCst)
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
