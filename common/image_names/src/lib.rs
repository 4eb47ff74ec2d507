//! Finds the names of images in files that people have: Kubernetes manifests and custom resources, `kubectl get -o yaml`,
//! compose files, Dockerfiles, kustomizations, charts, the files of hauler, zarf, oc-mirror and imgpkg, and plain lists.
//!
//! [`scan_file`] takes the bytes of one file and returns a [`FileScan`]: each name with its place and its
//! [`Certainty`], names that cannot be decided, and parts of the file that are not understood. It is pure: nothing is
//! read, asked or guessed. [`ImageList`] merges the scans of many files.

mod compose;
mod dockerfile;
mod documents;
mod format;
mod heredocs;
mod image_list;
mod kubernetes;
mod limits;
mod packages;
mod plain_list;
mod pods;
mod recorder;
mod scan;
mod templates;
mod tokens;
mod variables;
mod walker;
mod yaml;

pub use format::is_candidate;
pub use image_list::{ImageList, ListedImage};
pub use limits::limits;
pub use recorder::{Certainty, FileScan, FoundImage, ImagePlace, ScanProblem, UndecidedName};
pub use scan::{MAX_FILE_BYTES, scan_file};

#[cfg(test)]
mod tests;
