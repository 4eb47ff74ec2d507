//! Randomized responses, within the specification and just beyond it, at both sides of a batch. Affected images are
//! copied correctly or fail alone with the reason; the rest of the batch is copied.
//!
//! `IMGSYNC_RANDOMIZED_RUNS` sets the number of batches (8), `IMGSYNC_RANDOMIZED_SEED` the seed of the first.

use std::time::Duration;

use imgsync_tests::fault::{FaultRegistry, Quirks, RandomizedResponses, RequestType};
use imgsync_tests::images::{self, TestImage};
use imgsync_tests::program::Imgsync;
use rand::Rng as _;

const ODD_REPOSITORY: &str = "team/odd";

fn number(name: &str) -> Option<u64> {
    std::env::var(name).ok()?.parse().ok()
}

async fn registry(seed: u64, repository: &str) -> FaultRegistry {
    let vary = RandomizedResponses { seed, repository: repository.to_owned(), one_in: 4 };
    let quirks = Quirks { randomized: Some(vary), title_case: seed.is_multiple_of(2), ..Quirks::default() };
    let builder = FaultRegistry::builder().page(2).quirks(quirks);
    let builder = if seed.is_multiple_of(3) { builder.google() } else { builder };
    if seed.is_multiple_of(5) { builder.relative_locations().start().await } else { builder.start().await }
}

/// Runs a batch of six images, three of them in the affected repository. Returns the number of varied responses and of
/// failures.
async fn batch(seed: u64) -> (usize, usize) {
    let (source, target) = tokio::join!(registry(seed, ODD_REPOSITORY), registry(seed ^ 1, "mirror/team/odd"));
    let odd = [
        ("multi", images::multi_platform("varied-multi")),
        ("docker", images::single_docker("varied-docker")),
        ("large", images::big("varied-large", 3 << 20)),
    ];
    let plain: [(&str, &str, TestImage); 3] = [
        ("team/one", "1", images::multi_platform("varied-one")),
        ("team/one", "2", images::artifact("varied-two")),
        ("team/two", "1", images::nested("varied-three")),
    ];
    odd.iter().for_each(|(tag, image)| source.push(ODD_REPOSITORY, tag, image));
    plain.iter().for_each(|(repository, tag, image)| source.push(repository, tag, image));

    let run =
        Imgsync::new().args(["run", "--json", "--retry-delay", "1ms", "--attempts", "3", "--stall-timeout", "5s"]);
    let from = |repository: &str| format!("  - from: {}/{repository}\n", source.host());
    let rules: String = [ODD_REPOSITORY, "team/one", "team/two"].map(from).concat();
    let defaults = format!("defaults: {{to: {}/mirror, naming: keep}}\n", target.host());
    run.file("imgsync.yaml", format!("{defaults}rules:\n{rules}"));
    let output = run.limit(Duration::from_secs(90)).run().await;
    let varied = [source.variations(), target.variations()].concat();
    let context = || {
        let lines: Vec<_> = varied.iter().map(|(_, line)| line.as_str()).collect();
        format!("IMGSYNC_RANDOMIZED_SEED={seed}\n{}\n{}\n{}", lines.join("\n"), output.stdout, output.stderr)
    };
    assert!(matches!(output.code, Some(0 | 1)), "{:?} {}", output.code, context());
    assert!(!output.stderr.contains("panicked"), "{}", context());
    for (repository, tag, image) in &plain {
        let differences = target.differences(&format!("mirror/{repository}"), tag, image);
        assert!(differences.is_empty(), "{differences:?} {}", context());
    }
    target.assert_tags_complete();
    let json = output.json();
    let failures: Vec<_> =
        ["failures", "unlisted"].iter().flat_map(|key| json[*key].as_array().into_iter().flatten()).collect();
    for failure in &failures {
        let about = failure["source"].as_str().or(failure["repository"].as_str()).unwrap_or_default();
        assert!(about.contains(ODD_REPOSITORY), "only what is odd fails: {failure} {}", context());
        let said = failure["error"].as_str().unwrap_or_default();
        assert!(said.len() > 30 && said.contains(ODD_REPOSITORY), "it says what and where: {failure} {}", context());
    }
    assert_eq!(output.code == Some(1), !failures.is_empty(), "{}", context());
    // A changed tag list may have fewer tags, which nobody can notice.
    let relisted = varied.iter().any(|(kind, _)| *kind == RequestType::Tags);
    for (tag, image) in &odd {
        let is_there = target.tag_digest("mirror/team/odd", tag).is_some();
        let differences = target.differences("mirror/team/odd", tag, image);
        assert!(differences.is_empty() || !is_there, "no tag is wrong: {differences:?} {}", context());
        assert!(is_there || relisted || !failures.is_empty(), "what is missing is told of: {tag} {}", context());
    }
    (varied.len(), failures.len())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_odd_fails_alone_or_not_at_all() {
    let first = number("IMGSYNC_RANDOMIZED_SEED").unwrap_or_else(|| rand::rng().random_range(0..u64::from(u32::MAX)));
    let runs = number("IMGSYNC_RANDOMIZED_RUNS").unwrap_or(8);
    let (mut varied, mut failed) = (0, 0);
    for seed in first..first + runs {
        let (more_varied, more_failed) = batch(seed).await;
        varied += more_varied;
        failed += more_failed;
    }
    assert!(varied > 0, "nothing was varied from seed {first}");
    use std::io::Write as _;
    let _ = writeln!(
        std::io::stderr(),
        "{runs} batches from IMGSYNC_RANDOMIZED_SEED={first}: {varied} responses were varied, {failed} images or lists failed for it"
    );
}
