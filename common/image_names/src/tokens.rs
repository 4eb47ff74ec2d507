//! Names in text: arguments, environment variables, annotations, and configurations inside ConfigMaps.
//!
//! A word counts as the name of an image if it parses as one and has a tag or a digest. Many other words have this form,
//! such as `host:port`, `namespace/service:port` or the roles of Kubernetes (`system:auth-delegator`), so a word without
//! a registry must look more like an image than like those.

use imgsync_oci::{Reference, Tag, is_registry_part};

use crate::templates::{has_template, strip_scheme};

/// Maximum length of a name: a registry and repository of 255 characters, a tag and a sha512 digest.
const MAX_TOKEN_BYTES: usize = 600;

/// Returns the words of a line that may be names of images.
pub(crate) fn images_in(line: &str) -> impl Iterator<Item = Reference> {
    line.split(|c: char| c.is_whitespace() || "\"'`=,;|\\".contains(c)).filter_map(parse_token)
}

/// Parses a word that may be the name of an image.
fn parse_token(word: &str) -> Option<Reference> {
    // Brackets around it, and the end of a sentence.
    let word = word.trim_start_matches(['(', '[', '{', '<']).trim_end_matches([')', ']', '}', '>', '.', ':']);
    if word.len() > MAX_TOKEN_BYTES || !word.contains([':', '@']) || has_template(word) {
        return None;
    }
    let name = strip_scheme(word);
    let image = name.parse::<Reference>().ok()?;
    if image.digest.is_some() {
        return Some(image);
    }
    let tag = image.tag.as_ref()?;
    let before_tag = &name[..name.len() - tag.as_str().len() - 1];
    match before_tag.split_once('/') {
        None => (is_plain_word(before_tag) && is_version(tag)).then_some(image),
        Some((first, _)) => {
            let has_registry = is_registry_part(first);
            (has_registry && is_host(first) || !has_registry && !is_port(tag) && !is_mode(tag)).then_some(image)
        }
    }
}

/// Returns whether a name without a slash can be that of an official image, rather than a host or a number.
fn is_plain_word(name: &str) -> bool {
    !name.contains('.') && name.starts_with(|c: char| c.is_ascii_lowercase()) && !matches!(name, "sha256" | "sha512")
}

/// Returns whether a tag looks like the port of a service (`namespace/service:6379`), rather than a version (`org/app:7`).
fn is_port(tag: &Tag) -> bool {
    let tag = tag.as_str();
    let is_small = tag.len() <= 2 && !matches!(tag, "21" | "22" | "23" | "25" | "53" | "80" | "88");
    tag.bytes().all(|byte| byte.is_ascii_digit()) && !is_small
}

/// Returns whether a tag is a version such as `1.25`, `v2.0-alpine`, `18-alpine`, or `latest`.
fn is_version(tag: &Tag) -> bool {
    let text = tag.as_str();
    let number = text.strip_prefix('v').unwrap_or(text);
    let has_dot = number.split_once('.').is_some_and(|(major, rest)| {
        !major.is_empty()
            && major.bytes().all(|byte| byte.is_ascii_digit())
            && rest.starts_with(|c: char| c.is_ascii_digit())
    });
    let is_variant = number.split_once('-').is_some_and(|(major, rest)| {
        !major.is_empty()
            && major.bytes().all(|byte| byte.is_ascii_digit())
            && rest.starts_with(|c: char| c.is_ascii_alphabetic())
    });
    text == "latest" || has_dot || is_variant
}

/// Returns whether the part before the first slash can be a registry: `1.2` and `v1.2` are versions.
fn is_host(host: &str) -> bool {
    let is_number = |c: char| c.is_ascii_digit() || c == '.';
    host.contains(':')
        || !host.trim_start_matches('v').chars().all(is_number)
        || host.parse::<std::net::Ipv4Addr>().is_ok()
}

/// Modes of a mount: `data/files:ro`.
fn is_mode(tag: &Tag) -> bool {
    matches!(tag.as_str(), "ro" | "rw" | "z" | "Z" | "cached" | "delegated" | "consistent")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(text: &str) -> Vec<String> {
        text.lines().flat_map(images_in).map(|image| image.to_string()).collect()
    }

    #[test]
    fn images_in_text_are_found() {
        let digest = imgsync_oci::Digest::sha256(b"x");
        for (text, name) in [
            ("--prometheus-config-reloader=quay.io/po/reloader:v0.75.0", "quay.io/po/reloader:v0.75.0"),
            ("\"image\": \"docker.io/istio/proxyv2:1.22.0\",", "docker.io/istio/proxyv2:1.22.0"),
            ("  image: 'team/app:main-3'", "docker.io/team/app:main-3"),
            ("my_team/my_app:1.2", "docker.io/my_team/my_app:1.2"),
            ("(see r.example/a:1)", "r.example/a:1"),
            ("r.example/my_team/my_app:1", "r.example/my_team/my_app:1"),
            ("use busybox:1.36.", "docker.io/library/busybox:1.36"),
            ("--img=node:18-alpine", "docker.io/library/node:18-alpine"),
            ("bitnami/redis:7", "docker.io/bitnami/redis:7"),
            ("busybox:latest", "docker.io/library/busybox:latest"),
            ("localhost:5000/a:b", "localhost:5000/a:b"),
            ("oci://ghcr.io/org/chart:1.0.0", "ghcr.io/org/chart:1.0.0"),
            (&format!("see r.example/a/b@{digest}"), &format!("r.example/a/b@{digest}")),
            (&format!("r.example/a/b:1@{digest}"), &format!("r.example/a/b:1@{digest}")),
        ] {
            assert_eq!(names(text), [name], "{text}");
        }
    }

    #[test]
    fn other_words_with_colons_are_not_images() {
        let digest = imgsync_oci::Digest::sha256(b"x").to_string();
        for text in [
            "system:auth-delegator",
            "system:serviceaccount:kube-system:default",
            "redis:6379",
            "grafana.monitoring.svc:3000",
            "http://prometheus:9090/api",
            "https://example.com/a:1.0",
            "default/redis:6379",
            "default/web:80",
            "interval:10m",
            "date:2024-05-01",
            "id:3f2504e0-4f89-11d3",
            "/etc/config:ro",
            "data/files:ro",
            "2024-05-01T10:00:00Z",
            "10:30",
            "key: value",
            "arn:aws:iam::123456789012:role/x",
            "{{ .Values.image }}:1.0",
            "${REGISTRY}/a:1.0",
            "$(PREFIX)team/a:1.0",
            "1.2/x:y",
            "a.b.example:8080/path",
            "127.0.0.1:8080",
            "[::1]:8080",
            "user@example.com",
            "urn:x-y:1.0",
            digest.as_str(),
            &"a".repeat(10_000),
            &format!("{}:1.0", "a".repeat(10_000)),
        ] {
            assert_eq!(names(text), [""; 0], "{text}");
        }
    }
}
