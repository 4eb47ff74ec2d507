//! URLs that may contain a password: parsed so that no part of it is taken for a host, and displayed without it.

use std::fmt;

use url::Url;

use crate::secret::Secret;

/// Hint for a URL in which the end of the password is ambiguous.
pub const ENCODE_HINT: &str = "percent-encode the password, or use `username`/`password`";

/// A URL whose user and password are not shown.
#[derive(Clone, PartialEq, Eq)]
pub struct SecretUrl(Url);

/// Error of parsing a URL. It quotes nothing of the text, which may contain a password.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct UrlError {
    message: String,
    hint: Option<&'static str>,
}

impl UrlError {
    pub(crate) fn new(message: &str, hint: Option<&'static str>) -> UrlError {
        UrlError { message: message.to_owned(), hint }
    }

    /// Returns what to do, if known.
    pub fn hint(&self) -> Option<&'static str> {
        self.hint
    }
}

impl SecretUrl {
    /// Wraps a URL.
    pub fn new(url: Url) -> Self {
        Self(url)
    }

    /// Parses a URL with one of these schemes and a host.
    pub fn parse(text: &str, schemes: &[&str]) -> Result<SecretUrl, UrlError> {
        parse(text, schemes).map(SecretUrl)
    }

    /// Sets user and password, which may contain any characters. Without a user, there is only a password (Redis).
    #[must_use]
    pub fn with_login(mut self, username: Option<&str>, password: Option<&Secret>) -> SecretUrl {
        // Both fail only without a host, which `parse` requires. They do not encode a `%`.
        _ = self.0.set_username(&percent_encode(username.unwrap_or_default(), &[]));
        _ = self.0.set_password(password.map(|password| percent_encode(password.expose(), &[])).as_deref());
        self
    }

    /// Returns the URL with user and password, for connecting.
    pub fn expose(&self) -> &Url {
        &self.0
    }

    /// Returns whether the URL contains a user or a password.
    pub fn has_login(&self) -> bool {
        !self.0.username().is_empty() || self.0.password().is_some()
    }

    /// Returns whether the URL contains a user, and whether a password.
    pub fn login_parts(&self) -> (bool, bool) {
        (!self.0.username().is_empty(), self.0.password().is_some())
    }
}

impl fmt::Display for SecretUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // A query can contain a password, too (`redis://host?password=…`).
        if !self.has_login() && self.0.query().is_none() && self.0.fragment().is_none() {
            return f.write_str(self.0.as_str());
        }
        write!(f, "{}://{}", self.0.scheme(), self.0.host_str().unwrap_or_default())?;
        self.0.port().map_or(Ok(()), |port| write!(f, ":{port}"))
    }
}

impl fmt::Debug for SecretUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// Returns the URLs for display, separated by commas.
pub fn join_urls(urls: &[SecretUrl]) -> String {
    urls.iter().map(SecretUrl::to_string).collect::<Vec<_>>().join(", ")
}

/// Parses a URL with one of these schemes and a host. Rejects a URL in which the end of user and password is ambiguous:
/// the rest would be looked up as a host.
pub fn parse(text: &str, schemes: &[&str]) -> Result<Url, UrlError> {
    let wanted = || schemes.iter().map(|scheme| format!("{scheme}://")).collect::<Vec<_>>().join(" or ");
    let refuse = |message: String, hint| Err(UrlError { message, hint });
    if let Some(why) = ambiguity(text) {
        return refuse(why.to_owned(), Some(ENCODE_HINT));
    }
    match Url::parse(text) {
        Ok(url) if schemes.contains(&url.scheme()) && url.host_str().is_some_and(|host| !host.is_empty()) => Ok(url),
        Ok(url) if url.has_host() && text.contains("://") => {
            refuse(format!("a URL with {}:// cannot be used here, but {}", url.scheme(), wanted()), None)
        }
        Ok(_) | Err(url::ParseError::RelativeUrlWithoutBase) => {
            refuse(format!("this is not a URL: it begins with {}", wanted()), None)
        }
        Err(error) => refuse(format!("this is not a URL: {error}"), text.contains('@').then_some(ENCODE_HINT)),
    }
}

/// Returns why the end of user and password in a URL is ambiguous (RFC 3986, section 3.2); `None` if it is not.
pub fn ambiguity(text: &str) -> Option<&'static str> {
    let rest = text.split_once("://").map_or(text, |(_, rest)| rest);
    let end = rest.find(['/', '?', '#', '\\']).unwrap_or(rest.len());
    let (authority, after) = rest.split_at(end);
    let Some((login, _)) = authority.rsplit_once('@') else {
        // `user:12/34@host`: a port and a path, or a password. Without a colon nothing before it can be a password.
        let cut = after.contains('@') && authority.contains(':') && !authority.starts_with('[');
        return cut.then_some("the password in this URL is ambiguous");
    };
    let is_encoded = |at: usize| {
        let digits = login.as_bytes().get(at + 1..at + 3);
        digits.is_some_and(|digits| digits.iter().all(u8::is_ascii_hexdigit))
    };
    if login.contains('@') || after.contains('@') {
        return Some("the password in this URL is ambiguous");
    }
    if after.starts_with('\\') {
        return Some("there is a `\\` in this URL");
    }
    if login.match_indices('%').any(|(at, _)| !is_encoded(at)) {
        return Some("user or password in this URL have an invalid percent-encoding");
    }
    let has_control = login.contains(char::is_control);
    has_control.then_some("user or password in this URL have a control character")
}

/// Percent-encodes all but unreserved characters (RFC 3986, section 2.3) and those of `kept`.
pub fn percent_encode(text: &str, kept: &[u8]) -> String {
    let mut encoded = String::with_capacity(text.len());
    for byte in text.bytes() {
        match byte {
            _ if byte.is_ascii_alphanumeric() || b"-._~".contains(&byte) || kept.contains(&byte) => {
                encoded.push(byte.into());
            }
            _ => encoded.push_str(&format!("%{byte:02X}")),
        }
    }
    encoded
}
