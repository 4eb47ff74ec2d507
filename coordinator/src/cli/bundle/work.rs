//! The folder in which `bundle create` keeps what it has done, so that the next call goes on after a kill.

use std::collections::BTreeMap;
use std::fs::File;
use std::path::{Path, PathBuf};

use imgsync_model::batch::BatchId;
use imgsync_oci::Digest;
use imgsync_oci::error::{Error, ErrorKind, Result};
use serde::{Deserialize, Serialize};

/// Folder with the work for one output.
#[derive(Debug)]
pub(super) struct WorkFolder {
    path: PathBuf,
    _lock: File,
}

/// What is known once all images are collected. Written last, so that what it describes is complete.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct CollectedPlan {
    /// Batch that collected the images.
    pub(super) batch: BatchId,
    /// Exit code of that batch: whether images are missing.
    pub(super) is_incomplete: bool,
    /// Digest of the index, in the file `index`.
    pub(super) index: Digest,
    /// Signature of the index.
    pub(super) signature: Option<String>,
    /// Blobs that turned out to be missing or wrong while the bundle was written, with the errors.
    #[serde(default)]
    pub(super) bad_blobs: BTreeMap<Digest, String>,
    /// Images that are left out because of these.
    #[serde(default)]
    pub(super) left_out: Vec<String>,
}

impl WorkFolder {
    /// Opens the folder for an output. If it was started with other parameters, or `restart` is set, it is emptied.
    pub(super) fn open(state: &Path, output: &str, parameters: &Digest, restart: bool) -> Result<WorkFolder> {
        let path = state.join("bundles").join(&Digest::sha256(output.as_bytes()).hex()[..16]);
        let failed = |error: std::io::Error| work_error(&path, error);
        std::fs::create_dir_all(&path).map_err(failed)?;
        let lock = File::create(path.join("lock")).map_err(failed)?;
        match lock.try_lock() {
            Ok(()) => {}
            Err(std::fs::TryLockError::WouldBlock) => {
                let detail = "another process is making it";
                return Err(Error::new(ErrorKind::Invalid, format!("making the bundle {output}"), detail)
                    .with_hint("wait for its end"));
            }
            Err(std::fs::TryLockError::Error(error)) => return Err(failed(error)),
        }
        let work = WorkFolder { path, _lock: lock };
        let known = std::fs::read_to_string(work.file("parameters")).unwrap_or_default();
        if restart || known != parameters.to_string() {
            // What was written is removed before the next part is.
            if work.part_record().exists() {
                std::fs::rename(work.part_record(), work.abandoned_record())
                    .map_err(|error| work_error(&work.path, error))?;
            }
            work.empty()?;
            std::fs::write(work.file("parameters"), parameters.to_string())
                .map_err(|error| work_error(&work.path, error))?;
        }
        for name in ["store", "collected"] {
            std::fs::create_dir_all(work.file(name)).map_err(|error| work_error(&work.path, error))?;
        }
        Ok(work)
    }

    /// Returns the path of a file or folder in it.
    pub(super) fn file(&self, name: &str) -> PathBuf {
        self.path.join(name)
    }

    /// Returns the file in which whole parts are recorded.
    pub(super) fn part_record(&self) -> PathBuf {
        self.file("parts.json")
    }

    /// Returns the file with the parts of a bundle that is not continued.
    pub(super) fn abandoned_record(&self) -> PathBuf {
        self.file("abandoned.json")
    }

    /// Whether an interrupted call has written a part of the bundle.
    pub(super) fn has_written(&self) -> bool {
        self.part_record().exists()
    }

    /// Reads the plan, if all images are collected.
    pub(super) fn read_plan(&self) -> Option<(CollectedPlan, Vec<u8>)> {
        let plan: CollectedPlan = serde_json::from_slice(&std::fs::read(self.file("plan.json")).ok()?).ok()?;
        let index = std::fs::read(self.file("index")).ok()?;
        plan.index.verifies(&index).then_some((plan, index))
    }

    /// Writes the plan.
    pub(super) fn write_plan(&self, plan: &CollectedPlan, index: &[u8]) -> Result<()> {
        let write = |name: &str, bytes: &[u8]| {
            let new = self.file(&format!("{name}.new"));
            std::fs::write(&new, bytes)?;
            File::open(&new)?.sync_all()?;
            std::fs::rename(&new, self.file(name))
        };
        let text = serde_json::to_vec(plan).unwrap_or_default();
        write("index", index).and_then(|()| write("plan.json", &text)).map_err(|error| work_error(&self.path, error))
    }

    /// Removes everything: the bundle is complete. What stays, such as an open file on NFS, costs space alone, but not
    /// what the next call would go on with.
    pub(super) fn remove(self) -> Result<()> {
        for file in [self.part_record(), self.file("parameters")] {
            match std::fs::remove_file(file) {
                Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                    return Err(work_error(&self.path, error));
                }
                _ => {}
            }
        }
        _ = std::fs::remove_dir_all(&self.path);
        Ok(())
    }

    fn empty(&self) -> Result<()> {
        let emptied = std::fs::read_dir(&self.path).and_then(|mut entries| {
            entries.try_for_each(|entry| {
                let path = entry?.path();
                match path.is_dir() {
                    true => std::fs::remove_dir_all(&path),
                    false if path.ends_with("lock") || path.ends_with("abandoned.json") => Ok(()),
                    false => std::fs::remove_file(&path),
                }
            })
        });
        emptied.map_err(|error| work_error(&self.path, error))
    }
}

fn work_error(path: &Path, error: std::io::Error) -> Error {
    let detail = format!("{}: {error}", path.display());
    Error::new(ErrorKind::Local, "keeping what the bundle is made of", detail)
        .with_source(error)
        .with_hint("the folder is below --state DIR [default: $XDG_STATE_HOME/imgsync, else ~/.local/state/imgsync]")
}
