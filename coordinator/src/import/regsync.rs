//! Files of regclient's regsync: `creds`, `defaults` and `sync`, with entries for an image, a repository or a registry.

use imgsync_common::image::Reference;
use imgsync_common::naming::BackupName;
use imgsync_common::select::VersionRange;
use serde_json::{Map, Value};

use super::draft::{Draft, DraftRule, Text, variable_of};
use super::place::{of_anchored_regex, of_tag, placed};
use super::{leave_out, text, texts};

const TOP: [&str; 4] = ["version", "creds", "defaults", "sync"];
const CREDS: [&str; 14] = [
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
const DEFAULTS: [&str; 7] = ["backup", "interval", "schedule", "ratelimit", "parallel", "platform", "referrers"];
const SYNC: [&str; 13] = [
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

pub(super) fn read(tree: &Value, draft: &mut Draft) -> Result<(), String> {
    let top = tree.as_object().ok_or("regsync's file is a mapping")?;
    for entry in top.get("creds").and_then(Value::as_array).into_iter().flatten() {
        if let Some(entry) = entry.as_object() {
            credentials(entry, draft);
        }
    }
    let nothing = Map::new();
    let defaults = top.get("defaults").and_then(Value::as_object).unwrap_or(&nothing);
    if let Some(parallel) =
        text(defaults.get("parallel")).filter(|parallel| parallel.parse::<u32>().is_ok_and(|n| n > 0))
    {
        draft.setting("concurrency", parallel.to_owned());
    }
    for key in leave_out(defaults, &DEFAULTS) {
        draft.note(format!("defaults: `{key}` has no counterpart"));
    }
    for (number, entry) in top.get("sync").and_then(Value::as_array).into_iter().flatten().enumerate() {
        let Some(entry) = entry.as_object() else { continue };
        let place = match text(entry.get("source")) {
            Some(source) => source.to_owned(),
            None => format!("sync {}", number + 1),
        };
        if let Err(why) = sync(entry, defaults, &place, draft) {
            draft.leave_out(format!("{place}: {why}"));
        }
    }
    for key in leave_out(top, &TOP) {
        draft.note(format!("`{key}` has no counterpart"));
    }
    match draft.is_empty() {
        true => Err("it names no image that could be copied".to_owned()),
        false => Ok(()),
    }
}

fn credentials(entry: &Map<String, Value>, draft: &mut Draft) {
    let Some(registry) = text(entry.get("registry")) else { return };
    if variable_of(registry).is_some() || registry.contains("{{") {
        draft.note(format!("creds: `{registry}` is a template; a registry's name is written out here"));
        return;
    }
    let value = |key: &str| text(entry.get(key));
    if let Some(user) = value("user") {
        match user.contains("{{") && variable_of(user).is_none() {
            true => {
                draft.secret(registry, "username", user);
                draft.note(format!("{registry}: `user` is read by a template; a variable stands in its place"));
            }
            false => draft.user(registry, user),
        }
    }
    let plain = value("tls") == Some("disabled") || value("scheme") == Some("http");
    if plain {
        draft.registry(registry, "tls", Text::Plain("off".into()));
    }
    let insecure = !plain && value("tls") == Some("insecure");
    if insecure {
        draft.registry(registry, "insecure", Text::Plain("true".into()));
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
            useless.push((one, "a client certificate and its key are of use together"));
        }
    }
    useless.retain(|(key, _)| value(key).is_some());
    for (key, why) in &useless {
        draft.note(format!("creds of {registry}: `{key}` was not taken over: {why}"));
    }
    let value = |key: &str| value(key).filter(|_| !useless.iter().any(|(useless, _)| *useless == key));
    for (theirs, ours) in [("pass", "password"), ("token", "identity_token"), ("clientKey", "client_key")] {
        let Some(secret) = value(theirs) else { continue };
        if secret.contains("{{") && variable_of(secret).is_none() {
            draft.note(format!("{registry}: `{theirs}` is read by a template; a variable stands in its place"));
        }
        draft.secret(registry, ours, secret);
    }
    let url = |host: &str| match host.split_once("://") {
        Some((_, host)) if plain => format!("http://{host}"),
        Some(_) => host.to_owned(),
        None => format!("{}://{host}", if plain { "http" } else { "https" }),
    };
    if let Some(host) = value("hostname").filter(|host| *host != registry) {
        draft.registry(registry, "endpoint", Text::Plain(url(host)));
    }
    for (theirs, ours) in [
        ("regcert", "ca"),
        ("clientCert", "client_cert"),
        ("reqPerSec", "requests_per_second"),
        ("reqConcurrent", "concurrency"),
        ("blobChunk", "chunk"),
    ] {
        if let Some(value) = value(theirs).filter(|value| *value != "0") {
            draft.registry(registry, ours, Text::Plain(value.to_owned()));
        }
    }
    let mirrors = texts(entry.get("mirrors"));
    match mirrors.as_slice() {
        [] => {}
        [one] => draft.registry(registry, "mirrors", Text::Plain(url(one))),
        several => {
            draft.registry(registry, "mirrors", Text::Plain(url(several[0])));
            draft.note(format!("{registry}: only the first of its mirrors was taken; `mirrors` takes a list of URLs"));
        }
    }
    for key in leave_out(entry, &CREDS) {
        draft.note(format!("creds of {registry}: `{key}` has no counterpart"));
    }
}

/// Converts one entry of `sync`.
fn sync(
    entry: &Map<String, Value>,
    defaults: &Map<String, Value>,
    place: &str,
    draft: &mut Draft,
) -> Result<(), String> {
    let (source, target) = (text(entry.get("source")), text(entry.get("target")));
    let (source, target) = (source.ok_or("it has no source")?, target.ok_or("it has no target")?);
    if source.contains("{{") || target.contains("{{") {
        return Err("source and target are written out here, not by templates".to_owned());
    }
    let (is_layout, to_layout) = (source.starts_with("ocidir://"), target.starts_with("ocidir://"));
    if is_layout || to_layout {
        return Err(
            "image layouts are named otherwise here (oci:DIR in `from` or `to`): write the rule by hand".to_owned()
        );
    }
    let said = |key: &str| entry.get(key).or_else(|| defaults.get(key)).filter(|value| !value.is_null());
    let mut rule = DraftRule { platforms: platforms(entry, defaults), ..DraftRule::default() };
    if text(said("platform")).is_some() {
        draft.note(format!("{place}: one `platform` makes an index of that platform alone here, not a bare image"));
    }
    if let Some(backup) = text(said("backup")) {
        match of_template(backup) {
            Ok(backup) => rule.backup = Some(backup),
            Err(why) => draft.note(format!("{place}: `backup` has no counterpart: {why}")),
        }
    }
    for filter in entry.get("referrerFilters").and_then(Value::as_array).into_iter().flatten() {
        match text(filter.get("artifactType")) {
            Some(kind) => rule.referrers.push(kind.to_owned()),
            None => draft.note(format!("{place}: `referrerFilters` go by `artifactType` alone here")),
        }
    }
    if !super::is_true(said("referrers")) {
        draft.note("signatures and other referrers come along unless a rule says `referrers: false`");
    }
    if said("interval").is_some() || said("schedule").is_some() {
        draft.note(
            "`interval` and `schedule` are not taken over: write `schedule: {every: …}` or a cron pattern, and run `imgsync serve`",
        );
    }
    let reserve = said("ratelimit").and_then(|limit| text(limit.get("min")));
    match text(entry.get("type")).unwrap_or("image") {
        "image" => {
            let (from, to) = (reference(source)?, reference(target)?);
            let tag = from.tag_or_latest().ok_or("it names a digest; `imgsync sync` copies by digest")?;
            let from = Reference { tag: Some(tag.clone()), ..from };
            let to = Reference { tag: to.tag_or_latest(), ..to };
            rule.include = vec![of_tag(tag.as_str())?];
            limit(draft, &from, reserve);
            draft.rule(put(rule, &from, &to));
        }
        "repository" => {
            let (from, to) = (reference(source)?, reference(target)?);
            tags(entry, place, &mut rule, draft)?;
            limit(draft, &from, reserve);
            draft.rule(put(rule, &from, &to));
        }
        "registry" => {
            tags(entry, place, &mut rule, draft)?;
            if let Some(count) = reserve.filter(|count| count.parse::<u64>().is_ok_and(|count| count > 0)) {
                draft.registry(source, "pull_reserve", Text::Plain(count.to_owned()));
            }
            for repositories in repositories(entry, place, draft) {
                draft.rule(DraftRule {
                    from: format!("{source}/{repositories}"),
                    to: vec![target.to_owned()],
                    naming: Some("keep".to_owned()),
                    ..rule.clone()
                });
            }
        }
        other => return Err(format!("`type: {other}` is not known")),
    }
    for key in leave_out(entry, &SYNC) {
        draft.note(format!("{place}: `{key}` has no counterpart"));
    }
    Ok(())
}

fn put(rule: DraftRule, from: &Reference, to: &Reference) -> DraftRule {
    let placed = placed(from, to);
    DraftRule {
        from: format!("{}/{}", from.registry, from.repository),
        to: vec![placed.to],
        naming: Some(placed.naming),
        ..rule
    }
}

/// `ratelimit.min` is the remaining pull quota to keep.
fn limit(draft: &mut Draft, from: &Reference, reserve: Option<&str>) {
    if let Some(count) = reserve.filter(|count| count.parse::<u64>().is_ok_and(|count| count > 0)) {
        draft.registry(from.registry.as_str(), "pull_reserve", Text::Plain(count.to_owned()));
    }
}

fn reference(text: &str) -> Result<Reference, String> {
    text.parse::<Reference>().map_err(|error| error.to_string())
}

fn platforms(entry: &Map<String, Value>, defaults: &Map<String, Value>) -> Vec<String> {
    let several = texts(entry.get("platforms"));
    let one = || text(entry.get("platform").or_else(|| defaults.get("platform"))).into_iter().collect();
    let wanted: Vec<&str> = if several.is_empty() { one() } else { several };
    wanted.into_iter().map(str::to_owned).collect()
}

/// Converts `tags`: regular expressions for whole tags, and version ranges.
fn tags(entry: &Map<String, Value>, place: &str, rule: &mut DraftRule, draft: &mut Draft) -> Result<(), String> {
    let Some(tags) = entry.get("tags").and_then(Value::as_object) else { return Ok(()) };
    let patterns = |key: &str, draft: &mut Draft| -> Vec<String> {
        let mut patterns = Vec::new();
        for regex in texts(tags.get(key)) {
            match of_anchored_regex(regex) {
                Ok(pattern) => patterns.push(pattern),
                Err(error) => draft.leave_out(format!("{place}: {error}")),
            }
        }
        patterns
    };
    rule.include = patterns("allow", draft);
    rule.exclude = patterns("deny", draft);
    // If none of the patterns can be converted, the rule must not select everything.
    if rule.include.is_empty() && !texts(tags.get("allow")).is_empty() {
        return Err("none of its `allow` can be taken".to_owned());
    }
    let ranges = texts(tags.get("semverRange"));
    if !ranges.is_empty() {
        let range = ranges.join(" || ");
        range.parse::<VersionRange>().map_err(|error| error.to_string())?;
        rule.semver = Some(range);
    }
    for key in leave_out(tags, &["allow", "deny", "semverRange"]) {
        draft.note(format!("{place}: tags: `{key}` has no counterpart"));
    }
    Ok(())
}

/// Converts `repos`, as far as repository patterns can express it.
fn repositories(entry: &Map<String, Value>, place: &str, draft: &mut Draft) -> Vec<String> {
    let Some(repos) = entry.get("repos").and_then(Value::as_object) else { return vec!["**".to_owned()] };
    for regex in texts(repos.get("deny")) {
        draft.leave_out(format!("{place}: repositories are not denied here (`{regex}`); name those that are wanted"));
    }
    let allowed = texts(repos.get("allow"));
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
            false => {
                draft.leave_out(format!("{place}: `{regex}` says more than `from` can: * is one level, ** all below"))
            }
        }
    }
    found
}

/// Converts a regsync backup template.
fn of_template(written: &str) -> Result<String, String> {
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
    text.parse::<BackupName>().map(|name| name.to_string())
}
