//! Webhooks of GitHub packages (docs.github.com, "Webhook events and payloads": `package`, `registry_package`).

use axum::http::HeaderMap;
use serde::Deserialize;

use super::{NotifiedAction, PayloadError, RegistryNotification, header, parse_json, split_image};

#[derive(Deserialize)]
struct Payload {
    #[serde(default)]
    action: Option<String>,
    #[serde(default, alias = "registry_package")]
    package: Option<Package>,
}

#[derive(Deserialize)]
struct Package {
    #[serde(default)]
    name: Option<String>,
    #[serde(default)]
    package_type: Option<String>,
    #[serde(default)]
    owner: Option<Owner>,
    #[serde(default)]
    package_version: Option<PackageVersion>,
}

#[derive(Deserialize)]
struct Owner {
    login: String,
}

#[derive(Default, Deserialize)]
struct PackageVersion {
    /// `ghcr.io/owner/name:tag`, without tag it ends in a colon.
    #[serde(default)]
    package_url: Option<String>,
    #[serde(default)]
    container_metadata: Option<ContainerMetadata>,
}

#[derive(Default, Deserialize)]
struct ContainerMetadata {
    #[serde(default)]
    tag: Option<NamedTag>,
    #[serde(default)]
    manifest: Option<NamedManifest>,
}

#[derive(Default, Deserialize)]
struct NamedTag {
    #[serde(default)]
    name: Option<String>,
    #[serde(default)]
    digest: Option<String>,
}

#[derive(Default, Deserialize)]
struct NamedManifest {
    #[serde(default)]
    digest: Option<String>,
}

pub(super) fn parse(headers: &HeaderMap, body: &[u8]) -> Result<Vec<RegistryNotification>, PayloadError> {
    match header(headers, "x-github-event") {
        Some("package" | "registry_package") => {}
        Some("ping") => return Ok(vec![RegistryNotification::other(NotifiedAction::Ping)]),
        Some(_) => return Ok(vec![RegistryNotification::other(NotifiedAction::Other)]),
        None => return Err(PayloadError::Malformed("it has no header X-GitHub-Event")),
    }
    if header(headers, "content-type").is_some_and(|kind| kind.starts_with("application/x-www-form-urlencoded")) {
        return Err(PayloadError::Form);
    }
    let payload: Payload = parse_json(body)?;
    let package = payload.package.ok_or(PayloadError::Malformed("it has no package"))?;
    let is_container = package.package_type.as_deref().is_some_and(|kind| kind.eq_ignore_ascii_case("container"));
    if !is_container || !matches!(payload.action.as_deref(), Some("published" | "updated")) {
        return Ok(vec![RegistryNotification::other(NotifiedAction::Other)]);
    }
    let version = package.package_version.unwrap_or_default();
    let image = version.package_url.as_deref().and_then(split_image);
    let (host, image_repository, image_tag) = match image {
        Some((host, repository, tag, _)) => (Some(host), Some(repository), tag),
        None => (None, None, None),
    };
    let named = match (package.owner, package.name) {
        // Owners keep their capitals here, and names of images have none.
        (Some(owner), Some(name)) => Some(format!("{}/{name}", owner.login).to_lowercase()),
        _ => None,
    };
    let ContainerMetadata { tag, manifest } = version.container_metadata.unwrap_or_default();
    let tag = tag.unwrap_or_default();
    let is_named = |text: &Option<String>| text.as_deref().is_some_and(|text| !text.is_empty());
    Ok(vec![RegistryNotification {
        action: NotifiedAction::Push,
        host,
        repository: named.or(image_repository.map(|name| name.to_lowercase())).unwrap_or_default(),
        tag: Some(tag.name).filter(is_named).flatten().or(image_tag),
        digest: Some(tag.digest).filter(is_named).flatten().or(manifest.and_then(|manifest| manifest.digest)),
        id: header(headers, "x-github-delivery").map(str::to_owned),
    }])
}
