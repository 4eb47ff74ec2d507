//! The images that rules name, by digest or in files: what hooks may trigger them for.

use std::collections::{HashMap, HashSet};
use std::path::{Path, PathBuf};
use std::sync::{Arc, PoisonError, RwLock};

use imgsync_config::{Rule, RuleSource};
use imgsync_image_names::Certainty;
use imgsync_model::batch::PushedReference;
use imgsync_oci::{Digest, DigestTag, Reference, RegistryName, RepositoryName, Tag};
use imgsync_store::log_throttle;

use crate::images::ImageSearch;

/// The images that a rule names.
#[derive(Debug)]
pub(super) struct NamedImages {
    /// Files and folders that name the images; empty if the rule itself does.
    paths: Vec<PathBuf>,
    /// `None` until the files have been read.
    images: RwLock<Option<Images>>,
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
                Some(NamedImages { paths: Vec::new(), images: RwLock::new(Some(images)) })
            }
            RuleSource::Images(paths) => {
                let paths = paths.iter().map(|path| folder.join(path)).collect();
                Some(NamedImages { paths, images: RwLock::default() })
            }
            RuleSource::Repositories(_) | RuleSource::Preset(_) | RuleSource::Layout(_) | RuleSource::Archive(..) => {
                None
            }
        }
    }

    /// Returns whether an image may be at a registry. Until the files have been read, any may.
    pub(super) fn may_read_from(&self, registry: &RegistryName) -> bool {
        let images = self.images.read().unwrap_or_else(PoisonError::into_inner);
        !self.paths.is_empty() || images.as_ref().is_some_and(|images| images.keys().any(|(at, _)| at == registry))
    }

    /// Returns whether a push may be of one of the images, or with `reads_referrers` of a signature or another referrer.
    pub(super) fn may_have(
        &self,
        (registry, repository): (&RegistryName, &RepositoryName),
        reference: &PushedReference,
        reads_referrers: bool,
    ) -> bool {
        let images = self.images.read().unwrap_or_else(PoisonError::into_inner);
        let Some(images) = &*images else { return true };
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

    /// Reads the files again. If that fails, what was read before counts.
    pub(super) async fn read(self: Arc<Self>) {
        if self.paths.is_empty() {
            return;
        }
        let (this, paths) = (self.clone(), self.paths.clone());
        let read = move || {
            let mut search = ImageSearch::default();
            paths.iter().try_for_each(|path| search.add_path(path))?;
            let mut images = Images::new();
            for (image, _) in search.images.iter(Certainty::Sure) {
                add_image(&mut images, image);
            }
            Ok::<_, imgsync_oci::error::Error>(images)
        };
        match tokio::task::spawn_blocking(read).await {
            Ok(Ok(images)) => *this.images.write().unwrap_or_else(PoisonError::into_inner) = Some(images),
            Ok(Err(error)) => log_throttle::warn("hooks: named images", &format!("hooks: {error}")),
            Err(error) => log_throttle::warn("hooks: named images", &format!("hooks: reading named images: {error}")),
        }
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
        let images = NamedImages { paths: vec!["images.txt".into()], images: RwLock::default() };
        let place = ("r.example".parse().unwrap(), "a/b".parse().unwrap());
        let other = "a/c".parse().unwrap();
        let tag = |tag: &str, digest: Option<&Digest>| PushedReference::Tag(tag.parse().unwrap(), digest.cloned());
        let has = |reference: &PushedReference| images.may_have((&place.0, &place.1), reference, false);
        assert!(has(&tag("9", None)), "the files were not read yet");
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
}
