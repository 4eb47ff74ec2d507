//! Reads values from the tree. Each function reports problems and returns `None`, so that its caller can continue.

use std::cell::{Cell, RefCell};
use std::fmt::Display;
use std::ops::{Range, RangeInclusive};
use std::str::FromStr;
use std::time::Duration;

use jiff::{Span, SpanRelativeTo};
use url::Url;

use super::errors::{PendingProblem, Problems};
use super::schema_table::{ADDRESS, ConfigSection, SECTIONS, ValueKind, may_hold_secret};
use super::url::encode_variables;
use super::yaml::{YamlEntry, YamlNode, YamlScalar, YamlValue};
use imgsync_oci::secret::Secret;
use imgsync_oci::secret_url::{SecretUrl, UrlError, parse};
use imgsync_oci::store_url::StoreUrl;

#[derive(Default)]
pub(super) struct ValueReader {
    pub(super) problems: RefCell<Problems>,
    /// Byte ranges of secrets, which are not shown.
    pub(super) secret_spans: RefCell<Vec<Range<usize>>>,
    /// Whether the file itself contains a secret, rather than a variable.
    pub(super) has_inline_secrets: Cell<bool>,
}

/// A mapping whose keys were checked against its section.
pub(super) struct SectionFields<'n> {
    pub(super) at: Range<usize>,
    section: &'static ConfigSection,
    entries: &'n [YamlEntry],
}

impl<'n> SectionFields<'n> {
    pub(super) fn get(&self, name: &str) -> Option<&'n YamlNode> {
        debug_assert!(self.section.keys.iter().any(|key| key.name == name), "{name} is not in the table");
        self.entry(name).map(|entry| &entry.value)
    }

    /// Whether an unknown key was probably meant to be this one.
    pub(super) fn has_misspelt(&self, name: &str) -> bool {
        let is_known = |key: &str| self.section.keys.iter().any(|known| known.name == key);
        self.entries.iter().any(|entry| !is_known(&entry.key) && self.section.suggest(&entry.key) == Some(name))
    }

    pub(super) fn entry(&self, name: &str) -> Option<&'n YamlEntry> {
        self.entries.iter().find(|entry| entry.key == name)
    }
}

/// A URL that may contain user and password.
pub(super) trait AddressUrl: Sized {
    fn parse(text: &str, schemes: &[&str]) -> Result<Self, UrlError>;
    /// Returns whether the URL contains a user, and whether a password.
    fn login_parts(&self) -> (bool, bool);
    fn with_login(self, username: Option<&str>, password: Option<&Secret>) -> Self;
}

impl AddressUrl for SecretUrl {
    fn parse(text: &str, schemes: &[&str]) -> Result<SecretUrl, UrlError> {
        SecretUrl::parse(text, schemes)
    }

    fn login_parts(&self) -> (bool, bool) {
        SecretUrl::login_parts(self)
    }

    fn with_login(self, username: Option<&str>, password: Option<&Secret>) -> SecretUrl {
        SecretUrl::with_login(self, username, password)
    }
}

impl AddressUrl for StoreUrl {
    fn parse(text: &str, schemes: &[&str]) -> Result<StoreUrl, UrlError> {
        StoreUrl::parse(text, schemes)
    }

    fn login_parts(&self) -> (bool, bool) {
        StoreUrl::login_parts(self)
    }

    fn with_login(self, username: Option<&str>, password: Option<&Secret>) -> StoreUrl {
        StoreUrl::with_login(self, username, password)
    }
}

impl ValueReader {
    pub(super) fn report(&self, at: &Range<usize>, message: impl Into<String>) {
        self.problems.borrow_mut().push(PendingProblem { at: at.clone(), message: message.into(), hint: None });
    }

    pub(super) fn report_with_hint(&self, at: &Range<usize>, message: impl Into<String>, hint: impl Into<String>) {
        self.problems.borrow_mut().push(PendingProblem {
            at: at.clone(),
            message: message.into(),
            hint: Some(hint.into()),
        });
    }

    /// Reports an error about a value, without the content of its variables.
    pub(super) fn report_value(&self, node: &YamlNode, error: impl Display, hint: Option<String>) {
        let (message, hint) = match &node.value {
            YamlValue::Scalar(scalar) if scalar.is_expanded => match scalar.redact(&error.to_string()) {
                Some(message) => (message, hint.and_then(|hint| scalar.redact(&hint))),
                None => (format!("`{}` cannot be used here once the variables are filled in", scalar.raw), None),
            },
            _ => (error.to_string(), hint),
        };
        self.problems.borrow_mut().push(PendingProblem { at: node.at.clone(), message, hint });
    }

    /// Returns the mapping, and reports unknown keys.
    pub(super) fn fields<'n>(&self, node: &'n YamlNode, section: &'static ConfigSection) -> Option<SectionFields<'n>> {
        let entries: &[YamlEntry] = match &node.value {
            YamlValue::Map(entries) => entries,
            // All of it is commented out.
            YamlValue::Null => &[],
            YamlValue::Invalid => return None,
            _ => {
                self.report_wrong_type(node, &format!("{} is a mapping of {}", section.title, section.key_names()));
                return None;
            }
        };
        for entry in entries {
            if section.keys.iter().any(|key| key.name == entry.key) {
                continue;
            }
            let elsewhere = || {
                let key = entry.key.as_str();
                SECTIONS.iter().find(|other| other.keys.iter().any(|known| known.name == key)).map(|other| other.title)
            };
            let hint = format!("{} takes {}", section.title, section.key_names());
            if may_hold_secret(&entry.key) {
                self.mark_hidden(&entry.value);
            }
            if let Some(meant) = section.suggest(&entry.key) {
                if section.keys.iter().any(|key| key.name == meant && matches!(key.kind, ValueKind::Secret)) {
                    self.mark_secret(&entry.value);
                } else if may_hold_secret(meant) {
                    self.mark_hidden(&entry.value);
                }
                self.report(&entry.key_at, format!("unknown key `{}`, did you mean `{meant}`?", entry.key));
            } else if let Some(title) = elsewhere() {
                let message = format!("`{}` is not a key of {}; it belongs to {title}", entry.key, section.title);
                self.report_with_hint(&entry.key_at, message, hint);
            } else {
                self.report_with_hint(&entry.key_at, format!("unknown key `{}`", entry.key), hint);
            }
        }
        Some(SectionFields { at: node.at.clone(), section, entries })
    }

    fn report_wrong_type(&self, node: &YamlNode, wanted: &str) {
        self.report(&node.at, format!("{wanted}, and this is {}", node.type_name()));
    }

    pub(super) fn scalar<'n>(&self, node: &'n YamlNode) -> Option<&'n YamlScalar> {
        match &node.value {
            YamlValue::Scalar(scalar) => Some(scalar),
            YamlValue::Null => {
                self.report(&node.at, "a value is missing here");
                None
            }
            YamlValue::Invalid => None,
            _ => {
                self.report_wrong_type(node, "expected a single value");
                None
            }
        }
    }

    /// Returns a text that is not empty.
    pub(super) fn text<'n>(&self, node: &'n YamlNode) -> Option<&'n str> {
        let scalar = self.scalar(node)?;
        if scalar.text.trim().is_empty() {
            self.report_value(
                node,
                if scalar.is_expanded { "this is empty once the variables are filled in" } else { "this is empty" },
                None,
            );
            return None;
        }
        Some(&scalar.text)
    }

    pub(super) fn parse<T: FromStr<Err: Display>>(&self, node: &YamlNode) -> Option<T> {
        self.text(node)?.parse().map_err(|error: T::Err| self.report_value(node, error, None)).ok()
    }

    pub(super) fn flag(&self, node: &YamlNode) -> Option<bool> {
        self.parse_flag(node, |text| format!("`{text}` is neither true nor false"))
    }

    /// Reads a flag that is documented as on or off. `name` is its key.
    pub(super) fn on_off(&self, node: &YamlNode, name: &str) -> Option<bool> {
        self.parse_flag(node, |text| format!("`{name}` is `on` or `off`, not `{text}`"))
    }

    /// Reads a flag in any of its spellings, and reports a text that is none with these words.
    fn parse_flag(&self, node: &YamlNode, complaint: impl FnOnce(&str) -> String) -> Option<bool> {
        let text = self.text(node)?;
        match text.to_ascii_lowercase().as_str() {
            "true" | "on" | "yes" => Some(true),
            "false" | "off" | "no" => Some(false),
            _ => {
                self.report_value(node, complaint(text), None);
                None
            }
        }
    }

    pub(super) fn integer(&self, node: &YamlNode, range: RangeInclusive<usize>) -> Option<usize> {
        let text = self.text(node)?;
        match text.parse::<usize>() {
            Ok(number) if range.contains(&number) => Some(number),
            _ => {
                let (from, to) = (range.start(), range.end());
                let wanted = if *to == usize::MAX { format!("from {from}") } else { format!("from {from} to {to}") };
                self.report_value(node, format!("`{text}` is not a whole number {wanted}"), None);
                None
            }
        }
    }

    pub(super) fn positive_number(&self, node: &YamlNode) -> Option<f64> {
        let text = self.text(node)?;
        match text.parse::<f64>() {
            Ok(number) if number.is_finite() && number > 0.0 => Some(number),
            _ => {
                self.report_value(node, format!("`{text}` is not a number above 0"), None);
                None
            }
        }
    }

    pub(super) fn size(&self, node: &YamlNode) -> Option<u64> {
        let text = self.text(node)?;
        match text.parse::<bytesize::ByteSize>() {
            Ok(size) if size.as_u64() > 0 => Some(size.as_u64()),
            _ => {
                self.report_value(node, format!("`{text}` is not a size such as 10MiB"), None);
                None
            }
        }
    }

    /// Reads `1h30m`, `7d`, `2w`; a day has 24 hours.
    pub(super) fn duration(&self, node: &YamlNode) -> Option<Duration> {
        let text = self.text(node)?;
        let duration = text
            .parse::<Span>()
            .ok()
            .and_then(|span| span.to_duration(SpanRelativeTo::days_are_24_hours()).ok())
            .and_then(|duration| Duration::try_from(duration).ok())
            .filter(|duration| !duration.is_zero());
        if duration.is_none() {
            self.report_value(node, format!("`{text}` is not a time such as 90s, 1h30m or 7d"), None);
        }
        duration
    }

    /// Reads a URL without user and password.
    pub(super) fn url(&self, node: &YamlNode, schemes: &[&str]) -> Option<Url> {
        let url = self.any_url(node, schemes)?;
        if !url.username().is_empty() || url.password().is_some() {
            self.mark_hidden(node);
            self.report_with_hint(
                &node.at,
                "this URL holds a user or a password",
                "write `username` and `password` instead",
            );
            return None;
        }
        if url.query().is_some() || url.fragment().is_some() {
            self.mark_hidden(node);
            self.report(&node.at, "this URL has a `?` or a `#`; only scheme, host, port and path are allowed");
            return None;
        }
        Some(url)
    }

    /// Reads a URL that may contain a password, or a mapping of a URL with `username` and `password`.
    pub(super) fn address<A: AddressUrl>(&self, node: &YamlNode, schemes: &[&str], is_user_wanted: bool) -> Option<A> {
        if !matches!(node.value, YamlValue::Map(_)) {
            return self.secret_url(node, schemes);
        }
        let fields = self.fields(node, &ADDRESS)?;
        let username = fields.get("username").map(|node| self.username(node));
        let password = fields.get("password").map(|node| self.secret(node));
        let Some(named) = fields.get("url") else {
            self.report(&fields.at, "`url` is missing");
            return None;
        };
        let url: A = self.secret_url(named, schemes)?;
        if username.is_none() && password.is_none() {
            return Some(url);
        }
        if url.login_parts() != (false, false) {
            self.mark_hidden(named);
            self.report(
                &named.at,
                "this URL holds a user or a password, and `username` or `password` are written as well",
            );
            return None;
        }
        if is_user_wanted && username.is_none() {
            self.report(&fields.at, "a `password` needs a `username`");
            return None;
        }
        if password.is_none() {
            self.report(&fields.at, "a `username` needs a `password` here");
            return None;
        }
        let username = match username {
            Some(username) => Some(username?),
            None => None,
        };
        let password = password??;
        Some(url.with_login(username.as_deref(), Some(&password)))
    }

    /// Reads a user name. It is not shown: it stands beside a password, and the two are easily swapped.
    pub(super) fn username(&self, node: &YamlNode) -> Option<String> {
        self.mark_hidden(node);
        self.text(node).map(str::to_owned)
    }

    fn secret_url<A: AddressUrl>(&self, node: &YamlNode, schemes: &[&str]) -> Option<A> {
        self.mark_hidden(node);
        let url = self.parse_url(node, |text| A::parse(text, schemes))?;
        // As written: `amqp://user:${PASSWORD}@host` contains no secret, `amqp://user:secret@${HOST}` does.
        if url.login_parts().1
            && let YamlValue::Scalar(scalar) = &node.value
            && let Some((_, rest)) = scalar.raw.split_once("://")
            && let Some((_, password)) = rest.rsplit_once('@').and_then(|(user, _)| user.split_once(':'))
            && (!password.starts_with("${") || password.contains(":-"))
        {
            self.has_inline_secrets.set(true);
        }
        Some(url)
    }

    fn any_url(&self, node: &YamlNode, schemes: &[&str]) -> Option<Url> {
        self.parse_url(node, |text| parse(text, schemes))
    }

    fn parse_url<U>(&self, node: &YamlNode, parse: impl Fn(&str) -> Result<U, UrlError>) -> Option<U> {
        self.text(node)?;
        let YamlValue::Scalar(scalar) = &node.value else { return None };
        let text = encode_variables(&scalar.text, &scalar.variables);
        match parse(&text) {
            Ok(url) => Some(url),
            // A rejected URL is not shown: it could contain a password.
            Err(error) => {
                if text.contains('@') {
                    self.mark_hidden(node);
                }
                let hint = error.hint().map(str::to_owned);
                self.problems.borrow_mut().push(PendingProblem {
                    at: node.at.clone(),
                    message: error.to_string(),
                    hint,
                });
                None
            }
        }
    }

    /// Reads a URL that is a secret as a whole.
    pub(super) fn hidden_url(&self, node: &YamlNode, schemes: &[&str]) -> Option<Url> {
        self.secret(node)?;
        self.any_url(node, schemes)
    }

    pub(super) fn secret(&self, node: &YamlNode) -> Option<Secret> {
        self.mark_secret(node);
        let scalar = self.scalar(node)?;
        if scalar.text.is_empty() {
            self.report(&node.at, "this secret is empty");
            return None;
        }
        Some(Secret::new(scalar.text.clone()))
    }

    /// Marks the value as a secret: not to be shown, and better kept in a variable.
    pub(super) fn mark_secret(&self, node: &YamlNode) {
        self.mark_hidden(node);
        self.mark_inline_secrets(node);
    }

    fn mark_inline_secrets(&self, node: &YamlNode) {
        match &node.value {
            // Text around a variable is a word such as Bearer, or a part of a URL.
            YamlValue::Scalar(scalar) if !scalar.is_variable() && !scalar.has_variable() => {
                self.has_inline_secrets.set(true)
            }
            YamlValue::List(items) => items.iter().for_each(|item| self.mark_inline_secrets(item)),
            YamlValue::Map(entries) => entries.iter().for_each(|entry| self.mark_inline_secrets(&entry.value)),
            YamlValue::Scalar(_) | YamlValue::Null | YamlValue::Invalid => {}
        }
    }

    /// Marks the value as not to be shown.
    pub(super) fn mark_hidden(&self, node: &YamlNode) {
        match &node.value {
            // A variable's name is no secret, and helps to find the problem.
            YamlValue::Scalar(scalar) if scalar.is_variable() => {}
            YamlValue::Scalar(_) => self.secret_spans.borrow_mut().push(node.at.clone()),
            YamlValue::List(items) => items.iter().for_each(|item| self.mark_hidden(item)),
            YamlValue::Map(entries) => entries.iter().for_each(|entry| self.mark_hidden(&entry.value)),
            YamlValue::Null | YamlValue::Invalid => {}
        }
    }

    /// Returns the items of a list.
    pub(super) fn list<'n>(&self, node: &'n YamlNode) -> &'n [YamlNode] {
        match &node.value {
            YamlValue::List(items) => items,
            YamlValue::Null | YamlValue::Invalid => &[],
            _ => {
                self.report_wrong_type(node, "expected a list");
                &[]
            }
        }
    }

    /// Returns one value or a list of them, which must not be empty.
    pub(super) fn one_or_many<'n>(&self, node: &'n YamlNode) -> &'n [YamlNode] {
        match &node.value {
            YamlValue::List(items) if items.is_empty() => {
                self.report(&node.at, "this list is empty; omit the key instead");
                &[]
            }
            YamlValue::List(items) => items,
            _ => std::slice::from_ref(node),
        }
    }

    /// Parses each item of a list (or the one value), and skips those that fail.
    pub(super) fn parse_one_or_many<T: FromStr<Err: Display>>(&self, node: &YamlNode) -> Vec<T> {
        self.one_or_many(node).iter().filter_map(|item| self.parse(item)).collect()
    }
}
