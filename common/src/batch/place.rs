//! Locations of tags: an [`End`], a repository there ([`Home`]), a tag in it ([`Place`]), and the [`Lane`] from one
//! endpoint to another.

use std::fmt;
use std::path::Path;
use std::str::FromStr;
use std::sync::Arc;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::image::{Reference, RegistryName, RepositoryName, Tag};
use crate::printable::printable;

/// Prefix that distinguishes a layout folder from a registry. Registry names contain no slash.
const LAYOUT: &str = "oci:/";

/// Source or target of a copy.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum End {
    /// A registry.
    Registry(RegistryName),
    /// The absolute path of an image layout on this machine. Works in one process only.
    Layout(Box<str>),
}

/// A repository at an endpoint.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Home {
    end: End,
    path: Box<str>,
}

/// A tag in a repository. Tags of one repository share it, so cloning is cheap.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Place {
    /// The repository.
    pub home: Arc<Home>,
    /// The tag.
    pub tag: Tag,
}

/// Unit of queueing, rate limiting and pausing: two endpoints, and the names of the credentials used there.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Lane {
    /// Source endpoint.
    pub source: End,
    /// Name of the source credential; `None` is anonymous. Never a secret.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub source_credential: Option<Box<str>>,
    /// Target endpoint.
    pub target: End,
    /// Name of the target credential.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub target_credential: Option<Box<str>>,
}

/// Error of parsing an [`End`] or a [`Home`].
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct ParsePlaceError(String);

impl End {
    /// Creates the endpoint of a layout folder; `None` if the path is not absolute or not UTF-8.
    pub fn layout(folder: &Path) -> Option<End> {
        let text = folder.to_str().filter(|text| folder.is_absolute() && text.starts_with('/'))?;
        Some(End::Layout(text.into()))
    }

    /// Returns the registry, if it is one.
    pub fn registry(&self) -> Option<&RegistryName> {
        match self {
            End::Registry(registry) => Some(registry),
            End::Layout(_) => None,
        }
    }
}

impl FromStr for End {
    type Err = ParsePlaceError;

    fn from_str(text: &str) -> Result<End, ParsePlaceError> {
        if text.starts_with(LAYOUT) {
            if text.chars().any(char::is_control) {
                return Err(ParsePlaceError(format!("`{}` holds control characters", printable(text))));
            }
            return Ok(End::Layout(text["oci:".len()..].into()));
        }
        text.parse().map(End::Registry).map_err(|error| ParsePlaceError(format!("{error}")))
    }
}

impl fmt::Display for End {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            End::Registry(registry) => f.write_str(registry.as_str()),
            End::Layout(folder) => write!(f, "oci:{folder}"),
        }
    }
}

impl Serialize for End {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for End {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<End, D::Error> {
        let text = std::borrow::Cow::<str>::deserialize(deserializer)?;
        text.parse().map_err(serde::de::Error::custom)
    }
}

impl Home {
    /// Creates a repository of a registry.
    pub fn in_registry(registry: RegistryName, repository: &RepositoryName) -> Home {
        Home { end: End::Registry(registry), path: repository.as_str().into() }
    }

    /// Creates a repository from its name at an endpoint: the path in a registry; in a layout the full name in its
    /// annotations, or the empty name for images that have only a tag.
    pub fn new(end: End, path: &str) -> Result<Home, ParsePlaceError> {
        match end {
            End::Registry(_) => {
                path.parse::<RepositoryName>().map_err(|error| ParsePlaceError(format!("{error}")))?;
            }
            End::Layout(_) if path.len() > 512 || path.chars().any(|c| c.is_control() || c.is_whitespace()) => {
                let reason = "it is too long, or holds white space or control characters";
                return Err(ParsePlaceError(format!("`{}` names no repository: {reason}", printable(path))));
            }
            End::Layout(_) => {}
        }
        Ok(Home { end, path: path.into() })
    }

    /// Returns the endpoint.
    pub fn end(&self) -> &End {
        &self.end
    }

    /// Returns the name at the endpoint; may be empty in a layout.
    pub fn path(&self) -> &str {
        &self.path
    }

    /// Returns registry and path, if it is in a registry.
    pub fn registry(&self) -> Option<(&RegistryName, RepositoryName)> {
        match &self.end {
            End::Registry(registry) => self.path.parse().ok().map(|path| (registry, path)),
            End::Layout(_) => None,
        }
    }
}

impl fmt::Display for Home {
    /// Writes `gcr.io/a/b` or `oci:/folder:gcr.io/a/b`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.end {
            End::Registry(registry) => write!(f, "{registry}/{}", self.path),
            End::Layout(_) if self.path.is_empty() => write!(f, "{}", self.end),
            End::Layout(_) => write!(f, "{}:{}", self.end, self.path),
        }
    }
}

impl Place {
    /// Returns the image reference, if it is in a registry.
    pub fn reference(&self) -> Option<Reference> {
        let (registry, repository) = self.home.registry()?;
        Some(Reference { registry: registry.clone(), repository, tag: Some(self.tag.clone()), digest: None })
    }
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.home, self.tag)
    }
}

impl Lane {
    /// Creates a route without credentials.
    pub fn anonymous(source: End, target: End) -> Lane {
        Lane { source, source_credential: None, target, target_credential: None }
    }
}

impl fmt::Display for Lane {
    /// Writes `gcr.io>docker.io` or `robot@gcr.io>gcrxio@docker.io`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(credential) = &self.source_credential {
            write!(f, "{credential}@")?;
        }
        write!(f, "{}>", self.source)?;
        if let Some(credential) = &self.target_credential {
            write!(f, "{credential}@")?;
        }
        write!(f, "{}", self.target)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_end_is_a_registry_or_a_folder_and_reads_back() {
        for text in ["gcr.io", "localhost:5000", "oci:5000", "oci:/srv/images", "oci:/srv/with space:and colon"] {
            let end: End = text.parse().unwrap();
            assert_eq!(end.to_string(), text);
            assert_eq!(matches!(end, End::Layout(_)), text.starts_with("oci:/"), "{text}");
        }
        assert_eq!(End::layout(Path::new("relative")), None);
        assert!("oci:/a\nb".parse::<End>().is_err());
        assert!("a/b".parse::<End>().is_err());
    }

    #[test]
    fn a_repository_is_named_as_its_end_names_them() {
        let registry: End = "gcr.io".parse().unwrap();
        assert!(Home::new(registry.clone(), "").is_err());
        assert!(Home::new(registry.clone(), "localhost:5000/a").is_err());
        assert_eq!(Home::new(registry, "a/b").unwrap().to_string(), "gcr.io/a/b");

        let layout: End = "oci:/srv".parse().unwrap();
        assert_eq!(Home::new(layout.clone(), "localhost:5000/a").unwrap().to_string(), "oci:/srv:localhost:5000/a");
        assert_eq!(Home::new(layout.clone(), "").unwrap().to_string(), "oci:/srv");
        assert!(Home::new(layout, "a b").is_err());
    }

    #[test]
    fn a_lane_tells_its_credentials_apart() {
        let lane = Lane::anonymous("gcr.io".parse().unwrap(), "docker.io".parse().unwrap());
        assert_eq!(lane.to_string(), "gcr.io>docker.io");
        let named = Lane { target_credential: Some("gcrxio".into()), ..lane };
        assert_eq!(named.to_string(), "gcr.io>gcrxio@docker.io");
    }
}
