//! Removes the provenance of target tags that no configured rule produces any more. Only `prune` uses it, and that
//! removes nothing that its rule would not produce.

use std::time::Duration;

use imgsync_common::batch::Home;
use imgsync_common::config::{Config, Rule, Source};
use imgsync_common::error::Result;
use imgsync_common::store::{Named, Origin, Store, is_ahead};
use jiff::Timestamp;

use super::coordinator_name;
use super::prune::{passed, would_make};
use super::run::fingerprint;
use crate::presets::{Part, parts};

/// Maximum interval between cleanups per configuration, each of which reads all provenance.
const TIDY_INTERVAL: Duration = Duration::from_secs(24 * 60 * 60);
/// Minimum cleanups within `keep`, so that several configurations notice what the others produce.
const LOOKS_IN_KEEP: u32 = 4;

/// Removes the provenance of target tags that no rule has produced for `keep`. Does nothing if it ran recently.
pub async fn tidy_provenance(store: &dyn Store, config: &Config, now: Timestamp) -> Result<()> {
    let lease = format!("provenance of {}", fingerprint(config, None));
    let interval = (config.keep / LOOKS_IN_KEEP).clamp(Duration::from_millis(1), TIDY_INTERVAL);
    // Not released: the lease lasts until the next cleanup is due.
    let holder = format!("{} at {now}", coordinator_name());
    match store.acquire(&lease, &holder, interval).await? {
        Named::Yours { .. } => forget_unclaimed(store, &config.rules, config.keep, now).await,
        Named::Others { .. } => Ok(()),
    }
}

async fn forget_unclaimed(store: &dyn Store, rules: &[Rule], keep: Duration, now: Timestamp) -> Result<()> {
    let claims = Claims::of(rules);
    let mut forgotten = 0;
    for source in store.origin_sources().await? {
        let (mut changes, mut gone) = (Vec::new(), Vec::new());
        for origin in store.origins(&source).await? {
            // A time in the future is unknown: the tag counts as unclaimed from now on.
            let since = origin.unclaimed_since.filter(|since| !is_ahead(*since, now));
            match (claims.has(&source, &origin), since) {
                (true, _) if origin.unclaimed_since.is_some() => changes.push((origin.target, None)),
                (true, _) => {}
                (false, None) => changes.push((origin.target, Some(now))),
                (false, Some(since)) if passed(since, now) >= keep => gone.push(origin.target),
                (false, Some(_)) => {}
            }
        }
        forgotten += gone.len();
        store.forget_origins(&source, &gone).await?;
        store.note_unclaimed(&source, changes).await?;
    }
    if forgotten > 0 {
        tracing::info!("forgot what {forgotten} target tags were made from: no rule makes them any more");
    }
    Ok(())
}

/// Target tags produced by the rules of a configuration.
struct Claims<'a> {
    rules: Vec<(&'a Rule, Vec<Part>)>,
    /// The source of some rule is unknown, so any tag may be produced.
    is_unknown: bool,
}

impl<'a> Claims<'a> {
    fn of(rules: &'a [Rule]) -> Claims<'a> {
        let mut claims = Claims { rules: Vec::new(), is_unknown: false };
        for rule in rules {
            match parts(&rule.source) {
                Ok(parts) => claims.rules.push((rule, parts)),
                Err(_) => claims.is_unknown = true,
            }
        }
        claims
    }

    /// Returns whether a rule would produce this target if the source has the tag.
    fn has(&self, source: &Home, origin: &Origin) -> bool {
        let Some((registry, repository)) = source.registry() else { return self.is_unknown };
        let reads = |rule: &Rule, part: &Part| {
            // A preset also reads from its former locations.
            matches!(rule.source, Source::Preset(_))
                || part.pattern.registry() == registry && part.pattern.matches(repository.as_str())
        };
        let makes = |(rule, parts): &(&Rule, Vec<Part>)| {
            parts.iter().any(|part| reads(rule, part) && would_make(rule, Some(part), (registry, &repository), origin))
        };
        self.is_unknown || self.rules.iter().any(makes)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use imgsync_common::batch::Place;
    use imgsync_common::config::File;
    use imgsync_common::image::Digest;
    use imgsync_common::store::{Clock as _, ManualClock, Origins as _, SqliteStore};

    use super::*;

    const DAY: Duration = Duration::from_secs(24 * 60 * 60);

    fn config(rules: &str) -> Config {
        let text = format!("keep: 90d\nrules: [{rules}]\n");
        let file = File { name: "imgsync.yaml", text: &text, environment: &|_| None, presets: None };
        Config::read(&file).unwrap()
    }

    fn place(registry: &str, path: &str, tag: &str) -> Place {
        let home = Home::new(registry.parse().unwrap(), path).unwrap();
        Place { home: Arc::new(home), tag: tag.parse().unwrap() }
    }

    struct Scene {
        clock: Arc<ManualClock>,
        store: SqliteStore,
    }

    impl Scene {
        /// Creates tags `v1` and `latest` of `gcr.io/a/b` at `target.example/m/b`.
        async fn new() -> Scene {
            let clock = Arc::new(ManualClock::at("2026-01-01T00:00:00Z".parse().unwrap()));
            let store = SqliteStore::in_memory(clock.clone()).await.unwrap();
            for tag in ["v1", "latest"] {
                let (source, target) = (place("gcr.io", "a/b", tag), place("target.example", "m/b", tag));
                store.note_origin(&source, &target, &Digest::sha256(b"1")).await.unwrap();
            }
            Scene { clock, store }
        }

        /// Runs a cleanup with these rules on each of `days` days and returns the tags left.
        async fn days(&self, days: u32, rules: &str) -> Vec<String> {
            let config = config(rules);
            for _ in 0..days {
                self.clock.advance(DAY);
                tidy_provenance(&self.store, &config, self.clock.now()).await.unwrap();
            }
            let known = self.store.origins(&place("gcr.io", "a/b", "v1").home).await.unwrap();
            known.into_iter().map(|origin| origin.target.tag.to_string()).collect()
        }
    }

    const RULE: &str = "{from: gcr.io/a/**, to: target.example/m, naming: basename}";

    #[tokio::test]
    async fn provenance_is_kept_for_as_long_as_a_rule_makes_the_tag() {
        let scene = Scene::new().await;
        assert_eq!(scene.days(400, RULE).await, ["latest", "v1"]);
        // Also if the rule limits tags by age or number.
        let newest = "{from: gcr.io/a/b, to: target.example/m, naming: basename, tags: {newest: 1, since: 30d}}";
        assert_eq!(scene.days(400, newest).await, ["latest", "v1"]);
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
            let scene = Scene::new().await;
            // The first day records that no rule produces it.
            assert_eq!(scene.days(90, none).await, ["latest", "v1"], "{none}");
            assert!(scene.days(1, none).await.is_empty(), "{none}");
            assert!(scene.store.origin_sources().await.unwrap().is_empty());
        }
        let scene = Scene::new().await;
        let some = "{from: gcr.io/a/**, to: target.example/m, naming: basename, tags: {exclude: [latest]}}";
        assert_eq!(scene.days(100, some).await, ["v1"], "tag by tag");
    }

    #[tokio::test]
    async fn a_rule_that_is_back_in_time_keeps_the_provenance_and_the_days_are_counted_anew() {
        let scene = Scene::new().await;
        assert_eq!(scene.days(80, "").await, ["latest", "v1"]);
        assert_eq!(scene.days(1, RULE).await, ["latest", "v1"]);
        assert_eq!(scene.days(90, "").await, ["latest", "v1"]);
        assert!(scene.days(1, "").await.is_empty());
    }

    #[tokio::test]
    async fn two_configurations_with_one_store_keep_what_either_makes() {
        let scene = Scene::new().await;
        for _ in 0..5 {
            assert_eq!(scene.days(80, "").await, ["latest", "v1"]);
            assert_eq!(scene.days(1, RULE).await, ["latest", "v1"]);
        }
    }
}
