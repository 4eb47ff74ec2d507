//! TarCompression around an archive: recognized by its first bytes, never by a name, and decoded as a stream.

use std::io::{self, BufRead as _, BufReader, Read};
use std::sync::Arc;

use super::super::read_at::ReadAt;

/// Upper limit for the window of a decoder, in bytes: what `zstd --long` and `xz -9` need at most.
const MAX_WINDOW_BYTES: u64 = 128 << 20;
const BUFFER_BYTES: usize = 256 << 10;
const ZSTD_MAGIC: [u8; 4] = [0x28, 0xb5, 0x2f, 0xfd];

/// TarCompression of an archive.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum TarCompression {
    Gzip,
    Zstd,
    Xz,
}

impl TarCompression {
    /// Recognizes a compression by the first bytes of a file; `None` if it is something else.
    pub(super) fn sniff(start: &[u8]) -> Option<TarCompression> {
        match start {
            [0x1f, 0x8b, ..] => Some(TarCompression::Gzip),
            [0xfd, b'7', b'z', b'X', b'Z', 0, ..] => Some(TarCompression::Xz),
            _ if start.starts_with(&ZSTD_MAGIC) || is_skippable(start) => Some(TarCompression::Zstd),
            _ => None,
        }
    }

    /// Returns a reader of the decoded bytes. Damaged data fail with [`io::ErrorKind::InvalidData`].
    pub(super) fn decode(self, input: Box<dyn Read + Send>) -> Box<dyn Read + Send> {
        let input = BufReader::with_capacity(BUFFER_BYTES, input);
        match self {
            TarCompression::Gzip => Box::new(CheckedReader(flate2::read::MultiGzDecoder::new(input))),
            TarCompression::Zstd => Box::new(CheckedReader(ZstdReader { input: Some(input), frame: None })),
            TarCompression::Xz => {
                let limit = u32::try_from(MAX_WINDOW_BYTES >> 10).unwrap_or(u32::MAX);
                Box::new(CheckedReader(lzma_rust2::XzReader::new_mem_limit(input, true, limit)))
            }
        }
    }
}

/// Gives the errors of decoders one kind.
struct CheckedReader<R>(R);

impl<R: Read> Read for CheckedReader<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.0.read(buffer).map_err(|error| match error.kind() {
            io::ErrorKind::UnexpectedEof | io::ErrorKind::Interrupted => error,
            // The file was changed.
            io::ErrorKind::ResourceBusy => error,
            _ if error.raw_os_error().is_some() => error,
            // A zstd frame that ends early is an error of another kind inside.
            _ if error.to_string().contains("failed to fill whole buffer") => io::ErrorKind::UnexpectedEof.into(),
            _ => invalid(&error.to_string()),
        })
    }
}

/// Whether bytes begin a zstd frame of other data, which decoders skip.
fn is_skippable(start: &[u8]) -> bool {
    matches!(start, [0x50..=0x5f, 0x2a, 0x4d, 0x18, ..])
}

/// Reads a file from its beginning.
#[derive(Debug)]
pub(super) struct SourceReader {
    source: Arc<dyn ReadAt>,
    position: u64,
}

impl SourceReader {
    pub(super) fn new(source: Arc<dyn ReadAt>) -> SourceReader {
        SourceReader { source, position: 0 }
    }
}

impl Read for SourceReader {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let length = self.source.read_at(buffer, self.position)?;
        self.position += length as u64;
        Ok(length)
    }
}

type ZstdInput = BufReader<Box<dyn Read + Send>>;
type ZstdFrame =
    ruzstd::decoding::StreamingDecoder<io::Chain<io::Cursor<[u8; 4]>, ZstdInput>, ruzstd::decoding::FrameDecoder>;

/// Reads zstd frames one after another.
struct ZstdReader {
    /// Between frames.
    input: Option<ZstdInput>,
    frame: Option<Box<ZstdFrame>>,
}

impl ZstdReader {
    /// Opens the next frame that has data. Returns `false` at the end.
    fn open_frame(&mut self) -> io::Result<bool> {
        let Some(mut input) = self.input.take() else { return Ok(false) };
        loop {
            if input.fill_buf()?.is_empty() {
                return Ok(false);
            }
            let mut magic = [0; 4];
            input.read_exact(&mut magic)?;
            if is_skippable(&magic) {
                let mut size = [0; 4];
                input.read_exact(&mut size)?;
                let size = u64::from(u32::from_le_bytes(size));
                if io::copy(&mut (&mut input).take(size), &mut io::sink())? < size {
                    return Err(io::ErrorKind::UnexpectedEof.into());
                }
                continue;
            }
            if magic != ZSTD_MAGIC {
                return Err(invalid("what follows a zstd frame is not one"));
            }
            let input = io::Cursor::new(magic).chain(input);
            let frame = ruzstd::decoding::StreamingDecoder::new_with_max_window_size(input, MAX_WINDOW_BYTES);
            self.frame = Some(Box::new(frame.map_err(|error| invalid(&error.to_string()))?));
            return Ok(true);
        }
    }
}

impl Read for ZstdReader {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if buffer.is_empty() {
            return Ok(0);
        }
        loop {
            let Some(frame) = &mut self.frame else {
                match self.open_frame()? {
                    true => continue,
                    false => return Ok(0),
                }
            };
            let length = frame.read(buffer)?;
            if length > 0 {
                return Ok(length);
            }
            let Some(frame) = self.frame.take() else { continue };
            let (input, decoder) = frame.into_parts();
            if let (Some(written), Some(found)) = (decoder.get_checksum_from_data(), decoder.get_calculated_checksum())
                && written != found
            {
                return Err(invalid("the checksum of a zstd frame is wrong"));
            }
            self.input = Some(input.into_inner().1);
        }
    }
}

pub(super) fn invalid(reason: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, reason.to_owned())
}
