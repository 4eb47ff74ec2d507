//! Credential pool of a registry: one credential for all requests, and more for pulling, used in rotation. Each has its
//! own rate limiter.

use super::concurrency::ConcurrencyLimiter;
use super::credentials::Credential;
use super::providers;
use super::rate_limiter::{RateLimitHold, RateLimiter};
use super::settings::{QuotaReserve, RegistrySettings, SharedRateLimit};
use imgsync_oci::RegistryName;
use imgsync_rate_limit::RateLimitCategory;

/// One credential with its own rate limiter.
#[derive(Debug)]
pub(crate) struct PooledCredential {
    /// From the settings. `None`: the credential of docker or containers, or anonymous.
    pub(crate) credential: Option<Credential>,
    /// Account name for credentials without a user name, such as tokens.
    pub(crate) fallback_name: Option<Box<str>>,
    pub(crate) rate_limiter: RateLimiter,
    pub(crate) concurrency: Option<ConcurrencyLimiter>,
    /// Limiters of operations that are counted separately.
    pub(crate) operation_limiters: Vec<(RateLimitCategory, RateLimiter)>,
}

/// All credentials of one registry.
#[derive(Debug)]
pub(crate) struct CredentialPool {
    credentials: Vec<PooledCredential>,
    /// Indexes in `credentials` of the credentials that pull.
    pull_indexes: Vec<usize>,
}

impl CredentialPool {
    pub(crate) fn new(
        registry: &RegistryName,
        settings: &RegistrySettings,
        shared: Option<&SharedRateLimit>,
    ) -> CredentialPool {
        let known = providers::limits_for_registry(registry, settings);
        let limit = settings.requests_per_second.or(known.and_then(|known| known.requests_per_second));
        let parts = known.map(|known| known.per_operation).unwrap_or_default();
        // Name under which this process claims shared permits; unique, also within the process.
        let name = format!("{}-{:016x}", std::process::id(), rand::random::<u64>());
        let holder = shared.filter(|shared| !shared.exclusive).map(|_| name.as_str());
        let login = |credential: Option<Credential>, fallback_name: Option<Box<str>>| PooledCredential {
            credential,
            fallback_name,
            rate_limiter: RateLimiter::new(limit, settings.pull_reserve, shared.cloned()),
            concurrency: settings.concurrency.map(|limit| ConcurrencyLimiter::new(limit, holder)),
            operation_limiters: parts
                .iter()
                .map(|(part, limit)| (*part, RateLimiter::new(Some(*limit), QuotaReserve::default(), shared.cloned())))
                .collect(),
        };
        let own = settings.credentials.first().cloned();
        let first = if own.is_some() || settings.pull_credentials.is_empty() { 0 } else { 1 };
        let mut credentials = vec![login(own, None)];
        for (at, credential) in settings.pull_credentials.iter().enumerate() {
            credentials.push(login(Some(credential.clone()), Some(format!("token {}", at + 1).into())));
        }
        let pull_indexes = (first..credentials.len()).collect();
        CredentialPool { credentials, pull_indexes }
    }

    pub(crate) fn get(&self, at: usize) -> &PooledCredential {
        // Indexes come from `pick` or are 0, and there is always one credential.
        self.credentials.get(at).unwrap_or(&self.credentials[0])
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = &PooledCredential> {
        self.credentials.iter()
    }

    pub(crate) fn pull_indexes(&self) -> &[usize] {
        &self.pull_indexes
    }

    /// Picks the credential to pull with: the next in rotation that is not held, else the one with the shortest hold.
    pub(crate) fn pick(&self, turn: usize) -> usize {
        let ring = &self.pull_indexes;
        if ring.len() < 2 {
            return ring.first().copied().unwrap_or_default();
        }
        let next = (0..ring.len()).map(|step| ring[(turn + step) % ring.len()]);
        let wait = |at: &usize| self.get(*at).rate_limiter.current_hold(true).map(|hold| hold.wait).unwrap_or_default();
        // The first of equal ones.
        next.min_by_key(wait).unwrap_or_default()
    }

    /// Returns the current hold; with `pulls`, only if no credential can pull.
    pub(crate) fn rate_limit_hold(&self, pulls: bool) -> Option<RateLimitHold> {
        match pulls {
            false => self.get(0).rate_limiter.current_hold(false),
            true => self.get(self.pick(0)).rate_limiter.current_hold(true),
        }
    }
}
