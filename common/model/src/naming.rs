//! Target names of images. Pure: a [`NamingStyle`], a [`TargetBase`] and an [`SourceName`] give a [`TargetName`], or the reason why the
//! target rejects it. [`TargetRegister`] finds collisions while listing, and [`find_certain_collision`] before.

mod backup;
mod collision;
mod template;

use std::fmt;
use std::str::FromStr;

use imgsync_oci::{ParseReferenceError, RegistryName, RepositoryName, Tag};

pub use backup::BackupTagTemplate;
pub use collision::{Collision, SingleRepositoryRule, TargetClaim, TargetRegister, find_certain_collision};
pub use template::{NamingTemplate, NamingTemplateError};

/// Naming style of targets, by the example of `gcr.io/istio-release/pilot` copied to `registry.example.com/mirror`.
#[derive(Clone, Debug, Default, PartialEq)]
pub enum NamingStyle {
    /// `mirror/gcr.io_istio-release_pilot`: accepted by every registry, and keeps the whole source name.
    #[default]
    Flat,
    /// `mirror/istio-release/pilot`.
    Keep,
    /// `mirror/pilot`.
    Basename,
    /// `mirror/gcr.io/istio-release/pilot`; in a layout, exactly the source's name.
    Full,
    /// [`Flat`](NamingStyle::Flat) of the name that the image had in imgsync 2.1, for presets:
    /// `mirror/quay.io_coreos_flannel`.
    Original,
    /// A template below the base: `{{namespace}}/{{basename}}`, or with a tag, `{{basename}}:{{tag}}-mirror`.
    Template(NamingTemplate),
}

/// Source of an image, as input of a naming style.
#[derive(Clone, Copy, Debug)]
pub struct SourceName<'a> {
    /// The source registry.
    pub registry: &'a RegistryName,
    /// The source repository.
    pub repository: &'a RepositoryName,
    /// The source tag.
    pub tag: &'a Tag,
    /// For [`NamingStyle::Original`]: the former registry and repository, `quay.io/coreos/flannel`.
    pub original: Option<&'a str>,
}

/// Target registry and path prefix, `to` in a rule.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct TargetBase {
    /// The target registry.
    pub registry: RegistryName,
    /// Path prefix of all names; `None` puts them at the top level.
    pub prefix: Option<RepositoryName>,
}

/// A valid target name.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct TargetName {
    /// The target registry.
    pub registry: RegistryName,
    /// The full path in the registry.
    pub repository: RepositoryName,
    /// The tag; only a template can change it.
    pub tag: Tag,
}

/// Reason why a target name is invalid.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("`{name}` cannot be a target: {reason}")]
pub struct TargetNameError {
    /// The invalid name.
    pub name: String,
    /// The reason.
    pub reason: String,
}

impl NamingStyle {
    /// Returns the validated name in a registry.
    pub fn target_name(&self, base: &TargetBase, source_name: &SourceName<'_>) -> Result<TargetName, TargetNameError> {
        let (path, tag) = self.layout_name(source_name)?;
        // A port's colon and an IPv6 address's brackets are the only characters of a host that paths do not allow.
        let path = match self {
            NamingStyle::Full => path.replace(':', "_").replace(['[', ']'], ""),
            _ => path,
        };
        let path = match &base.prefix {
            Some(prefix) => format!("{prefix}/{path}"),
            None => path,
        };
        let refuse = |reason: String| TargetNameError { name: format!("{}/{path}", base.registry), reason };
        let repository: RepositoryName =
            path.parse().map_err(|error: ParseReferenceError| refuse(bare_reason(&error)))?;
        if base.registry.is_docker_hub() {
            match path.split('/').count() {
                2 => {}
                1 => {
                    return Err(refuse(
                        "Docker Hub repositories are NAMESPACE/NAME: set `to` to docker.io/NAMESPACE".to_owned(),
                    ));
                }
                levels => {
                    return Err(refuse(format!(
                        "Docker Hub repositories are NAMESPACE/NAME: two levels, not {levels} (`naming: flat` joins \
                         any path into one)"
                    )));
                }
            }
        }
        Ok(TargetName { registry: base.registry.clone(), repository, tag })
    }

    /// Returns the name in an image layout, which accepts any.
    pub fn layout_name(&self, source_name: &SourceName<'_>) -> Result<(String, Tag), TargetNameError> {
        let path = match self {
            NamingStyle::Flat => flatten_name(&format!("{}/{}", source_name.registry, source_name.repository)),
            NamingStyle::Keep => source_name.repository.to_string(),
            NamingStyle::Basename => source_name.repository.basename().to_owned(),
            NamingStyle::Full => format!("{}/{}", source_name.registry, source_name.repository),
            NamingStyle::Original => match source_name.original {
                Some(original) => flatten_name(original),
                None => flatten_name(&format!("{}/{}", source_name.registry, source_name.repository)),
            },
            NamingStyle::Template(template) => return template.render_name(source_name),
        };
        Ok((path, source_name.tag.clone()))
    }

    /// Whether the tag can affect the repository's name or be changed.
    pub fn depends_on_tag(&self) -> bool {
        matches!(self, NamingStyle::Template(template) if template.depends_on_tag())
    }
}

/// Returns the reason without the path, which the message already begins with.
fn bare_reason(error: &ParseReferenceError) -> String {
    let text = error.to_string();
    match text.split_once("is not a repository: ") {
        Some((_, reason)) => reason.to_owned(),
        None => text,
    }
}

/// Flattens a name: `gcr.io/istio-release/pilot` → `gcr.io_istio-release_pilot`; `host:5000/a` → `host_5000_a`.
pub fn flatten_name(name: &str) -> String {
    name.chars()
        .filter_map(|c| match c {
            '/' | ':' => Some('_'),
            '[' | ']' => None,
            c => Some(c),
        })
        .collect()
}

impl FromStr for NamingStyle {
    type Err = NamingTemplateError;

    fn from_str(text: &str) -> Result<Self, NamingTemplateError> {
        Ok(match text {
            "flat" => NamingStyle::Flat,
            "keep" => NamingStyle::Keep,
            "basename" => NamingStyle::Basename,
            "full" => NamingStyle::Full,
            "original" => NamingStyle::Original,
            template => NamingStyle::Template(NamingTemplate::compile(template)?),
        })
    }
}

impl fmt::Display for NamingStyle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            NamingStyle::Flat => "flat",
            NamingStyle::Keep => "keep",
            NamingStyle::Basename => "basename",
            NamingStyle::Full => "full",
            NamingStyle::Original => "original",
            NamingStyle::Template(template) => template.as_str(),
        })
    }
}

/// Error of parsing a [`TargetBase`].
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TargetBaseError {
    /// Ambiguous: `gcrxio` could be a host or a namespace of Docker Hub.
    #[error("`{0}` names no registry; for Docker Hub write `docker.io/{0}`")]
    NoRegistry(String),
    /// It has a tag, a digest or a star, which only a source has.
    #[error("`{0}` is not a target: write a registry and a path, without a tag, digest or `*`")]
    NotATarget(String),
    /// An invalid registry or path.
    #[error(transparent)]
    Malformed(#[from] ParseReferenceError),
    /// Docker Hub has two levels, and the second is the image's name.
    #[error("`{0}` is too deep: Docker Hub repositories are NAMESPACE/NAME, so `to` is `docker.io/NAMESPACE`")]
    TooDeep(String),
}

impl FromStr for TargetBase {
    type Err = TargetBaseError;

    fn from_str(text: &str) -> Result<Self, TargetBaseError> {
        let (host, path) = match text.split_once('/') {
            Some((host, path)) => (host, Some(path)),
            None => (text, None),
        };
        if text.contains("://") {
            // The registry's own error says what to write.
            return Err(text
                .parse::<RegistryName>()
                .err()
                .map_or(TargetBaseError::NotATarget(text.to_owned()), TargetBaseError::Malformed));
        }
        if path.unwrap_or(host).contains(['*', '@']) || path.is_some_and(|path| path.contains(':')) {
            return Err(TargetBaseError::NotATarget(text.to_owned()));
        }
        if !host.contains(['.', ':', '[']) && host != "localhost" {
            return Err(TargetBaseError::NoRegistry(text.to_owned()));
        }
        let registry: RegistryName = host.parse()?;
        let prefix = path.filter(|path| !path.is_empty()).map(str::parse::<RepositoryName>).transpose()?;
        if registry.is_docker_hub() && prefix.as_ref().is_some_and(|prefix| prefix.as_str().contains('/')) {
            return Err(TargetBaseError::TooDeep(text.to_owned()));
        }
        Ok(Self { registry, prefix })
    }
}

impl fmt::Display for TargetBase {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.prefix {
            Some(prefix) => write!(f, "{}/{prefix}", self.registry),
            None => write!(f, "{}", self.registry),
        }
    }
}

impl fmt::Display for TargetName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}:{}", self.registry, self.repository, self.tag)
    }
}

#[cfg(test)]
mod tests;
