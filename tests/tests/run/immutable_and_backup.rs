//! Immutable tags (`immutable`), targets that refuse to move a tag, and backups of overwritten tags (`backup`).

use imgsync_tests::FaultRegistry;
use imgsync_tests::fault::{FaultAction, RequestMatcher, RequestType};
use imgsync_tests::images::{self, TestImage};
use imgsync_tests::program::Imgsync;
use serde_json::{Value, json};

use super::end_to_end::{configured, run};

fn image(name: &str) -> TestImage {
    images::single(&format!("keep-{name}"))
}

fn rule(source: &FaultRegistry, target: &FaultRegistry, more: &str) -> Imgsync {
    configured(&format!("rules:\n- {{from: {}/app, to: {}/m, naming: keep, {more}}}\n", source.host(), target.host()))
}

/// Returns the number of copied, unchanged and failed tasks.
fn counts(json: &Value) -> (u64, u64, u64) {
    let count = |name: &str| json["counts"][name].as_u64().unwrap();
    (count("copied"), count("unchanged"), count("failed"))
}

#[tokio::test]
async fn tags_that_never_move_are_asked_for_once() {
    let (source, target) = tokio::join!(FaultRegistry::start(), FaultRegistry::start());
    for tag in ["v1.0", "v1.1", "latest"] {
        source.push("app", tag, &image(tag));
    }
    let program = rule(&source, &target, "immutable: ['v*']");
    assert_eq!(counts(&run(&program, &[]).await.assert_code(0).json()), (3, 0, 0));
    source.clear_requests();
    target.clear_requests();
    let json = run(&program, &[]).await.assert_code(0).json();
    assert_eq!(counts(&json), (0, 3, 0));
    // The tag list, `latest` at both sides, and one cached tag as a spot check of the target.
    let asked = |registry: &FaultRegistry| {
        registry.requests_of_kind(RequestType::ManifestHead).into_iter().filter_map(|r| r.reference).collect::<Vec<_>>()
    };
    assert_eq!((source.total(), asked(&source)), (2, vec!["latest".to_owned()]), "{}", source.describe_requests());
    assert_eq!((target.total(), asked(&target)), (1, vec!["latest".to_owned()]), "{}", target.describe_requests());
}

#[tokio::test]
async fn an_immutable_tag_that_moved_at_the_source_is_reported_and_not_copied() {
    let (source, target) = tokio::join!(FaultRegistry::builder().google().start(), FaultRegistry::start());
    for tag in ["v1.0", "v1.1"] {
        source.push("app", tag, &image(tag));
    }
    let program = rule(&source, &target, "immutable: '/^v[0-9.]+$/'");
    run(&program, &[]).await.assert_code(0);
    source.push("app", "v1.1", &image("moved"));
    for more in [[].as_slice(), &["--force"]] {
        let json = run(&program, more).await.assert_code(1).json();
        assert_eq!(counts(&json).2, 1, "{json}");
        assert_eq!(json["failures"][0]["kind"], "immutable");
        let error = json["failures"][0]["error"].as_str().unwrap();
        assert!(error.contains(&image("v1.1").root) && error.contains(&image("moved").root), "{error}");
        target.assert_holds("m/app", "v1.1", &image("v1.1"));
    }
    // Also without a cache.
    let fresh = rule(&source, &target, "immutable: 'v*'");
    assert_eq!(run(&fresh, &[]).await.assert_code(1).json()["failures"][0]["kind"], "immutable");
    let dry = run(&fresh, &["--dry-run"]).await.assert_code(1);
    assert!(dry.stdout.contains(r#""action":"fail""#), "{}", dry.stdout);
    target.assert_holds("m/app", "v1.1", &image("v1.1"));
    // Copying it explicitly is allowed.
    let (from, to) = (format!("{}/app:v1.1", source.host()), format!("{}/m/app:v1.1", target.host()));
    program.again().args(["sync", &from, &to]).run().await.assert_code(0);
    assert_eq!(counts(&run(&program, &[]).await.assert_code(0).json()), (0, 2, 0));
}

#[tokio::test]
async fn a_target_that_refuses_to_move_a_tag_has_an_error_kind_of_its_own() {
    let answers = [
        (
            400,
            "TAG_INVALID",
            "The image tag 'v1' already exists in the 'm/app' repository and cannot be overwritten because the tag is immutable.",
        ),
        (412, "PRECONDITION", "Failed to process request due to 'app:v1' configured as immutable."),
        (409, "TAG_ALREADY_EXISTS", "no"),
        (400, "TAG_IMMUTABLE", "no"),
        (403, "DENIED", "cannot update tag v1. The repository has enabled tag immutability"),
    ];
    for (status, code, message) in answers {
        let (source, target) = tokio::join!(FaultRegistry::start(), FaultRegistry::start());
        source.push("app", "v1", &image("new"));
        target.push("m/app", "v1", &image("old"));
        let answer = FaultAction::Status {
            code: status,
            headers: vec![("content-type".to_owned(), "application/json".to_owned())],
            body: json!({"errors": [{"code": code, "message": message}]}).to_string().into(),
        };
        target.on(RequestMatcher::kind(RequestType::ManifestPut).reference("v1")).always().act(answer);
        let program = rule(&source, &target, "tags: {include: ['*']}");
        let json = run(&program, &[]).await.assert_code(1).json();
        assert_eq!(json["failures"][0]["kind"], "immutable", "{code}: {json}");
        assert_eq!(json["failures"][0]["attempts"], 1, "it is final: {json}");
        // If the target already has this digest, the result is unchanged.
        target.push("m/app", "v1", &image("new"));
        assert_eq!(counts(&run(&program, &["--force"]).await.assert_code(0).json()).2, 0, "{code}");
    }
}

#[tokio::test]
async fn what_an_overwritten_tag_pointed_to_is_kept_under_another() {
    let (source, target) = tokio::join!(FaultRegistry::start(), FaultRegistry::start());
    source.push("app", "latest", &images::multi_platform("keep-1"));
    let program = rule(&source, &target, "backup: '{{tag}}-before-{{date}}'");
    run(&program, &[]).await.assert_code(0);
    assert_eq!(target.tags("m/app"), ["latest"], "nothing was overwritten");
    for name in ["keep-2", "keep-3", "keep-1"] {
        source.push("app", "latest", &images::multi_platform(name));
        target.clear_requests();
        run(&program, &[]).await.assert_code(0);
        target.assert_holds("m/app", "latest", &images::multi_platform(name));
        target.assert_children_came_first();
    }
    let backups: Vec<String> = target.tags("m/app").into_iter().filter(|tag| tag != "latest").collect();
    assert_eq!(backups.len(), 3, "{backups:?}");
    let day = first_backup_tag(&backups[0]);
    for (tag, name) in [(day.clone(), "keep-1"), (format!("{day}-2"), "keep-2"), (format!("{day}-3"), "keep-3")] {
        target.assert_holds("m/app", &tag, &images::multi_platform(name));
    }
    // One more GET and one more PUT, and requests whether the names are free.
    let puts: Vec<_> =
        target.requests_of_kind(RequestType::ManifestPut).into_iter().filter_map(|request| request.reference).collect();
    assert_eq!(puts.iter().filter(|reference| !reference.contains(':')).count(), 2, "{puts:?}");
    assert_eq!(target.count(RequestType::ManifestGet), 1, "{}", target.describe_requests());
    // An unchanged tag needs no backup.
    target.clear_requests();
    run(&program, &["--force"]).await.assert_code(0);
    assert_eq!(target.tags("m/app").len(), 4);
}

/// Returns the tag of the first backup, which must carry a date.
fn first_backup_tag(tag: &str) -> String {
    let day = tag.strip_prefix("latest-before-").unwrap_or_else(|| panic!("{tag}"));
    assert!(day.len() == 10 && day.bytes().all(|byte| byte.is_ascii_digit() || byte == b'-'), "{tag}");
    tag.to_owned()
}

#[tokio::test]
async fn a_tag_whose_backup_cannot_be_kept_is_not_overwritten() {
    let (source, target) = tokio::join!(FaultRegistry::start(), FaultRegistry::start());
    source.push("app", "v1", &image("new"));
    target.push("m/app", "v1", &image("old"));
    target
        .on(RequestMatcher::kind(RequestType::ManifestPut)
            .when(|put| put.reference.as_deref().is_some_and(|tag| tag.starts_with("v1-"))))
        .always()
        .act(FaultAction::error(403, "DENIED"));
    let program = rule(&source, &target, "backup: '{{tag}}-{{digest}}'");
    let json = run(&program, &[]).await.assert_code(1).json();
    assert_eq!(json["failures"][0]["kind"], "denied", "{json}");
    target.assert_holds("m/app", "v1", &image("old"));
    target.clear_rules();
    run(&program, &[]).await.assert_code(0);
    target.assert_holds("m/app", "v1", &image("new"));
    let kept = format!("v1-{}", &image("old").root["sha256:".len()..][..12]);
    target.assert_holds("m/app", &kept, &image("old"));
}
