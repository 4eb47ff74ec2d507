//! Locations of tags: an [`Endpoint`], a repository there ([`RepositoryLocator`]), a tag in it ([`TagLocator`]), and the [`Route`] from one
//! endpoint to another.

use std::fmt;
use std::path::Path;
use std::str::FromStr;
use std::sync::Arc;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

use imgsync_oci::sanitize::sanitize;
use imgsync_oci::{ArchiveFormat, Reference, RegistryName, RepositoryName, Tag};

/// Prefix that distinguishes a layout folder from a registry. Registry names contain no slash.
const LAYOUT_PREFIX: &str = "oci:/";

/// Source or target of a copy.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Endpoint {
    /// A registry.
    Registry(RegistryName),
    /// The absolute path of an image layout on this machine. Works in one process only.
    Layout(Box<str>),
    /// An archive on this machine, by its format and absolute path. Works in one process only.
    Archive(ArchiveFormat, Box<str>),
}

/// A repository at an endpoint.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RepositoryLocator {
    endpoint: Endpoint,
    path: Box<str>,
}

/// A tag in a repository. Tags of one repository share it, so cloning is cheap.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct TagLocator {
    /// The repository.
    pub repository: Arc<RepositoryLocator>,
    /// The tag.
    pub tag: Tag,
}

/// Unit of queueing, rate limiting and pausing: two endpoints, and the names of the credentials used there.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Route {
    /// Source endpoint.
    pub source: Endpoint,
    /// Name of the source credential; `None` is anonymous. Never a secret.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub source_credential: Option<Box<str>>,
    /// Target endpoint.
    pub target: Endpoint,
    /// Name of the target credential.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub target_credential: Option<Box<str>>,
}

/// Error of parsing an [`Endpoint`] or a [`RepositoryLocator`].
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct ParseLocatorError(String);

impl Endpoint {
    /// Creates the endpoint of a layout folder; `None` if the path is not absolute or not UTF-8.
    pub fn from_layout_folder(folder: &Path) -> Option<Endpoint> {
        let text = folder.to_str().filter(|text| folder.is_absolute() && text.starts_with('/'))?;
        Some(Endpoint::Layout(text.into()))
    }

    /// Creates the endpoint of an archive; `None` if the path is not absolute or not UTF-8.
    pub fn from_archive_file(format: ArchiveFormat, file: &Path) -> Option<Endpoint> {
        let text = file.to_str().filter(|text| file.is_absolute() && text.starts_with('/'))?;
        Some(Endpoint::Archive(format, text.into()))
    }

    /// Returns the registry, if it is one.
    pub fn registry(&self) -> Option<&RegistryName> {
        match self {
            Endpoint::Registry(registry) => Some(registry),
            Endpoint::Layout(_) | Endpoint::Archive(..) => None,
        }
    }
}

impl FromStr for Endpoint {
    type Err = ParseLocatorError;

    fn from_str(text: &str) -> Result<Endpoint, ParseLocatorError> {
        if text.starts_with(LAYOUT_PREFIX) {
            if text.chars().any(char::is_control) {
                return Err(ParseLocatorError(format!("`{}` contains control characters", sanitize(text))));
            }
            return Ok(Endpoint::Layout(text["oci:".len()..].into()));
        }
        if let Some((format, file)) = ArchiveFormat::split_scheme(text).filter(|(_, file)| file.starts_with('/')) {
            if file.chars().any(char::is_control) {
                return Err(ParseLocatorError(format!("`{}` contains control characters", sanitize(text))));
            }
            return Ok(Endpoint::Archive(format, file.into()));
        }
        text.parse().map(Endpoint::Registry).map_err(|error| ParseLocatorError(format!("{error}")))
    }
}

impl fmt::Display for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Endpoint::Registry(registry) => f.write_str(registry.as_str()),
            Endpoint::Layout(folder) => write!(f, "oci:{folder}"),
            Endpoint::Archive(format, file) => write!(f, "{}{file}", format.scheme()),
        }
    }
}

impl Serialize for Endpoint {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Endpoint {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Endpoint, D::Error> {
        let text = std::borrow::Cow::<str>::deserialize(deserializer)?;
        text.parse().map_err(serde::de::Error::custom)
    }
}

impl RepositoryLocator {
    /// Creates a repository of a registry.
    pub fn in_registry(registry: RegistryName, repository: &RepositoryName) -> RepositoryLocator {
        RepositoryLocator { endpoint: Endpoint::Registry(registry), path: repository.as_str().into() }
    }

    /// Creates a repository from its name at an endpoint: the path in a registry; in a layout the full name in its
    /// annotations, or the empty name for images that have only a tag.
    pub fn new(endpoint: Endpoint, path: &str) -> Result<RepositoryLocator, ParseLocatorError> {
        match endpoint {
            Endpoint::Registry(_) => {
                path.parse::<RepositoryName>().map_err(|error| ParseLocatorError(format!("{error}")))?;
            }
            Endpoint::Layout(_) | Endpoint::Archive(..)
                if path.len() > 512 || path.chars().any(|c| c.is_control() || c.is_whitespace()) =>
            {
                let reason = "too long, or contains white space or control characters";
                return Err(ParseLocatorError(format!("`{}` is not a repository name: {reason}", sanitize(path))));
            }
            Endpoint::Layout(_) | Endpoint::Archive(..) => {}
        }
        Ok(RepositoryLocator { endpoint, path: path.into() })
    }

    /// Returns the endpoint.
    pub fn endpoint(&self) -> &Endpoint {
        &self.endpoint
    }

    /// Returns the name at the endpoint; may be empty in a layout.
    pub fn path(&self) -> &str {
        &self.path
    }

    /// Returns registry and path, if it is in a registry.
    pub fn registry(&self) -> Option<(&RegistryName, RepositoryName)> {
        match &self.endpoint {
            Endpoint::Registry(registry) => self.path.parse().ok().map(|path| (registry, path)),
            Endpoint::Layout(_) | Endpoint::Archive(..) => None,
        }
    }
}

impl fmt::Display for RepositoryLocator {
    /// Writes `gcr.io/a/b` or `oci:/folder:gcr.io/a/b`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.endpoint {
            Endpoint::Registry(registry) => write!(f, "{registry}/{}", self.path),
            Endpoint::Layout(_) | Endpoint::Archive(..) if self.path.is_empty() => write!(f, "{}", self.endpoint),
            Endpoint::Layout(_) | Endpoint::Archive(..) => write!(f, "{}:{}", self.endpoint, self.path),
        }
    }
}

impl TagLocator {
    /// Returns the image reference, if it is in a registry.
    pub fn reference(&self) -> Option<Reference> {
        let (registry, repository) = self.repository.registry()?;
        Some(Reference { registry: registry.clone(), repository, tag: Some(self.tag.clone()), digest: None })
    }
}

impl fmt::Display for TagLocator {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.repository, self.tag)
    }
}

impl Route {
    /// Creates a route without credentials.
    pub fn anonymous(source: Endpoint, target: Endpoint) -> Route {
        Route { source, source_credential: None, target, target_credential: None }
    }
}

impl fmt::Display for Route {
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
    fn an_endpoint_is_a_registry_or_a_folder_and_reads_back() {
        for text in ["gcr.io", "localhost:5000", "oci:5000", "oci:/srv/images", "oci:/srv/with space:and colon"] {
            let end: Endpoint = text.parse().unwrap();
            assert_eq!(end.to_string(), text);
            assert_eq!(matches!(end, Endpoint::Layout(_)), text.starts_with("oci:/"), "{text}");
        }
        assert_eq!(Endpoint::from_layout_folder(Path::new("relative")), None);
        assert!("oci:/a\nb".parse::<Endpoint>().is_err());
        assert!("a/b".parse::<Endpoint>().is_err());
    }

    #[test]
    fn a_repository_is_named_as_its_endpoint_names_it() {
        let registry: Endpoint = "gcr.io".parse().unwrap();
        assert!(RepositoryLocator::new(registry.clone(), "").is_err());
        assert!(RepositoryLocator::new(registry.clone(), "localhost:5000/a").is_err());
        assert_eq!(RepositoryLocator::new(registry, "a/b").unwrap().to_string(), "gcr.io/a/b");

        let layout: Endpoint = "oci:/srv".parse().unwrap();
        assert_eq!(
            RepositoryLocator::new(layout.clone(), "localhost:5000/a").unwrap().to_string(),
            "oci:/srv:localhost:5000/a"
        );
        assert_eq!(RepositoryLocator::new(layout.clone(), "").unwrap().to_string(), "oci:/srv");
        assert!(RepositoryLocator::new(layout, "a b").is_err());
    }

    #[test]
    fn a_route_shows_its_credentials() {
        let route = Route::anonymous("gcr.io".parse().unwrap(), "docker.io".parse().unwrap());
        assert_eq!(route.to_string(), "gcr.io>docker.io");
        let named = Route { target_credential: Some("gcrxio".into()), ..route };
        assert_eq!(named.to_string(), "gcr.io>gcrxio@docker.io");
    }
}
