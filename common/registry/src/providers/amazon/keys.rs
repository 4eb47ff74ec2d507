//! Finds AWS keys where Amazon's SDKs look (AWS SDKs and tools reference guide, "Standardized credential providers"), in
//! this order: the environment; the profile in the shared files; a web identity (EKS: IRSA); the service of the container
//! (EKS pod identity, ECS); the role of the instance. IAM Identity Center and `credential_process` are not supported,
//! and an error says so.

use std::collections::BTreeMap;
use std::path::PathBuf;

use futures_util::future::BoxFuture;
use imgsync_oci::error::Result;
use imgsync_oci::sanitize::sanitize_within;
use imgsync_oci::secret::Secret;

use super::roles;
use crate::providers::identity::{Search, SigningKeys};

/// Profiles that refer to each other at most.
const MAX_PROFILES: usize = 5;

/// Returns the keys of this machine, known ones if they are still valid.
pub(super) async fn find(search: &mut Search<'_>, region: &str) -> Result<Option<SigningKeys>> {
    if let Some(keys) = search.known_keys().await {
        return Ok(Some(keys));
    }
    let keys = find_anew(search, region).await?;
    if let Some(keys) = &keys {
        search.remember_keys(Some(keys)).await;
    }
    Ok(keys)
}

async fn find_anew(search: &mut Search<'_>, region: &str) -> Result<Option<SigningKeys>> {
    if let Some(keys) = from_environment(search) {
        return Ok(Some(keys));
    }
    let name = search.variable("AWS_PROFILE");
    let profiles = Profiles::read(search).await?;
    if let Some(keys) = from_profile(search, &profiles, name.as_deref(), region, 0).await? {
        return Ok(Some(keys));
    }
    if let Some(keys) = roles::from_web_identity(search, region).await? {
        return Ok(Some(keys));
    }
    if let Some(keys) = roles::from_container(search).await? {
        return Ok(Some(keys));
    }
    roles::from_instance(search).await
}

fn from_environment(search: &mut Search<'_>) -> Option<SigningKeys> {
    let (id, secret) = (search.variable("AWS_ACCESS_KEY_ID"), search.variable("AWS_SECRET_ACCESS_KEY"));
    match (id, secret) {
        (Some(id), Some(secret)) => Some(SigningKeys {
            id,
            secret: Secret::new(secret),
            session: search.variable("AWS_SESSION_TOKEN").map(Secret::from),
            lifetime: None,
            origin: "the keys in AWS_ACCESS_KEY_ID".to_owned(),
        }),
        (Some(_), None) => {
            search.missed("AWS_SECRET_ACCESS_KEY is not set, though AWS_ACCESS_KEY_ID is");
            None
        }
        _ => {
            search.missed("AWS_ACCESS_KEY_ID is not set");
            None
        }
    }
}

/// The profiles in the shared files.
#[derive(Debug, Default)]
struct Profiles {
    by_name: BTreeMap<String, BTreeMap<String, String>>,
    files: Vec<PathBuf>,
}

impl Profiles {
    async fn read(search: &Search<'_>) -> Result<Profiles> {
        let in_home = |name: &str| Some(search.environment.home.as_ref()?.join(".aws").join(name));
        let credentials = search.path("AWS_SHARED_CREDENTIALS_FILE").or_else(|| in_home("credentials"));
        let config = search.path("AWS_CONFIG_FILE").or_else(|| in_home("config"));
        let mut profiles = Profiles::default();
        // The file of credentials goes before the other.
        for (file, is_config) in [(credentials, false), (config, true)] {
            let Some(file) = file else { continue };
            if let Some(text) = search.read_file_if_any(&file).await? {
                profiles.add(text.expose(), is_config);
            }
            profiles.files.push(file);
        }
        Ok(profiles)
    }

    /// Adds the profiles of a file. Values that are known already stay.
    fn add(&mut self, text: &str, is_config: bool) {
        let mut section: Option<&mut BTreeMap<String, String>> = None;
        for line in text.lines().map(str::trim) {
            if line.starts_with(['#', ';']) {
                continue;
            }
            if let Some(name) = line.strip_prefix('[').and_then(|line| line.split(']').next()) {
                let name = name.trim();
                let name = match name.strip_prefix("profile").filter(|_| is_config) {
                    Some(rest) if rest.starts_with(char::is_whitespace) => Some(rest.trim()),
                    _ if is_config && name != "default" => None,
                    _ => Some(name),
                };
                section = name.map(|name| self.by_name.entry(name.to_owned()).or_default());
                continue;
            }
            let (Some(section), Some((key, value))) = (section.as_mut(), line.split_once('=')) else { continue };
            section.entry(key.trim().to_ascii_lowercase()).or_insert_with(|| value.trim().to_owned());
        }
    }

    fn shown_files(&self) -> String {
        let files: Vec<String> = self.files.iter().map(|file| file.display().to_string()).collect();
        files.join(" and ")
    }
}

/// Returns the keys of a profile. `name` is `None` if nobody named one.
fn from_profile<'a>(
    search: &'a mut Search<'_>,
    profiles: &'a Profiles,
    name: Option<&'a str>,
    region: &'a str,
    depth: usize,
) -> BoxFuture<'a, Result<Option<SigningKeys>>> {
    Box::pin(async move {
        let shown = sanitize_within(name.unwrap_or("default"), 100).into_owned();
        let Some(profile) = profiles.by_name.get(name.unwrap_or("default")) else {
            let detail = format!("there is no profile {shown} in {}", profiles.shown_files());
            if name.is_some() {
                return Err(search.invalid(format!("{detail}, though AWS_PROFILE or another profile names it")));
            }
            search.missed(detail);
            return Ok(None);
        };
        let get = |key: &str| profile.get(key).filter(|value| !value.is_empty()).cloned();
        if let Some(role) = get("role_arn") {
            if let Some(file) = get("web_identity_token_file") {
                let session = get("role_session_name");
                let origin = format!("`web_identity_token_file` of the profile {shown}");
                let token = search.read_file(&PathBuf::from(file), &origin).await?;
                let keys = roles::assume_with_token(search, &role, session, &token, region).await?;
                return Ok(Some(keys));
            }
            if depth >= MAX_PROFILES {
                return Err(search.invalid(format!("the profile {shown} refers to too many other profiles")));
            }
            let source = match (get("source_profile"), get("credential_source").as_deref()) {
                // A profile may name itself: its own keys assume its role.
                (Some(source), _) if source == shown => static_keys(profile, &shown),
                (Some(source), _) => from_profile(search, profiles, Some(&source), region, depth + 1).await?,
                (None, Some("Environment")) => from_environment(search),
                (None, Some("EcsContainer")) => roles::from_container(search).await?,
                (None, Some("Ec2InstanceMetadata")) => roles::from_instance(search).await?,
                _ => {
                    let detail = "has a `role_arn`, but neither `source_profile`, `credential_source` nor \
                                  `web_identity_token_file`";
                    return Err(search.invalid(format!("the profile {shown} {detail}")));
                }
            };
            let Some(source) = source else {
                return Err(
                    search.unavailable(format!("the keys that assume the role of the profile {shown} are missing"))
                );
            };
            let external = get("external_id");
            let keys = roles::assume(search, &source, &role, get("role_session_name"), external, region).await?;
            return Ok(Some(keys));
        }
        if let Some(keys) = static_keys(profile, &shown) {
            return Ok(Some(keys));
        }
        let unsupported =
            ["credential_process", "sso_session", "sso_start_url"].into_iter().find(|key| get(key).is_some());
        match unsupported {
            Some(key) if name.is_some() => {
                let detail = format!("the profile {shown} uses `{key}`, which imgsync does not support");
                Err(search.invalid(detail).with_hint(format!(
                    "export its keys before the run: eval \"$(aws configure export-credentials --profile {shown} --format env)\""
                )))
            }
            Some(key) => {
                search.missed(format!("the profile {shown} uses `{key}`, which imgsync does not support"));
                Ok(None)
            }
            None if name.is_some() => Err(search
                .invalid(format!("the profile {shown} has neither keys nor a role in {}", profiles.shown_files()))),
            None => {
                search.missed(format!("the profile {shown} has no keys"));
                Ok(None)
            }
        }
    })
}

fn static_keys(profile: &BTreeMap<String, String>, shown: &str) -> Option<SigningKeys> {
    let get = |key: &str| profile.get(key).filter(|value| !value.is_empty()).cloned();
    Some(SigningKeys {
        id: get("aws_access_key_id")?,
        secret: Secret::new(get("aws_secret_access_key")?),
        session: get("aws_session_token").map(Secret::from),
        lifetime: None,
        origin: format!("the keys of the profile {shown}"),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const FILE: &str = "# keys\n[default]\naws_access_key_id = AKIA1\naws_secret_access_key=a/b=\n\n[ work ]\n\
                        AWS_ACCESS_KEY_ID=AKIA2\naws_secret_access_key = two\naws_session_token = for a while\n[half]\n\
                        aws_access_key_id = AKIA3\n";
    const CONFIG: &str = "[default]\nregion = eu-west-1\naws_access_key_id = OTHER\n[profile role]\nrole_arn = arn:x\n\
                          source_profile = work\n[profile\twide]\naws_access_key_id = AKIA4\n\
                          aws_secret_access_key = four\n[work]\naws_access_key_id = nobody\n[sso-session a]\nx = y\n";

    fn profiles() -> Profiles {
        let mut profiles = Profiles::default();
        profiles.add(FILE, false);
        profiles.add(CONFIG, true);
        profiles
    }

    #[test]
    fn the_profile_that_is_named_is_read_and_no_other() {
        let profiles = profiles();
        let found = |name: &str| {
            let keys = static_keys(profiles.by_name.get(name)?, name)?;
            Some((keys.id, keys.secret.expose().to_owned(), keys.session.map(|session| session.expose().to_owned())))
        };
        assert_eq!(found("default"), Some(("AKIA1".to_owned(), "a/b=".to_owned(), None)));
        assert_eq!(found("work"), Some(("AKIA2".to_owned(), "two".to_owned(), Some("for a while".to_owned()))));
        assert_eq!(found("wide"), Some(("AKIA4".to_owned(), "four".to_owned(), None)));
        assert_eq!((found("half"), found("none"), found("role")), (None, None, None));
        assert_eq!(profiles.by_name["role"]["source_profile"], "work");
        assert!(!profiles.by_name.contains_key("sso-session a"));
    }
}
