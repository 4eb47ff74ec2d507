//! The workflow of releases: it is YAML, builds for what is promised, and names files and commands that are there.

use serde_json::Value;

use super::{assert_taken, deploy};

#[tokio::test]
async fn the_release_workflow_fits_the_repository() {
    let path = deploy("../.github/workflows/release.yml");
    let text = std::fs::read_to_string(path).unwrap();
    let workflow: Value = serde_saphyr::from_str(&text).unwrap();
    let builds = workflow.pointer("/jobs/programs/strategy/matrix/include").unwrap().as_array().unwrap();
    let targets: Vec<&str> = builds.iter().map(|build| build["target"].as_str().unwrap()).collect();
    for target in
        ["x86_64-unknown-linux-gnu", "aarch64-unknown-linux-gnu", "x86_64-apple-darwin", "aarch64-apple-darwin"]
    {
        assert!(targets.contains(&target), "{target} in {targets:?}");
    }
    let steps = |job: &str| workflow["jobs"][job]["steps"].as_array().unwrap().clone();
    let image = steps("image").into_iter().find(|step| step["with"]["platforms"].is_string()).unwrap();
    assert_eq!(image["with"]["platforms"], "linux/amd64,linux/arm64");
    assert_eq!(image["with"]["sbom"], true);
    for file in [
        image["with"]["file"].as_str().unwrap(),
        "deploy/systemd",
        "deploy/prometheus",
        "deploy/grafana",
        "CHANGELOG.md",
    ] {
        assert!(deploy("..").join(file).exists() && text.contains(file), "{file}");
    }
    let mut seen = 0;
    for step in steps("programs") {
        for line in step["run"].as_str().unwrap_or_default().lines() {
            let Some(command) = line.trim().strip_prefix("target/release/") else { continue };
            let words = command.split([' ']).take_while(|word| !word.starts_with(['>', '|'])).collect::<Vec<_>>();
            let words: Vec<String> =
                words.iter().map(|word| word.trim_matches('"').replace("$program", "imgsync")).collect();
            if words.iter().any(|word| word == "--version") {
                continue;
            }
            assert_taken(&words[0], &words[1..]).await;
            seen += 1;
        }
    }
    assert!(seen >= 5, "{seen} commands");
    // Nobody's token may do more than its job needs.
    assert_eq!(workflow["permissions"]["contents"], "read");
    let publish = &workflow["jobs"]["publish"];
    assert_eq!(publish["if"], "github.ref_type == 'tag'");
}
