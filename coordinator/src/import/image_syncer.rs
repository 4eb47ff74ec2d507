//! Files of image-syncer: `images`, from a source to one or more targets, and `auth`; or both in one file, as before
//! 1.2.

use imgsync_oci::Reference;
use serde_json::Value;

use super::draft::{ConfigDraft, DraftRule, DraftValue};
use super::target_mapping::{map_target, pattern_from_regex, pattern_from_tag};
use super::{ImportHints, as_text, is_true, unknown_keys};

/// The tags of a source or target.
enum TagChoice<'a> {
    All,
    These(Vec<&'a str>),
    Matching(&'a str),
    Digest(&'a str),
}

pub(super) fn read_file(
    tree: &Value,
    auth: Option<&Value>,
    hints: &ImportHints,
    draft: &mut ConfigDraft,
) -> Result<(), String> {
    let whole = tree.as_object().ok_or("image-syncer's file is a mapping")?;
    let (images, inside) = match whole.get("images").and_then(Value::as_object) {
        Some(images) => (images, whole.get("auth")),
        None => (whole, None),
    };
    for auth in auth.into_iter().chain(inside) {
        read_credentials(auth, draft);
    }
    if auth.is_none() && inside.is_none() {
        draft.add_note(
            "image-syncer keeps credentials in a second file: pass it with --auth; without it, those of `docker \
             login` are used",
        );
    }
    for (source, targets) in images {
        let targets = match targets {
            Value::Array(several) => several.iter().collect(),
            one => vec![one],
        };
        for target in targets {
            let target = match target {
                Value::Null => "",
                Value::String(target) => target.trim(),
                _ => {
                    draft.record_omission(format!("{source}: a target is not a text"));
                    continue;
                }
            };
            if let Err(why) = add_rules(source, target, hints, draft) {
                draft.record_omission(format!("{source} -> {target}: {why}"));
            }
        }
    }
    if !std::ptr::eq(images, whole) {
        for key in unknown_keys(whole, &["images", "auth"]) {
            draft.add_note(format!("`{key}` has no equivalent"));
        }
    }
    draft.require_rules()
}

/// Adds the rules for one source and one target.
fn add_rules(source: &str, target: &str, hints: &ImportHints, draft: &mut ConfigDraft) -> Result<(), String> {
    let (repository, tags) = split_tags(source);
    let from: Reference = repository.parse().map_err(|error| format!("{error}"))?;
    let rule = |from: &Reference, to: &Reference| {
        let mapping = map_target(from, to);
        DraftRule {
            from: format!("{}/{}", from.registry, from.repository),
            to: vec![mapping.to],
            naming: Some(mapping.naming),
            ..DraftRule::default()
        }
    };
    if target.is_empty() {
        let to = hints.to.clone().ok_or("no target (image-syncer's default registry); set it with --to")?;
        let rule = DraftRule {
            from: format!("{}/{}", from.registry, from.repository),
            to: vec![to],
            naming: Some("basename".to_owned()),
            ..DraftRule::default()
        };
        draft.add_rule(with_tags(rule, &tags)?);
        return Ok(());
    }
    let (wanted, names) = split_tags(target);
    let to: Reference = wanted.parse().map_err(|error| format!("{error}"))?;
    match (&tags, names) {
        (_, TagChoice::All) => draft.add_rule(with_tags(rule(&from, &to), &tags)?),
        (TagChoice::These(tags), TagChoice::These(names)) if tags.len() == names.len() => {
            for (tag, name) in tags.iter().zip(names) {
                let tagged = |reference: &Reference, tag: &str| {
                    let tag = tag.parse().map_err(|error| format!("{error}"))?;
                    Ok::<_, String>(Reference { tag: Some(tag), ..reference.clone() })
                };
                let rule = rule(&tagged(&from, tag)?, &tagged(&to, name)?);
                draft.add_rule(DraftRule { include: vec![pattern_from_tag(tag)?], ..rule });
            }
        }
        _ => return Err("the target tags do not match the source tags".to_owned()),
    }
    Ok(())
}

fn with_tags(rule: DraftRule, tags: &TagChoice<'_>) -> Result<DraftRule, String> {
    let include = match tags {
        TagChoice::All => Vec::new(),
        TagChoice::These(tags) => tags.iter().map(|tag| pattern_from_tag(tag)).collect::<Result<_, _>>()?,
        // image-syncer matches the expression anywhere in a tag.
        TagChoice::Matching(regex) => vec![pattern_from_regex(regex)?],
        TagChoice::Digest(digest) => {
            return Err(format!("{digest} is not a tag; `imgsync sync` copies by digest"));
        }
    };
    Ok(DraftRule { include, ..rule })
}

/// Splits a reference from its tags: `a/b:1,2`, `a/b:/v.*/`, `a/b@sha256:…`.
fn split_tags(written: &str) -> (&str, TagChoice<'_>) {
    if let Some((repository, digest)) = written.split_once('@') {
        return (repository, TagChoice::Digest(digest));
    }
    if let Some((repository, regex)) = written.split_once(":/")
        && let Some(regex) = regex.strip_suffix('/')
    {
        return (repository, TagChoice::Matching(regex));
    }
    match written.rsplit_once(':') {
        // Not the port of a registry.
        Some((repository, tags)) if !tags.contains('/') => {
            (repository, TagChoice::These(tags.split(',').map(str::trim).filter(|tag| !tag.is_empty()).collect()))
        }
        _ => (written, TagChoice::All),
    }
}

fn read_credentials(auth: &Value, draft: &mut ConfigDraft) {
    let Some(auth) = auth.as_object() else { return };
    // Entries of a whole registry come first: only they have an equivalent.
    let mut entries: Vec<_> = auth.iter().collect();
    entries.sort_by_key(|(place, _)| place.contains('/'));
    for (place, entry) in entries {
        let registry = place.split('/').next().unwrap_or_default();
        if place.contains('/') {
            let has = draft.has_registry_key(registry, "username");
            draft.add_note(match has {
                true => format!("{place}: credentials are per registry here; using those of {registry}"),
                false => format!("{place}: credentials are per registry here; using these for all of {registry}"),
            });
            if has {
                continue;
            }
        }
        match entry.as_object() {
            None => draft.add_note(format!("{place}: these credentials are not a mapping and were not imported")),
            Some(entry) => {
                for key in unknown_keys(entry, &["username", "password", "identityToken", "insecure"]) {
                    draft.add_note(format!("{place}: `{key}` has no equivalent"));
                }
            }
        }
        if let Some(user) = as_text(entry.get("username")) {
            draft.set_username(registry, user);
        }
        if let Some(password) = as_text(entry.get("password")) {
            draft.set_secret(registry, "password", password);
        }
        if let Some(token) = as_text(entry.get("identityToken")) {
            draft.set_secret(registry, "identity_token", token);
        }
        if is_true(entry.get("insecure")) {
            draft.set_registry_key(registry, "tls", DraftValue::text("off"));
            draft.add_note(format!(
                "{registry}: `insecure` is `tls: off` here, plain HTTP; with a certificate of its own write `insecure: true`"
            ));
        }
    }
}
