//! Parses `WWW-Authenticate` challenges (RFC 9110, section 11.6.1).

/// Limit of challenges per response, and of parameters per challenge.
const MAX_CHALLENGES: usize = 32;

/// Authentication scheme of a challenge. Names are case-insensitive.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Scheme {
    /// User and password (RFC 7617).
    Basic,
    /// Bearer token from the token service that `realm` names.
    Bearer,
    /// Any other scheme, as received.
    Other(String),
}

/// A challenge. Of repeated parameters the first counts, except for `scope`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Challenge {
    /// The authentication scheme.
    pub scheme: Scheme,
    /// For Bearer the URL of the token service. It is untrusted: the caller decides whether to send credentials there.
    pub realm: Option<String>,
    /// The registry's name at the token service.
    pub service: Option<String>,
    /// Each `scope` parameter, as received.
    pub scope: Vec<String>,
    /// Why the last token was refused: `invalid_token`, `insufficient_scope`.
    pub error: Option<String>,
    /// All other parameters in order, with names in lower case. A `token68` (`Negotiate YII=`) has the name `token68`.
    pub params: Vec<(String, String)>,
}

impl Challenge {
    fn new(scheme: &str) -> Self {
        let scheme = if scheme.eq_ignore_ascii_case("basic") {
            Scheme::Basic
        } else if scheme.eq_ignore_ascii_case("bearer") {
            Scheme::Bearer
        } else {
            Scheme::Other(scheme.to_owned())
        };
        Self { scheme, realm: None, service: None, scope: Vec::new(), error: None, params: Vec::new() }
    }

    fn set(&mut self, name: &str, value: String) {
        let name = name.to_ascii_lowercase();
        match name.as_str() {
            "realm" => _ = self.realm.get_or_insert(value),
            "service" => _ = self.service.get_or_insert(value),
            "error" => _ = self.error.get_or_insert(value),
            "scope" if self.scope.len() < MAX_CHALLENGES => self.scope.push(value),
            "scope" => {}
            _ if self.params.len() < MAX_CHALLENGES && !self.params.iter().any(|(known, _)| *known == name) => {
                self.params.push((name, value));
            }
            _ => {}
        }
    }
}

/// Parses all challenges in the values of a response's `WWW-Authenticate` headers, in order. Tolerates missing commas
/// and blanks, blanks around `=`, extra commas, unquoted values and an unclosed last quote. Drops parameters before the
/// first scheme.
///
/// ```
/// use imgsync_registry::challenge::{Scheme, parse};
///
/// let header = r#"Bearer realm="https://auth.example.com/token",service="registry",scope="repository:app:pull,push""#;
/// let challenges = parse([header].into_iter());
/// assert_eq!(challenges[0].scheme, Scheme::Bearer);
/// assert_eq!(challenges[0].scope, ["repository:app:pull,push"]);
/// ```
pub fn parse<'a>(headers: impl Iterator<Item = &'a str>) -> Vec<Challenge> {
    let mut challenges = Vec::new();
    for header in headers {
        read(header, &mut challenges);
    }
    challenges
}

/// The preceding token, which decides how a bare word is read.
#[derive(PartialEq)]
enum LastToken {
    Scheme,
    BareScope,
    Else,
}

fn read(header: &str, challenges: &mut Vec<Challenge>) {
    // First challenge of this header: parameters never belong to a challenge of an earlier header.
    let first = challenges.len();
    let mut last = LastToken::Else;
    let mut rest = header;
    loop {
        let trimmed = rest.trim_start_matches(|c: char| c == ',' || c.is_whitespace());
        let comma = rest[..rest.len() - trimmed.len()].contains(',');
        rest = trimmed;
        if rest.is_empty() {
            return;
        }
        if let Some(quoted) = rest.strip_prefix('"') {
            // A quoted text without a name.
            (_, rest) = unquote(quoted);
            last = LastToken::Else;
            continue;
        }

        let ends = |c: char| matches!(c, ',' | '=' | '"') || c.is_whitespace();
        let (word, after) = rest.split_at(rest.find(ends).unwrap_or(rest.len()));
        let next = after.trim_start();
        if let Some(after) = next.strip_prefix('=') {
            if last == LastToken::Scheme && !comma && is_padding(after) {
                let end = next.find(|c| c != '=').unwrap_or(next.len());
                push(challenges, first, "token68", format!("{word}{}", &next[..end]));
                rest = &next[end..];
                last = LastToken::Else;
                continue;
            }
            let after = after.trim_start();
            let (value, bare) = match after.strip_prefix('"') {
                Some(quoted) => {
                    let (value, after) = unquote(quoted);
                    rest = after;
                    (value, false)
                }
                None => {
                    let end = after.find(|c: char| c == ',' || c.is_whitespace());
                    let (value, after) = after.split_at(end.unwrap_or(after.len()));
                    rest = after;
                    (value.to_owned(), true)
                }
            };
            last = match bare && word.eq_ignore_ascii_case("scope") {
                true => LastToken::BareScope,
                false => LastToken::Else,
            };
            push(challenges, first, word, value);
            continue;
        }

        rest = after;
        let alone = next.is_empty() || next.starts_with(',');
        if last == LastToken::Scheme && !comma && alone {
            push(challenges, first, "token68", word.to_owned());
            last = LastToken::Else;
        } else if last == LastToken::BareScope && comma && is_action(word) {
            // `scope=repository:app:pull,push`, without the quotes.
            if let Some(scope) = challenges.last_mut().and_then(|last| last.scope.last_mut()) {
                scope.push(',');
                scope.push_str(word);
            }
        } else if challenges.len() < MAX_CHALLENGES {
            challenges.push(Challenge::new(word));
            last = LastToken::Scheme;
        } else {
            return;
        }
    }
}

fn push(challenges: &mut [Challenge], first: usize, name: &str, value: String) {
    if let Some(challenge) = challenges.get_mut(first..).and_then(<[_]>::last_mut) {
        challenge.set(name, value);
    }
}

/// Whether the text after a first `=` shows that it ended a token68: more `=`, then nothing or a comma.
fn is_padding(after: &str) -> bool {
    let after = after.trim_start_matches('=').trim_start();
    after.is_empty() || after.starts_with(',')
}

fn is_action(word: &str) -> bool {
    matches!(word, "pull" | "push" | "delete" | "*")
}

/// Returns the text up to the closing quote, without its escapes, and the rest.
fn unquote(quoted: &str) -> (String, &str) {
    let mut text = String::new();
    let mut chars = quoted.chars();
    while let Some(c) = chars.next() {
        match c {
            '"' => break,
            '\\' => text.extend(chars.next()),
            c => text.push(c),
        }
    }
    (text, chars.as_str())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn one(header: &str) -> Challenge {
        let mut challenges = parse([header].into_iter());
        assert_eq!(challenges.len(), 1, "{header}: {challenges:?}");
        challenges.remove(0)
    }

    fn schemes(header: &str) -> Vec<Scheme> {
        parse([header].into_iter()).into_iter().map(|challenge| challenge.scheme).collect()
    }

    #[test]
    fn bearer_however_it_is_written() {
        for header in [
            r#"Bearer realm="https://a.example/t?x=1",service="r",scope="repository:a:pull,push""#,
            r#"bearer Realm = "https://a.example/t?x=1" , SERVICE="r", scope="repository:a:pull,push","#,
            r#"BEARER realm="https://a.example/t?x=1"service="r"scope="repository:a:pull,push""#,
            r#"Bearer realm="https://a.example/t?x=1" service="r" scope="repository:a:pull,push""#,
            r#"Bearer,realm="https://a.example/t?x=1",,service=r,scope="repository:a:pull,push"#,
            r#"Bearer realm=https://a.example/t?x=1,service=r,scope=repository:a:pull,push"#,
            r#"Bearer scope=repository:a:pull,push,realm=https://a.example/t?x=1,service=r"#,
            r#"Bearer realm="https:\/\/a.example/t?x=1",service="\r",scope="repository:a:pull,push",realm="https://evil.example""#,
        ] {
            let challenge = one(header);
            assert_eq!(challenge.scheme, Scheme::Bearer, "{header}");
            assert_eq!(challenge.realm.as_deref(), Some("https://a.example/t?x=1"), "{header}");
            assert_eq!(challenge.service.as_deref(), Some("r"), "{header}");
            assert_eq!(challenge.scope, ["repository:a:pull,push"], "{header}");
            assert_eq!(challenge.params, [], "{header}");
        }
    }

    #[test]
    fn several_challenges_in_one_header_and_in_several() {
        let both = r#"Negotiate, Basic realm="a, b=\"c\"", charset="UTF-8" Bearer realm="t", error="invalid_token""#;
        let challenges = parse([both, "Basic"].into_iter());
        assert_eq!(challenges.len(), 4, "{challenges:?}");
        assert_eq!(challenges[0].scheme, Scheme::Other("Negotiate".to_owned()));
        assert_eq!(challenges[1].scheme, Scheme::Basic);
        assert_eq!(challenges[1].realm.as_deref(), Some(r#"a, b="c""#));
        assert_eq!(challenges[1].params, [("charset".to_owned(), "UTF-8".to_owned())]);
        assert_eq!(challenges[2].scheme, Scheme::Bearer);
        assert_eq!(challenges[2].error.as_deref(), Some("invalid_token"));
        assert_eq!(challenges[3], Challenge::new("basic"));
    }

    #[test]
    fn scopes_are_all_kept() {
        let challenge = one(r#"Bearer scope="a:b:pull c:d:pull", scope="e:f:push""#);
        assert_eq!(challenge.scope, ["a:b:pull c:d:pull", "e:f:push"]);
    }

    #[test]
    fn a_token_after_a_scheme_is_no_parameter() {
        for (header, token) in [("Negotiate YII=", "YII="), ("NTLM TlRMTVNT==", "TlRMTVNT=="), ("X abc", "abc")] {
            let params = [("token68".to_owned(), token.to_owned())];
            assert_eq!(one(header).params, params, "{header}");
        }
        assert_eq!(
            schemes(r#"Negotiate YII=, Bearer realm="x""#),
            [Scheme::Other("Negotiate".to_owned()), Scheme::Bearer]
        );
        assert_eq!(schemes(r#"Negotiate Basic realm="x""#), [Scheme::Other("Negotiate".to_owned()), Scheme::Basic]);
    }

    #[test]
    fn parameters_of_no_scheme_are_dropped() {
        assert_eq!(parse([r#"realm="x", "y" ="#].into_iter()), []);
        let challenges = parse(["Basic", r#"realm="x""#].into_iter());
        assert_eq!(challenges, [Challenge::new("Basic")]);
        assert_eq!(parse(["", " , "].into_iter()), []);
    }

    #[test]
    fn what_is_read_is_bounded() {
        assert_eq!(schemes(&"a b ".repeat(1000)).len(), MAX_CHALLENGES);
        let many: String = (0..1000).map(|n| format!("p{n}=1,scope=s,")).collect();
        let challenge = one(&format!("Bearer {many}"));
        assert_eq!((challenge.params.len(), challenge.scope.len()), (MAX_CHALLENGES, MAX_CHALLENGES));
    }

    proptest! {
        #[test]
        fn never_panics(headers in prop::collection::vec("(Basic|realm|scope|[=\",\\\\ ]|\\PC){0,30}", 0..4)) {
            parse(headers.iter().map(String::as_str));
        }

        #[test]
        fn quoted_values_come_back(realm in "[ -~]{0,40}", scope in "[ -~]{0,40}") {
            let quote = |text: &str| text.replace('\\', r"\\").replace('"', "\\\"");
            let challenge = one(&format!("Bearer realm=\"{}\",scope=\"{}\"", quote(&realm), quote(&scope)));
            prop_assert_eq!(challenge.realm, Some(realm));
            prop_assert_eq!(challenge.scope, [scope]);
        }
    }
}
