//! References to layouts and images in them: `oci:DIR`, `oci:DIR:TAG`, `oci:DIR:gcr.io/distroless/static:nonroot`,
//! `oci:DIR:org/name:tag` (of Docker Hub), `oci:DIR@sha256:…`; as in containers-transports(5) of skopeo and podman.

use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;

use imgsync_oci::sanitize::sanitize;
use imgsync_oci::{Digest, Reference, RegistryName, RepositoryName, Tag};
use imgsync_registry::ManifestRef;

const SCHEME: &str = "oci:";

/// A layout's folder, and an image in it, if one is named.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct LayoutRef {
    /// The folder, as written.
    pub dir: PathBuf,
    /// The image.
    pub image: Option<ImageName>,
}

/// Name of an image within a layout.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum ImageName {
    /// A tag alone.
    Tag(Tag),
    /// A digest alone.
    Digest(Digest),
    /// A full name; without a registry it is of Docker Hub.
    Full(Reference),
}

/// Full name of a repository, `gcr.io/distroless/static`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct QualifiedRepositoryName {
    /// Registry of the name.
    pub registry: RegistryName,
    /// Path within the registry.
    pub repository: RepositoryName,
}

/// Error of parsing a [`LayoutRef`].
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{text}` does not name an image layout: {reason}")]
pub struct ParseLayoutRefError {
    text: String,
    reason: String,
}

impl LayoutRef {
    /// Whether a text begins with `oci:`.
    pub fn has_scheme(text: &str) -> bool {
        text.starts_with(SCHEME)
    }

    /// Returns the repository of a full name.
    pub fn repository(&self) -> Option<QualifiedRepositoryName> {
        self.image.as_ref().and_then(ImageName::repository)
    }

    /// Returns the tag or digest, if any; `latest` for a full name without either.
    pub fn manifest(&self) -> Option<ManifestRef> {
        self.image.as_ref().and_then(ImageName::manifest)
    }
}

impl ImageName {
    /// Returns the repository of a full name.
    pub fn repository(&self) -> Option<QualifiedRepositoryName> {
        match self {
            ImageName::Full(reference) => Some(QualifiedRepositoryName::from_reference(reference)),
            ImageName::Tag(_) | ImageName::Digest(_) => None,
        }
    }

    /// Returns the tag; `latest` for a full name without tag and digest.
    pub fn tag(&self) -> Option<Tag> {
        match self {
            ImageName::Tag(tag) => Some(tag.clone()),
            ImageName::Digest(_) => None,
            ImageName::Full(reference) => reference.tag_or_latest(),
        }
    }

    /// Returns the digest, if any.
    pub fn digest(&self) -> Option<&Digest> {
        match self {
            ImageName::Tag(_) => None,
            ImageName::Digest(digest) => Some(digest),
            ImageName::Full(reference) => reference.digest.as_ref(),
        }
    }

    /// Returns the tag or digest; `latest` for a full name without either. The digest takes precedence.
    pub fn manifest(&self) -> Option<ManifestRef> {
        self.digest().cloned().map(ManifestRef::Digest).or_else(|| self.tag().map(ManifestRef::Tag))
    }
}

impl FromStr for LayoutRef {
    type Err = ParseLayoutRefError;

    /// The folder ends at the first colon followed by a tag or a full name. A folder whose own name looks like that is
    /// written with a slash at its end.
    fn from_str(text: &str) -> Result<LayoutRef, ParseLayoutRefError> {
        let fail = |reason: &str| {
            Err(ParseLayoutRefError { text: sanitize(text).into_owned(), reason: sanitize(reason).into_owned() })
        };
        let Some(rest) = text.strip_prefix(SCHEME) else { return fail("it does not begin with `oci:`") };
        if rest.chars().any(char::is_control) {
            return fail("it holds control characters");
        }
        let (dir, image) = match split_image(rest) {
            Ok(split) => split,
            Err(reason) => return fail(&reason),
        };
        if dir.is_empty() {
            return fail("it names no folder: write oci:FOLDER or oci:FOLDER:TAG");
        }
        if image.is_none()
            && let Some((_, last)) = dir.rsplit_once(':')
            && !last.contains('/')
        {
            return fail(&format!("`{last}` is not a tag (if it is part of the folder's name, add a `/` at its end)"));
        }
        Ok(LayoutRef { dir: dir.into(), image })
    }
}

/// Splits a path from the image name after it: at the first colon followed by a tag or a full name, or before a digest.
pub(crate) fn split_image(rest: &str) -> Result<(&str, Option<ImageName>), String> {
    let split = rest.match_indices(':').find_map(|(at, _)| {
        let image = image_name(&rest[at + 1..])?;
        Some((&rest[..at], Some(image)))
    });
    match (split, rest.rsplit_once('@')) {
        // The colon belongs to the digest.
        (Some((_, Some(ImageName::Tag(_)))), Some((before, digest)))
            if digest.starts_with("sha256:") || digest.starts_with("sha512:") =>
        {
            let digest = digest.parse().map_err(|error: imgsync_oci::ParseDigestError| error.to_string())?;
            Ok((before, Some(ImageName::Digest(digest))))
        }
        (Some(found), _) => Ok(found),
        (None, _) => Ok((rest, None)),
    }
}

/// Parses a tag, a tag with a digest (the digest counts), a reference that begins with a registry, or one of Docker Hub
/// with a tag.
fn image_name(text: &str) -> Option<ImageName> {
    if let Ok(tag) = text.parse::<Tag>() {
        return Some(ImageName::Tag(tag));
    }
    if let Some((tag, digest)) = text.split_once('@')
        && tag.parse::<Tag>().is_ok()
    {
        return digest.parse().ok().map(ImageName::Digest);
    }
    let first = text.split_once('/').map_or("", |(first, _)| first);
    let names_registry = first.contains(['.', ':']) || first == "localhost";
    let reference: Reference = text.parse().ok()?;
    (names_registry || reference.tag.is_some()).then_some(ImageName::Full(reference))
}

impl LayoutRef {
    fn to_text(&self, slash: &str) -> String {
        let dir = format!("{SCHEME}{}{slash}", self.dir.display());
        match &self.image {
            None => dir,
            Some(ImageName::Tag(tag)) => format!("{dir}:{tag}"),
            Some(ImageName::Digest(digest)) => format!("{dir}@{digest}"),
            Some(ImageName::Full(reference)) => format!("{dir}:{reference}"),
        }
    }
}

impl fmt::Display for LayoutRef {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let plain = self.to_text("");
        match plain.parse::<LayoutRef>() {
            Ok(read) if read == *self => f.write_str(&plain),
            // A colon in the folder's name would be misread.
            _ => f.write_str(&self.to_text("/")),
        }
    }
}

impl serde::Serialize for LayoutRef {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> serde::Deserialize<'de> for LayoutRef {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<LayoutRef, D::Error> {
        let text = std::borrow::Cow::<str>::deserialize(deserializer)?;
        text.parse().map_err(serde::de::Error::custom)
    }
}

impl QualifiedRepositoryName {
    /// Takes the repository of a reference.
    pub fn from_reference(reference: &Reference) -> QualifiedRepositoryName {
        QualifiedRepositoryName { registry: reference.registry.clone(), repository: reference.repository.clone() }
    }
}

impl fmt::Display for QualifiedRepositoryName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.registry, self.repository)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn parse(text: &str) -> LayoutRef {
        text.parse::<LayoutRef>().unwrap_or_else(|error| panic!("{error}"))
    }

    fn read(text: &str) -> (String, String) {
        let layout = parse(text);
        let image = match layout.image {
            None => String::new(),
            Some(ImageName::Tag(tag)) => tag.to_string(),
            Some(ImageName::Digest(digest)) => format!("@{digest}"),
            Some(ImageName::Full(reference)) => format!("full {reference}"),
        };
        (layout.dir.display().to_string(), image)
    }

    #[test]
    fn the_folder_ends_where_a_tag_or_a_full_name_begins() {
        let digest = Digest::sha256(b"x").to_string();
        for (text, dir, image) in [
            ("oci:images", "images", ""),
            ("oci:/a b/c d", "/a b/c d", ""),
            ("oci:/a b/c d:1.0", "/a b/c d", "1.0"),
            ("oci:./x:latest", "./x", "latest"),
            ("oci:x:gcr.io/distroless/static:nonroot", "x", "full gcr.io/distroless/static:nonroot"),
            ("oci:x:localhost:5000/a:1", "x", "full localhost:5000/a:1"),
            ("oci:x:host:5000/a", "x", "full host:5000/a"),
            ("oci:/a:b/c:1.0", "/a", "full docker.io/b/c:1.0"),
            ("oci:/a:b/c/:1.0", "/a:b/c/", "1.0"),
            ("oci:/a:b/c", "/a:b/c", ""),
            ("oci:x:org/name:tag", "x", "full docker.io/org/name:tag"),
            ("oci:x:nginx:1.27", "x", "full docker.io/library/nginx:1.27"),
            ("oci:/x y:a/b/c:v1", "/x y", "full docker.io/a/b/c:v1"),
            ("oci:x:Org/name:tag", "x:Org/name", "tag"),
            ("oci:a:b/", "a:b/", ""),
            ("oci:a:b/:c", "a:b/", "c"),
            (&format!("oci:x@{digest}"), "x", &format!("@{digest}")),
            (&format!("oci:x:1.0@{digest}"), "x", &format!("@{digest}")),
            (&format!("oci:a@b:c/x@{digest}"), "a@b:c/x", &format!("@{digest}")),
            (&format!("oci:x:gcr.io/a/b@{digest}"), "x", &format!("full gcr.io/a/b@{digest}")),
        ] {
            assert_eq!(read(text), (dir.to_owned(), image.to_owned()), "{text}");
        }
    }

    #[test]
    fn a_refusal_gives_the_reason() {
        for (text, reason) in [
            ("images", "begin with `oci:`"),
            ("oci:", "no folder"),
            ("oci::1.0", "no folder"),
            ("oci:x:", "`` is not a tag"),
            ("oci:x:-bad", "`-bad` is not a tag"),
            ("oci:x\u{0}", "control"),
            ("oci:x@sha256:abc", "64 hexadecimal"),
        ] {
            let error = text.parse::<LayoutRef>().unwrap_err().to_string();
            assert!(error.contains(reason), "{text:?}: {error}");
        }
    }

    #[test]
    fn what_is_meant_of_a_full_name_without_tag_is_latest() {
        let layout = parse("oci:x:gcr.io/a/b");
        assert_eq!(layout.manifest(), Some(ManifestRef::Tag(Tag::latest())));
        assert_eq!(layout.repository().unwrap().to_string(), "gcr.io/a/b");
        assert_eq!(parse("oci:x").manifest(), None);
    }

    #[test]
    fn a_folder_with_colons_is_written_so_that_it_is_read_back() {
        let layout = LayoutRef { dir: "a:1.0".into(), image: Some(ImageName::Digest(Digest::sha256(b"x"))) };
        assert_eq!(layout.to_string(), format!("oci:a:1.0/@{}", Digest::sha256(b"x")));
        assert_eq!(LayoutRef { dir: "a:b".into(), image: None }.to_string(), "oci:a:b/");
        assert_eq!(LayoutRef { dir: "a/b".into(), image: None }.to_string(), "oci:a/b");
    }

    proptest! {
        #[test]
        fn no_text_makes_the_parser_panic(text: String) {
            let _ = text.parse::<LayoutRef>();
            let _ = format!("oci:{text}").parse::<LayoutRef>();
        }

        #[test]
        fn what_parses_prints_to_what_parses_to_the_same(text in "[a-c0-9.:/@_ -]{0,30}(@sha256:[0-9]{64})?") {
            if let Ok(layout) = format!("oci:{text}").parse::<LayoutRef>() {
                prop_assert_eq!(layout.to_string().parse::<LayoutRef>().unwrap(), layout);
            }
        }

        #[test]
        fn a_folder_without_colons_and_a_tag_come_out_as_they_went_in(
            dir in "[a-zA-Z0-9 ./_@-]{1,30}", tag in "[A-Za-z0-9_][A-Za-z0-9._-]{0,20}"
        ) {
            let layout = format!("oci:{dir}:{tag}").parse::<LayoutRef>().unwrap();
            prop_assert_eq!(layout.dir.display().to_string(), dir);
            prop_assert_eq!(layout.image, Some(ImageName::Tag(tag.parse().unwrap())));
        }
    }
}
