use std::fmt::Write as _;

use imgsync_config::RuleSource;

use super::*;

fn read(preset: &str) -> Vec<SourceSelector> {
    source_selectors(&RuleSource::Preset(preset.parse().unwrap())).unwrap_or_else(|error| panic!("{preset}: {error}"))
}

/// Lists the patterns of a preset with their tags.
fn images(preset: &str) -> Vec<String> {
    let tags = |part: &SourceSelector| match part.selection.include.is_empty() {
        true => part.selection.range.as_ref().map_or("*".to_owned(), ToString::to_string),
        false => part.selection.include.iter().map(ToString::to_string).collect::<Vec<_>>().join(" "),
    };
    let strip = |part: &SourceSelector| part.pattern.to_string().trim_start_matches("registry.k8s.io/").to_owned();
    read(preset).iter().map(|part| format!("{}:{}", strip(part), tags(part))).collect()
}

#[test]
fn each_preset_keeps_its_original_names() {
    let names: Vec<&str> = all().iter().map(|known| known.name.as_str()).collect();
    assert_eq!(names, ["flannel", "kubeadm", "helm", "istio", "linkerd", "spinnaker", "distroless", "samples"]);
    for (preset, repository, original) in [
        ("flannel", "ghcr.io/flannel-io/flannel", "quay.io/coreos/flannel"),
        ("kubeadm", "registry.k8s.io/coredns/coredns", "k8s.gcr.io/coredns/coredns"),
        ("helm", "ghcr.io/helm/tiller", "gcr.io/kubernetes-helm/tiller"),
        ("istio", "registry.istio.io/release/pilot", "gcr.io/istio-release/pilot"),
        ("linkerd", "ghcr.io/linkerd/proxy", "gcr.io/linkerd-io/proxy"),
        ("spinnaker", "ghcr.io/spinnaker/gate", "gcr.io/spinnaker-marketplace/gate"),
        ("distroless", "gcr.io/distroless/static", "gcr.io/distroless/static"),
        ("samples", "us-docker.pkg.dev/google-samples/containers/gke/hello-app", "gcr.io/google-samples/hello-app"),
    ] {
        let (registry, path) = repository.split_once('/').unwrap();
        let part =
            read(preset).into_iter().find(|part| part.pattern.matches(path)).unwrap_or_else(|| panic!("{preset}"));
        assert_eq!(part.pattern.registry().as_str(), registry);
        let found = part.original_name(&registry.parse().unwrap(), &path.parse().unwrap());
        assert_eq!(found.as_deref(), Some(original));
        let home = original.rsplit_once('/').unwrap().0.trim_end_matches("/coredns");
        assert_eq!(find_by_original(home).map(|known| known.name.as_str()), Some(preset));
    }
    // Repositories that 2.1 did not read have no original name.
    let plugin = &read("flannel")[1];
    assert_eq!(plugin.original_name(plugin.pattern.registry(), &plugin.pattern.repository().unwrap()), None);
    assert_eq!(read("helm")[0].former_locations(), ["gcr.io/kubernetes-helm/tiller"]);
    // Two locations at a time, where old versions were not moved.
    let homes = |preset: &str, name: &str| -> Vec<String> {
        let parts = read(preset).into_iter().map(|part| part.pattern.to_string());
        parts.filter(|pattern| pattern.ends_with(name)).collect()
    };
    assert_eq!(
        homes("spinnaker", "/igor"),
        ["ghcr.io/spinnaker/igor", "us-docker.pkg.dev/spinnaker-community/docker/igor"]
    );
    assert_eq!(
        homes("flannel", "/flannel"),
        ["ghcr.io/flannel-io/flannel", "docker.io/flannel/flannel", "quay.io/coreos/flannel"]
    );
    assert_eq!(find_by_original("gcr.io/google-containers").map(|known| known.name.as_str()), None);
}

#[test]
fn versions_of_kubernetes_bring_what_kubeadm_needs_for_them() {
    let components = |range: &str| {
        ["kube-apiserver", "kube-controller-manager", "kube-scheduler", "kube-proxy"]
            .map(|name| format!("{name}:{range}"))
    };
    let needs = |range: &str, images: &[&str]| {
        let images = images.iter().map(ToString::to_string);
        components(range).into_iter().chain(images).collect::<Vec<_>>()
    };
    for (range, expected) in [
        ("1.30", ["coredns/coredns:v1.11.1 v1.11.3", "etcd:3.5.12-0 3.5.15-0", "pause:3.9"]),
        ("=1.30.4", ["coredns/coredns:v1.11.1", "etcd:3.5.12-0", "pause:3.9"]),
        (">=1.30.5, <1.31.1", ["coredns/coredns:v1.11.3 v1.11.1", "etcd:3.5.15-0", "pause:3.9 3.10"]),
        ("~1.20.3", ["coredns:1.7.0", "etcd:3.4.13-0", "pause:3.2"]),
        (">=1.37", ["coredns/coredns:v1.14.6", "etcd:3.7.0-0", "pause:3.10.2"]),
        // Newer than the table: the newest known release applies.
        (">=1.45", ["coredns/coredns:v1.14.6", "etcd:3.7.0-0", "pause:3.10.2"]),
        ("=1.45.3", ["coredns/coredns:v1.14.6", "etcd:3.7.0-0", "pause:3.10.2"]),
    ] {
        assert_eq!(images(&format!("kubeadm {range}")), needs(range, &expected), "{range}");
    }
    assert_eq!(images("kubeadm <1.18"), components("<1.18"));
    assert_eq!(images("kubeadm"), ["**:*"]);
    let part = &read("kubeadm ~1.30")[0];
    assert_eq!(
        part.target_name_patterns(),
        TargetNamePatterns {
            target: "registry.k8s.io_kube-apiserver".into(),
            original: "k8s.gcr.io_kube-apiserver".into()
        }
    );
}

#[test]
fn the_table_of_versions_goes_from_old_to_new() {
    let kubeadm = all().iter().find(|known| known.has_versions()).unwrap();
    let releases = &kubeadm.versions.as_ref().unwrap().releases;
    let from: Vec<_> =
        releases.iter().map(|release| super::version_table::parse_triple(&release.from).unwrap()).collect();
    assert!(from.is_sorted_by(|a, b| a < b), "{from:?}");
    assert!(releases.iter().all(|release| release.images.len() == 3));
    assert_eq!(super::version_table::parse_triple("v1.31.0-rc.1"), Some((1, 31, 0)));
    assert_eq!(super::version_table::parse_triple("latest"), None);
}

#[test]
fn what_is_no_preset_or_takes_no_versions_is_refused_with_what_there_is() {
    let refused = |text: &str| find(&text.parse().unwrap()).unwrap_err();
    assert!(refused("kubadm").to_string().contains("did you mean `kubeadm`?"));
    assert!(refused("cilium").hint().unwrap().contains("flannel, kubeadm, helm"));
    assert!(refused("flannel >=0.20").to_string().contains("`flannel` does not support versions"));
}

/// Checks that `docs/reference/presets.md` matches the data; `UPDATE_DOCS=1` regenerates it.
#[test]
fn the_tables_of_the_documentation_are_current() {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/reference/presets.md");
    let kept = std::fs::read_to_string(path).unwrap();
    let mut presets =
        "| preset | source | target name | with `naming: original` | former location |\n|---|---|---|---|---|\n"
            .to_owned();
    for known in all() {
        for part in read(&known.name) {
            let TargetNamePatterns { target, original } = part.target_name_patterns();
            let was: Vec<String> = part.former_locations().iter().map(|was| format!("`{was}`")).collect();
            let line = [
                known.name.clone(),
                format!("`{}`", part.pattern),
                format!("`{target}`"),
                format!("`{original}`"),
                was.join(", "),
            ];
            writeln!(presets, "| {} |", line.join(" | ")).unwrap();
        }
    }
    let mut versions = "| Kubernetes from | coredns | etcd | pause |\n|---|---|---|---|\n".to_owned();
    for release in &all().iter().find_map(|known| known.versions.as_ref()).unwrap().releases {
        let tags: Vec<&str> = release.images.iter().map(|image| image.rsplit_once(':').unwrap().1).collect();
        writeln!(versions, "| {} | {} |", release.from, tags.join(" | ")).unwrap();
    }
    let mut current = kept.clone();
    for (name, table) in [("presets", presets), ("versions", versions)] {
        let (start, end) = (format!("<!-- {name} -->\n"), format!("<!-- /{name} -->"));
        let (before, rest) = current.split_once(&start).unwrap_or_else(|| panic!("{path} has no {start}"));
        let (_, after) = rest.split_once(&end).unwrap();
        current = format!("{before}{start}{table}{end}{after}");
    }
    if std::env::var_os("UPDATE_DOCS").is_some() {
        std::fs::write(path, &current).unwrap();
    }
    let kept = std::fs::read_to_string(path).unwrap();
    assert_eq!(kept, current, "run the tests with UPDATE_DOCS=1");
}
