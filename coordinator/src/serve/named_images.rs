//! The images that rules name, by digest or in files: what hooks may trigger them for.

use std::collections::{HashMap, HashSet};
use std::path::{Path, PathBuf};
use std::sync::{Arc, PoisonError, RwLock};
use std::time::{Duration, Instant};

use imgsync_config::{Rule, RuleSource};
use imgsync_image_names::Certainty;
use imgsync_model::batch::PushedReference;
use imgsync_oci::error::Result;
use imgsync_oci::humanize::pluralize;
use imgsync_oci::{Digest, DigestTag, Reference, RegistryName, RepositoryName, Tag};
use imgsync_store::log_throttle;

use crate::images::{FileVersions, ImageSearch};

/// The pause between two checks of files is this many times as long as a check.
const MIN_PAUSE_FACTOR: u32 = 20;
/// How long a call waits at most for the end of that pause.
const MAX_PAUSE_WAIT: Duration = Duration::from_secs(1);

/// The images that a rule names.
#[derive(Debug)]
pub(super) struct NamedImages {
    /// Files and folders that name the images; empty if the rule itself does.
    paths: Vec<PathBuf>,
    /// `None` until the files have been read.
    images: RwLock<Option<Images>>,
    /// Locked during a check of the files, also if nobody waits for it any more.
    last_check: Arc<tokio::sync::Mutex<LastCheck>>,
}

/// The last check of the files.
#[derive(Debug, Default)]
struct LastCheck {
    began_at: Option<Instant>,
    /// When the next one may begin.
    next_at: Option<Instant>,
    /// Version that it found, and that was read unless that failed; `None` if a file was missing.
    version: Option<FileVersions>,
}

type Images = HashMap<(RegistryName, RepositoryName), NamedReferences>;

/// The tags and digests of a repository that a rule names.
#[derive(Debug, Default)]
struct NamedReferences {
    tags: HashSet<Tag>,
    digests: HashSet<Digest>,
}

impl NamedImages {
    /// Returns the images of a rule that names each image. Files are not read yet.
    pub(super) fn from_rule(rule: &Rule, folder: &Path) -> Option<NamedImages> {
        match &rule.source {
            RuleSource::Digests(source) => {
                let digests = source.digests.iter().cloned().collect();
                let named = NamedReferences { digests, ..NamedReferences::default() };
                let images = HashMap::from([((source.registry.clone(), source.repository.clone()), named)]);
                Some(NamedImages::new(Vec::new(), Some(images)))
            }
            RuleSource::Images(paths) => {
                Some(NamedImages::new(paths.iter().map(|path| folder.join(path)).collect(), None))
            }
            RuleSource::Repositories(_) | RuleSource::Preset(_) | RuleSource::Layout(_) | RuleSource::Archive(..) => {
                None
            }
        }
    }

    fn new(paths: Vec<PathBuf>, images: Option<Images>) -> NamedImages {
        NamedImages { paths, images: RwLock::new(images), last_check: Arc::default() }
    }

    /// Returns whether these are the images of the same files.
    pub(super) fn has_files_of(&self, other: &NamedImages) -> bool {
        !self.paths.is_empty() && self.paths == other.paths
    }

    /// Returns whether the images are named in files.
    pub(super) fn is_in_files(&self) -> bool {
        !self.paths.is_empty()
    }

    /// Returns whether the files could not be read yet.
    pub(super) fn is_unread(&self) -> bool {
        self.images.read().unwrap_or_else(PoisonError::into_inner).is_none()
    }

    /// Returns whether an image may be at a registry. In files, any may be named later.
    pub(super) fn may_read_from(&self, registry: &RegistryName) -> bool {
        let images = self.images.read().unwrap_or_else(PoisonError::into_inner);
        self.is_in_files() || images.as_ref().is_some_and(|images| images.keys().any(|(at, _)| at == registry))
    }

    /// Returns whether a push may be of one of the images, or with `reads_referrers` of a signature or another referrer. Of
    /// files that are unread, no image is known.
    pub(super) fn may_have(
        &self,
        (registry, repository): (&RegistryName, &RepositoryName),
        reference: &PushedReference,
        reads_referrers: bool,
    ) -> bool {
        let images = self.images.read().unwrap_or_else(PoisonError::into_inner);
        let Some(images) = &*images else { return false };
        let Some(named) = images.get(&(registry.clone(), repository.clone())) else { return false };
        match reference {
            PushedReference::Tag(tag, digest) => {
                named.tags.contains(tag)
                    || match digest {
                        Some(digest) => named.digests.contains(digest),
                        None => !named.digests.is_empty(),
                    }
                    || (reads_referrers && DigestTag::parse_tag(tag.as_str()).is_some())
            }
            PushedReference::Manifest(digest) => reads_referrers || named.digests.contains(digest),
            PushedReference::Unknown => true,
            PushedReference::Deletion => false,
        }
    }

    /// Reads the files if they have changed since they were read. If that fails, what was read before counts. A check
    /// that began after the call counts for it; a call does not wait for one if checks are long.
    pub(super) async fn refresh(self: &Arc<Self>) {
        if !self.is_in_files() {
            return;
        }
        let called_at = Instant::now();
        let mut last = self.last_check.clone().lock_owned().await;
        if last.began_at.is_some_and(|began| began >= called_at) {
            return;
        }
        if let Some(next) = last.next_at {
            if next > Instant::now() + MAX_PAUSE_WAIT {
                return;
            }
            tokio::time::sleep_until(next.into()).await;
        }
        let this = self.clone();
        let check = move || {
            let began = Instant::now();
            last.version = this.check(last.version);
            last.began_at = Some(began);
            last.next_at = Some(Instant::now() + began.elapsed().saturating_mul(MIN_PAUSE_FACTOR));
        };
        if let Err(error) = tokio::task::spawn_blocking(check).await {
            log_throttle::warn("hooks: named images", &format!("hooks: reading named images: {error}"));
        }
    }

    /// Reads the files unless they have a known version. Returns the version that they have now, if all were read.
    fn check(&self, known: Option<FileVersions>) -> Option<FileVersions> {
        let found = FileVersions::read(&self.paths);
        if found.is_some() && found == known {
            return found;
        }
        let (why, images) = match self.read_files() {
            Ok((images, 0)) => {
                self.set_images(images);
                return found;
            }
            Ok((images, unreadable)) => {
                let files = pluralize(unreadable as u64, "file that names", "files that name");
                (format!("{files} images cannot be read"), Some(images))
            }
            // A file that is missing once is being replaced.
            Err(_) if found.is_none() && known.is_some() => return None,
            Err(error) => (error.to_string(), None),
        };
        let meanwhile = match (self.is_unread(), images) {
            (true, Some(images)) => {
                self.set_images(images);
                "pushes of images in the others are accepted"
            }
            (true, None) => "pushes of its images wait",
            (false, _) => "what was read before counts",
        };
        log_throttle::warn("hooks: named images", &format!("hooks: {why}; {meanwhile}"));
        None
    }

    fn set_images(&self, images: Images) {
        *self.images.write().unwrap_or_else(PoisonError::into_inner) = Some(images);
    }

    /// Returns the images in the files, and how many files of folders could not be read.
    fn read_files(&self) -> Result<(Images, usize)> {
        let mut search = ImageSearch::default();
        self.paths.iter().try_for_each(|path| search.add_path(path))?;
        let mut images = Images::new();
        for (image, _) in search.images.iter(Certainty::Sure) {
            add_image(&mut images, image);
        }
        Ok((images, search.unreadable))
    }
}

fn add_image(images: &mut Images, image: &Reference) {
    let named = images.entry((image.registry.clone(), image.repository.clone())).or_default();
    match &image.digest {
        Some(digest) => _ = named.digests.insert(digest.clone()),
        None => _ = named.tags.insert(image.tag.clone().unwrap_or_else(Tag::latest)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_push_is_of_a_named_image_by_tag_or_digest() {
        let digest = Digest::sha256(b"x");
        let images = NamedImages::new(vec!["images.txt".into()], None);
        let place = ("r.example".parse().unwrap(), "a/b".parse().unwrap());
        let other = "a/c".parse().unwrap();
        let tag = |tag: &str, digest: Option<&Digest>| PushedReference::Tag(tag.parse().unwrap(), digest.cloned());
        let has = |reference: &PushedReference| images.may_have((&place.0, &place.1), reference, false);
        assert!(images.is_unread() && !has(&tag("9", None)), "the files were not read yet");
        let mut known = Images::new();
        add_image(&mut known, &"r.example/a/b:1".parse().unwrap());
        *images.images.write().unwrap() = Some(known);
        assert!(has(&tag("1", None)) && !has(&tag("2", None)) && !has(&tag("2", Some(&digest))));
        assert!(has(&PushedReference::Unknown) && !has(&PushedReference::Manifest(digest.clone())));
        assert!(images.may_have((&place.0, &place.1), &PushedReference::Manifest(digest.clone()), true));
        assert!(!images.may_have((&place.0, &other), &tag("1", None), true));
        add_image(
            images.images.write().unwrap().as_mut().unwrap(),
            &format!("r.example/a/b@{digest}").parse().unwrap(),
        );
        assert!(has(&tag("2", Some(&digest))) && has(&tag("3", None)), "the sender does not say which digest it has");
        assert!(has(&PushedReference::Manifest(digest)) && !has(&tag("3", Some(&Digest::sha256(b"y")))));
    }

    #[tokio::test]
    async fn files_are_read_when_they_have_changed_and_a_call_sees_what_was_written_before() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("images.txt");
        let images = Arc::new(NamedImages::new(vec![file.clone()], None));
        let place = ("r.example".parse().unwrap(), "a".parse().unwrap());
        let has =
            |tag: &str| images.may_have((&place.0, &place.1), &PushedReference::Tag(tag.parse().unwrap(), None), false);
        images.refresh().await;
        assert!(images.is_unread(), "there is no file");
        let mut lines = String::new();
        for number in 0..20 {
            lines.push_str(&format!("r.example/a:{number}\n"));
            std::fs::write(&file, &lines).unwrap();
            images.refresh().await;
            assert!(has(&number.to_string()) && !has(&(number + 1).to_string()), "{number}");
        }
        let version = images.last_check.lock().await.version;
        assert_eq!(version, FileVersions::read(&images.paths));
        // What cannot be read changes nothing.
        std::fs::remove_file(&file).unwrap();
        for _ in 0..3 {
            images.refresh().await;
            assert!(has("19"));
        }
    }

    #[cfg(target_os = "linux")]
    #[tokio::test]
    async fn a_folder_with_a_file_that_cannot_be_read_is_read_again_until_it_can_be() {
        let folder = tempfile::tempdir().unwrap();
        let at = |name: &str| folder.path().join(name);
        let write = |name: &str, tag: &str| {
            let pod = format!("apiVersion: v1\nkind: Pod\nspec: {{containers: [{{image: 'r.example/a:{tag}'}}]}}\n");
            std::fs::write(at(name), pod).unwrap();
        };
        write("a.yaml", "1");
        let images = Arc::new(NamedImages::new(vec![folder.path().to_owned()], None));
        let place = ("r.example".parse().unwrap(), "a".parse().unwrap());
        let has =
            |tag: &str| images.may_have((&place.0, &place.1), &PushedReference::Tag(tag.parse().unwrap(), None), false);
        images.refresh().await;
        assert!(has("1"));
        // Nobody can read this file from its beginning, not even the administrator.
        std::fs::remove_file(at("a.yaml")).unwrap();
        std::os::unix::fs::symlink("/proc/self/mem", at("a.yaml")).unwrap();
        write("b.yaml", "2");
        images.refresh().await;
        assert!(has("1"), "what was read before counts");
        std::fs::remove_file(at("a.yaml")).unwrap();
        write("a.yaml", "3");
        images.refresh().await;
        assert!(has("2") && has("3") && !has("1"));
    }
}
