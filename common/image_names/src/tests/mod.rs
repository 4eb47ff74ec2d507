//! Each line of a fixture says what is found there: `#=` for sure, `#?` perhaps, `#!` undecided; `#?@7` in line 7.

mod formats;
mod hostile;
mod uncertain;

use std::collections::BTreeSet;

use crate::{Certainty, FileScan, scan_file};

/// What is expected in a line: line, mark, text.
type Expectation = (usize, char, String);

fn expectations(text: &str) -> BTreeSet<Expectation> {
    let mut expected = BTreeSet::new();
    for (at, line) in text.lines().enumerate() {
        for part in line.split(" #").skip(1) {
            let Some(mark) = part.chars().next().filter(|mark| "=?!".contains(*mark)) else { continue };
            let (line, text) = match part[1..].strip_prefix('@').and_then(|rest| rest.split_once(' ')) {
                Some((line, text)) => (line.parse().unwrap(), text),
                None => (at + 1, &part[1..]),
            };
            expected.insert((line, mark, text.trim().to_owned()));
        }
    }
    expected
}

/// Returns what was found, in the form of expectations.
fn results(scan: &FileScan) -> BTreeSet<Expectation> {
    let found = scan.found.iter().map(|found| {
        let mark = if found.certainty == Certainty::Sure { '=' } else { '?' };
        let running = found.running.as_ref().map(|digest| format!(" {digest}")).unwrap_or_default();
        (found.place.line, mark, format!("{}{running}", found.image))
    });
    let undecided = scan.undecided.iter().map(|undecided| (undecided.place.line, '!', undecided.text.clone()));
    found.chain(undecided).collect()
}

macro_rules! charts {
    ($($name:literal)*) => {
        [$(($name, include_str!(concat!("charts/", $name)))),*]
    };
}

/// Returns what was found in a text, in lines such as `3=docker.io/library/nginx:latest`.
fn found(name: &str, text: &str) -> Vec<String> {
    let found = results(&scan_file(name, text.as_bytes()));
    found.into_iter().map(|(line, mark, text)| format!("{line}{mark}{text}")).collect()
}

#[test]
fn all_and_only_the_images_of_rendered_charts_are_found_with_their_lines() {
    for (name, text) in charts!(
        "argo.yaml" "cert_manager.yaml" "flux.yaml" "ingress.yaml" "istio.yaml" "operators.yaml" "other.yaml"
        "pods.yaml" "prometheus.yaml" "storage.yaml"
    ) {
        let scan = scan_file(name, text.as_bytes());
        assert_eq!(scan.problems, [], "{name}");
        assert_eq!(results(&scan), expectations(text), "{name}");
    }
}

#[test]
fn places_name_the_object_and_the_field() {
    let text = include_str!("charts/prometheus.yaml");
    let scan = scan_file("dir/prometheus.yaml", text.as_bytes());
    let places: Vec<String> = scan.found.iter().map(|found| found.place.to_string()).collect();
    assert_eq!(places[0], "dir/prometheus.yaml:9 (Deployment/prom-operator spec.template.spec.containers[0].image)");
    assert_eq!(places[1], "dir/prometheus.yaml:12 (Deployment/prom-operator spec.template.spec.containers[0].args[1])");
    let list = scan_file("list.json", include_bytes!("charts/list.json"));
    let [image] = list.found.as_slice() else { panic!("{:?}", list.found) };
    assert_eq!(image.image.to_string(), "docker.io/velero/velero:v1.14.0");
    assert_eq!(
        image.place.to_string(),
        "list.json:10 (CronJob/backup spec.jobTemplate.spec.template.spec.containers[0].image)"
    );
}

#[test]
fn secrets_are_counted_and_never_shown() {
    let scan = scan_file("storage.yaml", include_bytes!("charts/storage.yaml"));
    assert_eq!(scan.secrets, 1);
    assert!(!format!("{scan:?}").contains("never"));
}

#[test]
fn images_that_are_elsewhere_are_named() {
    let elsewhere = |text: &str| -> Vec<String> {
        let scan = scan_file("x.yaml", text.as_bytes());
        scan.elsewhere.iter().map(|part| format!("{}: {}", part.place, part.reason)).collect()
    };
    let flux = elsewhere(include_str!("charts/flux.yaml"));
    assert_eq!(flux.len(), 3, "{flux:?}");
    assert!(flux[2].contains("HelmRelease/redis") && flux[2].contains("helm template"), "{flux:?}");
    let other = elsewhere(include_str!("charts/other.yaml"));
    assert!(other[0].contains("mirror.platform") && other[0].contains("oc-mirror"), "{other:?}");
}
