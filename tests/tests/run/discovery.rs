//! Paged listings: all pages are read, and no error is taken for an empty list.

use std::time::Duration;

use imgsync_tests::FaultRegistry;
use imgsync_tests::fault::{Bearer, FaultAction, RequestMatcher, RequestType};
use imgsync_tests::images;
use imgsync_tests::program::Signal;
use imgsync_tests::servers::{DockerRegistry, DockerRegistryAuth};

use super::{lines, listings, page, put_tags, tags, tags_command};

fn numbers(count: usize) -> Vec<String> {
    (0..count).map(|number| format!("1.{number}")).collect()
}

#[tokio::test]
async fn all_pages_are_read_by_relative_and_by_absolute_links() {
    for builder in [FaultRegistry::builder().page(3), FaultRegistry::builder().page(3).absolute_links()] {
        let registry = builder.start().await;
        put_tags(&registry, "a/app", numbers(10));
        let output = tags(&registry, "a/app", &[]).await.assert_code(0);
        assert_eq!(lines(&output), numbers(10), "from old to new");
        assert_eq!(registry.count(RequestType::Tags), 4, "{}", registry.describe_requests());
        assert_eq!(registry.total(), 4);
    }
}

#[tokio::test]
async fn a_repository_of_a_hundred_thousand_tags_is_listed_whole() {
    let registry = FaultRegistry::builder().page(1000).start().await;
    put_tags(&registry, "a/app", (0..100_000).map(|number| format!("build-{number:06}")));
    let output = tags(&registry, "a/app", &["-q"]).await.assert_code(0);
    assert_eq!(lines(&output).len(), 100_000);
    assert_eq!(registry.total(), 100);
}

#[tokio::test]
async fn a_link_to_another_host_is_refused_and_nobody_goes_there() {
    let (registry, other) = tokio::join!(FaultRegistry::start(), FaultRegistry::start());
    put_tags(&registry, "a/app", ["1"]);
    let link = format!("<{}/v2/a/app/tags/list?last=1>; rel=\"next\"", other.url());
    registry.on(RequestType::Tags).always().act(FaultAction::SetHeader("link".into(), link));
    let output = tags(&registry, "a/app", &[]).await.assert_code(1);
    assert!(output.stderr.contains(&format!("points to another host, {}", other.url())), "{}", output.stderr);
    assert_eq!((output.stdout.as_str(), other.total_with_pings_and_tokens()), ("", 0));
}

#[tokio::test]
async fn a_link_that_lacks_the_path_of_its_registry_still_leads_on() {
    let registry = FaultRegistry::start().await;
    let path = "/artifactory/api/docker/local/v2/a/app/tags/list";
    registry.on(RequestMatcher::any().path(path)).always().act(FaultAction::compute(|request| {
        match request.parameter("last") {
            None => page(&["1".into()], Some("/v2/a/app/tags/list?last=1")),
            Some(_) => page(&["2".into()], None),
        }
    }));
    let program = tags_command("registry.example.com/a/app", &[]);
    let endpoint = format!("{}/artifactory/api/docker/local", registry.url());
    program.file("imgsync.yaml", format!("registries: {{registry.example.com: {{endpoint: '{endpoint}'}}}}\n"));
    assert_eq!(lines(&program.run().await.assert_code(0)), ["1", "2"]);
}

#[tokio::test]
async fn pages_that_lead_in_a_circle_or_never_end_are_noticed() {
    let circle = |last: Option<String>| match last.as_deref() {
        Some("1") => page(&["2".into()], Some("/v2/a/app/tags/list?last=2")),
        Some("2") => page(&["3".into()], Some("/v2/a/app/tags/list?last=1")),
        _ => page(&["1".into()], Some("/v2/a/app/tags/list?last=1")),
    };
    let registry = FaultRegistry::start().await;
    registry.on(RequestType::Tags).always().act(FaultAction::compute(move |request| circle(request.parameter("last"))));
    let output = tags(&registry, "a/app", &[]).await.assert_code(1);
    assert!(output.stderr.contains("its pages form a loop"), "{}", output.stderr);
    assert_eq!((output.stdout.as_str(), registry.total()), ("", 3));

    for (tags_on_page, words, requests) in [(1, "the same page came twice", 2), (0, "brought nothing new", 51)] {
        let registry = FaultRegistry::start().await;
        registry.on(RequestType::Tags).always().act(FaultAction::compute(move |request| {
            page(&numbers(tags_on_page), Some(&format!("/v2/a/app/tags/list?last={}", request.n)))
        }));
        let output = tags(&registry, "a/app", &[]).await.assert_code(1);
        assert!(output.stderr.contains(words) && output.stderr.contains("a/app"), "{}", output.stderr);
        assert_eq!((output.stdout.as_str(), registry.total()), ("", requests));
    }
}

#[tokio::test]
async fn a_page_that_fails_is_asked_for_again_and_then_named_while_others_go_on() {
    let registry = FaultRegistry::builder().page(2).start().await;
    put_tags(&registry, "a/app", numbers(6));
    put_tags(&registry, "a/other", ["1"]);
    let middle = || {
        RequestMatcher::kind(RequestType::Tags).repository("a/app").when(|request| request.query.contains("last=1.1"))
    };
    registry.on(middle()).times(2).act(FaultAction::status(503));
    let output = tags(&registry, "a/app", &[]).await.assert_code(0);
    assert_eq!(lines(&output), numbers(6));
    assert!(output.stderr.contains("retrying"), "{}", output.stderr);

    registry.on(middle()).always().act(FaultAction::status(500));
    let output = tags(&registry, "a/*", &["--attempts", "3"]).await.assert_code(1);
    let host = registry.host();
    assert_eq!(lines(&output), [format!("{host}/a/other:1")], "no half of a list");
    let error = format!("error: listing the tags of {host}/a/app: answered 500 Internal Server Error (failed 3 times");
    assert!(output.stderr.contains(&error), "{}", output.stderr);
    assert!(output.stderr.contains("1 repository could not be listed"), "{}", output.stderr);
}

#[tokio::test]
async fn an_answer_that_is_no_listing_is_an_error() {
    let error = r#"{"errors": [{"code": "UNAVAILABLE"}]}"#;
    for body in ["<html>welcome</html>", "", "[]", "{}", "{\"tags\": 1}", error] {
        let registry = FaultRegistry::start().await;
        registry.on(RequestType::Tags).act(FaultAction::Status { code: 200, headers: vec![], body: body.into() });
        let output = tags(&registry, "a/app", &[]).await.assert_code(1);
        let said = ["cannot be parsed", "is not a listing"].iter().any(|words| output.stderr.contains(words));
        assert!(said && output.stdout.is_empty(), "{body}: {}", output.stderr);
    }
}

#[tokio::test]
async fn a_repository_that_does_not_exist_is_an_error_and_one_without_tags_is_not() {
    let registry = FaultRegistry::start().await;
    let output = tags(&registry, "a/missing", &[]).await.assert_code(1);
    assert!(output.stderr.contains("a/missing: answered 404 Not Found NAME_UNKNOWN"), "{}", output.stderr);
    registry.on(RequestType::Tags).act(FaultAction::json(&serde_json::json!({"name": "a/empty", "tags": null})));
    let output = tags(&registry, "a/empty", &[]).await.assert_code(0);
    assert!(output.stdout.is_empty() && output.stderr.contains("0 of 0 tags in 1 repository"), "{}", output.stderr);
    // Google's registries answer for everything.
    let nothing = serde_json::json!({"child": [], "manifest": {}, "name": "a/missing", "tags": []});
    registry.on(RequestType::Tags).act(FaultAction::json(&nothing));
    let output = tags(&registry, "a/missing", &[]).await.assert_code(1);
    assert!(output.stderr.contains("the repository does not exist or is empty"), "{}", output.stderr);
}

#[tokio::test]
async fn a_limited_rate_is_waited_out() {
    let registry = FaultRegistry::builder().page(1).start().await;
    put_tags(&registry, "a/app", ["1", "2"]);
    registry.on(RequestType::Tags).skip(1).act(FaultAction::too_many_requests("1"));
    let output = tags(&registry, "a/app", &[]).await.assert_code(0);
    assert_eq!(lines(&output), ["1", "2"]);
    assert!(output.stderr.contains("TOOMANYREQUESTS") && output.stderr.contains("retrying in 1"), "{}", output.stderr);
    assert!(output.elapsed >= Duration::from_secs(1));
}

#[tokio::test]
async fn the_catalog_is_read_by_pages_filtered_and_each_repository_is_listed_once() {
    let registry = FaultRegistry::builder().page(2).start().await;
    for name in ["a/x", "a/x/deep", "a/y", "a/y-z", "ab/x", "b", "a"] {
        put_tags(&registry, name, ["1"]);
    }
    let host = registry.host();
    let output = tags(&registry, "a/**", &[]).await.assert_code(0);
    let names = |names: &[&str]| names.iter().map(|name| format!("{host}/{name}:1")).collect::<Vec<_>>();
    assert_eq!(lines(&output), names(&["a/x", "a/x/deep", "a/y", "a/y-z"]));
    assert_eq!((registry.count(RequestType::Catalog), listings(&registry, "a/x"), listings(&registry, "b")), (4, 1, 0));
    let output = tags(&registry, "a/*", &[]).await.assert_code(0);
    assert_eq!(lines(&output), names(&["a/x", "a/y", "a/y-z"]));
    let output = tags(&registry, "**", &[]).await.assert_code(0);
    assert_eq!(lines(&output), names(&["a", "a/x", "a/x/deep", "a/y", "a/y-z", "ab/x", "b"]));
}

#[tokio::test]
async fn a_repository_that_vanishes_after_the_catalog_fails_alone() {
    let registry = FaultRegistry::start().await;
    for name in ["a/x", "a/y", "a/z"] {
        put_tags(&registry, name, ["1"]);
    }
    registry.on(RequestMatcher::kind(RequestType::Tags).repository("a/y")).act(FaultAction::error(404, "NAME_UNKNOWN"));
    let output = tags(&registry, "a/*", &[]).await.assert_code(1);
    let host = registry.host();
    assert_eq!(lines(&output), [format!("{host}/a/x:1"), format!("{host}/a/z:1")]);
    assert!(output.stderr.contains(&format!("{host}/a/y: answered 404")), "{}", output.stderr);
}

#[tokio::test]
async fn a_name_in_the_catalog_that_is_none_is_said_and_the_others_are_listed() {
    let registry = FaultRegistry::start().await;
    put_tags(&registry, "a/x", ["1"]);
    let names = serde_json::json!({"repositories": ["a/x", "a/Odd\u{1b}[31m", "b/Other"]});
    registry.on(RequestType::Catalog).act(FaultAction::json(&names));
    let output = tags(&registry, "a/*", &[]).await.assert_code(1);
    assert_eq!(lines(&output).len(), 1);
    assert!(output.stderr.contains("a/Odd\\u{1b}[31m") && !output.stderr.contains("b/Other"), "{}", output.stderr);
}

#[tokio::test]
async fn a_registry_that_shows_no_catalog_says_what_to_do() {
    for (status, code) in [(401, "UNAUTHORIZED"), (403, "DENIED"), (404, "NOT_FOUND"), (405, "UNSUPPORTED")] {
        let registry = FaultRegistry::start().await;
        put_tags(&registry, "a/x", ["1"]);
        registry.on(RequestType::Catalog).always().act(FaultAction::error(status, code));
        let output = tags(&registry, "a/*", &[]).await.assert_code(1);
        assert!(output.stdout.is_empty());
        let error = format!("error: listing the repositories of {}: answered {status}", registry.host());
        assert!(output.stderr.contains(&error), "{}", output.stderr);
        assert!(output.stderr.contains("name the repositories explicitly"), "{}", output.stderr);
        assert!(output.stderr.contains("set `api:`"), "{}", output.stderr);
        assert_eq!(registry.count(RequestType::Catalog), 1, "what is final is not tried again");
        tags(&registry, "a/x", &[]).await.assert_code(0);
    }
}

#[tokio::test]
async fn who_is_shut_out_is_told_so_even_where_the_catalog_is_empty() {
    let registry = FaultRegistry::start().await;
    registry.on(RequestType::Tags).always().act(FaultAction::error(403, "DENIED"));
    let output = tags(&registry, "project/**", &[]).await.assert_code(1);
    let error = format!("error: listing the tags of {}/project: answered 403", registry.host());
    assert!(output.stderr.contains(&error) && output.stderr.contains("docker login"), "{}", output.stderr);
}

#[tokio::test]
async fn a_pattern_that_means_nothing_is_an_error() {
    for registry in [FaultRegistry::start().await, FaultRegistry::builder().google().start().await] {
        put_tags(&registry, "a/x/y", ["1"]);
        let output = tags(&registry, "a/z*", &[]).await.assert_code(1);
        assert!(output.stderr.contains("no repository matches"), "{}", output.stderr);
    }
}

#[tokio::test]
async fn a_registry_out_of_reach_could_not_start() {
    let output = tags_command("127.0.0.1:1/a/*", &["--attempts", "1"]).run().await.assert_code(3);
    assert!(output.stderr.contains("127.0.0.1:1"), "{}", output.stderr);
}

#[tokio::test]
async fn a_docker_registry_lists_its_catalog_to_who_may_see_it() {
    let image = images::single("listed");
    for auth in [
        DockerRegistryAuth::None,
        DockerRegistryAuth::htpasswd("me", "secret"),
        DockerRegistryAuth::token("me", "secret"),
    ] {
        let registry = DockerRegistry::start(auth).await;
        for name in ["a/x", "a/y", "b/z"] {
            registry.push(name, "1.0", &image).await;
            registry.push(name, "2.0", &image).await;
        }
        let pattern = format!("{}/a/*", registry.host());
        let program = tags_command(&pattern, &["--include", "2*"]);
        if registry.credentials().is_some() {
            let denied = program.again().args(["tags", &pattern]).run().await.assert_code(1);
            assert!(denied.stderr.contains("docker login") && denied.stdout.is_empty(), "{}", denied.stderr);
            program.write_docker_config(&[(&registry.host(), "me", "secret")]);
        }
        let output = program.run().await.assert_code(0);
        let host = registry.host();
        assert_eq!(lines(&output), [format!("{host}/a/x:2.0"), format!("{host}/a/y:2.0")]);
        if let Some(tokens) = registry.tokens() {
            let granted = tokens.requests().into_iter().filter(|request| request.granted);
            let scopes: Vec<_> = granted.flat_map(|request| request.scopes).collect();
            assert!(scopes.contains(&"registry:catalog:*".to_owned()), "{scopes:?}");
        }
    }
}

#[tokio::test]
async fn the_token_for_a_catalog_is_fetched_once_for_all_its_pages() {
    let registry = FaultRegistry::builder().page(1).bearer(Bearer::user("me", "secret")).start().await;
    for name in ["a/x", "a/y", "a/z"] {
        put_tags(&registry, name, ["1"]);
    }
    let program = tags_command(&format!("{}/a/*", registry.host()), &[]);
    program.write_docker_config(&[(&registry.host(), "me", "secret")]);
    assert_eq!(lines(&program.run().await.assert_code(0)).len(), 3);
    // One for the parent folder, one for the catalog, one per repository.
    assert_eq!(registry.count(RequestType::Token), 5, "{}", registry.describe_requests());
}

#[tokio::test]
async fn no_more_repositories_are_listed_at_a_time_than_was_asked_for() {
    let registry = FaultRegistry::builder().latency(Duration::from_millis(20)).start().await;
    for number in 0..30 {
        put_tags(&registry, &format!("a/x{number:02}"), ["1"]);
    }
    let output = tags(&registry, "a/*", &["--query-limit", "3"]).await.assert_code(0);
    assert_eq!(lines(&output).len(), 30);
    assert!(lines(&output).is_sorted(), "in the order of names, however they end");
    assert_eq!(registry.peak_in_flight(), 3);
}

#[tokio::test]
async fn a_signal_ends_the_listing() {
    let registry = FaultRegistry::start().await;
    put_tags(&registry, "a/x", ["1"]);
    registry.on(RequestType::Tags).skip(1).act(FaultAction::StallForever);
    let mut running = tags_command(&format!("{}/a/*", registry.host()), &[]).spawn();
    registry.wait_until(|registry| listings(registry, "a/x") == 1, Duration::from_secs(20)).await;
    running.signal(Signal::INT);
    let output = running.wait().await.assert_code(4);
    assert!(output.elapsed < Duration::from_secs(20) && output.stderr.contains("cancelled"), "{}", output.stderr);
}
