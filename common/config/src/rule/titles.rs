//! `name:` of a rule, and titles of rules without one.

use std::collections::BTreeMap;

use super::super::reader::ValueReader;
use super::super::yaml::YamlNode;
use super::Rule;

/// Maximum length of a rule's name in characters: it appears in log lines, metric labels and table columns.
pub(crate) const MAX_NAME_CHARS: usize = 64;

/// Values of `naming`, which names cannot have: the user meant `naming`.
const NAMING_STYLES: [&str; 5] = ["flat", "keep", "basename", "full", "original"];

/// Reads a name that is valid as it is in a URL, a label and a command line.
pub(super) fn read(reader: &ValueReader, node: &YamlNode) -> Option<String> {
    let text = reader.text(node)?;
    if NAMING_STYLES.contains(&text) || text.contains("{{") || text.contains("{%") {
        let hint = format!("write `naming: {text}`");
        reader.report_value(node, format!("`name` is the name of the rule; `{text}` is a naming style"), Some(hint));
        return None;
    }
    let length = text.chars().count();
    if length > MAX_NAME_CHARS {
        reader.report_value(
            node,
            format!("a rule's name has at most {MAX_NAME_CHARS} characters; this one has {length}"),
            None,
        );
        return None;
    }
    let is_plain = |byte: u8| byte.is_ascii_alphanumeric() || b"._-".contains(&byte);
    if !text.bytes().all(is_plain) || !text.starts_with(|first: char| first.is_ascii_alphanumeric()) {
        let hint = "use letters, digits, `.`, `_` and `-`, starting with a letter or digit";
        reader.report_value(node, format!("`{text}` is not a valid rule name"), Some(hint.to_owned()));
        return None;
    }
    Some(text.to_owned())
}

/// Reports duplicate names.
pub(crate) fn check_unique(reader: &ValueReader, rules: &[(Rule, &YamlNode)]) {
    let mut named: BTreeMap<&str, usize> = BTreeMap::new();
    for (rule, node) in rules {
        let Some(name) = &rule.name else { continue };
        if let Some(line) = named.get(name.as_str()) {
            reader.report_with_hint(
                &node.at,
                format!("the rule in line {line} has the name {name} already"),
                "give each rule a unique name, or none",
            );
        }
        named.entry(name).or_insert(rule.line);
    }
}

/// Sets the title of each rule: its name, else its source; if several share it, also their targets, and else their
/// numbers.
pub(crate) fn set_titles(rules: &mut [Rule]) {
    let forms: [fn(&Rule, usize) -> String; 3] = [
        |rule, _| rule.source_label(),
        |rule, _| format!("{} to {}", rule.source_label(), rule.target_labels().join(", ")),
        |rule, number| format!("{} to {} (rule {number})", rule.source_label(), rule.target_labels().join(", ")),
    ];
    let mut titles: Vec<String> = rules.iter().map(|rule| rule.name.clone().unwrap_or_default()).collect();
    for form in forms {
        let mut known: BTreeMap<String, usize> = BTreeMap::new();
        titles.iter().filter(|title| !title.is_empty()).for_each(|title| *known.entry(title.clone()).or_default() += 1);
        let shown: Vec<String> = (1..).zip(rules.iter()).map(|(number, rule)| form(rule, number)).collect();
        let open: Vec<usize> = (0..rules.len()).filter(|at| titles[*at].is_empty()).collect();
        open.iter().for_each(|at| *known.entry(shown[*at].clone()).or_default() += 1);
        for at in open {
            if known[&shown[at]] == 1 {
                titles[at].clone_from(&shown[at]);
            }
        }
    }
    for (rule, title) in rules.iter_mut().zip(titles) {
        rule.title = title;
    }
}

#[cfg(test)]
mod tests {
    use super::super::super::{Config, ConfigFile};

    fn read(rules: &str) -> Result<Config, String> {
        let text = format!("defaults: {{to: r.example/m}}\nrules:\n{rules}");
        let file = ConfigFile { name: "c.yaml", text: &text, environment: &|_| None, presets: None };
        Config::read(&file).map_err(|errors| errors.to_string())
    }

    fn titles(rules: &str) -> Vec<String> {
        read(rules).unwrap().rules.iter().map(|rule| rule.title()).collect()
    }

    #[test]
    fn a_rule_is_titled_by_its_name_or_its_source() {
        assert_eq!(titles("- {from: gcr.io/a, name: web}\n- from: nginx\n"), ["web", "docker.io/library/nginx"]);
        let config = read("- {from: gcr.io/a, name: Web-1.x_y}\n").unwrap();
        assert_eq!(config.rules[0].label(), "rule Web-1.x_y");
        let shown = config.to_yaml_redacted();
        let file = ConfigFile { name: "c.yaml", text: &shown, environment: &|_| None, presets: None };
        assert_eq!(Config::read(&file).unwrap().rules[0].name.as_deref(), Some("Web-1.x_y"), "{shown}");
    }

    #[test]
    fn rules_that_read_the_same_are_told_apart() {
        let of =
            |to: &str, tags: &str| format!("- {{from: gcr.io/a, to: r.example/{to}, tags: {{include: [{tags}]}}}}\n");
        assert_eq!(titles(&(of("x", "v1") + &of("y", "v2"))), ["gcr.io/a to r.example/x", "gcr.io/a to r.example/y"]);
        let same = of("x", "v1") + "- {from: gcr.io/a, name: mine}\n" + &of("x", "v2") + "- from: gcr.io/b\n";
        let expected = ["gcr.io/a to r.example/x (rule 1)", "mine", "gcr.io/a to r.example/x (rule 3)", "gcr.io/b"];
        assert_eq!(titles(&same), expected);
    }

    #[test]
    fn invalid_rule_names_are_refused() {
        let long = "x".repeat(65);
        for (name, wanted) in [
            ("keep", "write `naming: keep`"),
            ("'{{basename}}'", "is a naming style"),
            ("a/b", "is not a valid rule name"),
            ("'two words'", "is not a valid rule name"),
            ("-x", "starting with a letter or digit"),
            ("''", "this is empty"),
            ("镜像", "is not a valid rule name"),
            (long.as_str(), "at most 64 characters; this one has 65"),
            ("[a]", "is a list"),
        ] {
            let said = read(&format!("- {{from: gcr.io/a, name: {name}}}\n")).unwrap_err();
            assert!(said.contains(wanted), "{name}: {said}");
        }
        assert!(read(&format!("- {{from: gcr.io/a, name: {}}}\n", &long[1..])).is_ok());
        let said = read("- {from: gcr.io/a, name: web}\n- from: gcr.io/b\n  name: web\n").unwrap_err();
        assert!(said.contains("the rule in line 3 has the name web already"), "{said}");
        let defaults = "defaults: {name: web}\nrules: []\n";
        let file = ConfigFile { name: "c.yaml", text: defaults, environment: &|_| None, presets: None };
        assert!(Config::read(&file).is_err(), "a name is of one rule");
    }
}
