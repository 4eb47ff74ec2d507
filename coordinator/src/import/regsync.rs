//! Files of regclient's regsync: `creds`, `defaults` and `read_sync_entry`, with entries for an image, a repository or a registry.

use imgsync_model::naming::BackupTagTemplate;
use imgsync_model::select::VersionRange;
use imgsync_oci::Reference;
use serde_json::{Map, Value};

use super::draft::{ConfigDraft, DraftRule, DraftValue, parse_variable};
use super::target_mapping::{map_target, pattern_from_anchored_regex, pattern_from_tag};
use super::{as_text, as_texts, unknown_keys};

const TOP_LEVEL_KEYS: [&str; 4] = ["version", "creds", "defaults", "sync"];
const CREDS_KEYS: [&str; 14] = [
    "registry",
    "hostname",
    "user",
    "pass",
    "token",
    "tls",
    "scheme",
    "regcert",
    "clientCert",
    "clientKey",
    "mirrors",
    "reqPerSec",
    "reqConcurrent",
    "blobChunk",
];
const DEFAULTS_KEYS: [&str; 7] = ["backup", "interval", "schedule", "ratelimit", "parallel", "platform", "referrers"];
const SYNC_KEYS: [&str; 13] = [
    "source",
    "target",
    "type",
    "tags",
    "repos",
    "platform",
    "platforms",
    "backup",
    "interval",
    "schedule",
    "ratelimit",
    "referrers",
    "referrerFilters",
];

pub(super) fn read_file(tree: &Value, draft: &mut ConfigDraft) -> Result<(), String> {
    let top = tree.as_object().ok_or("regsync's file is a mapping")?;
    for entry in top.get("creds").and_then(Value::as_array).into_iter().flatten() {
        if let Some(entry) = entry.as_object() {
            read_credentials(entry, draft);
        }
    }
    let nothing = Map::new();
    let defaults = top.get("defaults").and_then(Value::as_object).unwrap_or(&nothing);
    draft.settings.concurrency =
        as_text(defaults.get("parallel")).and_then(|parallel| parallel.parse().ok()).filter(|parallel| *parallel > 0);
    for key in unknown_keys(defaults, &DEFAULTS_KEYS) {
        draft.add_note(format!("defaults: `{key}` has no equivalent"));
    }
    for (number, entry) in top.get("sync").and_then(Value::as_array).into_iter().flatten().enumerate() {
        let Some(entry) = entry.as_object() else { continue };
        let location = match as_text(entry.get("source")) {
            Some(source) => source.to_owned(),
            None => format!("sync {}", number + 1),
        };
        if let Err(why) = read_sync_entry(entry, defaults, &location, draft) {
            draft.record_omission(format!("{location}: {why}"));
        }
    }
    for key in unknown_keys(top, &TOP_LEVEL_KEYS) {
        draft.add_note(format!("`{key}` has no equivalent"));
    }
    match draft.is_empty() {
        true => Err("the file names no image that can be copied".to_owned()),
        false => Ok(()),
    }
}

fn read_credentials(entry: &Map<String, Value>, draft: &mut ConfigDraft) {
    let Some(registry) = as_text(entry.get("registry")) else { return };
    if parse_variable(registry).is_some() || registry.contains("{{") {
        draft.add_note(format!("creds: `{registry}` is a template; a registry's name is written out here"));
        return;
    }
    let value = |key: &str| as_text(entry.get(key));
    if let Some(user) = value("user") {
        match user.contains("{{") && parse_variable(user).is_none() {
            true => {
                draft.set_secret(registry, "username", user);
                draft.add_note(format!("{registry}: `user` is read by a template; a variable stands in its place"));
            }
            false => draft.set_username(registry, user),
        }
    }
    let plain = value("tls") == Some("disabled") || value("scheme") == Some("http");
    if plain {
        draft.set_registry_key(registry, "tls", DraftValue::text("off"));
    }
    let insecure = !plain && value("tls") == Some("insecure");
    if insecure {
        draft.set_registry_key(registry, "insecure", DraftValue::Flag(true));
    }
    // Settings that contradict this here have no effect in regsync either.
    let mut useless: Vec<(&str, &str)> = Vec::new();
    match (plain, insecure) {
        (true, _) => {
            useless.extend(["regcert", "clientCert", "clientKey"].map(|key| (key, "plain HTTP has no certificates")));
        }
        (false, true) => {
            useless.push(("regcert", "`tls: insecure` trusts any certificate; without it this one is checked"))
        }
        (false, false) => {}
    }
    for (one, other) in [("clientCert", "clientKey"), ("clientKey", "clientCert")] {
        if value(one).is_some() && value(other).is_none() {
            useless.push((one, "a client certificate and its key must be set together"));
        }
    }
    useless.retain(|(key, _)| value(key).is_some());
    for (key, why) in &useless {
        draft.add_note(format!("creds of {registry}: `{key}` was not imported: {why}"));
    }
    let value = |key: &str| value(key).filter(|_| !useless.iter().any(|(useless, _)| *useless == key));
    for (theirs, ours) in [("pass", "password"), ("token", "identity_token"), ("clientKey", "client_key")] {
        let Some(secret) = value(theirs) else { continue };
        if secret.contains("{{") && parse_variable(secret).is_none() {
            draft.add_note(format!("{registry}: `{theirs}` is read by a template; a variable stands in its place"));
        }
        draft.set_secret(registry, ours, secret);
    }
    let url = |host: &str| match host.split_once("://") {
        Some((_, host)) if plain => format!("http://{host}"),
        Some(_) => host.to_owned(),
        None => format!("{}://{host}", if plain { "http" } else { "https" }),
    };
    if let Some(host) = value("hostname").filter(|host| *host != registry) {
        draft.set_registry_key(registry, "endpoint", DraftValue::text(url(host)));
    }
    for (theirs, ours) in [("regcert", "ca"), ("clientCert", "client_cert")] {
        if let Some(value) = value(theirs).filter(|value| *value != "0") {
            draft.set_registry_key(registry, ours, DraftValue::text(value));
        }
    }
    for (theirs, ours) in
        [("reqPerSec", "requests_per_second"), ("reqConcurrent", "concurrency"), ("blobChunk", "chunk")]
    {
        if let Some(value) = value(theirs).filter(|value| *value != "0") {
            draft.set_registry_key(registry, ours, DraftValue::number(value));
        }
    }
    let mirrors = as_texts(entry.get("mirrors"));
    match mirrors.as_slice() {
        [] => {}
        [one] => draft.set_registry_key(registry, "mirrors", DraftValue::text(url(one))),
        several => {
            draft.set_registry_key(registry, "mirrors", DraftValue::text(url(several[0])));
            draft.add_note(format!("{registry}: only the first mirror was imported; `mirrors` takes a list of URLs"));
        }
    }
    for key in unknown_keys(entry, &CREDS_KEYS) {
        draft.add_note(format!("creds of {registry}: `{key}` has no equivalent"));
    }
}

/// Converts one entry of `read_sync_entry`.
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
    let setting = |key: &str| entry.get(key).or_else(|| defaults.get(key)).filter(|value| !value.is_null());
    let mut rule = DraftRule { platforms: read_platforms(entry, defaults), ..DraftRule::default() };
    if as_text(setting("platform")).is_some() {
        draft.add_note(format!(
            "{location}: a single `platform` produces an index with that platform here, not a plain image"
        ));
    }
    if let Some(backup) = as_text(setting("backup")) {
        match convert_backup_template(backup) {
            Ok(backup) => rule.backup = Some(backup),
            Err(why) => draft.add_note(format!("{location}: `backup` has no equivalent: {why}")),
        }
    }
    for filter in entry.get("referrerFilters").and_then(Value::as_array).into_iter().flatten() {
        match as_text(filter.get("artifactType")) {
            Some(kind) => rule.referrers.push(kind.to_owned()),
            None => draft.add_note(format!("{location}: `referrerFilters` go by `artifactType` alone here")),
        }
    }
    if !super::is_true(setting("referrers")) {
        draft.add_note("signatures and other referrers are copied unless a rule sets `referrers: false`");
    }
    if setting("interval").is_some() || setting("schedule").is_some() {
        draft.add_note(
            "`interval` and `schedule` are not imported: set `schedule: {every: …}` or a cron expression, and run \
             `imgsync serve`",
        );
    }
    let reserve = setting("ratelimit").and_then(|limit| as_text(limit.get("min")));
    match as_text(entry.get("type")).unwrap_or("image") {
        "image" => {
            let (from, to) = (parse_reference(source)?, parse_reference(target)?);
            let tag = from.tag_or_latest().ok_or("it names a digest; `imgsync sync` copies by digest")?;
            let from = Reference { tag: Some(tag.clone()), ..from };
            let to = Reference { tag: to.tag_or_latest(), ..to };
            rule.include = vec![pattern_from_tag(tag.as_str())?];
            set_pull_reserve(draft, &from, reserve);
            draft.add_rule(with_target(rule, &from, &to));
        }
        "repository" => {
            let (from, to) = (parse_reference(source)?, parse_reference(target)?);
            read_tags(entry, location, &mut rule, draft)?;
            set_pull_reserve(draft, &from, reserve);
            draft.add_rule(with_target(rule, &from, &to));
        }
        "registry" => {
            read_tags(entry, location, &mut rule, draft)?;
            if let Some(count) = reserve.filter(|count| count.parse::<u64>().is_ok_and(|count| count > 0)) {
                draft.set_registry_key(source, "pull_reserve", DraftValue::number(count));
            }
            for repositories in read_repositories(entry, location, draft) {
                draft.add_rule(DraftRule {
                    from: format!("{source}/{repositories}"),
                    to: vec![target.to_owned()],
                    naming: Some("keep".to_owned()),
                    ..rule.clone()
                });
            }
        }
        other => return Err(format!("`type: {other}` is not known")),
    }
    for key in unknown_keys(entry, &SYNC_KEYS) {
        draft.add_note(format!("{location}: `{key}` has no equivalent"));
    }
    Ok(())
}

fn with_target(rule: DraftRule, from: &Reference, to: &Reference) -> DraftRule {
    let mapping = map_target(from, to);
    DraftRule {
        from: format!("{}/{}", from.registry, from.repository),
        to: vec![mapping.to],
        naming: Some(mapping.naming),
        ..rule
    }
}

/// `ratelimit.min` is the remaining pull quota to keep.
fn set_pull_reserve(draft: &mut ConfigDraft, from: &Reference, reserve: Option<&str>) {
    if let Some(count) = reserve.filter(|count| count.parse::<u64>().is_ok_and(|count| count > 0)) {
        draft.set_registry_key(from.registry.as_str(), "pull_reserve", DraftValue::number(count));
    }
}

fn parse_reference(text: &str) -> Result<Reference, String> {
    text.parse::<Reference>().map_err(|error| error.to_string())
}

fn read_platforms(entry: &Map<String, Value>, defaults: &Map<String, Value>) -> Vec<String> {
    let several = as_texts(entry.get("platforms"));
    let one = || as_text(entry.get("platform").or_else(|| defaults.get("platform"))).into_iter().collect();
    let wanted: Vec<&str> = if several.is_empty() { one() } else { several };
    wanted.into_iter().map(str::to_owned).collect()
}

/// Converts `read_tags`: regular expressions for whole tags, and version ranges.
fn read_tags(
    entry: &Map<String, Value>,
    location: &str,
    rule: &mut DraftRule,
    draft: &mut ConfigDraft,
) -> Result<(), String> {
    let Some(tags) = entry.get("tags").and_then(Value::as_object) else { return Ok(()) };
    let patterns = |key: &str, draft: &mut ConfigDraft| -> Vec<String> {
        let mut patterns = Vec::new();
        for regex in as_texts(tags.get(key)) {
            match pattern_from_anchored_regex(regex) {
                Ok(pattern) => patterns.push(pattern),
                Err(error) => draft.record_omission(format!("{location}: {error}")),
            }
        }
        patterns
    };
    rule.include = patterns("allow", draft);
    rule.exclude = patterns("deny", draft);
    // If none of the patterns can be converted, the rule must not select everything.
    if rule.include.is_empty() && !as_texts(tags.get("allow")).is_empty() {
        return Err("none of its `allow` patterns can be imported".to_owned());
    }
    let ranges = as_texts(tags.get("semverRange"));
    if !ranges.is_empty() {
        let range = ranges.join(" || ");
        range.parse::<VersionRange>().map_err(|error| error.to_string())?;
        rule.semver = Some(range);
    }
    for key in unknown_keys(tags, &["allow", "deny", "semverRange"]) {
        draft.add_note(format!("{location}: tags: `{key}` has no equivalent"));
    }
    Ok(())
}

/// Converts `repos`, as far as repository patterns can express it.
fn read_repositories(entry: &Map<String, Value>, location: &str, draft: &mut ConfigDraft) -> Vec<String> {
    let Some(repos) = entry.get("repos").and_then(Value::as_object) else { return vec!["**".to_owned()] };
    for regex in as_texts(repos.get("deny")) {
        draft
            .record_omission(format!("{location}: repositories cannot be denied here (`{regex}`); list those to copy"));
    }
    let allowed = as_texts(repos.get("allow"));
    if allowed.is_empty() {
        return vec!["**".to_owned()];
    }
    let mut found = Vec::new();
    for regex in allowed {
        let bare = regex.trim_start_matches('^').trim_end_matches('$');
        let (path, star) = match bare.strip_suffix("/.*").or_else(|| bare.strip_suffix("/.+")) {
            Some(path) => (path, "/**"),
            None => (bare, ""),
        };
        let is_path = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || "-_./".contains(c);
        match !path.is_empty() && path.chars().all(is_path) {
            true => found.push(format!("{path}{star}")),
            false if [".*", ".+"].contains(&bare) => found.push("**".to_owned()),
            false => draft.record_omission(format!(
                "{location}: `from` cannot express `{regex}`: * is one level, ** all levels below"
            )),
        }
    }
    found
}

/// Converts a regsync backup template.
fn convert_backup_template(written: &str) -> Result<String, String> {
    let mut text = String::new();
    let mut rest = written;
    while let Some((before, after)) = rest.split_once("{{") {
        let (inside, after) = after.split_once("}}").ok_or("its template does not end")?;
        text.push_str(before);
        let inside = inside.trim().trim_matches('-').trim();
        text.push_str(match inside {
            ".Ref.Tag" => "{{tag}}",
            _ if inside.starts_with("time.Now") => "{{date}}",
            _ => return Err(format!("`{{{{{inside}}}}}` is not known")),
        });
        rest = after;
    }
    text.push_str(rest);
    text.parse::<BackupTagTemplate>().map(|name| name.to_string())
}
