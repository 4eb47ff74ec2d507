//! Files of image-syncer: `images`, from a source to one or more targets, and `auth`; or both in one file, as before
//! 1.2.

use imgsync_common::image::Reference;
use serde_json::Value;

use super::draft::{Draft, DraftRule, Text};
use super::place::{of_regex, of_tag, placed};
use super::{Hints, is_true, leave_out, text, texts};

/// The tags of a source or target.
enum Tags<'a> {
    All,
    These(Vec<&'a str>),
    Matching(&'a str),
    Digest(&'a str),
}

pub(super) fn read(tree: &Value, auth: Option<&Value>, hints: &Hints, draft: &mut Draft) -> Result<(), String> {
    let whole = tree.as_object().ok_or("image-syncer's file is a mapping")?;
    let (images, inside) = match whole.get("images").and_then(Value::as_object) {
        Some(images) => (images, whole.get("auth")),
        None => (whole, None),
    };
    for auth in auth.into_iter().chain(inside) {
        credentials(auth, draft);
    }
    if auth.is_none() && inside.is_none() {
        draft.note(
            "credentials are in image-syncer's other file: name it with --auth; without it, `docker login` counts",
        );
    }
    for (source, targets) in images {
        let targets = match targets {
            Value::Null => vec![""],
            Value::String(one) => vec![one.trim()],
            several => texts(Some(several)),
        };
        for target in targets {
            if let Err(why) = rules(source, target, hints, draft) {
                draft.leave_out(format!("{source} -> {target}: {why}"));
            }
        }
    }
    if inside.is_some() {
        for key in leave_out(whole, &["images", "auth"]) {
            draft.note(format!("`{key}` has no counterpart"));
        }
    }
    match draft.is_empty() {
        true => Err("it names no image that could be copied".to_owned()),
        false => Ok(()),
    }
}

/// Adds the rules for one source and one target.
fn rules(source: &str, target: &str, hints: &Hints, draft: &mut Draft) -> Result<(), String> {
    let (repository, tags) = split(source);
    let from: Reference = repository.parse().map_err(|error| format!("{error}"))?;
    let rule = |from: &Reference, to: &Reference| {
        let placed = placed(from, to);
        DraftRule {
            from: format!("{}/{}", from.registry, from.repository),
            to: vec![placed.to],
            naming: Some(placed.naming),
            ..DraftRule::default()
        }
    };
    if target.is_empty() {
        let to = hints.to.clone().ok_or("it goes to image-syncer's default registry; say with --to where that is")?;
        let rule = DraftRule {
            from: format!("{}/{}", from.registry, from.repository),
            to: vec![to],
            naming: Some("basename".to_owned()),
            ..DraftRule::default()
        };
        draft.rule(chosen(rule, &tags)?);
        return Ok(());
    }
    let (wanted, names) = split(target);
    let to: Reference = wanted.parse().map_err(|error| format!("{error}"))?;
    match (&tags, names) {
        (_, Tags::All) => draft.rule(chosen(rule(&from, &to), &tags)?),
        (Tags::These(tags), Tags::These(names)) if tags.len() == names.len() => {
            for (tag, name) in tags.iter().zip(names) {
                let tagged = |reference: &Reference, tag: &str| {
                    let tag = tag.parse().map_err(|error| format!("{error}"))?;
                    Ok::<_, String>(Reference { tag: Some(tag), ..reference.clone() })
                };
                let rule = rule(&tagged(&from, tag)?, &tagged(&to, name)?);
                draft.rule(DraftRule { include: vec![of_tag(tag)?], ..rule });
            }
        }
        _ => return Err("its tags at the target do not match those at the source".to_owned()),
    }
    Ok(())
}

fn chosen(rule: DraftRule, tags: &Tags<'_>) -> Result<DraftRule, String> {
    let include = match tags {
        Tags::All => Vec::new(),
        Tags::These(tags) => tags.iter().map(|tag| of_tag(tag)).collect::<Result<_, _>>()?,
        // image-syncer matches the expression anywhere in a tag.
        Tags::Matching(regex) => vec![of_regex(regex)?],
        Tags::Digest(digest) => {
            return Err(format!("{digest} is no tag; `imgsync sync` copies by digest"));
        }
    };
    Ok(DraftRule { include, ..rule })
}

/// Splits a reference from its tags: `a/b:1,2`, `a/b:/v.*/`, `a/b@sha256:…`.
fn split(written: &str) -> (&str, Tags<'_>) {
    if let Some((repository, digest)) = written.split_once('@') {
        return (repository, Tags::Digest(digest));
    }
    if let Some((repository, regex)) = written.split_once(":/")
        && let Some(regex) = regex.strip_suffix('/')
    {
        return (repository, Tags::Matching(regex));
    }
    match written.rsplit_once(':') {
        // Not the port of a registry.
        Some((repository, tags)) if !tags.contains('/') => {
            (repository, Tags::These(tags.split(',').map(str::trim).filter(|tag| !tag.is_empty()).collect()))
        }
        _ => (written, Tags::All),
    }
}

fn credentials(auth: &Value, draft: &mut Draft) {
    let Some(auth) = auth.as_object() else { return };
    // Entries of a whole registry come first: only they have an equivalent.
    let mut entries: Vec<_> = auth.iter().collect();
    entries.sort_by_key(|(place, _)| place.contains('/'));
    for (place, entry) in entries {
        let registry = place.split('/').next().unwrap_or_default();
        if place.contains('/') {
            let has = draft.has(registry, "username");
            draft.note(match has {
                true => format!("{place}: credentials are a registry's here; those of {registry} are taken"),
                false => format!("{place}: credentials are a registry's here; these are taken for all of {registry}"),
            });
            if has {
                continue;
            }
        }
        if let Some(user) = text(entry.get("username")) {
            draft.user(registry, user);
        }
        if let Some(password) = text(entry.get("password")) {
            draft.secret(registry, "password", password);
        }
        if let Some(token) = text(entry.get("identityToken")) {
            draft.secret(registry, "identity_token", token);
        }
        if is_true(entry.get("insecure")) {
            draft.registry(registry, "tls", Text::Plain("off".into()));
            draft.note(format!(
                "{registry}: `insecure` is `tls: off` here, plain HTTP; with a certificate of its own write `insecure: true`"
            ));
        }
    }
}
