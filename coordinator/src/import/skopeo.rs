//! Files of `skopeo sync --src yaml` (skopeo-sync(1), "YAML file content"): registries with images, tags and
//! credentials, without a target.

use imgsync_common::select::VersionRange;
use serde_json::Value;

use super::draft::{Draft, DraftRule, Text};
use super::place::{of_regex, of_tag};
use super::{Hints, leave_out, text, texts};

const KEYS: [&str; 6] = ["images", "images-by-tag-regex", "images-by-semver", "credentials", "tls-verify", "cert-dir"];

pub(super) fn read(tree: &Value, hints: &Hints, draft: &mut Draft) -> Result<(), String> {
    let registries = tree.as_object().ok_or("skopeo's file is a mapping of registries")?;
    let to = hints.to.clone().ok_or("skopeo's file does not say where to; say it with --to")?;
    let name = hints.naming.clone().unwrap_or_else(|| "basename".to_owned());
    for (registry, settings) in registries {
        let Some(settings) = settings.as_object() else { continue };
        let rule = |image: &str| DraftRule {
            from: format!("{registry}/{}", image.trim_matches('/')),
            to: vec![to.clone()],
            naming: Some(name.clone()),
            ..DraftRule::default()
        };
        for (image, tags) in of(settings.get("images")) {
            let mut rule = rule(image);
            let tags = texts(Some(tags));
            let all = tags.is_empty();
            for tag in tags {
                match of_tag(tag) {
                    Ok(pattern) if !tag.contains(':') => rule.include.push(pattern),
                    _ => draft
                        .leave_out(format!("{registry}/{image}: `{tag}` is no tag; `imgsync sync` copies by digest")),
                }
            }
            if all || !rule.include.is_empty() {
                draft.rule(rule);
            }
        }
        for (image, regex) in of(settings.get("images-by-tag-regex")) {
            let regex = text(Some(regex)).unwrap_or_default();
            match of_regex(regex) {
                Ok(pattern) => draft.rule(DraftRule { include: vec![pattern], ..rule(image) }),
                Err(error) => draft.leave_out(format!("{registry}/{image}: {error}")),
            }
        }
        for (image, range) in of(settings.get("images-by-semver")) {
            let range = hyphens(text(Some(range)).unwrap_or_default());
            match range.parse::<VersionRange>() {
                Ok(_) => draft.rule(DraftRule { semver: Some(range), ..rule(image) }),
                Err(error) => draft.leave_out(format!("{registry}/{image}: {error}")),
            }
        }
        if let Some(credentials) = settings.get("credentials").and_then(Value::as_object) {
            if let Some(user) = text(credentials.get("username")) {
                draft.user(registry, user);
            }
            if let Some(password) = text(credentials.get("password")) {
                draft.secret(registry, "password", password);
            }
        }
        if text(settings.get("tls-verify")).is_some_and(|verify| verify.eq_ignore_ascii_case("false")) {
            draft.registry(registry, "insecure", Text::Plain("true".into()));
            draft.note(format!(
                "{registry}: `tls-verify: false` is `insecure: true` here; if it speaks plain HTTP, write `tls: off`"
            ));
        }
        if let Some(folder) = text(settings.get("cert-dir")) {
            draft.note(format!(
                "{registry}: `cert-dir` has no counterpart; name the files in {folder} as `ca`, `client_cert` and `client_key`"
            ));
        }
        for key in leave_out(settings, &KEYS) {
            draft.note(format!("{registry}: `{key}` has no counterpart"));
        }
    }
    if hints.naming.is_none() {
        draft.note(
            "targets are called as skopeo calls them without --scoped; with it they are called in full: --naming full",
        );
    }
    match draft.is_empty() {
        true => Err("it names no image that could be copied".to_owned()),
        false => Ok(()),
    }
}

fn of(images: Option<&Value>) -> impl Iterator<Item = (&str, &Value)> {
    images.and_then(Value::as_object).into_iter().flatten().map(|(image, value)| (image.as_str(), value))
}

/// Converts the hyphen range `1.2 - 2.3` into two comparators.
fn hyphens(range: &str) -> String {
    let one = |part: &str| match part.split_once(" - ") {
        Some((from, to)) => format!(">={} <={}", from.trim(), to.trim()),
        None => part.trim().to_owned(),
    };
    range.split("||").map(one).collect::<Vec<_>>().join(" || ")
}
