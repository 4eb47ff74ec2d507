//! Concurrency limit for requests to a registry: of this process, or shared by the processes of a cluster.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::sync::Notify;

use super::seats::{Seat, Seats};
use crate::store::{Account, Claim, Pace, PlaceShare};

/// Claimed permits expire after this time without renewal.
const LEASE: Duration = Duration::from_secs(10);
/// Renewal interval.
const RENEW_EVERY: Duration = Duration::from_secs(3);
/// Renewal interval while other processes wait for permits.
const CONTENDED: Duration = Duration::from_millis(300);
/// First and longest interval between claims while this process waits for permits.
const ASK_AGAIN: [Duration; 2] = [Duration::from_millis(100), Duration::from_secs(1)];
/// Timeout of a call to the shared store.
const ANSWER: Duration = Duration::from_secs(1);
/// Permits are claimed in multiples of this.
const BLOCK: usize = 4;

/// Concurrency limiter of one account at one registry.
#[derive(Debug)]
pub(crate) struct Places {
    limit: usize,
    seats: Seats,
    shared: Option<Arc<Sharing>>,
}

#[derive(Debug)]
struct Sharing {
    limit: usize,
    seats: Seats,
    holder: Box<str>,
    /// Whether the sync loop is running.
    keeps: Mutex<bool>,
    /// Wakes the sync loop when more permits are needed.
    more: Notify,
}

impl Places {
    /// Creates a limiter for this process alone, or, with a holder's name, for all processes that share a store.
    pub(crate) fn new(limit: usize, holder: Option<&str>) -> Places {
        let limit = limit.max(1);
        let seats = Seats::new(if holder.is_some() { 0 } else { limit });
        let shared = holder.map(|holder| {
            Arc::new(Sharing {
                limit,
                seats: seats.clone(),
                holder: holder.into(),
                keeps: Mutex::new(false),
                more: Notify::new(),
            })
        });
        Places { limit, seats, shared }
    }

    /// Acquires a permit, waiting for one.
    pub(crate) async fn take(&self, shared: Option<(&Arc<dyn Pace>, &Account)>) -> Seat {
        if let Some(seat) = self.seats.try_take() {
            return seat;
        }
        match (&self.shared, shared) {
            (Some(sharing), Some((store, account))) => sharing.keep(store, account),
            // The account is not known: use the local limit.
            (Some(_), None) => self.seats.set(self.limit),
            (None, _) => {}
        }
        self.seats.take().await
    }

    /// Releases all permits to the store.
    pub(crate) async fn give_back(&self, store: &Arc<dyn Pace>, account: &Account) {
        if let Some(sharing) = &self.shared {
            sharing.seats.set(0);
            let none = sharing.claim(0, 0);
            let _ = tokio::time::timeout(ANSWER, store.claim(account, &none)).await;
        }
    }
}

impl Sharing {
    /// Starts the sync loop unless it is running, and wakes it.
    fn keep(self: &Arc<Self>, store: &Arc<dyn Pace>, account: &Account) {
        let mut keeps = self.keeps.lock().unwrap_or_else(PoisonError::into_inner);
        if !std::mem::replace(&mut *keeps, true) {
            let (sharing, store, account) = (self.clone(), store.clone(), account.clone());
            tokio::spawn(async move { sharing.tell(&*store, &account).await });
        }
        drop(keeps);
        self.more.notify_one();
    }

    /// Reports the permits in use and wanted to the store, until there are none.
    async fn tell(&self, store: &dyn Pace, account: &Account) {
        let mut in_vain = ASK_AGAIN[0];
        loop {
            let (using, wanted) = (self.seats.taken(), self.seats.most());
            // Round up, so that permits are not claimed one by one.
            let wanted = wanted.next_multiple_of(BLOCK).min(self.limit);
            let before = using;
            let share = match tokio::time::timeout(ANSWER, store.claim(account, &self.claim(using, wanted))).await {
                Ok(Ok(share)) => Some(share),
                // Without the store the limit stays; a process that has no permit yet uses one.
                Ok(Err(_)) | Err(_) => {
                    tracing::debug!("how requests to {} are shared is not known for now", account.registry);
                    None
                }
            };
            match share {
                Some(PlaceShare { may, .. }) => self.seats.set(may as usize),
                None if self.seats.taken() == 0 && wanted > 0 => self.seats.set(1),
                None => {}
            }
            if wanted == 0 {
                let mut keeps = self.keeps.lock().unwrap_or_else(PoisonError::into_inner);
                if self.seats.waiting() == 0 && self.seats.taken() == 0 {
                    *keeps = false;
                    return;
                }
            }
            let waits = self.seats.waiting() > 0;
            let wait = match (waits, share) {
                (true, _) if self.seats.taken() > before => ASK_AGAIN[0],
                (true, _) => in_vain,
                (false, Some(PlaceShare { contended: true, .. })) => CONTENDED,
                (false, _) => RENEW_EVERY,
            };
            in_vain = if waits { (in_vain * 2).min(ASK_AGAIN[1]) } else { ASK_AGAIN[0] };
            match waits {
                true => tokio::time::sleep(wait).await,
                false => _ = tokio::time::timeout(wait, self.more.notified()).await,
            }
        }
    }

    fn claim(&self, using: usize, wanted: usize) -> Claim {
        let number = |number: usize| u32::try_from(number).unwrap_or(u32::MAX);
        Claim {
            holder: self.holder.clone(),
            limit: number(self.limit),
            using: number(using),
            wanted: number(wanted),
            lease: LEASE,
        }
    }
}
