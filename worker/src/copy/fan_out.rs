//! Fan-out: several copies of one image in this process share one read of the source.
//!
//! Concurrent copies of one source tag form a group. A member about to read a blob waits briefly for the others to
//! reach the same blob or to skip it; then one reader feeds them all through channels of a few hundred KiB. A member
//! that comes too late reads by itself. So does one whose target is so slow that it would stall the others: it
//! continues from its current offset.

use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

use bytes::Bytes;
use imgsync_oci::error::{Error, ErrorKind, Result};
use imgsync_oci::{Descriptor, Digest, RegistryName};
use imgsync_registry::wait::WaitClock;
use imgsync_registry::{Context, TrafficCounters};
use tokio::sync::mpsc::error::TrySendError;
use tokio::sync::{Notify, OnceCell, mpsc};
use tokio::time::Instant;
use tokio_util::sync::{CancellationToken, DropGuard};

use super::blob_subscription::BlobSubscription;
use super::endpoints::CopySource;

/// Time after the start of a group in which expected members may join.
const JOIN_WINDOW: Duration = Duration::from_millis(300);
/// Time to wait for other members at a blob. A member that misses it is not waited for again.
const RENDEZVOUS_TIMEOUT: Duration = Duration::from_secs(2);
/// Total time one member may stall the others before it has to read by itself.
const MAX_STALL: Duration = Duration::from_secs(5);
/// Interval at which stalls are checked.
const STALL_CHECK_INTERVAL: Duration = Duration::from_millis(100);
/// Chunk size in bytes, and the number of chunks buffered for one subscriber.
const CHUNK_SIZE: usize = 64 << 10;
const CHUNKS_PER_SUBSCRIBER: usize = 8;
/// Maximum bytes of small blobs cached in a group.
const MAX_SMALL_BLOB_BYTES: u64 = 4 << 20;

/// Fan-out groups of a process.
#[derive(Debug, Default)]
pub(crate) struct FanOut(Mutex<HashMap<String, Weak<FanOutGroup>>>);

#[derive(Debug)]
struct FanOutGroup {
    started_at: Instant,
    state: Mutex<FanOutState>,
    changed: Notify,
    /// Cancels shared reads when all members are gone.
    _cancel_on_drop: DropGuard,
    cancel: CancellationToken,
}

#[derive(Debug, Default)]
struct FanOutState {
    members: HashMap<u64, MemberState>,
    /// Number of members that ever joined; also the next member id.
    joined: u64,
    rendezvous: HashMap<Digest, Rendezvous>,
    /// Cached small blobs, and their total bytes.
    small_blobs: HashMap<Digest, Arc<OnceCell<Bytes>>>,
    small_blob_bytes: u64,
}

#[derive(Debug)]
struct MemberState {
    registry: RegistryName,
    /// Whether the others wait for this member.
    is_awaited: bool,
    /// Blobs this member does not need.
    skipped: HashSet<Digest>,
}

#[derive(Debug, Default)]
struct Rendezvous {
    arrived: Vec<u64>,
    /// Subscriptions by member, once the rendezvous is over.
    subscriptions: Option<HashMap<u64, BlobSubscription>>,
}

/// Membership of one copy in a group.
#[derive(Debug)]
pub struct FanOutMember {
    group: Arc<FanOutGroup>,
    id: u64,
    /// Number of members if all join.
    expected: usize,
}

impl FanOut {
    /// Joins a group of `expected` members with targets in different registries; within one registry, blobs are mounted
    /// instead.
    pub(crate) fn join(&self, name: &str, target: &RegistryName, expected: usize) -> Option<Arc<FanOutMember>> {
        let mut groups = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        groups.retain(|_, group| group.strong_count() > 0);
        let group = groups.get(name).and_then(Weak::upgrade).unwrap_or_else(|| {
            let cancel = CancellationToken::new();
            let group = Arc::new(FanOutGroup {
                started_at: Instant::now(),
                state: Mutex::default(),
                changed: Notify::new(),
                _cancel_on_drop: cancel.clone().drop_guard(),
                cancel,
            });
            groups.insert(name.to_owned(), Arc::downgrade(&group));
            group
        });
        let id = {
            let mut state = group.state();
            if state.members.values().any(|member| member.registry == *target) {
                return None;
            }
            let id = state.joined;
            state.joined += 1;
            let member = MemberState { registry: target.clone(), is_awaited: true, skipped: HashSet::new() };
            state.members.insert(id, member);
            id
        };
        group.changed.notify_waiters();
        Some(Arc::new(FanOutMember { group, id, expected }))
    }
}

impl FanOutGroup {
    fn state(&self) -> MutexGuard<'_, FanOutState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for FanOutMember {
    fn drop(&mut self) {
        self.group.state().members.remove(&self.id);
        self.group.changed.notify_waiters();
    }
}

impl FanOutMember {
    /// Marks a blob as not needed by this member.
    pub(crate) fn skip_blob(&self, blob: &Digest) {
        if let Some(member_state) = self.group.state().members.get_mut(&self.id) {
            member_state.skipped.insert(blob.clone());
        }
        self.group.changed.notify_waiters();
    }

    /// Subscribes to a blob that other members need too; `None` if this member must read it alone.
    pub(crate) async fn subscribe(
        &self,
        blob: &Descriptor,
        (source, counters): (&CopySource, &Arc<TrafficCounters>),
        context: &Context,
    ) -> Option<BlobSubscription> {
        let deadline = Instant::now() + RENDEZVOUS_TIMEOUT;
        {
            let mut state = self.group.state();
            if let Some(member_state) = state.members.get_mut(&self.id) {
                member_state.is_awaited = true;
            }
            let rendezvous = state.rendezvous.entry(blob.digest.clone()).or_default();
            if rendezvous.subscriptions.is_some() {
                return None;
            }
            rendezvous.arrived.push(self.id);
        }
        self.group.changed.notify_waiters();
        loop {
            let mut changed = std::pin::pin!(self.group.changed.notified());
            changed.as_mut().enable();
            let until = match self.try_start(blob, (source, counters), deadline) {
                Ok(share) => return share.map(|share| BlobSubscription { own_clock: context.clock.clone(), ..share }),
                Err(until) => until,
            };
            tokio::select! {
                () = changed => {}
                () = tokio::time::sleep_until(until) => {}
                () = context.cancel.cancelled() => {
                    let mut state = self.group.state();
                    if let Some(rendezvous) = state.rendezvous.get_mut(&blob.digest) {
                        rendezvous.arrived.retain(|id| *id != self.id);
                    }
                    return None;
                }
            }
        }
    }

    /// Returns this member's subscription if the rendezvous is over, else the time of the next check.
    fn try_start(
        &self,
        blob: &Descriptor,
        (source, counters): (&CopySource, &Arc<TrafficCounters>),
        deadline: Instant,
    ) -> Result<Option<BlobSubscription>, Instant> {
        let now = Instant::now();
        let mut state = self.group.state();
        let FanOutState { members, joined, rendezvous, .. } = &mut *state;
        let rendezvous = rendezvous.entry(blob.digest.clone()).or_default();
        if let Some(handed) = &mut rendezvous.subscriptions {
            return Ok(handed.remove(&self.id));
        }
        let join_deadline = self.group.started_at + JOIN_WINDOW;
        if (*joined as usize) < self.expected && now < join_deadline {
            return Err(join_deadline);
        }
        let missing: Vec<u64> = members
            .iter()
            .filter(|(id, member_state)| {
                member_state.is_awaited
                    && !rendezvous.arrived.contains(id)
                    && !member_state.skipped.contains(&blob.digest)
            })
            .map(|(id, _)| *id)
            .collect();
        if !missing.is_empty() && now < deadline {
            return Err(deadline);
        }
        for id in missing {
            if let Some(member_state) = members.get_mut(&id) {
                member_state.is_awaited = false;
            }
        }
        let mut handed = HashMap::new();
        if rendezvous.arrived.len() > 1 {
            let mut subscribers = Vec::new();
            // The shared read must not depend on the member whose source it uses: neither on its cancellation nor on
            // its deadline.
            let reader_clock = WaitClock::default();
            for id in &rendezvous.arrived {
                let (sender, chunks) = mpsc::channel(CHUNKS_PER_SUBSCRIBER);
                subscribers.push(Subscriber { sender, stalled: Duration::ZERO });
                handed.insert(
                    *id,
                    BlobSubscription { chunks, reader_clock: reader_clock.clone(), own_clock: WaitClock::default() },
                );
            }
            let source = source.for_shared_read(&self.group.cancel, &reader_clock);
            tokio::spawn(feed_subscribers(subscribers, source, counters.clone(), blob.clone()));
        }
        let own = handed.remove(&self.id);
        rendezvous.subscriptions = Some(handed);
        drop(state);
        self.group.changed.notify_waiters();
        Ok(own)
    }

    /// Reads a small blob once for all members.
    pub(crate) async fn read_small_blob(
        &self,
        blob: &Descriptor,
        read: impl Future<Output = Result<Bytes>>,
    ) -> Result<Bytes> {
        let cell = {
            let mut state = self.group.state();
            if self.expected < 2 && state.joined < 2 {
                None
            } else if let Some(cell) = state.small_blobs.get(&blob.digest) {
                Some(cell.clone())
            } else if state.small_blob_bytes + blob.size > MAX_SMALL_BLOB_BYTES {
                None
            } else {
                state.small_blob_bytes += blob.size;
                Some(state.small_blobs.entry(blob.digest.clone()).or_default().clone())
            }
        };
        match cell {
            Some(cell) => cell.get_or_try_init(|| read).await.cloned(),
            None => read.await,
        }
    }
}

/// One receiver of a shared read.
struct Subscriber {
    sender: mpsc::Sender<Bytes>,
    /// Time the other subscribers were idle because of this one.
    stalled: Duration,
}

/// Reads a blob for all subscribers, until none is left. A dropped subscriber continues by itself.
async fn feed_subscribers(
    mut subscribers: Vec<Subscriber>,
    source: CopySource,
    counters: Arc<TrafficCounters>,
    blob: Descriptor,
) {
    let (mut offset, mut retry) = (0, source.retry());
    while offset < blob.size {
        let Err(error) = feed_until_error(&mut subscribers, &source, &counters, &blob, &mut offset).await else {
            return;
        };
        if source.pause(&mut retry, error).await.is_err() {
            return;
        }
    }
}

async fn feed_until_error(
    subscribers: &mut Vec<Subscriber>,
    source: &CopySource,
    counters: &Arc<TrafficCounters>,
    blob: &Descriptor,
    offset: &mut u64,
) -> Result<()> {
    let (mut stream, begins) = source.blob_open(blob, *offset, counters).await?;
    let mut skip = *offset - begins;
    while let Some(mut chunk) = stream.next_chunk().await? {
        let skipped = chunk.len().min(usize::try_from(skip).unwrap_or(usize::MAX));
        let _ = chunk.split_to(skipped);
        skip -= skipped as u64;
        *offset += chunk.len() as u64;
        while !chunk.is_empty() {
            let piece = chunk.split_to(chunk.len().min(CHUNK_SIZE));
            broadcast(subscribers, &piece).await;
            if subscribers.is_empty() {
                return Ok(());
            }
        }
    }
    match *offset < blob.size {
        true => {
            let detail = format!("the stream ended after {offset} of {} bytes", blob.size);
            Err(Error::new(ErrorKind::Unreachable, source.describe_read(&blob.digest), detail))
        }
        false => Ok(()),
    }
}

/// Sends a chunk to each subscriber as soon as it has room. Drops a subscriber that stalls the others for too long.
async fn broadcast(subscribers: &mut Vec<Subscriber>, piece: &Bytes) {
    let mut at = 0;
    while at < subscribers.len() {
        match subscribers[at].sender.try_send(piece.clone()) {
            Ok(()) => at += 1,
            Err(TrySendError::Closed(_)) => drop(subscribers.remove(at)),
            Err(TrySendError::Full(_)) => {
                if tokio::time::timeout(STALL_CHECK_INTERVAL, subscribers[at].sender.reserve()).await.is_ok() {
                    continue;
                }
                let blocks_others = subscribers
                    .iter()
                    .enumerate()
                    .any(|(other, line)| other != at && line.sender.capacity() == line.sender.max_capacity());
                if blocks_others {
                    subscribers[at].stalled += STALL_CHECK_INTERVAL;
                    if subscribers[at].stalled >= MAX_STALL {
                        subscribers.remove(at);
                    }
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn subscriber(stalled: Duration) -> (Subscriber, mpsc::Receiver<Bytes>) {
        let (sender, share) = mpsc::channel(CHUNKS_PER_SUBSCRIBER);
        (Subscriber { sender, stalled }, share)
    }

    #[tokio::test]
    async fn a_subscriber_that_stalls_the_others_is_dropped() {
        // It has already stalled the others for almost the limit.
        let ((slow, mut slow_share), (quick, mut quick_share)) =
            (subscriber(MAX_STALL - STALL_CHECK_INTERVAL), subscriber(Duration::ZERO));
        let mut lines = vec![slow, quick];
        let piece = Bytes::from_static(b"piece");
        for _ in 0..=CHUNKS_PER_SUBSCRIBER {
            broadcast(&mut lines, &piece).await;
            assert_eq!(quick_share.recv().await, Some(piece.clone()));
        }
        assert_eq!(lines.len(), 1);
        let mut held = 0;
        while slow_share.recv().await.is_some() {
            held += 1;
        }
        assert_eq!(held, CHUNKS_PER_SUBSCRIBER, "it has what it was given, and then the end");
    }

    #[tokio::test]
    async fn subscribers_that_are_equally_slow_are_not_dropped() {
        let ((one, mut one_share), (two, mut two_share)) = (subscriber(Duration::ZERO), subscriber(Duration::ZERO));
        let mut lines = vec![one, two];
        let piece = Bytes::from_static(b"piece");
        let taking = tokio::spawn(async move {
            let mut taken = 0;
            loop {
                tokio::time::sleep(Duration::from_millis(5)).await;
                let (one, two) = (one_share.recv().await, two_share.recv().await);
                if one.is_none() || two.is_none() {
                    return taken;
                }
                taken += 1;
            }
        });
        for _ in 0..60 {
            broadcast(&mut lines, &piece).await;
        }
        assert_eq!(lines.len(), 2);
        drop(lines);
        assert_eq!(taking.await.unwrap(), 60);
    }

    #[tokio::test]
    async fn a_group_has_one_member_for_each_registry() {
        let fan_out = FanOut::default();
        let (one, two) = ("one.example".parse().unwrap(), "two.example".parse().unwrap());
        let first = fan_out.join("a", &one, 2).unwrap();
        assert!(fan_out.join("a", &one, 2).is_none());
        assert!(fan_out.join("b", &one, 2).is_some());
        let second = fan_out.join("a", &two, 2).unwrap();
        assert!(Arc::ptr_eq(&first.group, &second.group));
        drop(first);
        assert!(fan_out.join("a", &one, 2).is_some());
    }
}
