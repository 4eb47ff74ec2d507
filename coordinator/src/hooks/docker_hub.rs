//! Webhooks of Docker Hub (docs.docker.com, "Webhooks"). They have neither secret nor digest. `callback_url` is not
//! requested.

use serde::Deserialize;

use super::{NotifiedAction, PayloadError, RegistryNotification, parse_json};

#[derive(Deserialize)]
struct Payload {
    push_data: PushData,
    repository: Repository,
}

#[derive(Deserialize)]
struct PushData {
    #[serde(default)]
    tag: Option<String>,
}

#[derive(Deserialize)]
struct Repository {
    repo_name: String,
}

pub(super) fn parse(body: &[u8]) -> Result<Vec<RegistryNotification>, PayloadError> {
    let Payload { push_data, repository } = parse_json(body)?;
    // Official images have no namespace here.
    let name = repository.repo_name;
    let repository = if name.contains('/') { name } else { format!("library/{name}") };
    let (action, tag) = (NotifiedAction::Push, push_data.tag);
    Ok(vec![RegistryNotification { action, repository, tag, ..RegistryNotification::default() }])
}
