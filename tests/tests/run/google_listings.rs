//! Google-style registries: a tree of repositories, with digests and dates in the listing.

use imgsync_tests::FaultRegistry;
use imgsync_tests::fault::{FaultAction, RequestMatcher, RequestType};
use imgsync_tests::images::{self, TestManifest, media};
use serde_json::{Value, json};

use super::{lines, listings, put_tags, tags};

async fn google() -> FaultRegistry {
    FaultRegistry::builder().google().start().await
}

#[tokio::test]
async fn a_node_with_children_and_tags_gives_both_and_each_costs_one_request() {
    let registry = google().await;
    for (name, tag) in [("p/a", "own"), ("p/a/b", "1"), ("p/a/b/c", "2"), ("p/a-b", "3"), ("p/only/leads/on", "4")] {
        registry.push(name, tag, &images::single(name));
    }
    let host = registry.host();
    let output = tags(&registry, "p/**", &[]).await.assert_code(0);
    let expected = ["p/a:own", "p/a/b:1", "p/a/b/c:2", "p/a-b:3", "p/only/leads/on:4"];
    assert_eq!(lines(&output), expected.map(|name| format!("{host}/{name}")));
    // p, p/a, p/a/b, p/a/b/c, p/a-b, p/only, p/only/leads, p/only/leads/on.
    assert_eq!((registry.total(), registry.count(RequestType::Tags)), (8, 8), "{}", registry.describe_requests());
    assert!(output.stderr.contains("5 of 5 tags in 5 repositories"), "{}", output.stderr);
}

#[tokio::test]
async fn only_what_can_lead_to_something_is_asked_for() {
    let registry = google().await;
    for name in ["p/a", "p/a/b", "p/etcd-1", "p/etcd-1/x", "p/etcd-2/x", "q/a"] {
        put_tags(&registry, name, ["1"]);
    }
    let host = registry.host();
    for (pattern, expected, requests) in [
        ("p/*", vec!["p/a:1", "p/etcd-1:1"], 4),
        ("p/etcd-*", vec!["p/etcd-1:1"], 3),
        ("p/etcd-*/x", vec!["p/etcd-1/x:1", "p/etcd-2/x:1"], 5),
        ("p/*/x", vec!["p/etcd-1/x:1", "p/etcd-2/x:1"], 6),
    ] {
        registry.clear_requests();
        let output = tags(&registry, pattern, &[]).await.assert_code(0);
        let expected: Vec<String> = expected.iter().map(|name| format!("{host}/{name}")).collect();
        assert_eq!(lines(&output), expected, "{pattern}");
        assert_eq!(registry.total(), requests, "{pattern}: {}", registry.describe_requests());
    }
}

#[tokio::test]
async fn the_top_of_a_tree_is_asked_before_the_catalog() {
    let registry = google().await;
    put_tags(&registry, "images/app", ["1"]);
    let top = json!({"child": ["images"], "manifest": {}, "name": "", "tags": []});
    registry.on(RequestMatcher::any().path("/v2/tags/list")).always().act(FaultAction::json(&top));
    let output = tags(&registry, "**", &[]).await.assert_code(0);
    assert_eq!(lines(&output), [format!("{}/images/app:1", registry.host())]);
    assert_eq!((registry.total(), registry.count(RequestType::Catalog)), (3, 0));
}

#[tokio::test]
async fn one_node_that_cannot_be_listed_fails_alone() {
    let registry = google().await;
    for name in ["p/a", "p/b/c", "p/d"] {
        put_tags(&registry, name, ["1"]);
    }
    registry
        .on(RequestMatcher::kind(RequestType::Tags).repository("p/b"))
        .always()
        .act(FaultAction::error(403, "DENIED"));
    let output = tags(&registry, "p/**", &[]).await.assert_code(1);
    let host = registry.host();
    assert_eq!(lines(&output), [format!("{host}/p/a:1"), format!("{host}/p/d:1")]);
    assert!(output.stderr.contains(&format!("{host}/p/b: answered 403")), "{}", output.stderr);
}

#[tokio::test]
async fn a_tree_that_hangs_from_itself_ends_with_the_longest_name() {
    let registry = google().await;
    let again = json!({"child": ["x"], "manifest": {}, "tags": ["1"]});
    registry.on(RequestType::Tags).always().act(FaultAction::json(&again));
    let output = tags(&registry, "p/**", &["-q"]).await.assert_code(1);
    assert!(output.stderr.contains("255 are allowed"), "{}", output.stderr);
    assert_eq!(registry.total(), 128);
}

#[tokio::test]
async fn digests_and_dates_of_the_listing_are_used_and_nothing_else_is_asked() {
    let registry = google().await;
    let days = [("1.0", "2024-01-01", 1_704_067_200_000), ("1.1", "2025-01-01", 1_735_689_600_000)];
    let newest = ("1.2", "2026-01-01", 1_767_225_600_000_u64);
    for (tag, _, uploaded) in days.into_iter().chain([newest]) {
        let image = images::single(tag);
        registry.push("p/app", tag, &image);
        registry.set_uploaded("p/app", &image.root, uploaded);
    }
    let output = tags(&registry, "p/app", &["--since", "2025-01-01"]).await.assert_code(0);
    assert_eq!(lines(&output), ["1.1", "1.2"]);
    assert!(output.stderr.contains("p/app:1.0: older than 2025-01-01, from 2024-01-01"), "{}", output.stderr);
    let output = tags(&registry, "p/app", &["--newest", "1", "--newest-by", "date", "--json"]).await.assert_code(0);
    let line = output.json();
    let image = images::single("1.2");
    assert_eq!(
        line,
        json!({
            "registry": registry.host(),
            "repository": "p/app",
            "tag": "1.2",
            "digest": image.root,
            "created": "2026-01-01T00:00:00Z",
            "media_type": media::OCI_MANIFEST,
        })
    );
    assert_eq!(registry.total(), 2, "one request a run: {}", registry.describe_requests());
}

#[tokio::test]
async fn what_is_known_by_its_answer_needs_no_google_name() {
    // A registry that does not have a Google host name, and one whose tree is redirected to another path.
    let registry = google().await;
    put_tags(&registry, "k8s/images/app", ["1"]);
    let to = format!("{}/v2/k8s/images/tags/list", registry.url());
    registry
        .on(RequestMatcher::kind(RequestType::Tags).repository("front"))
        .always()
        .act(FaultAction::Redirect { to, status: 307 });
    let to = format!("{}/v2/k8s/images/app/tags/list", registry.url());
    registry
        .on(RequestMatcher::kind(RequestType::Tags).repository("front/app"))
        .always()
        .act(FaultAction::Redirect { to, status: 307 });
    let output = tags(&registry, "front/**", &[]).await.assert_code(0);
    assert_eq!(lines(&output), [format!("{}/front/app:1", registry.host())]);
    assert_eq!(listings(&registry, "front/app"), 1);
}

/// Builds a thousand repositories of a hundred tags, each with its own manifest.
async fn thousand() -> FaultRegistry {
    let registry = google().await;
    for repository in 0..1000 {
        let name = format!("bench/r{repository:04}");
        for number in 0..100 {
            let body = json!({"schemaVersion": 2, "n": [repository, number]}).to_string();
            let digest = images::sha256(body.as_bytes());
            let manifest = TestManifest { media_type: media::OCI_MANIFEST.to_owned(), bytes: body.into() };
            registry.push_manifest(&name, &digest, manifest);
            registry.move_tag(&name, &format!("v1.{number}"), &digest);
        }
    }
    registry
}

#[tokio::test(flavor = "multi_thread")]
async fn a_thousand_repositories_cost_a_request_each_and_little_memory() {
    let registry = thousand().await;
    let output = tags(&registry, "bench/**", &["--json"]).await.assert_code(0);
    let peak = output.peak_rss_bytes >> 20;
    println!(
        "100,000 tags of 1,000 repositories: {:?}, {peak} MiB, {:.1} s of CPU",
        output.elapsed, output.cpu_seconds
    );
    assert_eq!(registry.total(), 1001);
    let listed = lines(&output);
    assert_eq!(listed.len(), 100_000);
    let first: Value = serde_json::from_str(listed[0]).unwrap();
    assert_eq!((&first["repository"], &first["tag"]), (&json!("bench/r0000"), &json!("v1.0")));
    assert!(first["digest"].is_string());
    assert!(peak < 100, "{peak} MiB");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_of_a_hundred_thousand_tags_fits_into_memory() {
    let registry = google().await;
    let manifests = (0..100_000).map(|number| {
        let entry = json!({
            "imageSizeBytes": "123456", "layerId": "", "mediaType": media::OCI_MANIFEST, "tag": [format!("v1.{number}")],
            "timeCreatedMs": "0", "timeUploadedMs": "1704067200000",
        });
        (images::sha256(format!("{number}").as_bytes()), entry)
    });
    let tags_listed: Vec<String> = (0..100_000).map(|number| format!("v1.{number}")).collect();
    let manifests: serde_json::Map<String, Value> = manifests.collect();
    let body = json!({"child": [], "manifest": manifests, "name": "p/app", "tags": tags_listed}).to_string();
    let size = body.len() >> 20;
    registry.on(RequestType::Tags).act(FaultAction::Status { code: 200, headers: vec![], body: body.into() });
    let output = tags(&registry, "p/app", &["--json"]).await.assert_code(0);
    let peak = output.peak_rss_bytes >> 20;
    println!("100,000 tags of one repository in {size} MiB: {:?}, {peak} MiB", output.elapsed);
    assert_eq!((lines(&output).len(), registry.total()), (100_000, 1));
    assert!(peak < 200, "{peak} MiB");
}
