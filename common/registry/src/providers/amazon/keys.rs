//! Finds AWS keys where Amazon's SDKs look first: the environment, then the shared credentials file (AWS SDKs and tools
//! reference guide, "Understand credentials"). Keys of roles, SSO and instances are not supported.

use std::path::{Path, PathBuf};

use crate::credentials::CredentialEnvironment;
use imgsync_oci::secret::Secret;

/// Size limit of a credentials file.
const LARGEST_FILE: usize = 1 << 20;

/// Where keys are: variables of the environment, by the names of Amazon's SDKs.
#[derive(Debug, Clone, Default)]
pub(super) struct AwsEnvironment {
    /// `AWS_ACCESS_KEY_ID`.
    access_key_id: Option<String>,
    /// `AWS_SECRET_ACCESS_KEY`.
    secret_access_key: Option<Secret>,
    /// `AWS_SESSION_TOKEN`.
    session_token: Option<Secret>,
    /// `AWS_PROFILE`: the profile in the file.
    profile: Option<String>,
    /// `AWS_SHARED_CREDENTIALS_FILE`, else `~/.aws/credentials`.
    credentials_file: Option<PathBuf>,
}

impl AwsEnvironment {
    /// Reads the variables. Empty ones count as unset.
    pub(super) fn new(environment: &CredentialEnvironment) -> AwsEnvironment {
        let variable = |name: &str| environment.helpers.get(name).filter(|value| !value.is_empty());
        let text = |name: &str| variable(name).and_then(|value| value.to_str()).map(str::to_owned);
        AwsEnvironment {
            access_key_id: text("AWS_ACCESS_KEY_ID"),
            secret_access_key: text("AWS_SECRET_ACCESS_KEY").map(Secret::from),
            session_token: text("AWS_SESSION_TOKEN").map(Secret::from),
            profile: text("AWS_PROFILE"),
            credentials_file: variable("AWS_SHARED_CREDENTIALS_FILE")
                .map(PathBuf::from)
                .or_else(|| Some(environment.home.as_ref()?.join(".aws/credentials"))),
        }
    }
}

/// Keys that sign requests.
#[derive(Debug, Clone)]
pub(super) struct AwsKeys {
    pub(super) id: String,
    pub(super) secret: Secret,
    /// Session token of temporary keys.
    pub(super) session: Option<Secret>,
}

/// Returns the keys, if there are any. The error says which file is unusable, and why.
pub(super) async fn find(env: &AwsEnvironment) -> Result<Option<AwsKeys>, String> {
    if let (Some(id), Some(secret)) = (&env.access_key_id, &env.secret_access_key) {
        return Ok(Some(AwsKeys { id: id.clone(), secret: secret.clone(), session: env.session_token.clone() }));
    }
    let Some(file) = &env.credentials_file else { return Ok(None) };
    let Some(text) = read(file).await? else { return Ok(None) };
    let profile = env.profile.as_deref().unwrap_or("default");
    Ok(parse_profile(&text, profile))
}

async fn read(file: &Path) -> Result<Option<String>, String> {
    match tokio::fs::read(file).await {
        Ok(bytes) if bytes.len() > LARGEST_FILE => {
            Err(format!("{} is too large for an AWS credentials file", file.display()))
        }
        Ok(bytes) => Ok(Some(String::from_utf8_lossy(&bytes).into_owned())),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(format!("{} cannot be read: {error}", file.display())),
    }
}

/// Returns the keys of a profile.
fn parse_profile(text: &str, profile: &str) -> Option<AwsKeys> {
    let (mut is_here, mut id, mut secret, mut session) = (false, None, None, None);
    for line in text.lines().map(str::trim) {
        if line.starts_with(['#', ';']) {
            continue;
        }
        if let Some(name) = line.strip_prefix('[').and_then(|line| line.split(']').next()) {
            is_here = name.trim() == profile;
            continue;
        }
        let Some((key, value)) = line.split_once('=').filter(|_| is_here) else { continue };
        let value = value.trim().to_owned();
        match key.trim().to_ascii_lowercase().as_str() {
            "aws_access_key_id" => id = Some(value),
            "aws_secret_access_key" => secret = Some(Secret::from(value)),
            "aws_session_token" => session = Some(Secret::from(value)),
            _ => {}
        }
    }
    Some(AwsKeys { id: id.filter(|id| !id.is_empty())?, secret: secret?, session })
}

#[cfg(test)]
mod tests {
    use super::*;

    const FILE: &str = "# keys\n[default]\naws_access_key_id = AKIA1\naws_secret_access_key=a/b=\n\n[ work ]\n\
                        AWS_ACCESS_KEY_ID=AKIA2\naws_secret_access_key = two\naws_session_token = for a while\n[half]\n\
                        aws_access_key_id = AKIA3\n";

    fn found(profile: &str) -> Option<(String, String, Option<String>)> {
        let keys = parse_profile(FILE, profile)?;
        let session = keys.session.map(|session| session.expose().to_owned());
        Some((keys.id, keys.secret.expose().to_owned(), session))
    }

    #[test]
    fn the_profile_that_is_named_is_read_and_no_other() {
        assert_eq!(found("default"), Some(("AKIA1".to_owned(), "a/b=".to_owned(), None)));
        assert_eq!(found("work"), Some(("AKIA2".to_owned(), "two".to_owned(), Some("for a while".to_owned()))));
        assert_eq!((found("half"), found("none")), (None, None));
    }

    #[tokio::test]
    async fn the_environment_goes_before_the_file_and_a_file_that_is_missing_is_none() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("credentials");
        let mut env = AwsEnvironment { credentials_file: Some(file.clone()), ..AwsEnvironment::default() };
        assert!(find(&env).await.unwrap().is_none());
        std::fs::write(&file, FILE).unwrap();
        assert_eq!(find(&env).await.unwrap().unwrap().id, "AKIA1");
        env.profile = Some("work".to_owned());
        assert_eq!(find(&env).await.unwrap().unwrap().id, "AKIA2");
        (env.access_key_id, env.secret_access_key) = (Some("AKIA0".to_owned()), Some(Secret::new("zero")));
        let keys = find(&env).await.unwrap().unwrap();
        assert_eq!((keys.id.as_str(), keys.secret.expose(), keys.session.is_some()), ("AKIA0", "zero", false));
        env.access_key_id = None;
        env.credentials_file = Some(folder.path().to_owned());
        assert!(find(&env).await.unwrap_err().contains("cannot be read"));
    }

    #[test]
    fn the_variables_of_amazons_sdks_are_read_and_empty_ones_are_unset() {
        let variables = [("AWS_ACCESS_KEY_ID", "AKIA0"), ("AWS_SECRET_ACCESS_KEY", "zero"), ("AWS_PROFILE", "")];
        let mut environment = CredentialEnvironment {
            home: Some("/home/me".into()),
            helpers: variables.into_iter().map(|(name, value)| (name.into(), value.into())).collect(),
            ..CredentialEnvironment::default()
        };
        let read = AwsEnvironment::new(&environment);
        assert_eq!((read.access_key_id.as_deref(), read.profile), (Some("AKIA0"), None));
        assert_eq!(read.secret_access_key.unwrap().expose(), "zero");
        assert_eq!(read.credentials_file, Some("/home/me/.aws/credentials".into()));
        environment.helpers = [("AWS_SHARED_CREDENTIALS_FILE".into(), "/keys".into())].into_iter().collect();
        assert_eq!(AwsEnvironment::new(&environment).credentials_file, Some("/keys".into()));
    }
}
