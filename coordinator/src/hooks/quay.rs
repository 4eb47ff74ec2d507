//! Notifications of Quay by webhook, for the event "Push to Repository" (docs.quay.io, "Repository Notifications").

use serde::Deserialize;

use super::{NotifiedAction, PayloadError, RegistryNotification, bounded_list, check_length, parse_json};

#[derive(Deserialize)]
struct Payload {
    repository: String,
    #[serde(default)]
    docker_url: Option<String>,
    #[serde(default, deserialize_with = "bounded_list")]
    updated_tags: Vec<String>,
}

pub(super) fn parse(body: &[u8]) -> Result<Vec<RegistryNotification>, PayloadError> {
    let Payload { repository, docker_url, updated_tags } = parse_json(body)?;
    check_length(&repository)?;
    docker_url.as_deref().map_or(Ok(()), check_length)?;
    let host = docker_url.and_then(|url| Some(url.split_once('/')?.0.to_owned()));
    let action = NotifiedAction::Push;
    let whole = RegistryNotification { action, host, repository, ..RegistryNotification::default() };
    if updated_tags.is_empty() {
        return Ok(vec![whole]);
    }
    Ok(updated_tags.into_iter().map(|tag| RegistryNotification { tag: Some(tag), ..whole.clone() }).collect())
}
