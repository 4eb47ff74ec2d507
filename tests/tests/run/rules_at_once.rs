//! Rules are listed at once, within the query limit, and planned in their order.

use std::sync::Arc;
use std::time::Duration;

use imgsync_tests::fault::{FaultAction, FaultRegistry, RequestMatcher, RequestType};
use imgsync_tests::images;
use serde_json::Value;
use tokio::sync::Semaphore;

use super::end_to_end::{configured, run};

const WAIT_TIMEOUT: Duration = Duration::from_secs(60);

/// Returns the number of tag lists that are asked for.
fn tag_lists(registry: &FaultRegistry) -> u64 {
    registry.count_where(|record| record.kind == RequestType::Tags)
}

/// Returns a configuration with a rule for each pattern.
fn rules(source: &FaultRegistry, target: &FaultRegistry, patterns: &[String]) -> String {
    let rules = patterns.iter().map(|pattern| format!("- from: {}/{pattern}\n", source.host()));
    format!("defaults: {{to: {}/m, naming: keep}}\nrules:\n{}", target.host(), rules.collect::<String>())
}

fn count(json: &Value, name: &str) -> u64 {
    json["counts"][name].as_u64().unwrap()
}

#[tokio::test]
async fn rules_of_one_repository_are_listed_at_once_within_the_query_limit() {
    const RULES: u64 = 11;
    let (source, target) = tokio::join!(FaultRegistry::start(), FaultRegistry::start());
    let patterns: Vec<String> = (0..RULES).map(|number| format!("r{number:02}")).collect();
    for name in &patterns {
        source.push(name, "1", &images::single(name));
    }
    let gate = Arc::new(Semaphore::new(0));
    source.on(RequestMatcher::kind(RequestType::Tags)).always().act(FaultAction::Gate(gate.clone()));
    let program = configured(&rules(&source, &target, &patterns));
    let (output, ()) = tokio::join!(run(&program, &["--query-limit", "4"]), async {
        // Each list that ends lets one more begin.
        for ended in 0..RULES {
            let open = (ended + 4).min(RULES);
            source.wait_until(|registry| tag_lists(registry) == open, WAIT_TIMEOUT).await;
            gate.add_permits(1);
        }
    });
    let json = output.assert_code(0).json();
    assert_eq!((count(&json, "copied"), tag_lists(&source)), (RULES, RULES), "{json}");
}

#[tokio::test]
async fn a_slow_rule_that_comes_first_wins_the_target_tag_and_one_that_fails_keeps_no_other_back() {
    let (source, target) = tokio::join!(FaultRegistry::start(), FaultRegistry::start());
    let (first, second) = (images::single("first"), images::single("second"));
    source.push("a/app", "1", &first);
    source.push("b/app", "1", &second);
    source.push("b/app", "2", &second);
    let gate = Arc::new(Semaphore::new(0));
    source.on(RequestMatcher::kind(RequestType::Tags).repository("a/app")).act(FaultAction::Gate(gate.clone()));
    let program = configured(&format!(
        "defaults: {{to: {}/m, naming: basename}}\nrules:\n- from: {host}/a/*\n- from: {host}/none\n- from: {host}/b/*\n",
        target.host(),
        host = source.host()
    ));
    let (output, ()) = tokio::join!(run(&program, &[]), async {
        // The list of `a/app` is asked for, and that of a rule behind it.
        let is_asked = |registry: &FaultRegistry, repository: &str| {
            registry
                .requests_of_kind(RequestType::Tags)
                .iter()
                .any(|asked| asked.repository.as_deref() == Some(repository))
        };
        source.wait_until(|registry| is_asked(registry, "a/app") && is_asked(registry, "none"), WAIT_TIMEOUT).await;
        gate.add_permits(1);
    });
    let json = output.assert_code(1).json();
    assert_eq!((count(&json, "copied"), count(&json, "failed")), (2, 1), "{json}");
    assert_eq!(target.tag_digest("m/app", "1"), Some(first.root.clone()));
    assert_eq!(target.tag_digest("m/app", "2"), Some(second.root.clone()));
    let unlisted = json["unlisted"].as_array().unwrap();
    assert_eq!(unlisted.len(), 1, "{json}");
}

#[tokio::test]
async fn what_is_listed_is_copied_while_the_list_of_a_later_rule_hangs() {
    let (source, target) = tokio::join!(FaultRegistry::start(), FaultRegistry::start());
    let patterns = ["a", "b", "c"].map(str::to_owned);
    for name in &patterns {
        source.push(name, "1", &images::single(name));
    }
    let gate = Arc::new(Semaphore::new(0));
    source.on(RequestMatcher::kind(RequestType::Tags).repository("c")).act(FaultAction::Gate(gate.clone()));
    let program = configured(&rules(&source, &target, &patterns));
    let (output, ()) = tokio::join!(run(&program, &[]), async {
        target.wait_until(|target| target.tags_in_all() == 2, WAIT_TIMEOUT).await;
        gate.add_permits(1);
    });
    assert_eq!(count(&output.assert_code(0).json(), "copied"), 3);
}

#[tokio::test]
async fn a_pattern_among_rules_shares_their_limit_and_all_that_it_matches_is_copied() {
    let (source, target) = tokio::join!(FaultRegistry::start(), FaultRegistry::start());
    let mut patterns = vec!["tree/*".to_owned()];
    for number in 0..20 {
        source.push(&format!("tree/r{number:02}"), "1", &images::single(&format!("tree-{number}")));
        source.push(&format!("one/r{number:02}"), "1", &images::single(&format!("one-{number}")));
        patterns.push(format!("one/r{number:02}"));
    }
    source.on(RequestMatcher::kind(RequestType::Tags)).always().act(FaultAction::Delay(Duration::from_millis(20)));
    let program = configured(&rules(&source, &target, &patterns));
    let dry = program.again().args(["run", "--dry-run", "--query-limit", "3", "-c"]);
    dry.arg(program.work_dir().join("imgsync.yaml")).run().await.assert_code(0);
    // The rule that is consumed may always list one repository.
    assert!(source.peak_in_flight() <= 4, "{}", source.peak_in_flight());
    let json = run(&program, &["--query-limit", "3"]).await.assert_code(0).json();
    assert_eq!(count(&json, "copied"), 40, "{json}");
}
