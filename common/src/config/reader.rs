//! Reads values from the tree. Each function reports problems and returns `None`, so that its caller can continue.

use std::cell::{Cell, RefCell};
use std::fmt::Display;
use std::ops::{Range, RangeInclusive};
use std::str::FromStr;
use std::time::Duration;

use jiff::{Span, SpanRelativeTo};
use url::Url;

use super::errors::{Found, Problems};
use super::keys::{ADDRESS, Kind, SECTIONS, Section, may_hold_secret};
use super::url::{SecretUrl, encode_variables, parse};
use super::yaml::{Entry, Node, Scalar, Value};
use crate::secret::Secret;

#[derive(Default)]
pub(super) struct Reader {
    pub(super) found: RefCell<Problems>,
    /// Byte ranges of secrets, which are not shown.
    pub(super) secrets: RefCell<Vec<Range<usize>>>,
    /// Whether the file itself contains a secret, rather than a variable.
    pub(super) inline_secrets: Cell<bool>,
}

/// A mapping whose keys were checked against its section.
pub(super) struct Fields<'n> {
    pub(super) at: Range<usize>,
    section: &'static Section,
    entries: &'n [Entry],
}

impl<'n> Fields<'n> {
    pub(super) fn get(&self, name: &str) -> Option<&'n Node> {
        debug_assert!(self.section.keys.iter().any(|key| key.name == name), "{name} is not in the table");
        self.entry(name).map(|entry| &entry.value)
    }

    pub(super) fn entry(&self, name: &str) -> Option<&'n Entry> {
        self.entries.iter().find(|entry| entry.key == name)
    }
}

impl Reader {
    pub(super) fn report(&self, at: &Range<usize>, message: impl Into<String>) {
        self.found.borrow_mut().push(Found { at: at.clone(), message: message.into(), hint: None });
    }

    pub(super) fn report_with(&self, at: &Range<usize>, message: impl Into<String>, hint: impl Into<String>) {
        self.found.borrow_mut().push(Found { at: at.clone(), message: message.into(), hint: Some(hint.into()) });
    }

    /// Reports an error about a value, without the content of its variables.
    pub(super) fn refuse(&self, node: &Node, error: impl Display, hint: Option<String>) {
        let (message, hint) = match &node.value {
            Value::Scalar(scalar) if scalar.filled => match scalar.without_value(&error.to_string()) {
                Some(message) => (message, hint.and_then(|hint| scalar.without_value(&hint))),
                None => (format!("`{}` cannot be used here once the variables are filled in", scalar.written), None),
            },
            _ => (error.to_string(), hint),
        };
        self.found.borrow_mut().push(Found { at: node.at.clone(), message, hint });
    }

    /// Returns the mapping, and reports unknown keys.
    pub(super) fn fields<'n>(&self, node: &'n Node, section: &'static Section) -> Option<Fields<'n>> {
        let entries: &[Entry] = match &node.value {
            Value::Map(entries) => entries,
            // All of it is commented out.
            Value::Null => &[],
            Value::Broken => return None,
            _ => {
                self.wrong(node, &format!("{} is a mapping of {}", section.title, section.names()));
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
            let hint = format!("{} takes {}", section.title, section.names());
            if may_hold_secret(&entry.key) {
                self.hide(&entry.value);
            }
            if let Some(meant) = section.suggest(&entry.key) {
                if section.keys.iter().any(|key| key.name == meant && matches!(key.kind, Kind::Secret)) {
                    self.note_secret(&entry.value);
                } else if may_hold_secret(meant) {
                    self.hide(&entry.value);
                }
                self.report(&entry.key_at, format!("unknown key `{}`, did you mean `{meant}`?", entry.key));
            } else if let Some(title) = elsewhere() {
                let message = format!("`{}` is no key of {}; it belongs to {title}", entry.key, section.title);
                self.report_with(&entry.key_at, message, hint);
            } else {
                self.report_with(&entry.key_at, format!("unknown key `{}`", entry.key), hint);
            }
        }
        Some(Fields { at: node.at.clone(), section, entries })
    }

    fn wrong(&self, node: &Node, wanted: &str) {
        self.report(&node.at, format!("{wanted}, and this is {}", node.kind()));
    }

    pub(super) fn scalar<'n>(&self, node: &'n Node) -> Option<&'n Scalar> {
        match &node.value {
            Value::Scalar(scalar) => Some(scalar),
            Value::Null => {
                self.report(&node.at, "a value is missing here");
                None
            }
            Value::Broken => None,
            _ => {
                self.wrong(node, "a single value is wanted");
                None
            }
        }
    }

    /// Returns a text that is not empty.
    pub(super) fn text<'n>(&self, node: &'n Node) -> Option<&'n str> {
        let scalar = self.scalar(node)?;
        if scalar.text.trim().is_empty() {
            self.refuse(
                node,
                if scalar.filled { "this is empty once the variables are filled in" } else { "this is empty" },
                None,
            );
            return None;
        }
        Some(&scalar.text)
    }

    pub(super) fn parse<T: FromStr<Err: Display>>(&self, node: &Node) -> Option<T> {
        self.text(node)?.parse().map_err(|error: T::Err| self.refuse(node, error, None)).ok()
    }

    pub(super) fn flag(&self, node: &Node) -> Option<bool> {
        let text = self.text(node)?;
        match text.to_ascii_lowercase().as_str() {
            "true" | "on" | "yes" => Some(true),
            "false" | "off" | "no" => Some(false),
            _ => {
                self.refuse(node, format!("`{text}` is neither true nor false"), None);
                None
            }
        }
    }

    pub(super) fn whole(&self, node: &Node, range: RangeInclusive<usize>) -> Option<usize> {
        let text = self.text(node)?;
        match text.parse::<usize>() {
            Ok(number) if range.contains(&number) => Some(number),
            _ => {
                let (from, to) = (range.start(), range.end());
                let wanted = if *to == usize::MAX { format!("from {from}") } else { format!("from {from} to {to}") };
                self.refuse(node, format!("`{text}` is not a whole number {wanted}"), None);
                None
            }
        }
    }

    pub(super) fn positive(&self, node: &Node) -> Option<f64> {
        let text = self.text(node)?;
        match text.parse::<f64>() {
            Ok(number) if number.is_finite() && number > 0.0 => Some(number),
            _ => {
                self.refuse(node, format!("`{text}` is not a number above 0"), None);
                None
            }
        }
    }

    pub(super) fn size(&self, node: &Node) -> Option<u64> {
        let text = self.text(node)?;
        match text.parse::<bytesize::ByteSize>() {
            Ok(size) if size.as_u64() > 0 => Some(size.as_u64()),
            _ => {
                self.refuse(node, format!("`{text}` is not a size such as 10MiB"), None);
                None
            }
        }
    }

    /// Reads `1h30m`, `7d`, `2w`; a day has 24 hours.
    pub(super) fn duration(&self, node: &Node) -> Option<Duration> {
        let text = self.text(node)?;
        let duration = text
            .parse::<Span>()
            .ok()
            .and_then(|span| span.to_duration(SpanRelativeTo::days_are_24_hours()).ok())
            .and_then(|duration| Duration::try_from(duration).ok())
            .filter(|duration| !duration.is_zero());
        if duration.is_none() {
            self.refuse(node, format!("`{text}` is not a time such as 90s, 1h30m or 7d"), None);
        }
        duration
    }

    /// Reads a URL without user and password.
    pub(super) fn url(&self, node: &Node, schemes: &[&str]) -> Option<Url> {
        let url = self.any_url(node, schemes)?;
        if !url.username().is_empty() || url.password().is_some() {
            self.hide(node);
            self.report_with(
                &node.at,
                "this URL holds a user or a password",
                "write `username` and `password` instead",
            );
            return None;
        }
        if url.query().is_some() || url.fragment().is_some() {
            self.hide(node);
            self.report(&node.at, "this URL has a `?` or a `#`; only scheme, host, port and path are taken");
            return None;
        }
        Some(url)
    }

    /// Reads a URL that may contain a password, or a mapping of a URL with `username` and `password`.
    pub(super) fn address(&self, node: &Node, schemes: &[&str], is_user_wanted: bool) -> Option<SecretUrl> {
        if !matches!(node.value, Value::Map(_)) {
            return self.secret_url(node, schemes);
        }
        let fields = self.fields(node, &ADDRESS)?;
        let username = fields.get("username").map(|node| self.username(node));
        let password = fields.get("password").map(|node| self.secret(node));
        let Some(named) = fields.get("url") else {
            self.report(&fields.at, "`url` is missing: where is it?");
            return None;
        };
        let url = self.secret_url(named, schemes)?;
        if username.is_none() && password.is_none() {
            return Some(url);
        }
        if url.has_login() {
            self.hide(named);
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
    pub(super) fn username(&self, node: &Node) -> Option<String> {
        self.hide(node);
        self.text(node).map(str::to_owned)
    }

    fn secret_url(&self, node: &Node, schemes: &[&str]) -> Option<SecretUrl> {
        self.hide(node);
        let url = SecretUrl::new(self.any_url(node, schemes)?);
        // As written: `amqp://user:${PASSWORD}@host` contains no secret, `amqp://user:secret@${HOST}` does.
        if url.login().1
            && let Value::Scalar(scalar) = &node.value
            && let Some((_, rest)) = scalar.written.split_once("://")
            && let Some((_, password)) = rest.rsplit_once('@').and_then(|(user, _)| user.split_once(':'))
            && (!password.starts_with("${") || password.contains(":-"))
        {
            self.inline_secrets.set(true);
        }
        Some(url)
    }

    fn any_url(&self, node: &Node, schemes: &[&str]) -> Option<Url> {
        self.text(node)?;
        let Value::Scalar(scalar) = &node.value else { return None };
        let text = encode_variables(&scalar.text, &scalar.variables);
        match parse(&text, schemes) {
            Ok(url) => Some(url),
            // A rejected URL is not shown: it could contain a password.
            Err(error) => {
                if text.contains('@') {
                    self.hide(node);
                }
                let hint = error.hint().map(str::to_owned);
                self.found.borrow_mut().push(Found { at: node.at.clone(), message: error.to_string(), hint });
                None
            }
        }
    }

    /// Reads a URL that is a secret as a whole.
    pub(super) fn hidden_url(&self, node: &Node, schemes: &[&str]) -> Option<Url> {
        self.secret(node)?;
        self.any_url(node, schemes)
    }

    pub(super) fn secret(&self, node: &Node) -> Option<Secret> {
        self.note_secret(node);
        let scalar = self.scalar(node)?;
        if scalar.text.is_empty() {
            self.report(&node.at, "this secret is empty");
            return None;
        }
        Some(Secret::new(scalar.text.clone()))
    }

    /// Marks the value as a secret: not to be shown, and better kept in a variable.
    pub(super) fn note_secret(&self, node: &Node) {
        self.hide(node);
        self.note_inline(node);
    }

    fn note_inline(&self, node: &Node) {
        match &node.value {
            // Text around a variable is a word such as Bearer, or a part of a URL.
            Value::Scalar(scalar) if !scalar.is_variable() && !scalar.has_variable() => self.inline_secrets.set(true),
            Value::List(items) => items.iter().for_each(|item| self.note_inline(item)),
            Value::Map(entries) => entries.iter().for_each(|entry| self.note_inline(&entry.value)),
            Value::Scalar(_) | Value::Null | Value::Broken => {}
        }
    }

    /// Marks the value as not to be shown.
    pub(super) fn hide(&self, node: &Node) {
        match &node.value {
            // A variable's name is no secret, and helps to find the problem.
            Value::Scalar(scalar) if scalar.is_variable() => {}
            Value::Scalar(_) => self.secrets.borrow_mut().push(node.at.clone()),
            Value::List(items) => items.iter().for_each(|item| self.hide(item)),
            Value::Map(entries) => entries.iter().for_each(|entry| self.hide(&entry.value)),
            Value::Null | Value::Broken => {}
        }
    }

    /// Returns the items of a list.
    pub(super) fn list<'n>(&self, node: &'n Node) -> &'n [Node] {
        match &node.value {
            Value::List(items) => items,
            Value::Null | Value::Broken => &[],
            _ => {
                self.wrong(node, "a list is wanted");
                &[]
            }
        }
    }

    /// Returns one value or a list of them, which must not be empty.
    pub(super) fn several<'n>(&self, node: &'n Node) -> &'n [Node] {
        match &node.value {
            Value::List(items) if items.is_empty() => {
                self.report(&node.at, "this list is empty; leave the key out instead");
                &[]
            }
            Value::List(items) => items,
            _ => std::slice::from_ref(node),
        }
    }

    /// Parses each item of a list (or the one value), and skips those that fail.
    pub(super) fn parse_several<T: FromStr<Err: Display>>(&self, node: &Node) -> Vec<T> {
        self.several(node).iter().filter_map(|item| self.parse(item)).collect()
    }
}
