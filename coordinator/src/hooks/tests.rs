//! Payloads in the shapes that each sender documents, and what is read from them.

use axum::http::{HeaderMap, HeaderName, HeaderValue};
use imgsync_config::HookKind;
use imgsync_model::batch::PushedReference;
use imgsync_oci::{Digest, RegistryName};

use serde_json::json;

use super::{MAX_NOTIFICATIONS, NotificationRefusal, NotifiedAction, PayloadError, RegistryNotification, parse};

fn payload(name: &str) -> Vec<u8> {
    std::fs::read(format!("{}/src/hooks/payloads/{name}", env!("CARGO_MANIFEST_DIR"))).unwrap()
}

fn headers(pairs: &[(&'static str, &'static str)]) -> HeaderMap {
    pairs.iter().map(|(name, value)| (HeaderName::from_static(name), HeaderValue::from_static(value))).collect()
}

/// Returns what the notifications of a payload say, as `repository reference digest`, or the action.
fn read(kind: HookKind, name: &str, pairs: &[(&'static str, &'static str)], registry: &str) -> Vec<String> {
    let registry: RegistryName = registry.parse().unwrap();
    let say = |notification: RegistryNotification| match notification.action {
        NotifiedAction::Push | NotifiedAction::Delete => match notification.push(&registry) {
            Ok((repository, PushedReference::Tag(tag, Some(digest)))) => {
                format!("{repository}:{tag} {}", digest.short())
            }
            Ok((repository, PushedReference::Tag(tag, None))) => format!("{repository}:{tag}"),
            Ok((repository, PushedReference::Manifest(digest))) => format!("{repository}@{}", digest.short()),
            Ok((repository, PushedReference::Unknown)) => format!("{repository} ?"),
            Ok((repository, PushedReference::Deletion)) => format!("{repository} deletion"),
            Err(refusal) => refusal.as_str().to_owned(),
        },
        action => format!("{action:?}"),
    };
    parse(kind, &headers(pairs), &payload(name)).unwrap().into_iter().map(say).collect()
}

#[test]
fn documented_payloads_of_all_senders_are_read() {
    let gitea = [("x-gitea-event", "package"), ("x-gitea-delivery", "1")];
    let github = [("x-github-event", "registry_package"), ("x-github-delivery", "1")];
    let zot = [("ce-type", "zotregistry.image.updated"), ("ce-id", "1"), ("ce-source", "zotregistry.dev")];
    for (kind, name, pairs, registry, wanted) in [
        (
            HookKind::Distribution,
            "distribution.json",
            &[][..],
            "r.example",
            &["Other", "team/app@aaaaaaaaaaaa", "team/app:1.0 bbbbbbbbbbbb", "Other", "team/app deletion"][..],
        ),
        (
            HookKind::GitLab,
            "distribution.json",
            &[],
            "r.example",
            &["Other", "team/app@aaaaaaaaaaaa", "team/app:1.0 bbbbbbbbbbbb", "Other", "team/app deletion"],
        ),
        (HookKind::Harbor, "harbor.json", &[], "r.example", &["team/app:1.0 aaaaaaaaaaaa", "team/app@bbbbbbbbbbbb"]),
        (HookKind::Harbor, "harbor-cloudevents.json", &[], "r.example", &["team/app:1.0 aaaaaaaaaaaa"]),
        (HookKind::Harbor, "harbor-deleted.json", &[], "r.example", &["team/app deletion"]),
        (HookKind::DockerHub, "docker-hub.json", &[], "docker.io", &["svendowideit/testhook:latest"]),
        (HookKind::Quay, "quay.json", &[], "quay.io", &["mynamespace/repository:latest", "mynamespace/repository:1.0"]),
        (HookKind::Quay, "quay.json", &[], "quay.example", &["foreign_host", "foreign_host"]),
        (HookKind::GitHub, "github.json", &github, "ghcr.io", &["octo-org/app:1.0 aaaaaaaaaaaa"]),
        (HookKind::GitHub, "github-untagged.json", &github, "ghcr.io", &["octo-org/app@aaaaaaaaaaaa"]),
        (HookKind::GitHub, "github.json", &[("x-github-event", "ping")], "ghcr.io", &["Ping"]),
        (HookKind::GitHub, "github.json", &[("x-github-event", "push")], "ghcr.io", &["Other"]),
        (HookKind::Acr, "acr.json", &[], "myregistry.azurecr.io", &["hello-world:v1 aaaaaaaaaaaa"]),
        (HookKind::Acr, "acr.json", &[], "other.azurecr.io", &["foreign_host"]),
        (
            HookKind::ArtifactRegistry,
            "artifact-registry.json",
            &[],
            "us-east1-docker.pkg.dev",
            &["project/repo/app:1.0 aaaaaaaaaaaa"],
        ),
        (
            HookKind::Ecr,
            "ecr.json",
            &[],
            "123456789012.dkr.ecr.us-west-2.amazonaws.com",
            &["team/app:1.0 aaaaaaaaaaaa"],
        ),
        (HookKind::Ecr, "ecr.json", &[], "210987654321.dkr.ecr.us-west-2.amazonaws.com", &["foreign_host"]),
        (
            HookKind::Ecr,
            "sns.json",
            &[],
            "123456789012.dkr.ecr.us-west-2.amazonaws.com",
            &["team/app:1.0 aaaaaaaaaaaa"],
        ),
        (HookKind::Ecr, "sns-confirmation.json", &[], "r.example", &["Confirmation"]),
        (HookKind::Zot, "zot.json", &[], "r.example", &["team/app:1.0 aaaaaaaaaaaa"]),
        (HookKind::Zot, "zot-binary.json", &zot, "r.example", &["team/app@aaaaaaaaaaaa"]),
        (HookKind::Gitea, "gitea.json", &gitea, "r.example", &["team/app:1.0"]),
        (
            HookKind::Generic,
            "generic.json",
            &[],
            "r.example",
            &["team/app:1.0 aaaaaaaaaaaa", "team/app:2.0", "foreign_host", "team/app ?", "invalid_name"],
        ),
    ] {
        assert_eq!(read(kind, name, pairs, registry), wanted, "{kind} {name}");
    }
}

#[test]
fn notifications_that_are_sent_again_have_the_same_id() {
    let id = |kind, name: &str, pairs: &[(&'static str, &'static str)]| {
        let ids = parse(kind, &headers(pairs), &payload(name)).unwrap().into_iter().map(|it| it.id);
        let mut ids: Vec<Option<String>> = ids.collect();
        let all = ids.len();
        ids.dedup();
        assert_eq!(ids.len(), all, "each has its own");
        ids.remove(0)
    };
    assert_eq!(id(HookKind::Distribution, "distribution.json", &[]).as_deref(), Some("id-1"));
    assert_eq!(id(HookKind::Acr, "acr.json", &[]).as_deref(), Some("cb8c3971-9adc-488b-xxxx-43cbb4974ff5"));
    assert_eq!(id(HookKind::ArtifactRegistry, "artifact-registry.json", &[]).as_deref(), Some("136969346945"));
    assert_eq!(id(HookKind::Ecr, "ecr.json", &[]).as_deref(), Some("13cde686-328b-6117-af20-0e5566167482"));
    assert_eq!(id(HookKind::DockerHub, "docker-hub.json", &[]), None);
}

#[test]
fn what_is_no_payload_of_its_kind_is_malformed() {
    for kind in HookKind::ALL {
        let head = headers(&[("x-github-event", "package"), ("x-gitea-event", "package")]);
        for body in ["", "{", "[]", "null", "{}", "\"x\"", "{\"events\": 7}", "\u{0}"] {
            assert!(
                matches!(parse(kind, &head, body.as_bytes()), Err(PayloadError::Malformed(_))),
                "{kind} accepts {body}"
            );
        }
        let deep = "[".repeat(100_000);
        assert!(parse(kind, &head, deep.as_bytes()).is_err(), "{kind}");
        let deep = format!("{{\"x\": {}", "[".repeat(100_000));
        assert!(parse(kind, &head, deep.as_bytes()).is_err(), "{kind}");
    }
    let form = headers(&[("x-github-event", "package"), ("content-type", "application/x-www-form-urlencoded")]);
    assert_eq!(parse(HookKind::GitHub, &form, b"payload=%7B%7D"), Err(PayloadError::Form));
    let many = format!("{{\"events\": [{}{{}}]}}", "{},".repeat(1_000));
    assert!(parse(HookKind::Distribution, &HeaderMap::new(), many.as_bytes()).is_err(), "more than a thousand");
}

#[test]
fn names_are_data() {
    let registry: RegistryName = "r.example".parse().unwrap();
    let push = |repository: &str, tag: Option<&str>, digest: Option<&str>| {
        let own = |text: &str| text.to_owned();
        let notification = RegistryNotification {
            repository: own(repository),
            tag: tag.map(own),
            digest: digest.map(own),
            ..RegistryNotification::default()
        };
        notification.push(&registry)
    };
    for (repository, tag, digest) in [
        ("", Some("1"), None),
        ("../a", Some("1"), None),
        ("a/../b", Some("1"), None),
        ("a//b", Some("1"), None),
        ("A", Some("1"), None),
        ("a?x=1", Some("1"), None),
        ("a", Some("../1"), None),
        ("a", Some("1\n2"), None),
        ("a", Some("1"), Some("sha256:short")),
        ("a", Some("sha256:short"), None),
    ] {
        assert_eq!(push(repository, tag, digest), Err(NotificationRefusal::InvalidName), "{repository} {tag:?}");
    }
    let digest = Digest::sha256(b"x").to_string();
    // Some senders write the digest where a tag is expected.
    assert!(matches!(push("a", Some(&digest), Some(&digest)), Ok((_, PushedReference::Manifest(_)))));
    assert!(matches!(push("a", Some(""), Some(&digest)), Ok((_, PushedReference::Manifest(_)))));
}

#[test]
fn a_text_that_would_be_copied_into_each_notification_is_short() {
    let long = "a".repeat(2_000);
    let tags = vec![""; MAX_NOTIFICATIONS];
    for (kind, payload) in [
        (HookKind::Quay, json!({"repository": long, "updated_tags": tags})),
        (HookKind::Quay, json!({"repository": "a/b", "docker_url": format!("{long}/a"), "updated_tags": tags})),
        (HookKind::Harbor, json!({"type": "PUSH_ARTIFACT", "id": long, "event_data": {"resources": [{"tag": "1"}]}})),
        (HookKind::Generic, json!({"id": long, "images": ["r.example/a:1"]})),
    ] {
        let parsed = parse(kind, &HeaderMap::new(), payload.to_string().as_bytes());
        assert!(matches!(parsed, Err(PayloadError::Malformed("a text is too long"))), "{kind}: {parsed:?}");
    }
}
