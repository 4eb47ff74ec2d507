//! Referrers: signatures, SBOMs and attestations are in the index without a name, as ORAS writes them.

use std::sync::PoisonError;

use super::manifests::LayoutRepository;
use super::trouble::Trouble;
use super::{Layout, Shared};
use crate::error::Result;
use crate::image::{Descriptor, Digest};

impl LayoutRepository {
    /// Lists the referrers of a manifest from the index; empty if there are none. Cosign's digest tags are not among
    /// them: they are found by tag.
    pub async fn referrers(&self, subject: &Digest) -> Result<Vec<Descriptor>> {
        let tried = format!("listing the referrers of {}", self.place(None));
        let subject = subject.clone();
        let layout: &Layout = self.layout();
        layout.blocking(&tried, move |shared| shared.referrers(&subject)).await
    }
}

impl Shared {
    fn referrers(&self, subject: &Digest) -> Result<Vec<Descriptor>, Trouble> {
        let mut found: Vec<Descriptor> = Vec::new();
        for entry in self.read_index()?.entries().filter(|entry| entry.tag.is_none()) {
            let descriptor = &entry.descriptor;
            if found.iter().any(|known| known.digest == descriptor.digest) {
                continue;
            }
            if self.subject_of(descriptor).as_ref() == Some(subject) {
                found.push(descriptor.clone());
            }
        }
        Ok(found)
    }

    /// Reads the subject of a listed manifest. An unreadable manifest has none here; reading it for a copy is an error.
    pub(super) fn subject_of(&self, descriptor: &Descriptor) -> Option<Digest> {
        let known = self.subjects.lock().unwrap_or_else(PoisonError::into_inner).get(&descriptor.digest).cloned();
        if let Some(known) = known {
            return known;
        }
        let manifest = self.manifest(descriptor).ok()?;
        let subject = manifest.parsed().subject.as_ref().map(|subject| subject.digest.clone());
        let mut subjects = self.subjects.lock().unwrap_or_else(PoisonError::into_inner);
        subjects.insert(descriptor.digest.clone(), subject.clone());
        subject
    }
}
