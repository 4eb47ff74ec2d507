//! Harbor's API 2.0: listRepositories, listAllRepositories and listArtifacts of its swagger.yaml. A repository's name
//! within its project is escaped twice, because a proxy in front of Harbor decodes it once. Only tagged artifacts are
//! requested.

use imgsync_oci::{MediaType, RepositoryName};
use imgsync_registry::{BoundedList, ListEntry, ListPage, VendorApi, VendorApiPages};
use serde::Deserialize;

use super::{
    ListedTag, PAGE_SIZE, VendorRepositoryPage, VendorTagPage, describe_repository_list, describe_tag_list, parse_date,
    split_namespace,
};

pub(super) fn list_repositories(api: &VendorApi, project: &str) -> VendorApiPages<HarborRepositoryPage> {
    let parts: &[&str] = match project {
        "" => &["repositories"],
        _ => &["projects", project, "repositories"],
    };
    let first = api.url(parts, &[("page", "1"), ("page_size", PAGE_SIZE)]);
    api.pages(first, &describe_repository_list(api, project))
}

pub(super) fn list_tags(api: &VendorApi, name: &RepositoryName) -> VendorApiPages<HarborArtifactPage> {
    let (project, rest) = split_namespace(name.as_str());
    let rest = rest.replace('/', "%2F");
    let query = [("q", "tags=*"), ("with_tag", "true"), ("page", "1"), ("page_size", PAGE_SIZE)];
    let first = api.url(&["projects", project, "repositories", &rest, "artifacts"], &query);
    api.pages(first, &describe_tag_list(api, name))
}

#[derive(Debug, Deserialize)]
pub(super) struct HarborRepositoryPage(BoundedList<HarborRepository>);

#[derive(Debug, Deserialize)]
struct HarborRepository {
    /// Includes the project.
    name: String,
}

#[derive(Debug, Deserialize)]
pub(super) struct HarborArtifactPage(BoundedList<HarborArtifact>);

#[derive(Debug, Deserialize)]
struct HarborArtifact {
    digest: String,
    /// `media_type` is the config's.
    #[serde(default)]
    manifest_media_type: Option<String>,
    #[serde(default)]
    push_time: Option<String>,
    #[serde(default)]
    tags: Option<BoundedList<HarborTag>>,
}

#[derive(Debug, Deserialize)]
struct HarborTag {
    name: String,
    #[serde(default)]
    push_time: Option<String>,
}

impl ListEntry for HarborRepository {
    fn text_bytes(&self) -> usize {
        self.name.len()
    }
}

impl ListEntry for HarborArtifact {
    fn text_bytes(&self) -> usize {
        self.digest.len()
    }
}

impl ListEntry for HarborTag {
    fn text_bytes(&self) -> usize {
        self.name.len()
    }
}

impl ListPage for HarborRepositoryPage {
    fn is_listing(&self) -> bool {
        true
    }

    fn entries(&self) -> Vec<&str> {
        self.0.iter().map(|found| found.name.as_str()).collect()
    }
}

impl VendorRepositoryPage for HarborRepositoryPage {
    fn repository_names(&self, _project: &str) -> Vec<String> {
        self.0.iter().map(|found| found.name.clone()).collect()
    }
}

impl ListPage for HarborArtifactPage {
    fn is_listing(&self) -> bool {
        true
    }

    fn entries(&self) -> Vec<&str> {
        self.0.iter().map(|artifact| artifact.digest.as_str()).collect()
    }
}

impl VendorTagPage for HarborArtifactPage {
    fn into_tags(self) -> Vec<ListedTag> {
        let listed = |artifact: HarborArtifact| {
            let digest = artifact.digest.parse().ok();
            let pushed = parse_date(artifact.push_time.as_deref());
            let media_type =
                artifact.manifest_media_type.filter(|kind| !kind.is_empty()).map(|kind| MediaType::new(&kind));
            artifact.tags.unwrap_or_default().into_iter().map(move |tag| ListedTag {
                digest: digest.clone(),
                created: parse_date(tag.push_time.as_deref()).or(pushed),
                media_type: media_type.clone(),
                tag: tag.name,
            })
        };
        self.0.into_iter().flat_map(listed).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_tag_of_an_artifact_has_its_digest_and_a_date_of_its_own() {
        let page: HarborArtifactPage = serde_json::from_value(serde_json::json!([
            {"digest": format!("sha256:{}", "a".repeat(64)), "push_time": "2024-01-01T00:00:00.000Z",
             "media_type": "application/vnd.oci.image.config.v1+json",
             "manifest_media_type": "application/vnd.oci.image.manifest.v1+json",
             "tags": [{"name": "x", "push_time": "2025-01-01T00:00:00.000Z"}, {"name": "y"}]},
            {"digest": format!("sha256:{}", "b".repeat(64)), "tags": null},
        ]))
        .unwrap();
        let tags = page.into_tags();
        assert_eq!(tags.iter().map(|tag| tag.tag.as_str()).collect::<Vec<_>>(), ["x", "y"]);
        assert_eq!(tags[0].digest, tags[1].digest);
        assert_eq!(tags[0].media_type, Some(MediaType::OciManifest));
        assert_eq!(tags[1].created.unwrap().to_string(), "2024-01-01T00:00:00Z");
    }
}
