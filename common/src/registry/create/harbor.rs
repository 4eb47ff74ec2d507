//! Creates projects of Harbor: `POST /projects` of its own API, with the credentials used for pushing.

use ::http::StatusCode;
use serde_json::json;

use super::super::Repository;
use super::super::api::Api;
use super::super::auth::{Authorization, basic_header};
use super::super::credentials::Credential;
use super::Says;
use crate::error::{Class, Error, Result};
use crate::image::RepositoryName;

/// Returns the project of a repository.
pub(super) fn project(repository: &RepositoryName) -> &str {
    repository.as_str().split('/').next().unwrap_or_default()
}

/// Classifies a refused push: 401 or 403 for users who may not know that the project is missing, 404 for others. Errors
/// about content do not concern the project.
pub(super) fn hears(error: &Error) -> Says {
    match (error.status(), error.code()) {
        (_, Some("BLOB_UNKNOWN" | "MANIFEST_UNKNOWN" | "MANIFEST_BLOB_UNKNOWN" | "BLOB_UPLOAD_UNKNOWN")) => {
            Says::Nothing
        }
        (Some(404), _) if error.class() == Class::NotFound => Says::Missing,
        (Some(401 | 403), _) if error.class() == Class::Denied => Says::Perhaps,
        _ => Says::Nothing,
    }
}

pub(super) async fn make(repository: &Repository, api: &Api, tried: &str) -> Result<()> {
    if !repository.name.as_str().contains('/') {
        return Err(Error::new(Class::Invalid, tried, "a repository of Harbor is in a project: PROJECT/NAME"));
    }
    let login = match repository.credential(0).await? {
        Some(Credential::Basic { username, password }) => Authorization {
            header: basic_header(&username, &password)?,
            since: std::time::Instant::now(),
            with_credentials: true,
        },
        _ => return Err(Error::new(Class::Denied, tried, "no user and password for Harbor's API were found")),
    };
    // Private by default; it can be made public at Harbor.
    let body = json!({"project_name": project(&repository.name), "metadata": {"public": "false"}}).to_string();
    repository
        .with_retries(|| async {
            let answer = api.post(&["projects"], body.clone(), login.clone(), tried).await?;
            match answer.status() {
                // On a conflict the project exists already.
                status if status.is_success() || status == StatusCode::CONFLICT => {
                    answer.drain().await;
                    Ok(())
                }
                _ => Err(api.refusal(answer, tried).await),
            }
        })
        .await
        .map_err(|error| match error.class() {
            Class::Denied => error.hint(
                "the user may not make projects: allow it (for robot accounts, the system permission to create projects), \
                 or make the project by hand",
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
            |class, status, code: &str| Error::new(class, "writing", "no").answered(status, Some(code.to_owned()));
        assert_eq!(hears(&error(Class::NotFound, 404, "NOT_FOUND")), Says::Missing);
        assert_eq!(hears(&error(Class::NotFound, 404, "BLOB_UNKNOWN")), Says::Nothing);
        assert_eq!(hears(&error(Class::Denied, 401, "UNAUTHORIZED")), Says::Perhaps);
        assert_eq!(hears(&error(Class::RateLimited, 403, "DENIED")), Says::Nothing);
    }
}
