//! An entry of `index.json`, and the annotations in which tools write its name.

use serde::Deserialize;
use serde_json::value::RawValue;

use super::reference::QualifiedRepositoryName;
use imgsync_oci::sanitize::sanitize;
use imgsync_oci::{Descriptor, Digest, Reference, Tag};

/// Annotation with an image's name: a tag or a full reference.
pub(super) const REF_NAME: &str = "org.opencontainers.image.ref.name";
/// Annotation in which containerd and BuildKit write the full reference, beside a bare tag in the one above.
pub(super) const CONTAINERD_NAME: &str = "io.containerd.image.name";
/// Annotation in which layouts and archives of imgsync have the name of a digest tag. Under the names above, containerd would make an
/// image of a signature, and fail to unpack it.
pub const DIGEST_TAG_NAME: &str = "io.github.imgsync.ref.name";
/// Annotation of a referrer with the digest of its subject: containerd makes no image of such an entry when it imports.
pub(super) const SUBJECT: &str = "io.containerd.manifest.subject";

/// An image in a layout's index.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct IndexEntry {
    /// Name as written, if any.
    pub name: Option<String>,
    /// Repository, if the name is a full one.
    pub repository: Option<QualifiedRepositoryName>,
    /// Tag; `latest` for a full name without tag and digest. `None`: available by digest only.
    pub tag: Option<Tag>,
    /// Descriptor that the name points at.
    pub descriptor: Descriptor,
}

/// Reads an entry of `index.json`, or says why it is invalid.
pub(super) fn read_entry(raw: &RawValue) -> Result<IndexEntry, String> {
    // The digest is parsed first, for a better error than serde's.
    #[derive(Deserialize)]
    struct DigestField {
        digest: String,
    }
    let describe = |error: serde_json::Error| sanitize(&error.to_string()).into_owned();
    let pointer: DigestField = serde_json::from_str(raw.get()).map_err(describe)?;
    pointer.digest.parse::<Digest>().map_err(|error| error.to_string())?;
    let descriptor: Descriptor = serde_json::from_str(raw.get()).map_err(describe)?;
    let written = |key: &str| descriptor.annotations.get(key).filter(|name| !name.is_empty()).cloned();
    let full = |name: &str| name.parse::<Reference>().ok();
    let ref_name = written(REF_NAME).or_else(|| written(DIGEST_TAG_NAME));
    let containerd = written(CONTAINERD_NAME);
    let bare = ref_name.as_deref().and_then(|name| name.parse::<Tag>().ok());
    let (name, repository, tag) = match (ref_name, containerd) {
        // `ref.name` may be anything that is not a full name, and hauler's is one without the registry.
        (ref_name, Some(name))
            if full(&name).is_some()
                && ref_name
                    .as_deref()
                    .is_none_or(|short| bare.is_some() || full(short).is_none() || is_end_of(short, &name)) =>
        {
            let reference = full(&name);
            (
                Some(name),
                reference.as_ref().map(QualifiedRepositoryName::from_reference),
                reference.and_then(|found| found.tag_or_latest()),
            )
        }
        (Some(name), _) if bare.is_some() => (Some(name), None, bare),
        (Some(name), _) => match full(&name) {
            Some(reference) => {
                (Some(name), Some(QualifiedRepositoryName::from_reference(&reference)), reference.tag_or_latest())
            }
            None => (Some(name), None, None),
        },
        (None, name) => (name, None, None),
    };
    Ok(IndexEntry { name, repository, tag, descriptor })
}

/// Whether a name is the end of another one, from a slash on.
fn is_end_of(short: &str, name: &str) -> bool {
    name.strip_suffix(short).is_some_and(|rest| rest.ends_with('/'))
}
