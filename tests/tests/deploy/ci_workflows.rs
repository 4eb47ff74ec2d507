//! CI and release workflows: valid YAML, builds for the promised targets, existing files and commands, pinned
//! dependencies.

use serde_json::Value;

use super::{assert_accepted, deploy};

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
        "README.md",
        "README.zh-CN.md",
    ] {
        assert!(deploy("..").join(file).exists() && text.contains(file), "{file}");
    }
    let mut seen = 0;
    for step in steps("programs") {
        for line in step["run"].as_str().unwrap_or_default().lines() {
            let Some(command) = line.trim().strip_prefix("target/dist/") else { continue };
            let words = command.split([' ']).take_while(|word| !word.starts_with(['>', '|'])).collect::<Vec<_>>();
            let words: Vec<String> =
                words.iter().map(|word| word.trim_matches('"').replace("$program", "imgsync")).collect();
            if words.iter().any(|word| word == "--version") {
                continue;
            }
            assert_accepted(&words[0], &words[1..]).await;
            seen += 1;
        }
    }
    assert!(seen >= 5, "{seen} commands");
    // No token has more permissions than its job needs.
    assert_eq!(workflow["permissions"]["contents"], "read");
    let publish = &workflow["jobs"]["publish"];
    assert_eq!(publish["if"], "github.ref_type == 'tag'");
}

/// Reads a file of the repository.
fn read(path: &str) -> String {
    std::fs::read_to_string(deploy("..").join(path)).unwrap_or_else(|error| panic!("{path}: {error}"))
}

fn workflow(name: &str) -> Value {
    serde_saphyr::from_str(&read(&format!(".github/workflows/{name}"))).unwrap()
}

/// Returns all workflows with their names.
fn workflows() -> Vec<(String, String)> {
    let folder = deploy("../.github/workflows");
    let names = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap());
    let mut all: Vec<(String, String)> =
        names.map(|name| (name.clone(), read(&format!(".github/workflows/{name}")))).collect();
    all.sort();
    all
}

/// Returns the value of a key in a TOML file, such as `channel`.
fn value<'a>(text: &'a str, key: &str) -> &'a str {
    let line = text.lines().find_map(|line| line.strip_prefix(key)?.trim_start().strip_prefix('='));
    line.unwrap_or_else(|| panic!("{key} in {text}")).trim().trim_matches('"')
}

#[test]
fn a_change_must_pass_what_this_machine_checks_and_the_advisories_and_a_release_comes_after() {
    let ci = workflow("ci.yml");
    for trigger in ["pull_request", "push", "workflow_call", "schedule"] {
        assert!(!ci["on"][trigger].is_null(), "{trigger}");
    }
    let jobs = ci["jobs"].as_object().unwrap();
    let runs: Vec<String> = jobs
        .values()
        .flat_map(|job| job["steps"].as_array().unwrap())
        .filter_map(|step| Some(step["run"].as_str()?.to_owned()))
        .collect();
    for wanted in [
        "cargo fmt --all --check",
        "cargo clippy --workspace --all-targets --locked -- -D warnings",
        "cargo doc --workspace --no-deps --locked",
        "check advisories bans licenses sources",
        "scripts/test",
    ] {
        assert!(runs.iter().any(|run| run.contains(wanted)), "{wanted} in {runs:#?}");
    }
    assert!(read("scripts/test").contains("cargo deny --log-level error check bans licenses sources\n"), "offline");

    let release = workflow("release.yml");
    assert_eq!(release["jobs"]["ci"]["uses"], "./.github/workflows/ci.yml");
    // Every other job depends on it, directly or indirectly.
    fn comes_after(jobs: &Value, job: &str) -> bool {
        let needs = &jobs[job]["needs"];
        let needs = needs.as_array().cloned().unwrap_or_else(|| vec![needs.clone()]);
        needs.iter().filter_map(Value::as_str).any(|needed| needed == "ci" || comes_after(jobs, needed))
    }
    for job in release["jobs"].as_object().unwrap().keys().filter(|job| *job != "ci") {
        assert!(comes_after(&release["jobs"], job), "{job}");
    }
}

#[test]
fn the_toolchain_and_the_oldest_rust_are_the_same_everywhere_and_both_are_built() {
    let toolchain = read("rust-toolchain.toml");
    let pinned = value(&toolchain, "channel");
    assert_eq!(pinned.split('.').filter(|part| part.parse::<u32>().is_ok()).count(), 3, "{pinned} is one version");
    let manifest = read("Cargo.toml");
    let oldest = value(&manifest, "rust-version");
    let minor = |version: &str| -> u32 { version.split('.').nth(1).unwrap().parse().unwrap() };
    assert!(minor(oldest) <= minor(pinned), "{oldest} {pinned}");
    // The pinned toolchain builds this.
    let rustc = std::process::Command::new("rustc").arg("--version").current_dir(deploy("..")).output().unwrap();
    let rustc = String::from_utf8(rustc.stdout).unwrap();
    assert!(rustc.starts_with(&format!("rustc {pinned} ")), "{rustc} {pinned}");

    let mut installed = Vec::new();
    for (name, text) in workflows() {
        for (_, rest) in
            text.match_indices("rustup toolchain install ").map(|(at, found)| text.split_at(at + found.len()))
        {
            let version = rest.split_whitespace().next().unwrap();
            assert!(version == pinned || version == format!("{oldest}.0"), "{name} installs {version}");
            installed.push(version.to_owned());
        }
        assert!(!text.contains("rustup default"), "{name}");
    }
    assert!(installed.iter().filter(|version| *version == pinned).count() >= 4, "{installed:?}");
    assert!(installed.contains(&format!("{oldest}.0")), "{installed:?}");
    assert!(read(".github/workflows/ci.yml").contains(&format!("cargo +{oldest}.0 build --workspace")));
    let image = format!("ARG RUST_IMAGE=rust:1.{}-slim-trixie", minor(pinned));
    assert!(read("Dockerfile").lines().any(|line| line == image), "{image}");
    assert!(read("docs/tutorial/getting-started.md").contains(&format!("Rust ({oldest} or later)")));
}

#[test]
fn actions_are_pinned_and_tokens_may_do_no_more_than_their_job() {
    let mut uses = 0;
    for (name, text) in workflows() {
        let lines = text.lines().filter_map(|line| line.trim().trim_start_matches("- ").strip_prefix("uses: "));
        for line in lines.filter(|line| !line.starts_with("./")) {
            let (action, version) = line.split_once(" # ").unwrap_or_else(|| panic!("{name}: {line} says no version"));
            let (_, commit) = action.split_once('@').unwrap();
            let is_commit = commit.len() == 40 && commit.bytes().all(|byte| byte.is_ascii_hexdigit());
            assert!(is_commit && version.starts_with('v') && version.matches('.').count() == 2, "{name}: {line}");
            uses += 1;
        }
        let workflow: Value = serde_saphyr::from_str(&text).unwrap();
        assert_eq!(workflow["permissions"], serde_json::json!({"contents": "read"}), "{name}");
        for (job, steps) in workflow["jobs"].as_object().unwrap() {
            for (scope, right) in steps["permissions"].as_object().into_iter().flatten() {
                let wanted: &[&str] = match (name.as_str(), job.as_str()) {
                    ("release.yml", "image") => &["packages", "id-token", "attestations"],
                    ("release.yml", "publish") => &["contents", "id-token", "attestations"],
                    _ => &[],
                };
                assert!(right == "read" || wanted.contains(&scope.as_str()), "{name}: {job} has {scope}: {right}");
            }
            for step in steps["steps"].as_array().into_iter().flatten() {
                let is_checkout = step["uses"].as_str().is_some_and(|uses| uses.starts_with("actions/checkout@"));
                assert!(!is_checkout || step["with"]["persist-credentials"] == false, "{name}: {job} leaves its token");
                // Text from a pull request's author never becomes part of a script.
                let run = step["run"].as_str().unwrap_or_default();
                assert!(!run.contains("${{ github.event") && !run.contains("${{ github.head_ref"), "{name}: {run}");
            }
        }
        assert!(!text.contains("pull_request_target"), "{name}: somebody else's code with our token");
    }
    assert!(uses >= 12, "{uses}");
}

#[test]
fn base_images_can_be_named_by_digest_tools_have_versions_and_what_is_newer_is_proposed() {
    for file in ["Dockerfile", "deploy/release.Dockerfile"] {
        let text = read(file);
        let arguments: Vec<&str> = text
            .lines()
            .filter_map(|line| line.strip_prefix("ARG ")?.split_once("_IMAGE="))
            .map(|(name, _)| name)
            .collect();
        for from in text.lines().filter_map(|line| line.strip_prefix("FROM ")) {
            let image = from.split(' ').next().unwrap();
            let is_stage = text.contains(&format!(" AS {image}\n"));
            let is_argument = arguments.iter().any(|name| image == format!("${{{name}_IMAGE}}"));
            assert!(is_stage || is_argument, "{file}: {image} cannot be named by digest");
        }
        assert!(!arguments.is_empty(), "{file}");
    }
    let release = read(".github/workflows/release.yml");
    assert!(release.contains("build-args: RUNTIME_IMAGE=${{ steps.base.outputs.image }}"));
    let security = read("docs/explanation/security.md");
    assert!(security.contains("## Builds") && security.contains("--build-arg RUNTIME_IMAGE="));
    for (name, text) in workflows().into_iter().chain([("scripts/test".to_owned(), read("scripts/test"))]) {
        for line in text.lines().filter(|line| line.contains("cargo install ")) {
            assert!(
                line.contains("--locked") && line.split("--locked ").nth(1).unwrap().contains('@'),
                "{name}: {line}"
            );
        }
    }
    let dependabot: Value = serde_saphyr::from_str(&read(".github/dependabot.yml")).unwrap();
    let ecosystems: Vec<&str> = dependabot["updates"]
        .as_array()
        .unwrap()
        .iter()
        .map(|update| update["package-ecosystem"].as_str().unwrap())
        .collect();
    assert_eq!(ecosystems, ["cargo", "github-actions", "docker", "docker-compose"]);
}

/// lapin's TLS dependencies stay out: banned, and not in the lock file.
#[test]
fn banned_crates_are_not_in_the_lock_file() {
    let (deny, lock) = (read("deny.toml"), read("Cargo.lock"));
    let banned: Vec<&str> =
        deny.lines().filter_map(|line| line.trim().strip_prefix("{ name = \"")?.split('"').next()).collect();
    for name in ["p12-keystore", "rc2", "des", "cms", "pkcs12", "x509-cert", "rustls-connector"] {
        assert!(banned.contains(&name), "{name} is banned");
    }
    for name in banned {
        assert!(!lock.contains(&format!("name = \"{name}\"\n")), "{name} is back");
    }
    assert!(deny.contains("[advisories]"));
}
