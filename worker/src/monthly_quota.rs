//! Monthly traffic quota of a machine: usage is kept in the store; at the limit the worker takes no more tasks.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytesize::ByteSize;
use imgsync_registry::Client;
use imgsync_registry::event::{Event, Events};
use imgsync_store::{IdempotencyKey, Store};
use jiff::Timestamp;

use crate::runner::RouteSelector;

/// Interval at which usage is reported to the store.
const REPORT_INTERVAL: Duration = Duration::from_secs(5);

/// Quota of bytes per calendar month (UTC).
#[derive(Debug)]
pub struct MonthlyQuota {
    limit: u64,
    machine: String,
    reported: Mutex<ReportedTraffic>,
}

/// Usage known to the store.
#[derive(Debug, Default)]
struct ReportedTraffic {
    /// Bytes reported.
    bytes: u64,
    /// Report without a response: the store may have counted it, so it is repeated unchanged.
    unacknowledged: Option<TrafficReport>,
}

/// An addition to the usage of a month.
#[derive(Debug, Clone)]
struct TrafficReport {
    request: IdempotencyKey,
    month: String,
    bytes: u64,
}

impl MonthlyQuota {
    /// Creates a quota of `limit` bytes per month for this machine.
    pub fn new(limit: u64) -> MonthlyQuota {
        MonthlyQuota { limit, machine: crate::host_name(), reported: Mutex::default() }
    }

    /// Reports usage until dropped, and stops taking tasks while the quota is used up. Running tasks continue.
    pub async fn enforce_loop(&self, store: &dyn Store, client: &Client, routes: &RouteSelector, events: &Events) {
        loop {
            tokio::time::sleep(REPORT_INTERVAL).await;
            self.report_usage(store, client, routes, events).await;
        }
    }

    /// Reports the usage since the last report: called before the first task is taken and after the last one ended.
    pub async fn report_usage(&self, store: &dyn Store, client: &Client, routes: &RouteSelector, events: &Events) {
        loop {
            let (report, is_repeated) = self.next_report(client.bytes_moved());
            match store.add_traffic(&self.machine, &report.month, report.bytes, report.request).await {
                Ok(total) => {
                    let mut reported = self.reported();
                    (reported.bytes, reported.unacknowledged) = (reported.bytes + report.bytes, None);
                    drop(reported);
                    if !is_repeated {
                        return self.enforce(total, &report.month, routes, events);
                    }
                }
                Err(error) => return tracing::warn!("{error}"),
            }
        }
    }

    /// Returns the next report: a pending one unchanged, else the usage since. The flag tells whether it is a
    /// repetition.
    fn next_report(&self, moved: u64) -> (TrafficReport, bool) {
        let mut reported = self.reported();
        if let Some(unanswered) = &reported.unacknowledged {
            return (unanswered.clone(), true);
        }
        let month = Timestamp::now().strftime("%Y-%m").to_string();
        let report = TrafficReport { request: IdempotencyKey::generate(), month, bytes: moved - reported.bytes };
        reported.unacknowledged = Some(report.clone());
        (report, false)
    }

    /// Stops taking tasks when the limit is reached, with a warning.
    fn enforce(&self, total: u64, month: &str, routes: &RouteSelector, events: &Events) {
        let why = (total >= self.limit).then(|| {
            let (machine, limit) = (&self.machine, ByteSize(self.limit));
            format!("{machine} has used its monthly quota of {limit} for {month}: it takes no tasks until next month")
        });
        if routes.set_paused(why.clone())
            && let Some(message) = why
        {
            events.emit(Event::Warning { message });
        }
    }

    fn reported(&self) -> MutexGuard<'_, ReportedTraffic> {
        self.reported.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
