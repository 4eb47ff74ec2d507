//! Referrers: signatures, SBOMs and attestations are in the index without a name, as ORAS writes them.

use std::sync::PoisonError;

use super::error::LayoutError;
use super::hauler;
use super::index_entry::SUBJECT;
use super::manifests::LayoutRepository;
use super::{Layout, LayoutInner};
use imgsync_oci::error::Result;
use imgsync_oci::{Descriptor, Digest};

impl LayoutRepository {
    /// Lists the referrers of a manifest from the index; empty if there are none. Cosign's digest tags are not among
    /// them: they are found by tag.
    pub async fn list_referrers(&self, subject: &Digest) -> Result<Vec<Descriptor>> {
        let operation = format!("listing the referrers of {}", self.display_reference(None));
        let subject = subject.clone();
        let layout: &Layout = self.layout();
        layout.run_blocking(&operation, move |shared| shared.list_referrers(&subject)).await
    }
}

impl LayoutInner {
    fn list_referrers(&self, subject: &Digest) -> Result<Vec<Descriptor>, LayoutError> {
        let mut found: Vec<Descriptor> = Vec::new();
        for entry in self.read_index()?.entries().filter(|entry| entry.tag.is_none()) {
            let descriptor = &entry.descriptor;
            if found.iter().any(|known| known.digest == descriptor.digest) {
                continue;
            }
            if self.read_subject(descriptor).as_ref() == Some(subject) {
                let mut descriptor = descriptor.clone();
                // It is about the entry of the layout.
                descriptor.annotations.remove(SUBJECT);
                hauler::remove_entry_annotations(&mut descriptor);
                found.push(descriptor);
            }
        }
        Ok(found)
    }

    /// Reads the subject of a listed manifest. A manifest that cannot be read has the subject of its annotation, so that
    /// a copy of that image tries to read it, and fails or warns. Without the annotation it has none.
    pub(super) fn read_subject(&self, descriptor: &Descriptor) -> Option<Digest> {
        let known = self.subjects.lock().unwrap_or_else(PoisonError::into_inner).get(&descriptor.digest).cloned();
        if let Some(known) = known {
            return known;
        }
        let Ok(manifest) = self.read_manifest(descriptor) else {
            return descriptor.annotations.get(SUBJECT)?.parse().ok();
        };
        let subject = manifest.parsed().subject.as_ref().map(|subject| subject.digest.clone());
        let mut subjects = self.subjects.lock().unwrap_or_else(PoisonError::into_inner);
        subjects.insert(descriptor.digest.clone(), subject.clone());
        subject
    }
}
