//! Events of Amazon ECR, by an API destination of EventBridge, or by SNS (docs.aws.amazon.com, "Amazon ECR events and
//! EventBridge").

use serde::Deserialize;

use super::{NotifiedAction, PayloadError, RegistryNotification, parse_json};

#[derive(Deserialize)]
struct Event {
    #[serde(default)]
    id: Option<String>,
    #[serde(default, rename = "detail-type")]
    detail_type: Option<String>,
    #[serde(default)]
    account: Option<String>,
    #[serde(default)]
    region: Option<String>,
    #[serde(default)]
    detail: Option<Detail>,
    /// Of an envelope of SNS: `SubscriptionConfirmation`, `Notification`.
    #[serde(default, rename = "Type")]
    envelope: Option<String>,
    /// The event in an envelope of SNS.
    #[serde(default, rename = "Message")]
    message: Option<String>,
}

#[derive(Deserialize)]
#[serde(rename_all = "kebab-case")]
struct Detail {
    #[serde(default)]
    result: Option<String>,
    #[serde(default)]
    action_type: Option<String>,
    #[serde(default)]
    repository_name: Option<String>,
    #[serde(default)]
    image_tag: Option<String>,
    #[serde(default)]
    image_digest: Option<String>,
}

pub(super) fn parse(body: &[u8]) -> Result<Vec<RegistryNotification>, PayloadError> {
    let event: Event = parse_json(body)?;
    match event.envelope.as_deref() {
        None => event.into_notification(),
        Some("Notification") => {
            let message = event.message.ok_or(PayloadError::Malformed("it has no message"))?;
            parse_json::<Event>(message.as_bytes())?.into_notification()
        }
        // Its SubscribeURL is opened by a person: no URL of a payload is requested.
        Some("SubscriptionConfirmation") => Ok(vec![RegistryNotification::other(NotifiedAction::Confirmation)]),
        Some(_) => Ok(vec![RegistryNotification::other(NotifiedAction::Other)]),
    }
}

impl Event {
    fn into_notification(self) -> Result<Vec<RegistryNotification>, PayloadError> {
        let other = vec![RegistryNotification::other(NotifiedAction::Other)];
        match self.detail_type.as_deref() {
            Some("ECR Image Action") => {}
            Some(_) => return Ok(other),
            None => return Err(PayloadError::Malformed("it has no detail-type")),
        }
        let detail = self.detail.ok_or(PayloadError::Malformed("it has no detail"))?;
        let action = match (detail.action_type.as_deref(), detail.result.as_deref()) {
            (Some("PUSH"), Some("SUCCESS")) => NotifiedAction::Push,
            (Some("DELETE"), Some("SUCCESS")) => NotifiedAction::Delete,
            _ => return Ok(other),
        };
        let (account, region) = (self.account.unwrap_or_default(), self.region.unwrap_or_default());
        let domain = if region.starts_with("cn-") { "amazonaws.com.cn" } else { "amazonaws.com" };
        Ok(vec![RegistryNotification {
            action,
            host: Some(format!("{account}.dkr.ecr.{region}.{domain}")),
            repository: detail.repository_name.unwrap_or_default(),
            tag: detail.image_tag,
            digest: detail.image_digest,
            id: self.id,
        }])
    }
}
