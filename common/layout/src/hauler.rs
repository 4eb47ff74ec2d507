//! Entries as hauler writes them: an artifact has the name of its image, and a `kind` that tells them apart. They are named
//! here as in a registry: what cosign made by its digest tag, and referrers not at all.

use std::collections::HashMap;

use super::index_entry::{CONTAINERD_NAME, IndexEntry, REF_NAME};
use imgsync_oci::{Descriptor, Digest, DigestTag};

/// Annotation with the kind of an entry.
const KIND: &str = "kind";
/// Annotation with the digest of the manifest that an artifact belongs to, since version 2.
const SUBJECT_DIGEST: &str = "hauler.dev/subject-digest";
/// What kinds begin with: of version 2, and of version 1.
const KIND_PREFIXES: [&str; 2] = ["dev.hauler/", "dev.cosignproject.cosign/"];

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum ArtifactKind {
    Cosign(DigestTag),
    Referrer,
}

/// Returns the kind of an artifact, and the digest behind it; `None` for images and for entries of other tools.
fn parse_kind(descriptor: &Descriptor) -> Option<(ArtifactKind, Option<&str>)> {
    let written = descriptor.annotations.get(KIND)?;
    let kind = KIND_PREFIXES.iter().find_map(|prefix| written.strip_prefix(prefix))?;
    let (kind, hex) = kind.split_once('/').map_or((kind, None), |(kind, hex)| (kind, Some(hex)));
    let kind = match kind {
        "sigs" => ArtifactKind::Cosign(DigestTag::Signature),
        "atts" => ArtifactKind::Cosign(DigestTag::Attestation),
        "sboms" => ArtifactKind::Cosign(DigestTag::Sbom),
        "referrers" => ArtifactKind::Referrer,
        _ => return None,
    };
    Some((kind, hex))
}

/// Whether the name in the annotations is that of another entry, the image.
pub(super) fn has_name_of_its_image(descriptor: &Descriptor) -> bool {
    parse_kind(descriptor).is_some()
}

/// Removes what describes an entry of an artifact, and not the artifact.
pub(super) fn remove_entry_annotations(descriptor: &mut Descriptor) {
    if has_name_of_its_image(descriptor) {
        descriptor
            .annotations
            .retain(|key, _| ![KIND, SUBJECT_DIGEST, REF_NAME, CONTAINERD_NAME].contains(&key.as_str()));
    }
}

/// Names artifacts as in a registry. One whose image is not found is left without a name.
pub(super) fn name_artifacts(mut entries: Vec<&mut IndexEntry>) {
    let is_image = |entry: &IndexEntry| !has_name_of_its_image(&entry.descriptor);
    if entries.iter().all(|entry| is_image(entry)) {
        return;
    }
    let mut images: HashMap<String, Digest> = HashMap::new();
    for image in entries.iter().filter(|entry| is_image(entry)) {
        if let Some(name) = &image.name {
            images.entry(name.clone()).or_insert_with(|| image.descriptor.digest.clone());
        }
    }
    for entry in &mut entries {
        let Some((kind, hex)) = parse_kind(&entry.descriptor) else { continue };
        let tag = match kind {
            ArtifactKind::Referrer => None,
            ArtifactKind::Cosign(kind) => {
                let written = entry.descriptor.annotations.get(SUBJECT_DIGEST).and_then(|digest| digest.parse().ok());
                let subject: Option<Digest> = written
                    .or_else(|| format!("sha256:{}", hex?).parse().ok())
                    .or_else(|| images.get(entry.name.as_deref()?).cloned());
                subject.map(|subject| kind.tag_for(&subject))
            }
        };
        entry.name = tag.as_ref().map(|tag| match &entry.repository {
            Some(repository) => format!("{repository}:{tag}"),
            None => tag.to_string(),
        });
        if tag.is_none() {
            entry.repository = None;
        }
        entry.tag = tag;
    }
}
