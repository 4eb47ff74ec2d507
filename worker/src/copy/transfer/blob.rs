//! Transfer of one blob: cached, mounted, or uploaded. Small blobs are held in memory and simply resent; large ones go
//! through a [`ResumableBody`], which resumes at both endpoints.

use std::sync::atomic::{AtomicBool, AtomicU64};
use std::sync::{Arc, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use imgsync_oci::error::{Error, ErrorKind, Result};
use imgsync_oci::retry::RetryState;
use imgsync_oci::{Descriptor, RepositoryName};
use imgsync_registry::event::{BlobOutcome, Event};
use imgsync_registry::{Context, Repository, StartedUpload, UploadBody, UploadSession};
use tokio_util::sync::CancellationToken;

use super::super::ImageTransfer;
use super::super::chunk_size::{next_smaller_chunk, too_large_error};
use super::super::endpoints::CopyTarget;
use super::super::resumable_body::ResumableBody;

/// Time to wait for a pending upload session after the image is aborted.
const LATE_SESSION_TIMEOUT: Duration = Duration::from_millis(200);
/// Largest blob held in memory, in bytes.
const MAX_SMALL_BLOB_BYTES: u64 = 1 << 20;

/// Whether an extra request that may save the upload of a blob is worth its cost.
pub(crate) fn is_large(blob: &Descriptor) -> bool {
    blob.size > MAX_SMALL_BLOB_BYTES
}

impl ImageTransfer {
    /// Transfers a blob to the target in the cheapest way that works.
    pub(crate) async fn transfer_blob(&self, blob: &Descriptor) -> Result<BlobOutcome> {
        let target = match &self.target {
            CopyTarget::Registry(target) => target,
            CopyTarget::Layout(target) => return self.ensure_in_layout(target, blob).await,
            CopyTarget::Archive(target) => return self.collect_blob(target, blob).await,
            CopyTarget::Bundle(target) => return self.collect_for_bundle(target, blob).await,
        };
        let (registry, name) = (target.registry(), target.name());
        if self.target_cache.has_blob(registry, name, &blob.digest) {
            return Ok(self.reuse_cached(blob));
        }
        // Concurrent copies of the blob wait here without holding a slot, then find it in the cache. The copy that
        // transfers it has a deadline.
        let waiting = self.context.clock.pause();
        let _single_flight = tokio::select! {
            flight = self.target_cache.single_flight(registry, &blob.digest) => flight,
            () = self.context.cancel.cancelled() => return Err(Error::cancelled(self.describe_write(blob))),
        };
        if self.target_cache.has_blob(registry, name, &blob.digest) {
            return Ok(self.reuse_cached(blob));
        }
        // Excludes other workers too, for a large blob. Released only when the others can know of the blob.
        let _lease = match is_large(blob) {
            true => self.target_cache.lease_blob(registry, &blob.digest, &self.context.cancel).await,
            false => None,
        };
        drop(waiting);
        let arrival = self.with_blob_slot(blob, |moved| self.mount_or_upload(target, blob, moved)).await?;
        self.target_cache.record_blob(registry, name, &blob.digest);
        match is_large(blob) {
            // Other workers wait for it.
            true => self.target_cache.share_blobs(registry, name, std::slice::from_ref(&blob.digest)).await,
            false => self.unshared_blobs.lock().unwrap_or_else(PoisonError::into_inner).push(blob.digest.clone()),
        }
        let _ = self.present_blob.set(blob.digest.clone());
        Ok(arrival)
    }

    /// Assumes that a blob is at the target because the cache says so.
    fn reuse_cached(&self, blob: &Descriptor) -> BlobOutcome {
        let _ = self.present_blob.set(blob.digest.clone());
        self.history.record_assumed(&blob.digest);
        self.record_arrival(blob, BlobOutcome::Reused)
    }

    /// Runs a transfer when a blob slot is free, and emits its events.
    pub(crate) async fn with_blob_slot<F>(
        &self,
        blob: &Descriptor,
        transfer: impl FnOnce(Arc<AtomicU64>) -> F,
    ) -> Result<BlobOutcome>
    where
        F: Future<Output = Result<BlobOutcome>>,
    {
        let permits = async { tokio::try_join!(self.blob_slots.acquire(), self.blob_permits.acquire()) };
        let permits = tokio::select! {
            permits = permits => permits,
            () = self.context.cancel.cancelled() => return Err(Error::cancelled(self.describe_write(blob))),
        };
        let Ok(_permits) = permits else { return Err(Error::cancelled(self.describe_write(blob))) };
        if self.context.cancel.is_cancelled() {
            return Err(Error::cancelled(self.describe_write(blob)));
        }
        let moved = Arc::new(AtomicU64::new(0));
        let (digest, size) = (blob.digest.clone(), blob.size);
        self.context.events.emit(Event::BlobStarted { digest: digest.clone(), size, moved: moved.clone() });
        match transfer(moved).await {
            Ok(arrival) => Ok(self.record_arrival(blob, arrival)),
            Err(error) => {
                self.context.events.emit(Event::BlobFailed { digest });
                Err(error)
            }
        }
    }

    pub(crate) fn record_arrival(&self, blob: &Descriptor, outcome: BlobOutcome) -> BlobOutcome {
        if outcome != BlobOutcome::Copied
            && let Some(member) = &self.fan_out
        {
            member.skip_blob(&blob.digest);
        }
        self.counters.record_blob(blob.size, outcome);
        self.context.events.emit(Event::BlobDone { digest: blob.digest.clone(), size: blob.size, outcome });
        outcome
    }

    async fn mount_or_upload(
        &self,
        target: &Repository,
        blob: &Descriptor,
        moved: Arc<AtomicU64>,
    ) -> Result<BlobOutcome> {
        let started = self.open_session_or_mount(target, blob).await?;
        let session = match started {
            UploadStart::Finished(arrival) => return Ok(arrival),
            UploadStart::Session(session) => session,
        };
        self.record_absence(blob);
        match is_large(blob) || target.upload_chunk_size().is_some_and(|chunk| blob.size > chunk) {
            false => self.upload_small(target, blob, session).await,
            true => self.upload_large(target, blob, session, moved).await,
        }
    }

    /// Opens an upload session in a way that may make the upload unnecessary: mounts from a repository known to have
    /// the blob, from the source in the same registry, or else from the target repository itself, which tells whether
    /// the blob is there. A registry whose mounts tell nothing gets a HEAD.
    async fn open_session_or_mount(&self, target: &Repository, blob: &Descriptor) -> Result<UploadStart> {
        let (registry, name, digest) = (target.registry(), target.name(), &blob.digest);
        if self.history.must_upload(digest) {
            return Ok(match self.open_session(target, blob, None).await? {
                StartedUpload::Mounted | StartedUpload::Present => UploadStart::Finished(BlobOutcome::Reused),
                StartedUpload::Session(session) => UploadStart::Session(session),
            });
        }
        let same_registry = self.source.repository().filter(|source| source.registry() == registry);
        let same_registry = same_registry.map(|source| source.name().clone());
        let mount_support = self.target_cache.mount_support(registry);
        let mounts_are_reliable = match is_large(blob) {
            true => self.mounts_are_reliable().await?,
            // Uploading a small blob is cheaper than finding out.
            false => target.supports_mounts() && mount_support.get() != Some(&false),
        };
        if !mounts_are_reliable {
            // For a new image, an upload of a small blob costs no more than the check.
            if (is_large(blob) || self.may_be_present()) && target.head_blob(digest).await? {
                return Ok(UploadStart::Finished(BlobOutcome::Reused));
            }
        }
        let holder = self
            .target_cache
            .repository_with_blob(registry, digest)
            .await
            .filter(|home| home != name && target.supports_mounts());
        // Content copied from another source needs a proof from this one. A mount from the source's own repository is a
        // proof in itself.
        let is_usable = holder.is_some()
            && (self.is_proved(blob).await || (same_registry.is_none() && self.prove_by_request(blob).await?));
        let holder = holder.filter(|_| is_usable);
        let is_from_source = holder.is_none() && same_registry.is_some();
        let from = holder.clone().or(same_registry).or_else(|| Some(name.clone()).filter(|_| mounts_are_reliable));
        match self.open_session(target, blob, from.as_ref()).await? {
            StartedUpload::Mounted => {
                let _ = mount_support.set(true);
                if let Some(from) = &from {
                    self.history.record_mount(digest, from);
                }
                if is_from_source {
                    self.record_proof(blob, false);
                }
                Ok(UploadStart::Finished(BlobOutcome::Mounted))
            }
            StartedUpload::Present => {
                let _ = mount_support.set(true);
                Ok(UploadStart::Finished(BlobOutcome::Reused))
            }
            StartedUpload::Session(session) => {
                if let Some(home) = holder {
                    self.target_cache.forget_blob(registry, &home, digest).await;
                }
                Ok(UploadStart::Session(session))
            }
        }
    }

    /// Opens an upload session. If the image is aborted meanwhile, waits a moment longer for the response: an unknown
    /// session could not be cancelled.
    async fn open_session(
        &self,
        target: &Repository,
        blob: &Descriptor,
        from: Option<&RepositoryName>,
    ) -> Result<StartedUpload> {
        let context = Context { cancel: CancellationToken::new(), ..self.context.clone() };
        let shielded = target.with_context(&context);
        let mut starting = std::pin::pin!(shielded.start_upload(&blob.digest, from));
        tokio::select! {
            biased;
            started = &mut starting => return started,
            () = self.context.cancel.cancelled() => {}
        }
        if let Ok(Ok(StartedUpload::Session(session))) = tokio::time::timeout(LATE_SESSION_TIMEOUT, starting).await {
            target.cancel_upload(session).await;
        }
        Err(Error::cancelled(self.describe_write(blob)))
    }

    /// Whether the registry answers a mount of a blob it has with 201, as it should. Some open a session whatever they
    /// have, and would receive the whole blob with every tag.
    ///
    /// A registry that has answered a mount with 201 passes. Any other is tested once, before its first large upload,
    /// by mounting a blob just transferred to the repository. So a new image of small blobs costs no extra request, and
    /// the first image with a large blob at a registry costs one. Until there is a blob to test with, mounts are
    /// assumed to work; the same holds for small images, where the extra request would be one in twenty.
    pub(crate) async fn mounts_are_reliable(&self) -> Result<bool> {
        let Some(target) = self.target.repository() else { return Ok(true) };
        if !target.supports_mounts() {
            return Ok(false);
        }
        let mount_support = self.target_cache.mount_support(target.registry());
        let present = self.present_blob.get().filter(|_| self.worth_extra_request());
        let Some(present) = present else { return Ok(mount_support.get() != Some(&false)) };
        let ask = || async {
            Ok(match target.start_upload(present, Some(target.name())).await? {
                StartedUpload::Mounted | StartedUpload::Present => true,
                StartedUpload::Session(session) => {
                    target.cancel_upload(session).await;
                    false
                }
            })
        };
        mount_support.get_or_try_init(ask).await.copied()
    }

    pub(crate) fn describe_write(&self, blob: &Descriptor) -> String {
        match &self.target {
            CopyTarget::Registry(target) => target.write_operation(&blob.digest),
            CopyTarget::Layout(target) => target.layout().write_operation(&blob.digest),
            CopyTarget::Archive(target) => target.describe_write(&blob.digest),
            CopyTarget::Bundle(target) => format!("collecting {} for {}", blob.digest, target.path()),
        }
    }

    async fn upload_small(
        &self,
        target: &Repository,
        blob: &Descriptor,
        session: UploadSession,
    ) -> Result<BlobOutcome> {
        let is_public = AtomicBool::new(false);
        let read = Box::pin(self.read_small(blob, &is_public));
        let bytes = match &self.fan_out {
            Some(member) => member.read_small_blob(blob, read).await,
            None => read.await,
        };
        let bytes = match bytes {
            Ok(bytes) => bytes,
            Err(error) => {
                target.cancel_upload(session).await;
                return Err(error);
            }
        };
        self.record_proof(blob, is_public.into_inner());
        let mut retry = target.new_retry();
        let mut session = Some(session);
        let mut sessions_lost = 0;
        loop {
            let mut upload = match session.take() {
                Some(session) => session,
                None => match self.open_session_or_mount(target, blob).await? {
                    UploadStart::Finished(_) => return Ok(BlobOutcome::Copied),
                    UploadStart::Session(session) => session,
                },
            };
            let sent = target.send_upload(&mut upload, UploadBody::Whole(bytes.clone())).await;
            let Err(error) = sent else { return Ok(BlobOutcome::Copied) };
            let error = match error.status() {
                Some(413) => too_large_error(error, target, blob.size, upload.min_chunk()),
                _ => retry_lost_session(error, &mut sessions_lost),
            };
            target.cancel_upload(upload).await;
            target.wait_before_retry(&mut retry, error).await?;
        }
    }

    /// Reads and verifies a small blob.
    pub(crate) async fn read_small(&self, blob: &Descriptor, is_public: &AtomicBool) -> Result<Bytes> {
        match self.prefetched_blob(blob) {
            Some(bytes) => Ok(bytes),
            None => self.source.read_small_blob(blob, &self.source_traffic, is_public).await,
        }
    }

    async fn upload_large(
        &self,
        target: &Repository,
        blob: &Descriptor,
        session: UploadSession,
        moved: Arc<AtomicU64>,
    ) -> Result<BlobOutcome> {
        let subscription = match &self.fan_out {
            Some(member) => member.subscribe(blob, (&self.source, &self.source_traffic), &self.context).await,
            None => None,
        };
        let body = ResumableBody::new(&self.source, &self.source_traffic, blob, moved, &self.context.clock)
            .with_shared_reader(subscription)
            .await;
        let mut state = UploadState {
            retry: target.new_retry(),
            chunk: target.upload_chunk_size(),
            last_body_bytes: 0,
            body_refused: false,
            target_offset: 0,
            resumed: false,
            sessions_lost: 0,
            range_errors: 0,
            read_again: false,
            sent_again: false,
            interruption: None,
        };
        let mut upload = session;
        loop {
            let Err(error) = self.send_remaining(target, &body, blob, &mut upload, &mut state).await else {
                self.record_proof(blob, body.progress().is_public());
                return Ok(BlobOutcome::Copied);
            };
            match self.recover_upload(target, error, &body, blob, upload, &mut state).await? {
                UploadStart::Session(session) => upload = session,
                // The target has the whole blob; only the response was lost.
                UploadStart::Finished(_) => return Ok(BlobOutcome::Copied),
            }
        }
    }

    /// Sends the remaining bytes: in one PUT, or in PATCHes of the registry's chunk size and an empty PUT.
    async fn send_remaining(
        &self,
        target: &Repository,
        body: &ResumableBody,
        blob: &Descriptor,
        upload: &mut UploadSession,
        state: &mut UploadState,
    ) -> Result<()> {
        if let Some(chunk) = state.chunk {
            let chunk = chunk.max(upload.min_chunk()).max(1);
            loop {
                let offset = body.progress().sent_offset();
                if offset >= blob.size {
                    break;
                }
                let end = (offset + chunk).min(blob.size);
                state.last_body_bytes = end - offset;
                self.send_part(target, body, upload, (end, false)).await?;
                if body.progress().sent_offset() < end {
                    let detail = "the target responded before receiving the whole chunk";
                    return Err(Error::new(ErrorKind::ServerError, self.describe_write(blob), detail));
                }
                state.target_offset = end;
                state.retry.reset();
                if state.body_refused && end - offset == chunk {
                    target.set_body_limit(chunk);
                }
            }
        }
        state.last_body_bytes = blob.size - body.progress().sent_offset();
        self.send_part(target, body, upload, (blob.size, true)).await
    }

    async fn send_part(
        &self,
        target: &Repository,
        body: &ResumableBody,
        upload: &mut UploadSession,
        (end, last): (u64, bool),
    ) -> Result<()> {
        let offset = body.progress().sent_offset();
        let progress = Box::new(body.progress_reporter(end));
        let part = UploadBody::Stream {
            body: body.stream_until(end, target.upload_meter()).await,
            progress,
            offset,
            end,
            last,
        };
        let result = target.send_upload(upload, part).await;
        target.counters().record_sent(body.progress().sent_offset() - offset);
        result
    }

    /// Recovers from a failed upload: resumes the session at the offset it holds, restarts it, or gives up.
    async fn recover_upload(
        &self,
        target: &Repository,
        error: Error,
        body: &ResumableBody,
        blob: &Descriptor,
        mut upload: UploadSession,
        state: &mut UploadState,
    ) -> Result<UploadStart> {
        let give_up = |error: Error, upload: UploadSession| async {
            target.cancel_upload(upload).await;
            Err(error)
        };
        if let Some(cause) = body.take_failure().await {
            // The connection may have corrupted it: restart once, then trust the mismatch.
            if cause.kind() == ErrorKind::Corrupt && !state.read_again && self.source.can_read_again() {
                state.read_again = true;
                self.source.exclude_mirrors();
                return self.restart_upload(target, body, blob, upload, state).await;
            }
            // A pipe cannot go back: the cause is why it should.
            let cause = self.source.explain_passed(cause, state.interruption.take());
            return give_up(cause, upload).await;
        }
        state.interruption = self.source.record_interruption(&error);
        if error.status() == Some(413) && state.last_body_bytes > 0 {
            let Some(chunk) = next_smaller_chunk(target, state.last_body_bytes, upload.min_chunk()) else {
                return give_up(too_large_error(error, target, state.last_body_bytes, upload.min_chunk()), upload)
                    .await;
            };
            (state.chunk, state.body_refused) = (Some(chunk), true);
            return self.restart_upload(target, body, blob, upload, state).await;
        }
        let mut error = retry_lost_session(error, &mut state.sessions_lost);
        if error.status() == Some(416) && state.range_errors < 2 {
            // The session's offset differs from ours: query it.
            state.range_errors += 1;
            error = error.with_kind(ErrorKind::ServerError);
        }
        if state.resumed && !state.sent_again && matches!(error.kind(), ErrorKind::Refused | ErrorKind::Corrupt) {
            // The resume may have gone wrong at the registry, not the blob.
            state.sent_again = true;
            return self.restart_upload(target, body, blob, upload, state).await;
        }
        body.pause_source().await;
        if let Err(error) = target.wait_before_retry(&mut state.retry, error).await {
            return give_up(error, upload).await;
        }
        match target.query_upload_offset(&mut upload, body.progress().sent_offset()).await {
            Ok(Some(held)) => {
                if held > state.target_offset {
                    state.target_offset = held;
                    state.retry.reset();
                }
                state.resumed = held > 0;
                body.rewind(held).await;
                Ok(UploadStart::Session(upload))
            }
            Ok(None) => self.restart_upload(target, body, blob, upload, state).await,
            Err(error) => give_up(error, upload).await,
        }
    }

    /// Restarts from the first byte, in a new session.
    async fn restart_upload(
        &self,
        target: &Repository,
        body: &ResumableBody,
        blob: &Descriptor,
        upload: UploadSession,
        state: &mut UploadState,
    ) -> Result<UploadStart> {
        (state.target_offset, state.resumed) = (0, false);
        body.rewind(0).await;
        target.cancel_upload(upload).await;
        self.open_session_or_mount(target, blob).await
    }
}

/// State of one large upload across retries.
struct UploadState {
    retry: RetryState,
    chunk: Option<u64>,
    /// Bytes of the last body.
    last_body_bytes: u64,
    /// Whether a body was rejected for its size.
    body_refused: bool,
    /// Offset the target was last known to hold.
    target_offset: u64,
    /// Whether the session was resumed, which may itself be the cause of a failure.
    resumed: bool,
    sessions_lost: u32,
    /// Number of offset mismatches (416).
    range_errors: u32,
    read_again: bool,
    sent_again: bool,
    /// Why content from a pipe was to be sent again.
    interruption: Option<Error>,
}

enum UploadStart {
    Finished(BlobOutcome),
    Session(UploadSession),
}

/// Makes a lost session retryable; a registry that loses every session has another problem.
fn retry_lost_session(error: Error, lost: &mut u32) -> Error {
    match error.kind() {
        ErrorKind::NotFound if *lost < 2 => {
            *lost += 1;
            error.with_kind(ErrorKind::ServerError)
        }
        _ => error,
    }
}
