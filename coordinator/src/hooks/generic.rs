//! Notifications of programs of one's own: `{"image": "registry/repository:tag"}`, or a list in `images`. An image may
//! have a digest, and the notification an `id`.

use serde::Deserialize;

use super::{NotifiedAction, PayloadError, RegistryNotification, bounded_list, check_length, parse_json, split_image};

#[derive(Deserialize)]
struct Payload {
    #[serde(default)]
    image: Option<String>,
    #[serde(default, deserialize_with = "bounded_list")]
    images: Vec<String>,
    #[serde(default)]
    id: Option<String>,
}

pub(super) fn parse(body: &[u8]) -> Result<Vec<RegistryNotification>, PayloadError> {
    let Payload { image, images, id } = parse_json(body)?;
    if image.is_none() && images.is_empty() {
        return Err(PayloadError::Malformed("it has neither `image` nor `images`"));
    }
    id.as_deref().map_or(Ok(()), check_length)?;
    let notification = |(number, image): (usize, String)| {
        let id = id.as_ref().map(|id| format!("{id} {number}"));
        // What is no image has an invalid name, and is refused by itself.
        let Some((host, repository, tag, digest)) = split_image(&image) else {
            return RegistryNotification { id, ..RegistryNotification::default() };
        };
        RegistryNotification { action: NotifiedAction::Push, host: Some(host), repository, tag, digest, id }
    };
    Ok(image.into_iter().chain(images).enumerate().map(notification).collect())
}
