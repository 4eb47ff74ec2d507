//! URLs that may contain a password: parsed so that no part of it is taken for a host, and displayed without it.

use std::fmt;
use std::ops::Range;

use url::Url;

use crate::secret::Secret;

/// Hint for a URL in which the end of the password is ambiguous.
pub(super) const ENCODE_HINT: &str = "percent-encode the password, or use `username`/`password`";

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
    pub(super) fn login_parts(&self) -> (bool, bool) {
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

/// Parses a URL with one of these schemes and a host. Rejects a URL in which the end of user and password is ambiguous:
/// the rest would be looked up as a host.
pub(crate) fn parse(text: &str, schemes: &[&str]) -> Result<Url, UrlError> {
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
pub(crate) fn ambiguity(text: &str) -> Option<&'static str> {
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
    let odd = login.contains(char::is_control);
    odd.then_some("user or password in this URL have a control character")
}

/// Percent-encodes the values of variables in a URL for their positions: a password may contain anything. A variable
/// that is the whole URL stays, and so does one that is a scheme, host or port.
pub(super) fn encode_variables(text: &str, variables: &[Range<usize>]) -> String {
    if variables.contains(&(0..text.len())) {
        return text.to_owned();
    }
    // Only the literal text of the file determines the position of a variable.
    let is_literal = |at: usize| !variables.iter().any(|variable| variable.contains(&at));
    let find = |from: usize, wanted: &[char]| {
        let mut found = text[from..].char_indices().map(|(at, c)| (from + at, c));
        found.find(|(at, c)| wanted.contains(c) && is_literal(*at)).map_or(text.len(), |(at, _)| at)
    };
    let mut schemes = text.match_indices("://").filter(|(at, _)| is_literal(*at));
    let Some(authority) = schemes.next().map(|(at, _)| at + 3) else { return text.to_owned() };
    let path = find(authority, &['/', '?', '#']);
    let query = find(path, &['?', '#']);
    let mut login = text[authority..path].char_indices().map(|(at, c)| (authority + at, c));
    let login = login.rfind(|(at, c)| *c == '@' && is_literal(*at)).map_or(authority, |(at, _)| at);
    // The virtual host of a broker is one segment, which is often `/`.
    let kept_in_path: &[u8] = if text.starts_with("amqp") { &[] } else { b"/" };
    let mut encoded = String::with_capacity(text.len());
    let mut done = 0;
    for variable in variables {
        encoded.push_str(&text[done..variable.start]);
        let value = &text[variable.clone()];
        match variable.start {
            at if at < authority => encoded.push_str(value),
            // User and password in one variable.
            at if at == authority && variable.end == login => {
                let (user, password) = value.split_once(':').map_or((value, None), |(user, rest)| (user, Some(rest)));
                encoded.push_str(&percent_encode(user, &[]));
                if let Some(password) = password {
                    encoded.push(':');
                    encoded.push_str(&percent_encode(password, &[]));
                }
            }
            at if at < login => encoded.push_str(&percent_encode(value, &[])),
            at if at < path || path == text.len() => encoded.push_str(value),
            at if at < query || query == text.len() => encoded.push_str(&percent_encode(value, kept_in_path)),
            _ => encoded.push_str(&percent_encode(value, &[])),
        }
        done = variable.end;
    }
    encoded.push_str(&text[done..]);
    encoded
}

/// Percent-encodes all but unreserved characters (RFC 3986, section 2.3) and those of `kept`.
fn percent_encode(text: &str, kept: &[u8]) -> String {
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

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::variables::expand;
    use super::*;

    const SCHEMES: [&str; 2] = ["amqp", "redis"];

    fn filled(written: &str, value: &str) -> String {
        let filled = expand(written, &|_| Some(value.to_owned())).unwrap();
        encode_variables(&filled.text, &filled.variables)
    }

    #[test]
    fn variables_are_encoded_for_the_place_where_they_stand() {
        let value = "p@/#?%:[]+&\\ ü";
        let all = "p%40%2F%23%3F%25%3A%5B%5D%2B%26%5C%20%C3%BC";
        for (written, wanted) in [
            ("amqp://u:${P}@h:5672/v", format!("amqp://u:{all}@h:5672/v")),
            ("amqp://${P}:${P}@h", format!("amqp://{all}:{all}@h")),
            ("amqp://u:a${P}b@h", format!("amqp://u:a{all}b@h")),
            ("amqp://h/${P}", format!("amqp://h/{all}")),
            ("https://h/x/${P}/y", format!("https://h/x/{}/y", all.replace("%2F", "/"))),
            ("https://h/x?key=${P}&k=v", format!("https://h/x?key={all}&k=v")),
            ("${P}", value.to_owned()),
            ("amqp://${P}", format!("amqp://{value}")),
        ] {
            assert_eq!(filled(written, value), wanted, "{written}");
        }
        assert_eq!(filled("amqp://${LOGIN}@h", "me:a@b:c"), "amqp://me:a%40b%3Ac@h");
        assert_eq!(filled("amqp://u:p@${H}:5672", "h"), "amqp://u:p@h:5672");
        assert_eq!(filled("${S}://u:p@h", "amqps"), "amqps://u:p@h");
        assert_eq!(filled("amqp://u:p@h:${N}/v", "5672"), "amqp://u:p@h:5672/v");
    }

    #[test]
    fn a_url_in_which_the_password_has_no_clear_end_is_refused_without_a_part_of_it() {
        for text in [
            "amqp://me:p@ss/w#rd@h",
            "amqp://me:12/34@h",
            "amqp://me:12?34@h",
            "amqp://me:12#34@h",
            "amqp://me:1@2@h",
            "amqp://me:1\\2@h",
            "amqp://me:100%@h",
            "redis://:12/34@h:6379/0",
            "redis://:s3cret/w@h",
            "redis://me:s3cret?w@h",
        ] {
            let error = SecretUrl::parse(text, &SCHEMES).unwrap_err();
            assert_eq!(error.hint(), Some(ENCODE_HINT), "{text}");
            assert!(!error.to_string().contains("34") && !error.to_string().contains("s3cret"), "{text}: {error}");
        }
        for text in [
            "amqp://me:a:b@h",
            "amqp://me:a b@h",
            "amqp://me:ü[]@h",
            "amqp://me:%40@h/%2f?heartbeat=5",
            "redis://[::1]:6379/0",
        ] {
            SecretUrl::parse(text, &SCHEMES).unwrap_or_else(|error| panic!("{text}: {error}"));
        }
    }

    #[test]
    fn a_url_with_credentials_shows_scheme_host_and_port_alone() {
        for (text, shown) in [
            ("amqp://rabbit:5672/vhost", "amqp://rabbit:5672/vhost"),
            ("amqp://me:pw@rabbit:5672/vhost", "amqp://rabbit:5672"),
            ("redis://:pw@[::1]/2", "redis://[::1]"),
            ("redis://me@h/2", "redis://h"),
            ("redis://h:1?password=pw", "redis://h:1"),
        ] {
            let url = SecretUrl::parse(text, &SCHEMES).unwrap();
            assert_eq!((url.to_string(), format!("{url:?}")), (shown.to_owned(), shown.to_owned()));
        }
    }

    proptest! {
        #[test]
        fn any_password_comes_through_a_variable_and_a_login(password in "[@/#?%:\\[\\]+&\\\\ ü]{1,6}|.{1,12}") {
            let url = SecretUrl::parse(&filled("amqp://me:${P}@rabbit:5672/v", &password), &SCHEMES).unwrap();
            let login = SecretUrl::parse("amqp://rabbit:5672/v", &SCHEMES).unwrap();
            let login = login.with_login(Some("me"), Some(&Secret::new(password.as_str())));
            for url in [url, login] {
                prop_assert_eq!(url.expose().host_str(), Some("rabbit"));
                let decoded = url.expose().password().map(|encoded| {
                    let plain = encoded.replace('+', "%2B");
                    url::form_urlencoded::parse(format!("p={plain}").as_bytes()).next().unwrap().1.into_owned()
                });
                prop_assert_eq!(decoded.as_deref(), Some(password.as_str()));
                prop_assert_eq!(url.to_string(), "amqp://rabbit:5672");
            }
        }
    }
}
