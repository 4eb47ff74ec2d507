//! Target names of images. Pure: a [`Style`], a [`Base`] and an [`Origin`] give a [`TargetName`], or the reason why the
//! target rejects it. [`Names`] finds collisions while listing, and [`must_collide`] before.

mod backup;
mod collision;
mod template;

use std::fmt;
use std::str::FromStr;

use crate::image::{ParseReferenceError, RegistryName, RepositoryName, Tag};

pub use backup::BackupName;
pub use collision::{Claim, Collision, FixedRule, Names, must_collide};
pub use template::{Template, TemplateError};

/// Naming style of targets, by the example of `gcr.io/istio-release/pilot` copied to `registry.example.com/mirror`.
#[derive(Clone, Debug, Default, PartialEq)]
pub enum Style {
    /// `mirror/gcr.io_istio-release_pilot`: accepted by every registry, and keeps the whole source name.
    #[default]
    Flat,
    /// `mirror/istio-release/pilot`.
    Keep,
    /// `mirror/pilot`.
    Basename,
    /// `mirror/gcr.io/istio-release/pilot`; in a layout, exactly the source's name.
    Full,
    /// [`Flat`](Style::Flat) of the name that the image had in imgsync 2.1, for presets:
    /// `mirror/quay.io_coreos_flannel`.
    Original,
    /// A template below the base: `{{namespace}}/{{basename}}`, or with a tag, `{{basename}}:{{tag}}-mirror`.
    Template(Template),
}

/// Source of an image, as input of a naming style.
#[derive(Clone, Copy, Debug)]
pub struct Origin<'a> {
    /// The source registry.
    pub registry: &'a RegistryName,
    /// The source repository.
    pub repository: &'a RepositoryName,
    /// The source tag.
    pub tag: &'a Tag,
    /// For [`Style::Original`]: the former registry and repository, `quay.io/coreos/flannel`.
    pub original: Option<&'a str>,
}

/// Target registry and path prefix, `to` in a rule.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Base {
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
pub struct NameError {
    /// The invalid name.
    pub name: String,
    /// The reason.
    pub reason: String,
}

impl Style {
    /// Returns the validated name in a registry.
    pub fn name(&self, base: &Base, origin: &Origin<'_>) -> Result<TargetName, NameError> {
        let (path, tag) = self.in_layout(origin)?;
        // A port's colon and an IPv6 address's brackets are the only characters of a host that paths do not allow.
        let path = match self {
            Style::Full => path.replace(':', "_").replace(['[', ']'], ""),
            _ => path,
        };
        let path = match &base.prefix {
            Some(prefix) => format!("{prefix}/{path}"),
            None => path,
        };
        let refuse = |reason: String| NameError { name: format!("{}/{path}", base.registry), reason };
        let repository: RepositoryName =
            path.parse().map_err(|error: ParseReferenceError| refuse(reason_of(&error)))?;
        if base.registry.is_docker_hub() {
            match path.split('/').count() {
                2 => {}
                1 => return Err(refuse("Docker Hub takes NAMESPACE/NAME: let `to` be docker.io/NAMESPACE".to_owned())),
                levels => {
                    return Err(refuse(format!(
                        "Docker Hub takes NAMESPACE/NAME, two levels and not {levels} (`naming: flat` makes one of any path)"
                    )));
                }
            }
        }
        Ok(TargetName { registry: base.registry.clone(), repository, tag })
    }

    /// Returns the name in an image layout, which accepts any.
    pub fn in_layout(&self, origin: &Origin<'_>) -> Result<(String, Tag), NameError> {
        let path = match self {
            Style::Flat => flat(&format!("{}/{}", origin.registry, origin.repository)),
            Style::Keep => origin.repository.to_string(),
            Style::Basename => origin.repository.basename().to_owned(),
            Style::Full => format!("{}/{}", origin.registry, origin.repository),
            Style::Original => match origin.original {
                Some(original) => flat(original),
                None => flat(&format!("{}/{}", origin.registry, origin.repository)),
            },
            Style::Template(template) => return template.name(origin),
        };
        Ok((path, origin.tag.clone()))
    }

    /// Whether the tag can affect the repository's name or be changed.
    pub fn depends_on_tag(&self) -> bool {
        matches!(self, Style::Template(template) if template.depends_on_tag())
    }
}

/// Returns the reason without the path, which the message already begins with.
fn reason_of(error: &ParseReferenceError) -> String {
    let text = error.to_string();
    match text.split_once("is not a repository: ") {
        Some((_, reason)) => reason.to_owned(),
        None => text,
    }
}

/// Flattens a name: `gcr.io/istio-release/pilot` → `gcr.io_istio-release_pilot`; `host:5000/a` → `host_5000_a`.
pub fn flat(name: &str) -> String {
    name.chars()
        .filter_map(|c| match c {
            '/' | ':' => Some('_'),
            '[' | ']' => None,
            c => Some(c),
        })
        .collect()
}

impl FromStr for Style {
    type Err = TemplateError;

    fn from_str(text: &str) -> Result<Self, TemplateError> {
        Ok(match text {
            "flat" => Style::Flat,
            "keep" => Style::Keep,
            "basename" => Style::Basename,
            "full" => Style::Full,
            "original" => Style::Original,
            template => Style::Template(Template::compile(template)?),
        })
    }
}

impl fmt::Display for Style {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Style::Flat => "flat",
            Style::Keep => "keep",
            Style::Basename => "basename",
            Style::Full => "full",
            Style::Original => "original",
            Style::Template(template) => template.as_str(),
        })
    }
}

/// Error of parsing a [`Base`].
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BaseError {
    /// Ambiguous: `gcrxio` could be a host or a namespace of Docker Hub.
    #[error("`{0}` names no registry; for Docker Hub write `docker.io/{0}`")]
    NoRegistry(String),
    /// It has a tag, a digest or a star, which only a source has.
    #[error("`{0}` is more than a place; write a registry and a path, without a tag, a digest or stars")]
    NotAPlace(String),
    /// An invalid registry or path.
    #[error(transparent)]
    Malformed(#[from] ParseReferenceError),
    /// Docker Hub has two levels, and the second is the image's name.
    #[error("`{0}` is too deep: Docker Hub takes NAMESPACE/NAME, so `to` is `docker.io/NAMESPACE`")]
    TooDeep(String),
}

impl FromStr for Base {
    type Err = BaseError;

    fn from_str(text: &str) -> Result<Self, BaseError> {
        let (host, path) = match text.split_once('/') {
            Some((host, path)) => (host, Some(path)),
            None => (text, None),
        };
        if text.contains("://") {
            // The registry's own error says what to write.
            return Err(text
                .parse::<RegistryName>()
                .err()
                .map_or(BaseError::NotAPlace(text.to_owned()), BaseError::Malformed));
        }
        if path.unwrap_or(host).contains(['*', '@']) || path.is_some_and(|path| path.contains(':')) {
            return Err(BaseError::NotAPlace(text.to_owned()));
        }
        if !host.contains(['.', ':', '[']) && host != "localhost" {
            return Err(BaseError::NoRegistry(text.to_owned()));
        }
        let registry: RegistryName = host.parse()?;
        let prefix = path.filter(|path| !path.is_empty()).map(str::parse::<RepositoryName>).transpose()?;
        if registry.is_docker_hub() && prefix.as_ref().is_some_and(|prefix| prefix.as_str().contains('/')) {
            return Err(BaseError::TooDeep(text.to_owned()));
        }
        Ok(Self { registry, prefix })
    }
}

impl fmt::Display for Base {
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
