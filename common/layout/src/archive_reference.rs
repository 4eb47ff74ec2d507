//! References to archives and images in them: `oci-archive:FILE`, `docker-archive:FILE:TAG`,
//! `oci-archive:-:gcr.io/distroless/static:nonroot`; as in containers-transports(5) of skopeo and podman.

use std::fmt;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use imgsync_oci::ArchiveFormat;
use imgsync_oci::sanitize::sanitize;
use imgsync_registry::ManifestRef;

use super::reference::{ImageName, QualifiedRepositoryName, split_image};

/// An archive's file, and an image in it, if one is named.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ArchiveRef {
    /// The format.
    pub format: ArchiveFormat,
    /// The file, as written; `-` is stdin or stdout.
    pub file: PathBuf,
    /// The image.
    pub image: Option<ImageName>,
}

/// Error of parsing an [`ArchiveRef`].
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{text}` does not name an archive: {reason}")]
pub struct ParseArchiveRefError {
    text: String,
    reason: String,
}

impl ArchiveRef {
    /// Whether a text begins with `oci-archive:` or `docker-archive:`.
    pub fn has_scheme(text: &str) -> bool {
        ArchiveFormat::split_scheme(text).is_some()
    }

    /// Whether the archive is read from stdin or written to stdout. A file with the name `-` is written `./-`.
    pub fn is_stdio(&self) -> bool {
        self.file == Path::new("-")
    }

    /// Returns the repository of a full name.
    pub fn repository(&self) -> Option<QualifiedRepositoryName> {
        self.image.as_ref().and_then(ImageName::repository)
    }

    /// Returns the tag or digest, if any; `latest` for a full name without either.
    pub fn manifest(&self) -> Option<ManifestRef> {
        self.image.as_ref().and_then(ImageName::manifest)
    }

    /// Returns the location of the whole archive.
    pub fn without_image(&self) -> ArchiveRef {
        ArchiveRef { image: None, ..self.clone() }
    }
}

impl FromStr for ArchiveRef {
    type Err = ParseArchiveRefError;

    /// The file ends at the first colon followed by a tag or a full name, as for layouts.
    fn from_str(text: &str) -> Result<ArchiveRef, ParseArchiveRefError> {
        let fail = |reason: &str| {
            Err(ParseArchiveRefError { text: sanitize(text).into_owned(), reason: sanitize(reason).into_owned() })
        };
        let Some((format, rest)) = ArchiveFormat::split_scheme(text) else {
            return fail("it does not begin with `oci-archive:` or `docker-archive:`");
        };
        if rest.chars().any(char::is_control) {
            return fail("it holds control characters");
        }
        let (file, image) = match split_image(rest) {
            Ok(split) => split,
            Err(reason) => return fail(&reason),
        };
        if file.is_empty() {
            return fail(&format!("it names no file: write {0}FILE or {0}FILE:TAG", format.scheme()));
        }
        if file.ends_with('/') {
            return fail("an archive is a file, not a folder (an image layout in a folder is oci:FOLDER)");
        }
        if image.is_none()
            && let Some((_, last)) = file.rsplit_once(':')
            && !last.contains('/')
        {
            return fail(&format!("`{last}` is neither a tag nor an image's name with a tag"));
        }
        if image.is_some() && matches!(split_image(file), Ok((_, Some(_)))) {
            return fail(&format!("`{file}` is itself read as a file and an image: rename the file"));
        }
        Ok(ArchiveRef { format, file: file.into(), image })
    }
}

impl fmt::Display for ArchiveRef {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}{}", self.format.scheme(), self.file.display())?;
        match &self.image {
            None => Ok(()),
            Some(ImageName::Tag(tag)) => write!(f, ":{tag}"),
            Some(ImageName::Digest(digest)) => write!(f, "@{digest}"),
            Some(ImageName::Full(reference)) => write!(f, ":{reference}"),
        }
    }
}

impl serde::Serialize for ArchiveRef {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> serde::Deserialize<'de> for ArchiveRef {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<ArchiveRef, D::Error> {
        let text = std::borrow::Cow::<str>::deserialize(deserializer)?;
        text.parse().map_err(serde::de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use imgsync_oci::Digest;
    use proptest::prelude::*;

    fn read(text: &str) -> (ArchiveFormat, String, String) {
        let archive = text.parse::<ArchiveRef>().unwrap_or_else(|error| panic!("{error}"));
        let image = match archive.image {
            None => String::new(),
            Some(ImageName::Tag(tag)) => tag.to_string(),
            Some(ImageName::Digest(digest)) => format!("@{digest}"),
            Some(ImageName::Full(reference)) => format!("full {reference}"),
        };
        (archive.format, archive.file.display().to_string(), image)
    }

    #[test]
    fn the_file_ends_where_a_tag_or_a_full_name_begins() {
        let digest = Digest::sha256(b"x").to_string();
        let (oci, docker) = (ArchiveFormat::Oci, ArchiveFormat::Docker);
        for (text, format, file, image) in [
            ("oci-archive:images.tar", oci, "images.tar", ""),
            ("docker-archive:/a b/c d.tar", docker, "/a b/c d.tar", ""),
            ("docker-archive:x.tar:1.0", docker, "x.tar", "1.0"),
            ("oci-archive:-", oci, "-", ""),
            ("oci-archive:-:latest", oci, "-", "latest"),
            (
                "oci-archive:x.tar:gcr.io/distroless/static:nonroot",
                oci,
                "x.tar",
                "full gcr.io/distroless/static:nonroot",
            ),
            ("oci-archive:x:nginx:1.27", oci, "x", "full docker.io/library/nginx:1.27"),
            (&format!("oci-archive:x.tar@{digest}"), oci, "x.tar", &format!("@{digest}")),
            (&format!("oci-archive:x.tar:gcr.io/a/b@{digest}"), oci, "x.tar", &format!("full gcr.io/a/b@{digest}")),
        ] {
            assert_eq!(read(text), (format, file.to_owned(), image.to_owned()), "{text}");
        }
    }

    #[test]
    fn a_refusal_gives_the_reason() {
        for (text, reason) in [
            ("images.tar", "begin with `oci-archive:`"),
            ("oci-archive:", "no file"),
            ("docker-archive::1.0", "no file"),
            ("oci-archive:x:", "`` is neither a tag"),
            ("oci-archive:x/:1", "not a folder"),
            ("oci-archive:x\u{0}", "control"),
            ("oci-archive:x@sha256:abc", "64 hexadecimal"),
            (&format!("oci-archive::_:_@{}", Digest::sha256(b"x")), "rename the file"),
        ] {
            let error = text.parse::<ArchiveRef>().unwrap_err().to_string();
            assert!(error.contains(reason), "{text:?}: {error}");
        }
    }

    #[test]
    fn a_hyphen_is_stdin_or_stdout() {
        for (text, expected) in [("oci-archive:-", true), ("docker-archive:-:1", true), ("oci-archive:./-", false)] {
            assert_eq!(text.parse::<ArchiveRef>().unwrap().is_stdio(), expected, "{text}");
        }
    }

    proptest! {
        #[test]
        fn no_text_makes_the_parser_panic(text: String) {
            let _ = text.parse::<ArchiveRef>();
            let _ = format!("docker-archive:{text}").parse::<ArchiveRef>();
        }

        #[test]
        fn what_parses_prints_to_what_parses_to_the_same(text in "[a-c0-9.:/@_ -]{0,30}(@sha256:[0-9]{64})?") {
            if let Ok(archive) = format!("oci-archive:{text}").parse::<ArchiveRef>() {
                prop_assert_eq!(archive.to_string().parse::<ArchiveRef>().unwrap(), archive);
            }
        }
    }
}
