//! `--rule`: a run of some rules is a run of a configuration with those alone, and forgets nothing of the others.

use std::sync::Arc;
use std::time::{Duration, Instant};

use imgsync_config::{Config, ConfigFile};
use imgsync_tests::fault::{FaultAction, FaultRegistry, RequestType};
use imgsync_tests::images;
use imgsync_tests::program::{Imgsync, Output, Signal};
use serde_json::{Value, json};
use tokio::sync::Semaphore;

use crate::end_to_end::{configured, run};
use crate::listings;

const WAIT_TIMEOUT: Duration = Duration::from_secs(60);
/// `keep` of the configuration: longer than a run takes, whose batch would be removed, too.
const KEEP: Duration = Duration::from_secs(3);

/// Two tags in each of three repositories, and rules `alpha`, `beta`, which prunes, and one without a name.
struct RuleFixture {
    source: FaultRegistry,
    target: FaultRegistry,
    program: Imgsync,
    config: String,
}

impl RuleFixture {
    async fn new() -> RuleFixture {
        let (source, target) = tokio::join!(FaultRegistry::start(), FaultRegistry::start());
        for repository in ["alpha", "beta", "gamma"] {
            for tag in ["v1", "v2"] {
                source.push(repository, tag, &images::single(&format!("rules-{repository}-{tag}")));
            }
        }
        let from = source.host();
        let config = format!(
            "keep: 3s\ndefaults: {{to: {}/m, naming: keep}}\nrules:\n- {{name: alpha, from: {from}/alpha}}\n\
             - {{name: beta, from: {from}/beta, prune: {{keep_days: 0, limit: 50%}}}}\n- {{from: {from}/gamma}}\n",
            target.host()
        );
        let program = configured(&config);
        RuleFixture { source, target, program, config }
    }

    async fn run(&self, rules: &[&str]) -> Output {
        let more: Vec<&str> = rules.iter().flat_map(|rule| ["--rule", rule]).collect();
        run(&self.program, &more).await
    }

    fn copied(&self) -> Vec<&str> {
        ["alpha", "beta", "gamma"]
            .into_iter()
            .filter(|name| !self.target.tags(&format!("m/{name}")).is_empty())
            .collect()
    }
}

#[tokio::test]
async fn only_the_rules_that_are_named_are_run() {
    let fixture = RuleFixture::new().await;
    let (source, config) = (fixture.source.host(), &fixture.config);
    assert_eq!(fixture.run(&["alpha"]).await.assert_code(0).json()["counts"]["copied"], 2);
    assert_eq!(fixture.copied(), ["alpha"]);
    assert_eq!(
        fixture.source.count_where(|record| record.repository.as_deref().is_some_and(|name| name != "alpha")),
        0
    );
    // A rule without a name has the one of reports; every rule has an id and a number.
    let read = ConfigFile { name: "imgsync.yaml", text: config, environment: &|_| None, presets: None };
    let id = Config::read(&read).unwrap().rules[2].id();
    for gamma in [format!("{source}/gamma"), id, "3".to_owned()] {
        let output = fixture.run(&[&gamma, &gamma]).await.assert_code(0);
        assert_eq!(output.json()["counts"]["total"], 2, "{gamma}");
    }
    assert_eq!(fixture.copied(), ["alpha", "gamma"]);
    assert_eq!(fixture.run(&["beta", "alpha"]).await.assert_code(0).json()["counts"]["total"], 4);

    let dry = run(&fixture.program, &["--dry-run", "--rule", "beta"]).await.assert_code(0);
    assert!(dry.stdout.contains("/beta:v1") && !dry.stdout.contains("/alpha:"), "{}", dry.stdout);
    let verify = fixture.program.again().args(["verify", "-c", "imgsync.yaml", "--rule", "beta", "--json"]).run().await;
    assert_eq!(verify.assert_code(0).json()["counts"]["total"], 2);

    fixture.source.clear_requests();
    for unknown in ["delta", "0", "4", ""] {
        let output = fixture.run(&["alpha", unknown]).await.assert_code(2);
        let wanted =
            format!("the configuration has no rule `{unknown}`\nhint: its rules are alpha, beta, {source}/gamma;");
        assert!(output.stderr.contains(&wanted), "{}", output.stderr);
    }
    assert_eq!(fixture.source.total(), 0, "an unknown rule is an error before anything is listed");
}

#[tokio::test]
async fn a_run_of_one_rule_prunes_nothing_of_the_others_and_keeps_what_is_known_of_their_tags() {
    let fixture = RuleFixture::new().await;
    fixture.run(&[]).await.assert_code(0);
    fixture.source.delete_tag("beta", "v1");
    // For longer than `keep` allows a rule to be missing: beta is not missing, only left out.
    let began = Instant::now();
    while began.elapsed() < 2 * KEEP {
        let json = fixture.run(&["alpha"]).await.assert_code(0).json();
        assert!(json["pruned"].as_array().is_none_or(Vec::is_empty), "{json}");
    }
    assert_eq!(fixture.target.tags("m/beta"), ["v1", "v2"]);
    let json = fixture.run(&[]).await.assert_code(0).json();
    assert_eq!(
        (&json["pruned"][0]["outcome"], json["pruned"].as_array().unwrap().len()),
        (&json!("removed"), 1),
        "{json}"
    );
    assert_eq!(fixture.target.tags("m/beta"), ["v2"]);
    // A run of the rule that prunes does prune.
    fixture.source.push("beta", "v3", &images::single("rules-beta-v3"));
    fixture.run(&["beta"]).await.assert_code(0);
    fixture.source.delete_tag("beta", "v2");
    assert_eq!(fixture.run(&["beta"]).await.assert_code(0).json()["pruned"][0]["outcome"], "removed");
}

#[tokio::test]
async fn a_run_of_one_rule_is_the_batch_of_that_rule_alone_and_is_resumed_as_such() {
    let fixture = RuleFixture::new().await;
    let config = fixture.config.replace("keep: 3s\n", "");
    fixture.program.file("imgsync.yaml", &config);
    let alone: Vec<&str> = config.lines().filter(|line| !line.contains("/alpha") && !line.contains("/gamma")).collect();
    fixture.program.file("alone.yaml", alone.join("\n"));
    let gate = Arc::new(Semaphore::new(0));
    let held = fixture.source.on(RequestType::Tags).always().act(FaultAction::Gate(gate.clone()));
    let file = fixture.program.work_dir().join("imgsync.yaml");
    let one_rule = ["run", "--rule", "beta", "-c"];
    let mut listing = fixture.program.again().args(one_rule).arg(&file).spawn();
    fixture.source.wait_until(|source| listings(source, "beta") == 1, WAIT_TIMEOUT).await;
    // The same rules, whether chosen or alone in their file.
    let fail = ["run", "alone.yaml", "--if-running", "fail"];
    let refused = fixture.program.again().args(fail).run().await.assert_code(2);
    assert!(refused.stderr.contains("batch "), "it names the batch of the same rules: {}", refused.stderr);
    listing.signal(Signal::KILL);
    listing.wait().await;
    held.remove();
    gate.add_permits(100);

    let batch = async |arguments: &[&str]| {
        let program = fixture.program.again().arg("batch").args(arguments).args(["--json", "-c"]).arg(&file);
        program.run().await.assert_code(0).json()
    };
    let interrupted = batch(&["show"]).await;
    assert_eq!((&interrupted["state"], &interrupted["rules"]), (&json!("interrupted"), &json!(["beta"])));

    // A run of another rule does not supersede it.
    let other = fixture.run(&["alpha"]).await.assert_code(0);
    assert!(!other.stderr.contains("superseding"), "{}", other.stderr);
    assert_eq!(fixture.copied(), ["alpha"]);

    // Resumed with the whole configuration, its listing goes on with its own rule.
    let resumed: Value = batch(&["resume", interrupted["batch"].as_str().unwrap()]).await;
    assert_eq!((&resumed["batch"], &resumed["counts"]["copied"]), (&interrupted["batch"], &json!(2)), "{resumed}");
    assert_eq!(fixture.copied(), ["alpha", "beta"]);
}
