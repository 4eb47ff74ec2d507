//! Writes the archives that the tasks of a batch have collected images for. An archive is written once no other task of
//! the batch can add an image, and its tasks end when it is in its place.

use std::collections::{HashMap, HashSet};
use std::path::Path;
use std::time::Duration;

use bytesize::ByteSize;
use futures_util::StreamExt as _;
use imgsync_archive::{
    ArchiveOutput, ArchivePlan, Compression, DockerFact, WriteFailure, begins_as_image_archive, is_cut_image_archive,
};
use imgsync_layout::{ArchiveRef, ImageName, Layout, PipeTimeout};
use imgsync_model::batch::{BatchId, Endpoint, Failure, TaskResult, TaskState};
use imgsync_oci::error::{Error, ErrorKind, Result};
use imgsync_oci::humanize::pluralize;
use imgsync_oci::retry::{RetryBudget, RetryPolicy, RetryState, format_duration};
use imgsync_oci::sanitize::sanitize;
use imgsync_oci::{ArchiveFormat, Digest};
use imgsync_registry::Context;
use imgsync_registry::event::Event;
use imgsync_store::{BatchState, Store};
use imgsync_worker::copy::{Copier, CopyRequest, ImageLocation};
use imgsync_worker::runner::{ArchiveTargets, CollectedArchive, CollectedTask};
use imgsync_worker::task_events::TaskEvents;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

/// Interval between checks whether all images are collected.
const POLL_INTERVAL: Duration = Duration::from_millis(100);
/// Interval between checks whether the batch was cancelled while an archive is written.
const CANCEL_POLL_INTERVAL: Duration = Duration::from_secs(1);
/// Maximum number of blobs that cannot be read, after which the archive fails: each costs another start from its beginning.
const MAX_BAD_BLOBS: usize = 32;
/// A FIFO is refused before; one that takes the place of the file meanwhile is not waited for for ever.
const READER_TIMEOUT: PipeTimeout = PipeTimeout { limit: Duration::from_secs(60), option: None };
/// Interval between attempts to record results that the ledger did not take.
const LEDGER_RETRY_INTERVAL: Duration = Duration::from_secs(1);
/// Results recorded at once.
const MAX_CONCURRENT_RESULTS: usize = 64;
/// Rows of the ledger read at once.
const PAGE: usize = 1_000;

/// Writes the archives of a batch.
pub(super) struct ArchiveWriter<'a> {
    pub(super) store: &'a dyn Store,
    pub(super) copier: &'a Copier,
    pub(super) archives: &'a ArchiveTargets,
    pub(super) batch: BatchId,
    /// Whether archives are also written if their files have that content.
    pub(super) force: bool,
    /// Attempts after transient errors.
    pub(super) retry: RetryPolicy,
    pub(super) events: &'a TaskEvents,
    pub(super) context: Context,
}

/// Result of writing an archive.
enum ArchiveResult {
    Written,
    /// The file has that content already.
    Unchanged,
}

/// How a task ends.
enum TaskEnd {
    Result(TaskResult),
    /// It returns to the plan.
    GivenBack,
}

type EndedTask = (CollectedTask, TaskEnd);

/// Content that could not be read, by digest.
type BadContent = HashMap<Digest, Error>;

impl ArchiveWriter<'_> {
    /// Writes archives until the worker that collects images has ended. What is collected then returns to the plan.
    pub(super) async fn run(&self, worker_over: &CancellationToken) {
        // What the ledger did not take is recorded later: nobody else ends these tasks.
        let (mut unrecorded, mut recorded_at) = (Vec::new(), Instant::now());
        loop {
            tokio::select! {
                () = worker_over.cancelled() => break,
                () = tokio::time::sleep(POLL_INTERVAL) => {}
            }
            if !unrecorded.is_empty() && recorded_at.elapsed() >= LEDGER_RETRY_INTERVAL {
                unrecorded = self.record(unrecorded).await;
                recorded_at = Instant::now();
            }
            if self.archives.collected() > 0 {
                match self.is_all_collected(unrecorded.len() as u64).await {
                    Ok(true) => {
                        unrecorded.extend(self.write_all().await);
                        recorded_at = Instant::now();
                    }
                    Ok(false) => {}
                    Err(error) => self.warn_of_ledger(&error),
                }
            }
        }
        let left = self.archives.take().into_values().flat_map(|archive| archive.tasks);
        unrecorded.extend(left.map(|task| (task, TaskEnd::GivenBack)));
        self.record(unrecorded).await;
    }

    /// Whether all tasks that have not ended have collected their images. `unrecorded` ones have ended.
    async fn is_all_collected(&self, unrecorded: u64) -> Result<bool> {
        let collected = self.archives.collected();
        let Some(batch) = self.store.batch(self.batch).await? else { return Ok(false) };
        let is_planned = batch.plan_completed_at.is_some() && batch.state == BatchState::Running;
        Ok(is_planned && batch.counts.waiting == 0 && batch.counts.running == collected + unrecorded)
    }

    /// Writes all archives. Returns the tasks whose results the ledger did not take.
    async fn write_all(&self) -> Vec<EndedTask> {
        let mut unrecorded = Vec::new();
        for (place, archive) in self.archives.take() {
            let Endpoint::Archive(format, file) = &place else { continue };
            let context = Context { cancel: self.context.cancel.child_token(), ..self.context.clone() };
            // Also ends what reads files in other threads.
            let _stop = context.cancel.clone().drop_guard();
            let mut bad = BadContent::new();
            let written = tokio::select! {
                written = self.write(*format, Path::new(&**file), &archive, &mut bad, &context) => written,
                () = self.batch_stopped() => Err(Error::cancelled(format!("writing {place}"))),
            };
            unrecorded.extend(self.record(self.results(archive, &written, &bad)).await);
        }
        unrecorded
    }

    /// Writes an archive, without the images whose content cannot be read: that is added to `bad`.
    async fn write(
        &self,
        format: ArchiveFormat,
        file: &Path,
        archive: &CollectedArchive,
        bad: &mut BadContent,
        context: &Context,
    ) -> Result<ArchiveResult> {
        let operation = format!("writing {}{}", format.scheme(), file.display());
        let mut retry = RetryState::new(self.retry, &RetryBudget::default());
        let mut reached = 0;
        self.check_former(file, &operation).await?;
        if self.is_incomplete(archive).await? {
            self.keep_former(file, archive, bad, context).await?;
        }
        loop {
            let missing: HashSet<Digest> = bad.keys().cloned().collect();
            let (plan, _) = archive.collector.plan_without(&missing)?;
            if plan.is_empty() {
                let detail = "the content of no image can be read";
                return Err(Error::new(ErrorKind::NotFound, operation, detail));
            }
            plan.docker().check(format, &operation)?;
            if !self.force && self.copier.has_archive(file, &plan, context).await? {
                if !bad.is_empty() {
                    ArchiveOutput::discard_unfinished(file);
                }
                return Ok(ArchiveResult::Unchanged);
            }
            let WriteFailure { error, blob } =
                match self.write_once(file, archive, &plan, (&mut retry, &mut reached), context).await {
                    Ok(()) => {
                        self.describe(format, file, &plan);
                        return Ok(ArchiveResult::Written);
                    }
                    Err(failure) => failure,
                };
            match blob {
                Some(digest) if self.reads_former(archive, &plan, &digest).await => {
                    self.notice(format!("{error}; reading it from the former {}", file.display()));
                }
                Some(digest) if !bad.contains_key(&digest) && bad.len() < MAX_BAD_BLOBS => {
                    self.warn(format!("{error}; writing {} without the images that need it", file.display()));
                    bad.insert(digest, error);
                    self.keep_former(file, archive, bad, context).await?;
                }
                None => {
                    let sleep = async |wait| {
                        tokio::select! {
                            () = tokio::time::sleep(wait) => true,
                            () = context.cancel.cancelled() => false,
                        }
                    };
                    let warn = |error: &Error, _, wait| {
                        self.warn(format!("{error}; trying again in {}", format_duration(wait)));
                    };
                    retry.wait_before_retry(error, sleep, warn).await?;
                }
                Some(_) => return Err(error),
            }
        }
    }

    /// Whether the former file has a blob that the source does not have any more. It is then read from there.
    async fn reads_former(&self, archive: &CollectedArchive, plan: &ArchivePlan, digest: &Digest) -> bool {
        let member = plan.members().iter().find(|member| member.digest() == Some(digest));
        match member {
            Some(member) => archive.collector.read_from_former(digest, member.size).await,
            None => false,
        }
    }

    async fn write_once(
        &self,
        file: &Path,
        archive: &CollectedArchive,
        plan: &ArchivePlan,
        (retry, reached): (&mut RetryState, &mut u64),
        context: &Context,
    ) -> std::result::Result<(), WriteFailure> {
        let mut output = ArchiveOutput::open(file, plan, Compression::None, READER_TIMEOUT, context).await?;
        let resumed = output.resume_from();
        if resumed > *reached {
            // An attempt that makes progress does not count.
            retry.reset();
            *reached = resumed;
        }
        self.copier.write_collected(&archive.collector, plan, &mut output, resumed, context).await?;
        output.commit().await?;
        self.copier.record_archive(file, plan).await;
        Ok(())
    }

    /// Whether the batch lacks images that the archive should have: some could not be listed or collected, or were
    /// collected before the batch was requeued.
    async fn is_incomplete(&self, archive: &CollectedArchive) -> Result<bool> {
        let Some(place) = archive.tasks.first().map(|task| task.target.repository.endpoint().clone()) else {
            return Ok(true);
        };
        if !self.store.listing_failures(self.batch).await?.is_empty() {
            return Ok(true);
        }
        let batch = self.store.batch(self.batch).await?;
        if batch.is_some_and(|batch| batch.counts.running == batch.counts.total) {
            return Ok(false);
        }
        let mut from = 0;
        loop {
            let rows = self.store.tasks(self.batch, None, from, PAGE).await?;
            let Some(last) = rows.last() else { return Ok(false) };
            from = last.task.index.saturating_add(1);
            let is_other = |state: TaskState| state != TaskState::Running;
            if rows.iter().any(|row| is_other(row.state) && *row.task.spec.target.repository.endpoint() == place) {
                return Ok(true);
            }
        }
    }

    /// Fails if the archive's place is taken by something that a run must not replace: a folder, a pipe, or a file that is no
    /// archive. A damaged archive is replaced, and a warning says so.
    async fn check_former(&self, file: &Path, operation: &str) -> Result<()> {
        if std::fs::metadata(file).is_ok_and(|found| found.is_file() && found.len() == 0) {
            return Ok(());
        }
        let Err(error) = Layout::open_any_archive(file).await else { return Ok(()) };
        match error.kind() {
            ErrorKind::NotFound if !file.exists() => Ok(()),
            _ if is_damaged_archive(file, &error) => {
                self.warn(format!("{} is damaged, and is replaced: {}", file.display(), error.message()));
                Ok(())
            }
            ErrorKind::Corrupt
            | ErrorKind::NotFound
            | ErrorKind::Invalid
            | ErrorKind::InvalidResponse
            | ErrorKind::Unsupported => {
                let detail = format!("what is there is not replaced: {}", error.message());
                Err(Error::new(ErrorKind::Invalid, operation, detail)
                    .with_hint("remove it, or name another file: a run replaces only archives"))
            }
            _ => Err(error),
        }
    }

    /// Collects the images of the former file that this run cannot write: as at any other target, they stay.
    ///
    /// # Errors
    /// If the former file cannot be read, and may have images: it is not replaced.
    async fn keep_former(
        &self,
        file: &Path,
        archive: &CollectedArchive,
        bad: &BadContent,
        context: &Context,
    ) -> Result<()> {
        let missing: HashSet<Digest> = bad.keys().cloned().collect();
        let left_out = archive.collector.plan_without(&missing).map(|(_, left_out)| left_out).unwrap_or_default();
        let left_out: HashSet<Digest> = left_out.into_iter().map(|image| image.image.root.digest).collect();
        let written = archive.tasks.iter().filter(|task| !left_out.contains(&task.digest));
        let written: HashSet<String> =
            written.map(|task| format!("{}:{}", task.target.repository.path(), task.target.tag)).collect();
        let images = async {
            let (format, layout) = Layout::open_any_archive(file).await?;
            Ok::<_, Error>((format, layout.images().await?))
        };
        let (format, images) = match images.await {
            Ok(images) => images,
            Err(error) if error.kind() == ErrorKind::NotFound && !file.exists() => return Ok(()),
            Err(error) if is_damage(&error) || is_damaged_archive(file, &error) => {
                self.warn(format!("{error}: images in it that this run cannot write do not stay"));
                return Ok(());
            }
            Err(error) => return Err(error),
        };
        let (mut kept, mut nameless) = (0_u64, 0_u64);
        for entry in images {
            let name = entry.repository.zip(entry.tag).map(|(repository, tag)| format!("{repository}:{tag}"));
            let Some((name, reference)) = name.and_then(|name| Some((name.clone(), name.parse().ok()?))) else {
                nameless += 1;
                continue;
            };
            if written.contains(&name) {
                continue;
            }
            let reference = ArchiveRef { format, file: file.to_owned(), image: Some(ImageName::Full(reference)) };
            let image = ImageLocation::Archive(reference);
            let request = CopyRequest::new(image.clone(), image);
            match self.copier.collect(&request, &archive.collector, context).await {
                Ok(_) => kept += 1,
                Err(error) if is_damage(&error) || error.kind() == ErrorKind::NotFound => {
                    self.warn(format!("{name} in the former {} does not stay: {error}", file.display()));
                }
                Err(error) => return Err(error),
            }
        }
        if nameless > 0 {
            let images = pluralize(nameless, "image", "images");
            self.warn(format!("{}: {images} of the former file without a full name do not stay", file.display()));
        }
        if kept > 0 {
            let images = pluralize(kept, "image", "images");
            self.notice(format!("{}: {images} of the former file stay, which this run cannot replace", file.display()));
        }
        Ok(())
    }

    /// Returns the results of the tasks of an archive.
    fn results(&self, archive: CollectedArchive, written: &Result<ArchiveResult>, bad: &BadContent) -> Vec<EndedTask> {
        let missing = bad.keys().cloned().collect();
        let left_out = archive.collector.plan_without(&missing).map(|(_, left_out)| left_out).unwrap_or_default();
        let left_out: HashMap<Digest, &Error> = left_out
            .into_iter()
            .filter_map(|image| Some((image.image.root.digest, bad.get(&image.missing)?)))
            .collect();
        let end = |task: CollectedTask| {
            let end = self.result(written, left_out.get(&task.digest).copied());
            (task, end)
        };
        archive.tasks.into_iter().map(end).collect()
    }

    /// Returns the result of a task; it returns to the plan if this process shuts down.
    fn result(&self, written: &Result<ArchiveResult>, bad: Option<&Error>) -> TaskEnd {
        TaskEnd::Result(match (written, bad) {
            (Err(error), _) if error.is_cancelled() && self.context.cancel.is_cancelled() => return TaskEnd::GivenBack,
            (Err(error), _) if error.is_cancelled() => TaskResult::Cancelled,
            (_, Some(error)) => TaskResult::Failed(Failure::from_error(error, error.attempts())),
            (Err(error), None) => TaskResult::Failed(Failure::from_error(error, error.attempts())),
            (Ok(ArchiveResult::Unchanged), None) => TaskResult::Unchanged,
            (Ok(ArchiveResult::Written), None) => TaskResult::Copied,
        })
    }

    /// Records how tasks have ended. Returns those that the ledger did not take.
    async fn record(&self, ended: Vec<EndedTask>) -> Vec<EndedTask> {
        // Together, so that they share transactions of the ledger.
        let recorded = futures_util::stream::iter(ended).map(|(task, end)| async move {
            let recorded = match &end {
                TaskEnd::Result(result) => task.finish(self.store, result.clone(), self.events).await,
                TaskEnd::GivenBack => task.give_back(self.store, self.events).await,
            };
            recorded.err().map(|error| {
                self.warn_of_ledger(&error);
                (task, end)
            })
        });
        recorded.buffer_unordered(MAX_CONCURRENT_RESULTS).filter_map(std::future::ready).collect().await
    }

    /// Waits until the batch was cancelled or superseded.
    async fn batch_stopped(&self) {
        loop {
            tokio::time::sleep(CANCEL_POLL_INTERVAL).await;
            if matches!(self.store.batch(self.batch).await, Ok(Some(batch)) if batch.state.is_stopped()) {
                return;
            }
        }
    }

    fn describe(&self, format: ArchiveFormat, file: &Path, plan: &ArchivePlan) {
        for DockerFact { text, is_loss } in plan.docker().describe() {
            match format {
                ArchiveFormat::Docker if is_loss => self.warn(text),
                _ => self.notice(text),
            }
        }
        let (blobs, _) = plan.blobs();
        let (blobs, size) = (pluralize(blobs as u64, "blob", "blobs"), ByteSize(plan.total_size()));
        self.notice(format!("wrote {}{}: {size}, {blobs}", format.scheme(), file.display()));
    }

    fn notice(&self, message: String) {
        let message = sanitize(&message).into_owned();
        self.context.events.emit(Event::Notice { message });
    }

    fn warn(&self, message: String) {
        self.context.warn(message);
    }

    fn warn_of_ledger(&self, error: &Error) {
        let (kind, message) = (format!("ledger: {}", error.kind()), format!("the ledger is unavailable: {error}"));
        self.context.events.emit(Event::RepeatedWarning { kind, message });
    }
}

/// Whether a file was read, and is not what it should be.
fn is_damage(error: &Error) -> bool {
    matches!(error.kind(), ErrorKind::InvalidResponse | ErrorKind::Corrupt | ErrorKind::Unsupported)
}

/// Whether a file that could not be opened is a damaged archive of images. Other files can look damaged, too.
fn is_damaged_archive(file: &Path, error: &Error) -> bool {
    if !std::fs::metadata(file).is_ok_and(|found| found.is_file()) {
        return false;
    }
    let is_damaged = match error.kind() {
        ErrorKind::Corrupt | ErrorKind::NotFound => begins_as_image_archive(file),
        ErrorKind::Invalid => is_cut_image_archive(file),
        _ => Ok(false),
    };
    is_damaged.unwrap_or(false)
}
