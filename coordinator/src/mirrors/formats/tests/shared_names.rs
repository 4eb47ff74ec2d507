//! Several sources with the same names in a mirror, and prefixes that hide others.

use super::*;

#[tokio::test]
async fn registries_that_share_a_mirror_are_told_apart_where_the_format_can() {
    let rules = "rules: [{from: docker.io/a/b, to: m.example/m, naming: keep}, {from: quay.io/c/d, to: m.example/m, naming: keep}]";
    let conf = rendered(rules, MirrorFormat::RegistriesConf).await;
    let prefixes: Vec<&str> = text(&conf).lines().filter(|line| line.starts_with("prefix")).collect();
    assert_eq!(prefixes, ["prefix = \"docker.io/a/b\"", "prefix = \"quay.io/c/d\""]);
    let k3s = rendered(rules, MirrorFormat::K3s).await;
    assert!(text(&k3s).contains("^a/b$: m/a/b"), "{}", text(&k3s));
    let containerd = rendered(rules, MirrorFormat::Containerd).await;
    assert!(containerd.files.is_empty(), "{containerd:?}");
    assert_eq!(sorted_unreachable(&containerd), ["docker.io/a/b in m.example/m/a/b", "quay.io/c/d in m.example/m/c/d"]);
    let reason = "nodes might pull an image of docker.io/a/b for quay.io/a/b, as both are m.example/m/a/b in the mirror: \
                  use `naming: full` or another `to`";
    assert!(containerd.unreachable[0].reason.starts_with(reason), "{:?}", containerd.unreachable);
    for format in [MirrorFormat::Kyverno, MirrorFormat::Kustomize, MirrorFormat::OpenShift] {
        assert_eq!(unreachable_names(&rendered(rules, format).await), [""; 0], "{format:?}");
    }
    // With the risk taken, it is a warning.
    let containerd = rendered_with_shared_names(rules, MirrorFormat::Containerd).await;
    assert_eq!((containerd.files.len(), containerd.unreachable.len()), (2, 0), "{containerd:?}");
    let warning = "warning: nodes may pull an image of quay.io/c/d for docker.io/c/d: both are m.example/m/c/d in the \
                   mirror";
    assert!(containerd.notes.iter().any(|note| note == warning), "{:?}", containerd.notes);
}

#[tokio::test]
async fn docker_takes_no_mirror_in_which_names_are_those_of_another_registry() {
    let rules =
        "rules: [{from: docker.io/a/b, to: m.example, naming: keep}, {from: quay.io/c/d, to: m.example, naming: keep}]";
    let docker = rendered(rules, MirrorFormat::Docker).await;
    assert!(docker.files.is_empty(), "{docker:?}");
    assert_eq!(unreachable_names(&docker).len(), 2);
    let reason = "nodes might pull an image of quay.io/c/d for docker.io/c/d, as both are m.example/c/d in the mirror";
    assert!(docker.unreachable.iter().any(|name| name.reason.starts_with(reason)), "{:?}", docker.unreachable);
    let docker = rendered_with_shared_names(rules, MirrorFormat::Docker).await;
    assert!(docker.files.len() == 1 && docker.notes[0].starts_with("warning: nodes may pull"), "{docker:?}");
    // Below a path, the names have three levels, and Docker Hub has none of these.
    let rules = "rules: [{from: docker.io/a/b, to: m.example, naming: keep}, {from: quay.io/c/d, to: m.example/q, naming: keep}]";
    assert_eq!(rendered(rules, MirrorFormat::Docker).await.files.len(), 1);
}

#[tokio::test]
async fn patterns_of_several_registries_in_one_mirror_are_left_out_where_they_meet() {
    let rules = "rules: [{from: docker.io/**, to: m.example/m, naming: keep}, {from: quay.io/**, to: m.example/m, naming: keep}, \
                 {from: ghcr.io/**, to: m.example/m, naming: full}]";
    let formats = [
        MirrorFormat::Containerd,
        MirrorFormat::RegistriesConf,
        MirrorFormat::OpenShift,
        MirrorFormat::K3s,
        MirrorFormat::Kyverno,
    ];
    for format in formats {
        let rendered = rendered(rules, format).await;
        assert_eq!(
            sorted_unreachable(&rendered),
            ["docker.io/** in m.example/m/**", "quay.io/** in m.example/m/**"],
            "{format:?}"
        );
        let text = &rendered.files[0].text;
        assert!(text.contains("ghcr") && !text.contains("docker.io") && !text.contains("quay"), "{format:?}: {text}");
        assert_eq!(rendered.reachable, 1, "{format:?}");
        let allowed = rendered_with_shared_names(rules, format).await;
        assert_eq!((unreachable_names(&allowed).len(), allowed.reachable), (0, 3), "{format:?}");
        assert!(allowed.notes.iter().any(|note| note.starts_with("warning: ")), "{format:?}: {:?}", allowed.notes);
    }
    // Patterns of different paths do not meet, except where a format has one entry for a registry.
    let rules = "rules: [{from: docker.io/library/**, to: m.example/m, naming: keep}, {from: quay.io/org/**, to: m.example/m, \
                 naming: keep}]";
    let conf = rendered(rules, MirrorFormat::RegistriesConf).await;
    let mirror = |prefix: &str, mirror: &str| (prefix.to_owned(), vec![mirror.to_owned()]);
    assert_eq!(
        mirrors_of_prefixes(&conf),
        [mirror("docker.io/library", "m.example/m/library"), mirror("quay.io/org", "m.example/m/org")]
    );
    assert_eq!(conf.unreachable, []);
    assert_eq!(rendered(rules, MirrorFormat::Containerd).await.unreachable.len(), 2);
    assert_eq!(rendered(rules, MirrorFormat::Kyverno).await.unreachable, []);
}

#[tokio::test]
async fn repositories_with_one_name_in_the_mirror_are_left_out_by_every_format() {
    let rules = "rules: [{from: docker.io/a/app, to: m.example/m, naming: basename, tags: {include: [\"1.*\"]}}, {from: quay.io/b/app, \
                 to: m.example/m, naming: basename, tags: {include: [\"2.*\"]}}, {from: quay.io/b/other, to: m.example/m, naming: \
                 basename}]";
    for format in [
        MirrorFormat::RegistriesConf,
        MirrorFormat::OpenShift,
        MirrorFormat::K3s,
        MirrorFormat::Kyverno,
        MirrorFormat::Kustomize,
    ] {
        let rendered = rendered(rules, format).await;
        assert_eq!(
            sorted_unreachable(&rendered),
            ["docker.io/a/app in m.example/m/app", "quay.io/b/app in m.example/m/app"],
            "{format:?}"
        );
        assert!(rendered.unreachable[0].reason.contains("both are m.example/m/app in the mirror"));
        assert_eq!(rendered.reachable, 1, "{format:?}");
    }
}

#[tokio::test]
async fn k3s_asks_no_mirror_for_names_without_a_rewrite_if_it_has_those_of_others() {
    let rules = "rules: [{from: docker.io/a/app, to: m.example/docker.io, naming: basename}, {from: quay.io/c/d, to: m.example, \
                 naming: keep}]";
    let k3s = rendered(rules, MirrorFormat::K3s).await;
    assert_eq!(unreachable_names(&k3s), ["docker.io/a/app in m.example/docker.io/app"]);
    assert!(k3s.unreachable[0].reason.contains("an image of quay.io/c/d for docker.io/c/d"), "{:?}", k3s.unreachable);
    assert!(text(&k3s).contains("  quay.io:\n") && !text(&k3s).contains("  docker.io:"), "{}", text(&k3s));
}

#[tokio::test]
async fn a_longer_prefix_hides_no_name_of_the_mirror() {
    let rules = "rules: [{from: quay.io/org/app, to: m.example/flat}, {from: quay.io/**, to: m.example/m, naming: keep}, \
                 {from: quay.io/org/app/sub, to: m.example/m, naming: keep}]";
    let conf = rendered(rules, MirrorFormat::RegistriesConf).await;
    let entry = |prefix: &str, mirrors: &[&str]| {
        (prefix.to_owned(), mirrors.iter().map(|mirror| (*mirror).to_owned()).collect::<Vec<_>>())
    };
    assert_eq!(
        mirrors_of_prefixes(&conf),
        [
            entry("quay.io", &["m.example/m"]),
            entry("quay.io/org/app", &["m.example/flat/quay.io_org_app", "m.example/m/org/app"]),
            entry("quay.io/org/app/sub", &["m.example/m/org/app/sub"]),
        ]
    );
    assert_eq!((conf.unreachable.as_slice(), conf.reachable), ([].as_slice(), 3));

    // A pattern that changes names above a repository that keeps its own.
    let rules = "rules: [{from: quay.io/org/*, to: m.example/b, naming: basename}, {from: quay.io/org/a/b, to: m.example/m, naming: \
                 keep}]";
    let conf = rendered(rules, MirrorFormat::RegistriesConf).await;
    assert_eq!(
        mirrors_of_prefixes(&conf),
        [
            entry("quay.io", &["m.example/m"]),
            entry("quay.io/org", &["m.example/b"]),
            entry("quay.io/org/a/b", &["m.example/m/org/a/b"]),
        ]
    );
}

#[tokio::test]
async fn a_pattern_and_a_repository_of_another_registry_that_meet_are_both_left_out() {
    // quay.io/org/app/x would be m.example/m/org/app/x, which gcr.io/org/app/x is, too.
    let rules = "rules: [{from: quay.io/org/app, to: m.example/flat}, {from: quay.io/org/**, to: m.example/m, naming: keep}, \
                 {from: gcr.io/org/app/x, to: m.example/m, naming: keep}]";
    let conf = rendered(rules, MirrorFormat::RegistriesConf).await;
    assert_eq!(
        sorted_unreachable(&conf),
        ["gcr.io/org/app/x in m.example/m/org/app/x", "quay.io/org/** in m.example/m/org/**"]
    );
    assert_eq!(conf.reachable, 1);
}

#[tokio::test]
async fn mirrors_of_a_name_are_asked_in_the_order_of_the_rules_and_one_that_is_left_out_is_named() {
    let rules = "rules: [{from: docker.io/library/nginx, to: [r.example/one, s.example], naming: keep}, {from: quay.io/x/y, to: \
                 s.example/ip, naming: basename}]";
    let conf = rendered(rules, MirrorFormat::RegistriesConf).await;
    let nginx = mirrors_of_prefixes(&conf).into_iter().find(|(prefix, _)| prefix == "docker.io/library/nginx").unwrap();
    assert_eq!(nginx.1, ["r.example/one/library/nginx", "s.example/library/nginx"]);
    let containerd = rendered(rules, MirrorFormat::Containerd).await;
    let note = "left out: docker.io/library/nginx in s.example/library/nginx, which has another mirror, because nodes might pull \
                an image of quay.io/x/y for docker.io/ip/y";
    assert!(containerd.notes.iter().any(|found| found.starts_with(note)), "{:?}", containerd.notes);
}

#[tokio::test]
async fn many_names_are_in_several_objects_and_remarks_about_them_are_few() {
    let list: String = (0..2500).map(|number| format!("quay.io/org/app{number}:1\n")).collect();
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("list.txt"), list).unwrap();
    let text = "rules: [{images: [list.txt], to: [r.example/one, s.example/two]}]";
    let file = ConfigFile { name: "imgsync.yaml", text, environment: &|_| None, presets: None };
    let names = collect_names(&Config::read(&file).unwrap(), folder.path(), None).await.unwrap();
    let openshift = render(&names, MirrorFormat::OpenShift).unwrap();
    let objects: Vec<&str> = openshift.files[0]
        .text
        .lines()
        .filter(|line| line.starts_with("kind:") || line.starts_with("  name:"))
        .collect();
    assert_eq!(
        objects,
        [
            "kind: ImageDigestMirrorSet",
            "  name: imgsync-mirrors",
            "kind: ImageDigestMirrorSet",
            "  name: imgsync-mirrors-2",
            "kind: ImageTagMirrorSet",
            "  name: imgsync-mirrors",
            "kind: ImageTagMirrorSet",
            "  name: imgsync-mirrors-2",
        ]
    );
    assert!(openshift.files[0].text.split("---\n").all(|object| object.len() < 1_500_000));
    let k3s = render(&names, MirrorFormat::K3s).unwrap();
    assert_eq!(k3s.notes.iter().filter(|note| note.contains("not from")).count(), 20);
    assert!(k3s.notes.iter().any(|note| note.starts_with("left out: 2,480 more")), "{:?}", k3s.notes);
}
