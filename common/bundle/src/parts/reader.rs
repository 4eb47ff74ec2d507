//! Reads the parts of a bundle as one file, wherever they are and whatever their names are.

use std::collections::HashMap;
use std::fs::File;
use std::io::{self, Read as _};
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};

use imgsync_oci::error::{Error, ErrorKind, Result};

use super::{BundlePart, HEAD_BYTES, HeadHash, PartList, hash_part, is_part_list};
use crate::error::io_error;

/// Maximum number of files looked at in a folder.
const MAX_FILES: usize = 100_000;
/// Name of the first member of a bundle, as its header begins.
const FIRST_MEMBER: [u8; 11] = *b"oci-layout\0";
/// Length of the empty blocks at the end of a tar in bytes.
const TRAILER_BYTES: u64 = 1024;
/// Maximum number of parts named in a message.
const MAX_NAMES: usize = 5;

/// The parts of a bundle as one file.
#[derive(Debug)]
pub struct PartReader {
    parts: Vec<FoundPart>,
    size: u64,
    list: Option<PartList>,
    label: String,
    folder: PathBuf,
    name: String,
}

#[derive(Debug)]
struct FoundPart {
    file: File,
    path: PathBuf,
    start: u64,
    size: u64,
}

/// A part that is not what the list says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PartDamage {
    /// Path of the file.
    pub path: PathBuf,
    /// Name in the list.
    pub name: String,
    /// What is wrong.
    pub detail: String,
}

impl PartReader {
    /// Opens a bundle: a folder with one, its list of parts, one of its parts, or a bundle in one file. Parts are also
    /// looked for among the other paths, which are files or folders.
    pub fn open(paths: &[PathBuf]) -> Result<PartReader> {
        let Some(first) = paths.first() else {
            return Err(Error::new(ErrorKind::Invalid, "opening a bundle", "no file is named"));
        };
        let mut found = None;
        for path in paths {
            found = find_bundle(path)?;
            if found.is_some() {
                break;
            }
        }
        let operation = format!("opening the bundle {}", first.display());
        match found {
            Some(BundlePath::List(path)) => PartReader::open_parts(&path, paths),
            Some(BundlePath::File(path)) => PartReader::open_file(&path),
            None if first.is_dir() => Err(Error::new(
                ErrorKind::NotFound,
                operation,
                "the folder has no list of a bundle's parts (NAME.json)",
            )
            .with_hint("the list is written last: if it is missing, the bundle is not complete")),
            None => Err(Error::new(ErrorKind::NotFound, operation, "there is no such file")),
        }
    }

    fn open_file(path: &Path) -> Result<PartReader> {
        let operation = format!("opening the bundle {}", path.display());
        let opened = File::open(path).and_then(|file| file.metadata().map(|metadata| (file, metadata.len())));
        let (file, size) = opened.map_err(|error| io_error(&operation, path, error))?;
        let (folder, name) = split_path(path);
        let parts = vec![FoundPart { file, path: path.to_owned(), start: 0, size }];
        Ok(PartReader { parts, size, list: None, label: path.display().to_string(), folder, name })
    }

    /// Reads a bundle in one file that has no name. The label is for messages.
    pub fn open_nameless(file: File, label: &str) -> Result<PartReader> {
        let metadata = file.metadata();
        let size =
            metadata.map_err(|error| io_error(&format!("opening the bundle {label}"), label.as_ref(), error))?.len();
        let (folder, name) = split_path(label.as_ref());
        let parts = vec![FoundPart { file, path: label.into(), start: 0, size }];
        Ok(PartReader { parts, size, list: None, label: label.to_owned(), folder, name })
    }

    fn open_parts(list_path: &Path, paths: &[PathBuf]) -> Result<PartReader> {
        let list = PartList::read(list_path)?;
        let operation = format!("opening the bundle {}", list_path.display());
        let (folder, list_name) = split_path(list_path);
        let name = list_name.strip_suffix(".json").unwrap_or(&list_name).to_owned();
        let candidates = list_candidates(&folder, paths)?;
        let mut by_size: HashMap<u64, Vec<&Path>> = HashMap::new();
        for (path, size) in &candidates {
            by_size.entry(*size).or_default().push(path);
        }
        let mut heads: HashMap<&Path, String> = HashMap::new();
        let (mut parts, mut start, mut missing, mut wrong) = (Vec::new(), 0, Vec::new(), Vec::new());
        for part in &list.parts {
            let mut same_size = by_size.get(&part.size).cloned().unwrap_or_default();
            // By name first: others are read only if that one is not it.
            same_size.sort_by_key(|path| path.file_name() != Some(part.name.as_ref()));
            let mut matching = None;
            for path in same_size {
                let head = match heads.get(path) {
                    Some(head) => head.clone(),
                    None => hash_head(path)?,
                };
                let is_it = head == part.head_sha256;
                heads.insert(path, head);
                if is_it {
                    matching = Some(path);
                    break;
                }
            }
            match matching {
                Some(path) => {
                    let file = File::open(path).map_err(|error| io_error(&operation, path, error))?;
                    parts.push(FoundPart { file, path: path.to_owned(), start, size: part.size });
                }
                None => match candidates.iter().find(|(path, _)| path.file_name() == Some(part.name.as_ref())) {
                    Some((path, size)) => wrong.push(describe_wrong(path, *size, part)),
                    None => missing.push(part.name.as_str()),
                },
            }
            start += part.size;
        }
        if !wrong.is_empty() {
            let detail = join_names(&wrong.iter().map(String::as_str).collect::<Vec<_>>(), "; ");
            return Err(Error::new(ErrorKind::Corrupt, operation, detail).with_hint("carry this part over again"));
        }
        if !missing.is_empty() {
            let detail = format!(
                "{} of {} parts {} missing: {}",
                missing.len(),
                list.parts.len(),
                if missing.len() == 1 { "is" } else { "are" },
                join_names(&missing, ", ")
            );
            return Err(Error::new(ErrorKind::Incomplete, operation, detail)
                .with_hint("copy them into the same folder, or name their folders behind the bundle"));
        }
        Ok(PartReader {
            parts,
            size: start,
            list: Some(list),
            label: folder.join(&name).display().to_string(),
            folder,
            name,
        })
    }

    /// Returns the path of the bundle, for messages.
    pub fn label(&self) -> &str {
        &self.label
    }

    /// Returns the folder of the bundle.
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// Returns the name of the bundle.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Returns the list of parts, if there is one.
    pub fn list(&self) -> Option<&PartList> {
        self.list.as_ref()
    }

    /// Reads bytes at an offset. Fails if the bundle ends before.
    pub fn read_exact_at(&self, mut buffer: &mut [u8], mut offset: u64) -> io::Result<()> {
        while !buffer.is_empty() {
            match self.read_some(buffer, offset) {
                Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
                Ok(read) => {
                    buffer = &mut buffer[read..];
                    offset += read as u64;
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    fn read_some(&self, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
        let at = self.parts.partition_point(|part| part.start + part.size <= offset);
        let Some(part) = self.parts.get(at).filter(|_| !buffer.is_empty()) else { return Ok(0) };
        let left = part.start + part.size - offset;
        let wanted = usize::try_from(left).unwrap_or(usize::MAX).min(buffer.len());
        match part.file.read_at(&mut buffer[..wanted], offset - part.start) {
            Ok(0) => Err(io::Error::new(
                io::ErrorKind::UnexpectedEof,
                format!("{} was truncated while it was read", part.path.display()),
            )),
            read => read.map_err(|error| io::Error::new(error.kind(), format!("{}: {error}", part.path.display()))),
        }
    }

    /// Hashes all parts, and returns those that are not what the list says or cannot be read. Calls `progress` with each part's size.
    /// Empty without a list.
    pub fn find_damage(&self, mut progress: impl FnMut(u64)) -> Vec<PartDamage> {
        let mut damaged = Vec::new();
        for (part, found) in self.list.iter().flat_map(|list| &list.parts).zip(&self.parts) {
            let detail = match hash_part(&found.path) {
                Ok((sha256, _)) if sha256 == part.sha256 => None,
                Ok((sha256, _)) => Some(format!("its SHA-256 is {sha256}, and the list has {}", part.sha256)),
                Err(error) => Some(error.message().to_owned()),
            };
            damaged.extend(detail.map(|detail| PartDamage {
                path: found.path.clone(),
                name: part.name.clone(),
                detail,
            }));
            progress(part.size);
        }
        damaged
    }
}

impl imgsync_layout::ReadAt for PartReader {
    fn len(&self) -> u64 {
        self.size
    }

    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
        self.read_some(buffer, offset)
    }
}

/// Path of a bundle.
enum BundlePath {
    /// Its list of parts.
    List(PathBuf),
    /// A bundle in one file, without a list.
    File(PathBuf),
}

fn find_bundle(path: &Path) -> Result<Option<BundlePath>> {
    if path.is_dir() {
        let operation = format!("opening the bundle {}", path.display());
        let mut lists: Vec<PathBuf> = std::fs::read_dir(path)
            .map_err(|error| io_error(&operation, path, error))?
            .take(MAX_FILES)
            .filter_map(|entry| entry.ok().map(|entry| entry.path()))
            .filter(|path| path.extension().is_some_and(|extension| extension == "json") && is_part_list(path))
            .collect();
        lists.sort();
        return match lists.len() {
            0 | 1 => Ok(lists.pop().map(BundlePath::List)),
            several => {
                let names: Vec<&str> = lists.iter().filter_map(|path| path.file_name()?.to_str()).collect();
                let detail = format!("the folder has {several} bundles: {}", join_names(&names, ", "));
                Err(Error::new(ErrorKind::Invalid, operation, detail).with_hint("name one of these files"))
            }
        };
    }
    if is_part_list(path) {
        return Ok(Some(BundlePath::List(path.to_owned())));
    }
    let (folder, name) = split_path(path);
    let without_number = name.rsplit_once('.').filter(|(_, number)| number.bytes().all(|byte| byte.is_ascii_digit()));
    for stem in [Some(name.as_str()), without_number.map(|(stem, _)| stem)].into_iter().flatten() {
        let list = folder.join(format!("{stem}.json"));
        if is_part_list(&list) {
            return Ok(Some(BundlePath::List(list)));
        }
    }
    if path.exists() && !path.is_file() {
        let operation = format!("opening the bundle {}", path.display());
        return Err(Error::new(ErrorKind::Invalid, operation, "it is not a regular file")
            .with_hint("a bundle is read at any offset: save it to a file"));
    }
    if without_number.is_some() && path.exists() && !is_whole_tar(path) {
        let operation = format!("opening the bundle {}", path.display());
        return Err(Error::new(ErrorKind::NotFound, operation, "the list of its parts (NAME.json) is not beside it")
            .with_hint("the list is written last: if it is missing, the bundle is not complete"));
    }
    Ok(path.exists().then(|| BundlePath::File(path.to_owned())))
}

/// Whether a file begins and ends as a tar of imgsync does: then it is a bundle in one file, whatever its name is.
fn is_whole_tar(path: &Path) -> bool {
    let mut first = [0; FIRST_MEMBER.len()];
    let mut end = [0; TRAILER_BYTES as usize];
    let read = File::open(path).and_then(|file| {
        let start = file.metadata()?.len().checked_sub(TRAILER_BYTES).ok_or(io::ErrorKind::UnexpectedEof)?;
        file.read_exact_at(&mut first, 0)?;
        file.read_exact_at(&mut end, start)
    });
    read.is_ok() && first == FIRST_MEMBER && end == [0; TRAILER_BYTES as usize]
}

/// Lists the files that may be parts, with their sizes.
fn list_candidates(folder: &Path, paths: &[PathBuf]) -> Result<Vec<(PathBuf, u64)>> {
    let mut found: Vec<(PathBuf, u64)> = Vec::new();
    let mut add = |path: PathBuf| {
        let is_hidden = path.file_name().is_some_and(|name| name.to_string_lossy().starts_with('.'));
        let size = std::fs::metadata(&path).ok().filter(|metadata| metadata.is_file()).map(|metadata| metadata.len());
        if let Some(size) = size.filter(|_| !is_hidden && found.len() < MAX_FILES) {
            found.push((path, size));
        }
    };
    let folders = std::iter::once(folder).chain(paths.iter().map(PathBuf::as_path));
    for path in folders {
        if path.is_dir() {
            let entries = std::fs::read_dir(path)
                .map_err(|error| io_error(&format!("looking for parts in {}", path.display()), path, error))?;
            entries.take(MAX_FILES).filter_map(io::Result::ok).for_each(|entry| add(entry.path()));
        } else {
            add(path.to_owned());
        }
    }
    found.sort();
    found.dedup();
    Ok(found)
}

fn hash_head(path: &Path) -> Result<String> {
    let operation = format!("reading {}", path.display());
    let mut bytes = Vec::new();
    File::open(path)
        .and_then(|file| file.take(HEAD_BYTES as u64).read_to_end(&mut bytes))
        .map_err(|error| io_error(&operation, path, error))?;
    let mut head = HeadHash::default();
    head.update(&bytes);
    Ok(head.finish())
}

fn describe_wrong(path: &Path, size: u64, part: &BundlePart) -> String {
    match size == part.size {
        true => format!("{} is damaged, or a part of another bundle", path.display()),
        false => format!(
            "{} is truncated, or a part of another bundle: it has {size} bytes, and the list has {}",
            path.display(),
            part.size
        ),
    }
}

fn split_path(path: &Path) -> (PathBuf, String) {
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    (folder.to_owned(), path.file_name().unwrap_or_default().to_string_lossy().into_owned())
}

fn join_names(names: &[&str], separator: &str) -> String {
    let mut text = names[..names.len().min(MAX_NAMES)].join(separator);
    if names.len() > MAX_NAMES {
        text.push_str(&format!(" and {} more", names.len() - MAX_NAMES));
    }
    imgsync_oci::sanitize::sanitize(&text).into_owned()
}
