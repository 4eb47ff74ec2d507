//! Versioned hashes of canonical values.
//!
//! Stores keep identities, and programs of other versions compare them. So an identity never depends on how a value is
//! displayed or written: fields have numbers, sets have one order, and default values are omitted, so that a field
//! added later changes no identity that does not use it. Golden tests pin the hashes (`config/identity.rs`); a change
//! of meaning raises the version in the domain.

use imgsync_oci::Digest;

/// The canonical encoding of a value, to hash or to embed in another.
#[derive(Debug, Clone, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Canonical(Vec<u8>);

impl Canonical {
    /// Returns whether no field is set.
    pub(crate) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Appends a field.
    pub fn field(mut self, number: u8, value: impl AsRef<[u8]>) -> Canonical {
        let value = value.as_ref();
        self.0.push(number);
        self.0.extend_from_slice(&(value.len() as u64).to_be_bytes());
        self.0.extend_from_slice(value);
        self
    }

    /// Appends a numeric field.
    pub fn number(self, number: u8, value: impl Into<i128>) -> Canonical {
        self.field(number, value.into().to_be_bytes())
    }

    /// Appends a field if it has a value.
    pub fn option(self, number: u8, value: Option<impl AsRef<[u8]>>) -> Canonical {
        match value {
            Some(value) => self.field(number, value),
            None => self,
        }
    }

    /// Appends an empty field if `holds` is true.
    pub fn flag(self, number: u8, holds: bool) -> Canonical {
        if holds { self.field(number, []) } else { self }
    }

    /// Appends a list field; omitted if empty.
    pub fn list<T: AsRef<[u8]>>(self, number: u8, items: impl IntoIterator<Item = T>) -> Canonical {
        let list = items.into_iter().fold(Canonical::default(), |list, item| list.field(0, item));
        if list.0.is_empty() { self } else { self.field(number, list) }
    }

    /// Appends a set field: order and repetition do not count. Omitted if empty.
    pub fn set<T: AsRef<[u8]>>(self, number: u8, items: impl IntoIterator<Item = T>) -> Canonical {
        let mut items: Vec<Vec<u8>> = items.into_iter().map(|item| item.as_ref().to_vec()).collect();
        items.sort_unstable();
        items.dedup();
        self.list(number, items)
    }

    /// Hashes the encoding. The domain names the hashed value and the version of its encoding.
    pub fn digest(self, domain: &str) -> Digest {
        Digest::sha256(&Canonical::default().field(0, domain).field(1, self).0)
    }
}

impl AsRef<[u8]> for Canonical {
    fn as_ref(&self) -> &[u8] {
        &self.0
    }
}

/// Normalizes a template: trims the text and the insides of its braces. A text with quotes, which may contain braces,
/// is only trimmed.
pub fn canonical_template(text: &str) -> String {
    let text = text.trim();
    if text.contains(['"', '\'']) {
        return text.to_owned();
    }
    let (mut canonical, mut rest) = (String::new(), text);
    while let Some((before, inside, after, braces)) = next_braces(rest) {
        canonical.push_str(before);
        canonical.push_str(braces.0);
        canonical.push_str(inside.trim());
        canonical.push_str(braces.1);
        rest = after;
    }
    canonical + rest
}

type Braces = (&'static str, &'static str);

/// Splits at the next pair of braces: the text before, inside and after, and the braces.
fn next_braces(text: &str) -> Option<(&str, &str, &str, Braces)> {
    let pairs: [Braces; 2] = [("{{", "}}"), ("{%", "%}")];
    let (at, braces) = pairs.into_iter().filter_map(|pair| Some((text.find(pair.0)?, pair))).min()?;
    let (before, rest) = (&text[..at], &text[at + 2..]);
    let end = rest.find(braces.1)?;
    Some((before, &rest[..end], &rest[end + 2..], braces))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_are_not_mixed_up_with_their_neighbours() {
        let of = |one: &str, two: &str| Canonical::default().field(1, one).field(2, two).digest("a test 1");
        assert_ne!(of("ab", "c"), of("a", "bc"));
        assert_ne!(of("", "a"), of("a", ""));
        let list = |items: &[&str]| Canonical::default().list(1, items).digest("a test 1");
        assert_ne!(list(&["ab"]), list(&["a", "b"]));
        assert_ne!(list(&[]), list(&[""]));
        assert_ne!(list(&["a", "b"]), list(&["b", "a"]));
        assert_ne!(Canonical::default().digest("a test 1"), Canonical::default().digest("a test 2"));
        let set = |items: &[&str]| Canonical::default().set(1, items).digest("a test 1");
        assert_eq!(set(&["a", "b", "a"]), set(&["b", "a"]));
        assert_ne!(set(&["a", "b"]), set(&["a"]));
    }

    #[test]
    fn whitespace_within_braces_does_not_count() {
        assert_eq!(canonical_template(" {{tag}}-{{ date }}\n"), "{{tag}}-{{date}}");
        assert_eq!(canonical_template("{% if a %}x {{  b}}{%endif%} y"), "{%if a%}x {{b}}{%endif%} y");
        assert_eq!(canonical_template("{{ a | replace('}} ', '') }}"), "{{ a | replace('}} ', '') }}");
        assert_eq!(canonical_template("{{ a"), "{{ a");
    }
}
