//! `creds`: registries with credentials and settings.

use imgsync_oci::RegistryName;
use serde_json::{Map, Value};

use super::super::draft::{ConfigDraft, DraftValue, parse_variable};
use super::super::{as_text, as_texts, unknown_keys};

const CREDS_KEYS: [&str; 16] = [
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
    "pathPrefix",
    "credHelper",
];

/// Converts an entry of `creds`.
pub(super) fn read_credentials(entry: &Map<String, Value>, draft: &mut ConfigDraft) {
    let Some(registry) = as_text(entry.get("registry")) else {
        return draft.add_note("creds: an entry without `registry` was not imported");
    };
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
    let is_loopback = registry.parse::<RegistryName>().is_ok_and(|registry| registry.is_loopback());
    if is_loopback && !plain {
        // Plain HTTP is the default there, but not in regsync.
        draft.set_registry_key(registry, "tls", DraftValue::text("on"));
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
            draft.set_registry_key(registry, ours, DraftValue::pem(value));
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
    if let Some(helper) = value("credHelper") {
        draft.add_note(format!(
            "creds of {registry}: `credHelper: {helper}`: name it under `credHelpers` in docker's config.json, which \
             imgsync reads"
        ));
    }
    if let Some(prefix) = value("pathPrefix") {
        draft.record_omission(format!(
            "creds of {registry}: `pathPrefix: {prefix}`: write the prefix into `from` and `to` of the rules"
        ));
    }
    for key in unknown_keys(entry, &CREDS_KEYS) {
        draft.add_note(format!("creds of {registry}: `{key}` has no equivalent"));
    }
}
