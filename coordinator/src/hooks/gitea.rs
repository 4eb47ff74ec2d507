//! Webhooks of Gitea and Forgejo for packages (docs.gitea.com, "Webhooks").

use axum::http::HeaderMap;
use serde::Deserialize;

use super::{NotifiedAction, PayloadError, RegistryNotification, header, parse_json};

#[derive(Deserialize)]
struct Payload {
    #[serde(default)]
    action: Option<String>,
    package: Package,
}

#[derive(Deserialize)]
struct Package {
    #[serde(default)]
    name: Option<String>,
    #[serde(default, rename = "type")]
    kind: Option<String>,
    /// A tag or a digest.
    #[serde(default)]
    version: Option<String>,
    #[serde(default)]
    owner: Option<Owner>,
}

#[derive(Deserialize)]
struct Owner {
    login: String,
}

pub(super) fn parse(headers: &HeaderMap, body: &[u8]) -> Result<Vec<RegistryNotification>, PayloadError> {
    let of = |name: &str| header(headers, &format!("x-gitea-{name}")).or(header(headers, &format!("x-forgejo-{name}")));
    match of("event") {
        Some("package") => {}
        Some(_) => return Ok(vec![RegistryNotification::other(NotifiedAction::Other)]),
        None => return Err(PayloadError::Malformed("it has no header X-Gitea-Event")),
    }
    let Payload { action, package } = parse_json(body)?;
    let action = match (package.kind.as_deref(), action.as_deref()) {
        (Some("container"), Some("created")) => NotifiedAction::Push,
        (Some("container"), Some("deleted")) => NotifiedAction::Delete,
        _ => return Ok(vec![RegistryNotification::other(NotifiedAction::Other)]),
    };
    let owner = package.owner.map(|owner| owner.login).unwrap_or_default();
    Ok(vec![RegistryNotification {
        action,
        repository: format!("{owner}/{}", package.name.unwrap_or_default()).to_lowercase(),
        tag: package.version,
        id: of("delivery").map(str::to_owned),
        ..RegistryNotification::default()
    }])
}
