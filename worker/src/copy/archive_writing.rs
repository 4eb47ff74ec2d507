//! Collects images for an archive, and writes it: blobs are read from their sources, each once, and resumed there.

use std::fs::File;
use std::io;
use std::path::Path;
use std::sync::atomic::AtomicU64;
use std::sync::{Arc, Mutex, PoisonError};

use async_trait::async_trait;
use bytes::Bytes;
use futures_util::StreamExt as _;
use futures_util::stream::BoxStream;
use imgsync_archive::{
    ArchivePlan, ArchiveSink, ArchiveSource, ContentStream, Member, MemberContent, WriteFailure, is_whole_archive,
    write_archive,
};
use imgsync_layout::{HashPolicy, OpenedArchiveFile, ReadAt as _};
use imgsync_oci::error::{Error, ErrorKind, Result};
use imgsync_oci::retry::{self, RetryBudget};
use imgsync_oci::{Descriptor, Digest, MediaType};
use imgsync_registry::event::{BlobOutcome, Event, Events, Observer};
use imgsync_registry::{BandwidthMeter, Context, TrafficCounters};

use super::archive_collector::{ArchiveCollector, ArchiveTarget, ArchivedBlob};
use super::endpoints::{CopySource, Endpoints};
use super::resumable_body::{BodyEnded, ResumableBody};
use super::transfer::ImageTransfer;
use super::{Copier, CopyCounters, CopyReport, CopyRequest, NoGate};

/// Forwards the events of collecting an image, without those of content: nothing is at the target yet.
struct WithoutContent(Events);

impl Observer for WithoutContent {
    fn on_event(&self, event: &Event) {
        if !matches!(event, Event::ManifestRead { .. } | Event::ManifestPut { .. }) {
            self.0.emit(event.clone());
        }
    }
}

impl Copier {
    /// Collects an image for an archive, with everything that a copy would put: `request.target` names it. Manifests are
    /// read; blobs are read by [`Copier::write_collected`].
    pub async fn collect(
        &self,
        request: &CopyRequest,
        collector: &ArchiveCollector,
        context: &Context,
    ) -> Result<CopyReport> {
        let counters = Arc::new(CopyCounters::default());
        let events = Events::new(Arc::new(WithoutContent(context.events.clone())));
        let context = self.image_context(&Context { events, ..context.clone() });
        let hashing = self.hashing_for(request);
        let endpoints = Endpoints::open_with(&self.client, request, hashing, None, &context, Some(collector)).await?;
        let work = Box::pin(self.copy_image(request, &endpoints, &counters, &NoGate, &context));
        self.run_to_report(request, &endpoints, &counters, &context, work).await
    }

    /// Writes the archive of a plan of collected images. `resume_from` is the number of bytes that the sink has. The time
    /// limit of a copy applies, and is extended while bytes flow.
    pub async fn write_collected(
        &self,
        collector: &ArchiveCollector,
        plan: &ArchivePlan,
        sink: &mut dyn ArchiveSink,
        resume_from: u64,
        context: &Context,
    ) -> std::result::Result<(), WriteFailure> {
        let context = self.image_context(context);
        let (blobs, blob_bytes) = plan.blobs();
        if let Some(digest) = plan.members().iter().find_map(Member::digest) {
            context.events.emit(Event::ManifestRead { digest: digest.clone(), blobs, blob_bytes });
        }
        let mut end = 0;
        for member in plan.members() {
            end += member.archived_size();
            if let MemberContent::Blob(digest) = &member.content
                && end <= resume_from
            {
                let (digest, size) = (digest.clone(), member.size);
                context.events.emit(Event::BlobDone { digest, size, outcome: BlobOutcome::Reused });
            }
        }
        let source = CollectedSource { collector: collector.clone(), context: context.clone() };
        let bad_blob = Mutex::new(None);
        let work = Box::pin(async {
            let written = write_archive(plan, &source, sink, resume_from).await;
            written.map_err(|WriteFailure { error, blob }| {
                *bad_blob.lock().unwrap_or_else(PoisonError::into_inner) = blob;
                error
            })
        });
        let written = self.with_deadline(&context, || "writing an archive".to_owned(), work).await;
        written.map_err(|error| {
            let blob = bad_blob.into_inner().unwrap_or_else(PoisonError::into_inner);
            WriteFailure { error, blob }
        })
    }

    /// Whether a file is the archive of a plan. It is read once for each version of the file, or after it was written
    /// here not at all.
    pub async fn has_archive(&self, file: &Path, plan: &ArchivePlan, context: &Context) -> Result<bool> {
        let operation = || format!("reading {}", file.display());
        let opened = match OpenedArchiveFile::open(file) {
            Ok(opened) if opened.len() == plan.total_size() => opened,
            // Whatever else is there is replaced, or is an error of writing.
            _ => return Ok(false),
        };
        let Ok(Some(version)) = opened.version() else { return Ok(false) };
        let (place, fingerprint) = (file.to_string_lossy().into_owned(), plan.fingerprint());
        if let HashPolicy::Shared(known) = &self.hashing
            && known.is_verified(&place, &fingerprint, &version).await
        {
            return Ok(true);
        }
        let (path, checked_plan, cancel) = (file.to_owned(), plan.clone(), context.cancel.clone());
        let verify = move || is_whole_archive(&mut File::open(path)?, &checked_plan, &cancel);
        let verified = tokio::task::spawn_blocking(verify).await.unwrap_or_else(|error| Err(io::Error::other(error)));
        match verified {
            Ok(is_whole) => {
                if is_whole && let HashPolicy::Shared(known) = &self.hashing {
                    known.record_verified(&place, &fingerprint, &version).await;
                }
                Ok(is_whole)
            }
            Err(_) if context.cancel.is_cancelled() => Err(Error::cancelled(operation())),
            Err(error) => Err(Error::new(ErrorKind::Local, operation(), error.to_string()).with_source(error)),
        }
    }

    /// Records that a file was just written as the archive of a plan.
    pub async fn record_archive(&self, file: &Path, plan: &ArchivePlan) {
        if let HashPolicy::Shared(known) = &self.hashing
            && let Ok(opened) = OpenedArchiveFile::open(file)
            && let Ok(Some(version)) = opened.version()
            && opened.len() == plan.total_size()
        {
            known.record_verified(&file.to_string_lossy(), &plan.fingerprint(), &version).await;
        }
    }
}

/// Content of a collector, read with a context.
struct CollectedSource {
    collector: ArchiveCollector,
    context: Context,
}

#[async_trait]
impl ArchiveSource for CollectedSource {
    async fn read_manifest(&self, digest: &Digest) -> Result<Bytes> {
        self.collector.manifest(digest)
    }

    async fn open_blob(&self, digest: &Digest, size: u64) -> Result<ContentStream> {
        // Each blob has a retry budget of its own: an archive may have thousands.
        let context = Context { budget: RetryBudget::default(), ..self.context.clone() };
        self.collector.blob(digest)?.open(digest, size, &context).await
    }

    fn verifies_blobs(&self) -> bool {
        true
    }

    fn is_streamed(&self, digest: &Digest) -> bool {
        self.collector.blob(digest).is_ok_and(|blob| blob.is_streamed(digest))
    }

    async fn next_streamed(&self) -> Result<Option<Digest>> {
        let Some(layout) = self.collector.streamed_layout() else { return Ok(None) };
        // The pipe has a limit of its own.
        let _waiting = self.context.clock.pause();
        tokio::select! {
            biased;
            () = self.context.cancel.cancelled() => Err(Error::cancelled("writing an archive")),
            next = layout.next_streamed_blob() => next,
        }
    }
}

/// A blob at its source.
struct SourceBlob {
    source: CopySource,
    traffic: Arc<TrafficCounters>,
    /// Descriptor with content in it, for sources without the blob.
    inline: Option<Box<Descriptor>>,
}

/// A blob that was read to find out that it is one.
struct ReadBlob(Bytes);

impl ArchiveCollector {
    /// Reads a blob from the archive that is replaced, if it has it. Returns `false` if that was tried before.
    pub async fn read_from_former(&self, digest: &Digest, size: u64) -> bool {
        let Some(former) = self.former() else { return false };
        let blob = Descriptor::new(MediaType::Missing, digest.clone(), size);
        if !former.has_file(&blob).await.unwrap_or_default() {
            return false;
        }
        let source = CopySource::Layout(former.repository(None));
        self.replace_blob(digest, SourceBlob { source, traffic: Arc::default(), inline: None })
    }
}

impl ImageTransfer {
    /// Remembers where a blob is. It is read when the archive is written. What another image has named counts as reused.
    pub(super) async fn collect_blob(&self, target: &ArchiveTarget, blob: &Descriptor) -> Result<BlobOutcome> {
        let is_new = match self.prefetched_blob(blob) {
            Some(bytes) => target.put_blob(blob, ReadBlob(bytes))?,
            None => {
                if target.requires_check(blob).await {
                    self.require_at_source(blob).await?;
                }
                let inline = blob.data.is_some().then(|| Box::new(blob.clone()));
                let (source, traffic) = (self.source.clone(), self.source_traffic.clone());
                target.put_blob(blob, SourceBlob { source, traffic, inline })?
            }
        };
        Ok(self.record_arrival(blob, if is_new { BlobOutcome::Copied } else { BlobOutcome::Reused }))
    }

    /// Fails if the source does not have a blob, with a HEAD or a look at a file. Some registries answer no HEADs of
    /// blobs: then a read of the blob tells.
    pub(super) async fn require_at_source(&self, blob: &Descriptor) -> Result<()> {
        if blob.data.is_some() {
            return Ok(());
        }
        match self.source.mentions_blob(blob).await {
            Ok(false) => {
                let hint = match self.source {
                    CopySource::Registry(_) => "push the image to the source again, or leave it out by `tags`",
                    CopySource::Layout(_) | CopySource::Bundle(_) => "the source is incomplete; export it again",
                };
                let detail = "the source has the manifest, but not this blob";
                Err(Error::new(ErrorKind::NotFound, self.source.describe_read(&blob.digest), detail).with_hint(hint))
            }
            Err(error) if error.is_cancelled() || retry::is_transient(&error) => Err(error),
            Ok(true) | Err(_) => Ok(()),
        }
    }
}

#[async_trait]
impl ArchivedBlob for ReadBlob {
    async fn open(&self, digest: &Digest, size: u64, context: &Context) -> Result<ContentStream> {
        context.events.emit(done_event(digest, size));
        Ok(futures_util::stream::iter([Ok(self.0.clone())]).boxed())
    }

    fn position(&self, _digest: &Digest) -> Option<(String, u64)> {
        None
    }
}

#[async_trait]
impl ArchivedBlob for SourceBlob {
    async fn open(&self, digest: &Digest, size: u64, context: &Context) -> Result<ContentStream> {
        let moved = Arc::new(AtomicU64::new(0));
        context.events.emit(Event::BlobStarted { digest: digest.clone(), size, moved: moved.clone() });
        let plain = || Descriptor::new(MediaType::Missing, digest.clone(), size);
        let blob = self.inline.as_deref().cloned().unwrap_or_else(plain);
        let source = self.source.with_context(context);
        let body = ResumableBody::new(&source, &self.traffic, &blob, moved, &context.clock);
        let chunks = body.chunks(size, BandwidthMeter::default()).await.boxed();
        let reader = SourceReader { chunks, body, source, context: context.clone(), blob };
        Ok(futures_util::stream::try_unfold(reader, SourceReader::next).boxed())
    }

    fn is_streamed(&self, digest: &Digest) -> bool {
        self.source.streamed_layout().is_some_and(|layout| !layout.is_in_memory(digest))
    }

    fn position(&self, digest: &Digest) -> Option<(String, u64)> {
        let layout = self.source.sequential_layout()?;
        Some((layout.dir().display().to_string(), layout.read_offset(digest)?))
    }
}

/// Reads a blob from its source, which is opened again after a broken connection.
struct SourceReader {
    chunks: BoxStream<'static, std::result::Result<Bytes, BodyEnded>>,
    body: ResumableBody,
    source: CopySource,
    context: Context,
    blob: Descriptor,
}

impl SourceReader {
    async fn next(mut self) -> Result<Option<(Bytes, SourceReader)>> {
        let cancelled = || Error::cancelled(format!("archiving {}", self.blob.digest));
        let chunk = tokio::select! {
            biased;
            () = self.context.cancel.cancelled() => return Err(cancelled()),
            chunk = self.chunks.next() => chunk,
        };
        match chunk {
            Some(Ok(bytes)) => Ok(Some((bytes, self))),
            Some(Err(_)) => {
                self.context.events.emit(Event::BlobFailed { digest: self.blob.digest.clone() });
                let error = self.body.take_failure().await;
                if error.as_ref().is_some_and(|error| error.kind() == ErrorKind::Corrupt) {
                    self.source.exclude_mirrors();
                }
                Err(error.unwrap_or_else(cancelled))
            }
            None => {
                self.context.events.emit(done_event(&self.blob.digest, self.blob.size));
                Ok(None)
            }
        }
    }
}

fn done_event(digest: &Digest, size: u64) -> Event {
    Event::BlobDone { digest: digest.clone(), size, outcome: BlobOutcome::Copied }
}
