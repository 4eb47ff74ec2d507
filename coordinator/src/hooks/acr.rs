//! Webhooks of Azure Container Registry (learn.microsoft.com, "Azure Container Registry webhook reference").

use serde::Deserialize;

use super::distribution::Target;
use super::{NotifiedAction, PayloadError, RegistryNotification, parse_json};

#[derive(Deserialize)]
struct Event {
    action: String,
    #[serde(default)]
    id: Option<String>,
    #[serde(default)]
    target: Target,
    #[serde(default)]
    request: Request,
}

#[derive(Default, Deserialize)]
struct Request {
    #[serde(default)]
    host: Option<String>,
}

pub(super) fn parse(body: &[u8]) -> Result<Vec<RegistryNotification>, PayloadError> {
    let Event { action, id, target, request } = parse_json(body)?;
    let action = match action.as_str() {
        "push" => NotifiedAction::Push,
        "delete" => NotifiedAction::Delete,
        "ping" => NotifiedAction::Ping,
        _ => NotifiedAction::Other,
    };
    Ok(vec![RegistryNotification { host: request.host, ..target.into_notification(action, id) }])
}
