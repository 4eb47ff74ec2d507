//! Values of variables in URLs, percent-encoded for their positions.

use std::ops::Range;

use imgsync_oci::secret_url::percent_encode;

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

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use imgsync_oci::secret::Secret;
    use imgsync_oci::secret_url::{ENCODE_HINT, SecretUrl};

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
