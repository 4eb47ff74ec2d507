//! Sources listed through vendor APIs: all pages with all their data, and no error is taken for an empty list.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use imgsync_tests::FaultRegistry;
use imgsync_tests::fault::{Bearer, FaultAction, RequestMatcher, RequestType, VendorKind};
use imgsync_tests::images;
use imgsync_tests::program::Signal;
use serde_json::Value;

use super::{VendorRegistries, lines, put_tags, tags};

/// 2025-01-01.
const NEW_YEAR_2025_MS: u64 = 1_735_689_600_000;

fn refused(code: u16, headers: &[(&str, String)]) -> FaultAction {
    let headers = headers.iter().map(|(name, value)| ((*name).to_owned(), value.clone())).collect();
    FaultAction::Status { code, headers, body: r#"{"message": "as the test asked for"}"#.into() }
}

fn epoch_in(seconds: u64) -> String {
    (SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs() + seconds).to_string()
}

#[tokio::test]
async fn each_lists_a_namespace_by_pages_and_tags_with_digests_and_dates() {
    for vendor in VendorRegistries::ALL {
        let registry = FaultRegistry::builder().vendor(vendor).page(2).start().await;
        let multi = images::multi_platform("vendor");
        registry.push("me/app", "multi", &multi);
        registry.set_uploaded("me/app", &multi.root, NEW_YEAR_2025_MS);
        for tag in ["1", "2", "3", "4"] {
            registry.push("me/app", tag, &images::single(tag));
        }
        registry.push("me/b", "1", &images::single("b"));
        registry.push("me/c", "1", &images::single("c"));
        registry.push("other/x", "1", &images::single("x"));
        let output = VendorRegistries::tags(vendor, &registry, "me/*", &["--json"]).await.assert_code(0);
        let found: Vec<Value> = lines(&output).iter().map(|line| serde_json::from_str(line).unwrap()).collect();
        assert_eq!(found.len(), 7, "{vendor:?}: {}", output.stdout);
        for line in &found {
            let (repository, tag) = (line["repository"].as_str().unwrap(), line["tag"].as_str().unwrap());
            assert_eq!(line["digest"].as_str(), registry.tag_digest(repository, tag).as_deref(), "{vendor:?} {line}");
            assert!(line["created"].is_string(), "{vendor:?} {line}");
        }
        let multi = found.iter().find(|line| line["tag"] == "multi").unwrap();
        assert_eq!(multi["created"], "2025-01-01T00:00:00Z", "{vendor:?}");
        if matches!(vendor, VendorKind::Hub | VendorKind::Harbor) {
            assert_eq!(multi["media_type"], images::media::OCI_INDEX, "{vendor:?}");
        }
        // GitHub also lists untagged versions, here the two platforms.
        let pages = if vendor == VendorKind::GitHub { 4 + 1 + 1 } else { 3 + 1 + 1 };
        let asked =
            (registry.count(RequestType::ApiRepositories), registry.count(RequestType::ApiTags), registry.total());
        assert_eq!(asked, (2, pages, 2 + pages), "{vendor:?}: {}", registry.describe_requests());
    }
}

#[tokio::test]
async fn repositories_deeper_in_a_namespace_are_found_where_there_can_be_any() {
    for vendor in [VendorKind::Quay, VendorKind::Harbor, VendorKind::GitHub] {
        let registry = FaultRegistry::builder().vendor(vendor).start().await;
        for name in ["me/a", "me/team/a", "me/team/b/c"] {
            put_tags(&registry, name, ["1"]);
        }
        let host = VendorRegistries::name(vendor);
        let output = VendorRegistries::tags(vendor, &registry, "me/team/**", &[]).await.assert_code(0);
        assert_eq!(lines(&output), [format!("{host}/me/team/a:1"), format!("{host}/me/team/b/c:1")], "{vendor:?}");
        assert_eq!((registry.count(RequestType::ApiTags), registry.count(RequestType::Tags)), (2, 0), "{vendor:?}");
    }
}

#[tokio::test]
async fn a_page_that_fails_is_asked_for_again_and_then_an_error_that_no_other_list_hides() {
    for vendor in VendorRegistries::ALL {
        let registry = FaultRegistry::builder().vendor(vendor).page(2).start().await;
        put_tags(&registry, "me/app", ["1", "2", "3", "4", "5"]);
        put_tags(&registry, "me/other", ["1"]);
        let second = || {
            RequestMatcher::kind(RequestType::ApiTags)
                .repository("me/app")
                .when(|request| request.query.contains("page=2"))
        };
        registry.on(second()).times(2).act(FaultAction::status(503));
        let output = VendorRegistries::tags(vendor, &registry, "me/app", &[]).await.assert_code(0);
        assert_eq!(lines(&output), ["1", "2", "3", "4", "5"], "{vendor:?}");
        registry.clear_requests();
        registry.on(second()).always().act(FaultAction::status(500));
        let output = VendorRegistries::tags(vendor, &registry, "me/*", &["--attempts", "2"]).await.assert_code(1);
        let host = VendorRegistries::name(vendor);
        assert_eq!(lines(&output), [format!("{host}/me/other:1")], "{vendor:?}: no half of a list");
        let error = format!("error: listing the tags of {host}/me/app by ");
        assert!(output.stderr.contains(&error) && output.stderr.contains("failed 2 times"), "{}", output.stderr);
        assert_eq!(registry.count(RequestType::Tags), 0, "dates would be missing: {}", registry.describe_requests());
        // A namespace with a missing page is not taken for a small one.
        let middle = registry.on(RequestType::ApiRepositories).always().act(FaultAction::status(502));
        let output = VendorRegistries::tags(vendor, &registry, "me/*", &["--attempts", "2"]).await.assert_code(1);
        assert!(output.stdout.is_empty() && output.stderr.contains("502 Bad Gateway"), "{}", output.stderr);
        assert_eq!(middle.hits(), 2);
    }
}

#[tokio::test]
async fn a_limited_rate_is_waited_out_as_each_tells_it() {
    for vendor in VendorRegistries::ALL {
        let registry = FaultRegistry::builder().vendor(vendor).page(1).start().await;
        put_tags(&registry, "me/app", ["1", "2"]);
        let limited = match vendor {
            VendorKind::Quay | VendorKind::Harbor => refused(429, &[("retry-after", "1".to_owned())]),
            VendorKind::Hub => {
                refused(429, &[("x-ratelimit-remaining", "0".to_owned()), ("x-ratelimit-reset", epoch_in(2))])
            }
            VendorKind::GitHub => {
                refused(403, &[("x-ratelimit-remaining", "0".to_owned()), ("x-ratelimit-reset", epoch_in(2))])
            }
        };
        registry.on(RequestType::ApiTags).skip(1).act(limited);
        let output = VendorRegistries::tags(vendor, &registry, "me/app", &[]).await.assert_code(0);
        assert_eq!(lines(&output), ["1", "2"], "{vendor:?}");
        assert!(output.stderr.contains("retrying in"), "{vendor:?}: {}", output.stderr);
        assert_eq!(registry.count(RequestType::Tags), 0);
        assert_eq!(registry.count(RequestType::ApiTags), 3, "{vendor:?}: {}", registry.describe_requests());
    }
}

#[tokio::test]
async fn a_limit_that_lasts_is_said_and_not_taken_for_an_empty_list() {
    let registry = FaultRegistry::builder().vendor(VendorKind::GitHub).start().await;
    put_tags(&registry, "me/app", ["1"]);
    let limited = refused(403, &[("x-ratelimit-remaining", "0".to_owned()), ("x-ratelimit-reset", epoch_in(3600))]);
    registry.on(RequestType::ApiTags).always().act(limited);
    let output = VendorRegistries::tags(VendorKind::GitHub, &registry, "me/app", &[]).await.assert_code(1);
    assert!(output.stdout.is_empty() && output.stderr.contains("retry after that"), "{}", output.stderr);
    assert_eq!(registry.total(), 1, "{}", registry.describe_requests());
}

#[tokio::test]
async fn a_namespace_that_is_empty_or_missing_is_an_error_that_says_so() {
    for vendor in VendorRegistries::ALL {
        let registry = FaultRegistry::builder().vendor(vendor).namespace("empty").start().await;
        put_tags(&registry, "me/app", ["1"]);
        let output = VendorRegistries::tags(vendor, &registry, "empty/*", &[]).await.assert_code(1);
        assert!(output.stderr.contains("no repository matches"), "{vendor:?}: {}", output.stderr);
        let output = VendorRegistries::tags(vendor, &registry, "missing/*", &[]).await.assert_code(1);
        let words = match vendor {
            // It answers for everything.
            VendorKind::Quay => "no repository matches",
            _ => "name the repositories explicitly",
        };
        assert!(output.stderr.contains(words) && output.stdout.is_empty(), "{vendor:?}: {}", output.stderr);
        let output = VendorRegistries::tags(vendor, &registry, "me/z*", &[]).await.assert_code(1);
        assert!(output.stderr.contains("no repository matches"), "{vendor:?}: {}", output.stderr);
        assert_eq!(registry.count(RequestType::Catalog) + registry.count(RequestType::Tags), 0);
    }
}

#[tokio::test]
async fn a_repository_that_vanishes_after_the_namespace_was_listed_fails_alone() {
    for vendor in VendorRegistries::ALL {
        let registry = FaultRegistry::builder().vendor(vendor).start().await;
        for name in ["me/a", "me/b", "me/c"] {
            put_tags(&registry, name, ["1"]);
        }
        registry
            .on(RequestMatcher::kinds(&[RequestType::ApiTags, RequestType::Tags]).repository("me/b"))
            .always()
            .act(FaultAction::error(404, "NAME_UNKNOWN"));
        let output = VendorRegistries::tags(vendor, &registry, "me/*", &[]).await.assert_code(1);
        let host = VendorRegistries::name(vendor);
        assert_eq!(lines(&output), [format!("{host}/me/a:1"), format!("{host}/me/c:1")], "{vendor:?}");
        let failed = output.stderr.lines().find(|line| line.contains(&format!("{host}/me/b"))).unwrap_or_default();
        assert!(failed.contains("answered 404"), "{vendor:?}: {}", output.stderr);
    }
}

#[tokio::test]
async fn forbidden_api_pages_fall_back_to_the_registrys_own_list_with_a_warning() {
    for vendor in VendorRegistries::ALL {
        let registry = FaultRegistry::builder().vendor(vendor).page(2).start().await;
        put_tags(&registry, "me/app", ["1", "2", "3", "4", "5"]);
        put_tags(&registry, "me/other", ["1", "2", "3"]);
        registry.on(RequestType::ApiTags).skip(1).always().act(refused(403, &[]));
        let output = VendorRegistries::tags(vendor, &registry, "me/app", &["--json"]).await.assert_code(0);
        let found: Vec<Value> = lines(&output).iter().map(|line| serde_json::from_str(line).unwrap()).collect();
        assert_eq!(
            found.iter().map(|line| line["tag"].as_str().unwrap()).collect::<Vec<_>>(),
            ["1", "2", "3", "4", "5"]
        );
        assert!(found.iter().all(|line| line["digest"].is_null()), "one list or the other: {}", output.stdout);
        let fallback_warning = "falling back to the registry's tag list, which has no digests or dates";
        assert_eq!(output.stderr.matches(fallback_warning).count(), 1, "{vendor:?}: {}", output.stderr);
        assert_eq!(registry.count(RequestType::Tags), 3);
        let output = VendorRegistries::tags(vendor, &registry, "me/*", &[]).await.assert_code(0);
        assert_eq!(lines(&output).len(), 8);
        assert_eq!(output.stderr.matches(fallback_warning).count(), 1, "once for a registry: {}", output.stderr);
    }
}

#[tokio::test]
async fn an_old_tag_of_docker_hub_has_no_digest_rather_than_that_of_an_image() {
    let registry = FaultRegistry::builder().vendor(VendorKind::Hub).start().await;
    put_tags(&registry, "me/app", ["old", "new"]);
    let output = VendorRegistries::tags(VendorKind::Hub, &registry, "me/app", &["--json"]).await.assert_code(0);
    let digests: Vec<bool> =
        lines(&output).iter().map(|line| serde_json::from_str::<Value>(line).unwrap()["digest"].is_string()).collect();
    assert_eq!(digests, [true, false], "{}", output.stdout);
}

#[tokio::test]
async fn a_link_to_another_host_is_refused_and_nobody_goes_there() {
    let other = FaultRegistry::start().await;
    for vendor in [VendorKind::Hub, VendorKind::Harbor, VendorKind::GitHub] {
        let registry = FaultRegistry::builder().vendor(vendor).page(1).start().await;
        put_tags(&registry, "me/app", ["1", "2"]);
        let next = format!("{}/v2/namespaces/me/repositories/app/tags?page=2", other.url());
        let action = match vendor {
            VendorKind::Hub => {
                FaultAction::json(&serde_json::json!({"count": 2, "next": next, "results": [{"name": "1"}]}))
            }
            _ => FaultAction::SetHeader("link".into(), format!("<{next}>; rel=\"next\"")),
        };
        registry.on(RequestType::ApiTags).always().act(action);
        let output = VendorRegistries::tags(vendor, &registry, "me/app", &[]).await.assert_code(1);
        assert!(output.stderr.contains(&format!("points to another host, {}", other.url())), "{}", output.stderr);
        assert_eq!(
            (output.stdout.as_str(), other.total_with_pings_and_tokens(), registry.count(RequestType::Tags)),
            ("", 0, 0)
        );
    }
}

#[tokio::test]
async fn what_is_no_list_is_no_empty_one() {
    for vendor in VendorRegistries::ALL {
        for body in ["<html>welcome</html>", "{}", "{\"message\": \"hello\"}", "null", "\"\""] {
            let registry = FaultRegistry::builder().vendor(vendor).start().await;
            put_tags(&registry, "me/app", ["1"]);
            let odd = || FaultAction::Status { code: 200, headers: vec![], body: body.into() };
            registry.on(RequestType::ApiRepositories).act(odd());
            let output = VendorRegistries::tags(vendor, &registry, "me/*", &[]).await.assert_code(1);
            let said = ["cannot be parsed", "is not a listing"].iter().any(|words| output.stderr.contains(words));
            assert!(said && output.stdout.is_empty(), "{vendor:?} {body}: {}", output.stderr);
            registry.on(RequestType::ApiTags).act(odd());
            let output = VendorRegistries::tags(vendor, &registry, "me/app", &[]).await.assert_code(0);
            assert_eq!(lines(&output), ["1"], "{vendor:?} {body}");
        }
    }
}

#[tokio::test]
async fn an_endpoint_or_a_word_turns_the_vendors_api_off() {
    let registry = FaultRegistry::builder().vendor(VendorKind::Hub).start().await;
    put_tags(&registry, "me/app", ["1"]);
    let url = registry.url();
    for entry in [format!("endpoint: '{url}'"), format!("endpoint: '{url}', listing: registry")] {
        let entry = format!("  docker.io: {{{entry}}}\n");
        let output = VendorRegistries::tags_with(&entry, VendorKind::Hub, "me/*", &[]).await.assert_code(0);
        assert_eq!(lines(&output), ["docker.io/me/app:1"]);
    }
    assert_eq!(registry.count(RequestType::ApiRepositories) + registry.count(RequestType::ApiTags), 0);
    // With its own name and no endpoint the vendor is known.
    let quay = FaultRegistry::builder().vendor(VendorKind::Quay).start().await;
    put_tags(&quay, "me/app", ["1"]);
    let program = super::tags_command(&format!("{}/me/*", quay.host()), &[]);
    program.file("imgsync.yaml", format!("registries: {{'{}': {{listing: quay}}}}\n", quay.host()));
    program.run().await.assert_code(0);
    assert_eq!((quay.count(RequestType::ApiRepositories), quay.count(RequestType::ApiTags), quay.total()), (1, 1, 2));
}

#[tokio::test]
async fn an_api_out_of_reach_is_said_with_what_to_do_without_it() {
    let registry = FaultRegistry::start().await;
    put_tags(&registry, "me/app", ["1"]);
    let entry = format!("  docker.io: {{endpoint: '{}', api: 'http://localhost:1'}}\n", registry.url());
    let output =
        VendorRegistries::tags_with(&entry, VendorKind::Hub, "me/app", &["--attempts", "1"]).await.assert_code(0);
    assert!(output.stderr.contains("set `listing: registry` for docker.io"), "{}", output.stderr);
    assert_eq!((lines(&output), registry.count(RequestType::Tags), registry.total()), (vec!["1"], 1, 1));
    // There is no other way to list the repositories of a namespace.
    let output =
        VendorRegistries::tags_with(&entry, VendorKind::Hub, "me/*", &["--attempts", "1"]).await.assert_code(3);
    assert!(output.stderr.contains("Docker Hub's API"), "{}", output.stderr);
    assert_eq!(registry.total(), 1);
}

#[tokio::test]
async fn a_pattern_without_a_namespace_is_refused_where_no_api_lists_all() {
    for vendor in VendorRegistries::ALL {
        let registry = FaultRegistry::builder().vendor(vendor).start().await;
        put_tags(&registry, "me/app", ["1"]);
        let (output, code) = (
            VendorRegistries::tags(vendor, &registry, "**", &[]).await,
            if vendor == VendorKind::Harbor { 0 } else { 1 },
        );
        let output = output.assert_code(code);
        match vendor {
            VendorKind::Harbor => assert_eq!(lines(&output), ["harbor.example.org/me/app:1"]),
            _ => {
                assert!(output.stderr.contains("begin with a namespace"), "{vendor:?}: {}", output.stderr);
                assert_eq!(registry.total(), 0);
            }
        }
    }
}

#[tokio::test]
async fn a_harbor_is_recognised_by_how_it_asks_for_a_login() {
    let bearer = || Bearer::anonymous().service("harbor-registry");
    let registry = FaultRegistry::builder().vendor(VendorKind::Harbor).bearer(bearer()).start().await;
    for name in ["me/a", "me/b"] {
        put_tags(&registry, name, ["1", "2"]);
    }
    let output = tags(&registry, "me/*", &["--json"]).await.assert_code(0);
    let lines = lines(&output);
    assert!(lines.len() == 4 && lines.iter().all(|line| line.contains("sha256:")), "{}", output.stdout);
    let asked = |kind| registry.count(kind);
    assert_eq!(
        (asked(RequestType::ApiRepositories), asked(RequestType::ApiTags), asked(RequestType::Catalog)),
        (1, 2, 0)
    );

    // One repository: its plain listing has shown it already.
    registry.clear_requests();
    let output = tags(&registry, "me/a", &["--json"]).await.assert_code(0);
    assert!(output.stdout.contains("sha256:"));
    assert_eq!(asked(RequestType::ApiTags), 1);

    // A repository it refuses is listed by the registry, without a warning.
    registry
        .on(RequestMatcher::kinds(&[RequestType::ApiTags, RequestType::ApiRepositories]))
        .always()
        .act(FaultAction::error(403, "FORBIDDEN"));
    let output = tags(&registry, "me/*", &[]).await.assert_code(1);
    assert!(output.stderr.contains("the repositories of"), "the catalog takes a login: {}", output.stderr);
    registry.clear_requests();
    let output = tags(&registry, "me/a", &[]).await.assert_code(0);
    assert_eq!(super::lines(&output), ["1", "2"]);
    assert!(!output.stderr.contains("warning"), "{}", output.stderr);
}

#[tokio::test]
async fn a_users_packages_are_found_where_there_is_no_such_organization() {
    let registry = FaultRegistry::builder().vendor(VendorKind::GitHub).github_users().start().await;
    for name in ["me/a", "me/b"] {
        put_tags(&registry, name, ["1"]);
    }
    let output = VendorRegistries::tags(VendorKind::GitHub, &registry, "me/*", &[]).await.assert_code(0);
    assert_eq!(lines(&output).len(), 2);
    // The kind of owner is requested once and then cached.
    assert_eq!(registry.total(), 2 + 2, "{}", registry.describe_requests());
    assert_eq!(registry.count_where(|request| request.path.starts_with("/orgs/")), 1);
}

#[tokio::test]
async fn a_list_is_read_while_it_is_stopped() {
    let registry = FaultRegistry::builder().vendor(VendorKind::Quay).page(1).start().await;
    put_tags(&registry, "me/app", ["1", "2"]);
    registry.on(RequestType::ApiTags).skip(1).act(FaultAction::StallForever);
    let program = super::tags_command("quay.io/me/app", &[]);
    program.file("imgsync.yaml", format!("registries:\n{}", VendorRegistries::entry(VendorKind::Quay, &registry, "")));
    let mut running = program.spawn();
    registry.wait_until(|registry| registry.count(RequestType::ApiTags) == 2, Duration::from_secs(30)).await;
    running.signal(Signal::INT);
    let output = running.wait().await.assert_code(4);
    assert!(output.stdout.is_empty(), "{}", output.stdout);
}
