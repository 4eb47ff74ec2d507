//! Archives that are read once, forward, as they come out of a pipe. What comes before the first layer is kept in memory:
//! the index, and the manifests. Everything else is read while it passes, or never.

use std::fmt;
use std::io::{self, Read};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::super::BLOBS;
use super::super::error::{LayoutError, SAVE_STREAM_HINT};
use super::super::index_file::{INDEX_JSON, MAX_INDEX_BYTES};
use super::super::pipe_reader::{PipeFailure, PipeReader};
use super::super::read_at::ReadAt;
use super::compression::TarCompression;
use super::kept::{KeptContents, MAX_KEPT_FILE_BYTES};
use super::sequential::StreamInput;
use super::tar_index::{TarContent, TarIndex, TarMember, TarMemberKind, TarScanner, shorten};
use imgsync_oci::Digest;
use imgsync_oci::error::ErrorKind;

/// The last bytes of a blob that can be read again: an upload that a registry rejects at its beginning is repeated. More
/// than the sockets on the way hold.
const RECENT_BYTES: usize = 8 << 20;
/// Upper limit for what follows the end of an archive: padding to whole records.
const MAX_TRAILING_BYTES: u64 = 16 << 20;
const MAX_MAGIC_BYTES: usize = 6;

type ForwardInput = StreamInput<Box<dyn Read + Send>>;

/// An archive that is read forward.
pub(super) struct ForwardArchive {
    /// What came before the first layer.
    kept: KeptContents,
    /// All members so far.
    members: Mutex<TarIndex>,
    is_at_end: AtomicBool,
    state: Mutex<ForwardState>,
}

/// Where the archive is read. Locked while the pipe is waited for.
struct ForwardState {
    scanner: TarScanner<ForwardInput>,
    /// The member whose content comes next.
    current: Option<TarMember>,
    /// Whether [`ForwardArchive::advance`] has yet to return it.
    is_new: bool,
    recent: RecentBytes,
    failure: PipeFailure,
    /// A read has failed: what would come next is not known.
    is_broken: bool,
}

/// The bytes that were read last.
struct RecentBytes {
    bytes: Vec<u8>,
    /// Offset in the archive of the first byte that can be read again.
    start: u64,
}

impl RecentBytes {
    /// Records bytes that were read at an offset.
    fn record(&mut self, bytes: &[u8], offset: u64) {
        self.bytes.resize(RECENT_BYTES, 0);
        let end = offset + bytes.len() as u64;
        self.start = self.start.max(end.saturating_sub(RECENT_BYTES as u64));
        let mut at = offset;
        for part in split_at_wrap(bytes, offset) {
            let slot = slot_of(at);
            self.bytes[slot..slot + part.len()].copy_from_slice(part);
            at += part.len() as u64;
        }
    }

    /// Reads bytes again that end at `end`. Returns how many; `None` if they are gone.
    fn read_again(&self, buffer: &mut [u8], offset: u64, end: u64) -> Option<usize> {
        if offset < self.start || self.bytes.is_empty() {
            return None;
        }
        let slot = slot_of(offset);
        let left = usize::try_from(end - offset).unwrap_or(usize::MAX);
        let length = buffer.len().min(left).min(RECENT_BYTES - slot);
        buffer[..length].copy_from_slice(&self.bytes[slot..slot + length]);
        Some(length)
    }
}

fn slot_of(offset: u64) -> usize {
    usize::try_from(offset % RECENT_BYTES as u64).unwrap_or_default()
}

/// Splits bytes where the buffer begins again.
fn split_at_wrap(bytes: &[u8], offset: u64) -> impl Iterator<Item = &[u8]> {
    let (first, rest) = bytes.split_at(bytes.len().min(RECENT_BYTES - slot_of(offset)));
    std::iter::once(first).chain(rest.chunks(RECENT_BYTES))
}

impl fmt::Debug for ForwardArchive {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("ForwardArchive")
    }
}

impl ForwardArchive {
    /// Reads an archive up to its first blob that is not kept in memory. Fails if that comes before the index.
    pub(super) fn open(input: PipeReader) -> Result<Arc<ForwardArchive>, LayoutError> {
        let failure = input.failure();
        let reader = decode(input).map_err(|error| failure.explain(LayoutError::reading("", error)))?;
        let mut state = ForwardState {
            scanner: TarScanner::new(StreamInput::new(reader)),
            current: None,
            is_new: false,
            recent: RecentBytes { bytes: Vec::new(), start: 0 },
            failure,
            is_broken: false,
        };
        let (mut members, mut kept, mut has_index) = (TarIndex::default(), KeptContents::default(), false);
        let is_at_end = loop {
            let Some(member) = state.next_member(&mut members)? else { break true };
            let is_index = member.path == INDEX_JSON || member.path.ends_with(&format!("/{INDEX_JSON}"));
            let limit = if is_index { MAX_INDEX_BYTES } else { MAX_KEPT_FILE_BYTES };
            let is_kept = kept.keep(&mut state.scanner, &member, limit);
            let is_kept = is_kept.map_err(|error| state.failure.explain(error))?;
            has_index |= is_kept && is_index;
            if is_kept || !matches!(member.kind, TarMemberKind::File(_)) {
                continue;
            }
            if is_index {
                let detail = format!("`{}` is no JSON of at most {} MiB", shorten(&member.path), limit >> 20);
                return Err(LayoutError::new(ErrorKind::InvalidResponse, detail));
            }
            if !has_index {
                let detail = format!("its index does not come first: `{}` does", shorten(&member.path));
                return Err(LayoutError::new(ErrorKind::Unsupported, detail).with_hint(SAVE_STREAM_HINT));
            }
            if blob_digest(&member.path).is_some() {
                state.recent.start = state.scanner.position();
                (state.current, state.is_new) = (Some(member), true);
                break false;
            }
        };
        let (members, is_at_end) = (Mutex::new(members), AtomicBool::new(is_at_end));
        Ok(Arc::new(ForwardArchive { kept, members, is_at_end, state: Mutex::new(state) }))
    }

    fn lock_state(&self) -> MutexGuard<'_, ForwardState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn lock_members(&self) -> MutexGuard<'_, TarIndex> {
        self.members.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Calls a function with the members found so far.
    pub(super) fn with_members<T>(&self, call: impl FnOnce(&TarIndex) -> T) -> T {
        call(&self.lock_members())
    }

    /// Moves on to the next file, skipping the rest of the current one, and returns its path; `None` at the end, after
    /// everything was read and checked.
    pub(super) fn advance(&self) -> Result<Option<String>, LayoutError> {
        let mut state = self.lock_state();
        if std::mem::take(&mut state.is_new) {
            return Ok(state.current.as_ref().map(|member| member.path.clone()));
        }
        state.current = None;
        while !self.is_at_end() {
            // The pipe may be waited for: others look at the members meanwhile.
            let mut found = TarIndex::default();
            let Some(member) = state.next_member(&mut found)? else {
                self.lock_members().set_end_marker(found.has_end_marker());
                self.is_at_end.store(true, Ordering::Relaxed);
                break;
            };
            self.lock_members().insert(&member)?;
            if let TarMemberKind::File(content) = member.kind {
                let path = member.path.clone();
                state.recent.start = content.start;
                state.current = Some(member);
                return Ok(Some(path));
            }
        }
        Ok(None)
    }

    /// Whether the end was reached.
    pub(super) fn is_at_end(&self) -> bool {
        self.is_at_end.load(Ordering::Relaxed)
    }

    /// Whether a content is in memory.
    pub(super) fn is_kept(&self, content: TarContent) -> bool {
        self.kept.is_whole(content)
    }
}

impl ForwardState {
    /// Reads the next header, and adds the member to an index.
    fn next_member(&mut self, members: &mut TarIndex) -> Result<Option<TarMember>, LayoutError> {
        if self.is_broken {
            return Err(LayoutError::reading("", broken()));
        }
        let found = self.scanner.next().and_then(|member| match member {
            Some(member) => members.insert(&member).map(|()| Some(member)),
            None => self.read_trailer().map(|()| None),
        });
        members.set_end_marker(self.scanner.has_end_marker());
        found.map_err(|error| {
            self.is_broken = true;
            self.failure.explain(error)
        })
    }

    /// Reads what follows the end of the archive, where compressed files have their checksums.
    fn read_trailer(&mut self) -> Result<(), LayoutError> {
        let reader = self.scanner.input_mut().reader_mut();
        let trailing = io::copy(&mut reader.take(MAX_TRAILING_BYTES + 1), &mut io::sink());
        match trailing.map_err(|error| LayoutError::reading("", error))? {
            0..=MAX_TRAILING_BYTES => Ok(()),
            _ => {
                let detail = format!("more than {} MiB follow the end of the archive", MAX_TRAILING_BYTES >> 20);
                Err(LayoutError::new(ErrorKind::InvalidResponse, detail)
                    .with_hint("send one archive, and nothing after it"))
            }
        }
    }

    fn read_at(&mut self, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
        let Some(TarMember { kind: TarMemberKind::File(TarContent { start, size }), .. }) = &self.current else {
            return Err(passed());
        };
        let end = start + size;
        if !(*start..end).contains(&offset) {
            return Err(passed());
        }
        let position = self.scanner.position();
        if offset < position {
            return self.recent.read_again(buffer, offset, position).ok_or_else(passed);
        }
        if self.is_broken {
            return Err(broken());
        }
        let length = buffer.len().min(usize::try_from(end - offset).unwrap_or(usize::MAX));
        let mut read = Ok(());
        if offset > position {
            read = self.scanner.skip_content(offset - position);
            self.recent.start = offset;
        }
        match read.and_then(|()| self.scanner.read_content(&mut buffer[..length])) {
            Ok(()) => {
                self.recent.record(&buffer[..length], offset);
                Ok(length)
            }
            Err(error) => {
                self.is_broken = true;
                Err(match (self.failure.take(), error.kind()) {
                    (Some(failure), _) => failure,
                    (None, io::ErrorKind::UnexpectedEof) => {
                        io::Error::new(io::ErrorKind::UnexpectedEof, "the archive ended in the middle of it")
                    }
                    (None, _) => error,
                })
            }
        }
    }
}

impl ReadAt for ForwardArchive {
    /// The size of a pipe is not known; that of the members is.
    fn len(&self) -> u64 {
        u64::MAX
    }

    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
        match self.kept.read_at(buffer, offset) {
            Some(length) => Ok(length),
            None => self.lock_state().read_at(buffer, offset),
        }
    }
}

/// Returns the digest of a blob by its path, and the folder of the layout with a slash at its end.
pub(super) fn blob_digest(path: &str) -> Option<(&str, Digest)> {
    let mut parts = path.rsplitn(3, '/');
    let (hex, algorithm, before) = (parts.next()?, parts.next()?, parts.next()?);
    let root = before.strip_suffix(BLOBS).filter(|root| root.is_empty() || root.ends_with('/'))?;
    Some((root, format!("{algorithm}:{hex}").parse().ok()?))
}

/// Decodes an archive, if it is compressed.
fn decode(mut input: PipeReader) -> io::Result<Box<dyn Read + Send>> {
    let mut magic = Vec::new();
    input.by_ref().take(MAX_MAGIC_BYTES as u64).read_to_end(&mut magic)?;
    let compression = TarCompression::sniff(&magic);
    let whole: Box<dyn Read + Send> = Box::new(io::Cursor::new(magic).chain(input));
    Ok(match compression {
        Some(compression) => compression.decode(whole),
        None => whole,
    })
}

fn passed() -> io::Error {
    io::Error::new(io::ErrorKind::NotSeekable, "the archive comes from a pipe, and has passed it")
}

fn broken() -> io::Error {
    io::Error::new(io::ErrorKind::BrokenPipe, "an earlier read of the archive has failed")
}
