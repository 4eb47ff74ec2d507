//! Providers: each one's habits are in a file of its own, no other code names one, and the pages name each listing API.

use std::path::Path;

use imgsync_registry::providers;

use super::markdown::{self, root};

/// Hosts and names of providers, in lower case, each as parts of a path, an identifier or a sentence.
const PROVIDER_NAMES: [&str; 26] = [
    "docker.io",
    "docker.com",
    "docker hub",
    "docker_hub",
    "dockerhub",
    "quay",
    "ghcr",
    "github",
    "gitlab",
    "gcr.io",
    "pkg.dev",
    "registry.k8s.io",
    "google",
    "amazon",
    "aws",
    "ecr",
    "dkr",
    "azure",
    "azurecr",
    "mcr.microsoft.com",
    "aliyun",
    "harbor",
    "nexus",
    "artifactory",
    "gitea",
    "nvcr",
];

/// Files that name providers, with the reason. Presets name them as data, in presets.toml.
const EXCEPTIONS: [(&str, &str); 26] = [
    ("common/oci/src/reference.rs", "a reference without a registry is of docker.io, which has several names"),
    ("common/model/src/naming.rs", "references of docker.io have two levels"),
    ("common/model/src/select/repositories.rs", "a pattern without a registry is of docker.io"),
    ("common/layout/src/manifests.rs", "an example of a full name"),
    ("common/layout/src/index_entry.rs", "an annotation of imgsync's own begins with the address of the project"),
    ("common/layout/src/docker_manifest.rs", "docker shows images of docker.io under short names"),
    ("common/config/src/lib.rs", "the default target is docker.io/<user>"),
    ("common/config/src/rule.rs", "the default target is docker.io/<user>"),
    ("common/config/src/schema_table.rs", "documents the values of `listing` and what `create` creates"),
    ("common/registry/src/providers/mod.rs", "registers the providers"),
    ("common/registry/src/credentials/docker_config.rs", "docker's files have a key of their own for docker.io"),
    ("common/registry/src/credentials/helper_env.rs", "credential helpers of clouds read variables with their names"),
    ("coordinator/src/cli/legacy.rs", "commands of 2.1 copy from their hosts to docker.io"),
    ("coordinator/src/cli/legacy_args.rs", "commands of 2.1 copy from their hosts to docker.io"),
    ("coordinator/src/import/legacy.rs", "commands of 2.1 copy from their hosts to docker.io"),
    ("coordinator/src/import/draft.rs", "other programs' files name docker.io in several ways"),
    ("coordinator/src/cli/sync.rs", "the default target is docker.io/<user>"),
    ("coordinator/src/cli/target.rs", "the default target is docker.io/<user>"),
    ("coordinator/src/report/sample.rs", "a report for tests"),
    ("coordinator/src/notify/chat.rs", "a message for tests"),
    ("common/config/src/hooks.rs", "the kinds of hooks are named after their senders"),
    ("coordinator/src/mirrors/formats", "clusters and engines have short names and mirrors for docker.io alone"),
    ("coordinator/src/mirrors/rule_names.rs", "names of docker.io have two levels"),
    ("coordinator/src/mirrors/shared_names.rs", "names of docker.io have two levels"),
    ("coordinator/src/hooks", "payloads of notifications, a file for each sender"),
    ("worker/src/copy/transfer/missing_content.rs", "Harbor is built on distribution and has its settings"),
];

/// What the providers share, beside them, must not name one either.
const SHARED: [&str; 5] = ["mod.rs", "api", "identity", "listing.rs", "provisioning.rs"];

const PROVIDERS: &str = "common/registry/src/providers";

/// Returns the Rust files below a folder, as paths from the root.
pub(crate) fn rust_files(folder: &Path, found: &mut Vec<String>) {
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            rust_files(&path, found);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            found.push(path.strip_prefix(root()).unwrap().to_str().unwrap().to_owned());
        }
    }
}

/// Returns the files of the programs, without those of tests.
fn product_files() -> Vec<String> {
    let mut folders: Vec<_> =
        std::fs::read_dir(root().join("common")).unwrap().map(|entry| entry.unwrap().path().join("src")).collect();
    folders.extend(["worker/src", "coordinator/src"].map(|folder| root().join(folder)));
    let mut files = Vec::new();
    folders.iter().filter(|folder| folder.is_dir()).for_each(|folder| rust_files(folder, &mut files));
    let is_test = |part: &str| {
        let stem = part.trim_end_matches(".rs");
        matches!(stem, "tests" | "contract" | "golden" | "fuzz") || stem.ends_with("_tests")
    };
    files.retain(|file| !file.split('/').any(is_test));
    files
}

/// Returns the lines of code with their numbers, without comments and without the module of tests at the end.
fn code_lines(text: &str) -> impl Iterator<Item = (usize, &str)> {
    let code = text.split("#[cfg(test)]\nmod tests {").next().unwrap();
    code.lines().enumerate().filter(|(_, line)| !line.trim_start().starts_with("//")).map(|(at, line)| (at + 1, line))
}

/// Returns the provider that a line names: a host, or a name that is a word of its own or the begin of an identifier's
/// part.
fn named_provider(line: &str) -> Option<&'static str> {
    let lower = line.to_ascii_lowercase();
    PROVIDER_NAMES.into_iter().find(|name| {
        lower.match_indices(name).any(|(at, _)| {
            let before = line[..at].chars().next_back();
            let begins_part = line[at..].starts_with(char::is_uppercase) && before.is_some_and(char::is_lowercase);
            let after = line[at + name.len()..].chars().next();
            let ends = !after.is_some_and(char::is_lowercase);
            (begins_part || !before.is_some_and(char::is_alphanumeric)) && ends
        })
    })
}

fn is_below(file: &str, area: &str) -> bool {
    file.strip_prefix(area).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
}

#[test]
fn a_provider_is_named_in_its_own_file_and_in_exceptions_with_a_reason() {
    let shared: Vec<String> = SHARED.iter().map(|name| format!("{PROVIDERS}/{name}")).collect();
    let is_own_file = |file: &str| is_below(file, PROVIDERS) && !shared.iter().any(|area| is_below(file, area));
    let (mut problems, mut used) = (Vec::new(), [false; EXCEPTIONS.len()]);
    for file in product_files().iter().filter(|file| !is_own_file(file)) {
        let text = std::fs::read_to_string(root().join(file)).unwrap();
        for (number, line) in code_lines(&text) {
            let Some(name) = named_provider(line) else { continue };
            match EXCEPTIONS.iter().position(|(area, _)| is_below(file, area)) {
                Some(at) => used[at] = true,
                None => problems.push(format!("{file}:{number} names `{name}`: move it to {PROVIDERS}")),
            }
        }
    }
    for (area, is_used) in EXCEPTIONS.iter().map(|(area, _)| area).zip(used) {
        if !is_used {
            problems.push(format!("{area} names no provider: remove the exception"));
        }
    }
    assert!(problems.is_empty(), "{}", problems.join("\n"));
}

#[test]
fn a_name_of_a_provider_is_told_from_other_words() {
    for line in ["\"https://api.github.com/\"", "is_docker_hub()", "struct QuayApi;", "`ECR`", "let myGitHub = 1;"] {
        assert!(named_provider(line).is_some(), "{line}");
    }
    for line in ["let secret = 1;", "\"gitlabs\"", "\"notgcr.iox\"", "// nothing"] {
        assert_eq!(named_provider(line), None, "{line}");
    }
}

#[test]
fn each_listing_api_is_in_the_pages() {
    let (pages, schema) =
        (markdown::read("docs/reference/registries.md"), markdown::read("docs/reference/configuration.md"));
    for name in providers::listing_names() {
        assert!(
            pages.contains(&format!("`{name}`")),
            "docs/reference/registries.md does not say what `listing: {name}` is"
        );
        assert!(schema.contains(name), "docs/reference/configuration.md does not list `{name}`");
    }
}
