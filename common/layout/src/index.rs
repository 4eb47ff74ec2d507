//! `index.json`: the images of a layout and their names. Fields and entries of other tools are written back byte for
//! byte.

use std::collections::BTreeMap;
use std::sync::Arc;

use serde_json::value::{RawValue, to_raw_value};

use super::error::LayoutError;
use super::hauler;
use super::index_entry::{CONTAINERD_NAME, DIGEST_TAG_NAME, IndexEntry, REF_NAME, SUBJECT, read_entry};
use super::reference::QualifiedRepositoryName;
use imgsync_oci::error::ErrorKind;
use imgsync_oci::sanitize::sanitize;
use imgsync_oci::{Descriptor, DigestTag, MediaType};
use imgsync_registry::ManifestRef;

const MANIFESTS: &str = "manifests";
/// Annotations that name an entry.
const NAMES: [&str; 3] = [REF_NAME, CONTAINERD_NAME, DIGEST_TAG_NAME];

/// Contents of an `index.json`. Cheap to clone.
#[derive(Debug, Clone)]
pub(super) struct LayoutIndex {
    fields: BTreeMap<String, Box<RawValue>>,
    items: Vec<Arc<RawEntry>>,
}

#[derive(Debug)]
struct RawEntry {
    raw: Box<RawValue>,
    /// The parsed entry, or why it is invalid.
    entry: Result<IndexEntry, String>,
}

/// An image to add, replacing one with the same name.
#[derive(Debug, Clone)]
pub(super) struct IndexChange {
    pub(super) repository: Option<QualifiedRepositoryName>,
    pub(super) reference: ManifestRef,
    pub(super) descriptor: Descriptor,
}

impl LayoutIndex {
    /// Creates the index of an empty layout.
    pub(super) fn empty() -> LayoutIndex {
        let raw = |json: &str| RawValue::from_string(json.to_owned()).ok();
        let media_type = format!("\"{}\"", MediaType::OciIndex.as_str());
        let fields = [("schemaVersion", raw("2")), ("mediaType", raw(&media_type))];
        let fields = fields.into_iter().filter_map(|(key, value)| Some((key.to_owned(), value?))).collect();
        LayoutIndex { fields, items: Vec::new() }
    }

    pub(super) fn parse(bytes: &[u8]) -> Result<LayoutIndex, LayoutError> {
        let bad = |detail: String| LayoutError::new(ErrorKind::InvalidResponse, format!("its index.json {detail}"));
        let unparsable = |error: serde_json::Error| bad(format!("cannot be parsed: {error}"));
        let mut fields: BTreeMap<String, Box<RawValue>> = serde_json::from_slice(bytes).map_err(unparsable)?;
        if let Some(version) = fields.get("schemaVersion")
            && version.get() != "2"
        {
            return Err(bad(format!("has the schemaVersion {}; only 2 is known", sanitize(version.get()))));
        }
        let manifests = fields.remove(MANIFESTS);
        // Some tools write `null` for an empty list.
        let manifests: Option<Vec<Box<RawValue>>> =
            manifests.map_or(Ok(None), |raw| serde_json::from_str(raw.get())).map_err(unparsable)?;
        let items = manifests.unwrap_or_default().into_iter();
        let mut items: Vec<RawEntry> = items.map(|raw| RawEntry { entry: read_entry(&raw), raw }).collect();
        hauler::name_artifacts(items.iter_mut().filter_map(|item| item.entry.as_mut().ok()).collect());
        Ok(LayoutIndex { fields, items: items.into_iter().map(Arc::new).collect() })
    }

    /// Iterates over the valid entries.
    pub(super) fn entries(&self) -> impl Iterator<Item = &IndexEntry> {
        self.items.iter().filter_map(|item| item.entry.as_ref().ok())
    }

    /// Returns all entries, or an error for the first invalid one.
    pub(super) fn all_entries(&self) -> Result<Vec<IndexEntry>, LayoutError> {
        self.check_entries()?;
        Ok(self.entries().cloned().collect())
    }

    /// Fails if an entry is invalid: it may be the one requested.
    pub(super) fn check_entries(&self) -> Result<(), LayoutError> {
        for (at, item) in self.items.iter().enumerate() {
            if let Err(reason) = &item.entry {
                let detail = format!("entry {} of index.json is invalid: {reason}", at + 1);
                return Err(LayoutError::new(ErrorKind::InvalidResponse, detail));
            }
        }
        Ok(())
    }

    /// Adds an image. Returns `false` if it was there already and nothing changed. If several entries have its name,
    /// the first is replaced and the others are removed.
    pub(super) fn apply(&mut self, change: &IndexChange) -> Result<bool, LayoutError> {
        let same = |item: &Arc<RawEntry>| item.entry.as_ref().is_ok_and(|entry| change.matches(entry));
        let first = self.items.iter().position(same);
        let old = first.and_then(|at| self.items[at].entry.as_ref().ok());
        if let Some(old) = old
            && old.descriptor.digest == change.descriptor.digest
            && old.descriptor.size == change.descriptor.size
            && old.descriptor.media_type == change.descriptor.media_type
        {
            return Ok(false);
        }
        let mut descriptor = change.descriptor.clone();
        // A manifest's own annotations may contain names too.
        descriptor.annotations.retain(|key, _| !NAMES.contains(&key.as_str()));
        for (key, value) in change.names() {
            descriptor.annotations.insert(key.to_owned(), value);
        }
        let old_names = old.filter(|old| !hauler::has_name_of_its_image(&old.descriptor));
        for key in [REF_NAME, CONTAINERD_NAME].into_iter().filter(|_| change.digest_tag().is_none()) {
            if let Some(written) = old_names.and_then(|old| old.descriptor.annotations.get(key)) {
                descriptor.annotations.insert(key.to_owned(), written.clone());
            }
        }
        let raw = to_raw_value(&descriptor).map_err(serialize_error)?;
        let item = Arc::new(RawEntry { entry: read_entry(&raw), raw });
        match first {
            None => self.items.push(item),
            Some(first) => {
                self.items[first] = item;
                let mut at = 0;
                self.items.retain(|item| {
                    at += 1;
                    at - 1 <= first || !item.entry.as_ref().is_ok_and(|entry| change.matches(entry))
                });
            }
        }
        Ok(true)
    }

    /// Serializes the index, one image per line.
    pub(super) fn to_bytes(&self) -> Result<Vec<u8>, LayoutError> {
        let mut out = String::from("{");
        for (key, value) in &self.fields {
            let key = serde_json::to_string(key).map_err(serialize_error)?;
            out.extend([&*key, ":", value.get(), ","]);
        }
        out.extend(["\"", MANIFESTS, "\":["]);
        for (at, item) in self.items.iter().enumerate() {
            out.extend([if at == 0 { "\n" } else { ",\n" }, item.raw.get()]);
        }
        out.push_str("\n]}\n");
        Ok(out.into_bytes())
    }
}

fn serialize_error(error: serde_json::Error) -> LayoutError {
    LayoutError::new(ErrorKind::Invalid, format!("its index.json cannot be written: {error}"))
}

impl IndexChange {
    /// Whether the change replaces an entry: for a tag, the entry with this tag in the same repository or as a bare
    /// tag; for a digest, the entry with this digest and no tag.
    fn matches(&self, entry: &IndexEntry) -> bool {
        match &self.reference {
            ManifestRef::Tag(tag) => entry.repository == self.repository && entry.tag.as_ref() == Some(tag),
            ManifestRef::Digest(digest) => {
                entry.repository == self.repository && entry.tag.is_none() && entry.descriptor.digest == *digest
            }
        }
    }

    /// Returns the annotations with the name. Loaders take an entry with a name for an image, and fail to unpack a
    /// signature: the name of a digest tag is in an annotation of its own, beside the digest of the image.
    fn names(&self) -> Vec<(&'static str, String)> {
        if let (ManifestRef::Tag(tag), Some(subject)) = (&self.reference, self.digest_tag()) {
            let name = self.repository.as_ref().map_or_else(|| tag.to_string(), |name| format!("{name}:{tag}"));
            return vec![(DIGEST_TAG_NAME, name), (SUBJECT, subject)];
        }
        match (&self.repository, &self.reference) {
            (Some(repository), ManifestRef::Tag(tag)) => {
                let name = format!("{repository}:{tag}");
                vec![(REF_NAME, name.clone()), (CONTAINERD_NAME, name)]
            }
            (Some(repository), ManifestRef::Digest(digest)) => vec![(REF_NAME, format!("{repository}@{digest}"))],
            (None, ManifestRef::Tag(tag)) => vec![(REF_NAME, tag.to_string())],
            (None, ManifestRef::Digest(_)) => Vec::new(),
        }
    }

    /// Returns the digest of the image to which a digest tag belongs.
    fn digest_tag(&self) -> Option<String> {
        let ManifestRef::Tag(tag) = &self.reference else { return None };
        let (stem, _) = DigestTag::parse_tag(tag.as_str())?;
        Some(stem.replacen('-', ":", 1))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use imgsync_oci::{Digest, Tag};
    use proptest::prelude::*;

    fn descriptor(name: &str) -> Descriptor {
        Descriptor::new(MediaType::OciManifest, Digest::sha256(name.as_bytes()), 3)
    }

    fn change(repository: Option<&str>, tag: &str, content: &str) -> IndexChange {
        IndexChange {
            repository: repository.map(|name| QualifiedRepositoryName::from_reference(&name.parse().unwrap())),
            reference: ManifestRef::Tag(tag.parse().unwrap()),
            descriptor: descriptor(content),
        }
    }

    fn index(manifests: &str) -> LayoutIndex {
        LayoutIndex::parse(format!(r#"{{"schemaVersion":2,"manifests":[{manifests}]}}"#).as_bytes()).unwrap()
    }

    fn item(annotations: &str) -> String {
        format!(r#"{{"digest":"{}","size":3,"annotations":{{{annotations}}}}}"#, Digest::sha256(b"x"))
    }

    #[test]
    fn names_are_read_as_skopeo_and_containerd_write_them() {
        for (annotations, repository, tag) in [
            (r#""org.opencontainers.image.ref.name":"1.0""#, None, Some("1.0")),
            (r#""org.opencontainers.image.ref.name":"gcr.io/a/b:1""#, Some("gcr.io/a/b"), Some("1")),
            (r#""org.opencontainers.image.ref.name":"gcr.io/a/b""#, Some("gcr.io/a/b"), Some("latest")),
            (
                r#""io.containerd.image.name":"docker.io/library/a:3","org.opencontainers.image.ref.name":"3""#,
                Some("docker.io/library/a"),
                Some("3"),
            ),
            (r#""io.containerd.image.name":"docker.io/library/a:3""#, Some("docker.io/library/a"), Some("3")),
            (r#""org.opencontainers.image.ref.name":"what+ever""#, None, None),
            (r#""org.opencontainers.image.ref.name":"Team/App:1""#, None, None),
            (
                r#""io.containerd.image.name":"quay.io/b/c:2","org.opencontainers.image.ref.name":"what+ever""#,
                Some("quay.io/b/c"),
                Some("2"),
            ),
            (
                r#""io.containerd.image.name":"quay.io/b/c:2","org.opencontainers.image.ref.name":"b/c:2""#,
                Some("quay.io/b/c"),
                Some("2"),
            ),
            ("", None, None),
        ] {
            let entry = index(&item(annotations)).entries().next().cloned().unwrap();
            assert_eq!(entry.repository.map(|name| name.to_string()).as_deref(), repository, "{annotations}");
            assert_eq!(entry.tag.as_ref().map(Tag::as_str), tag, "{annotations}");
        }
    }

    #[test]
    fn artifacts_of_hauler_are_named_as_in_a_registry_and_replaced_under_that_name() {
        let named =
            |kind: &str| item(&format!(r#""kind":"{kind}","org.opencontainers.image.ref.name":"quay.io/a/b:1""#));
        let subject = Digest::sha256(b"x");
        let kinds = ["image", "sigs", "referrers/aa", "unknown"].map(|kind| named(&format!("dev.hauler/{kind}")));
        let mut index = index(&kinds.join(","));
        let signature = format!("{}.sig", subject.fallback_tag());
        let tags: Vec<Option<String>> = index.entries().map(|e| e.tag.as_ref().map(Tag::to_string)).collect();
        assert_eq!(tags, [Some("1".to_owned()), Some(signature.clone()), None, Some("1".to_owned())]);
        assert!(index.apply(&change(Some("quay.io/a/b"), &signature, "new")).unwrap());
        let index = LayoutIndex::parse(&index.to_bytes().unwrap()).unwrap();
        let named: Vec<_> = index.entries().filter_map(|e| e.name.clone()).collect();
        assert_eq!(named, ["quay.io/a/b:1".to_owned(), format!("quay.io/a/b:{signature}"), "quay.io/a/b:1".to_owned()]);
        // Without its image.
        let alone = LayoutIndex::parse(format!(r#"{{"manifests":[{}]}}"#, kinds[1]).as_bytes()).unwrap();
        assert_eq!(alone.entries().next().unwrap().name, None);
    }

    #[test]
    fn what_is_not_ours_is_written_back_as_it_was_read() {
        let strange = r#"{ "size": 3.0e0, "digest": "blake3:x", "z":  [1e400, null] }"#;
        let other = item(r#""b":"1","a":"2","org.opencontainers.image.ref.name":"other""#);
        let text = format!(r#"{{"x-more":{{"b":1, "a":2}},"schemaVersion":2,"manifests":[{strange},{other}]}}"#);
        let mut index = LayoutIndex::parse(text.as_bytes()).unwrap();
        assert!(index.apply(&change(None, "new", "x")).unwrap());
        let written = String::from_utf8(index.to_bytes().unwrap()).unwrap();
        for kept in [strange, &*other, r#"{"b":1, "a":2}"#] {
            assert!(written.contains(kept), "{written}");
        }
        assert_eq!(LayoutIndex::parse(written.as_bytes()).unwrap().entries().count(), 2);
    }

    #[test]
    fn an_entry_is_replaced_where_its_name_is_and_nowhere_else() {
        let mut index = LayoutIndex::empty();
        assert!(index.apply(&change(None, "1", "a")).unwrap());
        assert!(index.apply(&change(Some("gcr.io/x"), "1", "b")).unwrap());
        assert!(index.apply(&change(Some("gcr.io/y"), "1", "c")).unwrap());
        assert!(index.apply(&change(Some("gcr.io/x"), "1", "d")).unwrap());
        assert!(!index.apply(&change(Some("gcr.io/x"), "1", "d")).unwrap());
        let found: Vec<_> = index.entries().map(|e| (e.name.clone().unwrap(), e.descriptor.digest.clone())).collect();
        let want = [("1", "a"), ("gcr.io/x:1", "d"), ("gcr.io/y:1", "c")];
        assert_eq!(found, want.map(|(name, content)| (name.to_owned(), Digest::sha256(content.as_bytes()))));
    }

    #[test]
    fn of_several_entries_with_one_name_one_is_left() {
        let one = item(r#""org.opencontainers.image.ref.name":"1""#);
        let mut index = index(&format!("{one},{},{one}", item("")));
        assert!(index.apply(&change(None, "1", "new")).unwrap());
        assert_eq!(index.entries().count(), 2);
    }

    #[test]
    fn a_digest_that_leads_elsewhere_is_refused_with_its_entry() {
        for digest in ["sha256:../../../etc/passwd", "../../x:abc", "/etc/passwd", "sha256:/etc/passwd"] {
            let index = index(&format!(r#"{{"digest":"{digest}","size":1}}"#));
            let error = index.all_entries().unwrap_err().into_error("listing");
            assert_eq!(error.kind(), ErrorKind::InvalidResponse);
            assert!(error.to_string().contains("entry 1 of index.json"), "{error}");
        }
    }

    #[test]
    fn what_is_no_index_is_refused() {
        for text in ["", "[]", "null", "{", r#"{"schemaVersion":1}"#, r#"{"manifests":3}"#] {
            assert_eq!(
                LayoutIndex::parse(text.as_bytes()).unwrap_err().into_error("x").kind(),
                ErrorKind::InvalidResponse,
                "{text}"
            );
        }
        assert_eq!(LayoutIndex::parse(br#"{"manifests":null}"#).unwrap().entries().count(), 0);
    }

    proptest! {
        #[test]
        fn no_bytes_make_the_parser_panic(bytes: Vec<u8>, inner: String) {
            let _ = LayoutIndex::parse(&bytes);
            let _ = LayoutIndex::parse(format!(r#"{{"manifests":[{inner}]}}"#).as_bytes());
        }

        #[test]
        fn every_name_can_be_found_again(names in proptest::collection::vec(("[a-b]", "[0-3]", "[x-z]"), 0..20)) {
            let mut index = LayoutIndex::empty();
            let mut model = BTreeMap::new();
            for (repository, tag, content) in &names {
                let change = change(Some(&format!("gcr.io/{repository}")), tag, content);
                index.apply(&change).unwrap();
                model.insert(format!("gcr.io/{repository}:{tag}"), Digest::sha256(content.as_bytes()));
            }
            let index = LayoutIndex::parse(&index.to_bytes().unwrap()).unwrap();
            let found: BTreeMap<_, _> =
                index.all_entries().unwrap().into_iter().map(|e| (e.name.unwrap(), e.descriptor.digest)).collect();
            prop_assert_eq!(found, model);
        }
    }
}
