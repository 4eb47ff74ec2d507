//! Transfer of one blob: cached, mounted, or uploaded. Small blobs are held in memory and simply resent; large ones go
//! through a [`Feed`], which resumes at both endpoints.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64};
use std::time::Duration;

use bytes::Bytes;
use imgsync_common::error::{Class, Error, Result};
use imgsync_common::event::{Arrival, Event};
use imgsync_common::image::{Descriptor, RepositoryName};
use imgsync_common::registry::{Context, Part, Repository, Started, Upload};
use imgsync_common::retry::Retry;
use tokio_util::sync::CancellationToken;

use super::chunks::{smaller_chunk, too_large};
use super::ends::Target;
use super::feed::Feed;
use super::walk::Walk;

/// Time to wait for a pending upload session after the image is aborted.
const LATE_SESSION: Duration = Duration::from_millis(200);
/// Largest blob held in memory, in bytes.
const SMALL: u64 = 1 << 20;

/// Whether an extra request that may save the upload of a blob is worth its cost.
pub(super) fn is_large(blob: &Descriptor) -> bool {
    blob.size > SMALL
}

impl Walk {
    /// Transfers a blob to the target in the cheapest way that works.
    pub(super) async fn bring_blob(&self, blob: &Descriptor) -> Result<Arrival> {
        let Some(target) = self.target.repository() else { return self.bring_to_layout(blob).await };
        let (registry, name) = (target.registry(), target.name());
        if self.known.has_blob(registry, name, &blob.digest) {
            return Ok(self.reuse(blob));
        }
        // Concurrent copies of the blob wait here without holding a slot, then find it in the cache. The copy that
        // transfers it has a deadline.
        let waiting = self.context.clock.pause();
        let _flight = tokio::select! {
            flight = self.known.flight(registry, &blob.digest) => flight,
            () = self.context.cancel.cancelled() => return Err(Error::cancelled(self.writing(blob))),
        };
        if self.known.has_blob(registry, name, &blob.digest) {
            return Ok(self.reuse(blob));
        }
        // Excludes other workers too, for a large blob. Released only when the others can know of the blob.
        let _lease = match is_large(blob) {
            true => self.known.lease_blob(registry, &blob.digest, &self.context.cancel).await,
            false => None,
        };
        drop(waiting);
        let arrival = self.with_slot(blob, |moved| self.mount_or_move(target, blob, moved)).await?;
        self.known.learn_blob(registry, name, &blob.digest).await;
        let _ = self.present.set(blob.digest.clone());
        Ok(arrival)
    }

    /// Assumes that a blob is at the target because the cache says so.
    fn reuse(&self, blob: &Descriptor) -> Arrival {
        let _ = self.present.set(blob.digest.clone());
        self.brought.believed(&blob.digest);
        self.arrived(blob, Arrival::Reused)
    }

    /// Runs a transfer when a blob slot is free, and emits its events.
    pub(super) async fn with_slot<F>(
        &self,
        blob: &Descriptor,
        bring: impl FnOnce(Arc<AtomicU64>) -> F,
    ) -> Result<Arrival>
    where
        F: Future<Output = Result<Arrival>>,
    {
        let permits = async { tokio::try_join!(self.slots.acquire(), self.open_blobs.acquire()) };
        let permits = tokio::select! {
            permits = permits => permits,
            () = self.context.cancel.cancelled() => return Err(Error::cancelled(self.writing(blob))),
        };
        let Ok(_permits) = permits else { return Err(Error::cancelled(self.writing(blob))) };
        if self.context.cancel.is_cancelled() {
            return Err(Error::cancelled(self.writing(blob)));
        }
        let moved = Arc::new(AtomicU64::new(0));
        let (digest, size) = (blob.digest.clone(), blob.size);
        self.context.events.emit(Event::BlobStarted { digest: digest.clone(), size, moved: moved.clone() });
        match bring(moved).await {
            Ok(arrival) => Ok(self.arrived(blob, arrival)),
            Err(error) => {
                self.context.events.emit(Event::BlobFailed { digest });
                Err(error)
            }
        }
    }

    pub(super) fn arrived(&self, blob: &Descriptor, arrival: Arrival) -> Arrival {
        if arrival != Arrival::Copied
            && let Some(member) = &self.together
        {
            member.pass(&blob.digest);
        }
        self.sums.arrived(blob.size, arrival);
        self.context.events.emit(Event::BlobDone { digest: blob.digest.clone(), size: blob.size, arrival });
        arrival
    }

    async fn mount_or_move(&self, target: &Repository, blob: &Descriptor, moved: Arc<AtomicU64>) -> Result<Arrival> {
        let started = self.start(target, blob).await?;
        let session = match started {
            Begun::Done(arrival) => return Ok(arrival),
            Begun::Session(session) => session,
        };
        match is_large(blob) || target.chunk().is_some_and(|chunk| blob.size > chunk) {
            false => self.send_small(target, blob, session).await,
            true => self.send_large(target, blob, session, moved).await,
        }
    }

    /// Opens an upload session in a way that may make the upload unnecessary: mounts from a repository known to have
    /// the blob, from the source in the same registry, or else from the target repository itself, which tells whether
    /// the blob is there. A registry whose mounts tell nothing gets a HEAD.
    async fn start(&self, target: &Repository, blob: &Descriptor) -> Result<Begun> {
        let (registry, name, digest) = (target.registry(), target.name(), &blob.digest);
        if self.brought.is_unmountable(digest) {
            return Ok(match self.ask_for_session(target, blob, None).await? {
                Started::Mounted | Started::Present => Begun::Done(Arrival::Reused),
                Started::Session(session) => Begun::Session(session),
            });
        }
        let next_door = self.source.repository().filter(|source| source.registry() == registry);
        let next_door = next_door.map(|source| source.name().clone());
        let mounts = self.known.mounts(registry);
        let tells = match is_large(blob) {
            true => self.mounts_tell().await?,
            // Uploading a small blob is cheaper than finding out.
            false => target.takes_mounts() && mounts.get() != Some(&false),
        };
        if !tells {
            // For a new image, an upload of a small blob costs no more than the check.
            if (is_large(blob) || self.may_be_there()) && target.blob_head(digest).await? {
                return Ok(Begun::Done(Arrival::Reused));
            }
        }
        let home = self.known.home_of(registry, digest).await.filter(|home| home != name && target.takes_mounts());
        // Content copied from another source needs a proof from this one. A mount from the source's own repository is a
        // proof in itself.
        let is_usable =
            home.is_some() && (self.is_proved(blob).await || (next_door.is_none() && self.is_shown(blob).await?));
        let home = home.filter(|_| is_usable);
        let is_from_source = home.is_none() && next_door.is_some();
        let from = home.clone().or(next_door).or_else(|| Some(name.clone()).filter(|_| tells));
        match self.ask_for_session(target, blob, from.as_ref()).await? {
            Started::Mounted => {
                let _ = mounts.set(true);
                if let Some(from) = &from {
                    self.brought.mounted(digest, from);
                }
                if is_from_source {
                    self.learn_proof(blob, false);
                }
                Ok(Begun::Done(Arrival::Mounted))
            }
            Started::Present => {
                let _ = mounts.set(true);
                Ok(Begun::Done(Arrival::Reused))
            }
            Started::Session(session) => {
                if let Some(home) = home {
                    self.known.forget_blob(registry, &home, digest).await;
                }
                Ok(Begun::Session(session))
            }
        }
    }

    /// Opens an upload session. If the image is aborted meanwhile, waits a moment longer for the response: an unknown
    /// session could not be cancelled.
    async fn ask_for_session(
        &self,
        target: &Repository,
        blob: &Descriptor,
        from: Option<&RepositoryName>,
    ) -> Result<Started> {
        let context = Context { cancel: CancellationToken::new(), ..self.context.clone() };
        let shielded = target.within(&context);
        let mut starting = std::pin::pin!(shielded.upload_start(&blob.digest, from));
        tokio::select! {
            biased;
            started = &mut starting => return started,
            () = self.context.cancel.cancelled() => {}
        }
        if let Ok(Ok(Started::Session(session))) = tokio::time::timeout(LATE_SESSION, starting).await {
            target.upload_cancel(session).await;
        }
        Err(Error::cancelled(self.writing(blob)))
    }

    /// Whether the registry answers a mount of a blob it has with 201, as it should. Some open a session whatever they
    /// have, and would receive the whole blob with every tag.
    ///
    /// A registry that has answered a mount with 201 passes. Any other is tested once, before its first large upload,
    /// by mounting a blob just transferred to the repository. So a new image of small blobs costs no extra request, and
    /// the first image with a large blob at a registry costs one. Until there is a blob to test with, mounts are
    /// assumed to work; the same holds for small images, where the extra request would be one in twenty.
    pub(super) async fn mounts_tell(&self) -> Result<bool> {
        let Some(target) = self.target.repository() else { return Ok(true) };
        if !target.takes_mounts() {
            return Ok(false);
        }
        let mounts = self.known.mounts(target.registry());
        let present = self.present.get().filter(|_| self.is_worth_a_question());
        let Some(present) = present else { return Ok(mounts.get() != Some(&false)) };
        let ask = || async {
            Ok(match target.upload_start(present, Some(target.name())).await? {
                Started::Mounted | Started::Present => true,
                Started::Session(session) => {
                    target.upload_cancel(session).await;
                    false
                }
            })
        };
        mounts.get_or_try_init(ask).await.copied()
    }

    pub(super) fn writing(&self, blob: &Descriptor) -> String {
        match &self.target {
            Target::Registry(target) => target.writing(&blob.digest),
            Target::Layout(target) => target.layout().writing(&blob.digest),
        }
    }

    async fn send_small(&self, target: &Repository, blob: &Descriptor, session: Upload) -> Result<Arrival> {
        let is_public = AtomicBool::new(false);
        let read = Box::pin(self.read_small(blob, &is_public));
        let bytes = match &self.together {
            Some(member) => member.small(blob, read).await,
            None => read.await,
        };
        let bytes = match bytes {
            Ok(bytes) => bytes,
            Err(error) => {
                target.upload_cancel(session).await;
                return Err(error);
            }
        };
        self.learn_proof(blob, is_public.into_inner());
        let mut retry = target.retry();
        let mut session = Some(session);
        let mut sessions_lost = 0;
        loop {
            let mut upload = match session.take() {
                Some(session) => session,
                None => match self.start(target, blob).await? {
                    Begun::Done(_) => return Ok(Arrival::Copied),
                    Begun::Session(session) => session,
                },
            };
            let sent = target.upload_send(&mut upload, Part::Whole(bytes.clone())).await;
            let Err(error) = sent else { return Ok(Arrival::Copied) };
            let error = match error.status() {
                Some(413) => too_large(error, target, blob.size, upload.min_chunk()),
                _ => session_lost(error, &mut sessions_lost),
            };
            target.upload_cancel(upload).await;
            target.pause(&mut retry, error).await?;
        }
    }

    /// Reads and verifies a small blob.
    pub(super) async fn read_small(&self, blob: &Descriptor, is_public: &AtomicBool) -> Result<Bytes> {
        match self.read_already(blob) {
            Some(bytes) => Ok(bytes),
            None => self.source.blob_small(blob, &self.source_tally, is_public).await,
        }
    }

    async fn send_large(
        &self,
        target: &Repository,
        blob: &Descriptor,
        session: Upload,
        moved: Arc<AtomicU64>,
    ) -> Result<Arrival> {
        let share = match &self.together {
            Some(member) => member.share(blob, (&self.source, &self.source_tally), &self.context).await,
            None => None,
        };
        let feed = Feed::new(&self.source, &self.source_tally, blob, moved, &self.context.clock).sharing(share).await;
        let mut state = Sending {
            retry: target.retry(),
            chunk: target.chunk(),
            body: 0,
            refused: false,
            held: 0,
            resumed: false,
            sessions_lost: 0,
            out_of_step: 0,
            read_again: false,
            sent_again: false,
        };
        let mut upload = session;
        loop {
            let Err(error) = self.send_from_here(target, &feed, blob, &mut upload, &mut state).await else {
                self.learn_proof(blob, feed.gauge().is_public());
                return Ok(Arrival::Copied);
            };
            match self.mend(target, error, &feed, blob, upload, &mut state).await? {
                Begun::Session(session) => upload = session,
                // The target has the whole blob; only the response was lost.
                Begun::Done(_) => return Ok(Arrival::Copied),
            }
        }
    }

    /// Sends the remaining bytes: in one PUT, or in PATCHes of the registry's chunk size and an empty PUT.
    async fn send_from_here(
        &self,
        target: &Repository,
        feed: &Feed,
        blob: &Descriptor,
        upload: &mut Upload,
        state: &mut Sending,
    ) -> Result<()> {
        if let Some(chunk) = state.chunk {
            let chunk = chunk.max(upload.min_chunk()).max(1);
            loop {
                let offset = feed.gauge().handed();
                if offset >= blob.size {
                    break;
                }
                let end = (offset + chunk).min(blob.size);
                state.body = end - offset;
                self.send_part(target, feed, upload, (end, false)).await?;
                if feed.gauge().handed() < end {
                    let detail = "the target answered before it had all of a chunk";
                    return Err(Error::new(Class::ServerError, self.writing(blob), detail));
                }
                state.held = end;
                state.retry.progressed();
                if state.refused && end - offset == chunk {
                    target.limit_bodies(chunk);
                }
            }
        }
        state.body = blob.size - feed.gauge().handed();
        self.send_part(target, feed, upload, (blob.size, true)).await
    }

    async fn send_part(
        &self,
        target: &Repository,
        feed: &Feed,
        upload: &mut Upload,
        (end, last): (u64, bool),
    ) -> Result<()> {
        let offset = feed.gauge().handed();
        let sent = Box::new(feed.progress(end));
        let part = Part::Stream { body: feed.body(end, target.meter()).await, sent, offset, end, last };
        let result = target.upload_send(upload, part).await;
        target.tally().sent(feed.gauge().handed() - offset);
        result
    }

    /// Recovers from a failed upload: resumes the session at the offset it holds, restarts it, or gives up.
    async fn mend(
        &self,
        target: &Repository,
        error: Error,
        feed: &Feed,
        blob: &Descriptor,
        mut upload: Upload,
        state: &mut Sending,
    ) -> Result<Begun> {
        let give_up = |error: Error, upload: Upload| async {
            target.upload_cancel(upload).await;
            Err(error)
        };
        if let Some(cause) = feed.take_failure().await {
            // The connection may have corrupted it: restart once, then trust the mismatch.
            if cause.class() == Class::Corrupt && !state.read_again {
                state.read_again = true;
                self.source.distrust();
                return self.begin_again(target, feed, blob, upload, state).await;
            }
            return give_up(cause, upload).await;
        }
        if error.status() == Some(413) && state.body > 0 {
            let Some(chunk) = smaller_chunk(target, state.body, upload.min_chunk()) else {
                return give_up(too_large(error, target, state.body, upload.min_chunk()), upload).await;
            };
            (state.chunk, state.refused) = (Some(chunk), true);
            return self.begin_again(target, feed, blob, upload, state).await;
        }
        let mut error = session_lost(error, &mut state.sessions_lost);
        if error.status() == Some(416) && state.out_of_step < 2 {
            // The session's offset differs from ours: query it.
            state.out_of_step += 1;
            error = error.as_class(Class::ServerError);
        }
        if state.resumed && !state.sent_again && matches!(error.class(), Class::Refused | Class::Corrupt) {
            // The resume may have gone wrong at the registry, not the blob.
            state.sent_again = true;
            return self.begin_again(target, feed, blob, upload, state).await;
        }
        feed.let_go().await;
        if let Err(error) = target.pause(&mut state.retry, error).await {
            return give_up(error, upload).await;
        }
        match target.upload_status(&mut upload, feed.gauge().handed()).await {
            Ok(Some(held)) => {
                if held > state.held {
                    state.held = held;
                    state.retry.progressed();
                }
                state.resumed = held > 0;
                feed.rewind(held).await;
                Ok(Begun::Session(upload))
            }
            Ok(None) => self.begin_again(target, feed, blob, upload, state).await,
            Err(error) => give_up(error, upload).await,
        }
    }

    /// Restarts from the first byte, in a new session.
    async fn begin_again(
        &self,
        target: &Repository,
        feed: &Feed,
        blob: &Descriptor,
        upload: Upload,
        state: &mut Sending,
    ) -> Result<Begun> {
        (state.held, state.resumed) = (0, false);
        feed.rewind(0).await;
        target.upload_cancel(upload).await;
        self.start(target, blob).await
    }
}

/// State of one large upload across retries.
struct Sending {
    retry: Retry,
    chunk: Option<u64>,
    /// Bytes of the last body.
    body: u64,
    /// Whether a body was rejected for its size.
    refused: bool,
    /// Offset the target was last known to hold.
    held: u64,
    /// Whether the session was resumed, which may itself be the cause of a failure.
    resumed: bool,
    sessions_lost: u32,
    /// Number of offset mismatches (416).
    out_of_step: u32,
    read_again: bool,
    sent_again: bool,
}

enum Begun {
    Done(Arrival),
    Session(Upload),
}

/// Makes a lost session retryable; a registry that loses every session has another problem.
fn session_lost(error: Error, lost: &mut u32) -> Error {
    match error.class() {
        Class::NotFound if *lost < 2 => {
            *lost += 1;
            error.as_class(Class::ServerError)
        }
        _ => error,
    }
}
