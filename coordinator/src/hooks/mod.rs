//! Payloads of registries' notifications: a file for each sender. Pure: what comes from outside is data, and says only
//! where to look.
//!
//! [`parse`] returns the notifications of a request. Names are checked by [`RegistryNotification::push`]; URLs in payloads
//! are never requested.

mod acr;
mod artifact_registry;
mod cloud_event;
mod distribution;
mod docker_hub;
mod ecr;
mod generic;
mod gitea;
mod github;
mod harbor;
mod quay;
#[cfg(test)]
mod tests;
mod zot;

use axum::http::HeaderMap;
use imgsync_config::HookKind;
use imgsync_model::batch::PushedReference;
use imgsync_oci::{Digest, RegistryName, RepositoryName};
use serde::de::{DeserializeOwned, SeqAccess, Visitor};
use serde::{Deserialize, Deserializer};

/// Maximum number of notifications in a request; senders put one, or a few.
pub(crate) const MAX_NOTIFICATIONS: usize = 1_000;
/// Maximum size of a text that goes into each notification of a payload, in bytes.
const MAX_TEXT_BYTES: usize = 1 << 10;

/// A notification as its sender writes it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct RegistryNotification {
    /// What happened.
    pub(crate) action: NotifiedAction,
    /// Host of the registry, where the sender's name for it is the one that clients use.
    pub(crate) host: Option<String>,
    /// The repository.
    pub(crate) repository: String,
    /// The tag; with some senders, a digest where there is no tag.
    pub(crate) tag: Option<String>,
    /// The digest.
    pub(crate) digest: Option<String>,
    /// The sender's id of the notification.
    pub(crate) id: Option<String>,
}

/// What a notification reports.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) enum NotifiedAction {
    /// Something was pushed.
    #[default]
    Push,
    /// Something was deleted.
    Delete,
    /// The sender checks the connection.
    Ping,
    /// The sender asks to be confirmed at a URL, which a person has to open.
    Confirmation,
    /// Something else: a pull, a scan, a blob, a package of another type.
    Other,
}

/// Why a payload cannot be read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum PayloadError {
    /// It is not JSON, or lacks what its kind always has.
    Malformed(&'static str),
    /// It is a form instead of JSON.
    Form,
}

/// Why a notification is refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum NotificationRefusal {
    /// It is of another registry.
    ForeignHost,
    /// Its repository, tag or digest is none.
    InvalidName,
}

impl NotificationRefusal {
    /// Returns the word in metrics.
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            NotificationRefusal::ForeignHost => "foreign_host",
            NotificationRefusal::InvalidName => "invalid_name",
        }
    }
}

/// Reads the notifications of a request.
pub(crate) fn parse(
    kind: HookKind,
    headers: &HeaderMap,
    body: &[u8],
) -> Result<Vec<RegistryNotification>, PayloadError> {
    match kind {
        // GitLab installations run distribution, or their own registry with its notifications.
        HookKind::Distribution | HookKind::GitLab => distribution::parse(body),
        HookKind::Harbor => harbor::parse(body),
        HookKind::DockerHub => docker_hub::parse(body),
        HookKind::Quay => quay::parse(body),
        HookKind::GitHub => github::parse(headers, body),
        HookKind::Acr => acr::parse(body),
        HookKind::ArtifactRegistry => artifact_registry::parse(body),
        HookKind::Ecr => ecr::parse(body),
        HookKind::Zot => zot::parse(headers, body),
        HookKind::Gitea => gitea::parse(headers, body),
        HookKind::Generic => generic::parse(body),
    }
}

impl RegistryNotification {
    /// Creates a notification of something that is neither a push nor a deletion.
    fn other(action: NotifiedAction) -> RegistryNotification {
        RegistryNotification { action, ..RegistryNotification::default() }
    }

    /// Returns the repository and what was pushed to it, or that something was deleted, if the names are names and the registry is this one.
    pub(crate) fn push(
        &self,
        registry: &RegistryName,
    ) -> Result<(RepositoryName, PushedReference), NotificationRefusal> {
        if let Some(host) = &self.host
            && host.parse::<RegistryName>().ok().as_ref() != Some(registry)
        {
            return Err(NotificationRefusal::ForeignHost);
        }
        let invalid = NotificationRefusal::InvalidName;
        let repository = self.repository.parse().map_err(|_| invalid)?;
        if self.action == NotifiedAction::Delete {
            return Ok((repository, PushedReference::Deletion));
        }
        let digest = |text: &str| text.parse::<Digest>().map_err(|_| invalid);
        let known = self.digest.as_deref().filter(|text| !text.is_empty()).map(digest).transpose()?;
        let reference = match (self.tag.as_deref().filter(|tag| !tag.is_empty()), known) {
            (Some(tag), _) if tag.contains(':') => PushedReference::Manifest(digest(tag)?),
            (Some(tag), known) => PushedReference::Tag(tag.parse().map_err(|_| invalid)?, known),
            (None, Some(digest)) => PushedReference::Manifest(digest),
            (None, None) => PushedReference::Unknown,
        };
        Ok((repository, reference))
    }
}

/// Parses JSON, whose nesting is limited.
fn parse_json<T: DeserializeOwned>(body: &[u8]) -> Result<T, PayloadError> {
    serde_json::from_slice(body).map_err(|error| match error.classify() {
        serde_json::error::Category::Data => PayloadError::Malformed("it is not a payload of this kind"),
        _ => PayloadError::Malformed("it is not JSON"),
    })
}

/// Deserializes a list of at most [`MAX_NOTIFICATIONS`].
fn bounded_list<'de, D: Deserializer<'de>, T: Deserialize<'de>>(deserializer: D) -> Result<Vec<T>, D::Error> {
    struct BoundedListVisitor<T>(std::marker::PhantomData<T>);

    impl<'de, T: Deserialize<'de>> Visitor<'de> for BoundedListVisitor<T> {
        type Value = Vec<T>;

        fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
            write!(f, "a list of at most {MAX_NOTIFICATIONS}")
        }

        fn visit_unit<E>(self) -> Result<Vec<T>, E> {
            Ok(Vec::new())
        }

        fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Vec<T>, A::Error> {
            let mut list = Vec::new();
            while let Some(item) = items.next_element()? {
                if list.len() == MAX_NOTIFICATIONS {
                    return Err(serde::de::Error::custom(format_args!("more than {MAX_NOTIFICATIONS}")));
                }
                list.push(item);
            }
            Ok(list)
        }
    }

    deserializer.deserialize_any(BoundedListVisitor(std::marker::PhantomData))
}

/// Fails if a text that goes into each notification of a payload is longer than any real one.
fn check_length(text: &str) -> Result<(), PayloadError> {
    match text.len() <= MAX_TEXT_BYTES {
        true => Ok(()),
        false => Err(PayloadError::Malformed("a text is too long")),
    }
}

/// Returns a header as text.
fn header<'a>(headers: &'a HeaderMap, name: &str) -> Option<&'a str> {
    headers.get(name).and_then(|value| value.to_str().ok())
}

/// Splits `host/repository:tag@digest`; tag and digest may be absent. The first part is the host.
fn split_image(text: &str) -> Option<(String, String, Option<String>, Option<String>)> {
    let (text, digest) = match text.split_once('@') {
        Some((name, digest)) => (name, Some(digest.to_owned())),
        None => (text, None),
    };
    let (host, path) = text.split_once('/')?;
    let (repository, tag) = match path.rsplit_once(':') {
        Some((repository, tag)) => (repository, Some(tag.to_owned()).filter(|tag| !tag.is_empty())),
        None => (path, None),
    };
    Some((host.to_owned(), repository.to_owned(), tag, digest))
}
