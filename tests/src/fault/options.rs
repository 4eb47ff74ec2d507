//! Options of the fault registry.

use std::sync::Arc;
use std::time::Duration;

use http::StatusCode;

use super::quirks::Quirks;
use super::{FaultRegistry, VendorKind};
use crate::tls::Authority;

/// Required credentials.
#[derive(Clone, Debug)]
pub enum AuthMode {
    /// No credentials required.
    None,
    /// Basic authentication with this user and password.
    Basic(String, String),
    /// Basic authentication with any user.
    AnyUser,
    /// Bearer tokens.
    Bearer(Bearer),
}

/// Field of the token in the token service's response.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TokenField {
    /// `token`.
    Token,
    /// `access_token`.
    AccessToken,
    /// Both.
    Both,
}

/// Response of the token service to `POST grant_type=refresh_token`.
#[derive(Clone, Debug)]
pub enum RefreshPolicy {
    /// Accepts this identity token.
    Accept(String),
    /// Refuses with 404 or 405, so that the client uses GET.
    Refuse(StatusCode),
}

/// Token service and its requirements.
#[derive(Clone, Debug)]
pub struct Bearer {
    pub(super) user: Option<(String, String)>,
    pub(super) realm: Option<String>,
    pub(super) service: Option<String>,
    pub(super) ttl: Duration,
    pub(super) say_expiry: bool,
    pub(super) field: TokenField,
    pub(super) refresh: RefreshPolicy,
    pub(super) anonymous_pull: bool,
}

impl Bearer {
    /// Issues tokens to one user only.
    pub fn user(user: &str, password: &str) -> Self {
        Self { user: Some((user.to_owned(), password.to_owned())), anonymous_pull: false, ..Self::anonymous() }
    }

    /// Issues pull tokens to anyone.
    pub fn anonymous() -> Self {
        Self {
            user: None,
            realm: None,
            service: None,
            ttl: Duration::from_secs(300),
            say_expiry: true,
            field: TokenField::Token,
            refresh: RefreshPolicy::Refuse(StatusCode::METHOD_NOT_ALLOWED),
            anonymous_pull: true,
        }
    }

    /// Sets whether anyone gets pull tokens.
    #[must_use]
    pub fn anonymous_pull(mut self, allowed: bool) -> Self {
        self.anonymous_pull = allowed;
        self
    }

    /// Uses another token service, by its full URL.
    #[must_use]
    pub fn realm(mut self, url: &str) -> Self {
        self.realm = Some(url.to_owned());
        self
    }

    /// Sets the service name, by default the registry's host. Tokens for another service are refused.
    #[must_use]
    pub fn service(mut self, name: &str) -> Self {
        self.service = Some(name.to_owned());
        self
    }

    /// Sets the lifetime of tokens.
    #[must_use]
    pub fn ttl(mut self, ttl: Duration) -> Self {
        self.ttl = ttl;
        self
    }

    /// Omits `expires_in` from the response.
    #[must_use]
    pub fn without_expiry(mut self) -> Self {
        self.say_expiry = false;
        self
    }

    /// Sets the field of the token.
    #[must_use]
    pub fn field(mut self, field: TokenField) -> Self {
        self.field = field;
        self
    }

    /// Sets the handling of identity tokens.
    #[must_use]
    pub fn refresh(mut self, refresh: RefreshPolicy) -> Self {
        self.refresh = refresh;
        self
    }
}

/// Response to `POST ?mount=`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MountPolicy {
    /// 201 if the `from` repository has the blob, else 202.
    Mount,
    /// Always 202 with an upload session.
    Ignore,
    /// An error.
    Refuse(StatusCode),
}

/// Builder of a [`FaultRegistry`].
#[derive(Clone, Debug)]
pub struct FaultRegistryBuilder {
    pub(super) auth: AuthMode,
    pub(super) authority: Option<Arc<Authority>>,
    pub(super) hosts: Vec<String>,
    pub(super) http1_only: bool,
    pub(super) demand_client: bool,
    pub(super) mounts: MountPolicy,
    pub(super) blackhole: bool,
    pub(super) chunk_minimum: Option<u64>,
    pub(super) max_concurrent: Option<usize>,
    pub(super) rate: Option<(f64, f64)>,
    pub(super) pulls: Option<(u64, Duration)>,
    pub(super) latency: Duration,
    pub(super) resumable: bool,
    pub(super) single_post: bool,
    pub(super) relative_locations: bool,
    pub(super) absolute_links: bool,
    pub(super) page: Option<usize>,
    pub(super) google: bool,
    pub(super) referrers: bool,
    pub(super) immutable_tags: bool,
    pub(super) digest_header: bool,
    pub(super) lenient: bool,
    pub(super) port: u16,
    pub(super) vendor: Option<VendorKind>,
    pub(super) vendor_login: Option<(String, String)>,
    pub(super) namespaces: Vec<String>,
    pub(super) github_users: bool,
    pub(super) quirks: Quirks,
}

impl Default for FaultRegistryBuilder {
    fn default() -> Self {
        Self {
            auth: AuthMode::None,
            authority: None,
            hosts: Vec::new(),
            http1_only: false,
            demand_client: false,
            mounts: MountPolicy::Mount,
            blackhole: false,
            chunk_minimum: None,
            max_concurrent: None,
            rate: None,
            pulls: None,
            latency: Duration::ZERO,
            resumable: true,
            single_post: true,
            relative_locations: false,
            absolute_links: false,
            page: None,
            google: false,
            referrers: true,
            immutable_tags: false,
            digest_header: true,
            lenient: false,
            port: 0,
            vendor: None,
            vendor_login: None,
            namespaces: Vec::new(),
            github_users: false,
            quirks: Quirks::default(),
        }
    }
}

macro_rules! switches {
    ($($(#[$doc:meta])* $name:ident($field:ident = $value:expr $(, $argument:ident: $type:ty)?);)*) => {
        $($(#[$doc])* #[must_use] pub fn $name(mut self $(, $argument: $type)?) -> Self { self.$field = $value; self })*
    };
}

impl FaultRegistryBuilder {
    switches! {
        /// Sets the required credentials.
        auth(auth = auth, auth: AuthMode);
        /// Serves HTTPS with a certificate of this authority for loopback addresses, and offers HTTP/2.
        tls(authority = Some(authority), authority: Arc<Authority>);
        /// Serves HTTP/1.1 only, also over TLS.
        http1_only(http1_only = true);
        /// Requires client certificates of the same authority.
        demand_client_certificate(demand_client = true);
        /// Sets the response to mounts.
        mounts(mounts = policy, policy: MountPolicy);
        /// Hashes and counts uploaded blobs and discards their bytes, so that gigabytes take no memory. Only sha256.
        blackhole(blackhole = true);
        /// Sets the least size in bytes of chunks except the last, announced in `OCI-Chunk-Min-Length`.
        chunk_minimum(chunk_minimum = Some(bytes), bytes: u64);
        /// Sets the concurrency limit. Excess requests wait.
        max_concurrent(max_concurrent = Some(requests), requests: usize);
        /// Sets requests per second and burst over all kinds. Excess requests get 429 with `Retry-After: 1`.
        rate(rate = Some(limit), limit: (f64, f64));
        /// Sets the manifest GETs per user and window, as Docker Hub does: the first GET starts a window, GET and HEAD
        /// report `ratelimit-limit: 100;w=20` and `ratelimit-remaining`, and excess requests get 429 without
        /// `Retry-After`.
        pulls(pulls = Some(quota), quota: (u64, Duration));
        /// Sets the latency added to each request.
        latency(latency = latency, latency: Duration);
        /// Loses sessions that were cut, as docker-registry 2.8 does: 404 BLOB_UPLOAD_INVALID.
        not_resumable(resumable = false);
        /// Only opens a session on `POST ?digest=` with a body, as docker-registry does.
        without_single_post(single_post = false);
        /// Sends `Location` without scheme and host.
        relative_locations(relative_locations = true);
        /// Sends `Link` with scheme and host.
        absolute_links(absolute_links = true);
        /// Sets the page size of tags, repositories and referrers.
        page(page = Some(entries), entries: usize);
        /// Serves `tags/list` in the format of Google's registries.
        google(google = true);
        /// Disables the referrers API: 404, and no `OCI-Subject`.
        without_referrers(referrers = false);
        /// Refuses to move existing tags.
        immutable_tags(immutable_tags = true);
        /// Omits `Docker-Content-Digest` from manifests.
        without_digest_header(digest_header = false);
        /// Accepts manifests without their references, which exposes a wrong push order.
        lenient(lenient = true);
        /// Serves a vendor's API at the same address.
        vendor(vendor = Some(vendor), vendor: VendorKind);
        /// Treats the owners of GitHub packages as users instead of organizations.
        github_users(github_users = true);
        /// Sets its quirks.
        quirks(quirks = quirks, quirks: Quirks);
        /// Sets the port.
        port(port = port, port: u16);
    }

    /// `AuthMode::Basic`.
    #[must_use]
    pub fn basic(self, user: &str, password: &str) -> Self {
        self.auth(AuthMode::Basic(user.to_owned(), password.to_owned()))
    }

    /// `AuthMode::Bearer`.
    #[must_use]
    pub fn bearer(self, bearer: Bearer) -> Self {
        self.auth(AuthMode::Bearer(bearer))
    }

    /// Restricts the vendor's API listings to this login.
    #[must_use]
    pub fn vendor_login(mut self, user: &str, password: &str) -> Self {
        self.vendor_login = Some((user.to_owned(), password.to_owned()));
        self
    }

    /// Adds an empty namespace to the vendor's API.
    #[must_use]
    pub fn namespace(mut self, name: &str) -> Self {
        self.namespaces.push(name.to_owned());
        self
    }

    /// Adds a host name to the certificate.
    #[must_use]
    pub fn host_name(mut self, host: &str) -> Self {
        self.hosts.push(host.to_owned());
        self
    }

    /// Starts the registry on loopback, on a free port unless one is set.
    pub async fn start(self) -> FaultRegistry {
        FaultRegistry::start_with(self).await
    }
}
