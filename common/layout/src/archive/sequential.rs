//! Files that can only be read from their beginning: compressed with zstd or xz, or from a pipe. Manifests and other small
//! JSON are kept in memory while the members are listed; everything else is read forward, and from the beginning again
//! if it is behind.

use std::fmt;
use std::io::{self, Read};
use std::sync::{Arc, Mutex, PoisonError};

use super::super::error::LayoutError;
use super::super::read_at::ReadAt;
use super::compression::{SourceReader, TarCompression};
use super::kept::{KeptContents, MAX_KEPT_FILE_BYTES};
use super::tar_index::{TarIndex, TarInput, TarScanner};

const SKIP_BYTES: usize = 256 << 10;
/// Decoders kept between reads. A decoder has a window of up to 128 MiB, so there are few.
const MAX_IDLE_READERS: usize = 2;

/// Reads a tar from a stream.
pub(super) struct StreamInput<R> {
    reader: R,
    position: u64,
}

impl<R: Read> StreamInput<R> {
    pub(super) fn new(reader: R) -> StreamInput<R> {
        StreamInput { reader, position: 0 }
    }

    pub(super) fn into_reader(self) -> R {
        self.reader
    }

    pub(super) fn reader_mut(&mut self) -> &mut R {
        &mut self.reader
    }
}

impl<R: Read> TarInput for StreamInput<R> {
    fn position(&self) -> u64 {
        self.position
    }

    fn read(&mut self, buffer: &mut [u8]) -> io::Result<bool> {
        let mut length = 0;
        while length < buffer.len() {
            match self.reader.read(&mut buffer[length..]) {
                Ok(0) if length == 0 => return Ok(false),
                Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
                Ok(read) => length += read,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        self.position += length as u64;
        Ok(true)
    }

    fn skip(&mut self, bytes: u64) -> io::Result<()> {
        let skipped = skip(&mut self.reader, bytes)?;
        self.position += skipped;
        if skipped < bytes { Err(io::ErrorKind::UnexpectedEof.into()) } else { Ok(()) }
    }
}

/// Skips bytes of a reader, and returns how many there were.
fn skip(reader: &mut impl Read, bytes: u64) -> io::Result<u64> {
    let mut buffer = vec![0; usize::try_from(bytes.min(SKIP_BYTES as u64)).unwrap_or_default()];
    let mut left = bytes;
    while left > 0 {
        let wanted = usize::try_from(left.min(SKIP_BYTES as u64)).unwrap_or_default();
        match reader.read(&mut buffer[..wanted]) {
            Ok(0) => break,
            Ok(length) => left -= length as u64,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(bytes - left)
}

/// Lists the members of a stream, and keeps small JSON.
pub(super) fn scan_stream<R: Read>(reader: R) -> Result<(TarIndex, KeptContents, R), LayoutError> {
    let mut scanner = TarScanner::new(StreamInput::new(reader));
    let (mut index, mut kept) = (TarIndex::default(), KeptContents::default());
    while let Some(member) = scanner.next()? {
        kept.keep(&mut scanner, &member, MAX_KEPT_FILE_BYTES)?;
        index.insert(&member)?;
    }
    index.set_end_marker(scanner.has_end_marker());
    Ok((index, kept, scanner.into_input().into_reader()))
}

/// A compressed file, read at offsets of its decoded content.
pub(super) struct SequentialFile {
    source: Arc<dyn ReadAt>,
    compression: TarCompression,
    kept: KeptContents,
    idle: Mutex<Vec<PositionedReader>>,
}

struct PositionedReader {
    position: u64,
    reader: Box<dyn Read + Send>,
}

impl fmt::Debug for SequentialFile {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SequentialFile").field("source", &self.source).field("compression", &self.compression).finish()
    }
}

impl SequentialFile {
    pub(super) fn new(source: Arc<dyn ReadAt>, compression: TarCompression, kept: KeptContents) -> SequentialFile {
        SequentialFile { source, compression, kept, idle: Mutex::default() }
    }

    fn reader_before(&self, offset: u64) -> PositionedReader {
        let mut idle = self.idle.lock().unwrap_or_else(PoisonError::into_inner);
        let nearest = idle.iter().enumerate().filter(|(_, reader)| reader.position <= offset);
        match nearest.max_by_key(|(_, reader)| reader.position).map(|(at, _)| at) {
            Some(at) => idle.swap_remove(at),
            None => {
                // One that is ahead is not needed: reads go forward.
                if idle.len() >= MAX_IDLE_READERS {
                    idle.remove(0);
                }
                let reader = self.compression.decode(Box::new(SourceReader::new(self.source.clone())));
                PositionedReader { position: 0, reader }
            }
        }
    }
}

impl ReadAt for SequentialFile {
    /// The decoded size is not needed: the members are known.
    fn len(&self) -> u64 {
        u64::MAX
    }

    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
        if let Some(length) = self.kept.read_at(buffer, offset) {
            return Ok(length);
        }
        let mut reader = self.reader_before(offset);
        reader.position += skip(&mut reader.reader, offset - reader.position)?;
        let length = if reader.position < offset { 0 } else { reader.reader.read(buffer)? };
        reader.position += length as u64;
        let mut idle = self.idle.lock().unwrap_or_else(PoisonError::into_inner);
        if idle.len() >= MAX_IDLE_READERS {
            idle.remove(0);
        }
        idle.push(reader);
        Ok(length)
    }

    fn version(&self) -> io::Result<Option<String>> {
        self.source.version()
    }
}
