//! Vendor APIs at source and target of a run: listings with digests cost one request per page.

use imgsync_tests::FaultRegistry;
use imgsync_tests::fault::{FaultAction, RequestType, VendorKind};
use imgsync_tests::images::{self, TestImage};
use imgsync_tests::program::Imgsync;
use imgsync_tests::servers::free_port;
use serde_json::{Value, json};

use super::VendorRegistries;

fn configured(yaml: &str) -> Imgsync {
    let program = Imgsync::new();
    program.file("imgsync.yaml", yaml);
    program
}

/// Runs the rules in the program's home. Returns the copied, unchanged and failed counts, and the JSON output.
async fn run(program: &Imgsync) -> ((u64, u64, u64), Value) {
    let again = program.again().args(["run", "--json", "--retry-delay", "10ms", "-c"]);
    let json = again.arg(program.work_dir().join("imgsync.yaml")).run().await.assert_code(0).json();
    let count = |name: &str| json["counts"][name].as_u64().unwrap();
    ((count("copied"), count("unchanged"), count("failed")), json)
}

fn image(repository: &str, tag: usize) -> TestImage {
    images::single(&format!("ends-{repository}-{tag}"))
}

fn fill(registry: &FaultRegistry, repository: &str, tags: usize) {
    for tag in 0..tags {
        registry.push(repository, &format!("v{tag:03}"), &image("x", tag));
    }
}

#[tokio::test]
async fn an_unchanged_run_costs_the_source_a_request_a_page() {
    for vendor in VendorRegistries::ALL {
        let (source, target) =
            tokio::join!(FaultRegistry::builder().vendor(vendor).page(5).start(), FaultRegistry::start());
        fill(&source, "me/a", 12);
        fill(&source, "me/b", 3);
        let rule =
            format!("- {{from: {}/me/*, to: {}/m, naming: keep}}\n", VendorRegistries::name(vendor), target.host());
        let program =
            configured(&format!("registries:\n{}rules:\n{rule}", VendorRegistries::entry(vendor, &source, "")));
        assert_eq!(run(&program).await.0, (15, 0, 0), "{vendor:?}");
        source.clear_requests();
        target.clear_requests();
        let (counts, json) = run(&program).await;
        assert_eq!(counts, (0, 15, 0), "{vendor:?}");
        // One page of repositories, three and one of tags; no HEAD of a tag.
        let asked = (source.count(RequestType::ApiRepositories), source.count(RequestType::ApiTags), source.total());
        assert_eq!(asked, (1, 4, 5), "{vendor:?}: {}", source.describe_requests());
        assert_eq!(target.count(RequestType::ManifestHead), target.total(), "{}", target.describe_requests());
        assert_eq!(json["requests"], json!({"source": 5, "target": target.total()}));
        assert!(target.total() <= 2, "one of each repository: {}", target.describe_requests());
        // A moved tag is found by its digest.
        source.push("me/b", "v001", &images::single("moved"));
        assert_eq!(run(&program).await.0, (1, 14, 0), "{vendor:?}");
        target.assert_holds("m/me/b", "v001", &images::single("moved"));
    }
}

#[tokio::test]
async fn an_up_to_date_target_is_filtered_by_its_tag_pages() {
    for vendor in VendorRegistries::ALL {
        let source = FaultRegistry::builder().google().start().await;
        let target = FaultRegistry::builder().vendor(vendor).page(5).start().await;
        fill(&source, "app", 12);
        fill(&target, "me/app", 12);
        let rule =
            format!("- {{from: {}/app, to: {}/me, naming: basename}}\n", source.host(), VendorRegistries::name(vendor));
        let program =
            configured(&format!("registries:\n{}rules:\n{rule}", VendorRegistries::entry(vendor, &target, "")));
        let (counts, json) = run(&program).await;
        assert_eq!(counts, (0, 12, 0), "{vendor:?}");
        assert_eq!((target.count(RequestType::ApiTags), target.total()), (3, 3), "{}", target.describe_requests());
        assert_eq!(json["requests"], json!({"source": 1, "target": 3}));
    }
}

#[tokio::test]
async fn a_target_is_read_no_further_than_what_is_looked_for() {
    for vendor in [VendorKind::Quay, VendorKind::Hub] {
        let source = FaultRegistry::builder().google().start().await;
        let target = FaultRegistry::builder().vendor(vendor).page(5).start().await;
        fill(&source, "app", 4);
        fill(&target, "me/app", 60);
        let rule =
            format!("- {{from: {}/app, to: {}/me, naming: basename}}\n", source.host(), VendorRegistries::name(vendor));
        let yaml = format!("registries:\n{}rules:\n{rule}", VendorRegistries::entry(vendor, &target, ""));
        assert_eq!(run(&configured(&yaml)).await.0, (0, 4, 0));
        assert_eq!((target.count(RequestType::ApiTags), target.total()), (1, 1), "{}", target.describe_requests());
        // Missing tags are searched on at most as many pages as there are tags: a HEAD each would cost as little.
        target.clear_requests();
        source.push("app", "v900", &image("x", 900));
        assert_eq!(run(&configured(&yaml)).await.0, (1, 4, 0));
        assert_eq!(target.count(RequestType::ApiTags), 5, "{}", target.describe_requests());
    }
}

#[tokio::test]
async fn a_target_repository_that_is_not_there_yet_costs_one_request() {
    for vendor in VendorRegistries::ALL {
        let source = FaultRegistry::builder().google().start().await;
        let target = FaultRegistry::builder().vendor(vendor).namespace("me").start().await;
        fill(&source, "app", 3);
        let rule =
            format!("- {{from: {}/app, to: {}/me, naming: basename}}\n", source.host(), VendorRegistries::name(vendor));
        let program =
            configured(&format!("registries:\n{}rules:\n{rule}", VendorRegistries::entry(vendor, &target, "")));
        assert_eq!(run(&program).await.0, (3, 0, 0), "{vendor:?}");
        // Whether a GitHub owner is an organization or a user is determined once.
        let wanted = if vendor == VendorKind::GitHub { 2 } else { 1 };
        assert_eq!(target.count(RequestType::ApiTags), wanted, "{}", target.describe_requests());
        assert_eq!(target.count(RequestType::Tags), 0, "a list without digests would be of no use");
        target.assert_holds("me/app", "v002", &image("x", 2));
    }
}

#[tokio::test]
async fn a_target_whose_api_is_forbidden_is_read_tag_by_tag_with_one_warning() {
    for vendor in VendorRegistries::ALL {
        let source = FaultRegistry::builder().google().start().await;
        let target = FaultRegistry::builder().vendor(vendor).start().await;
        for repository in ["p/a", "p/b"] {
            fill(&source, repository, 4);
            fill(&target, &format!("me/{}", &repository[2..]), 4);
        }
        target.on(RequestType::ApiTags).always().act(FaultAction::error(403, "FORBIDDEN"));
        let rule =
            format!("- {{from: {}/p/*, to: {}/me, naming: basename}}\n", source.host(), VendorRegistries::name(vendor));
        let program =
            configured(&format!("registries:\n{}rules:\n{rule}", VendorRegistries::entry(vendor, &target, "")));
        let again = program.again().args(["run", "--json", "--query-limit", "1", "-c"]);
        let output = again.arg(program.work_dir().join("imgsync.yaml")).run().await.assert_code(0);
        assert_eq!(output.json()["counts"]["unchanged"], 8, "{vendor:?}");
        assert_eq!(output.stderr.matches("falling back to one request per tag").count(), 1, "{}", output.stderr);
        assert_eq!((target.count(RequestType::ManifestHead), target.count(RequestType::Tags)), (8, 0));
    }
}

/// Starts a registry with Docker Hub's name whose API has an address without a listener.
fn hub_out_of_reach(registry: &FaultRegistry) -> String {
    let nowhere = free_port();
    format!("registries:\n  docker.io: {{endpoint: '{}', api: 'http://127.0.0.1:{nowhere}'}}\n", registry.url())
}

#[tokio::test]
async fn an_unreachable_api_falls_back_to_the_registrys_own_list_at_source_and_target() {
    let (hub, other) = tokio::join!(FaultRegistry::start(), FaultRegistry::builder().google().start());
    fill(&hub, "p/a", 3);
    fill(&hub, "p/b", 3);
    let yaml = |rules: &[String]| format!("{}rules:\n{}", hub_out_of_reach(&hub), rules.concat());
    let host = other.host();
    let program = configured(&yaml(
        &["a", "b"].map(|name| format!("- {{from: docker.io/p/{name}, to: '{host}/me', naming: basename}}\n")),
    ));
    let again = program.again().args(["run", "--json", "--retry-delay", "10ms", "--query-limit", "1", "-c"]);
    let output = again.arg(program.work_dir().join("imgsync.yaml")).run().await.assert_code(0);
    assert_eq!(output.json()["counts"]["copied"], 6, "{}", output.stderr);
    assert_eq!(output.stderr.matches("falling back to the registry's tag list").count(), 1, "{}", output.stderr);
    assert_eq!(hub.count(RequestType::Tags), 2, "{}", hub.describe_requests());

    fill(&other, "q/c", 2);
    let program = configured(&yaml(&[format!("- {{from: {host}/q/c, to: docker.io/p, naming: basename}}\n")]));
    assert_eq!(run(&program).await.0, (2, 0, 0));
    assert_eq!(run(&program).await.0, (0, 2, 0));
}

#[tokio::test]
async fn a_rule_that_goes_by_dates_says_so_where_they_are_out_of_reach() {
    let (hub, target) = tokio::join!(FaultRegistry::start(), FaultRegistry::start());
    fill(&hub, "p/a", 3);
    let rule = format!("rules:\n- {{from: docker.io/p/a, to: {}/me, tags: {{since: 90d}}}}\n", target.host());
    let program = configured(&format!("{}{rule}", hub_out_of_reach(&hub)));
    let again = program.again().args(["run", "--retry-delay", "10ms", "-c"]);
    let output = again.arg(program.work_dir().join("imgsync.yaml")).run().await.assert_code(1);
    assert!(output.stderr.contains("Docker Hub's API cannot be reached"), "{}", output.stderr);
    assert_eq!(target.total(), 0, "{}", target.describe_requests());
}

#[tokio::test]
async fn a_rule_that_goes_by_dates_says_so_where_a_registry_lists_none() {
    let (source, target) = tokio::join!(FaultRegistry::start(), FaultRegistry::start());
    fill(&source, "p/a", 3);
    for tags in ["since: 90d", "newest: {count: 2, by: date}"] {
        let rule = format!("rules:\n- {{from: {}/p/a, to: {}/me, tags: {{{tags}}}}}\n", source.host(), target.host());
        let program = configured(&rule);
        let again = program.again().args(["run", "--retry-delay", "10ms", "-c"]);
        let output = again.arg(program.work_dir().join("imgsync.yaml")).run().await.assert_code(1);
        assert!(output.stderr.contains("its list has none"), "{tags}: {}", output.stderr);
    }
    assert_eq!(target.total(), 0, "{}", target.describe_requests());
}
