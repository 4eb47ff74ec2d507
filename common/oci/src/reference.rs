//! Image references as written by Docker and OCI users: `alpine`, `host:5000/a/b:tag`, `x@sha256:…`, `[::1]:5000/x`.
//!
//! The grammar is that of github.com/distribution/reference; Docker Hub's short forms are expanded.

use std::fmt;
use std::str::FromStr;

use super::Digest;
use crate::sanitize::sanitize;

/// Upper limit for host and path together, in characters.
const MAX_NAME_LENGTH: usize = 255;
const DOCKER_HUB: &str = "docker.io";

/// Name of a registry: a host, with a port unless it is the default one. Docker Hub is `docker.io`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RegistryName(Box<str>);

/// Path of a repository within its registry, `library/alpine`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RepositoryName(Box<str>);

/// A tag: a letter, digit or underscore, then up to 127 of those, dots and dashes.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Tag(Box<str>);

/// Reference to an image: registry, repository, and a tag, a digest, both or neither.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Reference {
    /// The registry.
    pub registry: RegistryName,
    /// The repository within the registry.
    pub repository: RepositoryName,
    /// The tag, if written.
    pub tag: Option<Tag>,
    /// The digest, if written; it takes precedence over the tag.
    pub digest: Option<Digest>,
}

/// Error of parsing a [`Reference`] or a part of one.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{text}` is not {what}: {reason}")]
pub struct ParseReferenceError {
    text: String,
    what: &'static str,
    reason: String,
}

fn parse_error(text: &str, what: &'static str, reason: impl Into<String>) -> ParseReferenceError {
    ParseReferenceError { text: sanitize(text).into_owned(), what, reason: reason.into() }
}

impl RegistryName {
    /// Returns the name as written in references.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Returns the host without the port; an IPv6 address without its brackets.
    pub fn host(&self) -> &str {
        split_port(&self.0).0.trim_start_matches('[').trim_end_matches(']')
    }

    /// Returns the port, if written.
    pub fn port(&self) -> Option<u16> {
        split_port(&self.0).1.and_then(|port| port.parse().ok())
    }

    /// Whether this is Docker Hub.
    pub fn is_docker_hub(&self) -> bool {
        &*self.0 == DOCKER_HUB
    }

    /// Whether this is the local machine: `localhost`, names below it, 127.0.0.0/8 or `::1`.
    pub fn is_loopback(&self) -> bool {
        let host = self.host();
        host == "localhost"
            || host.ends_with(".localhost")
            || host.parse::<std::net::IpAddr>().is_ok_and(|address| address.is_loopback())
    }
}

/// Returns a reference or pattern without the transport prefix of skopeo and others.
pub fn strip_transport(text: &str) -> &str {
    text.strip_prefix("docker://").unwrap_or(text)
}

/// Splits `host:port`, skipping the colons within an IPv6 address's brackets.
fn split_port(text: &str) -> (&str, Option<&str>) {
    let after_brackets = text.rfind(']').unwrap_or(0);
    match text[after_brackets..].rfind(':') {
        Some(colon) => (&text[..after_brackets + colon], Some(&text[after_brackets + colon + 1..])),
        None => (text, None),
    }
}

impl FromStr for RegistryName {
    type Err = ParseReferenceError;

    fn from_str(text: &str) -> Result<RegistryName, ParseReferenceError> {
        const WHAT: &str = "a registry";
        if text.contains("://") {
            return Err(parse_error(text, WHAT, "write the host alone, without a scheme"));
        }
        let lower = text.to_ascii_lowercase();
        let (host, port) = split_port(&lower);
        if let Some(port) = port
            && !port.parse::<u16>().is_ok_and(|port| port > 0)
        {
            return Err(parse_error(text, WHAT, "its port is not a number from 1 to 65535"));
        }
        if let Some(address) = host.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')) {
            if address.parse::<std::net::Ipv6Addr>().is_err() {
                return Err(parse_error(text, WHAT, "there is no IPv6 address within the brackets"));
            }
        } else if host.contains(['[', ']', ':']) {
            return Err(parse_error(text, WHAT, "an IPv6 address stands in brackets, as in [::1]:5000"));
        } else {
            let label = |label: &str| {
                !label.is_empty()
                    && label.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-')
                    && !label.starts_with('-')
                    && !label.ends_with('-')
            };
            if host.len() > 253 || !host.split('.').all(label) {
                return Err(parse_error(text, WHAT, "a host has letters, digits, dots and dashes"));
            }
        }
        // Docker Hub has several host names; all mean the same registry.
        Ok(match lower.as_str() {
            "index.docker.io" | "registry-1.docker.io" | "registry.hub.docker.com" => RegistryName(DOCKER_HUB.into()),
            _ => RegistryName(lower.into()),
        })
    }
}

impl RepositoryName {
    /// Returns the path as written in references.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Returns the last component of the path.
    pub fn basename(&self) -> &str {
        self.0.rsplit('/').next().unwrap_or(&self.0)
    }
}

impl FromStr for RepositoryName {
    type Err = ParseReferenceError;

    fn from_str(text: &str) -> Result<RepositoryName, ParseReferenceError> {
        const WHAT: &str = "a repository";
        if text.is_empty() {
            return Err(parse_error(text, WHAT, "it is empty"));
        }
        if text.len() > MAX_NAME_LENGTH {
            return Err(parse_error(
                text,
                WHAT,
                format!("it has {} characters, {MAX_NAME_LENGTH} are allowed", text.len()),
            ));
        }
        if text.bytes().any(|b| b.is_ascii_uppercase()) {
            let lower = text.to_ascii_lowercase();
            return Err(parse_error(text, WHAT, format!("repository names are lowercase (did you mean `{lower}`?)")));
        }
        if !text.split('/').all(is_path_component) {
            let reason = "each part between slashes starts and ends with a letter or digit and holds only a-z, 0-9, \
                          and between those one `.`, one or two `_`, or dashes";
            return Err(parse_error(text, WHAT, reason));
        }
        Ok(RepositoryName(text.into()))
    }
}

/// `[a-z0-9]+((\.|_|__|-+)[a-z0-9]+)*`
fn is_path_component(part: &str) -> bool {
    let alphanumeric = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit();
    let bytes = part.as_bytes();
    let (Some(&first), Some(&last)) = (bytes.first(), bytes.last()) else { return false };
    alphanumeric(first)
        && alphanumeric(last)
        && part
            .split(|c: char| c.is_ascii() && alphanumeric(c as u8))
            .all(|separator| matches!(separator, "" | "." | "_" | "__") || separator.bytes().all(|b| b == b'-'))
}

impl Tag {
    /// Returns the tag as written in references.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Returns `latest`, the default where no tag is written.
    pub fn latest() -> Tag {
        Tag("latest".into())
    }

    /// Creates a tag from parts that are known to form a valid one.
    pub(super) fn from_checked(text: String) -> Tag {
        Tag(text.into())
    }
}

impl FromStr for Tag {
    type Err = ParseReferenceError;

    fn from_str(text: &str) -> Result<Tag, ParseReferenceError> {
        let word = |b: u8| b.is_ascii_alphanumeric() || b == b'_';
        let fits = (1..=128).contains(&text.len())
            && text.bytes().next().is_some_and(word)
            && text.bytes().all(|b| word(b) || matches!(b, b'.' | b'-'));
        if !fits && text.contains('+') {
            let reason = format!("tags cannot contain `+`; Helm writes {}", sanitize(&text.replace('+', "_")));
            return Err(parse_error(text, "a tag", reason));
        }
        if !fits {
            let reason = "a tag has 1 to 128 letters, digits, `_`, `.` and `-`, and does not start with `.` or `-`";
            return Err(parse_error(text, "a tag", reason));
        }
        Ok(Tag(text.into()))
    }
}

impl Reference {
    /// Returns the tag; `latest` if neither tag nor digest is written.
    pub fn tag_or_latest(&self) -> Option<Tag> {
        match (&self.tag, &self.digest) {
            (Some(tag), _) => Some(tag.clone()),
            (None, None) => Some(Tag::latest()),
            (None, Some(_)) => None,
        }
    }

    /// Returns a reference to another tag of the same repository, without a digest.
    pub fn with_tag(&self, tag: Tag) -> Reference {
        Reference { tag: Some(tag), digest: None, ..self.clone() }
    }

    /// Returns `registry/repository`, without tag and digest.
    pub fn name(&self) -> String {
        format!("{}/{}", self.registry, self.repository)
    }
}

impl FromStr for Reference {
    type Err = ParseReferenceError;

    fn from_str(text: &str) -> Result<Reference, ParseReferenceError> {
        const WHAT: &str = "a reference";
        let fail = |reason: String| parse_error(text, WHAT, reason);
        if text.is_empty() {
            return Err(fail("it is empty".into()));
        }
        if text.trim() != text || text.chars().any(|c| c.is_whitespace() || c.is_control()) {
            return Err(fail("it holds white space or control characters".into()));
        }
        let rest = strip_transport(text);
        if let Some((scheme, after)) = rest.split_once("://") {
            return Err(fail(format!("write it without `{scheme}://`, as in `{}`", sanitize(after))));
        }
        let (rest, digest) = match rest.split_once('@') {
            Some((rest, digest)) => (rest, Some(digest.parse::<Digest>().map_err(|error| fail(error.to_string()))?)),
            None => (rest, None),
        };
        let (name, tag) = split_tag(rest);
        let tag = tag.map(|tag| tag.parse::<Tag>().map_err(|error| fail(error.to_string()))).transpose()?;
        let (registry, path) = split_registry(name);
        if registry.is_none() && digest.is_none() && tag.is_none() && is_bare_hex(path) {
            return Err(fail("64 hexadecimal digits are an image ID, not a repository".into()));
        }
        let registry = match registry {
            Some(registry) => registry.parse::<RegistryName>().map_err(|error| fail(error.to_string()))?,
            None => RegistryName(DOCKER_HUB.into()),
        };
        if path.is_empty() {
            return Err(fail(format!("it names the registry {registry} without a repository")));
        }
        let path = match registry.is_docker_hub() && !path.contains('/') {
            true => format!("library/{path}"),
            false => path.to_owned(),
        };
        let repository = path.parse::<RepositoryName>().map_err(|error| fail(error.reason))?;
        Ok(Reference { registry, repository, tag, digest })
    }
}

/// Splits at the last colon, unless a slash follows it: then it belongs to a port.
fn split_tag(text: &str) -> (&str, Option<&str>) {
    match text.rfind(':') {
        Some(colon) if !text[colon..].contains(['/', ']']) => (&text[..colon], Some(&text[colon + 1..])),
        _ => (text, None),
    }
}

/// Whether the first component of a name is its registry: it cannot be part of a Docker Hub path, because it has a dot, a
/// colon or a bracket, or is `localhost`.
pub fn is_registry_part(first: &str) -> bool {
    first.contains(['.', ':', '[']) || first == "localhost"
}

/// Splits off the registry, if the first component is one.
fn split_registry(name: &str) -> (Option<&str>, &str) {
    match name.split_once('/') {
        Some((first, path)) if is_registry_part(first) => (Some(first), path),
        None if name.contains('[') => (Some(name), ""),
        _ => (None, name),
    }
}

fn is_bare_hex(text: &str) -> bool {
    text.len() == 64 && text.bytes().all(|b| b.is_ascii_hexdigit())
}

impl fmt::Display for Reference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.registry, self.repository)?;
        if let Some(tag) = &self.tag {
            write!(f, ":{tag}")?;
        }
        if let Some(digest) = &self.digest {
            write!(f, "@{digest}")?;
        }
        Ok(())
    }
}

macro_rules! impl_text_traits {
    ($($name:ident)*) => {$(
        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }

        impl serde::Serialize for $name {
            fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.serialize_str(&self.0)
            }
        }

        impl<'de> serde::Deserialize<'de> for $name {
            fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<$name, D::Error> {
                let text = std::borrow::Cow::<str>::deserialize(deserializer)?;
                text.parse().map_err(serde::de::Error::custom)
            }
        }
    )*};
}
impl_text_traits!(RegistryName RepositoryName Tag);

impl serde::Serialize for Reference {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> serde::Deserialize<'de> for Reference {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Reference, D::Error> {
        let text = std::borrow::Cow::<str>::deserialize(deserializer)?;
        text.parse().map_err(serde::de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn read(text: &str) -> String {
        text.parse::<Reference>().map_or_else(|error| panic!("{error}"), |reference| reference.to_string())
    }

    fn refusal(text: &str) -> String {
        text.parse::<Reference>().unwrap_err().to_string()
    }

    #[test]
    fn references_are_read_as_docker_reads_them() {
        let digest = Digest::sha256(b"x").to_string();
        for (text, meaning) in [
            ("alpine", "docker.io/library/alpine"),
            ("alpine:3.20", "docker.io/library/alpine:3.20"),
            ("user/app", "docker.io/user/app"),
            ("index.docker.io/library/alpine", "docker.io/library/alpine"),
            ("docker.io/alpine", "docker.io/library/alpine"),
            ("registry-1.docker.io/a/b:c", "docker.io/a/b:c"),
            ("docker://quay.io/coreos/etcd:v3", "quay.io/coreos/etcd:v3"),
            ("localhost/a", "localhost/a"),
            ("host:5000/a/b", "host:5000/a/b"),
            ("host:5000/a/b:tag", "host:5000/a/b:tag"),
            ("GCR.io/distroless/static", "gcr.io/distroless/static"),
            ("[::1]:5000/a:b", "[::1]:5000/a:b"),
            ("[2001:db8::1]/a", "[2001:db8::1]/a"),
            ("gcr.io/a__b/c-d.e_f", "gcr.io/a__b/c-d.e_f"),
            (&format!("x@{digest}"), &format!("docker.io/library/x@{digest}")),
            (&format!("host:1/x:tag@{digest}"), &format!("host:1/x:tag@{digest}")),
        ] {
            assert_eq!(read(text), meaning, "{text}");
        }
    }

    #[test]
    fn a_tag_is_latest_only_where_nothing_else_was_said() {
        let digest = Digest::sha256(b"x");
        assert_eq!("alpine".parse::<Reference>().unwrap().tag_or_latest(), Some(Tag::latest()));
        assert_eq!(format!("alpine@{digest}").parse::<Reference>().unwrap().tag_or_latest(), None);
    }

    #[test]
    fn a_refusal_gives_the_reason() {
        for (text, reason) in [
            ("", "empty"),
            ("docker.io/library/Alpine", "repository names are lowercase (did you mean `library/alpine`?)"),
            ("Alpine", "lowercase"),
            ("https://gcr.io/a/b", "without `https://`"),
            ("host:99999/a", "port"),
            ("a b", "white space"),
            ("gcr.io/", "without a repository"),
            ("gcr.io//a", "between slashes"),
            ("a:b:c/", "port"),
            ("x:-bad", "a tag has"),
            ("x@sha256:abc", "64 hexadecimal"),
            ("x@md5:abc", "only sha256 and sha512"),
            ("[::1/a", "brackets"),
            ("[zz]/a", "IPv6"),
            ("a___b", "between slashes"),
            ("x/\u{1b}[31m", "control"),
            (&"a".repeat(300), "255"),
        ] {
            let error = refusal(text);
            assert!(error.contains(reason), "{text:?}: {error}");
            assert!(!error.contains('\u{1b}'));
        }
    }

    #[test]
    fn hosts_and_ports_are_told_apart() {
        let name: RegistryName = "[::1]:5000".parse().unwrap();
        assert_eq!((name.host(), name.port(), name.is_loopback()), ("::1", Some(5000), true));
        let name: RegistryName = "gcr.io".parse().unwrap();
        assert_eq!((name.host(), name.port(), name.is_loopback()), ("gcr.io", None, false));
        assert!("127.8.8.8:1".parse::<RegistryName>().unwrap().is_loopback());
        assert!(!"localhost.example.com".parse::<RegistryName>().unwrap().is_loopback());
    }

    proptest! {
        #[test]
        fn what_is_printed_parses_back(
            host in "([a-z]{1,8}\\.)[a-z]{2,5}(:[1-9][0-9]{0,3})?",
            path in "[a-z0-9]{1,5}((\\.|_|__|-{1,3})[a-z0-9]{1,5}){0,2}(/[a-z0-9]{1,5}){0,3}",
            tag in proptest::option::of("[A-Za-z0-9_][A-Za-z0-9._-]{0,20}"),
            digest in proptest::option::of(any::<Vec<u8>>()),
        ) {
            let reference = Reference {
                registry: host.parse().unwrap(),
                repository: path.parse().unwrap(),
                tag: tag.map(|tag| tag.parse().unwrap()),
                digest: digest.map(|bytes| Digest::sha256(&bytes)),
            };
            prop_assert_eq!(reference.to_string().parse::<Reference>().unwrap(), reference);
        }

        #[test]
        fn no_text_makes_the_parser_panic(text: String) {
            let _ = text.parse::<Reference>();
        }

        #[test]
        fn what_parses_prints_to_what_parses_to_the_same(text in "[a-zA-Z0-9.:/@_\\[\\]-]{0,40}") {
            if let Ok(reference) = text.parse::<Reference>() {
                prop_assert_eq!(reference.to_string().parse::<Reference>().unwrap(), reference);
            }
        }
    }
}
