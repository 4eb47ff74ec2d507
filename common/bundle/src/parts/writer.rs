//! Writes a stream as parts of an exact size. A part is hidden until it is whole and synced; after a kill, the next
//! writer goes on behind the last byte.

use std::fs::{File, OpenOptions};
use std::io::{self, Read, Write as _};
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};

use imgsync_oci::error::Result;
use imgsync_oci::{Algorithm, Hasher};

use super::{BundleFiles, BundlePart, CHUNK_BYTES, HeadHash};
use crate::error::io_error;

/// Writes a bundle as parts.
#[derive(Debug)]
pub struct PartWriter {
    files: BundleFiles,
    /// File in which whole parts are recorded.
    record: PathBuf,
    whole: Vec<BundlePart>,
    current: Option<OpenPart>,
}

/// Bytes that a [`PartWriter`] has written.
#[derive(Debug, Clone)]
pub struct WrittenParts(Vec<(PathBuf, u64)>);

impl WrittenParts {
    /// Returns a reader of the bytes from an offset on.
    pub fn reader(&self, offset: u64) -> impl Read + use<> {
        WrittenReader { parts: self.clone(), offset }
    }

    /// Reads bytes from an offset, as many as one part has; none at the end.
    pub fn read(&self, offset: u64, limit: usize) -> Result<Vec<u8>> {
        let mut start = 0;
        for (path, size) in &self.0 {
            if offset < start + size {
                let wanted = usize::try_from(start + size - offset).unwrap_or(usize::MAX).min(limit);
                let mut bytes = vec![0; wanted];
                let read = File::open(path).and_then(|file| file.read_exact_at(&mut bytes, offset - start));
                return read.map(|()| bytes).map_err(|error| io_error("reading back the bundle", path, error));
            }
            start += size;
        }
        Ok(Vec::new())
    }
}

/// Reads what was written, from an offset on.
struct WrittenReader {
    parts: WrittenParts,
    offset: u64,
}

impl Read for WrittenReader {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let bytes = self.parts.read(self.offset, buffer.len()).map_err(io::Error::other)?;
        buffer[..bytes.len()].copy_from_slice(&bytes);
        self.offset += bytes.len() as u64;
        Ok(bytes.len())
    }
}

#[derive(Debug)]
struct OpenPart {
    file: File,
    size: u64,
    hash: Hasher,
    head: HeadHash,
}

impl PartWriter {
    /// Opens a writer that goes on behind what an earlier one wrote. `record` is the file in which whole parts are
    /// recorded; without it, leftovers are removed.
    pub fn open(files: BundleFiles, record: &Path) -> Result<PartWriter> {
        let recorded =
            std::fs::read(record).ok().and_then(|text| serde_json::from_slice::<Vec<BundlePart>>(&text).ok());
        let (mut whole, is_new) = (recorded.clone().unwrap_or_default(), recorded.is_none());
        let is_there = |number: usize, part: &BundlePart| {
            std::fs::metadata(files.part(number)).is_ok_and(|found| found.is_file() && found.len() == part.size)
        };
        let kept = whole.iter().enumerate().take_while(|(at, part)| is_there(at + 1, part)).count();
        whole.truncate(kept);
        let mut writer = PartWriter { files, record: record.to_owned(), whole, current: None };
        if is_new {
            remove_if_there(&writer.files.partial(1))?;
        }
        writer.reopen_partial()?;
        Ok(writer)
    }

    /// Returns the number of bytes written.
    pub fn position(&self) -> u64 {
        self.synced() + self.current.as_ref().map_or(0, |part| part.size)
    }

    /// Returns the number of bytes in whole parts, which are synced.
    pub fn synced(&self) -> u64 {
        self.whole.iter().map(|part| part.size).sum()
    }

    /// Returns the whole parts.
    pub fn parts(&self) -> &[BundlePart] {
        &self.whole
    }

    /// Appends bytes.
    pub fn write(&mut self, mut bytes: &[u8]) -> Result<()> {
        let limit = self.files.part_size.unwrap_or(u64::MAX);
        while !bytes.is_empty() {
            let part = match &mut self.current {
                Some(part) => part,
                None => self.start_part()?,
            };
            let room = limit - part.size;
            let (now, later) = bytes.split_at(usize::try_from(room).unwrap_or(usize::MAX).min(bytes.len()));
            let written = part.file.write_all(now);
            if let Err(error) = written {
                let path = self.files.partial(self.whole.len() + 1);
                return Err(io_error("writing the bundle", &path, error));
            }
            part.add(now);
            bytes = later;
            if part.size == limit {
                self.finish_part()?;
            }
        }
        Ok(())
    }

    /// Makes the last part whole. Returns all parts.
    pub fn finish(&mut self) -> Result<&[BundlePart]> {
        if self.current.as_ref().is_some_and(|part| part.size > 0) {
            self.finish_part()?;
        }
        Ok(&self.whole)
    }

    /// Drops all bytes from an offset on.
    pub fn rewind(&mut self, offset: u64) -> Result<()> {
        self.current = None;
        let mut end = self.synced();
        let partial = self.files.partial(self.whole.len() + 1);
        match offset > end {
            true => truncate(&partial, offset - end)?,
            false => remove_if_there(&partial)?,
        }
        while end > offset {
            let Some(part) = self.whole.pop() else { break };
            end -= part.size;
            let number = self.whole.len() + 1;
            let (path, partial) = (self.files.part(number), self.files.partial(number));
            match end < offset {
                true => {
                    std::fs::rename(&path, &partial).map_err(|error| io_error("writing the bundle", &path, error))?;
                    truncate(&partial, offset - end)?;
                }
                false => remove_if_there(&path)?,
            }
            // Afterwards: a recorded part that is missing does not count.
            self.record_parts()?;
        }
        self.reopen_partial()
    }

    /// Returns the bytes written so far, to read them again.
    pub fn written(&self) -> WrittenParts {
        let whole = self.whole.iter().enumerate().map(|(at, part)| (self.files.part(at + 1), part.size));
        let current = self.current.iter().map(|part| (self.files.partial(self.whole.len() + 1), part.size));
        WrittenParts(whole.chain(current).collect())
    }

    fn start_part(&mut self) -> Result<&mut OpenPart> {
        let path = self.files.partial(self.whole.len() + 1);
        let file = OpenOptions::new().create(true).truncate(true).write(true).open(&path);
        let file = file.map_err(|error| io_error("writing the bundle", &path, error))?;
        if self.whole.is_empty() {
            // From now on, a leftover is of this bundle.
            self.record_parts()?;
        }
        Ok(self.current.insert(OpenPart::new(file)))
    }

    /// Makes the current part whole: synced, renamed and recorded.
    fn finish_part(&mut self) -> Result<()> {
        let Some(part) = self.current.take() else { return Ok(()) };
        let number = self.whole.len() + 1;
        let (partial, path) = (self.files.partial(number), self.files.part(number));
        let done = part.file.sync_all().and_then(|()| std::fs::rename(&partial, &path));
        done.and_then(|()| File::open(&self.files.folder)?.sync_all())
            .map_err(|error| io_error("writing the bundle", &path, error))?;
        self.whole.push(BundlePart {
            name: self.files.part_name(number),
            size: part.size,
            sha256: part.hash.finish().hex().to_owned(),
            head_sha256: part.head.finish(),
        });
        self.record_parts()
    }

    fn record_parts(&self) -> Result<()> {
        let new = self.record.with_extension("new");
        let text = serde_json::to_vec(&self.whole).unwrap_or_default();
        let written = File::create(&new).and_then(|mut file| {
            file.write_all(&text)?;
            file.sync_all()?;
            std::fs::rename(&new, &self.record)
        });
        written.map_err(|error| io_error("recording the parts of the bundle", &self.record, error))
    }

    /// Opens what an earlier writer left of the next part, and hashes it.
    fn reopen_partial(&mut self) -> Result<()> {
        let number = self.whole.len() + 1;
        let (partial, path) = (self.files.partial(number), self.files.part(number));
        if !partial.exists() && self.is_unrecorded(number) {
            // Killed between the rename and the record.
            std::fs::rename(&path, &partial).map_err(|error| io_error("writing the bundle", &path, error))?;
        }
        let file = match OpenOptions::new().read(true).write(true).open(&partial) {
            Ok(file) => file,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(()),
            Err(error) => return Err(io_error("writing the bundle", &partial, error)),
        };
        let mut part = OpenPart::new(file);
        let limit = self.files.part_size.unwrap_or(u64::MAX);
        let mut chunk = vec![0; CHUNK_BYTES];
        let read = loop {
            let wanted = usize::try_from(limit - part.size).unwrap_or(usize::MAX).min(CHUNK_BYTES);
            match part.file.read(&mut chunk[..wanted]) {
                Ok(0) => break part.file.set_len(part.size),
                Ok(read) => part.add(&chunk[..read]),
                Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
                Err(error) => break Err(error),
            }
        };
        read.map_err(|error| io_error("reading back the bundle", &partial, error))?;
        let is_full = Some(part.size) == self.files.part_size;
        self.current = Some(part);
        if is_full { self.finish_part() } else { Ok(()) }
    }

    /// Whether the part after the recorded ones is whole although it is not recorded.
    fn is_unrecorded(&self, number: usize) -> bool {
        let fits = |size: u64| self.files.part_size.is_none_or(|limit| size <= limit);
        self.record.exists() && std::fs::metadata(self.files.part(number)).is_ok_and(|found| fits(found.len()))
    }
}

impl OpenPart {
    fn new(file: File) -> OpenPart {
        OpenPart { file, size: 0, hash: Hasher::new(Algorithm::Sha256), head: HeadHash::default() }
    }

    fn add(&mut self, bytes: &[u8]) {
        self.hash.update(bytes);
        self.head.update(bytes);
        self.size += bytes.len() as u64;
    }
}

fn truncate(path: &Path, size: u64) -> Result<()> {
    let truncated = OpenOptions::new().write(true).open(path).and_then(|file| file.set_len(size));
    truncated.map_err(|error| io_error("writing the bundle", path, error))
}

fn remove_if_there(path: &Path) -> Result<()> {
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(io_error("removing what an earlier bundle left", path, error))
        }
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn files(folder: &Path, part_size: Option<u64>) -> BundleFiles {
        BundleFiles { folder: folder.to_owned(), name: "b.tar".to_owned(), part_size }
    }

    fn joined(folder: &Path, parts: &[BundlePart]) -> Vec<u8> {
        parts.iter().flat_map(|part| std::fs::read(folder.join(&part.name)).unwrap()).collect()
    }

    #[test]
    fn parts_have_exactly_the_size_and_the_last_one_has_the_rest() {
        for (length, sizes) in [(0, vec![]), (9, vec![9]), (10, vec![10]), (11, vec![10, 1]), (30, vec![10, 10, 10])] {
            let folder = tempfile::tempdir().unwrap();
            let content: Vec<u8> = (0..length).collect();
            let mut writer = PartWriter::open(files(folder.path(), Some(10)), &folder.path().join("record")).unwrap();
            content.chunks(4).for_each(|chunk| writer.write(chunk).unwrap());
            let parts = writer.finish().unwrap().to_vec();
            assert_eq!(parts.iter().map(|part| part.size).collect::<Vec<_>>(), sizes);
            assert_eq!(joined(folder.path(), &parts), content);
            for part in parts {
                assert_eq!(super::super::hash_part(&folder.path().join(&part.name)).unwrap().0, part.sha256);
            }
        }
    }

    #[test]
    fn a_writer_goes_on_behind_the_last_byte_of_a_killed_one() {
        let content: Vec<u8> = (0..=255).collect();
        for part_size in [Some(10), Some(64), None] {
            for killed_at in 0..=content.len() {
                let folder = tempfile::tempdir().unwrap();
                let record = folder.path().join("record");
                let mut killed = PartWriter::open(files(folder.path(), part_size), &record).unwrap();
                killed.write(&content[..killed_at]).unwrap();
                drop(killed);
                let mut writer = PartWriter::open(files(folder.path(), part_size), &record).unwrap();
                assert_eq!(writer.position(), killed_at as u64);
                writer.write(&content[killed_at..]).unwrap();
                let parts = writer.finish().unwrap().to_vec();
                assert_eq!(joined(folder.path(), &parts), content);
            }
        }
    }

    #[test]
    fn a_rewound_writer_has_the_bytes_before_the_offset() {
        let content: Vec<u8> = (0..=99).collect();
        for offset in 0..=100 {
            let folder = tempfile::tempdir().unwrap();
            let mut writer = PartWriter::open(files(folder.path(), Some(30)), &folder.path().join("record")).unwrap();
            writer.write(&content).unwrap();
            writer.rewind(offset).unwrap();
            assert_eq!(writer.position(), offset);
            let mut read = Vec::new();
            while (read.len() as u64) < offset {
                read.extend(writer.written().read(read.len() as u64, 7).unwrap());
            }
            assert_eq!(read, &content[..offset as usize]);
            writer.write(&content[offset as usize..]).unwrap();
            let parts = writer.finish().unwrap().to_vec();
            assert_eq!(joined(folder.path(), &parts), content);
        }
    }
}
