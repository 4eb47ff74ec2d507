//! Fixture of most serve tests: two registries and a program that mirrors between them.

use imgsync_tests::fault::FaultRegistry;
use imgsync_tests::images::{Layer, TestImage};
use imgsync_tests::{Imgsync, ServeProcess};
use serde_json::Value;

/// A source, a target, and a program configured to copy between them.
pub(crate) struct ServeFixture {
    pub(crate) source: FaultRegistry,
    pub(crate) target: FaultRegistry,
    pub(crate) program: Imgsync,
}

impl ServeFixture {
    /// Creates this many images in each repository at the source.
    pub(crate) async fn new(repositories: &[&str], tags: usize) -> Self {
        let (source, target) = tokio::join!(FaultRegistry::start(), FaultRegistry::start());
        for repository in repositories {
            for tag in 0..tags {
                let image = TestImage::single(&format!("{repository}-{tag}")).layer(Layer::File(400)).build();
                source.push(repository, &format!("v{tag}"), &image);
            }
        }
        Self { source, target, program: Imgsync::new() }
    }

    /// Builds a configuration with a rule and a schedule for each repository.
    pub(crate) fn config(&self, rules: &[(&str, &str)]) -> String {
        let rule = |(repository, schedule): &(&str, &str)| match schedule.is_empty() {
            true => format!("- {{from: {}/{repository}}}\n", self.source.host()),
            false => format!("- {{from: {}/{repository}, schedule: {schedule}}}\n", self.source.host()),
        };
        let rules: String = rules.iter().map(rule).collect();
        format!("defaults: {{to: {}/m, naming: keep}}\nrules:\n{rules}", self.target.host())
    }

    /// Writes the configuration.
    pub(crate) fn write(&self, config: &str) {
        self.program.file("imgsync.yaml", config);
    }

    /// Starts `imgsync serve` with these rules.
    pub(crate) async fn serve(&self, rules: &[(&str, &str)]) -> ServeProcess {
        self.write(&self.config(rules));
        ServeProcess::start(&self.program, &[]).await
    }
}

/// Returns the rule that reads this repository.
pub(crate) fn rule<'v>(schedules: &'v Value, repository: &str) -> &'v Value {
    let rules = schedules["schedules"].as_array().expect("schedules come as a list");
    let reads = |rule: &&Value| rule["from"].as_str().is_some_and(|from| from.ends_with(&format!("/{repository}")));
    rules.iter().find(reads).unwrap_or_else(|| panic!("no rule reads {repository}: {schedules:#}"))
}

/// Asserts that the counts of a batch add up.
pub(crate) fn assert_sums(batch: &Value) {
    let count = |name: &str| batch["counts"][name].as_u64().expect("counts are numbers");
    let sum: u64 = ["waiting", "running", "copied", "unchanged", "failed", "cancelled"].map(count).iter().sum();
    assert_eq!(sum, count("total"), "{batch:#}");
}
