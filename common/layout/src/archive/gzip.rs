//! Random access to a gzip file: the state of the decoder is copied at intervals, so that a read starts at the copy before
//! its offset. A copy has 43 KiB, and their number is limited.

use std::io;
use std::sync::{Arc, Mutex, PoisonError};

use miniz_oxide::inflate::stream::{InflateState, inflate};
use miniz_oxide::{DataFormat, MZError, MZFlush, MZStatus};

use super::super::read_at::ReadAt;
use super::compression::invalid;
use super::kept::KeptContents;

const INPUT_BYTES: usize = 64 << 10;
const SKIP_BYTES: usize = 64 << 10;
/// Distance of the first checkpoints in decoded bytes; it doubles when there are too many.
const FIRST_INTERVAL: u64 = 4 << 20;
const MAX_CHECKPOINTS: usize = 256;
/// Decoders kept between reads: one for each stream that reads at the same time.
const MAX_IDLE_CURSORS: usize = 16;
/// Upper limit for the name and comment in a header.
const MAX_HEADER_BYTES: usize = 64 << 10;

/// A gzip file, read at offsets of its decoded content.
#[derive(Debug)]
pub(super) struct GzipFile {
    source: Arc<dyn ReadAt>,
    size: u64,
    checkpoints: Vec<GzipCursor>,
    kept: KeptContents,
    idle: Mutex<Vec<GzipCursor>>,
}

/// A decoder at a position.
#[derive(Clone)]
pub(super) struct GzipCursor {
    /// Offset in the decoded content.
    position: u64,
    /// Offset in the file of the first byte in `input`.
    input_at: u64,
    input: Vec<u8>,
    phase: GzipPhase,
    inflate: Box<InflateState>,
    checksum: crc32fast::Hasher,
    member_bytes: u32,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum GzipPhase {
    Header,
    Body,
    End,
}

impl std::fmt::Debug for GzipCursor {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("GzipCursor").field("position", &self.position).field("input_at", &self.input_at).finish()
    }
}

impl GzipCursor {
    fn new() -> GzipCursor {
        GzipCursor {
            position: 0,
            input_at: 0,
            input: Vec::new(),
            phase: GzipPhase::Header,
            inflate: InflateState::new_boxed(DataFormat::Raw),
            checksum: crc32fast::Hasher::new(),
            member_bytes: 0,
        }
    }

    /// Returns a copy without its input.
    fn checkpoint(&self) -> GzipCursor {
        GzipCursor {
            position: self.position,
            input_at: self.input_at,
            input: Vec::new(),
            phase: self.phase,
            inflate: self.inflate.clone(),
            checksum: self.checksum.clone(),
            member_bytes: self.member_bytes,
        }
    }

    /// Reads more input until there are enough bytes. Returns whether there are.
    fn fill(&mut self, source: &dyn ReadAt, wanted: usize) -> io::Result<bool> {
        while self.input.len() < wanted {
            let old = self.input.len();
            self.input.resize(old + INPUT_BYTES, 0);
            let read = source.read_at(&mut self.input[old..], self.input_at + old as u64);
            self.input.truncate(old + read.as_ref().copied().unwrap_or_default());
            if read? == 0 {
                return Ok(false);
            }
        }
        Ok(true)
    }

    fn consume(&mut self, bytes: usize) {
        self.input.drain(..bytes);
        self.input_at += bytes as u64;
    }

    fn need(&mut self, source: &dyn ReadAt, wanted: usize) -> io::Result<()> {
        match self.fill(source, wanted)? {
            true => Ok(()),
            false => Err(io::ErrorKind::UnexpectedEof.into()),
        }
    }

    /// Decodes the next bytes; 0 at the end.
    fn read(&mut self, source: &dyn ReadAt, buffer: &mut [u8]) -> io::Result<usize> {
        if buffer.is_empty() {
            return Ok(0);
        }
        loop {
            match self.phase {
                GzipPhase::End => return Ok(0),
                GzipPhase::Header => self.read_header(source)?,
                GzipPhase::Body => {
                    let has_input = self.fill(source, 1)?;
                    let result = inflate(&mut self.inflate, &self.input, buffer, MZFlush::None);
                    self.consume(result.bytes_consumed);
                    let written = result.bytes_written;
                    self.checksum.update(&buffer[..written]);
                    self.member_bytes = self.member_bytes.wrapping_add(written as u32);
                    self.position += written as u64;
                    match result.status {
                        Ok(MZStatus::StreamEnd) => self.read_trailer(source)?,
                        Ok(_) => {}
                        Err(MZError::Buf) if has_input || written > 0 => {}
                        Err(MZError::Buf) => return Err(io::ErrorKind::UnexpectedEof.into()),
                        Err(_) => return Err(invalid("the gzip data are damaged")),
                    }
                    if written > 0 {
                        return Ok(written);
                    }
                    if !has_input && self.phase == GzipPhase::Body {
                        return Err(io::ErrorKind::UnexpectedEof.into());
                    }
                }
            }
        }
    }

    /// Reads the header of a member (RFC 1952, section 2.3).
    fn read_header(&mut self, source: &dyn ReadAt) -> io::Result<()> {
        self.need(source, 10)?;
        if self.input[..3] != [0x1f, 0x8b, 8] {
            return Err(invalid("what follows is not gzip"));
        }
        let flags = self.input[3];
        let mut at = 10;
        if flags & 4 != 0 {
            self.need(source, at + 2)?;
            at += 2 + usize::from(u16::from_le_bytes([self.input[at], self.input[at + 1]]));
        }
        // Name and comment.
        for flag in [8, 16] {
            if flags & flag == 0 {
                continue;
            }
            loop {
                self.need(source, at + 1)?;
                at += 1;
                if self.input[at - 1] == 0 {
                    break;
                }
                if at > MAX_HEADER_BYTES * 2 {
                    return Err(invalid("its gzip header is too long"));
                }
            }
        }
        if flags & 2 != 0 {
            at += 2;
        }
        self.need(source, at)?;
        self.consume(at);
        self.inflate.reset(DataFormat::Raw);
        (self.phase, self.checksum, self.member_bytes) = (GzipPhase::Body, crc32fast::Hasher::new(), 0);
        Ok(())
    }

    /// Checks the trailer of a member, and what follows: another member, zeros, or the end.
    fn read_trailer(&mut self, source: &dyn ReadAt) -> io::Result<()> {
        self.need(source, 8)?;
        let number = |bytes: &[u8]| bytes.try_into().map(u32::from_le_bytes).unwrap_or_default();
        let (checksum, size) = (number(&self.input[..4]), number(&self.input[4..8]));
        if checksum != self.checksum.clone().finalize() || size != self.member_bytes {
            return Err(invalid("the gzip checksum is wrong"));
        }
        self.consume(8);
        self.phase = GzipPhase::Header;
        while self.fill(source, 1)? {
            // Tapes are padded with zeros.
            let zeros = self.input.iter().take_while(|byte| **byte == 0).count();
            if zeros == 0 {
                return Ok(());
            }
            self.consume(zeros);
        }
        self.phase = GzipPhase::End;
        Ok(())
    }

    fn skip_to(&mut self, source: &dyn ReadAt, offset: u64) -> io::Result<()> {
        let mut skipped = vec![0; SKIP_BYTES];
        while self.position < offset {
            let wanted = usize::try_from((offset - self.position).min(SKIP_BYTES as u64)).unwrap_or_default();
            if self.read(source, &mut skipped[..wanted])? == 0 {
                return Ok(());
            }
        }
        Ok(())
    }
}

/// Reads a gzip file once from its beginning, and collects checkpoints.
pub(super) struct GzipScan {
    source: Arc<dyn ReadAt>,
    cursor: GzipCursor,
    checkpoints: Vec<GzipCursor>,
    interval: u64,
}

impl GzipScan {
    pub(super) fn new(source: Arc<dyn ReadAt>) -> GzipScan {
        GzipScan { source, cursor: GzipCursor::new(), checkpoints: Vec::new(), interval: FIRST_INTERVAL }
    }

    /// Reads the rest, and returns the file for random access.
    pub(super) fn finish(mut self, kept: KeptContents) -> io::Result<GzipFile> {
        let mut rest = vec![0; SKIP_BYTES];
        while io::Read::read(&mut self, &mut rest)? > 0 {}
        let size = self.cursor.position;
        Ok(GzipFile { source: self.source, size, checkpoints: self.checkpoints, kept, idle: Mutex::default() })
    }
}

impl io::Read for GzipScan {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let last = self.checkpoints.last().map_or(0, |last| last.position);
        if self.cursor.position >= last + self.interval {
            if self.checkpoints.len() >= MAX_CHECKPOINTS {
                let mut at = 0;
                self.checkpoints.retain(|_| {
                    at += 1;
                    at % 2 == 0
                });
                self.interval *= 2;
            }
            self.checkpoints.push(self.cursor.checkpoint());
        }
        let wanted = buffer.len().min(usize::try_from(self.interval).unwrap_or(usize::MAX));
        self.cursor.read(&*self.source, &mut buffer[..wanted])
    }
}

impl GzipFile {
    /// Returns a decoder at an offset or before.
    fn cursor_before(&self, offset: u64) -> GzipCursor {
        let start = self.checkpoints.partition_point(|checkpoint| checkpoint.position <= offset);
        let start = start.checked_sub(1).map(|at| &self.checkpoints[at]);
        let mut idle = self.idle.lock().unwrap_or_else(PoisonError::into_inner);
        let nearest = idle.iter().enumerate().filter(|(_, cursor)| cursor.position <= offset);
        let nearest = nearest.max_by_key(|(_, cursor)| cursor.position).map(|(at, cursor)| (at, cursor.position));
        match nearest {
            Some((at, position)) if start.is_none_or(|start| position >= start.position) => idle.swap_remove(at),
            _ => start.map_or_else(GzipCursor::new, GzipCursor::checkpoint),
        }
    }
}

impl ReadAt for GzipFile {
    fn len(&self) -> u64 {
        self.size
    }

    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
        if offset >= self.size || buffer.is_empty() {
            return Ok(0);
        }
        if let Some(length) = self.kept.read_at(buffer, offset) {
            return Ok(length);
        }
        let mut cursor = self.cursor_before(offset);
        cursor.skip_to(&*self.source, offset)?;
        let mut length = 0;
        while length < buffer.len() {
            match cursor.read(&*self.source, &mut buffer[length..])? {
                0 => break,
                read => length += read,
            }
        }
        let mut idle = self.idle.lock().unwrap_or_else(PoisonError::into_inner);
        if idle.len() >= MAX_IDLE_CURSORS {
            idle.remove(0);
        }
        idle.push(cursor);
        Ok(length)
    }

    fn version(&self) -> io::Result<Option<String>> {
        self.source.version()
    }
}
