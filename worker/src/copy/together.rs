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
use imgsync_common::error::{Class, Error, Result};
use imgsync_common::image::{Descriptor, Digest, RegistryName};
use imgsync_common::registry::{Context, Tally};
use imgsync_common::wait::WaitClock;
use tokio::sync::mpsc::error::TrySendError;
use tokio::sync::{Notify, OnceCell, mpsc};
use tokio::time::Instant;
use tokio_util::sync::{CancellationToken, DropGuard};

use super::ends::Source;

/// Time after the start of a group in which expected members may join.
const COMPANY: Duration = Duration::from_millis(300);
/// Time to wait for other members at a blob. A member that misses it is not waited for again.
const AT_A_BLOB: Duration = Duration::from_secs(2);
/// Total time one member may stall the others before it has to read by itself.
const PATIENCE: Duration = Duration::from_secs(5);
/// Interval at which stalls are checked.
const LOOK: Duration = Duration::from_millis(100);
/// Chunk size in bytes, and the number of chunks buffered for one subscriber.
const PIECE: usize = 64 << 10;
const PIECES: usize = 8;
/// Maximum bytes of small blobs cached in a group.
const KEPT: u64 = 4 << 20;

/// Fan-out groups of a process.
#[derive(Debug, Default)]
pub(crate) struct Together(Mutex<HashMap<String, Weak<Group>>>);

#[derive(Debug)]
struct Group {
    began: Instant,
    state: Mutex<State>,
    changed: Notify,
    /// Cancels shared reads when all members are gone.
    _ends: DropGuard,
    cancel: CancellationToken,
}

#[derive(Debug, Default)]
struct State {
    members: HashMap<u64, Standing>,
    /// Number of members that ever joined; also the next member id.
    came: u64,
    meetings: HashMap<Digest, Meeting>,
    /// Cached small blobs, and their total bytes.
    kept: HashMap<Digest, Arc<OnceCell<Bytes>>>,
    kept_bytes: u64,
}

#[derive(Debug)]
struct Standing {
    registry: RegistryName,
    /// Whether the others wait for this member.
    is_waited_for: bool,
    /// Blobs this member does not need.
    passed: HashSet<Digest>,
}

#[derive(Debug, Default)]
struct Meeting {
    here: Vec<u64>,
    /// Subscriptions by member, once the rendezvous is over.
    handed: Option<HashMap<u64, Share>>,
}

/// Membership of one copy in a group.
#[derive(Debug)]
pub struct Member {
    group: Arc<Group>,
    id: u64,
    /// Number of members if all join.
    expected: usize,
}

/// Content of a blob, as read by the shared reader.
#[derive(Debug)]
pub(crate) struct Share {
    pieces: mpsc::Receiver<Bytes>,
    /// Clock of the reader, which the bandwidth limit may pause.
    reader: WaitClock,
    own: WaitClock,
}

impl Share {
    /// Returns the next chunk; `None` at the end, or if the reader continues without this subscriber.
    pub(crate) async fn chunk(&mut self) -> Option<Bytes> {
        let before = self.reader.paused();
        let piece = self.pieces.recv().await;
        self.own.leave_out(self.reader.paused().saturating_sub(before));
        piece
    }
}

impl Together {
    /// Joins a group of `expected` members with targets in different registries; within one registry, blobs are mounted
    /// instead.
    pub(crate) fn join(&self, name: &str, target: &RegistryName, expected: usize) -> Option<Arc<Member>> {
        let mut groups = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        groups.retain(|_, group| group.strong_count() > 0);
        let group = groups.get(name).and_then(Weak::upgrade).unwrap_or_else(|| {
            let cancel = CancellationToken::new();
            let group = Arc::new(Group {
                began: Instant::now(),
                state: Mutex::default(),
                changed: Notify::new(),
                _ends: cancel.clone().drop_guard(),
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
            let id = state.came;
            state.came += 1;
            let standing = Standing { registry: target.clone(), is_waited_for: true, passed: HashSet::new() };
            state.members.insert(id, standing);
            id
        };
        group.changed.notify_waiters();
        Some(Arc::new(Member { group, id, expected }))
    }
}

impl Group {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Member {
    fn drop(&mut self) {
        self.group.state().members.remove(&self.id);
        self.group.changed.notify_waiters();
    }
}

impl Member {
    /// Marks a blob as not needed by this member.
    pub(crate) fn pass(&self, blob: &Digest) {
        if let Some(standing) = self.group.state().members.get_mut(&self.id) {
            standing.passed.insert(blob.clone());
        }
        self.group.changed.notify_waiters();
    }

    /// Subscribes to a blob that other members need too; `None` if this member must read it alone.
    pub(crate) async fn share(
        &self,
        blob: &Descriptor,
        (source, tally): (&Source, &Arc<Tally>),
        context: &Context,
    ) -> Option<Share> {
        let deadline = Instant::now() + AT_A_BLOB;
        {
            let mut state = self.group.state();
            if let Some(standing) = state.members.get_mut(&self.id) {
                standing.is_waited_for = true;
            }
            let meeting = state.meetings.entry(blob.digest.clone()).or_default();
            if meeting.handed.is_some() {
                return None;
            }
            meeting.here.push(self.id);
        }
        self.group.changed.notify_waiters();
        loop {
            let mut changed = std::pin::pin!(self.group.changed.notified());
            changed.as_mut().enable();
            let until = match self.look(blob, (source, tally), deadline) {
                Ok(share) => return share.map(|share| Share { own: context.clock.clone(), ..share }),
                Err(until) => until,
            };
            tokio::select! {
                () = changed => {}
                () = tokio::time::sleep_until(until) => {}
                () = context.cancel.cancelled() => {
                    let mut state = self.group.state();
                    if let Some(meeting) = state.meetings.get_mut(&blob.digest) {
                        meeting.here.retain(|id| *id != self.id);
                    }
                    return None;
                }
            }
        }
    }

    /// Returns this member's subscription if the rendezvous is over, else the time of the next check.
    fn look(
        &self,
        blob: &Descriptor,
        (source, tally): (&Source, &Arc<Tally>),
        deadline: Instant,
    ) -> Result<Option<Share>, Instant> {
        let now = Instant::now();
        let mut state = self.group.state();
        let State { members, came, meetings, .. } = &mut *state;
        let meeting = meetings.entry(blob.digest.clone()).or_default();
        if let Some(handed) = &mut meeting.handed {
            return Ok(handed.remove(&self.id));
        }
        let company_until = self.group.began + COMPANY;
        if (*came as usize) < self.expected && now < company_until {
            return Err(company_until);
        }
        let missing: Vec<u64> = members
            .iter()
            .filter(|(id, standing)| {
                standing.is_waited_for && !meeting.here.contains(id) && !standing.passed.contains(&blob.digest)
            })
            .map(|(id, _)| *id)
            .collect();
        if !missing.is_empty() && now < deadline {
            return Err(deadline);
        }
        for id in missing {
            if let Some(standing) = members.get_mut(&id) {
                standing.is_waited_for = false;
            }
        }
        let mut handed = HashMap::new();
        if meeting.here.len() > 1 {
            let mut lines = Vec::new();
            // The shared read must not depend on the member whose source it uses: neither on its cancellation nor on
            // its deadline.
            let reader = WaitClock::default();
            for id in &meeting.here {
                let (line, pieces) = mpsc::channel(PIECES);
                lines.push(Line { line, stood_still: Duration::ZERO });
                handed.insert(*id, Share { pieces, reader: reader.clone(), own: WaitClock::default() });
            }
            let source = source.on_behalf_of(&self.group.cancel, &reader);
            tokio::spawn(read_for(lines, source, tally.clone(), blob.clone()));
        }
        let own = handed.remove(&self.id);
        meeting.handed = Some(handed);
        drop(state);
        self.group.changed.notify_waiters();
        Ok(own)
    }

    /// Reads a small blob once for all members.
    pub(crate) async fn small(&self, blob: &Descriptor, read: impl Future<Output = Result<Bytes>>) -> Result<Bytes> {
        let cell = {
            let mut state = self.group.state();
            if self.expected < 2 && state.came < 2 {
                None
            } else if let Some(cell) = state.kept.get(&blob.digest) {
                Some(cell.clone())
            } else if state.kept_bytes + blob.size > KEPT {
                None
            } else {
                state.kept_bytes += blob.size;
                Some(state.kept.entry(blob.digest.clone()).or_default().clone())
            }
        };
        match cell {
            Some(cell) => cell.get_or_try_init(|| read).await.cloned(),
            None => read.await,
        }
    }
}

/// One receiver of a shared read.
struct Line {
    line: mpsc::Sender<Bytes>,
    /// Time the other subscribers were idle because of this one.
    stood_still: Duration,
}

/// Reads a blob for all subscribers, until none is left. A dropped subscriber continues by itself.
async fn read_for(mut lines: Vec<Line>, source: Source, tally: Arc<Tally>, blob: Descriptor) {
    let (mut offset, mut retry) = (0, source.retry());
    while offset < blob.size {
        let Err(error) = read_on(&mut lines, &source, &tally, &blob, &mut offset).await else { return };
        if source.pause(&mut retry, error).await.is_err() {
            return;
        }
    }
}

async fn read_on(
    lines: &mut Vec<Line>,
    source: &Source,
    tally: &Arc<Tally>,
    blob: &Descriptor,
    offset: &mut u64,
) -> Result<()> {
    let (mut stream, begins) = source.blob_open(blob, *offset, tally).await?;
    let mut skip = *offset - begins;
    while let Some(mut chunk) = stream.chunk().await? {
        let skipped = chunk.len().min(usize::try_from(skip).unwrap_or(usize::MAX));
        let _ = chunk.split_to(skipped);
        skip -= skipped as u64;
        *offset += chunk.len() as u64;
        while !chunk.is_empty() {
            let piece = chunk.split_to(chunk.len().min(PIECE));
            hand_on(lines, &piece).await;
            if lines.is_empty() {
                return Ok(());
            }
        }
    }
    match *offset < blob.size {
        true => {
            let detail = format!("the stream ended after {offset} of {} bytes", blob.size);
            Err(Error::new(Class::Unreachable, source.reading(&blob.digest), detail))
        }
        false => Ok(()),
    }
}

/// Sends a chunk to each subscriber as soon as it has room. Drops a subscriber that stalls the others for too long.
async fn hand_on(lines: &mut Vec<Line>, piece: &Bytes) {
    let mut at = 0;
    while at < lines.len() {
        match lines[at].line.try_send(piece.clone()) {
            Ok(()) => at += 1,
            Err(TrySendError::Closed(_)) => drop(lines.remove(at)),
            Err(TrySendError::Full(_)) => {
                if tokio::time::timeout(LOOK, lines[at].line.reserve()).await.is_ok() {
                    continue;
                }
                let is_alone_in_it = lines
                    .iter()
                    .enumerate()
                    .any(|(other, line)| other != at && line.line.capacity() == line.line.max_capacity());
                if is_alone_in_it {
                    lines[at].stood_still += LOOK;
                    if lines[at].stood_still >= PATIENCE {
                        lines.remove(at);
                    }
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line(stood_still: Duration) -> (Line, mpsc::Receiver<Bytes>) {
        let (line, share) = mpsc::channel(PIECES);
        (Line { line, stood_still }, share)
    }

    #[tokio::test]
    async fn who_keeps_the_others_waiting_for_too_long_is_left_behind() {
        // It has already stalled the others for almost the limit.
        let ((slow, mut slow_share), (quick, mut quick_share)) = (line(PATIENCE - LOOK), line(Duration::ZERO));
        let mut lines = vec![slow, quick];
        let piece = Bytes::from_static(b"piece");
        for _ in 0..=PIECES {
            hand_on(&mut lines, &piece).await;
            assert_eq!(quick_share.recv().await, Some(piece.clone()));
        }
        assert_eq!(lines.len(), 1);
        let mut held = 0;
        while slow_share.recv().await.is_some() {
            held += 1;
        }
        assert_eq!(held, PIECES, "it has what it was given, and then the end");
    }

    #[tokio::test]
    async fn all_that_are_equally_slow_are_waited_for() {
        let ((one, mut one_share), (two, mut two_share)) = (line(Duration::ZERO), line(Duration::ZERO));
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
            hand_on(&mut lines, &piece).await;
        }
        assert_eq!(lines.len(), 2);
        drop(lines);
        assert_eq!(taking.await.unwrap(), 60);
    }

    #[tokio::test]
    async fn a_group_has_one_member_for_each_registry() {
        let together = Together::default();
        let (one, two) = ("one.example".parse().unwrap(), "two.example".parse().unwrap());
        let first = together.join("a", &one, 2).unwrap();
        assert!(together.join("a", &one, 2).is_none());
        assert!(together.join("b", &one, 2).is_some());
        let second = together.join("a", &two, 2).unwrap();
        assert!(Arc::ptr_eq(&first.group, &second.group));
        drop(first);
        assert!(together.join("a", &one, 2).is_some());
    }
}
