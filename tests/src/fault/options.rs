//! What kind of registry it is.

use std::sync::Arc;
use std::time::Duration;

use http::StatusCode;

use super::habits::Habits;
use super::{FaultRegistry, Vendor};
use crate::tls::Authority;

/// Who may do what.
#[derive(Clone, Debug)]
pub enum Auth {
    /// Anyone, anything.
    None,
    /// A user and a password with each request.
    Basic(String, String),
    /// A user with each request, whichever.
    AnyUser,
    /// Tokens.
    Bearer(Bearer),
}

/// Which field the token service answers in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TokenField {
    /// `token`.
    Token,
    /// `access_token`.
    AccessToken,
    /// Both.
    Both,
}

/// What the token service does with `POST grant_type=refresh_token`.
#[derive(Clone, Debug)]
pub enum Refresh {
    /// It takes this identity token.
    Accept(String),
    /// It answers 404 or 405 and wants a GET.
    Refuse(StatusCode),
}

/// A token service and what it asks for.
#[derive(Clone, Debug)]
pub struct Bearer {
    pub(super) user: Option<(String, String)>,
    pub(super) realm: Option<String>,
    pub(super) service: Option<String>,
    pub(super) ttl: Duration,
    pub(super) say_expiry: bool,
    pub(super) field: TokenField,
    pub(super) refresh: Refresh,
    pub(super) anonymous_pull: bool,
}

impl Bearer {
    /// Tokens for a user; nobody else gets any.
    pub fn user(user: &str, password: &str) -> Self {
        Self { user: Some((user.to_owned(), password.to_owned())), anonymous_pull: false, ..Self::anonymous() }
    }

    /// Tokens to pull with, for anybody.
    pub fn anonymous() -> Self {
        Self {
            user: None,
            realm: None,
            service: None,
            ttl: Duration::from_secs(300),
            say_expiry: true,
            field: TokenField::Token,
            refresh: Refresh::Refuse(StatusCode::METHOD_NOT_ALLOWED),
            anonymous_pull: true,
        }
    }

    /// Whether anybody may have tokens to pull with.
    #[must_use]
    pub fn anonymous_pull(mut self, allowed: bool) -> Self {
        self.anonymous_pull = allowed;
        self
    }

    /// Another token service, by its whole URL.
    #[must_use]
    pub fn realm(mut self, url: &str) -> Self {
        self.realm = Some(url.to_owned());
        self
    }

    /// The service's name; the registry's host if none is chosen. Tokens for another service are refused.
    #[must_use]
    pub fn service(mut self, name: &str) -> Self {
        self.service = Some(name.to_owned());
        self
    }

    /// How long tokens hold.
    #[must_use]
    pub fn ttl(mut self, ttl: Duration) -> Self {
        self.ttl = ttl;
        self
    }

    /// Leaves `expires_in` out of the answer.
    #[must_use]
    pub fn without_expiry(mut self) -> Self {
        self.say_expiry = false;
        self
    }

    /// Which field the token is in.
    #[must_use]
    pub fn field(mut self, field: TokenField) -> Self {
        self.field = field;
        self
    }

    /// What is done with identity tokens.
    #[must_use]
    pub fn refresh(mut self, refresh: Refresh) -> Self {
        self.refresh = refresh;
        self
    }
}

/// What becomes of `POST ?mount=`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MountPolicy {
    /// 201 when the blob is in the `from` repository, else 202.
    Mount,
    /// Always 202 and a session.
    Ignore,
    /// An error.
    Refuse(StatusCode),
}

/// Options, and the start.
#[derive(Clone, Debug)]
pub struct Builder {
    pub(super) auth: Auth,
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
    pub(super) vendor: Option<Vendor>,
    pub(super) vendor_login: Option<(String, String)>,
    pub(super) namespaces: Vec<String>,
    pub(super) github_users: bool,
    pub(super) habits: Habits,
}

impl Default for Builder {
    fn default() -> Self {
        Self {
            auth: Auth::None,
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
            habits: Habits::default(),
        }
    }
}

macro_rules! switches {
    ($($(#[$doc:meta])* $name:ident($field:ident = $value:expr $(, $argument:ident: $type:ty)?);)*) => {
        $($(#[$doc])* #[must_use] pub fn $name(mut self $(, $argument: $type)?) -> Self { self.$field = $value; self })*
    };
}

impl Builder {
    switches! {
        /// Who may do what.
        auth(auth = auth, auth: Auth);
        /// HTTPS, with a certificate for loopback of this authority. HTTP/2 is offered.
        tls(authority = Some(authority), authority: Arc<Authority>);
        /// HTTP/1.1 only, also over TLS.
        http1_only(http1_only = true);
        /// Clients must show a certificate of the same authority.
        demand_client_certificate(demand_client = true);
        /// What becomes of mounts.
        mounts(mounts = policy, policy: MountPolicy);
        /// Uploaded blobs are hashed and counted, and their bytes forgotten: gigabytes take no memory. Only sha256.
        blackhole(blackhole = true);
        /// The least bytes of a chunk that is not the last, announced by `OCI-Chunk-Min-Length`.
        chunk_minimum(chunk_minimum = Some(bytes), bytes: u64);
        /// Requests beyond this many wait.
        max_concurrent(max_concurrent = Some(requests), requests: usize);
        /// So many requests a second and so many at once, of all kinds; more are answered 429 with `Retry-After: 1`.
        rate(rate = Some(limit), limit: (f64, f64));
        /// So many manifests may be read (GET) in a window by each user, as at Docker Hub: a window begins with the first,
        /// `ratelimit-limit: 100;w=20` and `ratelimit-remaining` are told with GETs and HEADs, and more are answered 429
        /// without a word of when.
        pulls(pulls = Some(quota), quota: (u64, Duration));
        /// Time added to each request.
        latency(latency = latency, latency: Duration);
        /// A session that was cut is gone, as in docker-registry 2.8: 404 BLOB_UPLOAD_INVALID.
        not_resumable(resumable = false);
        /// `POST ?digest=` with a body only opens a session, as in docker-registry.
        without_single_post(single_post = false);
        /// `Location` without scheme and host.
        relative_locations(relative_locations = true);
        /// `Link` with scheme and host.
        absolute_links(absolute_links = true);
        /// The most entries of a page of tags, repositories or referrers.
        page(page = Some(entries), entries: usize);
        /// `tags/list` as Google's registries answer it.
        google(google = true);
        /// No referrers API: 404, and no `OCI-Subject`.
        without_referrers(referrers = false);
        /// A tag that is there cannot be moved.
        immutable_tags(immutable_tags = true);
        /// No `Docker-Content-Digest` on manifests.
        without_digest_header(digest_header = false);
        /// Manifests are taken whether or not what they name is here: what is pushed in a wrong order shows.
        lenient(lenient = true);
        /// A vendor's API beside the registry's own, at the same address.
        vendor(vendor = Some(vendor), vendor: Vendor);
        /// The owners of GitHub's packages are users, no organizations.
        github_users(github_users = true);
        /// What it does beside the specification.
        habits(habits = habits, habits: Habits);
        /// A chosen port.
        port(port = port, port: u16);
    }

    /// `Auth::Basic`.
    #[must_use]
    pub fn basic(self, user: &str, password: &str) -> Self {
        self.auth(Auth::Basic(user.to_owned(), password.to_owned()))
    }

    /// `Auth::Bearer`.
    #[must_use]
    pub fn bearer(self, bearer: Bearer) -> Self {
        self.auth(Auth::Bearer(bearer))
    }

    /// Who may see what the vendor's API lists; nobody else does.
    #[must_use]
    pub fn vendor_login(mut self, user: &str, password: &str) -> Self {
        self.vendor_login = Some((user.to_owned(), password.to_owned()));
        self
    }

    /// A namespace that the vendor's API knows though nothing is in it.
    #[must_use]
    pub fn namespace(mut self, name: &str) -> Self {
        self.namespaces.push(name.to_owned());
        self
    }

    /// A further host name in the certificate.
    #[must_use]
    pub fn host_name(mut self, host: &str) -> Self {
        self.hosts.push(host.to_owned());
        self
    }

    /// Starts it on a free loopback port.
    pub async fn start(self) -> FaultRegistry {
        FaultRegistry::start_with(self).await
    }
}
