//! Results of a scan, and the recorder that the parsers of all formats write to.

use std::fmt;
use std::sync::Arc;

use imgsync_oci::sanitize::sanitize_within;
use imgsync_oci::{Digest, Reference, Tag};

/// Maximum number of names, problems and undecided values recorded for one file.
pub(crate) const MAX_NAMES: usize = 200_000;
/// Maximum length of a quoted value in characters.
const MAX_QUOTED_CHARS: usize = 200;

/// How certain it is that a name is the name of an image.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Certainty {
    /// It is the value of a field that names an image.
    Sure,
    /// It is a string that has the form of an image name with a tag or digest.
    Perhaps,
}

/// Place of a name in a file.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ImagePlace {
    /// Name of the file.
    pub file: Arc<str>,
    /// Line, from 1; 0 if it is unknown.
    pub line: usize,
    /// Path in the document, such as `Deployment/web spec.template.spec.containers[0].image`; may be empty.
    pub path: String,
}

/// A name that was found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FoundImage {
    /// The image, always with a tag or a digest.
    pub image: Reference,
    /// How certain it is that this is an image.
    pub certainty: Certainty,
    /// Digest that runs under this name, from the status of a pod or node.
    pub running: Option<Digest>,
    /// Its place.
    pub place: ImagePlace,
}

/// A value that should name an image and does not, as far as the file tells.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UndecidedName {
    /// The value as written, safe to print.
    pub text: String,
    /// How certain it is that it should name an image.
    pub certainty: Certainty,
    /// Why it names no image.
    pub reason: String,
    /// Its place.
    pub place: ImagePlace,
}

/// A file, or a part of one, that was not understood.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ScanProblem {
    /// What was not understood, and why.
    pub reason: String,
    /// Where it begins.
    pub place: ImagePlace,
}

/// What one file contains.
#[derive(Debug, Clone, Default)]
pub struct FileScan {
    /// Names, in the order of the file. A name may occur several times.
    pub found: Vec<FoundImage>,
    /// Values that should name an image, and cannot be decided.
    pub undecided: Vec<UndecidedName>,
    /// Parts that were not understood.
    pub problems: Vec<ScanProblem>,
    /// Parts whose images are elsewhere: in charts that are not rendered, in catalogs, in other files.
    pub elsewhere: Vec<ScanProblem>,
    /// Number of Kubernetes Secrets, whose contents are never read.
    pub secrets: usize,
}

impl fmt::Display for ImagePlace {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.file)?;
        if self.line > 0 {
            write!(f, ":{}", self.line)?;
        }
        if !self.path.is_empty() {
            write!(f, " ({})", self.path)?;
        }
        Ok(())
    }
}

/// Records what the parsers of one file find.
pub(crate) struct Recorder {
    file: Arc<str>,
    scan: FileScan,
    is_full: bool,
    /// Lines of the file before the current document.
    line_offset: usize,
}

impl Recorder {
    pub(crate) fn new(file: &str) -> Recorder {
        Recorder { file: sanitize_within(file, 1000).into(), scan: FileScan::default(), is_full: false, line_offset: 0 }
    }

    pub(crate) fn finish(self) -> FileScan {
        self.scan
    }

    /// Returns whether nothing more is recorded.
    pub(crate) fn is_full(&self) -> bool {
        self.is_full
    }

    /// Sets the number of lines before the document that is read next.
    pub(crate) fn set_line_offset(&mut self, lines: usize) {
        self.line_offset = lines;
    }

    pub(crate) fn count_secret(&mut self) {
        self.scan.secrets += 1;
    }

    fn place(&self, line: usize, path: &str) -> ImagePlace {
        let line = if line > 0 { line + self.line_offset } else { 0 };
        ImagePlace { file: self.file.clone(), line, path: sanitize_within(path, MAX_QUOTED_CHARS * 2).into_owned() }
    }

    /// Returns whether one more result may be recorded. Reports once that there are too many.
    fn has_room(&mut self, line: usize) -> bool {
        if self.is_full {
            return false;
        }
        let scan = &self.scan;
        if scan.found.len() + scan.undecided.len() + scan.problems.len() + scan.elsewhere.len() < MAX_NAMES {
            return true;
        }
        self.is_full = true;
        let reason = format!("there are more than {MAX_NAMES} names in this file: the rest of it is not read");
        let place = self.place(line, "");
        self.scan.problems.push(ScanProblem { reason, place });
        false
    }

    /// Records a parsed image. Without tag and digest it is `latest`.
    pub(crate) fn found(&mut self, image: Reference, certainty: Certainty, line: usize, path: &str) {
        self.found_running(image, certainty, None, line, path);
    }

    pub(crate) fn found_running(
        &mut self,
        image: Reference,
        certainty: Certainty,
        running: Option<Digest>,
        line: usize,
        path: &str,
    ) {
        if !self.has_room(line) {
            return;
        }
        let image = match (&image.tag, &image.digest) {
            (None, None) => image.with_tag(Tag::latest()),
            _ => image,
        };
        let place = self.place(line, path);
        self.scan.found.push(FoundImage { image, certainty, running, place });
    }

    /// Records a value that cannot be decided.
    pub(crate) fn undecided(
        &mut self,
        text: &str,
        certainty: Certainty,
        reason: impl Into<String>,
        line: usize,
        path: &str,
    ) {
        if !self.has_room(line) {
            return;
        }
        let text = sanitize_within(text.trim(), MAX_QUOTED_CHARS).into_owned();
        let place = self.place(line, path);
        self.scan.undecided.push(UndecidedName { text, certainty, reason: reason.into(), place });
    }

    /// Records a part that is not understood.
    pub(crate) fn problem(&mut self, reason: impl Into<String>, line: usize, path: &str) {
        if self.has_room(line) {
            let place = self.place(line, path);
            self.scan.problems.push(ScanProblem { reason: reason.into(), place });
        }
    }

    /// Records a part whose images are elsewhere.
    pub(crate) fn elsewhere(&mut self, reason: impl Into<String>, line: usize, path: &str) {
        if self.has_room(line) {
            let place = self.place(line, path);
            self.scan.elsewhere.push(ScanProblem { reason: reason.into(), place });
        }
    }

    /// Records the value of a field that names an image: the image, or why it names none. An empty value is no image.
    pub(crate) fn image_field(&mut self, text: &str, certainty: Certainty, line: usize, path: &str) {
        let text = text.trim();
        if text.is_empty() {
            return;
        }
        match crate::templates::parse_image(text) {
            Ok(image) => match certainty {
                Certainty::Perhaps if image.tag.is_none() && image.digest.is_none() => {}
                _ => self.found(image, certainty, line, path),
            },
            Err(_) if certainty == Certainty::Perhaps && !crate::templates::has_template(text) => {}
            Err(reason) => self.undecided(text, certainty, reason, line, path),
        }
    }
}
