//! URL of a Redis store: of a server, or of the Sentinels that know which server is the master. Displayed without user
//! and password.

use std::fmt;

use crate::secret::Secret;
use crate::secret_url::{ENCODE_HINT, SecretUrl, UrlError, ambiguity};

/// Port of a Sentinel whose port is not named.
const SENTINEL_PORT: u16 = 26379;
/// An example for hints.
const SENTINEL_EXAMPLE: &str = "write redis+sentinel://:PASSWORD@HOST1:26379,HOST2:26379,HOST3:26379/NAME, with the \
                                name that the Sentinels have for the master";

/// URL of a store.
#[derive(Clone, PartialEq, Eq)]
pub struct StoreUrl {
    /// The server. With Sentinels: the first of them, with user, password and database of the servers.
    server: SecretUrl,
    sentinels: Option<SentinelGroup>,
}

/// Sentinels that watch a master.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SentinelGroup {
    /// Hosts and ports, in the order of the URL. An IPv6 address has brackets.
    pub nodes: Vec<(String, u16)>,
    /// Name that the Sentinels have for the master.
    pub master: String,
}

impl StoreUrl {
    /// Parses a URL with one of these schemes.
    pub fn parse(text: &str, schemes: &[&str]) -> Result<StoreUrl, UrlError> {
        let (scheme, rest) = text.split_once("://").unwrap_or(("", text));
        let scheme = scheme.to_ascii_lowercase();
        match scheme.strip_suffix("+sentinel") {
            Some(server_scheme) if schemes.contains(&scheme.as_str()) => parse_sentinels(text, server_scheme, rest),
            _ if ["redis", "rediss"].contains(&scheme.as_str()) && ambiguity(text).is_none() && names_hosts(rest) => {
                let why = "a URL with redis:// or rediss:// names one server, and this one has a comma";
                Err(UrlError::new(why, Some(SENTINEL_EXAMPLE)))
            }
            _ => Ok(StoreUrl { server: SecretUrl::parse(text, schemes)?, sentinels: None }),
        }
    }

    /// Sets user and password of the servers.
    #[must_use]
    pub fn with_login(self, username: Option<&str>, password: Option<&Secret>) -> StoreUrl {
        StoreUrl { server: self.server.with_login(username, password), ..self }
    }

    /// Returns whether the URL contains a user, and whether a password.
    pub fn login_parts(&self) -> (bool, bool) {
        self.server.login_parts()
    }

    /// Returns the URL of the server, for connecting. With Sentinels, only its host and port are not those of a server.
    pub fn server(&self) -> &SecretUrl {
        &self.server
    }

    /// Returns the Sentinels, if the URL names them.
    pub fn sentinels(&self) -> Option<&SentinelGroup> {
        self.sentinels.as_ref()
    }

    /// Returns all hosts that the URL names.
    pub fn hosts(&self) -> Vec<&str> {
        match &self.sentinels {
            Some(group) => group.nodes.iter().map(|(host, _)| host.as_str()).collect(),
            None => self.server.expose().host_str().into_iter().collect(),
        }
    }
}

impl From<SecretUrl> for StoreUrl {
    fn from(server: SecretUrl) -> StoreUrl {
        StoreUrl { server, sentinels: None }
    }
}

impl fmt::Display for StoreUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Some(group) = &self.sentinels else { return self.server.fmt(f) };
        let nodes: Vec<String> = group.nodes.iter().map(|(host, port)| format!("{host}:{port}")).collect();
        write!(f, "{}+sentinel://{}/{}", self.server.expose().scheme(), nodes.join(","), group.master)?;
        match self.server.expose().path() {
            "" | "/" => Ok(()),
            database => f.write_str(database),
        }
    }
}

impl fmt::Debug for StoreUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// Returns whether the authority of a URL names several hosts. Its password may contain a comma.
fn names_hosts(rest: &str) -> bool {
    let authority = rest.split(['/', '?', '#']).next().unwrap_or_default();
    authority.rsplit('@').next().is_some_and(|hosts| hosts.contains(','))
}

/// Parses `LOGIN@HOST:PORT,…/MASTER/DATABASE`. Errors quote nothing of it.
fn parse_sentinels(text: &str, server_scheme: &str, rest: &str) -> Result<StoreUrl, UrlError> {
    let refuse = |message: &str, hint| Err(UrlError::new(message, hint));
    if let Some(why) = ambiguity(text) {
        return refuse(why, Some(ENCODE_HINT));
    }
    if rest.contains(['?', '#']) {
        return refuse("this URL has a `?` or a `#`", Some(ENCODE_HINT));
    }
    let (authority, path) = rest.split_once('/').unwrap_or((rest, ""));
    let (login, hosts) = match authority.rsplit_once('@') {
        Some((login, hosts)) => (format!("{login}@"), hosts),
        None => (String::new(), authority),
    };
    let mut nodes = Vec::new();
    for host in hosts.split(',') {
        // Parsed as the host of a special scheme: lowercase, and with checked addresses.
        let Ok(node) = url::Url::parse(&format!("http://{}", host.trim())) else {
            return refuse("one of the Sentinels in this URL is not HOST:PORT", Some(SENTINEL_EXAMPLE));
        };
        // The default port of that scheme is dropped when it is parsed.
        let port = node.port().unwrap_or(if host.trim().ends_with(":80") { 80 } else { SENTINEL_PORT });
        let node = (node.host_str().unwrap_or_default().to_owned(), port);
        if nodes.contains(&node) {
            return refuse("this URL names a Sentinel twice", Some("remove one"));
        }
        nodes.push(node);
    }
    let (master, database) = path.split_once('/').unwrap_or((path, ""));
    if master.is_empty() {
        return refuse("the name of the master is missing in this URL", Some(SENTINEL_EXAMPLE));
    }
    // The characters that Sentinels allow.
    if !master.chars().all(|c| c.is_ascii_alphanumeric() || "._-".contains(c)) {
        return refuse("the name of the master in this URL has other characters than A-Z, 0-9, `.`, `-` and `_`", None);
    }
    if !database.is_empty() && database.parse::<u32>().is_err() {
        return refuse("what follows the name of the master in this URL is not the number of a database", None);
    }
    let (host, port) = &nodes[0];
    let database = if database.is_empty() { String::new() } else { format!("/{database}") };
    let server = SecretUrl::parse(&format!("{server_scheme}://{login}{host}:{port}{database}"), &[server_scheme])?;
    Ok(StoreUrl { server, sentinels: Some(SentinelGroup { nodes, master: master.to_owned() }) })
}

#[cfg(test)]
mod tests {
    use super::*;

    const SCHEMES: [&str; 4] = ["redis", "rediss", "redis+sentinel", "rediss+sentinel"];

    fn parse(text: &str) -> StoreUrl {
        StoreUrl::parse(text, &SCHEMES).unwrap_or_else(|error| panic!("{text}: {error}"))
    }

    #[test]
    fn a_url_of_sentinels_names_them_and_the_master() {
        let url = parse("redis+sentinel://me:p%40w@S1:26379,s2,[::1]:5000,s4:80/my-master_1.a/3");
        let group = url.sentinels().unwrap();
        let wanted =
            [("s1", 26379), ("s2", 26379), ("[::1]", 5000), ("s4", 80)].map(|(host, port)| (host.into(), port));
        assert_eq!((group.nodes.as_slice(), group.master.as_str()), (&wanted[..], "my-master_1.a"));
        assert_eq!(url.server().expose().as_str(), "redis://me:p%40w@s1:26379/3");
        assert_eq!(url.to_string(), "redis+sentinel://s1:26379,s2:26379,[::1]:5000,s4:80/my-master_1.a/3");
        assert_eq!(format!("{url:?}"), url.to_string());
        assert_eq!(url.hosts(), ["s1", "s2", "[::1]", "s4"]);
        let url = parse("REDISS+sentinel://s1/m");
        assert_eq!(
            (url.server().expose().scheme(), url.to_string().as_str()),
            ("rediss", "rediss+sentinel://s1:26379/m")
        );
        let with_login = url.with_login(None, Some(&Secret::new("p/w")));
        assert_eq!(with_login.server().expose().as_str(), "rediss://:p%2Fw@s1:26379");
        assert_eq!(with_login.login_parts(), (false, true));
        assert_eq!(parse("redis+sentinel://:a,b@s1,s2/m").hosts(), ["s1", "s2"]);
    }

    #[test]
    fn other_urls_of_a_store_name_a_server() {
        let url = parse("rediss://:pw@redis.example:6380/2");
        assert!(url.sentinels().is_none() && url.hosts() == ["redis.example"]);
        assert_eq!((url.to_string().as_str(), url.login_parts()), ("rediss://redis.example:6380", (false, true)));
        assert_eq!(StoreUrl::from(url.server().clone()), url);
    }

    #[test]
    fn errors_say_what_is_wrong_and_quote_nothing() {
        for (text, message, hint) in [
            ("redis+sentinel://:hunter2@s1:26379,s2:26379", "name of the master is missing", true),
            ("redis+sentinel://:hunter2@s1/", "name of the master is missing", true),
            ("redis+sentinel://:hunter2@s1,s1:26379/m", "names a Sentinel twice", true),
            ("redis+sentinel://:hunter2@s1,,s2/m", "not HOST:PORT", true),
            ("redis+sentinel://:hunter2@s1:hunter2/m", "not HOST:PORT", true),
            ("redis+sentinel://:hunter2@/m", "not HOST:PORT", true),
            ("redis+sentinel://:hunter2@s1/hunter2 x", "other characters", false),
            ("redis+sentinel://:hunter2@s1/m/hunter2", "not the number of a database", false),
            ("redis+sentinel://:hunter2@s1/m?db=3", "a `?`", true),
            ("redis+sentinel://:hun/ter2@s1/m", "ambiguous", true),
            ("redis+sentinel://:hun@ter2@s1/m", "ambiguous", true),
            ("redis://:hunter2@s1:6379,s2:6379/0", "has a comma", true),
            ("sentinel://:hunter2@s1/m", "cannot be used here", false),
        ] {
            let error = StoreUrl::parse(text, &SCHEMES).unwrap_err();
            assert!(error.to_string().contains(message), "{text}: {error}");
            assert_eq!(error.hint().is_some(), hint, "{text}");
            assert!(!format!("{error:?}").contains("hunter") && !format!("{error:?}").contains("ter2"), "{error:?}");
        }
        let error = StoreUrl::parse("redis+sentinel://s1/m", &["redis"]).unwrap_err();
        assert!(error.to_string().contains("redis://"), "{error}");
    }
}
