//! The folder of `--out`: files of earlier runs are replaced, and those of others are kept.

use std::io;
use std::path::{Path, PathBuf};

use imgsync_oci::Digest;
use imgsync_oci::error::{Error, ErrorKind, Result};

use crate::mirrors::{MirrorFormat, OutputFile, WRITTEN_BY};

/// Suffix of the file with the digests of a file whose format has no comments.
const DIGESTS_SUFFIX: &str = ".imgsync";

/// A folder for the files of a consumer.
pub(super) struct OutputFolder<'a>(&'a Path);

impl<'a> OutputFolder<'a> {
    /// Names the folder. It is created with its first file.
    pub(super) fn new(path: &'a Path) -> OutputFolder<'a> {
        OutputFolder(path)
    }

    /// Writes a file and returns its path. A file that somebody else wrote is kept.
    pub(super) fn write(&self, file: &OutputFile) -> Result<PathBuf> {
        let path = self.0.join(&file.path);
        let failed = |error: io::Error| {
            Error::new(ErrorKind::Local, format!("writing {}", path.display()), error.to_string()).with_source(error)
        };
        let found = match std::fs::read(&path) {
            Ok(found) => Some(found),
            Err(error) if error.kind() == io::ErrorKind::NotFound => None,
            Err(error) => return Err(failed(error)),
        };
        if let Some(found) = &found
            && !is_own(&path, found)
        {
            if found == file.text.as_bytes() {
                return Ok(path);
            }
            let error = Error::new(
                ErrorKind::Invalid,
                format!("writing {}", path.display()),
                "the file exists with other content, and nothing says that this command wrote it",
            );
            return Err(error.with_hint("remove it, or write to another folder and merge the files"));
        }
        if let Some(parent) = path.parent() {
            std::fs::create_dir_all(parent).map_err(failed)?;
        }
        if !file.text.starts_with(WRITTEN_BY) {
            // Also the digest of the old file, so that a run that ends here can be repeated.
            let digests: Vec<String> = [Some(file.text.as_bytes()), found.as_deref()]
                .into_iter()
                .flatten()
                .map(|content| format!("{}\n", Digest::sha256(content)))
                .collect();
            let text = format!(
                "{WRITTEN_BY}: the digests by which it knows its own {}, which has no comments.\n{}",
                file.path,
                digests.concat()
            );
            replace(&digests_path(&path), &text).map_err(failed)?;
        }
        if found.as_deref() != Some(file.text.as_bytes()) {
            replace(&path, &file.text).map_err(failed)?;
        }
        Ok(path)
    }

    /// Returns the files of a format that an earlier run wrote, and this one did not.
    pub(super) fn stale_files(&self, format: MirrorFormat, files: &[OutputFile]) -> Vec<PathBuf> {
        let written: Vec<PathBuf> = files.iter().map(|file| self.0.join(&file.path)).collect();
        let candidates: Vec<PathBuf> = match format {
            MirrorFormat::Containerd => {
                let folders = std::fs::read_dir(self.0).into_iter().flatten().flatten();
                folders.map(|entry| entry.path().join(format.file_name())).collect()
            }
            _ => vec![self.0.join(format.file_name())],
        };
        let mut stale: Vec<PathBuf> = candidates
            .into_iter()
            .filter(|path| !written.contains(path))
            .filter(|path| std::fs::read(path).is_ok_and(|found| is_own(path, &found)))
            .collect();
        stale.sort();
        stale
    }
}

/// Whether this command wrote a file: it says so, or the file beside it has its digest.
fn is_own(path: &Path, content: &[u8]) -> bool {
    if content.starts_with(WRITTEN_BY.as_bytes()) {
        return true;
    }
    let digest = Digest::sha256(content).to_string();
    std::fs::read_to_string(digests_path(path))
        .is_ok_and(|digests| digests.starts_with(WRITTEN_BY) && digests.lines().any(|line| line == digest))
}

fn digests_path(path: &Path) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(DIGESTS_SUFFIX);
    PathBuf::from(name)
}

/// Writes a file by way of a temporary one, so that a consumer never reads half of it.
fn replace(path: &Path, text: &str) -> io::Result<()> {
    let mut part = path.as_os_str().to_owned();
    part.push(".part");
    std::fs::write(&part, text)?;
    std::fs::rename(&part, path)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::mirrors::FileKind;

    fn file(text: &str) -> OutputFile {
        OutputFile { path: "daemon.json".to_owned(), kind: FileKind::Main, text: text.to_owned() }
    }

    #[test]
    fn a_file_without_comments_is_replaced_only_if_an_earlier_run_wrote_it() {
        let folder = tempfile::tempdir().unwrap();
        let out = OutputFolder::new(folder.path());
        let path = out.write(&file("{\"a\": 1}\n")).unwrap();
        out.write(&file("{\"a\": 2}\n")).unwrap();
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "{\"a\": 2}\n");

        // Somebody edits it.
        std::fs::write(&path, "{\"mine\": 1}\n").unwrap();
        let error = out.write(&file("{\"a\": 3}\n")).unwrap_err();
        assert!(error.to_string().contains("nothing says that this command wrote it"), "{error}");
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "{\"mine\": 1}\n");

        // With the same content, there is nothing to write, and it stays theirs.
        out.write(&file("{\"mine\": 1}\n")).unwrap();
        out.write(&file("{\"a\": 3}\n")).unwrap_err();
    }

    #[test]
    fn a_run_that_ended_between_its_two_files_can_be_repeated() {
        let folder = tempfile::tempdir().unwrap();
        let out = OutputFolder::new(folder.path());
        let path = out.write(&file("{\"a\": 1}\n")).unwrap();
        out.write(&file("{\"a\": 2}\n")).unwrap();
        std::fs::write(&path, "{\"a\": 1}\n").unwrap();
        out.write(&file("{\"a\": 3}\n")).unwrap();
    }

    #[test]
    fn files_that_a_run_did_not_write_are_stale_if_they_are_of_this_command() {
        let folder = tempfile::tempdir().unwrap();
        let out = OutputFolder::new(folder.path());
        let path = out.write(&file("{\"a\": 1}\n")).unwrap();
        assert_eq!(out.stale_files(MirrorFormat::Docker, &[]), std::slice::from_ref(&path));
        assert!(out.stale_files(MirrorFormat::Docker, &[file("")]).is_empty());
        assert!(out.stale_files(MirrorFormat::K3s, &[]).is_empty());
        std::fs::write(&path, "{}").unwrap();
        assert!(out.stale_files(MirrorFormat::Docker, &[]).is_empty());
        let hosts = "quay.io/hosts.toml";
        let text = format!("{WRITTEN_BY}\n");
        let path = out.write(&OutputFile { path: hosts.to_owned(), kind: FileKind::Main, text }).unwrap();
        assert_eq!(out.stale_files(MirrorFormat::Containerd, &[]), [path]);
    }
}
