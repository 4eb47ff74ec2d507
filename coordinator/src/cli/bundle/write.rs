//! Writes a bundle: checks the free space, shows the progress, and goes on behind what an earlier call wrote.

use std::fmt;
use std::fs::File;
use std::io::{Read as _, Write as _};
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use bytes::Bytes;
use bytesize::ByteSize;
use imgsync_archive::{
    ArchivePlan, ArchiveSink, MAX_SMALL_BLOB_BYTES, Member, MemberContent, ThreadSink, WriteFailure, verified_length,
    write_archive,
};
use imgsync_bundle::{
    BundleCollector, BundleFiles, BundleIndex, BundlePart, PROGRAM_MEMBER, PartList, PartWriter, free_space,
};
use imgsync_oci::error::{Error, ErrorKind, Result};
use imgsync_oci::humanize::pluralize;
use imgsync_oci::retry::format_duration;
use imgsync_oci::{Algorithm, Hasher};
use imgsync_registry::{Client, Context};
use serde::Serialize;
use tokio_util::sync::CancellationToken;

use super::super::printer::Printer;
use super::work::{CollectedPlan, WorkFolder};
use crate::bundle::{BlobSource, CountingSink, PartOutput, PartlyWrittenBlob, build_plan};

const OPERATION: &str = "writing the bundle";
const REDRAW_INTERVAL: Duration = Duration::from_millis(200);
/// Interval of lines without a terminal.
const LINE_INTERVAL: Duration = Duration::from_secs(10);

/// Where a bundle goes.
#[derive(Debug)]
pub(super) enum BundleOutput {
    Stdout,
    Files(BundleFiles),
}

impl fmt::Display for BundleOutput {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            BundleOutput::Stdout => f.write_str("-"),
            BundleOutput::Files(files) => write!(f, "{}", files.folder.join(&files.name).display()),
        }
    }
}

/// What was written.
#[derive(Debug, Serialize)]
pub(super) struct BundleSummary {
    /// Path of the bundle, or `-`.
    path: String,
    /// Files with the bundle, in order.
    parts: Vec<BundlePart>,
    /// Size of the bundle.
    bytes: u64,
    /// Bytes read from the sources by this call.
    read_bytes: u64,
    tags: u64,
    /// Tags whose images the receiver has.
    unchanged_tags: u64,
    manifests: u64,
    blobs: u64,
    blob_bytes: u64,
    left_out_manifests: u64,
    left_out_blobs: u64,
    left_out_bytes: u64,
    /// Images that could not be read while the bundle was written, and are not in it.
    unreadable: Vec<String>,
    is_signed: bool,
}

impl fmt::Display for BundleSummary {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let parts = match self.parts.len() {
            0 | 1 => String::new(),
            several => format!(" in {}", pluralize(several as u64, "part", "parts")),
        };
        write!(
            f,
            "bundle {}: {}{parts}; {} ({} unchanged), {}, {} ({})",
            self.path,
            ByteSize(self.bytes),
            pluralize(self.tags, "tag", "tags"),
            self.unchanged_tags,
            pluralize(self.manifests, "manifest", "manifests"),
            pluralize(self.blobs, "blob", "blobs"),
            ByteSize(self.blob_bytes),
        )?;
        if self.left_out_manifests + self.left_out_blobs > 0 {
            write!(
                f,
                "; the receiver has {} and {} ({})",
                pluralize(self.left_out_manifests, "other manifest", "other manifests"),
                pluralize(self.left_out_blobs, "blob", "blobs"),
                ByteSize(self.left_out_bytes)
            )?;
        }
        f.write_str(if self.is_signed { "; signed" } else { "; not signed" })
    }
}

/// Writes a bundle whose images are collected.
#[expect(clippy::too_many_arguments, reason = "called once")]
pub(super) async fn write_bundle(
    collector: &BundleCollector,
    output: &BundleOutput,
    work: &WorkFolder,
    (plan, index_bytes): (&CollectedPlan, &[u8]),
    program: Option<Vec<u8>>,
    client: &Client,
    stop: CancellationToken,
    printer: &Printer,
) -> std::result::Result<BundleSummary, WriteFailure> {
    let index = BundleIndex::decode(index_bytes, "the index of the bundle")?;
    let (inside, beside) = match output {
        BundleOutput::Stdout => (program.map(Bytes::from), None),
        BundleOutput::Files(_) => (None, program),
    };
    let archive = build_plan(collector, &index, index_bytes, plan.signature.as_deref(), inside)?;
    let context = Context { cancel: stop.clone(), ..Context::default() };
    let source = BlobSource::new(collector.clone(), client.clone(), context);
    let counters = source.counters().clone();
    let progress = Progress::new(archive.total_size(), printer);
    let (parts, path) = match output {
        BundleOutput::Stdout => {
            let mut sink = ThreadSink::pipe(std::io::stdout(), OPERATION);
            progress.show_while(write_all(&archive, &source, &mut sink, 0, &progress, &stop)).await?;
            sink.finish().await?;
            (Vec::new(), "-".to_owned())
        }
        BundleOutput::Files(files) => {
            let record = work.part_record();
            remove_abandoned(files, work)?;
            if !work.has_written() {
                remove_old(files)?;
            }
            let writer = PartWriter::open(files.clone(), &record)?;
            let mut position = writer.position();
            let beside_bytes = beside.as_ref().map_or(0, |program| program.len() as u64);
            check_free_space(files, archive.total_size().saturating_sub(position) + beside_bytes)?;
            if position > archive.total_size() {
                position = 0;
            } else if position > 0 {
                printer.line(&format!("going on behind {} that are written", ByteSize(position)));
            }
            let (known, partly_written) = verify_written(&archive, &writer, position, &stop)?;
            let source = source.with_partly_written(partly_written);
            let mut sink = ThreadSink::new(Box::new(PartOutput(writer)), OPERATION);
            if known < position || position == 0 {
                sink.rewind(known).await?;
            }
            position = known;
            let written = write_all(&archive, &source, &mut sink, position, &progress, &stop);
            if let Err(error) = progress.show_while(written).await {
                // Waits for the thread, so that the next call finds its bytes.
                drop(sink.close().await);
                return Err(error);
            }
            let parts = sink.finish().await?;
            write_others(files, plan, index_bytes, &parts, beside)?;
            (parts, output.to_string())
        }
    };
    Ok(summarize(path, parts, &archive, &index, plan, counters.snapshot().received))
}

async fn write_all<S: ArchiveSink>(
    archive: &ArchivePlan,
    source: &BlobSource,
    sink: &mut S,
    position: u64,
    progress: &Progress,
    stop: &CancellationToken,
) -> std::result::Result<(), WriteFailure> {
    progress.begin(position);
    let mut sink = CountingSink { inner: sink, written: progress.written.clone() };
    tokio::select! {
        written = write_archive(archive, source, &mut sink, position) => written,
        () = stop.cancelled() => Err(Error::cancelled(OPERATION).into()),
    }
}

/// Returns the number of bytes with which a bundle can go on, and the blob around that offset. What is not in a whole
/// part may not have reached the disk before a power cut: its members are hashed, and the first wrong one and all after
/// it are written again. A large blob is hashed when its rest is read.
fn verify_written(
    archive: &ArchivePlan,
    writer: &PartWriter,
    position: u64,
    stop: &CancellationToken,
) -> Result<(u64, Option<PartlyWrittenBlob>)> {
    if position == 0 {
        return Ok((0, None));
    }
    let (written, synced) = (writer.written(), writer.synced());
    let first = find_member(archive, synced).map_or(synced, |(start, _)| start);
    let verify = || verified_length(written.reader(first), archive, synced, stop);
    let failed =
        |error| Error::new(ErrorKind::Local, OPERATION, format!("reading back the bundle: {error}")).with_source(error);
    let verified = tokio::task::block_in_place(verify).map_err(|error| match error.kind() {
        std::io::ErrorKind::Interrupted => Error::cancelled(OPERATION),
        _ => failed(error),
    })?;
    if let Some((start, member)) = find_member(archive, verified)
        && let MemberContent::Blob(digest) = &member.content
        && member.size > MAX_SMALL_BLOB_BYTES
    {
        let header = member.header();
        let content = start + header.len() as u64;
        let mut found = vec![0; header.len()];
        if position > content {
            written.reader(start).read_exact(&mut found).map_err(failed)?;
        }
        if found == header {
            let length = (position - content).min(member.size);
            let blob = PartlyWrittenBlob { digest: digest.clone(), start: content, length, parts: written };
            return Ok((position, Some(blob)));
        }
    }
    Ok((verified, None))
}

/// Returns the member around an offset, and where it starts.
fn find_member(archive: &ArchivePlan, offset: u64) -> Option<(u64, &Member)> {
    let mut end = 0;
    archive.members().iter().find_map(|member| {
        let start = end;
        end += member.archived_size();
        (offset < end).then_some((start, member))
    })
}

/// Removes the parts of an interrupted call that is not continued: its list, which would name them, was never written.
fn remove_abandoned(files: &BundleFiles, work: &WorkFolder) -> Result<()> {
    let record = work.abandoned_record();
    let Ok(text) = std::fs::read(&record) else { return Ok(()) };
    let parts: Vec<BundlePart> = serde_json::from_slice(&text).unwrap_or_default();
    // The part after the last whole one may be started, or whole and not recorded.
    let next = parts.len() + 1;
    let next = format!("{}.{next:03}", files.name);
    for name in parts.iter().map(|part| &part.name).chain([&next]) {
        remove_if_there(&files.folder.join(name))?;
    }
    for name in [&next, &files.name] {
        remove_if_there(&files.folder.join(format!(".{name}.partial")))?;
    }
    remove_if_there(&record)
}

/// Removes a bundle of the same name. Its list goes first, so that nobody takes what is left for a bundle.
fn remove_old(files: &BundleFiles) -> Result<()> {
    let list = PartList::read(&files.list()).ok();
    let others = [files.list(), files.checksums(), files.index(), files.folder.join(&files.name)];
    let parts = list.iter().flat_map(|list| &list.parts).filter(|part| files.is_part_name(&part.name));
    let parts = parts.map(|part| files.folder.join(&part.name));
    for path in others.into_iter().chain(parts) {
        remove_if_there(&path)?;
    }
    Ok(())
}

fn remove_if_there(path: &Path) -> Result<()> {
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(write_error(path, error)),
        _ => Ok(()),
    }
}

fn check_free_space(files: &BundleFiles, needed: u64) -> Result<()> {
    let free = free_space(&files.folder)?;
    if free >= needed {
        return Ok(());
    }
    let detail = format!("{} has {} free, and {} are needed", files.folder.display(), ByteSize(free), ByteSize(needed));
    Err(Error::new(ErrorKind::Local, OPERATION, detail)
        .with_hint("free disk space and run the same command again, or choose another --out"))
}

/// Writes the program, the index, the checksums, and the list of parts, which is the last.
fn write_others(
    files: &BundleFiles,
    plan: &CollectedPlan,
    index_bytes: &[u8],
    parts: &[BundlePart],
    program: Option<Vec<u8>>,
) -> Result<()> {
    let list = PartList::new(plan.index.clone(), parts.to_vec());
    let sha256 = |bytes: &[u8]| {
        let mut hasher = Hasher::new(Algorithm::Sha256);
        hasher.update(bytes);
        hasher.finish().hex().to_owned()
    };
    let mut others = Vec::new();
    if let Some(program) = program {
        write_file(&files.folder.join(PROGRAM_MEMBER), &program, 0o755)?;
        others.push((PROGRAM_MEMBER.to_owned(), sha256(&program)));
    }
    write_file(&files.index(), index_bytes, 0o644)?;
    write_file(&files.checksums(), &list.to_checksums(&others), 0o644)?;
    write_file(&files.list(), &list.to_json(), 0o644)
}

fn write_file(path: &Path, bytes: &[u8], mode: u32) -> Result<()> {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let hidden = path.with_file_name(format!(".{name}.partial"));
    let written = File::create(&hidden).and_then(|mut file| {
        file.write_all(bytes)?;
        file.sync_all()?;
        // Some file systems have no modes.
        let _ = file.set_permissions(std::fs::Permissions::from_mode(mode));
        std::fs::rename(&hidden, path)?;
        File::open(path.parent().unwrap_or(Path::new(".")))?.sync_all()
    });
    written.map_err(|error| write_error(path, error))
}

fn write_error(path: &Path, error: std::io::Error) -> Error {
    let detail = format!("{}: {error}", path.display());
    Error::new(ErrorKind::Local, OPERATION, detail).with_source(error)
}

fn summarize(
    path: String,
    parts: Vec<BundlePart>,
    archive: &ArchivePlan,
    index: &BundleIndex,
    plan: &CollectedPlan,
    read_bytes: u64,
) -> BundleSummary {
    let (blobs, blob_bytes) = archive.blobs();
    let manifests = archive.members().iter().filter(|member| matches!(member.content, MemberContent::Manifest(_)));
    let left_out = index.repositories.iter().flat_map(|repository| &repository.left_out_blobs);
    BundleSummary {
        path,
        parts,
        bytes: archive.total_size(),
        read_bytes,
        tags: index.tags().count() as u64,
        unchanged_tags: index.tags().filter(|(_, tag)| !tag.is_carried).count() as u64,
        manifests: manifests.count() as u64,
        blobs: blobs as u64,
        blob_bytes,
        left_out_manifests: index.repositories.iter().map(|entry| entry.left_out_manifests.len() as u64).sum(),
        left_out_blobs: left_out.clone().count() as u64,
        left_out_bytes: left_out.map(|blob| blob.size).sum(),
        unreadable: plan.left_out.clone(),
        is_signed: plan.signature.is_some(),
    }
}

/// Progress in bytes, with the time left.
struct Progress {
    total: u64,
    written: Arc<AtomicU64>,
    printer: Printer,
}

impl Progress {
    fn new(total: u64, printer: &Printer) -> Progress {
        Progress { total, written: Arc::default(), printer: printer.clone() }
    }

    fn begin(&self, position: u64) {
        self.written.store(position, Ordering::Relaxed);
    }

    /// Shows the progress while something is done.
    async fn show_while<T>(&self, work: impl Future<Output = T>) -> T {
        tokio::select! {
            done = work => done,
            () = self.show() => unreachable!("it goes on until dropped"),
        }
    }

    async fn show(&self) {
        if self.printer.shows_bars() {
            let style =
                "{prefix:>14} {wide_bar} {bytes:>10}/{total_bytes:<10} {binary_bytes_per_sec:>12} {eta:>4} left";
            let bar = indicatif::ProgressBar::new(self.total).with_style(self.printer.bar_style(style));
            let bar = self.printer.bars().add(bar).with_prefix("bundle");
            bar.set_position(self.written.load(Ordering::Relaxed));
            bar.reset_eta();
            let bar = ClearOnDrop(bar);
            loop {
                tokio::time::sleep(REDRAW_INTERVAL).await;
                bar.0.set_position(self.written.load(Ordering::Relaxed));
            }
        }
        let (began, before) = (Instant::now(), self.written.load(Ordering::Relaxed));
        loop {
            tokio::time::sleep(LINE_INTERVAL).await;
            let written = self.written.load(Ordering::Relaxed);
            let speed = written.saturating_sub(before) as f64 / began.elapsed().as_secs_f64();
            let left = Duration::try_from_secs_f64(self.total.saturating_sub(written) as f64 / speed).ok();
            let left = left.map(|left| format!(", {} left", format_duration(left))).unwrap_or_default();
            let line = format!("{} of {} written{left}", ByteSize(written), ByteSize(self.total));
            self.printer.timestamped(&line);
        }
    }
}

struct ClearOnDrop(indicatif::ProgressBar);

impl Drop for ClearOnDrop {
    fn drop(&mut self) {
        self.0.finish_and_clear();
    }
}
