//! Harbor, at any host: recognized by its challenge or configured. Its API 2.0: listRepositories, listAllRepositories,
//! listArtifacts and createProject of its swagger.yaml.

use ::http::StatusCode;
use async_trait::async_trait;
use imgsync_oci::error::{Error, ErrorKind, Result};
use imgsync_oci::{MediaType, RegistryName, RepositoryName};
use serde::Deserialize;
use serde_json::json;

use super::Provider;
use super::api::{
    CredentialUse, ListedPages, ListedTag, ListingApi, PAGE_SIZE, ProviderApi, parse_date, split_namespace,
};
use super::provisioning::{Provisioner, Provisioning, RefusalKind};
use crate::Repository;
use crate::auth::{Authorization, basic_header};
use crate::credentials::Credential;
use crate::page_reader::{BoundedList, ListEntry};
use crate::pagination::ListPage;

pub(super) static HARBOR: Provider = Provider {
    name: "Harbor",
    token_service: Some("harbor-registry"),
    listing: Some(&HarborApi),
    provisioning: Some(&HarborProjects),
    ..Provider::NONE
};

#[derive(Debug)]
struct HarborApi;

impl ListingApi for HarborApi {
    fn key(&self) -> &'static str {
        "harbor"
    }

    fn path(&self) -> &'static str {
        "api/v2.0/"
    }

    fn self_hosted_path(&self) -> Option<&'static str> {
        Some("/api/v2.0")
    }

    fn credential_use(&self, _username: &str) -> CredentialUse {
        CredentialUse::Basic
    }

    fn lists_all_namespaces(&self) -> bool {
        true
    }

    fn refused_hint(&self, registry: &RegistryName) -> String {
        format!(
            "check the user and password for {registry}; a robot account needs the permissions to list repositories \
             and artifacts"
        )
    }

    fn list_repositories(&self, api: &ProviderApi, project: &str) -> ListedPages<String> {
        let parts: &[&str] = match project {
            "" => &["repositories"],
            _ => &["projects", project, "repositories"],
        };
        let first = api.url(parts, &[("page", "1"), ("page_size", PAGE_SIZE)]);
        ListedPages::new(api.pages(first, &api.describe_repositories(project)), HarborRepositoryPage::into_names)
    }

    /// A repository's name within its project is escaped twice, because a proxy in front of Harbor decodes it once.
    /// Only tagged artifacts are requested.
    fn list_tags(&self, api: &ProviderApi, name: &RepositoryName) -> ListedPages<ListedTag> {
        let (project, rest) = split_namespace(name.as_str());
        let rest = rest.replace('/', "%2F");
        let query = [("q", "tags=*"), ("with_tag", "true"), ("page", "1"), ("page_size", PAGE_SIZE)];
        let first = api.url(&["projects", project, "repositories", &rest, "artifacts"], &query);
        ListedPages::new(api.pages(first, &api.describe_tags(name)), HarborArtifactPage::into_tags)
    }
}

/// Creates projects: `POST /projects`, with the credentials used for pushing.
struct HarborProjects;

impl Provisioning for HarborProjects {
    fn open(&self, repository: &Repository) -> Result<Option<Box<dyn Provisioner>>> {
        let api = repository.provider_api()?.filter(|api| *api.provider() == HARBOR);
        Ok(api.map(|api| Box::new(ProjectProvisioner(api)) as Box<dyn Provisioner>))
    }
}

struct ProjectProvisioner(ProviderApi);

#[async_trait]
impl Provisioner for ProjectProvisioner {
    fn resource(&self, name: &RepositoryName) -> String {
        format!("project {}", project(name))
    }

    fn hinted_resource(&self, name: &RepositoryName) -> String {
        self.resource(name)
    }

    fn classify_refusal(&self, error: &Error) -> RefusalKind {
        classify_refusal(error)
    }

    async fn create(&self, repository: &Repository, operation: &str) -> Result<()> {
        if !repository.name.as_str().contains('/') {
            let detail = "a repository of Harbor is in a project: PROJECT/NAME";
            return Err(Error::new(ErrorKind::Invalid, operation, detail));
        }
        let login = match repository.find_credential(0).await? {
            Some(Credential::Basic { username, password }) => Authorization {
                header: basic_header(&username, &password)?,
                since: std::time::Instant::now(),
                with_credentials: true,
            },
            _ => {
                let detail = "no user and password for Harbor's API were found";
                return Err(Error::new(ErrorKind::Denied, operation, detail));
            }
        };
        // Private by default; it can be made public at Harbor.
        let body = json!({"project_name": project(&repository.name), "metadata": {"public": "false"}}).to_string();
        repository
            .with_retries(|| async {
                let response = self.0.post(&["projects"], body.clone(), login.clone(), operation).await?;
                match response.status() {
                    // On a conflict the project exists already.
                    status if status.is_success() || status == StatusCode::CONFLICT => {
                        response.drain().await;
                        Ok(())
                    }
                    _ => Err(self.0.error_from_response(response, operation).await),
                }
            })
            .await
            .map_err(|error| match error.kind() {
                ErrorKind::Denied => error.with_hint(
                    "the user may not create projects: allow it (for robot accounts, the system permission to create \
                     projects), or create the project manually",
                ),
                _ => error,
            })
    }
}

/// Returns the project of a repository.
fn project(repository: &RepositoryName) -> &str {
    split_namespace(repository.as_str()).0
}

/// Classifies a refused push: 401 or 403 for users who may not know that the project is missing, 404 for others. Errors
/// about content do not concern the project.
fn classify_refusal(error: &Error) -> RefusalKind {
    match (error.status(), error.code()) {
        (_, Some("BLOB_UNKNOWN" | "MANIFEST_UNKNOWN" | "MANIFEST_BLOB_UNKNOWN" | "BLOB_UPLOAD_UNKNOWN")) => {
            RefusalKind::Unrelated
        }
        (Some(404), _) if error.kind() == ErrorKind::NotFound => RefusalKind::Missing,
        (Some(401 | 403), _) if error.kind() == ErrorKind::Denied => RefusalKind::MaybeMissing,
        _ => RefusalKind::Unrelated,
    }
}

#[derive(Debug, Deserialize)]
struct HarborRepositoryPage(BoundedList<HarborRepository>);

#[derive(Debug, Deserialize)]
struct HarborRepository {
    /// Includes the project.
    name: String,
}

#[derive(Debug, Deserialize)]
struct HarborArtifactPage(BoundedList<HarborArtifact>);

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

impl HarborRepositoryPage {
    fn into_names(self) -> Vec<String> {
        self.0.into_iter().map(|found| found.name).collect()
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

impl HarborArtifactPage {
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

    #[test]
    fn what_is_said_of_content_is_not_about_the_project() {
        let error =
            |kind, status, code: &str| Error::new(kind, "writing", "no").with_status(status, Some(code.to_owned()));
        assert_eq!(classify_refusal(&error(ErrorKind::NotFound, 404, "NOT_FOUND")), RefusalKind::Missing);
        assert_eq!(classify_refusal(&error(ErrorKind::NotFound, 404, "BLOB_UNKNOWN")), RefusalKind::Unrelated);
        assert_eq!(classify_refusal(&error(ErrorKind::Denied, 401, "UNAUTHORIZED")), RefusalKind::MaybeMissing);
        assert_eq!(classify_refusal(&error(ErrorKind::RateLimited, 403, "DENIED")), RefusalKind::Unrelated);
    }
}
