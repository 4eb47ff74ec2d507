//! Files of regclient's regsync: `creds`, `defaults` and `sync`, with entries for an image, a repository or a registry.

mod actions;
mod credentials;
mod repositories;
mod settings;
mod tags;
mod versions;

use imgsync_model::naming::NamingStyle;
use imgsync_oci::Reference;
use serde_json::{Map, Value};
use serde_saphyr::FlowMap;

use self::credentials::read_credentials;
use self::repositories::read_repositories;
use self::settings::EntrySettings;
use self::tags::{read_tags, read_target_tag};
use super::draft::{ConfigDraft, DraftDefaults, DraftRule, DraftValue};
use super::target_mapping::{TargetMapping, is_selected, map_target, pattern_from_tag, rename_tags};
use super::{as_text, is_true, unknown_keys};

const TOP_LEVEL_KEYS: [&str; 4] = ["version", "creds", "defaults", "sync"];
/// Keys of `defaults` and of entries of `sync`.
const SHARED_KEYS: [&str; 14] = [
    "backup",
    "interval",
    "schedule",
    "ratelimit",
    "digestTags",
    "referrers",
    "referrerFilters",
    "referrerSource",
    "referrerTarget",
    "forceRecursive",
    "includeExternal",
    "mediaTypes",
    "hooks",
    "fastCopy",
];
/// Keys of `defaults` alone.
const DEFAULTS_ONLY_KEYS: [&str; 1] = ["parallel"];
/// Keys of entries of `sync` alone.
const SYNC_ONLY_KEYS: [&str; 9] =
    ["source", "target", "type", "tags", "tagSets", "targetTag", "repos", "platform", "platforms"];
/// A digest tag of cosign, which is listed with the other tags.
const DIGEST_TAG: &str = "sha256-0000000000000000000000000000000000000000000000000000000000000000.sig";

/// Converts a file. `lines` are those of the entries of `sync`.
pub(super) fn read_file(tree: &Value, lines: &[usize], draft: &mut ConfigDraft) -> Result<(), String> {
    let top = tree.as_object().ok_or("regsync's file is a mapping")?;
    let creds = top.get("creds").filter(|creds| !creds.is_null());
    if creds.is_some_and(|creds| !creds.is_array()) {
        draft.add_note("`creds` is not a list and was not imported");
    }
    for entry in creds.and_then(Value::as_array).into_iter().flatten() {
        match entry.as_object() {
            Some(entry) => read_credentials(entry, draft),
            None => draft.add_note("creds: an entry that is not a mapping was not imported"),
        }
    }
    if top.get("defaults").is_some_and(|defaults| !defaults.is_null() && !defaults.is_object()) {
        return Err("`defaults` is not a mapping".to_owned());
    }
    let nothing = Map::new();
    let defaults = top.get("defaults").and_then(Value::as_object).unwrap_or(&nothing);
    if let Some(parallel) = defaults.get("parallel").filter(|parallel| !parallel.is_null()) {
        draft.settings.concurrency =
            as_text(Some(parallel)).and_then(|parallel| parallel.parse().ok()).filter(|parallel| *parallel > 0);
        if draft.settings.concurrency.is_none() {
            draft.add_note("defaults: `parallel` was not imported: it is not a number from 1");
        }
    }
    for key in unknown_keys(defaults, &[&SHARED_KEYS[..], &DEFAULTS_ONLY_KEYS].concat()) {
        draft.add_note(format!("defaults: `{key}` has no equivalent"));
    }
    if !is_true(defaults.get("referrers")) {
        let defaults = DraftDefaults { referrers: Some(false), ..DraftDefaults::default() };
        draft.settings.defaults = Some(FlowMap(defaults));
    }
    for (number, entry) in top.get("sync").and_then(Value::as_array).into_iter().flatten().enumerate() {
        let line = lines.get(number).map_or_else(|| format!("sync {}", number + 1), |line| format!("line {line}"));
        let source = entry.get("source").and_then(|source| as_text(Some(source)));
        let location = source.map_or_else(|| line.clone(), |source| format!("{line} ({source})"));
        let read = entry.as_object().ok_or_else(|| "it is not a mapping".to_owned());
        if let Err(why) = read.and_then(|entry| read_sync_entry(entry, defaults, &location, draft)) {
            draft.record_omission(format!("{location}: {why}"));
        }
    }
    for key in unknown_keys(top, &TOP_LEVEL_KEYS) {
        draft.add_note(format!("`{key}` has no equivalent"));
    }
    draft.share_schedule();
    draft.require_rules()
}

/// Converts one entry of `sync`.
fn read_sync_entry(
    entry: &Map<String, Value>,
    defaults: &Map<String, Value>,
    location: &str,
    draft: &mut ConfigDraft,
) -> Result<(), String> {
    let (source, target) = (as_text(entry.get("source")), as_text(entry.get("target")));
    let (source, target) = (source.ok_or("it has no source")?, target.ok_or("it has no target")?);
    if source.contains("{{") || target.contains("{{") {
        return Err("templates in source and target are not supported".to_owned());
    }
    let (is_layout, to_layout) = (source.starts_with("ocidir://"), target.starts_with("ocidir://"));
    if is_layout || to_layout {
        return Err("image layouts are written oci:DIR in `from` or `to` here: write the rule by hand".to_owned());
    }
    let settings = EntrySettings { entry, defaults, location };
    let kind = as_text(entry.get("type")).ok_or("it has no `type`")?;
    let mut rules = Vec::new();
    match kind {
        "image" => {
            let (from, to) = (parse_reference(source)?, parse_reference(target)?);
            let tag = from.tag_or_latest().ok_or("it names a digest; `imgsync sync` copies by digest")?;
            let from = Reference { tag: Some(tag.clone()), ..from };
            let to = Reference { tag: to.tag_or_latest(), ..to };
            let rule = DraftRule { include: vec![pattern_from_tag(tag.as_str())?], ..settings.read_rule(draft) };
            rules.push(with_target(rule, &from, map_target(&from, &to)));
        }
        "repository" => {
            // The filters select the tags; one in the reference has no effect.
            let untagged = |reference: Reference| Reference { tag: None, ..reference };
            let (from, to) = (untagged(parse_reference(source)?), untagged(parse_reference(target)?));
            let mut mapping = map_target(&from, &to);
            if let Some(tag) = read_target_tag(entry)? {
                mapping = rename_tags(mapping, &tag);
            }
            let filters = read_tags(entry, location, draft)?;
            let rule = settings.read_rule(draft);
            for filter in filters {
                rules.push(with_target(filter.apply(rule.clone()), &from, mapping.clone()));
            }
        }
        "registry" => {
            let tag = read_target_tag(entry)?;
            let naming = tag.map_or_else(|| "keep".to_owned(), |tag| format!("{{{{repository}}}}:{tag}"));
            let filters = read_tags(entry, location, draft)?;
            let rule = settings.read_rule(draft);
            for choice in read_repositories(entry, source, location, draft)? {
                for filter in &filters {
                    rules.push(DraftRule {
                        from: choice.from.clone(),
                        exclude_repositories: choice.exclude.clone(),
                        to: vec![target.to_owned()],
                        naming: Some(naming.clone()),
                        ..filter.clone().apply(rule.clone())
                    });
                }
            }
        }
        other => return Err(format!("`type: {other}` is not known")),
    }
    if kind == "image" && entry.contains_key("targetTag") {
        draft.add_note(format!("{location}: `targetTag` has no effect on an image"));
    }
    let reserve = settings.pull_reserve(draft);
    for rule in rules {
        add_rule(rule, kind, reserve, draft)?;
    }
    for key in unknown_keys(entry, &[&SHARED_KEYS[..], &SYNC_ONLY_KEYS].concat()) {
        draft.record_omission(format!("{location}: `{key}` has no equivalent"));
    }
    Ok(())
}

/// Adds a rule, and the reserve of its source registry.
fn add_rule(rule: DraftRule, kind: &str, reserve: Option<&str>, draft: &mut ConfigDraft) -> Result<(), String> {
    if let Some(naming) = &rule.naming {
        naming.parse::<NamingStyle>().map_err(|error| format!("`targetTag`: {error}"))?;
    }
    if kind != "image" && is_selected(DIGEST_TAG, &rule.include, &rule.exclude) && rule.semver.is_none() {
        draft.add_note(
            "regsync copies listed digest tags such as sha256-….sig like other tags; here they are copied with their \
             image, where `referrers` is true",
        );
    }
    if let (Some(count), Some((registry, _))) = (reserve, rule.from.split_once('/')) {
        draft.set_registry_key(registry, "pull_reserve", DraftValue::number(count));
    }
    draft.add_rule(rule);
    Ok(())
}

fn with_target(rule: DraftRule, from: &Reference, mapping: TargetMapping) -> DraftRule {
    DraftRule {
        from: format!("{}/{}", from.registry, from.repository),
        to: vec![mapping.to],
        naming: Some(mapping.naming),
        ..rule
    }
}

/// Parses a reference without a digest, which a rule cannot copy.
fn parse_reference(text: &str) -> Result<Reference, String> {
    let reference = text.parse::<Reference>().map_err(|error| error.to_string())?;
    match reference.digest {
        Some(_) => Err(format!("`{text}` names a digest; `imgsync sync` copies by digest")),
        None => Ok(reference),
    }
}
