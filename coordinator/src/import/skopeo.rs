//! Files of `skopeo sync --src yaml` (skopeo-sync(1), "YAML file content"): registries with images, tags and
//! credentials, without a target.

use imgsync_model::select::VersionRange;
use serde_json::{Map, Value};

use super::draft::{ConfigDraft, DraftRule, DraftValue};
use super::target_mapping::{is_date_selected, pattern_from_regex, pattern_from_tag};
use super::{ImportHints, as_text, filter_texts, unknown_keys};

/// Tags that are versions without a suffix.
const PLAIN_VERSION: &str = r"/v?[0-9]+(\.[0-9]+){0,2}/";

const REGISTRY_KEYS: [&str; 6] =
    ["images", "images-by-tag-regex", "images-by-semver", "credentials", "tls-verify", "cert-dir"];

pub(super) fn read_file(tree: &Value, hints: &ImportHints, draft: &mut ConfigDraft) -> Result<(), String> {
    let registries = tree.as_object().ok_or("skopeo's file is a mapping of registries")?;
    let to = hints.to.clone().ok_or("a skopeo file has no target; set it with --to")?;
    let name = hints.naming.clone().unwrap_or_else(|| "basename".to_owned());
    for (registry, settings) in registries {
        let Some(settings) = settings.as_object() else {
            draft.record_omission(format!("{registry}: it is not a mapping"));
            continue;
        };
        let rule = |image: &str| DraftRule {
            from: format!("{registry}/{}", image.trim_matches('/')),
            to: vec![to.clone()],
            naming: Some(name.clone()),
            ..DraftRule::default()
        };
        for key in ["images", "images-by-tag-regex", "images-by-semver"] {
            if settings.get(key).is_some_and(|images| !images.is_null() && !images.is_object()) {
                draft.record_omission(format!("{registry}: `{key}` is not a mapping"));
            }
        }
        let nothing = Map::new();
        let images = settings.get("images").and_then(Value::as_object).unwrap_or(&nothing);
        for image in images.keys() {
            let mut rule = rule(image);
            let Ok(tags) = filter_texts(images, image) else {
                draft.record_omission(format!("{registry}/{image}: its tags are not a list of texts"));
                continue;
            };
            let all = tags.is_empty();
            for tag in tags {
                match pattern_from_tag(tag) {
                    Ok(pattern) if !tag.contains(':') => rule.include.push(pattern),
                    _ => draft.record_omission(format!(
                        "{registry}/{image}: `{tag}` is not a tag; `imgsync sync` copies by digest"
                    )),
                }
            }
            if all || !rule.include.is_empty() {
                draft.add_rule(rule);
            }
        }
        for (image, regex) in image_entries(settings.get("images-by-tag-regex")) {
            let regex = as_text(Some(regex)).unwrap_or_default();
            match pattern_from_regex(regex) {
                Ok(pattern) => draft.add_rule(DraftRule { include: vec![pattern], ..rule(image) }),
                Err(error) => draft.record_omission(format!("{registry}/{image}: {error}")),
            }
        }
        for (image, range) in image_entries(settings.get("images-by-semver")) {
            let range = convert_hyphen_ranges(as_text(Some(range)).unwrap_or_default());
            if range.contains('-') {
                draft.record_omission(format!(
                    "{registry}/{image}: `{range}`: suffixes make no difference to a range here"
                ));
                continue;
            }
            match range.parse::<VersionRange>() {
                Ok(_) => {
                    // A version with a suffix is a pre-release for skopeo, which a range without one leaves out.
                    let include = vec![PLAIN_VERSION.to_owned()];
                    if has_no_upper_bound(&range) && is_date_selected(&include, &[]) {
                        draft.record_omission(format!(
                            "{registry}/{image}: `{range}`: skopeo takes dates such as 20250301 for versions; add a \
                             rule for them if you need them"
                        ));
                    }
                    draft.add_rule(DraftRule { include, semver: Some(range), ..rule(image) });
                }
                Err(error) => draft.record_omission(format!("{registry}/{image}: {error}")),
            }
        }
        if let Some(credentials) = settings.get("credentials").and_then(Value::as_object) {
            if let Some(user) = as_text(credentials.get("username")) {
                draft.set_username(registry, user);
            }
            if let Some(password) = as_text(credentials.get("password")) {
                draft.set_secret(registry, "password", password);
            }
        }
        if as_text(settings.get("tls-verify")).is_some_and(|verify| verify.eq_ignore_ascii_case("false")) {
            draft.set_registry_key(registry, "insecure", DraftValue::Flag(true));
            draft.add_note(format!(
                "{registry}: `tls-verify: false` is `insecure: true` here; if it speaks plain HTTP, write `tls: off`"
            ));
        }
        if let Some(folder) = as_text(settings.get("cert-dir")) {
            draft.add_note(format!(
                "{registry}: `cert-dir` has no equivalent; set `ca`, `client_cert` and `client_key` to the files in \
                 {folder}"
            ));
        }
        for key in unknown_keys(settings, &REGISTRY_KEYS) {
            draft.add_note(format!("{registry}: `{key}` has no equivalent"));
        }
    }
    if hints.naming.is_none() {
        draft.add_note("targets are named as by skopeo without --scoped; for --scoped use --naming full");
    }
    draft.require_rules()
}

fn image_entries(images: Option<&Value>) -> impl Iterator<Item = (&str, &Value)> {
    images.and_then(Value::as_object).into_iter().flatten().map(|(image, value)| (image.as_str(), value))
}

/// Whether one of the alternatives of a range has no upper bound.
fn has_no_upper_bound(range: &str) -> bool {
    let is_open = |alternative: &str| {
        let is_lower = |part: &str| part.starts_with('>') || part.starts_with(['*', 'x', 'X']);
        let comparators = alternative.replace("> ", ">").replace("= ", "=");
        comparators.split([' ', ',']).filter(|part| !part.is_empty()).all(is_lower)
    };
    range.split("||").any(is_open)
}

/// Converts the hyphen range `1.2 - 2.3` into two comparators.
fn convert_hyphen_ranges(range: &str) -> String {
    let one = |part: &str| match part.split_once(" - ") {
        Some((from, to)) => format!(">={} <={}", from.trim(), to.trim()),
        None => part.trim().to_owned(),
    };
    range.split("||").map(one).collect::<Vec<_>>().join(" || ")
}
