//! Creates files and folders that only their owner can read, whatever the umask: imgsync's state, secrets and reports
//! name private repositories and accounts.

use std::fs::{File, OpenOptions};
use std::io;
use std::path::Path;

/// Creates a folder and its missing parents, each for its owner only. An existing folder keeps its mode: it may be
/// shared on purpose.
pub fn create_folder(folder: &Path) -> io::Result<()> {
    if folder.as_os_str().is_empty() || folder.is_dir() {
        return Ok(());
    }
    if let Some(above) = folder.parent() {
        create_folder(above)?;
    }
    match std::fs::create_dir(folder) {
        Ok(()) => set_mode(folder, FOLDER_MODE),
        // Another process was faster.
        Err(_) if folder.is_dir() => Ok(()),
        Err(error) => Err(error),
    }
}

/// Creates or truncates a file for writing. A new file is for its owner only; an existing one keeps its mode.
pub fn create_or_truncate(path: &Path) -> io::Result<File> {
    open(path, OpenOptions::new().write(true).truncate(true))
}

/// Opens a file with these options; creates it for its owner only if it is missing.
pub fn open(path: &Path, options: &mut OpenOptions) -> io::Result<File> {
    match options.open(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        opened => return opened,
    }
    let mut new = options.clone();
    new.create_new(true);
    #[cfg(unix)]
    std::os::unix::fs::OpenOptionsExt::mode(&mut new, FILE_MODE);
    match new.open(path) {
        Ok(file) => {
            // A umask can only remove rights: here the owner's own.
            set_mode(path, FILE_MODE)?;
            Ok(file)
        }
        // Another process was faster.
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => options.open(path),
        Err(error) => Err(error),
    }
}

/// Removes the rights of group and others to a file, if it exists.
pub fn restrict_to_owner(path: &Path) -> io::Result<()> {
    match set_mode(path, FILE_MODE) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        done => done,
    }
}

/// Mode of a folder: its owner reads, writes and enters it.
const FOLDER_MODE: u32 = 0o700;
/// Mode of a file: its owner reads and writes it.
const FILE_MODE: u32 = 0o600;

#[cfg(unix)]
fn set_mode(path: &Path, mode: u32) -> io::Result<()> {
    use std::os::unix::fs::PermissionsExt as _;
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode))
}

#[cfg(not(unix))]
fn set_mode(_path: &Path, _mode: u32) -> io::Result<()> {
    Ok(())
}

#[cfg(all(test, unix))]
#[allow(clippy::unwrap_used, reason = "tests")]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    fn mode(path: &Path) -> u32 {
        std::fs::metadata(path).unwrap().permissions().mode() & 0o777
    }

    #[test]
    fn what_is_new_is_for_its_owner_and_what_was_there_stays() {
        let folder = tempfile::tempdir().unwrap();
        let shared = folder.path().join("shared");
        std::fs::create_dir(&shared).unwrap();
        std::fs::set_permissions(&shared, std::fs::Permissions::from_mode(0o755)).unwrap();
        let deep = shared.join("a/b");
        create_folder(&deep).unwrap();
        create_folder(&deep).unwrap();
        assert_eq!((mode(&shared), mode(&shared.join("a")), mode(&deep)), (0o755, 0o700, 0o700));
        let file = deep.join("report");
        drop(create_or_truncate(&file).unwrap());
        assert_eq!(mode(&file), 0o600);
        std::fs::set_permissions(&file, std::fs::Permissions::from_mode(0o644)).unwrap();
        drop(create_or_truncate(&file).unwrap());
        assert_eq!(mode(&file), 0o644);
        restrict_to_owner(&file).unwrap();
        restrict_to_owner(&deep.join("missing")).unwrap();
        assert_eq!(mode(&file), 0o600);
    }
}
