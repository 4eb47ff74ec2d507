//! Lists the members of a tar in one pass over its headers: where the content of each begins, and what links point at.

use std::collections::HashMap;
use std::io;

use tar::{EntryType, Header};

use super::super::error::LayoutError;
use super::super::read_at::{ReadAt, read_exact_at};
use imgsync_oci::error::ErrorKind;
use imgsync_oci::sanitize::sanitize_within;

const BLOCK_BYTES: u64 = 512;
/// Upper limit for a long name or a set of PAX records.
const MAX_EXTENSION_BYTES: u64 = 1 << 20;
/// Upper limit for the memory of an index: about 1.5 million blobs.
const MAX_INDEX_BYTES: usize = 256 << 20;
/// Estimate of what a member needs in memory beside its name.
const MEMBER_BYTES: usize = 96;
/// Links in a row that are followed.
const MAX_LINKS: usize = 32;
/// Maximum number of characters of a name in messages.
const MAX_NAME_CHARS: usize = 300;

/// Bytes of a tar, read from its beginning.
pub(super) trait TarInput {
    /// Returns the offset of the next byte.
    fn position(&self) -> u64;

    /// Fills a buffer. Returns `false` if the input ended before its first byte.
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<bool>;

    /// Skips bytes. Fails with [`io::ErrorKind::UnexpectedEof`] if there are fewer.
    fn skip(&mut self, bytes: u64) -> io::Result<()>;
}

/// Reads a tar from a file, without the contents that are skipped.
pub(super) struct SeekingInput<'a> {
    source: &'a dyn ReadAt,
    position: u64,
}

impl SeekingInput<'_> {
    pub(super) fn new(source: &dyn ReadAt) -> SeekingInput<'_> {
        SeekingInput { source, position: 0 }
    }
}

impl TarInput for SeekingInput<'_> {
    fn position(&self) -> u64 {
        self.position
    }

    fn read(&mut self, buffer: &mut [u8]) -> io::Result<bool> {
        if self.position >= self.source.len() {
            return Ok(false);
        }
        read_exact_at(self.source, buffer, self.position)?;
        self.position += buffer.len() as u64;
        Ok(true)
    }

    fn skip(&mut self, bytes: u64) -> io::Result<()> {
        match self.position.checked_add(bytes).filter(|end| *end <= self.source.len()) {
            Some(end) => {
                self.position = end;
                Ok(())
            }
            None => Err(io::ErrorKind::UnexpectedEof.into()),
        }
    }
}

/// Content of a member.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct TarContent {
    /// Offset of the first byte.
    pub(super) start: u64,
    /// Size in bytes.
    pub(super) size: u64,
}

/// A member that the scanner found.
#[derive(Debug)]
pub(super) struct TarMember {
    /// Path without `./`.
    pub(super) path: String,
    pub(super) kind: TarMemberKind,
}

#[derive(Debug)]
pub(super) enum TarMemberKind {
    File(TarContent),
    /// A link to another member, by its path.
    Link(String),
    /// A folder, or something that holds no content.
    Other,
}

/// Reads the headers of a tar one after another.
pub(super) struct TarScanner<I> {
    input: I,
    /// Bytes of the last member's content and padding, not yet skipped, and its path.
    unread: Option<(u64, String)>,
    members: u64,
    /// Whether the end of the archive was marked, as by every program that finished writing.
    has_end_marker: bool,
}

/// Names and sizes from the records before a header.
#[derive(Default)]
struct Extensions {
    path: Option<Vec<u8>>,
    link: Option<Vec<u8>>,
    size: Option<u64>,
}

impl<I: TarInput> TarScanner<I> {
    pub(super) fn new(input: I) -> TarScanner<I> {
        TarScanner { input, unread: None, members: 0, has_end_marker: false }
    }

    pub(super) fn has_end_marker(&self) -> bool {
        self.has_end_marker
    }

    /// Returns the next member; `None` at the end. Content that was not read is skipped.
    pub(super) fn next(&mut self) -> Result<Option<TarMember>, LayoutError> {
        if let Some((bytes, path)) = self.unread.take() {
            let at = self.input.position();
            self.input.skip(bytes).map_err(|error| truncated_or_io(error, &path, at, Some(bytes)))?;
        }
        let mut extensions = Extensions::default();
        loop {
            let at = self.input.position();
            let Some(header) = self.read_header()? else { return Ok(None) };
            let kind = header.entry_type();
            let header_size = header.entry_size().map_err(|_| self.damaged_header(at))?;
            match kind {
                EntryType::GNULongName => extensions.path = Some(self.read_extension(at, header_size)?),
                EntryType::GNULongLink => extensions.link = Some(self.read_extension(at, header_size)?),
                EntryType::XHeader => {
                    let records = self.read_extension(at, header_size)?;
                    self.read_pax(at, &records, &mut extensions)?;
                }
                EntryType::XGlobalHeader => _ = self.read_extension(at, header_size)?,
                _ => {
                    self.members += 1;
                    return self.read_member(at, &header, header_size, extensions).map(Some);
                }
            }
        }
    }

    fn read_member(
        &mut self,
        at: u64,
        header: &Header,
        header_size: u64,
        extensions: Extensions,
    ) -> Result<TarMember, LayoutError> {
        let raw_path = extensions.path.unwrap_or_else(|| header.path_bytes().into_owned());
        let raw_path = trim_nul(&raw_path);
        let shown = String::from_utf8_lossy(raw_path).into_owned();
        let is_folder = raw_path.last() == Some(&b'/');
        let path = clean_path(&shown).map_err(|reason| refused_member(&shown, at, reason))?;
        let kind = match header.entry_type() {
            EntryType::Regular | EntryType::Continuous if is_folder => TarMemberKind::Other,
            EntryType::Regular | EntryType::Continuous => {
                let size = extensions.size.unwrap_or(header_size);
                TarMemberKind::File(TarContent { start: self.input.position(), size })
            }
            EntryType::Link | EntryType::Symlink => {
                let link = match extensions.link {
                    Some(link) => link,
                    None => header.link_name_bytes().unwrap_or_default().into_owned(),
                };
                let link = String::from_utf8_lossy(trim_nul(&link)).into_owned();
                let target = match header.entry_type() {
                    EntryType::Symlink => resolve_symlink(&path, &link),
                    _ => clean_path(&link).ok(),
                };
                let leaves =
                    || refused_member(&shown, at, &format!("is a link out of the archive, to `{}`", shorten(&link)));
                TarMemberKind::Link(target.ok_or_else(leaves)?)
            }
            EntryType::Directory => TarMemberKind::Other,
            EntryType::Char | EntryType::Block | EntryType::Fifo => {
                return Err(refused_member(&shown, at, "is a device or FIFO, which no image archive holds"));
            }
            EntryType::GNUSparse => {
                return Err(LayoutError::new(
                    ErrorKind::Unsupported,
                    format!("member `{}` at offset {at} is a sparse file", shorten(&shown)),
                )
                .with_hint("write the archive again without `tar --sparse`"));
            }
            // Of a type that only its program knows: it may have content, which is skipped.
            _ => {
                let content = TarContent { start: self.input.position(), size: extensions.size.unwrap_or(header_size) };
                self.set_unread(&shown, at, content)?;
                TarMemberKind::Other
            }
        };
        if let TarMemberKind::File(content) = &kind {
            self.set_unread(&shown, at, *content)?;
        }
        Ok(TarMember { path, kind })
    }

    fn set_unread(&mut self, shown: &str, at: u64, content: TarContent) -> Result<(), LayoutError> {
        let padded = content.size.checked_next_multiple_of(BLOCK_BYTES);
        match padded.filter(|padded| content.start.checked_add(*padded).is_some()) {
            Some(padded) => {
                self.unread = Some((padded, shown.to_owned()));
                Ok(())
            }
            None => Err(refused_member(shown, at, &format!("has an impossible size, {} bytes", content.size))),
        }
    }

    /// Fills a buffer with the next bytes of the member that was returned last.
    pub(super) fn read_part(&mut self, path: &str, buffer: &mut [u8]) -> Result<(), LayoutError> {
        let at = self.input.position();
        let left = self.unread.as_ref().map(|(left, _)| *left);
        self.read_content(buffer).map_err(|error| truncated_or_io(error, path, at, left))
    }

    /// Fills a buffer as [`TarScanner::read_part`] does, with plain errors.
    pub(super) fn read_content(&mut self, buffer: &mut [u8]) -> io::Result<()> {
        if !self.input.read(buffer)? && !buffer.is_empty() {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        self.record_read(buffer.len() as u64);
        Ok(())
    }

    /// Skips the next bytes of the member that was returned last.
    pub(super) fn skip_content(&mut self, bytes: u64) -> io::Result<()> {
        self.input.skip(bytes)?;
        self.record_read(bytes);
        Ok(())
    }

    fn record_read(&mut self, bytes: u64) {
        if let Some((left, _)) = &mut self.unread {
            *left = left.saturating_sub(bytes);
        }
    }

    /// Returns the offset of the next byte.
    pub(super) fn position(&self) -> u64 {
        self.input.position()
    }

    pub(super) fn input_mut(&mut self) -> &mut I {
        &mut self.input
    }

    pub(super) fn into_input(self) -> I {
        self.input
    }

    /// Reads the next header; `None` at the end of the archive.
    fn read_header(&mut self) -> Result<Option<Header>, LayoutError> {
        let at = self.input.position();
        let mut header = Header::new_old();
        let was_read = self.input.read(header.as_mut_bytes());
        if !was_read.map_err(|error| truncated_or_io(error, "", at, None))? {
            return match self.members {
                0 if at == 0 => Err(not_a_tar("the file is empty")),
                _ => Ok(None),
            };
        }
        if header.as_bytes().iter().all(|byte| *byte == 0) {
            self.has_end_marker = true;
            return Ok(None);
        }
        let sum: u32 = header
            .as_bytes()
            .iter()
            .enumerate()
            .map(|(at, byte)| match at {
                // The checksum itself counts as spaces.
                148..156 => u32::from(b' '),
                _ => u32::from(*byte),
            })
            .sum();
        match header.cksum() {
            Ok(found) if found == sum => Ok(Some(header)),
            _ if at == 0 => Err(not_a_tar("it does not begin with the header of a tar")),
            _ => Err(self.damaged_header(at)),
        }
    }

    fn damaged_header(&self, at: u64) -> LayoutError {
        let detail = format!("the header of member {} at offset {at} is damaged", self.members + 1);
        LayoutError::new(ErrorKind::Corrupt, detail).with_hint("the archive is damaged; copy or create it again")
    }

    /// Reads the content of a record that describes the next member.
    fn read_extension(&mut self, at: u64, size: u64) -> Result<Vec<u8>, LayoutError> {
        if size > MAX_EXTENSION_BYTES {
            let detail = format!("the name of member {} at offset {at} has {size} bytes", self.members + 1);
            return Err(LayoutError::new(ErrorKind::InvalidResponse, detail));
        }
        let mut bytes = vec![0; usize::try_from(size.next_multiple_of(BLOCK_BYTES)).unwrap_or_default()];
        let was_read = self.input.read(&mut bytes).and_then(|was_read| match was_read || bytes.is_empty() {
            true => Ok(()),
            false => Err(io::ErrorKind::UnexpectedEof.into()),
        });
        was_read.map_err(|error| truncated_or_io(error, "", at, Some(size)))?;
        bytes.truncate(usize::try_from(size).unwrap_or_default());
        Ok(bytes)
    }

    fn read_pax(&self, at: u64, records: &[u8], extensions: &mut Extensions) -> Result<(), LayoutError> {
        let mut rest = records;
        while !rest.is_empty() {
            let (key, value, later) = split_pax_record(rest).ok_or_else(|| self.damaged_header(at))?;
            rest = later;
            match key {
                b"path" => extensions.path = Some(value.to_vec()),
                b"linkpath" => extensions.link = Some(value.to_vec()),
                b"size" => {
                    let size = std::str::from_utf8(value).ok().and_then(|text| text.parse().ok());
                    extensions.size = Some(size.ok_or_else(|| self.damaged_header(at))?);
                }
                // A sparse file in the newer form.
                key if key.starts_with(b"GNU.sparse.") => {
                    let detail = format!("member {} at offset {at} is a sparse file", self.members + 1);
                    return Err(LayoutError::new(ErrorKind::Unsupported, detail)
                        .with_hint("write the archive again without `tar --sparse`"));
                }
                _ => {}
            }
        }
        Ok(())
    }
}

/// Splits a record `LENGTH KEY=VALUE\n` off (POSIX, pax(1), "pax Extended Header"). Values such as those of extended
/// attributes may be binary: the `tar` crate ends them at the first newline.
fn split_pax_record(records: &[u8]) -> Option<(&[u8], &[u8], &[u8])> {
    let space = records.iter().take(20).position(|byte| *byte == b' ')?;
    let length: usize = std::str::from_utf8(&records[..space]).ok()?.parse().ok()?;
    let (record, rest) = records.split_at_checked(length)?;
    let record = record.get(space + 1..)?.strip_suffix(b"\n")?;
    let equals = record.iter().position(|byte| *byte == b'=')?;
    Some((&record[..equals], &record[equals + 1..], rest))
}

/// Members of a tar by path.
#[derive(Debug, Default)]
pub(super) struct TarIndex {
    members: HashMap<Box<str>, IndexedMember>,
    memory: usize,
    has_end_marker: bool,
}

#[derive(Debug)]
enum IndexedMember {
    File(TarContent),
    Link(Box<str>),
}

impl TarIndex {
    /// Reads all headers.
    pub(super) fn scan<I: TarInput>(scanner: &mut TarScanner<I>) -> Result<TarIndex, LayoutError> {
        let mut index = TarIndex::default();
        while let Some(member) = scanner.next()? {
            index.insert(&member)?;
        }
        index.has_end_marker = scanner.has_end_marker();
        Ok(index)
    }

    pub(super) fn insert(&mut self, member: &TarMember) -> Result<(), LayoutError> {
        let (indexed, link_bytes) = match &member.kind {
            TarMemberKind::File(content) => (IndexedMember::File(*content), 0),
            TarMemberKind::Link(target) => (IndexedMember::Link(target.as_str().into()), target.len()),
            TarMemberKind::Other => return Ok(()),
        };
        self.memory += member.path.len() + link_bytes + MEMBER_BYTES;
        if self.memory > MAX_INDEX_BYTES {
            let detail = format!("it has too many members: {} and more", self.members.len());
            return Err(LayoutError::new(ErrorKind::InvalidResponse, detail)
                .with_hint("split the images into several archives"));
        }
        if self.members.insert(member.path.as_str().into(), indexed).is_some() {
            let detail = format!("it has two members with the name `{}`", shorten(&member.path));
            return Err(LayoutError::new(ErrorKind::InvalidResponse, detail)
                .with_hint("write the archive again: which of them counts is unclear"));
        }
        Ok(())
    }

    /// Finds a file by its path, following links; `None` if it does not exist.
    pub(super) fn find(&self, path: &str) -> Result<Option<TarContent>, LayoutError> {
        let mut at = path;
        for _ in 0..MAX_LINKS {
            match self.members.get(at) {
                Some(IndexedMember::File(content)) => return Ok(Some(*content)),
                Some(IndexedMember::Link(target)) => at = target,
                None => return Ok(None),
            }
        }
        let detail = format!("member `{}` is a link that leads in a circle", shorten(path));
        Err(LayoutError::new(ErrorKind::Insecure, detail))
    }

    /// Iterates over the paths of all files and links, in no order.
    pub(super) fn paths(&self) -> impl Iterator<Item = &str> {
        self.members.keys().map(|path| &**path)
    }

    pub(super) fn set_end_marker(&mut self, has_end_marker: bool) {
        self.has_end_marker = has_end_marker;
    }

    /// Whether the end of the archive was marked.
    pub(super) fn has_end_marker(&self) -> bool {
        self.has_end_marker
    }
}

fn trim_nul(bytes: &[u8]) -> &[u8] {
    &bytes[..bytes.iter().position(|byte| *byte == 0).unwrap_or(bytes.len())]
}

pub(super) fn shorten(name: &str) -> String {
    sanitize_within(name, MAX_NAME_CHARS).into_owned()
}

/// Removes `.` and doubled slashes from a path. Refuses paths that lead out of the archive.
pub(super) fn clean_path(path: &str) -> Result<String, &'static str> {
    if path.starts_with('/') {
        return Err("has an absolute path");
    }
    let mut parts = Vec::new();
    for part in path.split('/') {
        match part {
            "" | "." => {}
            ".." => return Err("has `..` in its path"),
            part => parts.push(part),
        }
    }
    Ok(parts.join("/"))
}

/// Resolves the target of a symbolic link, relative to the folder of the link; `None` if it leads out of the archive.
fn resolve_symlink(path: &str, target: &str) -> Option<String> {
    if target.starts_with('/') {
        return None;
    }
    let mut parts: Vec<&str> = path.split('/').collect();
    parts.pop();
    for part in target.split('/') {
        match part {
            "" | "." => {}
            ".." => _ = parts.pop()?,
            part => parts.push(part),
        }
    }
    Some(parts.join("/"))
}

fn not_a_tar(reason: &str) -> LayoutError {
    LayoutError::new(ErrorKind::Invalid, format!("not an archive: {reason}"))
        .with_hint("an archive is a tar file, plain or compressed with gzip, zstd or xz")
}

fn refused_member(path: &str, at: u64, reason: &str) -> LayoutError {
    let detail = format!("member `{}` at offset {at} {reason}", shorten(path));
    LayoutError::new(ErrorKind::Insecure, detail)
        .with_hint("the archive is damaged or hostile: do not trust its content")
}

fn truncated_or_io(error: io::Error, path: &str, at: u64, wanted: Option<u64>) -> LayoutError {
    if error.kind() != io::ErrorKind::UnexpectedEof {
        return LayoutError::reading(path, error);
    }
    let place = match path {
        "" => format!("at offset {at}"),
        path => format!("in member `{}` at offset {at}", shorten(path)),
    };
    let detail = match wanted {
        Some(wanted) => format!("the archive is truncated {place}: {wanted} more bytes should follow"),
        None => format!("the archive is truncated {place}"),
    };
    LayoutError::new(ErrorKind::Corrupt, detail).with_hint("copy or create the archive again")
}
