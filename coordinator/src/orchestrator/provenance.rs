//! Removes the provenance of target tags that no configured rule produces any more. Only `prune_plan` uses it, and that
//! removes nothing that its rule would not produce.

use std::time::Duration;

use imgsync_config::{Config, Rule, RuleSource};
use imgsync_model::batch::RepositoryLocator;
use imgsync_oci::error::Result;
use imgsync_oci::humanize::pluralize;
use imgsync_store::{LeaseResult, Store, TagProvenance, is_in_future};
use jiff::Timestamp;

use super::coordinator_name;
use super::prune_plan::{elapsed, would_make};
use super::run::fingerprint;
use crate::presets::{SourceSelector, source_selectors};

/// Maximum interval between cleanups per configuration, each of which reads all provenance.
const TIDY_INTERVAL: Duration = Duration::from_secs(24 * 60 * 60);
/// Minimum cleanups within `batch_retention`, so that several configurations notice what the others produce.
const MIN_RUNS_PER_RETENTION: u32 = 4;

/// Removes the provenance of target tags that no rule has produced for `batch_retention`. Does nothing if it ran recently.
pub async fn tidy_provenance(store: &dyn Store, config: &Config, now: Timestamp) -> Result<()> {
    let lease = format!("provenance of {}", fingerprint(config, None));
    let interval = (config.batch_retention / MIN_RUNS_PER_RETENTION).clamp(Duration::from_millis(1), TIDY_INTERVAL);
    // Not released: the lease lasts until the next cleanup is due.
    let holder = format!("{} at {now}", coordinator_name());
    match store.acquire(&lease, &holder, interval).await? {
        LeaseResult::Acquired { .. } => forget_unclaimed(store, &config.rules, config.batch_retention, now).await,
        LeaseResult::HeldBy { .. } => Ok(()),
    }
}

async fn forget_unclaimed(store: &dyn Store, rules: &[Rule], keep: Duration, now: Timestamp) -> Result<()> {
    let claims = RuleClaims::from_rules(rules);
    let mut forgotten = 0;
    for source in store.provenance_sources().await? {
        let (mut changes, mut gone) = (Vec::new(), Vec::new());
        for record in store.provenance_by_source(&source).await? {
            // A time in the future is unknown: the tag counts as unclaimed from now on.
            let since = record.unclaimed_since.filter(|since| !is_in_future(*since, now));
            match (claims.includes(&source, &record), since) {
                (true, _) if record.unclaimed_since.is_some() => changes.push((record.target, None)),
                (true, _) => {}
                (false, None) => changes.push((record.target, Some(now))),
                (false, Some(since)) if elapsed(since, now) >= keep => gone.push(record.target),
                (false, Some(_)) => {}
            }
        }
        forgotten += gone.len();
        store.forget_provenance(&source, &gone).await?;
        store.set_unclaimed_since(&source, changes).await?;
    }
    if forgotten > 0 {
        let tags = pluralize(forgotten as u64, "target tag", "target tags");
        tracing::info!("removed the provenance of {tags} that no rule writes any more");
    }
    Ok(())
}

/// Target tags produced by the rules of a configuration.
struct RuleClaims<'a> {
    rules: Vec<(&'a Rule, Vec<SourceSelector>)>,
    /// The source of some rule is unknown, so any tag may be produced.
    is_unknown: bool,
}

impl<'a> RuleClaims<'a> {
    fn from_rules(rules: &'a [Rule]) -> RuleClaims<'a> {
        let mut claims = RuleClaims { rules: Vec::new(), is_unknown: false };
        for rule in rules {
            match source_selectors(&rule.source) {
                Ok(parts) => claims.rules.push((rule, parts)),
                Err(_) => claims.is_unknown = true,
            }
        }
        claims
    }

    /// Returns whether a rule would produce this target if the source has the tag.
    fn includes(&self, source: &RepositoryLocator, record: &TagProvenance) -> bool {
        let Some((registry, repository)) = source.registry() else { return self.is_unknown };
        let reads = |rule: &Rule, part: &SourceSelector| {
            // A preset also reads from its former locations.
            matches!(rule.source, RuleSource::Preset(_)) || part.reads(registry, &repository)
        };
        let makes = |(rule, parts): &(&Rule, Vec<SourceSelector>)| {
            parts.iter().any(|part| reads(rule, part) && would_make(rule, Some(part), (registry, &repository), record))
        };
        self.is_unknown || self.rules.iter().any(makes)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use imgsync_config::ConfigFile;
    use imgsync_model::batch::TagLocator;
    use imgsync_oci::Digest;
    use imgsync_store::{Clock as _, ManualClock, ProvenanceStore as _, SqliteStore};

    use super::*;

    const DAY: Duration = Duration::from_secs(24 * 60 * 60);

    fn config(rules: &str) -> Config {
        let text = format!("keep: 90d\nrules: [{rules}]\n");
        let file = ConfigFile { name: "imgsync.yaml", text: &text, environment: &|_| None, presets: None };
        Config::read(&file).unwrap()
    }

    fn tag_locator(registry: &str, path: &str, tag: &str) -> TagLocator {
        let home = RepositoryLocator::new(registry.parse().unwrap(), path).unwrap();
        TagLocator { repository: Arc::new(home), tag: tag.parse().unwrap() }
    }

    struct ProvenanceFixture {
        clock: Arc<ManualClock>,
        store: SqliteStore,
    }

    impl ProvenanceFixture {
        /// Creates tags `v1` and `latest` of `gcr.io/a/b` at `target.example/m/b`.
        async fn new() -> ProvenanceFixture {
            let clock = Arc::new(ManualClock::starting_at("2026-01-01T00:00:00Z".parse().unwrap()));
            let store = SqliteStore::in_memory(clock.clone()).await.unwrap();
            for tag in ["v1", "latest"] {
                let (source, target) = (tag_locator("gcr.io", "a/b", tag), tag_locator("target.example", "m/b", tag));
                store.record_provenance(&source, &target, &Digest::sha256(b"1")).await.unwrap();
            }
            ProvenanceFixture { clock, store }
        }

        /// Runs a cleanup with these rules on each of `days` days and returns the tags left.
        async fn days(&self, days: u32, rules: &str) -> Vec<String> {
            let config = config(rules);
            for _ in 0..days {
                self.clock.advance(DAY);
                tidy_provenance(&self.store, &config, self.clock.now()).await.unwrap();
            }
            let known = self.store.provenance_by_source(&tag_locator("gcr.io", "a/b", "v1").repository).await.unwrap();
            known.into_iter().map(|record| record.target.tag.to_string()).collect()
        }
    }

    const RULE: &str = "{from: gcr.io/a/**, to: target.example/m, naming: basename}";

    #[tokio::test]
    async fn provenance_is_kept_for_as_long_as_a_rule_makes_the_tag() {
        let fixture = ProvenanceFixture::new().await;
        assert_eq!(fixture.days(400, RULE).await, ["latest", "v1"]);
        // Also if the rule limits tags by age or number.
        let newest = "{from: gcr.io/a/b, to: target.example/m, naming: basename, tags: {newest: 1, since: 30d}}";
        assert_eq!(fixture.days(400, newest).await, ["latest", "v1"]);
    }

    #[tokio::test]
    async fn provenance_that_no_rule_needs_is_forgotten_after_keep_and_not_before() {
        for none in [
            "",
            "{from: gcr.io/other/**, to: target.example/m, naming: basename}",
            "{from: gcr.io/a/**, to: target.example/n, naming: basename}",
            "{from: gcr.io/a/**, to: target.example/m}",
            "{from: quay.io/a/**, to: target.example/m, naming: basename}",
        ] {
            let fixture = ProvenanceFixture::new().await;
            // The first day records that no rule produces it.
            assert_eq!(fixture.days(90, none).await, ["latest", "v1"], "{none}");
            assert!(fixture.days(1, none).await.is_empty(), "{none}");
            assert!(fixture.store.provenance_sources().await.unwrap().is_empty());
        }
        let fixture = ProvenanceFixture::new().await;
        let some = "{from: gcr.io/a/**, to: target.example/m, naming: basename, tags: {exclude: [latest]}}";
        assert_eq!(fixture.days(100, some).await, ["v1"], "tag by tag");
    }

    #[tokio::test]
    async fn a_rule_that_is_back_in_time_keeps_the_provenance_and_the_days_are_counted_anew() {
        let fixture = ProvenanceFixture::new().await;
        assert_eq!(fixture.days(80, "").await, ["latest", "v1"]);
        assert_eq!(fixture.days(1, RULE).await, ["latest", "v1"]);
        assert_eq!(fixture.days(90, "").await, ["latest", "v1"]);
        assert!(fixture.days(1, "").await.is_empty());
    }

    #[tokio::test]
    async fn two_configurations_with_one_store_keep_what_either_makes() {
        let fixture = ProvenanceFixture::new().await;
        for _ in 0..5 {
            assert_eq!(fixture.days(80, "").await, ["latest", "v1"]);
            assert_eq!(fixture.days(1, RULE).await, ["latest", "v1"]);
        }
    }
}
