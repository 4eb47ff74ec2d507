//! `imgsync sync` to an archive: one file, or stdout, with one image or several.

use std::fs::File;
use std::io::IsTerminal as _;
use std::os::fd::AsFd as _;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytesize::ByteSize;
use clap::ValueEnum;
use futures_util::StreamExt as _;
use imgsync_archive::{ArchiveOutput, ArchivePlan, Compression, DockerFact, Member, MemberContent};
use imgsync_layout::{ArchiveRef, ImageName, PipeTimeout};
use imgsync_oci::error::{Error, ErrorKind, Result};
use imgsync_oci::humanize::{group_digits, pluralize};
use imgsync_oci::retry::format_duration;
use imgsync_oci::{ArchiveFormat, Digest};
use imgsync_registry::{Context, TrafficCounters, TrafficSnapshot};
use imgsync_worker::copy::{ArchiveCollector, Copier, CopyRequest, ImageLocation, TransferStats};
use serde::Serialize;

use super::copy_progress::CopyProgress;
use super::printer::Printer;
use super::signals::wait_for_cleanup;
use super::sync_stats::{CopyStats, EndpointRequests, EndpointTraffic, format_requests};

/// Images whose manifests are read at the same time.
const CONCURRENT_IMAGES: usize = 4;

/// `--archive-compress`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, ValueEnum)]
pub(crate) enum CompressionOption {
    /// No compression: the only form that all tools load; layers are compressed anyway
    #[default]
    None,
    /// gzip: not for ctr and crane; an interrupted write starts again
    Gzip,
}

/// Options of writing an archive.
#[derive(Debug, Clone, Copy)]
pub(super) struct ArchiveOptions {
    /// Plans the archive, and writes nothing.
    pub(super) dry_run: bool,
    pub(super) json: bool,
    pub(super) compression: CompressionOption,
    /// How long to wait for the reader of a FIFO.
    pub(super) reader_timeout: PipeTimeout,
}

/// Images that were collected for one archive.
struct CollectedImages {
    collector: ArchiveCollector,
    plan: ArchivePlan,
    images: Vec<ArchivedImage>,
    manifests: u64,
    referrers: u64,
    traffic: Arc<TrafficCounters>,
}

#[derive(Debug, Serialize)]
struct ArchivedImage {
    source: ImageLocation,
    digest: Digest,
}

/// Output of `--json`.
#[derive(Debug, Serialize)]
struct ArchiveJson<'a> {
    /// The source, if there is one.
    #[serde(skip_serializing_if = "Option::is_none")]
    source: Option<&'a ImageLocation>,
    target: &'a ArchiveRef,
    images: &'a [ArchivedImage],
    #[serde(flatten)]
    result: ArchiveOutcome<'a>,
}

#[derive(Debug, Serialize)]
#[serde(tag = "outcome", rename_all = "snake_case")]
enum ArchiveOutcome<'a> {
    Copied {
        /// Size of the archive in bytes, before compression.
        size: u64,
        #[serde(flatten)]
        stats: CopyStats<'a>,
    },
    WouldCopy {
        size: u64,
        manifests: u64,
        blobs: usize,
        bytes: u64,
    },
}

/// Copies images into an archive.
pub(super) async fn copy_to_archive(
    options: ArchiveOptions,
    sources: Vec<ImageLocation>,
    target: &ArchiveRef,
    request: CopyRequest,
    copier: &Copier,
    context: &Context,
    (progress, printer): (&CopyProgress, &Printer),
) -> Result<()> {
    check_target(options, &sources, target)?;
    let started = Instant::now();
    let work = async {
        let stdin_archive = request.stdin_archive.clone();
        let collected = collect(sources, target, request, copier, context).await?;
        print_docker_summary(target, &collected.plan, printer)?;
        let resumed = match options.dry_run {
            true => 0,
            false => write(options, target, &collected, copier, context).await?,
        };
        if let Some(archive) = stdin_archive {
            archive.finish_stream().await?;
        }
        Ok((collected, resumed))
    };
    let done = tokio::select! {
        done = work => done,
        () = progress.run() => unreachable!("it goes on until dropped"),
        () = wait_for_cleanup(&context.cancel) => Err(Error::cancelled(format!("writing {target}"))),
    };
    progress.finish();
    let (collected, resumed) = done?;
    match options.dry_run {
        true => print_preview(options, target, &collected, printer),
        false => print_result(options, target, &collected, resumed, started.elapsed(), printer),
    }
    Ok(())
}

fn check_target(options: ArchiveOptions, sources: &[ImageLocation], target: &ArchiveRef) -> Result<()> {
    let invalid = |detail: &str, hint: &str| {
        Err(Error::new(ErrorKind::Invalid, format!("writing {target}"), detail).with_hint(hint))
    };
    if matches!(&target.image, Some(ImageName::Digest(_))) {
        return invalid("an image in an archive is named by its tag", "write oci-archive:FILE:NAME:TAG");
    }
    if target.image.is_some() && sources.len() > 1 {
        return invalid("one name was given for several images", "without a name, each has that of its source");
    }
    if !target.is_stdio() || options.dry_run {
        return Ok(());
    }
    if options.json {
        return invalid("stdout can carry the archive or the JSON, not both", "write to a file");
    }
    if std::io::stdout().is_terminal() {
        return invalid("an archive is not written to a terminal", "redirect stdout, or write to a file");
    }
    Ok(())
}

/// Reads the manifests of all images, and plans the archive.
async fn collect(
    sources: Vec<ImageLocation>,
    target: &ArchiveRef,
    request: CopyRequest,
    copier: &Copier,
    context: &Context,
) -> Result<CollectedImages> {
    let (collector, traffic) = (ArchiveCollector::new(), TrafficCounters::new());
    let request = CopyRequest {
        target: ImageLocation::Archive(target.clone()),
        traffic: (traffic.clone(), TrafficCounters::new()),
        ..request
    };
    let mut collecting = futures_util::stream::iter(sources)
        .map(|source| collect_one(source, target, &request, copier, &collector, context))
        .buffered(CONCURRENT_IMAGES);
    let (mut images, mut referrers) = (Vec::new(), 0);
    while let Some(collected) = collecting.next().await {
        let (image, of_image) = collected?;
        images.push(image);
        referrers += of_image;
    }
    drop(collecting);
    let plan = collector.plan(|_| Ok(()))?;
    let is_manifest = |member: &&Member| matches!(member.content, MemberContent::Manifest(_));
    let manifests = plan.members().iter().filter(is_manifest).count() as u64;
    Ok(CollectedImages { collector, plan, images, manifests, referrers, traffic })
}

/// Reads the manifests of one image. Also returns the number of its referrers.
async fn collect_one(
    source: ImageLocation,
    target: &ArchiveRef,
    request: &CopyRequest,
    copier: &Copier,
    collector: &ArchiveCollector,
    context: &Context,
) -> Result<(ArchivedImage, u64)> {
    if target.image.is_none() && source.tag().is_none() {
        let detail = format!("{source} has no tag, and loaders need a name");
        return Err(Error::new(ErrorKind::Invalid, format!("writing {target}"), detail)
            .with_hint(format!("name the image: {}:NAME:TAG", target.without_image())));
    }
    let request = CopyRequest { source: source.clone(), ..request.clone() };
    let report = copier.collect(&request, collector, context).await?;
    Ok((ArchivedImage { source, digest: report.digest }, report.referrers))
}

/// Writes the archive. Returns how many of its bytes were there already.
async fn write(
    options: ArchiveOptions,
    target: &ArchiveRef,
    collected: &CollectedImages,
    copier: &Copier,
    context: &Context,
) -> Result<u64> {
    let compression = match options.compression {
        CompressionOption::None => Compression::None,
        CompressionOption::Gzip => Compression::Gzip,
    };
    let CollectedImages { collector, plan, .. } = collected;
    let mut file = match target.is_stdio() {
        true => ArchiveOutput::pipe(stdout_file()?, compression, "writing to stdout"),
        false => ArchiveOutput::open(&target.file, plan, compression, options.reader_timeout, context).await?,
    };
    let resumed = file.resume_from();
    copier.write_collected(collector, plan, &mut file, resumed, context).await?;
    file.commit().await?;
    Ok(resumed)
}

/// Returns stdout without the buffer of the standard library, which is for lines.
fn stdout_file() -> Result<File> {
    let stdout = std::io::stdout().as_fd().try_clone_to_owned();
    stdout
        .map(File::from)
        .map_err(|error| Error::new(ErrorKind::Local, "writing to stdout", error.to_string()).with_source(error))
}

/// Says what the loaders of docker's format get of the images.
fn print_docker_summary(target: &ArchiveRef, plan: &ArchivePlan, printer: &Printer) -> Result<()> {
    plan.docker().check(target.format, &format!("writing {target}"))?;
    for DockerFact { text, is_loss } in plan.docker().describe() {
        match target.format {
            ArchiveFormat::Docker if is_loss => printer.warning(&text),
            _ => printer.line(&text),
        }
    }
    Ok(())
}

fn print_preview(options: ArchiveOptions, target: &ArchiveRef, collected: &CollectedImages, printer: &Printer) {
    let CollectedImages { plan, images, manifests, .. } = collected;
    let (blobs, bytes) = plan.blobs();
    if options.json {
        let result = ArchiveOutcome::WouldCopy { size: plan.total_size(), manifests: *manifests, blobs, bytes };
        return print_json(printer, target, images, result);
    }
    for image in images {
        printer.text(&format!("copy {} {target}", image.source));
    }
    printer.line(&format!(
        "{target} would have {}, {} and {}: {}",
        pluralize(images.len() as u64, "image", "images"),
        pluralize(*manifests, "manifest", "manifests"),
        pluralize(blobs as u64, "blob", "blobs"),
        ByteSize(plan.total_size())
    ));
}

fn print_result(
    options: ArchiveOptions,
    target: &ArchiveRef,
    collected: &CollectedImages,
    resumed: u64,
    elapsed: Duration,
    printer: &Printer,
) {
    let CollectedImages { plan, images, manifests, referrers, .. } = collected;
    let source_traffic = collected.traffic.snapshot();
    let (mut blobs, mut bytes) = (TransferStats::default(), TransferStats::default());
    let mut end = 0;
    for member in plan.members() {
        end += member.archived_size();
        if !matches!(member.content, MemberContent::Blob(_)) {
            continue;
        }
        let (blobs, bytes) = match end <= resumed {
            true => (&mut blobs.reused, &mut bytes.reused),
            false => (&mut blobs.copied, &mut bytes.copied),
        };
        *blobs += 1;
        *bytes += member.size;
    }
    let size = plan.total_size();
    let target_traffic = TrafficSnapshot::default();
    if options.json {
        let stats = CopyStats {
            digest: &images[0].digest,
            bytes,
            blobs,
            manifests: *manifests,
            referrers: *referrers,
            requests: EndpointRequests { source: source_traffic.total_requests(), target: 0 },
            traffic: EndpointTraffic { source: source_traffic, target: target_traffic },
            seconds: (elapsed.as_secs_f64() * 1000.0).round() / 1000.0,
        };
        print_json(printer, target, images, ArchiveOutcome::Copied { size, stats });
    } else if !target.is_stdio() {
        for image in images {
            printer.data(&format!("{}@{}", target.without_image(), image.digest));
        }
    }
    let part = |blobs: u64, bytes: u64, how: &str| match blobs {
        0 => String::new(),
        _ => format!(", {} {how} ({})", pluralize(blobs, "blob", "blobs"), ByteSize(bytes)),
    };
    printer.line(&format!(
        "copied {} to {target} in {}: {}, {}{}{}{}, {}",
        match &images[..] {
            [image] => image.source.to_string(),
            images => pluralize(images.len() as u64, "image", "images"),
        },
        format_duration(elapsed),
        ByteSize(size),
        pluralize(*manifests, "manifest", "manifests"),
        match referrers {
            0 => String::new(),
            1 => ", 1 of them a referrer".to_owned(),
            referrers => format!(", {} of them referrers", group_digits(*referrers)),
        },
        part(blobs.copied, bytes.copied, "copied"),
        part(blobs.reused, bytes.reused, "already present"),
        format_requests(&source_traffic, &target_traffic)
    ));
}

fn print_json(printer: &Printer, target: &ArchiveRef, images: &[ArchivedImage], result: ArchiveOutcome<'_>) {
    let source = match images {
        [image] => Some(&image.source),
        _ => None,
    };
    match serde_json::to_string(&ArchiveJson { source, target, images, result }) {
        Ok(line) => _ = printer.data(&line),
        Err(error) => printer.error(&format!("the result cannot be written as JSON: {error}"), None),
    }
}
