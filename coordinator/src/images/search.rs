//! Reads files and folders with manifests, lists and the like.

use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};

use imgsync_image_names::{
    Certainty, FileScan, ImageList, ImagePlace, MAX_FILE_BYTES, ScanProblem, UndecidedName, is_candidate, scan_file,
};
use imgsync_oci::error::{Error, ErrorKind, Result};
use imgsync_oci::sanitize::sanitize;

/// Maximum number of files read in a folder.
const MAX_FILES: usize = 100_000;
/// Maximum number of different images in all files.
const MAX_IMAGES: usize = 1_000_000;
/// Maximum depth of folders.
const MAX_DEPTH: usize = 64;
/// Maximum number of undecided names and problems of all files together.
const MAX_REMARKS: usize = 100_000;

/// The images of some files, and what was not understood.
#[derive(Debug, Default)]
pub struct ImageSearch {
    /// The images.
    pub images: ImageList,
    /// Values that should name an image, or may, and cannot be decided.
    undecided: Vec<UndecidedName>,
    /// Files and documents that were not understood.
    pub problems: Vec<ScanProblem>,
    /// Number of files in folders that could not be read; they are among the problems.
    pub unreadable: usize,
    /// Parts whose images are elsewhere, as in charts that are not rendered.
    pub elsewhere: Vec<ScanProblem>,
    /// Number of files read.
    pub files: usize,
    /// Number of files in folders that were not read, because of their names or types.
    pub skipped: usize,
    /// Number of Kubernetes Secrets, whose contents are never read.
    pub secrets: usize,
    /// Number of undecided names and problems that are not in the lists above.
    pub omitted: usize,
}

impl ImageSearch {
    /// Reads a file, or the files in a folder and below. Fails if the path itself cannot be read, or if a folder has
    /// too many files or images.
    pub fn add_path(&mut self, path: &Path) -> Result<()> {
        let failed = |error: std::io::Error| cannot_read(path, &error.to_string());
        match std::fs::metadata(path).map_err(failed)?.is_dir() {
            true => self.add_folder(path),
            false => {
                let bytes = read_file(path).map_err(failed)?;
                self.add_bytes(&path.display().to_string(), &bytes);
                Ok(())
            }
        }
    }

    /// Reads an open file or pipe.
    pub fn add_reader(&mut self, name: &str, reader: impl Read) -> Result<()> {
        let bytes = read_bounded(reader).map_err(|error| cannot_read(Path::new(name), &error.to_string()))?;
        self.add_bytes(name, &bytes);
        Ok(())
    }

    /// Reads the content of a file.
    pub fn add_bytes(&mut self, name: &str, bytes: &[u8]) {
        let mut scan = scan_file(name, bytes);
        self.files += 1;
        self.secrets += scan.secrets;
        self.images.add(&mut scan);
        let FileScan { undecided, problems, elsewhere, .. } = scan;
        self.omitted += append(&mut self.undecided, undecided);
        self.omitted += append(&mut self.problems, problems);
        self.omitted += append(&mut self.elsewhere, elsewhere);
    }

    /// Returns the values of a certainty that cannot be decided.
    pub fn undecided(&self, certainty: Certainty) -> impl Iterator<Item = &UndecidedName> {
        self.undecided.iter().filter(move |name| name.certainty == certainty)
    }

    /// Returns whether everything was understood, and all values decided that name an image for sure.
    pub fn is_complete(&self) -> bool {
        self.undecided(Certainty::Sure).next().is_none() && self.problems.is_empty() && self.omitted == 0
    }

    fn add_folder(&mut self, folder: &Path) -> Result<()> {
        let FolderFiles { candidates, skipped } = find_files(folder)?;
        self.skipped += skipped;
        for file in candidates {
            let name = file.display().to_string();
            match read_file(&file) {
                Ok(bytes) => self.add_bytes(&name, &bytes),
                Err(error) => {
                    let place = ImagePlace { file: sanitize(&name).into(), line: 0, path: String::new() };
                    let reason = format!("it cannot be read: {error}");
                    self.unreadable += 1;
                    self.omitted += append(&mut self.problems, vec![ScanProblem { reason, place }]);
                }
            }
            if self.images.len() > MAX_IMAGES {
                return Err(cannot_read(folder, &format!("it names more than {MAX_IMAGES} images")));
            }
        }
        Ok(())
    }
}

/// Files in a folder and below.
#[derive(Debug, Default)]
pub(super) struct FolderFiles {
    /// Files to read, in order.
    pub(super) candidates: Vec<PathBuf>,
    /// Number of other files, by their names or types.
    pub(super) skipped: usize,
}

/// Finds the files below a folder. Hidden files and folders are left out, as those of Git; links to folders are not
/// followed.
pub(super) fn find_files(folder: &Path) -> Result<FolderFiles> {
    let mut found = FolderFiles::default();
    found.add_folder(folder, 0)?;
    found.candidates.sort();
    Ok(found)
}

impl FolderFiles {
    fn add_folder(&mut self, folder: &Path, depth: usize) -> Result<()> {
        let failed = |error: std::io::Error| cannot_read(folder, &error.to_string());
        if depth > MAX_DEPTH {
            return Err(cannot_read(folder, &format!("it is more than {MAX_DEPTH} folders deep")));
        }
        for entry in std::fs::read_dir(folder).map_err(failed)? {
            let entry = entry.map_err(failed)?;
            if entry.file_name().as_encoded_bytes().starts_with(b".") {
                continue;
            }
            let path = entry.path();
            if entry.file_type().map_err(failed)?.is_dir() {
                self.add_folder(&path, depth + 1)?;
            } else if is_candidate(&path) && std::fs::metadata(&path).is_ok_and(|found| found.is_file()) {
                self.candidates.push(path);
            } else {
                self.skipped += 1;
            }
            if self.candidates.len() > MAX_FILES {
                return Err(cannot_read(folder, &format!("it has more than {MAX_FILES} files")));
            }
        }
        Ok(())
    }
}

/// Appends as many as fit, and returns the number of the others.
fn append<T>(all: &mut Vec<T>, more: Vec<T>) -> usize {
    let room = MAX_REMARKS.saturating_sub(all.len());
    let omitted = more.len().saturating_sub(room);
    all.extend(more.into_iter().take(room));
    omitted
}

fn cannot_read(path: &Path, why: &str) -> Error {
    Error::new(ErrorKind::Invalid, format!("reading {}", path.display()), why)
}

fn read_file(path: &Path) -> std::io::Result<Vec<u8>> {
    read_bounded(File::open(path)?)
}

/// Reads one byte more than is allowed, so that the scan sees that a file is too large.
fn read_bounded(reader: impl Read) -> std::io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    reader.take(MAX_FILE_BYTES as u64 + 1).read_to_end(&mut bytes)?;
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn folders_are_read_in_order_and_other_files_are_counted() {
        let folder = tempfile::tempdir().unwrap();
        let write = |name: &str, text: &str| {
            let path = folder.path().join(name);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, text).unwrap();
        };
        write("b/pod.yaml", "kind: Pod\nspec: {containers: [{name: a, image: 'r.example/b:1'}]}\n");
        write("images.txt", "r.example/a:1\nr.example/b:1\n");
        write("README.md", "r.example/readme:1\n");
        write(".git/images.txt", "r.example/git:1\n");
        write("notes.txt", "r.example/notes:1\n");
        std::os::unix::fs::symlink(folder.path(), folder.path().join("loop")).unwrap();
        let mut search = ImageSearch::default();
        search.add_path(folder.path()).unwrap();
        let names: Vec<String> = search.images.all().map(|(image, _)| image.to_string()).collect();
        assert_eq!(names, ["r.example/a:1", "r.example/b:1"]);
        assert_eq!((search.files, search.skipped), (2, 3), "README.md, notes.txt, loop");
        assert!(search.is_complete());
        let error = search.add_path(&folder.path().join("none")).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Invalid);
    }
}
