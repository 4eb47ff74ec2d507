//! Creates projects of Harbor: `POST /projects` of its own API, with the credentials used for pushing.

use ::http::StatusCode;
use serde_json::json;

use super::super::Repository;
use super::super::auth::{Authorization, basic_header};
use super::super::credentials::Credential;
use super::super::vendor_api::VendorApi;
use super::RefusalKind;
use imgsync_oci::RepositoryName;
use imgsync_oci::error::{Error, ErrorKind, Result};

/// Returns the project of a repository.
pub(super) fn project(repository: &RepositoryName) -> &str {
    repository.as_str().split('/').next().unwrap_or_default()
}

/// Classifies a refused push: 401 or 403 for users who may not know that the project is missing, 404 for others. Errors
/// about content do not concern the project.
pub(super) fn classify_refusal(error: &Error) -> RefusalKind {
    match (error.status(), error.code()) {
        (_, Some("BLOB_UNKNOWN" | "MANIFEST_UNKNOWN" | "MANIFEST_BLOB_UNKNOWN" | "BLOB_UPLOAD_UNKNOWN")) => {
            RefusalKind::Unrelated
        }
        (Some(404), _) if error.kind() == ErrorKind::NotFound => RefusalKind::Missing,
        (Some(401 | 403), _) if error.kind() == ErrorKind::Denied => RefusalKind::MaybeMissing,
        _ => RefusalKind::Unrelated,
    }
}

pub(super) async fn create_project(repository: &Repository, api: &VendorApi, operation: &str) -> Result<()> {
    if !repository.name.as_str().contains('/') {
        return Err(Error::new(ErrorKind::Invalid, operation, "a repository of Harbor is in a project: PROJECT/NAME"));
    }
    let login = match repository.find_credential(0).await? {
        Some(Credential::Basic { username, password }) => Authorization {
            header: basic_header(&username, &password)?,
            since: std::time::Instant::now(),
            with_credentials: true,
        },
        _ => return Err(Error::new(ErrorKind::Denied, operation, "no user and password for Harbor's API were found")),
    };
    // Private by default; it can be made public at Harbor.
    let body = json!({"project_name": project(&repository.name), "metadata": {"public": "false"}}).to_string();
    repository
        .with_retries(|| async {
            let response = api.post(&["projects"], body.clone(), login.clone(), operation).await?;
            match response.status() {
                // On a conflict the project exists already.
                status if status.is_success() || status == StatusCode::CONFLICT => {
                    response.drain().await;
                    Ok(())
                }
                _ => Err(api.error_from_response(response, operation).await),
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

#[cfg(test)]
mod tests {
    use super::*;

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
