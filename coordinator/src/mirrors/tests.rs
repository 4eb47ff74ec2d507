use std::sync::Arc;

use imgsync_config::ConfigFile;
use imgsync_model::batch::{RepositoryLocator, TagLocator};
use imgsync_oci::Digest;
use imgsync_store::{ProvenanceStore as _, SqliteStore, SystemClock};

use super::*;

fn tag_locator(registry: &str, path: &str) -> TagLocator {
    let repository = RepositoryLocator::new(registry.parse().unwrap(), path).unwrap();
    TagLocator { repository: Arc::new(repository), tag: "1".parse().unwrap() }
}

/// Returns a store that knows these copies: source registry and path, target registry and path.
async fn store_with(copies: &[[&str; 4]]) -> SqliteStore {
    let store = SqliteStore::in_memory(Arc::new(SystemClock)).await.unwrap();
    for [registry, path, target, target_path] in copies {
        let (source, target) = (tag_locator(registry, path), tag_locator(target, target_path));
        store.record_provenance(&source, &target, &Digest::sha256(b"1")).await.unwrap();
    }
    store
}

async fn collected(text: &str, folder: &Path, store: &SqliteStore) -> MirroredNames {
    let presets = crate::presets::known_presets();
    let file = ConfigFile { name: "imgsync.yaml", text, environment: &|_| None, presets: Some(&presets) };
    collect_names(&Config::read(&file).unwrap(), folder, Some(store)).await.unwrap()
}

fn mappings(names: &MirroredNames) -> Vec<String> {
    names.mappings.iter().map(|mapping| format!("{} {} {:?}", mapping.source, mapping.target, mapping.gap)).collect()
}

#[tokio::test]
async fn images_that_a_rule_names_and_has_not_copied_yet_are_among_its_names() {
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("list.txt"), "quay.io/a/b:1\nquay.io/c/d:1\n").unwrap();
    let store = store_with(&[["quay.io", "a/b", "m.example", "m/a/b"]]).await;
    let rules = "rules: [{images: [list.txt], to: m.example/m, naming: keep}]";
    let names = collected(rules, folder.path(), &store).await;
    assert_eq!(mappings(&names), ["quay.io/a/b m.example/m/a/b None", "quay.io/c/d m.example/m/c/d Some(NotCopied)"]);
    assert_eq!(names.origins[0].1, NameOrigin::Store { copied: 1, not_copied: 1 });
    // Formats with a way back have both; the others say what is missing.
    let conf = render(&names, MirrorFormat::Containerd).unwrap();
    assert_eq!((conf.unreachable.len(), conf.reachable), (0, 2));
    for format in [MirrorFormat::Kyverno, MirrorFormat::Kustomize] {
        let rendered = render(&names, format).unwrap();
        assert_eq!(rendered.reachable, 1, "{format:?}");
        assert_eq!(rendered.unreachable[0].name, "quay.io/c/d in m.example/m/c/d");
        assert!(rendered.unreachable[0].reason.contains("nothing of it was copied yet"), "{format:?}");
    }

    // Without the files, what was copied is still known.
    std::fs::remove_file(folder.path().join("list.txt")).unwrap();
    let names = collected(rules, folder.path(), &store).await;
    assert_eq!(mappings(&names), ["quay.io/a/b m.example/m/a/b None"]);
    assert!(names.notes[0].contains("images that were not copied yet are not known"), "{:?}", names.notes);
}

#[tokio::test]
async fn a_target_to_which_nothing_was_copied_yet_is_among_the_names() {
    let store = store_with(&[["quay.io", "a/b", "m.example", "m/a/b"]]).await;
    let rules = "rules: [{from: quay.io/a/*, to: [m.example/m, n.example], naming: keep}]";
    let names = collected(rules, Path::new(""), &store).await;
    assert_eq!(mappings(&names), ["quay.io/a/b m.example/m/a/b None", "quay.io/a n.example/a Some(NotCopied)"]);
    let store = store_with(&[["quay.io", "a/b", "m.example", "m/a/b"], ["quay.io", "a/b", "n.example", "a/b"]]).await;
    let names = collected(rules, Path::new(""), &store).await;
    assert_eq!(names.origins[0].1, NameOrigin::Store { copied: 2, not_copied: 0 });
    assert_eq!(names.unreachable, []);
}

#[tokio::test]
async fn a_rule_that_copied_nothing_is_not_in_policies_but_in_mirrors() {
    let store = store_with(&[]).await;
    let names = collected("rules: [{from: quay.io/a/b, to: m.example/m}]", Path::new(""), &store).await;
    assert_eq!(names.origins[0].1, NameOrigin::Rule);
    assert_eq!(render(&names, MirrorFormat::RegistriesConf).unwrap().reachable, 1);
    let kyverno = render(&names, MirrorFormat::Kyverno).unwrap();
    assert_eq!((kyverno.files.len(), kyverno.reachable, kyverno.unreachable.len()), (0, 0, 1));
}

#[tokio::test]
async fn locations_of_a_preset_with_one_name_in_the_mirror_are_not_taken_for_others() {
    let store = store_with(&[["ghcr.io", "flannel-io/flannel", "m.example", "m/quay.io_coreos_flannel"]]).await;
    let rules = "rules: [{preset: flannel, to: m.example/m, naming: original}]";
    let names = collected(rules, Path::new(""), &store).await;
    let flannel: Vec<String> =
        mappings(&names).into_iter().filter(|it| it.contains("quay.io_coreos_flannel")).collect();
    assert_eq!(
        flannel,
        [
            "ghcr.io/flannel-io/flannel m.example/m/quay.io_coreos_flannel None",
            "docker.io/flannel/flannel m.example/m/quay.io_coreos_flannel Some(NotCopied)",
            "quay.io/coreos/flannel m.example/m/quay.io_coreos_flannel Some(NotCopied)",
        ]
    );
    let conf = render(&names, MirrorFormat::RegistriesConf).unwrap();
    assert_eq!((conf.unreachable.as_slice(), conf.reachable), ([].as_slice(), 5));
}

#[tokio::test]
async fn images_of_presets_with_the_same_name_are_told_apart_and_locations_of_one_image_are_not() {
    let folder = tempfile::tempdir().unwrap();
    let rules = "rules: [{preset: kubeadm, to: m.example/m, naming: basename}, {preset: linkerd, to: m.example/m, naming: \
                 basename}]";
    let store = store_with(&[
        ["registry.k8s.io", "pause", "m.example", "m/pause"],
        ["k8s.gcr.io", "pause", "m.example", "m/pause"],
        ["registry.k8s.io", "ingress-nginx/controller", "m.example", "m/controller"],
        ["cr.l5d.io", "linkerd/controller", "m.example", "m/controller"],
    ])
    .await;
    let names = collected(rules, folder.path(), &store).await;
    let rendered = render(&names, MirrorFormat::Kyverno).unwrap();
    let shared = |name: &str| rendered.unreachable.iter().any(|it| it.name.contains(name));
    assert!(shared("m/controller") && !shared("m/pause"), "{:#?} {:?}", rendered.unreachable, mappings(&names));
}
