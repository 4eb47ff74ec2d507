//! Throttling: what a request waits for before it is sent, and what its response teaches the rate limiters and windows.

use std::sync::{Arc, PoisonError};
use std::time::{Duration, Instant};

use ::http::{HeaderMap, Method, StatusCode};
use url::Url;

use super::aimd::{InFlightRequest, OperationKind};
use super::auth::Access;
use super::credential_pool::CredentialPool;
use super::request_class::RequestClass;
use super::resizable_semaphore::Permit;
use super::{Client, RateLimitHold, Registry, Repository, auth, quota_headers, rejection_backoff, retry_after};
use crate::event::{Event, ThrottleReason};
use imgsync_oci::RegistryName;
use imgsync_oci::error::{Error, ErrorKind, Result};
use imgsync_oci::retry;
use imgsync_rate_limit::{Account, RateLimitCategory};

/// Shorter waits are not reported.
const MIN_REPORTED_DELAY: Duration = Duration::from_millis(1);

/// Permits of a request in progress.
#[derive(Debug, Default)]
pub(crate) struct RequestPermits {
    in_flight: Option<InFlightRequest>,
    permit: Option<Permit>,
}

impl RequestPermits {
    /// Returns the permits to hold until the body ends.
    pub(crate) fn into_permits(self) -> [Option<Permit>; 2] {
        [self.in_flight.map(|entry| entry.permit), self.permit]
    }
}

impl Repository {
    /// Classifies a request to the registry.
    pub(crate) fn classify_request(&self, method: &Method, url: &Url, headers: &HeaderMap) -> RequestClass {
        let operation = OperationKind::from_request(method, url);
        let reads_manifest = operation == OperationKind::Manifests && *method == Method::GET;
        let account_part = match *method {
            Method::PUT if url.path().rsplit('/').nth(1) == Some("manifests") => Some(RateLimitCategory::ManifestPuts),
            Method::POST => Some(RateLimitCategory::UploadStarts),
            _ => None,
        };
        let is_continuation = headers.contains_key(::http::header::RANGE);
        RequestClass {
            credential_index: self.pick_credential(),
            operation,
            reads_manifest,
            account_part,
            is_continuation,
        }
    }

    /// Picks the credential to use.
    pub(crate) fn pick_credential(&self) -> usize {
        match self.access {
            Access::Pull => self.registry.credential_pool.pick(self.pull_index),
            Access::Push | Access::Delete | Access::Catalog => 0,
        }
    }

    /// Waits for the rate limit. A long wait is returned as an error at once.
    pub(crate) async fn await_rate(&self, kind: RequestClass, operation: &str) -> Result<()> {
        let credential = self.registry.credential_pool.get(kind.credential_index);
        let began = Instant::now();
        let pass = async {
            credential.rate_limiter.init_account(|| self.client.account(&self.registry, kind.credential_index)).await;
            credential.rate_limiter.acquire(kind.reads_manifest, self.registry.mirror_state.is_some()).await?;
            if let Some((part, limiter)) =
                credential.operation_limiters.iter().find(|(part, _)| Some(*part) == kind.account_part)
            {
                limiter
                    .init_account(|| async {
                        self.client.account(&self.registry, kind.credential_index).await.with_category(*part)
                    })
                    .await;
                limiter.acquire(false, false).await?;
            }
            Ok::<(), std::time::Duration>(())
        };
        let _pause = self.context.clock.pause();
        let passed = tokio::select! {
            passed = pass => passed,
            () = self.context.cancel.cancelled() => return Err(Error::cancelled(operation)),
        };
        self.report_delay(ThrottleReason::RateLimit, began);
        passed.map_err(|wait| {
            let why = credential.rate_limiter.current_hold(kind.reads_manifest).map(|hold| hold.reason);
            let why = why.unwrap_or_else(|| "is rate limiting".to_owned());
            let detail = format!("it {why}: held for {} more", retry::format_duration(wait));
            Error::new(ErrorKind::RateLimited, operation, detail)
                .with_retry_after(Some(wait))
                .with_registry(&self.registry.name)
        })
    }

    /// Acquires permits for one more open request to the registry itself.
    pub(crate) async fn acquire_permits(&self, kind: RequestClass, operation: &str) -> Result<RequestPermits> {
        let credential = self.registry.credential_pool.get(kind.credential_index);
        let began = Instant::now();
        let begin = async {
            let window = self.registry.windows.get(kind.operation);
            let entry = match kind.is_continuation {
                true => window.force_acquire(),
                false => window.acquire().await,
            };
            let permit = match &credential.concurrency {
                None => None,
                Some(concurrency) => {
                    credential
                        .rate_limiter
                        .init_account(|| self.client.account(&self.registry, kind.credential_index))
                        .await;
                    Some(concurrency.acquire(credential.rate_limiter.shared_store()).await)
                }
            };
            RequestPermits { in_flight: Some(entry), permit }
        };
        let _pause = self.context.clock.pause();
        let permits = tokio::select! {
            acquired = begin => Ok(acquired),
            () = self.context.cancel.cancelled() => Err(Error::cancelled(operation)),
        };
        self.report_delay(ThrottleReason::Concurrency, began);
        permits
    }

    /// Reports a wait, if it was long enough.
    fn report_delay(&self, reason: ThrottleReason, began: Instant) {
        let delay = began.elapsed();
        if delay >= MIN_REPORTED_DELAY {
            self.context.events.emit(Event::RequestDelayed { registry: self.registry.name.clone(), reason, delay });
        }
    }

    /// Updates windows and quotas from a response's status and headers.
    pub(crate) async fn observe_response(
        &self,
        kind: RequestClass,
        permits: &RequestPermits,
        status: StatusCode,
        headers: &HeaderMap,
    ) {
        let window = self.registry.windows.get(kind.operation);
        let now = tokio::time::Instant::now();
        if let Some(entry) = &permits.in_flight {
            match status {
                StatusCode::TOO_MANY_REQUESTS | StatusCode::SERVICE_UNAVAILABLE => window.on_overload(entry, now),
                _ => window.on_success(now),
            }
        }
        if status.is_success() || status.is_redirection() || status == StatusCode::NOT_FOUND {
            self.registry.credential_pool.get(kind.credential_index).rate_limiter.on_success(kind.backoff_index());
        }
        let Some(quota) = quota_headers::parse(headers, retry_after::server_time(headers)) else { return };
        let reads_manifest = kind.operation == OperationKind::Manifests;
        let credential = self.registry.credential_pool.get(kind.credential_index);
        if let Some(RateLimitHold { wait, reason }) = credential.rate_limiter.on_quota(&quota, reads_manifest).await
            && self.registry.credential_pool.pull_indexes().len() > 1
        {
            let account_name = self.client.account(&self.registry, kind.credential_index).await.credential;
            self.context.warn(format!(
                "{} {reason} for `{account_name}`: other credentials are used, this one again in {}",
                self.registry.name,
                retry::format_duration(wait)
            ));
        }
    }

    /// Treats a request that timed out as overload.
    pub(crate) fn observe_timeout(&self, kind: RequestClass, permits: &RequestPermits, error: &Error) {
        if let Some(entry) = permits.in_flight.as_ref().filter(|_| error.kind() == ErrorKind::TimedOut) {
            self.registry.windows.get(kind.operation).on_overload(entry, tokio::time::Instant::now());
        }
    }

    /// Records a rate limit error, so that other requests wait as well.
    pub(crate) async fn observe_error(&self, kind: RequestClass, error: Error) -> Error {
        if error.kind() != ErrorKind::RateLimited {
            return error;
        }
        let limiter = &self.registry.credential_pool.get(kind.credential_index).rate_limiter;
        // A `Retry-After` below the initial backoff counts as none, or the request would be repeated again and again.
        let wait = error.retry_after().filter(|wait| *wait >= rejection_backoff::INITIAL_BACKOFF);
        match limiter.on_rejected(wait, kind.reads_manifest, kind.backoff_index()).await {
            Some(wait) => error.with_retry_after(Some(wait)),
            None => error.with_retry_after(wait),
        }
    }
}

impl Client {
    /// Returns the account that the registry counts requests of one credential for.
    pub(super) async fn account(&self, registry: &Registry, credential_index: usize) -> Account {
        if let Some(issued) = registry.issued_username(credential_index) {
            return Account::new(&registry.name, issued);
        }
        let user = match auth::find_credential(self, registry, "", credential_index).await.ok().flatten() {
            Some(credential) => {
                let fallback = || registry.credential_pool.get(credential_index).fallback_name.clone();
                auth::user(credential).map(String::into_boxed_str).or_else(fallback)
            }
            None => None,
        };
        Account::new(&registry.name, user.or_else(|| registry.settings.egress.clone()).unwrap_or_default())
    }

    /// Returns the accounts that the registry counts requests for: the main one, or, with `pulls`, all that pull.
    pub async fn accounts(&self, registry: &RegistryName, pulls: bool) -> Vec<Account> {
        let Ok(registry) = self.registry(registry) else { return vec![Account::new(registry, "")] };
        let indexes = if pulls { registry.credential_pool.pull_indexes() } else { &[0] };
        let mut accounts = Vec::new();
        for index in indexes {
            accounts.push(self.account(&registry, *index).await);
        }
        accounts
    }

    /// Returns the current hold on a registry, as far as this process knows; with `pulls`, on reading images there.
    pub fn rate_limit_hold(&self, registry: &RegistryName, pulls: bool) -> Option<RateLimitHold> {
        self.registry(registry).ok()?.credential_pool.rate_limit_hold(pulls)
    }

    /// Releases shared permits. For shutdown, so that other processes need not wait for them to expire.
    pub async fn release_shared(&self) {
        let mut all: Vec<Arc<CredentialPool>> = {
            let pools = self.0.credential_pools.lock().unwrap_or_else(PoisonError::into_inner);
            pools.values().cloned().collect()
        };
        {
            let apis = self.0.apis.lock().unwrap_or_else(PoisonError::into_inner);
            all.extend(apis.values().map(|api| api.credential_pool().clone()));
        }
        for pool in all {
            for credential in pool.iter() {
                if let (Some(concurrency), Some((store, account))) =
                    (&credential.concurrency, credential.rate_limiter.shared_store())
                {
                    concurrency.release_all(store, account).await;
                }
            }
        }
    }

    /// Returns the number of blob bytes transferred so far, in both directions together.
    pub fn bytes_moved(&self) -> u64 {
        self.0.bytes_moved.load(std::sync::atomic::Ordering::Relaxed)
    }
}
