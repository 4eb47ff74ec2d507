//! `tags`, `tagSets` and `targetTag`: which tags are copied, and as what.

use imgsync_model::select::TagPattern;
use serde_json::{Map, Value};

use super::super::draft::{ConfigDraft, DraftRule};
use super::super::target_mapping::pattern_from_regsync;
use super::super::{as_text, filter_texts, unknown_keys};
use super::actions::replace_actions;
use super::versions::convert_range;

/// Tag filter of one rule.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct TagFilter {
    pub(super) include: Vec<String>,
    pub(super) exclude: Vec<String>,
    pub(super) semver: Option<String>,
}

impl TagFilter {
    /// Returns the rule with this filter.
    pub(super) fn apply(self, rule: DraftRule) -> DraftRule {
        DraftRule { include: self.include, exclude: self.exclude, semver: self.semver, ..rule }
    }
}

/// Converts the filters of an entry: a tag is copied if any of them selects it.
pub(super) fn read_tags(
    entry: &Map<String, Value>,
    location: &str,
    draft: &mut ConfigDraft,
) -> Result<Vec<TagFilter>, String> {
    let mut sets = Vec::new();
    match entry.get("tagSets") {
        None | Some(Value::Null) => {}
        Some(Value::Array(items)) => {
            for set in items {
                sets.push(set.as_object().ok_or("an entry of `tagSets` is not a mapping")?);
            }
        }
        Some(_) => return Err("`tagSets` is not a list".to_owned()),
    }
    match entry.get("tags") {
        None | Some(Value::Null) => {}
        // `tags` without a filter is none, but an entry of `tagSets` without one selects all.
        Some(Value::Object(tags)) if tags.values().all(is_empty_filter) => {}
        Some(Value::Object(tags)) => sets.push(tags),
        Some(_) => return Err("`tags` is not a mapping".to_owned()),
    }
    if sets.is_empty() {
        return Ok(vec![TagFilter::default()]);
    }
    let mut filters = Vec::new();
    for set in sets {
        match read_set(set, location, draft) {
            Ok(found) => filters.extend(found),
            Err(why) => draft.record_omission(format!("{location}: {why}")),
        }
    }
    Ok(filters)
}

fn is_empty_filter(value: &Value) -> bool {
    value.is_null() || value.as_array().is_some_and(Vec::is_empty)
}

/// Converts regular expressions for whole tags and version ranges: a filter for each range.
fn read_set(set: &Map<String, Value>, location: &str, draft: &mut ConfigDraft) -> Result<Vec<TagFilter>, String> {
    if let Some(unknown) = unknown_keys(set, &["allow", "deny", "semverRange"]).first() {
        return Err(format!("tags: `{unknown}` is a filter that has no equivalent"));
    }
    let mut patterns = |key: &str| -> Result<Vec<String>, String> {
        let mut patterns = Vec::new();
        for regex in filter_texts(set, key)? {
            match pattern_from_regsync(regex) {
                Ok(pattern) => patterns.push(pattern),
                Err(error) => draft.record_omission(format!("{location}: `{key}`: {error}")),
            }
        }
        Ok(patterns)
    };
    let filter = TagFilter { include: patterns("allow")?, exclude: patterns("deny")?, semver: None };
    // If none of the patterns can be converted, the rule must not select everything.
    let is_filtered = !filter_texts(set, "allow")?.is_empty();
    if filter.include.is_empty() && is_filtered {
        return Err("none of its `allow` patterns can be imported".to_owned());
    }
    let mut filters = Vec::new();
    let ranges = filter_texts(set, "semverRange")?;
    for range in &ranges {
        let converted = match convert_range(range) {
            Ok(converted) => converted,
            Err(why) => {
                draft.record_omission(format!("{location}: {why}"));
                continue;
            }
        };
        if converted.takes_dates(&filter.include, &filter.exclude) {
            draft.record_omission(format!(
                "{location}: `semverRange: {range}`: regsync takes dates such as 20250301 for versions; add a rule for \
                 them if you need them"
            ));
        }
        filters.push(TagFilter {
            semver: Some(converted.semver),
            exclude: filter.exclude.iter().chain(&converted.exclude).cloned().collect(),
            ..filter.clone()
        });
    }
    if ranges.is_empty() {
        filters.push(filter);
    }
    for filter in &mut filters {
        drop_excluded_tags(filter);
    }
    filters.retain(|filter| {
        let selects_some = !filter.include.is_empty() || !is_filtered;
        if !selects_some {
            draft.add_note(format!("{location}: `allow` and the other filters select no tag in common: no rule"));
        }
        selects_some
    });
    Ok(filters)
}

/// Drops tags that the filter includes by name and excludes, which is an error in a configuration.
fn drop_excluded_tags(filter: &mut TagFilter) {
    let excluded: Vec<TagPattern> = filter.exclude.iter().filter_map(|pattern| pattern.parse().ok()).collect();
    filter.include.retain(|include| {
        let tag: Option<TagPattern> = include.parse().ok();
        let tag = tag.as_ref().and_then(TagPattern::literal);
        !tag.is_some_and(|tag| excluded.iter().any(|excluded| excluded.matches(tag)))
    });
}

/// Converts `targetTag` into the template of a tag.
pub(super) fn read_target_tag(entry: &Map<String, Value>) -> Result<Option<String>, String> {
    let Some(written) = as_text(entry.get("targetTag")) else { return Ok(None) };
    let refuse = |why: &str| format!("`targetTag: {written}` has no equivalent: {why}");
    let text = replace_actions(written, |action| (action == ".Source.Tag").then_some("{{tag}}"));
    let text = text.map_err(|why| refuse(&why))?;
    let literal = text.replace("{{tag}}", "");
    match () {
        () if text == "{{tag}}" => Ok(None),
        () if !text.contains("{{tag}}") => Err(refuse("all tags would become one")),
        () if literal.chars().any(|c| !c.is_ascii_alphanumeric() && !"-_.".contains(c)) => {
            Err(refuse("that is not a tag"))
        }
        () => Ok(Some(text)),
    }
}
