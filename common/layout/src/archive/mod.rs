//! Image archives: layouts whose files are members of a tar. They are only read.

mod tar_index;

use std::sync::Arc;

use self::tar_index::{SeekingInput, TarIndex, TarScanner};
use super::error::LayoutError;
use super::index::LayoutIndex;
use super::index_file::{INDEX_JSON, MAX_INDEX_BYTES};
use super::marker_file::{MAX_OCI_LAYOUT_BYTES, check_version_text};
use super::read_at::{FileSection, ReadAt, read_all};
use super::{BLOBS, OCI_LAYOUT};
use imgsync_oci::Digest;
use imgsync_oci::error::ErrorKind;

const MANIFEST_JSON: &str = "manifest.json";

/// Files of an archive.
#[derive(Debug)]
pub(super) struct ArchiveFiles {
    source: Arc<dyn ReadAt>,
    members: TarIndex,
    /// Folder of the layout within the archive, with a slash at its end; empty for the root.
    root: String,
    index: Arc<LayoutIndex>,
}

impl ArchiveFiles {
    /// Opens an OCI archive.
    pub(super) fn open(source: Arc<dyn ReadAt>) -> Result<ArchiveFiles, LayoutError> {
        let mut scanner = TarScanner::new(SeekingInput::new(&*source));
        let members = TarIndex::scan(&mut scanner)?;
        let root = find_root(&members)?;
        let read = |name: &str, limit: u64| -> Result<Option<Vec<u8>>, LayoutError> {
            let path = format!("{root}{name}");
            let Some(content) = members.find(&path)? else { return Ok(None) };
            if content.size > limit {
                let detail = format!("{path} is larger than {} MiB", limit >> 20);
                return Err(LayoutError::new(ErrorKind::InvalidResponse, detail));
            }
            let section = FileSection::new(source.clone(), content.start, content.size);
            read_all(&section).map(Some).map_err(|error| LayoutError::io(path.as_ref(), "reading", error))
        };
        // hauler leaves it out for containerd.
        if let Some(text) = read(OCI_LAYOUT, MAX_OCI_LAYOUT_BYTES)? {
            check_version_text(&text)?;
        }
        let text = read(INDEX_JSON, MAX_INDEX_BYTES)?
            .ok_or_else(|| LayoutError::new(ErrorKind::InvalidResponse, format!("{INDEX_JSON} is missing")))?;
        let index = Arc::new(LayoutIndex::parse(&text)?);
        Ok(ArchiveFiles { source, members, root, index })
    }

    pub(super) fn index(&self) -> &Arc<LayoutIndex> {
        &self.index
    }

    /// Opens a blob; `None` if it does not exist.
    pub(super) fn open_blob(&self, digest: &Digest) -> Result<Option<Arc<dyn ReadAt>>, LayoutError> {
        let path = format!("{}{BLOBS}/{}/{}", self.root, digest.algorithm().as_str(), digest.hex());
        let found = self.members.find(&path)?;
        Ok(found.map(|content| {
            let section: Arc<dyn ReadAt> = Arc::new(FileSection::new(self.source.clone(), content.start, content.size));
            section
        }))
    }

    /// Returns what a missing blob may be due to.
    pub(super) fn missing_blob_hint(&self) -> &'static str {
        match self.members.has_end_marker() {
            true => "the archive is incomplete; create it again",
            false => "the archive was cut off; copy or create it again",
        }
    }
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
            Err(LayoutError::new(ErrorKind::InvalidResponse, "it has several image layouts in folders of their own")
                .with_hint("unpack it with tar and use the folders: oci:FOLDER"))
        }
        (None, _) if members.find(MANIFEST_JSON)?.is_some() => Err(LayoutError::new(
            ErrorKind::InvalidResponse,
            format!("no member `{OCI_LAYOUT}`, but `{MANIFEST_JSON}`"),
        )
        .with_hint("it is in the format of `docker save`: use docker-archive:FILE")),
        (None, _) => Err(LayoutError::new(
            ErrorKind::InvalidResponse,
            format!("it is a tar, but not an image archive: no member `{OCI_LAYOUT}`"),
        )),
    }
}
