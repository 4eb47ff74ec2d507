//! Maps a source repository and its target name to a rule's `to` and `naming`.

use imgsync_model::select::TagPattern;
use imgsync_oci::Reference;

/// Target of an image with its own name, as written in a rule.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct TargetMapping {
    pub(super) to: String,
    pub(super) naming: String,
}

/// Maps two references; a tag of the target is the tag there.
pub(super) fn map_target(from: &Reference, target: &Reference) -> TargetMapping {
    let (source, wanted) = (from.repository.as_str(), target.repository.as_str());
    let registry = target.registry.as_str();
    let base = |prefix: &str| if prefix.is_empty() { registry.to_owned() } else { format!("{registry}/{prefix}") };
    if target.tag.is_none() || target.tag == from.tag {
        if let Some(prefix) = wanted.strip_suffix(source)
            && (prefix.is_empty() || prefix.ends_with('/'))
        {
            return TargetMapping { to: base(prefix.trim_end_matches('/')), naming: "keep".into() };
        }
        let basename = |path: &str| path.rsplit('/').next().unwrap_or_default().to_owned();
        if basename(source) == basename(wanted) {
            let prefix = wanted.rsplit_once('/').map_or("", |(prefix, _)| prefix);
            return TargetMapping { to: base(prefix), naming: "basename".into() };
        }
    }
    // A name must depend on the source: this one does formally.
    let tag = target.tag.as_ref().filter(|tag| from.tag.as_ref() != Some(tag));
    let tag = tag.map(|tag| format!(":{tag}")).unwrap_or_default();
    TargetMapping { to: registry.to_owned(), naming: format!("{{{{ \"{wanted}\" if basename }}}}{tag}") }
}

/// Converts a tag, or a regular expression for whole tags, into a pattern.
pub(super) fn pattern_from_anchored_regex(regex: &str) -> Result<String, String> {
    let bare = regex.strip_prefix('^').unwrap_or(regex);
    let bare = match bare.strip_suffix('$') {
        Some(rest) if !rest.ends_with('\\') => rest,
        _ => bare,
    };
    let is_plain = |c: char| c.is_ascii_alphanumeric() || "-_.".contains(c);
    let text = match !bare.is_empty() && bare.chars().all(is_plain) {
        // A user who writes 3.9 does not mean 3x9.
        true => bare.to_owned(),
        false => format!("/{bare}/"),
    };
    validate_pattern(text)
}

/// Converts a regular expression that matches anywhere in a tag into a pattern, which matches whole tags.
pub(super) fn pattern_from_regex(regex: &str) -> Result<String, String> {
    let is_anchored = (regex.starts_with('^'), regex.ends_with('$') && !regex.ends_with("\\$"));
    match is_anchored {
        (true, true) if !regex.contains('|') => pattern_from_anchored_regex(regex),
        _ => {
            let before = if is_anchored.0 && !regex.contains('|') { "" } else { ".*" };
            let after = if is_anchored.1 && !regex.contains('|') { "" } else { ".*" };
            validate_pattern(format!("/{before}(?:{regex}){after}/"))
        }
    }
}

/// Converts a tag into a pattern that matches only it.
pub(super) fn pattern_from_tag(tag: &str) -> Result<String, String> {
    validate_pattern(tag.to_owned())
}

fn validate_pattern(pattern: String) -> Result<String, String> {
    match pattern.parse::<TagPattern>() {
        Ok(_) => Ok(pattern),
        Err(error) => Err(error.to_string()),
    }
}
