//! Harbor's API 2.0: listRepositories, listAllRepositories and listArtifacts of its swagger.yaml. A repository's name
//! within its project is escaped twice, because a proxy in front of Harbor decodes it once. Only tagged artifacts are
//! requested.

use imgsync_common::image::{MediaType, RepositoryName};
use imgsync_common::registry::{Api, Entries, Entry, Page, Pages};
use serde::Deserialize;

use super::{ListedTag, PAGE_SIZE, RepositoryPage, TagPage, date, repositories_of, split, tags_of};

pub(super) fn repositories(api: &Api, project: &str) -> Pages<Repositories> {
    let parts: &[&str] = match project {
        "" => &["repositories"],
        _ => &["projects", project, "repositories"],
    };
    let first = api.url(parts, &[("page", "1"), ("page_size", PAGE_SIZE)]);
    api.pages(first, &repositories_of(api, project))
}

pub(super) fn tags(api: &Api, name: &RepositoryName) -> Pages<Artifacts> {
    let (project, rest) = split(name.as_str());
    let rest = rest.replace('/', "%2F");
    let query = [("q", "tags=*"), ("with_tag", "true"), ("page", "1"), ("page_size", PAGE_SIZE)];
    let first = api.url(&["projects", project, "repositories", &rest, "artifacts"], &query);
    api.pages(first, &tags_of(api, name))
}

#[derive(Debug, Deserialize)]
pub(super) struct Repositories(Entries<Named>);

#[derive(Debug, Deserialize)]
struct Named {
    /// Includes the project.
    name: String,
}

#[derive(Debug, Deserialize)]
pub(super) struct Artifacts(Entries<Artifact>);

#[derive(Debug, Deserialize)]
struct Artifact {
    digest: String,
    /// `media_type` is the config's.
    #[serde(default)]
    manifest_media_type: Option<String>,
    #[serde(default)]
    push_time: Option<String>,
    #[serde(default)]
    tags: Option<Entries<Tag>>,
}

#[derive(Debug, Deserialize)]
struct Tag {
    name: String,
    #[serde(default)]
    push_time: Option<String>,
}

impl Entry for Named {
    fn text_bytes(&self) -> usize {
        self.name.len()
    }
}

impl Entry for Artifact {
    fn text_bytes(&self) -> usize {
        self.digest.len()
    }
}

impl Entry for Tag {
    fn text_bytes(&self) -> usize {
        self.name.len()
    }
}

impl Page for Repositories {
    fn is_one(&self) -> bool {
        true
    }

    fn entries(&self) -> Vec<&str> {
        self.0.iter().map(|found| found.name.as_str()).collect()
    }
}

impl RepositoryPage for Repositories {
    fn names(&self, _project: &str) -> Vec<String> {
        self.0.iter().map(|found| found.name.clone()).collect()
    }
}

impl Page for Artifacts {
    fn is_one(&self) -> bool {
        true
    }

    fn entries(&self) -> Vec<&str> {
        self.0.iter().map(|artifact| artifact.digest.as_str()).collect()
    }
}

impl TagPage for Artifacts {
    fn tags(self) -> Vec<ListedTag> {
        let listed = |artifact: Artifact| {
            let digest = artifact.digest.parse().ok();
            let pushed = date(artifact.push_time.as_deref());
            let media_type =
                artifact.manifest_media_type.filter(|kind| !kind.is_empty()).map(|kind| MediaType::new(&kind));
            artifact.tags.unwrap_or_default().into_iter().map(move |tag| ListedTag {
                digest: digest.clone(),
                created: date(tag.push_time.as_deref()).or(pushed),
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
        let page: Artifacts = serde_json::from_value(serde_json::json!([
            {"digest": format!("sha256:{}", "a".repeat(64)), "push_time": "2024-01-01T00:00:00.000Z",
             "media_type": "application/vnd.oci.image.config.v1+json",
             "manifest_media_type": "application/vnd.oci.image.manifest.v1+json",
             "tags": [{"name": "x", "push_time": "2025-01-01T00:00:00.000Z"}, {"name": "y"}]},
            {"digest": format!("sha256:{}", "b".repeat(64)), "tags": null},
        ]))
        .unwrap();
        let tags = page.tags();
        assert_eq!(tags.iter().map(|tag| tag.tag.as_str()).collect::<Vec<_>>(), ["x", "y"]);
        assert_eq!(tags[0].digest, tags[1].digest);
        assert_eq!(tags[0].media_type, Some(MediaType::OciManifest));
        assert_eq!(tags[1].created.unwrap().to_string(), "2024-01-01T00:00:00Z");
    }
}
