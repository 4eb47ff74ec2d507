//! Maps a source repository and its target name to a rule's `to` and `naming`.

use imgsync_model::select::TagPattern;
use imgsync_oci::Reference;

use super::draft::FIXED_NAME_END;

/// Target of an image with its own name, as written in a rule.
#[derive(Debug, Clone, PartialEq, Eq)]
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
    let tag = target.tag.as_ref().filter(|tag| from.tag.as_ref() != Some(tag));
    let tag = tag.map(|tag| format!(":{tag}")).unwrap_or_default();
    TargetMapping { to: registry.to_owned(), naming: format!("{{{{ '{wanted}{FIXED_NAME_END}{tag}") }
}

/// Changes a mapping to rename tags by a template.
pub(super) fn rename_tags(mapping: TargetMapping, tag: &str) -> TargetMapping {
    let name = match mapping.naming.as_str() {
        "keep" => "{{repository}}",
        "basename" => "{{basename}}",
        template => template,
    };
    TargetMapping { naming: format!("{name}:{tag}"), ..mapping }
}

/// Converts a tag, or a regular expression for whole tags, into a pattern.
pub(super) fn pattern_from_anchored_regex(regex: &str) -> Result<String, String> {
    let bare = regex.strip_prefix('^').unwrap_or(regex);
    let bare = match bare.strip_suffix('$') {
        Some(rest) if !rest.ends_with('\\') => rest,
        _ => bare,
    };
    let is_plain = |c: char| c.is_ascii_alphanumeric() || "-_".contains(c);
    let text = match !bare.is_empty() && bare.replace("\\.", "").chars().all(is_plain) {
        true => bare.replace("\\.", "."),
        false => format!("/{bare}/"),
    };
    validate_pattern(text)
}

/// Converts a regular expression to which regsync adds `^` and `$`, which then bind only its first and last alternative.
pub(super) fn pattern_from_regsync(regex: &str) -> Result<String, String> {
    match has_bare_alternatives(regex) {
        true => validate_pattern(format!("/.*(?:^{regex}$).*/")),
        false => pattern_from_anchored_regex(regex),
    }
}

/// Whether a regular expression has alternatives outside of groups.
pub(super) fn has_bare_alternatives(regex: &str) -> bool {
    let (mut depth, mut in_class, mut is_escaped) = (0_u32, false, false);
    for c in regex.chars() {
        match c {
            _ if is_escaped => is_escaped = false,
            '\\' => is_escaped = true,
            ']' => in_class = false,
            _ if in_class => {}
            '[' => in_class = true,
            '(' => depth += 1,
            ')' => depth = depth.saturating_sub(1),
            '|' if depth == 0 => return true,
            _ => {}
        }
    }
    false
}

/// Tags that other programs take for versions above any other, and imgsync for dates.
const DATES: [&str; 4] = ["20250301", "20250301103000", "2025-03-01", "20250301-alpine3.20"];

/// Whether patterns select dates.
pub(super) fn is_date_selected(include: &[String], exclude: &[String]) -> bool {
    DATES.iter().any(|date| is_selected(date, include, exclude))
}

/// Whether patterns select a tag.
pub(super) fn is_selected(tag: &str, include: &[String], exclude: &[String]) -> bool {
    let any = |patterns: &[String]| {
        patterns.iter().any(|pattern| pattern.parse::<TagPattern>().is_ok_and(|pattern| pattern.matches(tag)))
    };
    (include.is_empty() || any(include)) && !any(exclude)
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
