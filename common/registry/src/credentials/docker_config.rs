//! Parses docker's `config.json` and containers' `auth.json`, which has the same format. Pure.

use std::collections::BTreeMap;

use base64::{Engine as _, engine::general_purpose::STANDARD_PAD_INDIFFERENT};
use serde::Deserialize;
use serde_json::error::Category;

use super::Credential;
use imgsync_oci::sanitize::sanitize;
use imgsync_oci::secret::Secret;

/// Docker Hub's name in references, and the key of its credentials in docker's files.
pub(super) const HUB: &str = "docker.io";
pub(super) const HUB_KEY: &str = "https://index.docker.io/v1/";

/// The fields that are read of a file.
#[derive(Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub(super) struct DockerConfig {
    auths: Option<BTreeMap<String, Option<AuthEntry>>>,
    cred_helpers: Option<BTreeMap<String, String>>,
    creds_store: Option<String>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct AuthEntry {
    auth: Option<Secret>,
    username: Option<String>,
    password: Option<Secret>,
    identitytoken: Option<Secret>,
    registrytoken: Option<Secret>,
}

/// A credential with the repositories that it covers: those at or below `path`, all if that is empty.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct ScopedCredential {
    pub(super) path: String,
    pub(super) credential: Credential,
}

impl ScopedCredential {
    pub(super) fn covers(&self, repository: &str) -> bool {
        match repository.strip_prefix(&self.path) {
            Some(below) => self.path.is_empty() || below.is_empty() || below.starts_with('/'),
            None => false,
        }
    }
}

/// An invalid entry.
#[derive(Debug)]
pub(super) struct InvalidEntry {
    pub(super) key: String,
    pub(super) reason: &'static str,
}

/// Parses a file. The error has the position and never quotes the content.
pub(super) fn parse(bytes: &[u8]) -> Result<DockerConfig, String> {
    let bytes = bytes.strip_prefix(b"\xef\xbb\xbf").unwrap_or(bytes);
    if bytes.trim_ascii().is_empty() {
        return Ok(DockerConfig::default());
    }
    serde_json::from_slice(bytes).map_err(|error| match error.classify() {
        // serde quotes values of the wrong type, and one may be a misplaced password.
        Category::Data => {
            format!("the value that ends at line {} column {} is of the wrong type", error.line(), error.column())
        }
        Category::Io | Category::Syntax | Category::Eof => error.to_string(),
    })
}

impl DockerConfig {
    /// Returns the helper for a registry: its own, else the default one. An empty name disables helpers, even if
    /// `credsStore` is set.
    pub(super) fn helper_for(&self, registry: &str) -> Option<&str> {
        let own = self
            .cred_helpers
            .iter()
            .flatten()
            .filter(|(key, _)| split_key(key) == Some((registry.to_owned(), String::new())))
            .min_by_key(|(key, _)| rank(key, registry));
        let helper = match own {
            Some((_, helper)) => helper,
            None => self.creds_store.as_ref()?,
        };
        (!helper.is_empty()).then_some(helper.as_str())
    }

    /// Returns the entries of `auths` for a registry, the longest path first.
    pub(super) fn entries_for(&self, registry: &str) -> Result<Vec<ScopedCredential>, InvalidEntry> {
        let mut candidates = Vec::new();
        for (key, entry) in self.auths.iter().flatten() {
            if let (Some((host, path)), Some(entry)) = (split_key(key), entry)
                && host == registry
            {
                candidates.push((path, rank(key, registry), key, entry));
            }
        }
        candidates.sort_by(|a, b| {
            let order = |path: &String| (std::cmp::Reverse(path.len()), path.clone());
            order(&a.0).cmp(&order(&b.0)).then(a.1.cmp(&b.1))
        });

        let mut found: Vec<ScopedCredential> = Vec::new();
        for (path, _, key, entry) in candidates {
            if found.last().is_some_and(|last| last.path == path) {
                continue;
            }
            let credential = entry.credential(key).map_err(|reason| InvalidEntry { key: key.clone(), reason })?;
            if let Some(credential) = credential {
                found.push(ScopedCredential { path, credential });
            }
        }
        Ok(found)
    }
}

impl AuthEntry {
    /// Returns `None` for an empty entry: docker leaves those if a helper holds the credentials.
    fn credential(&self, key: &str) -> Result<Option<Credential>, &'static str> {
        let filled = |secret: &Option<Secret>| {
            let secret = secret.clone();
            secret.filter(|secret| !secret.expose().trim().is_empty())
        };
        if filled(&self.registrytoken).is_some() {
            tracing::warn!(
                key = %sanitize(key),
                "a registrytoken is ignored: it cannot be renewed; log in with a user name and a password or token"
            );
        }
        let pair = match (filled(&self.auth), &self.username, &self.password) {
            (Some(auth), ..) => decode(&auth).map(Some),
            (None, Some(username), Some(password)) => Ok(Some((username.clone(), password.clone()))),
            (None, ..) => Ok(None),
        };
        if let Some(token) = filled(&self.identitytoken) {
            let username = match pair {
                Ok(Some((username, _))) => Some(username),
                _ => self.username.clone(),
            };
            let username = username.filter(|username| !username.is_empty());
            return Ok(Some(Credential::IdentityToken { username, token }));
        }
        Ok(pair?
            .filter(|(username, password)| !username.is_empty() || !password.expose().is_empty())
            .map(|(username, password)| Credential::Basic { username, password }))
    }
}

/// Decodes `user:password` in base64, with or without padding, in either alphabet. The password may contain colons.
fn decode(auth: &Secret) -> Result<(String, Secret), &'static str> {
    let auth: String = auth
        .expose()
        .chars()
        .filter(|c| !c.is_whitespace())
        .map(|c| match c {
            '-' => '+',
            '_' => '/',
            c => c,
        })
        .collect();
    let decoded = STANDARD_PAD_INDIFFERENT.decode(auth).map_err(|_| "its `auth` is not base64")?;
    let decoded = String::from_utf8(decoded).map_err(|_| "its `auth` does not hold UTF-8")?;
    let (username, password) = decoded.split_once(':').ok_or("its `auth` does not hold `user:password`")?;
    // docker trims these, too: old versions used them for padding.
    let password = password.trim_matches('\0');
    Ok((username.to_owned(), Secret::new(password)))
}

/// Normalizes a registry's name: the host, with the port if there is one, in lower case; `docker.io` for all names of
/// Docker Hub. Drops scheme and path.
pub(super) fn normalise(registry: &str) -> String {
    let bare = without_scheme(registry.trim()).unwrap_or(registry.trim());
    let host = bare.split('/').next().unwrap_or_default();
    let host = host.to_ascii_lowercase();
    match host.as_str() {
        "index.docker.io" | "registry-1.docker.io" => HUB.to_owned(),
        _ => host,
    }
}

/// Splits a key of `auths` into registry and path. With a scheme the path is an API's, without one a namespace.
fn split_key(key: &str) -> Option<(String, String)> {
    let key = key.trim();
    let host = normalise(key);
    let path = match without_scheme(key) {
        // Docker Desktop stores tokens for the Hub's web API here, which the registry does not accept.
        Some(bare) if host == HUB && bare.trim_end_matches('/').ends_with("-token") => return None,
        Some(_) => "",
        None => match key.split_once('/').map_or("", |(_, path)| path) {
            "v1" | "v1/" | "v2" | "v2/" => "",
            path => path.trim_matches('/'),
        },
    };
    Some((host, path.to_owned()))
}

fn without_scheme(text: &str) -> Option<&str> {
    let (scheme, rest) = text.split_once("://")?;
    (scheme.eq_ignore_ascii_case("https") || scheme.eq_ignore_ascii_case("http")).then_some(rest)
}

/// Rank of equivalent keys: docker's own first, then the plain name, then the others.
fn rank(key: &str, registry: &str) -> u8 {
    match key {
        HUB_KEY if registry == HUB => 0,
        _ if key == registry => 1,
        _ => 2,
    }
}

#[cfg(test)]
mod tests {
    use base64::prelude::BASE64_STANDARD;
    use proptest::prelude::*;

    use super::*;

    fn basic(username: &str, password: &str) -> Credential {
        Credential::Basic { username: username.to_owned(), password: Secret::new(password) }
    }

    fn only(json: &str, registry: &str) -> Option<Credential> {
        let entries = parse(json.as_bytes()).unwrap().entries_for(registry).unwrap();
        assert!(entries.len() <= 1, "{entries:?}");
        entries.into_iter().next().map(|entry| entry.credential)
    }

    #[test]
    fn every_form_of_an_entry() {
        // "me:a:b" in base64
        for (entry, credential) in [
            (r#"{"auth":"bWU6YTpi"}"#, Some(basic("me", "a:b"))),
            (r#"{"auth":" bWU6YTpi\n"}"#, Some(basic("me", "a:b"))),
            (r#"{"auth":"bWU6YTpi","username":"x","password":"y"}"#, Some(basic("me", "a:b"))),
            (r#"{"username":"me","password":"secret","email":"a@b"}"#, Some(basic("me", "secret"))),
            (r#"{"auth":"PHRva2VuPjpzZWNyZXQ="}"#, Some(basic("<token>", "secret"))),
            (r#"{"auth":"PHRva2VuPjpzZWNyZXQ"}"#, Some(basic("<token>", "secret"))),
            (
                r#"{"auth":"MDAwMDAwMDAtMDAwMC0wMDAwLTAwMDAtMDAwMDAwMDAwMDAwOg==","identitytoken":"t"}"#,
                Some(Credential::IdentityToken {
                    username: Some("00000000-0000-0000-0000-000000000000".to_owned()),
                    token: Secret::new("t"),
                }),
            ),
            (r#"{"identitytoken":"t"}"#, Some(Credential::IdentityToken { username: None, token: Secret::new("t") })),
            (r#"{"registrytoken":"t"}"#, None),
            (r#"{"username":"me"}"#, None),
            (r#"{"auth":""}"#, None),
            ("{}", None),
            ("null", None),
        ] {
            let json = format!(r#"{{"auths":{{"r.example":{entry}}}}}"#);
            assert_eq!(only(&json, "r.example"), credential, "{entry}");
        }
    }

    #[test]
    fn the_hub_has_many_names() {
        for key in [
            "https://index.docker.io/v1/",
            "docker.io",
            "registry-1.docker.io",
            "index.docker.io",
            "https://registry-1.docker.io/v2/",
            "Docker.io",
        ] {
            assert_eq!(normalise(key), "docker.io");
            let json = format!(r#"{{"auths":{{"{key}":{{"auth":"bWU6YTpi"}}}}}}"#);
            assert_eq!(only(&json, "docker.io"), Some(basic("me", "a:b")), "{key}");
        }
        let json = r#"{"auths":{
            "docker.io":{"username":"second","password":"p"},
            "https://index.docker.io/v1/":{"username":"first","password":"p"},
            "https://index.docker.io/v1/access-token":{"username":"no","password":"p"},
            "https://index.docker.io/v1/refresh-token":{"username":"no","password":"p"}}}"#;
        assert_eq!(only(json, "docker.io"), Some(basic("first", "p")));
        let json = json.replace(r#""username":"first","password":"p""#, "");
        assert_eq!(only(&json, "docker.io"), Some(basic("second", "p")));
    }

    #[test]
    fn keys_are_hosts_with_ports() {
        for key in [
            "r.example:5000",
            "http://r.example:5000",
            "https://R.example:5000/v2/_catalog",
            "r.example:5000/",
            "r.example:5000/v2/",
        ] {
            let json = format!(r#"{{"auths":{{"{key}":{{"auth":"bWU6YTpi"}}}}}}"#);
            assert!(only(&json, "r.example:5000").is_some(), "{key}");
            assert!(only(&json, "r.example").is_none(), "{key}");
        }
    }

    #[test]
    fn the_longest_path_goes_first_and_ends_at_a_slash() {
        let json = r#"{"auths":{
            "r.example":{"username":"host","password":"p"},
            "r.example/a":{"username":"a","password":"p"},
            "r.example/a/b":{"username":"ab","password":"p"},
            "other.example/a/b/c":{"username":"other","password":"p"}}}"#;
        let entries = parse(json.as_bytes()).unwrap().entries_for("r.example").unwrap();
        for (repository, user) in
            [("a/b/c", "ab"), ("a/b", "ab"), ("a/bc", "a"), ("a", "a"), ("ab", "host"), ("z", "host")]
        {
            let found = entries.iter().find(|entry| entry.covers(repository));
            assert_eq!(found.unwrap().credential, basic(user, "p"), "{repository}");
        }
    }

    #[test]
    fn a_registrys_own_helper_goes_before_the_one_for_all() {
        let json = r#"{"credsStore":"all","credHelpers":{
            "gcr.io":"gcloud","https://index.docker.io/v1/":"hub","plain.example":""}}"#;
        let config = parse(json.as_bytes()).unwrap();
        for (registry, helper) in [
            ("gcr.io", Some("gcloud")),
            ("docker.io", Some("hub")),
            ("plain.example", None),
            ("r.example", Some("all")),
        ] {
            assert_eq!(config.helper_for(registry), helper, "{registry}");
        }
        assert_eq!(parse(b"{}").unwrap().helper_for("gcr.io"), None);
    }

    #[test]
    fn what_is_wrong_is_placed_and_not_quoted() {
        let error = parse(b"{\n  \"auths\": {\"r.example\": \"s3cret\"}}").unwrap_err();
        assert!(error.contains("line 2"), "{error}");
        assert!(!error.contains("s3cret"), "{error}");
        let error = parse(b"{\n\n  auths").unwrap_err();
        assert!(error.contains("line 3 column 3"), "{error}");

        for auth in ["!!!", "bWU=", "/////w=="] {
            let json = format!(r#"{{"auths":{{"r.example":{{"auth":"{auth}"}}}}}}"#);
            let config = parse(json.as_bytes()).unwrap();
            let error = config.entries_for("r.example").unwrap_err();
            assert_eq!(error.key, "r.example");
            assert!(error.reason.contains("auth"));
            assert!(config.entries_for("other.example").unwrap().is_empty());
        }
    }

    #[test]
    fn an_empty_file_says_nothing() {
        for file in ["", " \n", "\u{feff}{}", r#"{"auths":null,"credHelpers":null}"#] {
            let config = parse(file.as_bytes()).unwrap();
            assert!(config.entries_for("r.example").unwrap().is_empty());
        }
    }

    proptest! {
        #[test]
        fn never_panics(bytes in prop::collection::vec(any::<u8>(), 0..60), key in "(https?://|[a-z.:/]|\\PC){0,20}", auth in "\\PC{0,20}") {
            _ = parse(&bytes);
            let json = serde_json::json!({"auths": {&key: {"auth": auth}}, "credHelpers": {&key: "x"}}).to_string();
            let config = parse(json.as_bytes()).unwrap();
            let registry = normalise(&key);
            _ = config.entries_for(&registry);
            _ = config.helper_for(&registry);
        }

        #[test]
        fn a_pair_comes_back(username in "[^:\0]{1,20}", password in "[^\0]{0,20}") {
            let auth = BASE64_STANDARD.encode(format!("{username}:{password}"));
            let (user, secret) = decode(&Secret::new(auth)).unwrap();
            prop_assert_eq!((user.as_str(), secret.expose()), (username.as_str(), password.as_str()));
        }

        #[test]
        fn a_name_is_normalised_once(name in "[a-zA-Z0-9.:/-]{0,30}") {
            let once = normalise(&name);
            prop_assert_eq!(normalise(&once), once);
        }
    }
}
