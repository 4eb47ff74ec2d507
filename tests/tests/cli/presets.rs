//! Presets expand to the right repositories, tags and names, with registries in place of the real ones.

use std::collections::BTreeSet;
use std::time::Duration;

use imgsync_tests::fault::{FaultAction, FaultRegistry, RequestType};
use imgsync_tests::images;
use imgsync_tests::program::{Imgsync, Output};

/// Builds a configuration that maps each host to one of these registries.
pub(crate) fn endpoints(hosts: &[(&str, &FaultRegistry)]) -> String {
    let entry = |(host, registry): &(&str, &FaultRegistry)| format!("  {host}: {{endpoint: '{}'}}\n", registry.url());
    format!("registries:\n{}", hosts.iter().map(entry).collect::<String>())
}

/// Creates a program with this configuration in its folder.
pub(crate) fn configured(yaml: &str) -> Imgsync {
    let program = Imgsync::new();
    program.file("imgsync.yaml", yaml);
    program
}

/// Returns source and target of each line of a dry run.
pub(crate) fn planned(output: &Output) -> BTreeSet<(String, String)> {
    let pair = |line: &str| {
        let line: serde_json::Value = serde_json::from_str(line).unwrap();
        assert_eq!(line["action"], "copy", "{line}");
        (line["source"].as_str().unwrap().to_owned(), line["target"].as_str().unwrap().to_owned())
    };
    output.stdout.lines().map(pair).collect()
}

pub(crate) fn pairs(expected: &[(&str, &str)]) -> BTreeSet<(String, String)> {
    expected.iter().map(|(source, target)| ((*source).to_owned(), (*target).to_owned())).collect()
}

/// A preset, the host it reads, its content there, and the targets with names by home and with original names.
struct PresetCase {
    preset: &'static str,
    host: &'static str,
    google: bool,
    there: &'static [&'static str],
    /// Former locations that still have versions: host, prefix of the names there, and the names that are read.
    earlier: &'static [(&'static str, &'static str, &'static [&'static str])],
    read: &'static [(&'static str, &'static str, &'static str)],
}

const CASES: [PresetCase; 8] = [
    PresetCase {
        preset: "flannel",
        host: "ghcr.io",
        google: false,
        there: &["flannel-io/flannel", "flannel-io/flannel-cni-plugin", "flannel-io/other"],
        earlier: &[("docker.io", "flannel", &["flannel", "flannel-cni-plugin"]), ("quay.io", "coreos", &["flannel"])],
        read: &[
            ("flannel-io/flannel", "ghcr.io_flannel-io_flannel", "quay.io_coreos_flannel"),
            (
                "flannel-io/flannel-cni-plugin",
                "ghcr.io_flannel-io_flannel-cni-plugin",
                "ghcr.io_flannel-io_flannel-cni-plugin",
            ),
        ],
    },
    PresetCase {
        preset: "kubeadm",
        host: "registry.k8s.io",
        google: true,
        there: &["pause", "coredns/coredns"],
        earlier: &[],
        read: &[
            ("pause", "registry.k8s.io_pause", "k8s.gcr.io_pause"),
            ("coredns/coredns", "registry.k8s.io_coredns_coredns", "k8s.gcr.io_coredns_coredns"),
        ],
    },
    PresetCase {
        preset: "helm",
        host: "ghcr.io",
        google: false,
        there: &["helm/tiller", "helm/chart-testing"],
        earlier: &[],
        read: &[("helm/tiller", "ghcr.io_helm_tiller", "gcr.io_kubernetes-helm_tiller")],
    },
    PresetCase {
        preset: "istio",
        host: "registry.istio.io",
        google: false,
        there: &[
            "release/install-cni",
            "release/istioctl",
            "release/operator",
            "release/pilot",
            "release/proxyv2",
            "release/ztunnel",
        ],
        earlier: &[],
        read: &[
            ("release/install-cni", "registry.istio.io_release_install-cni", "gcr.io_istio-release_install-cni"),
            ("release/istioctl", "registry.istio.io_release_istioctl", "gcr.io_istio-release_istioctl"),
            ("release/operator", "registry.istio.io_release_operator", "gcr.io_istio-release_operator"),
            ("release/pilot", "registry.istio.io_release_pilot", "gcr.io_istio-release_pilot"),
            ("release/proxyv2", "registry.istio.io_release_proxyv2", "gcr.io_istio-release_proxyv2"),
            ("release/ztunnel", "registry.istio.io_release_ztunnel", "gcr.io_istio-release_ztunnel"),
        ],
    },
    PresetCase {
        preset: "linkerd",
        host: "ghcr.io",
        google: false,
        there: &[
            "linkerd/cli-bin",
            "linkerd/cni-plugin",
            "linkerd/controller",
            "linkerd/debug",
            "linkerd/extension-init",
            "linkerd/grafana",
            "linkerd/jaeger-webhook",
            "linkerd/metrics-api",
            "linkerd/policy-controller",
            "linkerd/proxy",
            "linkerd/proxy-init",
            "linkerd/tap",
            "linkerd/web",
        ],
        earlier: &[],
        read: &[
            ("linkerd/cli-bin", "ghcr.io_linkerd_cli-bin", "gcr.io_linkerd-io_cli-bin"),
            ("linkerd/cni-plugin", "ghcr.io_linkerd_cni-plugin", "gcr.io_linkerd-io_cni-plugin"),
            ("linkerd/controller", "ghcr.io_linkerd_controller", "gcr.io_linkerd-io_controller"),
            ("linkerd/debug", "ghcr.io_linkerd_debug", "gcr.io_linkerd-io_debug"),
            ("linkerd/extension-init", "ghcr.io_linkerd_extension-init", "gcr.io_linkerd-io_extension-init"),
            ("linkerd/grafana", "ghcr.io_linkerd_grafana", "gcr.io_linkerd-io_grafana"),
            ("linkerd/jaeger-webhook", "ghcr.io_linkerd_jaeger-webhook", "gcr.io_linkerd-io_jaeger-webhook"),
            ("linkerd/metrics-api", "ghcr.io_linkerd_metrics-api", "gcr.io_linkerd-io_metrics-api"),
            ("linkerd/policy-controller", "ghcr.io_linkerd_policy-controller", "gcr.io_linkerd-io_policy-controller"),
            ("linkerd/proxy", "ghcr.io_linkerd_proxy", "gcr.io_linkerd-io_proxy"),
            ("linkerd/proxy-init", "ghcr.io_linkerd_proxy-init", "gcr.io_linkerd-io_proxy-init"),
            ("linkerd/tap", "ghcr.io_linkerd_tap", "gcr.io_linkerd-io_tap"),
            ("linkerd/web", "ghcr.io_linkerd_web", "gcr.io_linkerd-io_web"),
        ],
    },
    PresetCase {
        preset: "spinnaker",
        host: "ghcr.io",
        google: false,
        there: &[
            "spinnaker/clouddriver",
            "spinnaker/deck",
            "spinnaker/echo",
            "spinnaker/fiat",
            "spinnaker/front50",
            "spinnaker/gate",
            "spinnaker/halyard",
            "spinnaker/igor",
            "spinnaker/kayenta",
            "spinnaker/keel",
            "spinnaker/orca",
            "spinnaker/rosco",
        ],
        earlier: &[(
            "us-docker.pkg.dev",
            "spinnaker-community/docker",
            &[
                "clouddriver",
                "deck",
                "echo",
                "fiat",
                "front50",
                "gate",
                "halyard",
                "igor",
                "kayenta",
                "keel",
                "orca",
                "rosco",
            ],
        )],
        read: &[
            ("spinnaker/clouddriver", "ghcr.io_spinnaker_clouddriver", "gcr.io_spinnaker-marketplace_clouddriver"),
            ("spinnaker/deck", "ghcr.io_spinnaker_deck", "gcr.io_spinnaker-marketplace_deck"),
            ("spinnaker/echo", "ghcr.io_spinnaker_echo", "gcr.io_spinnaker-marketplace_echo"),
            ("spinnaker/fiat", "ghcr.io_spinnaker_fiat", "gcr.io_spinnaker-marketplace_fiat"),
            ("spinnaker/front50", "ghcr.io_spinnaker_front50", "gcr.io_spinnaker-marketplace_front50"),
            ("spinnaker/gate", "ghcr.io_spinnaker_gate", "gcr.io_spinnaker-marketplace_gate"),
            ("spinnaker/halyard", "ghcr.io_spinnaker_halyard", "gcr.io_spinnaker-marketplace_halyard"),
            ("spinnaker/igor", "ghcr.io_spinnaker_igor", "gcr.io_spinnaker-marketplace_igor"),
            ("spinnaker/kayenta", "ghcr.io_spinnaker_kayenta", "gcr.io_spinnaker-marketplace_kayenta"),
            ("spinnaker/keel", "ghcr.io_spinnaker_keel", "gcr.io_spinnaker-marketplace_keel"),
            ("spinnaker/orca", "ghcr.io_spinnaker_orca", "gcr.io_spinnaker-marketplace_orca"),
            ("spinnaker/rosco", "ghcr.io_spinnaker_rosco", "gcr.io_spinnaker-marketplace_rosco"),
        ],
    },
    PresetCase {
        preset: "distroless",
        host: "gcr.io",
        google: true,
        there: &["distroless/static", "distroless/base/debug", "istio-release/pilot"],
        earlier: &[],
        read: &[
            ("distroless/static", "gcr.io_distroless_static", "gcr.io_distroless_static"),
            ("distroless/base/debug", "gcr.io_distroless_base_debug", "gcr.io_distroless_base_debug"),
        ],
    },
    PresetCase {
        preset: "samples",
        host: "us-docker.pkg.dev",
        google: true,
        there: &["google-samples/containers/gke/hello-app", "google-samples/other/x"],
        earlier: &[],
        read: &[(
            "google-samples/containers/gke/hello-app",
            "us-docker.pkg.dev_google-samples_containers_gke_hello-app",
            "gcr.io_google-samples_hello-app",
        )],
    },
];

#[tokio::test]
async fn versions_that_stayed_at_a_former_location_are_read_there() {
    let google = || FaultRegistry::builder().google().start();
    let (newer, older, target) = tokio::join!(FaultRegistry::start(), google(), FaultRegistry::start());
    let image = |name: &str| images::single(&format!("home-{name}"));
    for (preset, hosts, (new, old), style, names) in [
        (
            "spinnaker",
            ["ghcr.io", "us-docker.pkg.dev"],
            ("spinnaker/gate", "spinnaker-community/docker/gate"),
            "flat",
            ["ghcr.io_spinnaker_gate", "us-docker.pkg.dev_spinnaker-community_docker_gate"],
        ),
        (
            "spinnaker",
            ["ghcr.io", "us-docker.pkg.dev"],
            ("spinnaker/gate", "spinnaker-community/docker/gate"),
            "original",
            ["gcr.io_spinnaker-marketplace_gate", "gcr.io_spinnaker-marketplace_gate"],
        ),
    ] {
        newer.push(new, "v9", &image("new"));
        newer.push(new, "both", &image("new"));
        older.push(old, "v1", &image("old"));
        older.push(old, "both", &image("old"));
        let yaml = endpoints(&[(hosts[0], &newer), (hosts[1], &older), ("docker.io", &target)]);
        let base = format!("r.example.com/{preset}-{style}");
        let yaml = format!("{yaml}  r.example.com: {{endpoint: '{}'}}\n", target.url());
        let yaml = format!("{yaml}rules: [{{preset: {preset}, to: {base}, naming: {style}}}]\n");
        // Other repositories of the preset are missing, which is reported and sets the exit code.
        let json = configured(&yaml).args(["run", "--json"]).run().await.assert_code(1).json();
        let path = |name: &str| format!("{preset}-{style}/{name}");
        assert_eq!(json["counts"]["failed"], 0, "{json}");
        let tags = |name: &str| target.tags(&path(name));
        match names[0] == names[1] {
            true => assert_eq!(tags(names[0]), ["both", "v1", "v9"]),
            false => {
                assert_eq!(tags(names[0]), ["both", "v9"]);
                assert_eq!(tags(names[1]), ["both", "v1"]);
            }
        }
        target.assert_holds(&path(names[0]), "both", &image("new"));
        target.assert_holds(&path(names[1]), "v1", &image("old"));
    }
}

#[tokio::test]
async fn every_preset_expands_to_what_it_should_under_both_kinds_of_names() {
    let image = images::single("preset");
    for PresetCase { preset, host, google, there, earlier, read } in CASES {
        let source = if google { FaultRegistry::builder().google() } else { FaultRegistry::builder() };
        let (source, target) = tokio::join!(source.start(), FaultRegistry::start());
        for repository in there {
            source.push(repository, "v1", &image);
        }
        source.push(read[0].0, "v2", &image);
        // Content at a former location has its own tag.
        let mut hosts = vec![(host, &source), ("docker.io", &target)];
        for (number, (host, path, names)) in earlier.iter().enumerate() {
            let registry = if *host == "docker.io" { &target } else { &source };
            for name in *names {
                registry.push(&format!("{path}/{name}"), &format!("v0.{number}"), &image);
            }
            if *host != "docker.io" {
                hosts.push((*host, registry));
            }
        }
        let yaml = endpoints(&hosts);
        for (style, names) in [(None, 1), (Some("original"), 2)] {
            let mut expected: Vec<(String, String)> = read
                .iter()
                .map(|row| {
                    (
                        format!("{host}/{}:v1", row.0),
                        format!("docker.io/me/{}:v1", if names == 1 { row.1 } else { row.2 }),
                    )
                })
                .collect();
            expected.push((expected[0].0.replace(":v1", ":v2"), expected[0].1.replace(":v1", ":v2")));
            for (number, (host, path, its)) in earlier.iter().enumerate() {
                for row in read {
                    let basename = row.0.rsplit('/').next().unwrap_or_default();
                    if !its.contains(&basename) {
                        continue;
                    }
                    let source = format!("{host}/{path}/{basename}");
                    let flat = source.replace('/', "_");
                    let target = if names == 2 && row.2 != row.1 { row.2.to_owned() } else { flat };
                    expected.push((format!("{source}:v0.{number}"), format!("docker.io/me/{target}:v0.{number}")));
                }
            }
            let expected: BTreeSet<_> = expected.into_iter().collect();
            // By a flag, and in a rule.
            let mut typed = configured(&yaml).args(["run", "--dry-run", "--json", "--preset", preset, "--user", "me"]);
            let mut rule = format!("{yaml}rules: [{{preset: {preset}, to: docker.io/me");
            if let Some(style) = style {
                typed = typed.args(["--naming", style]);
                rule.push_str(&format!(", naming: {style}"));
            }
            assert_eq!(planned(&typed.run().await.assert_code(0)), expected, "{preset} {style:?}");
            let written = configured(&format!("{rule}}}]\n")).args(["run", "--dry-run", "--json"]);
            assert_eq!(planned(&written.run().await.assert_code(0)), expected, "{preset} {style:?}");
        }
        let output = configured(&yaml).args(["tags", "--preset", preset, "--include", "v2"]).run().await.assert_code(0);
        assert_eq!(output.stdout.lines().collect::<Vec<_>>(), [format!("{host}/{}:v2", read[0].0)]);
    }
}

/// Starts a registry with content like registry.k8s.io.
async fn kubernetes() -> FaultRegistry {
    let registry = FaultRegistry::builder().google().start().await;
    let image = images::single("kubernetes");
    for component in ["kube-apiserver", "kube-controller-manager", "kube-scheduler", "kube-proxy"] {
        for tag in ["v1.29.9", "v1.30.0", "v1.30.6", "v1.31.0-rc.1", "v1.31.2", "v1.37.0", "latest"] {
            registry.push(component, tag, &image);
        }
    }
    for (repository, tags) in [
        ("pause", &["3.8", "3.9", "3.10", "3.10.2"][..]),
        ("etcd", &["3.5.10-0", "3.5.12-0", "3.5.15-0", "3.7.0-0"]),
        ("coredns/coredns", &["v1.11.1", "v1.11.3", "v1.12.0", "v1.14.6"]),
        ("kube-state-metrics/kube-state-metrics", &["v2.20.0"]),
    ] {
        tags.iter().for_each(|tag| registry.push(repository, tag, &image));
    }
    registry
}

#[tokio::test]
async fn versions_of_kubernetes_are_copied_with_what_kubeadm_needs_and_nothing_else() {
    let (source, target) = tokio::join!(kubernetes(), FaultRegistry::start());
    let yaml = endpoints(&[("registry.k8s.io", &source), ("docker.io", &target)]);
    let rule = format!(
        "{yaml}rules:\n- preset: {{kubeadm: {{versions: '>=1.30, <1.32'}}}}\n  naming: original\n  to: docker.io/me\n"
    );
    let program = configured(&rule);
    let output = program.again().args(["run", "--json"]).run().await.assert_code(0);
    assert_eq!(output.json()["counts"]["copied"], 18, "{}", output.stdout);
    let component = ["v1.30.0", "v1.30.6", "v1.31.2"];
    for (repository, tags) in [
        ("me/k8s.gcr.io_kube-apiserver", &component[..]),
        ("me/k8s.gcr.io_kube-controller-manager", &component),
        ("me/k8s.gcr.io_kube-scheduler", &component),
        ("me/k8s.gcr.io_kube-proxy", &component),
        ("me/k8s.gcr.io_pause", &["3.10", "3.9"]),
        ("me/k8s.gcr.io_etcd", &["3.5.12-0", "3.5.15-0"]),
        ("me/k8s.gcr.io_coredns_coredns", &["v1.11.1", "v1.11.3"]),
    ] {
        assert_eq!(target.tags(repository), tags, "{repository}");
    }
    assert_eq!(target.repositories().len(), 7);
    // Kubernetes 1.31.14 needs an etcd that is missing; nothing else is reported.
    assert!(
        output.stderr.contains("registry.k8s.io/etcd does not list 3.5.24-0, which Kubernetes needs"),
        "{}",
        output.stderr
    );
    assert!(!output.stderr.contains("newer than this imgsync's table"), "{}", output.stderr);

    // A second run takes one request per page of each repository.
    source.clear_requests();
    let again = program.again().args(["run", "--json"]).run().await.assert_code(0);
    assert_eq!(again.json()["counts"]["unchanged"], 18);
    assert_eq!((source.count(RequestType::Tags), source.total()), (7, 7), "{}", source.describe_requests());

    // The rule's own selection is applied to these tags.
    let newest = configured(&rule.replace("  naming:", "  tags: {newest: 1}\n  naming:"));
    let output = newest.args(["run", "--dry-run", "--json"]).run().await.assert_code(0);
    let pairs: Vec<String> =
        output.stdout.lines().filter(|line| line.contains("/kube-apiserver")).map(str::to_owned).collect();
    assert!(pairs.len() == 1 && pairs[0].contains("kube-apiserver:v1.31.2"), "{pairs:?}");

    for (tag, words) in [
        ("kube-apiserver:v1.30.6", "preset kubeadm >=1.30, <1.32): selected"),
        ("kube-apiserver:v1.29.9", "): not copied: v1.29.9 is not >=1.30, <1.32"),
        ("pause:3.8", "): not copied: not matched by any include"),
    ] {
        let output = program.again().args(["explain", &format!("registry.k8s.io/{tag}")]).run().await.assert_code(0);
        assert!(output.stdout.contains(words), "{tag}: {}", output.stdout);
    }
}

#[tokio::test]
async fn a_kubernetes_that_is_newer_than_the_table_takes_its_last_line_and_that_is_said() {
    let (source, target) = tokio::join!(kubernetes(), FaultRegistry::start());
    for component in ["kube-apiserver", "kube-controller-manager", "kube-scheduler", "kube-proxy"] {
        source.push(component, "v1.99.1", &images::single("new"));
    }
    source.push("kube-apiserver", "v1.17.3", &images::single("old"));
    let yaml = endpoints(&[("registry.k8s.io", &source), ("docker.io", &target)]);
    let run = |preset: &str| configured(&yaml).args(["run", "--dry-run", "--json", "--user", "me", "--preset", preset]);
    let output = run("kubeadm >=1.98").run().await.assert_code(0);
    let sources: Vec<String> = planned(&output).into_iter().map(|(source, _)| source).collect();
    assert_eq!(
        sources,
        [
            "registry.k8s.io/coredns/coredns:v1.14.6",
            "registry.k8s.io/etcd:3.7.0-0",
            "registry.k8s.io/kube-apiserver:v1.99.1",
            "registry.k8s.io/kube-controller-manager:v1.99.1",
            "registry.k8s.io/kube-proxy:v1.99.1",
            "registry.k8s.io/kube-scheduler:v1.99.1",
            "registry.k8s.io/pause:3.10.2",
        ]
    );
    let words = "Kubernetes 1.99 is newer than this imgsync's table; using the images of 1.37";
    assert_eq!(output.stderr.matches(words).count(), 1, "{}", output.stderr);
    let output = run("kubeadm >=1.30").run().await.assert_code(0);
    assert!(output.stderr.contains(words), "{}", output.stderr);
    let output = run("kubeadm =1.17.3").run().await;
    assert!(output.stderr.contains("Kubernetes 1.17 is older than this imgsync's table"), "{}", output.stderr);
}

#[tokio::test]
async fn a_repository_of_a_preset_that_is_gone_keeps_no_other_back() {
    let (source, target) = tokio::join!(FaultRegistry::start(), FaultRegistry::start());
    let image = images::single("flannel");
    source.push("flannel-io/flannel", "v0.27.4", &image);
    source.push("coreos/flannel", "v0.15.1", &image);
    target.push("flannel/flannel", "v0.24.0", &image);
    target.push("flannel/flannel-cni-plugin", "v1.4.0", &image);
    let hosts = [("ghcr.io", &source), ("quay.io", &source), ("docker.io", &target)];
    let program = configured(&endpoints(&hosts));
    let run = ["run", "--json", "--preset", "flannel", "--naming", "original", "--to"];
    let output = program.again().args(run).arg("docker.io/me").run().await.assert_code(1);
    target.assert_holds("me/quay.io_coreos_flannel", "v0.27.4", &image);
    assert_eq!(output.json()["unlisted"][0]["repository"], "ghcr.io/flannel-io/flannel-cni-plugin");
    // If no repository can be listed, the run cannot start.
    let gone = configured(
        "registries:\n  ghcr.io: &gone {endpoint: 'http://127.0.0.1:1'}\n  quay.io: *gone\n  docker.io: *gone\n",
    );
    gone.args(run).args([&format!("{}/m", target.host()), "--attempts", "1"]).run().await.assert_code(3);
}

#[tokio::test]
async fn what_presets_there_are_and_what_they_read_is_listed() {
    let output = Imgsync::new().arg("presets").run().await.assert_code(0);
    for words in [
        ["flannel", "ghcr.io/flannel-io/flannel", "quay.io_coreos_flannel"],
        ["kubeadm", "registry.k8s.io/**", "k8s.gcr.io_…"],
        ["helm", "ghcr.io/helm/tiller", "gcr.io_kubernetes-helm_tiller"],
        ["istio", "registry.istio.io/release/pilot", "gcr.io_istio-release_pilot"],
        ["linkerd", "ghcr.io/linkerd/proxy", "gcr.io_linkerd-io_proxy"],
        ["spinnaker", "ghcr.io/spinnaker/gate", "gcr.io_spinnaker-marketplace_gate"],
        ["distroless", "gcr.io/distroless/**", "gcr.io_distroless_…"],
        ["samples", "us-docker.pkg.dev/google-samples/containers/gke/**", "gcr.io_google-samples_…"],
    ] {
        let is_row = |line: &str| words.iter().all(|word| line.split_whitespace().any(|cell| cell == *word));
        assert!(output.stdout.lines().any(is_row), "{words:?}\n{}", output.stdout);
    }
    let output = Imgsync::new().args(["presets", "kubeadm ~1.36", "--json"]).run().await.assert_code(0);
    let reads = &output.json()[0]["sources"];
    assert_eq!(reads[0]["from"], "registry.k8s.io/kube-apiserver");
    assert_eq!(reads[0]["tags"]["semver"], "~1.36");
    assert_eq!(
        reads[4],
        serde_json::json!({
            "from": "registry.k8s.io/coredns/coredns", "tags": {"include": ["v1.14.2"]},
            "target": "registry.k8s.io_coredns_coredns", "original": "k8s.gcr.io_coredns_coredns",
            "former_locations": ["k8s.gcr.io/coredns/coredns"],
        })
    );
}

#[tokio::test]
async fn wrong_presets_are_refused_where_they_stand() {
    for (arguments, words) in [
        (&["presets", "kubadm"][..], "did you mean `kubeadm`?"),
        (&["run", "--preset", "cilium", "--user", "me"], "available: flannel, kubeadm"),
        (&["run", "--preset", "flannel >=0.26", "--user", "me"], "does not support versions"),
        (&["run", "--preset", "kubeadm"], "no target is configured"),
        (&["run", "--user", "me"], "--preset"),
        (&["run", "--preset", "distroless", "--to", "docker.io/me", "--naming", "keep"], "two levels, not 3"),
        (&["run", "--preset", "distroless", "--to", "me"], "docker.io/me"),
        (&["tags", "--preset", "flannel", "gcr.io/x"], "cannot be used with"),
        (&["tags"], "PATTERN"),
    ] {
        let output = Imgsync::new().args(arguments).run().await.assert_code(2);
        assert!(output.stderr.contains(words), "{arguments:?}: {}", output.stderr);
    }
    let program = configured(
        "rules:\n- preset: {kubadm: {}}\n  to: r.io\n- preset: flannel\n  naming: keep\n  to: docker.io/me\n",
    );
    let output = program.args(["config", "check"]).run().await.assert_code(2);
    for words in ["--> imgsync.yaml:2:12", "did you mean `kubeadm`?"] {
        assert!(output.stderr.contains(words), "{}", output.stderr);
    }
}

#[tokio::test]
async fn the_parts_of_a_preset_and_the_rules_behind_it_are_listed_within_one_limit() {
    let (source, target) = tokio::join!(kubernetes(), FaultRegistry::start());
    source.on(RequestType::Tags).always().act(FaultAction::Delay(Duration::from_millis(50)));
    let yaml = endpoints(&[("registry.k8s.io", &source), ("docker.io", &target)]);
    let behind: String =
        (0..6).map(|number| format!("- from: registry.k8s.io/pause\n  to: docker.io/other{number}\n")).collect();
    let program = configured(&format!(
        "{yaml}rules:\n- preset: {{kubeadm: {{versions: '>=1.30, <1.32'}}}}\n  to: docker.io/me\n{behind}"
    ));
    program.args(["run", "--dry-run", "--query-limit", "2"]).run().await.assert_code(0);
    assert_eq!(source.count(RequestType::Tags), 7 + 6, "{}", source.describe_requests());
    // The rule that is consumed may always list one repository.
    assert!(source.peak_in_flight() <= 3, "{} at once", source.peak_in_flight());
}
