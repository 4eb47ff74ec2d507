//! Image archives: layouts whose files are members of a tar. They are only read.

mod compression;
mod docker;
mod forward;
mod gzip;
mod kept;
mod sequential;
mod tar_index;
mod turns;

use std::collections::HashMap;
use std::sync::Arc;

use bytes::Bytes;

use self::compression::{SourceReader, TarCompression};
use self::forward::{ForwardArchive, blob_digest};
use self::gzip::GzipScan;
use self::sequential::{SequentialFile, scan_stream};
use self::tar_index::{SeekingInput, TarContent, TarIndex, TarScanner, shorten};
pub use self::turns::ReadTurn;
use self::turns::ReadTurns;
use super::docker_manifest::MANIFEST_JSON;
use super::error::{LayoutError, SAVE_STREAM_HINT};
use super::index::LayoutIndex;
use super::index_file::{INDEX_JSON, MAX_INDEX_BYTES};
use super::marker_file::{MAX_OCI_LAYOUT_BYTES, check_version_text};
use super::pipe_reader::PipeReader;
use super::read_at::{FileSection, InlineFile, ReadAt, read_all, read_exact_at};
use super::{BLOBS, OCI_LAYOUT};
use imgsync_oci::error::ErrorKind;
use imgsync_oci::{ArchiveFormat, Digest};

/// What Docker wrote before `manifest.json`, and still writes beside it.
const REPOSITORIES: &str = "repositories";

/// Files of an archive.
#[derive(Debug)]
pub(super) struct ArchiveFiles {
    source: Arc<dyn ReadAt>,
    members: TarIndex,
    content: ArchiveContent,
    index: Arc<LayoutIndex>,
    /// Turns to read, if it can only be read forward.
    turns: Option<Arc<ReadTurns>>,
    /// The stream that it is read from, once. It has the members.
    stream: Option<Arc<ForwardArchive>>,
}

/// Where the blobs are.
#[derive(Debug)]
enum ArchiveContent {
    /// In the folder of the layout within the archive, with a slash at its end; empty for the root.
    Oci { root: String },
    /// In members of any name. The manifests were made.
    Docker { manifests: HashMap<Digest, Bytes>, blobs: HashMap<Digest, TarContent>, also_holds_layout: bool },
}

impl ArchiveFiles {
    /// Opens an archive in a format.
    pub(super) fn open(source: Arc<dyn ReadAt>, format: ArchiveFormat) -> Result<ArchiveFiles, LayoutError> {
        let (source, members, turns) = scan(source)?;
        let files = match format {
            ArchiveFormat::Oci => ArchiveFiles::open_oci(source, members)?,
            ArchiveFormat::Docker => {
                let images = docker::read_images(&source, &members)?;
                let also_holds_layout = members.find(OCI_LAYOUT)?.is_some() && members.find(INDEX_JSON)?.is_some();
                let content =
                    ArchiveContent::Docker { manifests: images.manifests, blobs: images.blobs, also_holds_layout };
                ArchiveFiles { source, members, content, index: Arc::new(images.index), turns: None, stream: None }
            }
        };
        Ok(ArchiveFiles { turns, ..files })
    }

    /// Opens an image layout that is read once, forward.
    pub(super) fn open_stream(input: PipeReader) -> Result<ArchiveFiles, LayoutError> {
        let stream = ForwardArchive::open(input)?;
        let source: Arc<dyn ReadAt> = stream.clone();
        let (root, index) = stream.with_members(|members| read_layout(&source, members))?;
        let (content, members) = (ArchiveContent::Oci { root }, TarIndex::default());
        Ok(ArchiveFiles { source, members, content, index, turns: None, stream: Some(stream) })
    }

    fn open_oci(source: Arc<dyn ReadAt>, members: TarIndex) -> Result<ArchiveFiles, LayoutError> {
        let (root, index) = read_layout(&source, &members)?;
        let content = ArchiveContent::Oci { root };
        Ok(ArchiveFiles { source, members, content, index, turns: None, stream: None })
    }

    #[cfg(test)]
    pub(super) fn member_paths(&self) -> impl Iterator<Item = &str> {
        self.members.paths()
    }

    pub(super) fn index(&self) -> &Arc<LayoutIndex> {
        &self.index
    }

    /// Whether the manifests were made, because the format has none.
    pub(super) fn has_made_manifests(&self) -> bool {
        matches!(self.content, ArchiveContent::Docker { .. })
    }

    /// Whether the manifests were made although the archive also holds an image layout.
    pub(super) fn also_holds_layout(&self) -> bool {
        matches!(self.content, ArchiveContent::Docker { also_holds_layout: true, .. })
    }

    /// Opens a blob; `None` if it does not exist.
    pub(super) fn open_blob(&self, digest: &Digest) -> Result<Option<Arc<dyn ReadAt>>, LayoutError> {
        if let ArchiveContent::Docker { manifests, .. } = &self.content
            && let Some(bytes) = manifests.get(digest)
        {
            return Ok(Some(Arc::new(InlineFile::new(bytes.clone()))));
        }
        let Some(content) = self.find_blob(digest)? else { return Ok(None) };
        Ok(Some(Arc::new(FileSection::new(self.source.clone(), content.start, content.size))))
    }

    fn find_blob(&self, digest: &Digest) -> Result<Option<TarContent>, LayoutError> {
        match &self.content {
            ArchiveContent::Oci { root } => {
                let path = format!("{root}{BLOBS}/{}/{}", digest.algorithm().as_str(), digest.hex());
                match &self.stream {
                    Some(stream) => stream.with_members(|members| members.find(&path)),
                    None => self.members.find(&path),
                }
            }
            ArchiveContent::Docker { blobs, .. } => Ok(blobs.get(digest).copied()),
        }
    }

    /// Whether the archive can only be read forward.
    pub(super) fn is_sequential(&self) -> bool {
        self.turns.is_some()
    }

    /// Returns the turns to read, and the offset of a blob, if the archive can only be read forward.
    pub(super) fn turns_for(&self, digest: &Digest) -> Option<(&Arc<ReadTurns>, u64)> {
        let turns = self.turns.as_ref()?;
        Some((turns, self.find_blob(digest).ok()??.start))
    }

    /// Whether the archive is read from a stream, once.
    pub(super) fn is_stream(&self) -> bool {
        self.stream.is_some()
    }

    /// Moves on to the next blob of the stream; `None` at its end.
    pub(super) fn advance_stream(&self) -> Result<Option<Digest>, LayoutError> {
        let (Some(stream), ArchiveContent::Oci { root }) = (&self.stream, &self.content) else { return Ok(None) };
        while let Some(path) = stream.advance()? {
            if let Some((_, digest)) = blob_digest(&path).filter(|(folder, _)| folder == root) {
                return Ok(Some(digest));
            }
        }
        Ok(None)
    }

    /// Whether a blob of a stream is in memory.
    pub(super) fn is_in_memory(&self, digest: &Digest) -> bool {
        let Some(stream) = &self.stream else { return false };
        self.find_blob(digest).is_ok_and(|content| content.is_some_and(|content| stream.is_kept(content)))
    }

    /// Returns the error of content that was not found, if it may still come out of a pipe.
    pub(super) fn unreached_content(&self) -> Option<LayoutError> {
        let _unfinished = self.stream.as_ref().filter(|stream| !stream.is_at_end())?;
        let detail = "it does not come before the layers of the archive, which is read from a pipe";
        Some(LayoutError::new(ErrorKind::Unsupported, detail).with_hint(SAVE_STREAM_HINT))
    }

    /// Returns the error of content that was not found.
    pub(super) fn missing_content(&self) -> LayoutError {
        if let Some(error) = self.unreached_content() {
            return error;
        }
        let has_end_marker = match &self.stream {
            Some(stream) => stream.with_members(TarIndex::has_end_marker),
            None => self.members.has_end_marker(),
        };
        LayoutError::new(ErrorKind::NotFound, "not found in the archive").with_hint(match has_end_marker {
            true => "the archive is incomplete; create it again",
            false => "the archive was cut off; copy or create it again",
        })
    }
}

type ScannedArchive = (Arc<dyn ReadAt>, TarIndex, Option<Arc<ReadTurns>>);

/// Lists the members of an archive, decoding it if it is compressed.
fn scan(source: Arc<dyn ReadAt>) -> Result<ScannedArchive, LayoutError> {
    let mut start = [0; 6];
    let length = usize::try_from(source.len().min(start.len() as u64)).unwrap_or_default();
    read_exact_at(&*source, &mut start[..length], 0).map_err(|error| LayoutError::reading("", error))?;
    match TarCompression::sniff(&start[..length]) {
        None => {
            let mut scanner = TarScanner::new(SeekingInput::new(&*source));
            let members = TarIndex::scan(&mut scanner)?;
            Ok((source, members, None))
        }
        Some(TarCompression::Gzip) => {
            let (members, kept, scan) = scan_stream(GzipScan::new(source))?;
            let file = scan.finish(kept).map_err(|error| LayoutError::reading("", error))?;
            Ok((Arc::new(file), members, None))
        }
        Some(compression) => {
            let reader = compression.decode(Box::new(SourceReader::new(source.clone())));
            let (members, kept, mut reader) = scan_stream(reader)?;
            // To the end, where the checksums are.
            std::io::copy(&mut reader, &mut std::io::sink()).map_err(|error| LayoutError::reading("", error))?;
            let file = SequentialFile::new(source, compression, kept);
            Ok((Arc::new(file), members, Some(Arc::new(ReadTurns::default()))))
        }
    }
}

/// Finds the layout, and reads its version and its index.
fn read_layout(source: &Arc<dyn ReadAt>, members: &TarIndex) -> Result<(String, Arc<LayoutIndex>), LayoutError> {
    let root = find_root(members)?;
    let read = |name: &str, limit: u64| -> Result<Option<Vec<u8>>, LayoutError> {
        let path = format!("{root}{name}");
        let Some(content) = members.find(&path)? else { return Ok(None) };
        read_member(source, &path, content, limit).map(Some)
    };
    // hauler leaves it out for containerd.
    if let Some(text) = read(OCI_LAYOUT, MAX_OCI_LAYOUT_BYTES)? {
        check_version_text(&text)?;
    }
    let text = read(INDEX_JSON, MAX_INDEX_BYTES)?
        .ok_or_else(|| LayoutError::new(ErrorKind::InvalidResponse, format!("{INDEX_JSON} is missing")))?;
    let index = Arc::new(LayoutIndex::parse(&text)?);
    Ok((root, index))
}

/// Reads a whole member of limited size.
fn read_member(source: &Arc<dyn ReadAt>, path: &str, content: TarContent, limit: u64) -> Result<Vec<u8>, LayoutError> {
    if content.size > limit {
        let detail = format!("member `{}` has {} bytes, more than {limit}", shorten(path), content.size);
        return Err(LayoutError::new(ErrorKind::InvalidResponse, detail));
    }
    let section = FileSection::new(source.clone(), content.start, content.size);
    read_all(&section).map_err(|error| LayoutError::reading(path, error))
}

/// Finds the folder of the layout: the root, or the only folder that has a layout.
fn find_root(members: &TarIndex) -> Result<String, LayoutError> {
    if members.find(OCI_LAYOUT)?.is_some() || members.find(INDEX_JSON)?.is_some() {
        return Ok(String::new());
    }
    let suffix = format!("/{OCI_LAYOUT}");
    let mut roots = members.paths().filter_map(|path| path.strip_suffix(&suffix));
    match (roots.next(), roots.next()) {
        (Some(root), None) => Ok(format!("{root}/")),
        (Some(_), Some(_)) => {
            Err(LayoutError::new(ErrorKind::Invalid, "it has several image layouts in folders of their own")
                .with_hint("unpack it with tar and use the folders: oci:FOLDER"))
        }
        (None, _) if members.find(MANIFEST_JSON)?.is_some() => {
            Err(LayoutError::new(ErrorKind::Invalid, format!("no member `{OCI_LAYOUT}`, but `{MANIFEST_JSON}`"))
                .with_hint("it is in the format of `docker save`: use docker-archive:FILE"))
        }
        (None, _) if members.find(REPOSITORIES)?.is_some() => Err(docker::before_manifest_json()),
        (None, _) => Err(LayoutError::new(
            ErrorKind::Invalid,
            format!("it is a tar, but not an image archive: no member `{OCI_LAYOUT}`"),
        )),
    }
}
