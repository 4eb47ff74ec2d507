//! Kyverno: policies that replace the images of Pods by those of the mirror.

use std::collections::{BTreeSet, HashSet};

use imgsync_config::to_yaml;
use imgsync_oci::error::Result;
use serde::Serialize;
use serde_json::{Value, json};

use super::{Expressed, NameRange, RenderedMirrors, SharedNames, check_complete, unreachable, yaml_file};
use crate::mirrors::MirroredNames;
use crate::mirrors::name_mapping::{MappingScope, NameMapping, NamePrefix, count_levels, escape_regex, join};

const FORMAT: &str = "kyverno";
pub(super) const FILE: &str = "imgsync-mirrors.yaml";
/// Maximum number of mappings in a policy: an object of Kubernetes has at most 1.5 MiB, and a mapping takes 3 KiB.
const MAX_MAPPINGS: usize = 200;
/// Maximum number of names that are excepted from a pattern: with more, a policy becomes too large.
const MAX_EXCEPTIONS: usize = 2000;
/// The lists of containers that a Pod is created with. A change of a running Pod's image would restart its container.
const CONTAINER_LISTS: [&str; 2] = ["containers", "initContainers"];

/// Steps that complete the name of an image: those of Docker Hub are written without it, and official ones without
/// `library/`. A first level without a dot or a colon is no registry, except `localhost`.
const DOCKER_HUB_STEPS: [(&str, &str); 5] = [
    ("^index[.]docker[.]io/(.+)$", "docker.io/$1"),
    ("^localhost/(.+)$", "localhost:/$1"),
    ("^([^/]+)$", "docker.io/library/$1"),
    ("^([^/.:]+/.+)$", "docker.io/$1"),
    ("^docker[.]io/([^/]+)$", "docker.io/library/$1"),
];

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct ClusterPolicy {
    api_version: &'static str,
    kind: &'static str,
    metadata: Metadata,
    spec: PolicySpec,
}

#[derive(Serialize)]
struct Metadata {
    name: String,
    annotations: Value,
}

#[derive(Serialize)]
struct PolicySpec {
    background: bool,
    rules: Vec<PolicyRule>,
}

#[derive(Serialize)]
struct PolicyRule {
    name: String,
    #[serde(rename = "match")]
    selected: Value,
    preconditions: Value,
    mutate: Mutation,
}

#[derive(Serialize)]
struct Mutation {
    foreach: Vec<Replacement>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Replacement {
    list: String,
    preconditions: Value,
    patch_strategic_merge: Value,
}

/// Renders one file with a policy, or with several if there are many names.
pub(super) fn render(names: &MirroredNames) -> Result<RenderedMirrors> {
    let mut shared = SharedNames::new(names);
    let expressed = Expressed::split(&names.mappings, |mapping| {
        check_complete(mapping)?;
        shared.check(&NameRange::of_mapping(mapping))
    });
    let mut rendered = RenderedMirrors { reachable: expressed.reachable(), ..RenderedMirrors::default() };
    let mut done = HashSet::new();
    // An image has one name: the first target.
    let mappings: Vec<&NameMapping> = expressed
        .mappings
        .iter()
        .map(|(mapping, ())| *mapping)
        .filter(|mapping| done.insert((&mapping.source, mapping.scope)))
        .collect();
    rendered.unreachable = expressed.unreachable;
    let mut replacements: Vec<(&NameMapping, Vec<String>)> = Vec::new();
    for mapping in &mappings {
        let exceptions = exceptions(mapping, &mappings);
        if exceptions.len() > MAX_EXCEPTIONS {
            rendered.reachable -= 1;
            let reason = "too many names below it have other names in the mirror: write after a run";
            rendered.unreachable.push(unreachable(mapping, reason));
            continue;
        }
        replacements.push((mapping, exceptions));
    }
    if replacements.is_empty() {
        return Ok(rendered);
    }
    let documents: Vec<String> =
        replacements.chunks(MAX_MAPPINGS).enumerate().map(|(number, part)| to_yaml(&policy(number, part))).collect();
    rendered.files.push(yaml_file(FILE, FORMAT, &documents));
    rendered.notes = shared.into_warnings();
    rendered.notes.extend(expressed.notes);
    let notes = &mut rendered.notes;
    notes.push(
        "the policies change the images of Pods as they are created, whichever tags the mirror has; nodes must be able to \
         pull from the mirror"
            .to_owned(),
    );
    if mappings.iter().any(|mapping| mapping.scope != MappingScope::Repository) {
        notes.push(
            "all names of the patterns are changed, whether the mirror has them or not: write the policy again after a run"
                .to_owned(),
        );
    }
    Ok(rendered)
}

fn policy(number: usize, replacements: &[(&NameMapping, Vec<String>)]) -> ClusterPolicy {
    let name = match number {
        0 => "imgsync-mirrors".to_owned(),
        number => format!("imgsync-mirrors-{}", number + 1),
    };
    // Deployments stay as they are, as in Git.
    let annotations = json!({"pod-policies.kyverno.io/autogen-controllers": "none"});
    let rules = CONTAINER_LISTS.iter().map(|list| rule(list, replacements)).collect();
    ClusterPolicy {
        api_version: "kyverno.io/v1",
        kind: "ClusterPolicy",
        metadata: Metadata { name, annotations },
        spec: PolicySpec { background: false, rules },
    }
}

/// Returns the rule of a list of containers.
fn rule(list: &str, replacements: &[(&NameMapping, Vec<String>)]) -> PolicyRule {
    let operation = "{{ request.operation || 'BACKGROUND' }}";
    let length = format!("{{{{ request.object.spec.{list}[] || `[]` | length(@) }}}}");
    PolicyRule {
        name: format!("mirror-{}", list.to_ascii_lowercase()),
        selected: json!({"any": [{"resources": {"kinds": ["Pod"]}}]}),
        preconditions: json!({"all": [
            {"key": operation, "operator": "Equals", "value": "CREATE"},
            {"key": length, "operator": "GreaterThanOrEquals", "value": 1},
        ]}),
        mutate: Mutation {
            foreach: replacements.iter().map(|(mapping, exceptions)| replacement(list, mapping, exceptions)).collect(),
        },
    }
}

/// Returns the replacement of the images of one mapping, except those that the exceptions match.
fn replacement(list: &str, mapping: &NameMapping, exceptions: &[String]) -> Replacement {
    let (pattern, target) = (image_pattern(mapping), image_target(mapping));
    let image = full_name(&mapping.source);
    let condition = |pattern: &str, value: bool| {
        let key = format!("{{{{ regex_match('{pattern}', {image}) }}}}");
        json!({"key": key, "operator": "Equals", "value": value})
    };
    let mut conditions = vec![condition(&pattern, true)];
    if !exceptions.is_empty() {
        conditions.push(condition(&format!("^({})$", exceptions.join("|")), false));
    }
    let replaced = format!("{{{{ regex_replace_all('{pattern}', {image}, '{target}') }}}}");
    Replacement {
        list: format!("request.object.spec.{list}"),
        preconditions: json!({"all": conditions}),
        patch_strategic_merge: json!({"spec": {list: [{"name": "{{ element.name }}", "image": replaced}]}}),
    }
}

/// Returns regular expressions of the images of a pattern that it must leave alone: those of narrower mappings, because
/// versions of Kyverno differ in which of two replacements wins, and those that have their name in a mirror already.
fn exceptions(mapping: &NameMapping, all: &[&NameMapping]) -> Vec<String> {
    if mapping.scope == MappingScope::Repository {
        return Vec::new();
    }
    let mut exceptions = BTreeSet::new();
    for other in all {
        if is_narrower(other, mapping) {
            exceptions.insert(image_body(other));
        }
        if mapping.source.contains(&other.target) {
            exceptions.insert(format!("{}([/:@].*)?", escape_regex(&other.target.to_string())));
        }
    }
    exceptions.into_iter().collect()
}

/// Whether a mapping has a part of the names of another.
fn is_narrower(mapping: &NameMapping, other: &NameMapping) -> bool {
    let Some(below) = mapping.source.path_below(&other.source) else { return false };
    let below = count_levels(below);
    let (levels, others) = (mapping.scope.levels(), other.scope.levels());
    let is_within = below + levels.start() >= *others.start() && levels.end().saturating_add(below) <= *others.end();
    is_within && (below > 0 || levels != others)
}

/// Returns the regular expression of a mapping's images.
fn image_pattern(mapping: &NameMapping) -> String {
    format!("^{}$", image_body(mapping))
}

/// Returns what a mapping's images consist of, with tag and digest. Images by digest stay as they are if the mirror has other
/// digests.
fn image_body(mapping: &NameMapping) -> String {
    let source = escape_regex(&mapping.source.to_string());
    match (mapping.scope, mapping.keeps_digests) {
        (MappingScope::Repository, true) => format!("{source}([:@].*)?"),
        (MappingScope::Repository, false) => format!("{source}(:[^@]*)?"),
        (MappingScope::OneLevel, true) => format!("{source}/([^/]+)"),
        (MappingScope::OneLevel, false) => format!("{source}/([^/@]+)"),
        (MappingScope::AllLevels, true) => format!("{source}/(.+)"),
        (MappingScope::AllLevels, false) => format!("{source}/([^@]+)"),
    }
}

/// Returns what replaces the images of a mapping.
fn image_target(mapping: &NameMapping) -> String {
    match mapping.scope {
        MappingScope::Repository => format!("{}$1", mapping.target),
        MappingScope::OneLevel | MappingScope::AllLevels => join(&mapping.target.to_string(), "$1"),
    }
}

/// Returns the expression of an image with its registry.
fn full_name(source: &NamePrefix) -> String {
    let image = "element.image".to_owned();
    if !source.registry.is_docker_hub() {
        return image;
    }
    DOCKER_HUB_STEPS
        .iter()
        .fold(image, |image, (pattern, name)| format!("regex_replace_all('{pattern}', {image}, '{name}')"))
}

#[cfg(test)]
mod tests {
    use regex::Regex;

    use super::*;

    /// Does what the policy does with an image; none if it does not match.
    fn replaced(mapping: &NameMapping, image: &str) -> Option<String> {
        replaced_except(mapping, &[], image)
    }

    fn replaced_except(mapping: &NameMapping, exceptions: &[String], image: &str) -> Option<String> {
        let replace =
            |pattern: &str, image: &str, name: &str| Regex::new(pattern).unwrap().replace_all(image, name).into_owned();
        let mut full = image.to_owned();
        if mapping.source.registry.is_docker_hub() {
            for (pattern, name) in DOCKER_HUB_STEPS {
                full = replace(pattern, &full, name);
            }
        }
        let pattern = image_pattern(mapping);
        let is_match = Regex::new(&pattern).unwrap().is_match(&full);
        let is_excepted =
            !exceptions.is_empty() && Regex::new(&format!("^({})$", exceptions.join("|"))).unwrap().is_match(&full);
        (is_match && !is_excepted).then(|| replace(&pattern, &full, &image_target(mapping)))
    }

    fn mapping(source: &str, scope: MappingScope, target: &str) -> NameMapping {
        let prefix = |text: &str| {
            let (registry, path) = text.split_once('/').unwrap_or((text, ""));
            NamePrefix { registry: registry.parse().unwrap(), path: path.to_owned() }
        };
        NameMapping { source: prefix(source), target: prefix(target), scope, keeps_digests: true, gap: None }
    }

    #[test]
    fn images_are_replaced_in_every_spelling_and_no_others() {
        let nginx = mapping("docker.io/library/nginx", MappingScope::Repository, "m.example/m/docker.io_library_nginx");
        for (image, suffix) in [
            ("nginx", ""),
            ("nginx:1.25", ":1.25"),
            ("library/nginx:1.25", ":1.25"),
            ("docker.io/nginx@sha256:00", "@sha256:00"),
            ("docker.io/library/nginx:1.25@sha256:00", ":1.25@sha256:00"),
            ("index.docker.io/library/nginx:1", ":1"),
        ] {
            let expected = format!("m.example/m/docker.io_library_nginx{suffix}");
            assert_eq!(replaced(&nginx, image).as_deref(), Some(expected.as_str()), "{image}");
        }
        for other in [
            "nginx-unprivileged:1",
            "localhost/nginx",
            "localhost:5000/library/nginx",
            "quay.io/library/nginx",
            "a/nginx",
        ] {
            assert_eq!(replaced(&nginx, other), None, "{other}");
        }
    }

    #[test]
    fn images_by_digest_stay_as_they_are_if_the_mirror_has_other_digests() {
        for (source, scope) in [
            ("quay.io/a/b", MappingScope::Repository),
            ("quay.io/a", MappingScope::OneLevel),
            ("quay.io", MappingScope::AllLevels),
        ] {
            let cut = NameMapping { keeps_digests: false, ..mapping(source, scope, "m.example/m") };
            assert!(replaced(&cut, "quay.io/a/b:1").is_some_and(|image| image.starts_with("m.example/m")), "{scope:?}");
            assert_eq!(replaced(&cut, "quay.io/a/b@sha256:00"), None, "{scope:?}");
            assert_eq!(replaced(&cut, "quay.io/a/b:1@sha256:00"), None, "{scope:?}");
        }
    }

    #[test]
    fn patterns_keep_what_is_below_them() {
        let all = mapping("docker.io", MappingScope::AllLevels, "m.example/m");
        assert_eq!(replaced(&all, "org/app:1").unwrap(), "m.example/m/org/app:1");
        assert_eq!(replaced(&all, "nginx").unwrap(), "m.example/m/library/nginx");
        assert_eq!(replaced(&all, "localhost/app:1"), None);
        let one = mapping("ghcr.io/team", MappingScope::OneLevel, "m.example:5000");
        assert_eq!(replaced(&one, "ghcr.io/team/app:1").unwrap(), "m.example:5000/app:1");
        assert_eq!(replaced(&one, "ghcr.io/team/app/sub:1"), None);
        assert_eq!(replaced(&one, "ghcrxio/team/app:1"), None);
    }

    #[test]
    fn of_two_mappings_the_narrower_one_replaces_an_image() {
        let all = mapping("docker.io", MappingScope::AllLevels, "m.example/all");
        let official = mapping("docker.io/library", MappingScope::OneLevel, "m.example/official");
        let nginx = mapping("docker.io/library/nginx", MappingScope::Repository, "m.example/nginx");
        let mappings = [&all, &official, &nginx];
        for (image, expected) in [
            ("nginx:1", "m.example/nginx:1"),
            ("redis:7", "m.example/official/redis:7"),
            ("org/app:2", "m.example/all/org/app:2"),
        ] {
            let replacements: Vec<String> = mappings
                .iter()
                .filter_map(|mapping| replaced_except(mapping, &exceptions(mapping, &mappings), image))
                .collect();
            assert_eq!(replacements, [expected], "{image}");
        }
    }

    #[test]
    fn images_that_have_their_name_in_the_mirror_stay_as_they_are() {
        let all = mapping("m.example", MappingScope::AllLevels, "m.example/copies");
        let exceptions = exceptions(&all, &[&all]);
        assert_eq!(replaced_except(&all, &exceptions, "m.example/a/b:1").unwrap(), "m.example/copies/a/b:1");
        assert_eq!(replaced_except(&all, &exceptions, "m.example/copies/a/b:1"), None);
        assert!(replaced_except(&all, &exceptions, "m.example/copies-of/b:1").is_some());
    }
}
