//! Scalars and lists of views.

use std::fmt::Display;

use serde::Serialize;
use serde_saphyr::FlowSeq;

/// A text in a file of configuration. Reading it back gives the same text.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct YamlText(String);

impl YamlText {
    /// Creates a literal: dollars that would begin a variable are doubled.
    pub fn new(value: impl Display) -> YamlText {
        let text = value.to_string();
        let is_special = text.contains("$$") || text.contains("${");
        YamlText(if is_special { text.replace('$', "$$") } else { text })
    }

    /// Creates a reference to an environment variable.
    pub fn variable(name: &str) -> YamlText {
        YamlText(format!("${{{name}}}"))
    }
}

/// A number; a whole one is written without a fraction.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
#[serde(untagged)]
pub enum YamlNumber {
    /// A whole number.
    Whole(u64),
    /// Any other number.
    Fraction(f64),
}

impl From<f64> for YamlNumber {
    fn from(number: f64) -> Self {
        // Display writes no exponent, and no fraction of a whole number.
        number.to_string().parse().map_or(YamlNumber::Fraction(number), YamlNumber::Whole)
    }
}

/// A list of texts on one line: `[a, b]`.
pub type YamlList = FlowSeq<Vec<YamlText>>;

/// Creates a list of literals.
pub fn yaml_list<T: Display>(items: impl IntoIterator<Item = T>) -> YamlList {
    FlowSeq(items.into_iter().map(YamlText::new).collect())
}

/// Returns whether a list is empty, for `skip_serializing_if`.
pub fn is_empty_list(list: &YamlList) -> bool {
    list.0.is_empty()
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;
    use serde_saphyr::FlowMap;

    use super::super::to_yaml;
    use super::*;
    use crate::yaml::{YamlNode, YamlValue, parse};

    fn read(node: &YamlNode) -> Vec<String> {
        match &node.value {
            YamlValue::Scalar(scalar) => vec![scalar.text.clone()],
            YamlValue::List(items) => items.iter().flat_map(read).collect(),
            YamlValue::Map(entries) => entries.iter().flat_map(|entry| read(&entry.value)).collect(),
            YamlValue::Null | YamlValue::Invalid => Vec::new(),
        }
    }

    #[test]
    fn scalars_are_plain_where_they_are_read_back_as_text() {
        let texts =
            ["gcr.io/a/b", "http://h:5000/", "2025-01-01", "off", "1.20", "true", "null", "gcr.io/**", "*-rc*", ""];
        let written = "- gcr.io/a/b\n- http://h:5000/\n- 2025-01-01\n- off\n- \"1.20\"\n- \"true\"\n- \"null\"\n\
                       - gcr.io/**\n- \"*-rc*\"\n- \"\"\n";
        assert_eq!(to_yaml(&texts.map(YamlText::new)), written);
        assert_eq!(to_yaml(&yaml_list(["a: b", "r.io:5000", "a,b"])), "[\"a: b\", r.io:5000, \"a,b\"]\n");
        assert_eq!(to_yaml(&[YamlText::variable("A"), YamlText::new("${A}")]), "- ${A}\n- $${A}\n");
        assert_eq!(to_yaml(&[20.0, 7.5, 1e300].map(YamlNumber::from)), "- 20\n- 7.5\n- 1.0e+300\n");
    }

    proptest! {
        #[test]
        fn every_text_is_read_back(text in "([a-z0-9.]|[$]|[{}\\[\\],:#&*!|>'\"%@`~?-]|\\s|\\PC|\\p{Cc}){0,12}") {
            let literal = YamlText::new(&text);
            let flow = FlowMap(BTreeMap::from([("a", literal.clone())]));
            for written in [
                to_yaml(&BTreeMap::from([("a", literal.clone())])),
                to_yaml(&[literal]),
                to_yaml(&BTreeMap::from([("a", yaml_list([&text, &text]))])),
                to_yaml(&flow),
            ] {
                let parsed = parse(&written, &|_| None);
                let texts = read(&parsed.root.unwrap());
                prop_assert!(!texts.is_empty() && texts.iter().all(|read| *read == text), "{written}: {texts:?}");
            }
        }
    }
}
