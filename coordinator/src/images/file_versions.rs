//! Versions of files that name images: whether they have changed, without reading them.

use std::fs::Metadata;
use std::hash::{DefaultHasher, Hash as _, Hasher as _};
use std::path::{Path, PathBuf};

use jiff::Timestamp;

use super::search::find_files;

/// Version of some files and of the files in some folders.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct FileVersions {
    /// Hash of names, sizes, times and inodes.
    hash: u64,
    /// When the newest file was changed.
    pub(crate) changed_at: Option<Timestamp>,
}

impl FileVersions {
    /// Reads the version of files and folders; `None` if one of them cannot be read, as while it is replaced.
    pub(crate) fn read(paths: &[PathBuf]) -> Option<FileVersions> {
        let (mut hasher, mut changed_at) = (DefaultHasher::new(), None);
        for path in paths {
            let metadata = std::fs::metadata(path).ok()?;
            if !metadata.is_dir() {
                add(path, &metadata, &mut hasher, &mut changed_at);
                continue;
            }
            for file in find_files(path).ok()?.candidates {
                add(&file, &std::fs::metadata(&file).ok()?, &mut hasher, &mut changed_at);
            }
        }
        Some(FileVersions { hash: hasher.finish(), changed_at })
    }
}

/// Adds a file to the hash, and its time to the newest one.
fn add(path: &Path, metadata: &Metadata, hasher: &mut DefaultHasher, changed_at: &mut Option<Timestamp>) {
    let modified = metadata.modified().ok();
    (path, metadata.len(), modified).hash(hasher);
    #[cfg(unix)]
    std::os::unix::fs::MetadataExt::ino(metadata).hash(hasher);
    *changed_at = (*changed_at).max(modified.and_then(|time| Timestamp::try_from(time).ok()));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_version_changes_with_each_file_that_is_read_and_with_no_other() {
        let folder = tempfile::tempdir().unwrap();
        let at = |name: &str| folder.path().join(name);
        std::fs::create_dir_all(at("manifests/deep")).unwrap();
        std::fs::write(at("images.txt"), "a/b:1\n").unwrap();
        std::fs::write(at("manifests/deep/web.yaml"), "kind: Pod\n").unwrap();
        let paths = [at("images.txt"), at("manifests")];
        let mut before = FileVersions::read(&paths).unwrap();
        let mut is_changed = || {
            let now = FileVersions::read(&paths).unwrap();
            std::mem::replace(&mut before, now) != now
        };
        assert!(!is_changed());
        std::fs::write(at("images.txt"), "a/b:1\nc/d:2\n").unwrap();
        assert!(is_changed());
        std::fs::write(at("manifests/deep/web.yaml"), "kind: Job\n\n").unwrap();
        assert!(is_changed());
        std::fs::write(at("manifests/deep/new.yaml"), "").unwrap();
        assert!(is_changed());
        std::fs::remove_file(at("manifests/deep/new.yaml")).unwrap();
        assert!(is_changed());
        // A file of the same size and time, moved over the other one.
        let time = std::fs::metadata(at("images.txt")).unwrap().modified().unwrap();
        std::fs::write(at("other"), "e/f:1\ng/h:2\n").unwrap();
        std::fs::File::options().write(true).open(at("other")).unwrap().set_modified(time).unwrap();
        std::fs::rename(at("other"), at("images.txt")).unwrap();
        assert!(is_changed());
        std::fs::write(at("manifests/deep/notes.md"), "").unwrap();
        std::fs::write(at("manifests/.hidden.yaml"), "").unwrap();
        assert!(!is_changed(), "files that are not read");
        std::fs::remove_file(at("images.txt")).unwrap();
        assert_eq!(FileVersions::read(&paths), None);
    }
}
