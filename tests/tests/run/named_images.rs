//! Rules for images that are named one by one: `images:` and `digests:`, and what `imgsync images --to-config` writes.

use imgsync_tests::fault::{FaultRegistry, RequestType};
use imgsync_tests::images::{self, TestImage};
use imgsync_tests::program::Imgsync;
use imgsync_tests::servers::{DockerRegistry, DockerRegistryAuth};

use crate::end_to_end::{configured, run};

/// Returns the tag under which an image named by digest is mirrored.
fn pinned_tag(image: &TestImage) -> String {
    format!("digest-{}", image.root.replace(':', "-"))
}

#[tokio::test]
async fn a_list_with_digests_is_mirrored_and_found_unchanged_by_the_next_run() {
    let source = FaultRegistry::start().await;
    let target = DockerRegistry::start(DockerRegistryAuth::None).await;
    let image = |name: &str| images::multi_platform(&format!("named-{name}"));
    for tag in ["1.0", "1.1", "2.0"] {
        source.push("team/app", tag, &image(tag));
    }
    source.push_untagged("team/app", &image("pinned"));
    source.push("other/tool", "latest", &image("tool"));
    let host = source.host();
    let program = configured(&format!(
        "rules:\n- images: [lists/images.txt, manifests/]\n  to: {}/m\n  naming: keep\n",
        target.host()
    ));
    std::fs::create_dir_all(program.work_dir().join("lists")).unwrap();
    std::fs::create_dir_all(program.work_dir().join("manifests")).unwrap();
    let pinned = image("pinned");
    program.file("lists/images.txt", format!("{host}/team/app:1.0\n{host}/team/app:3.0-rc@{}\n", pinned.root));
    program.file(
        "manifests/web.yaml",
        format!("kind: Pod\nspec: {{containers: [{{name: a, image: {host}/team/app:2.0, args: [--x={host}/team/app:1.1]}}, {{name: b, image: {host}/other/tool}}]}}\n"),
    );
    let output = run(&program, &[]).await.assert_code(0);
    assert!(
        output.stderr.contains("1 string in arguments, variables or ConfigMaps may name images"),
        "{}",
        output.stderr
    );
    assert_eq!(output.json()["counts"]["copied"], 4, "{}", output.json());
    target.assert_holds("m/team/app", "1.0", &image("1.0")).await;
    target.assert_holds("m/team/app", "2.0", &image("2.0")).await;
    target.assert_holds("m/team/app", &pinned_tag(&pinned), &pinned).await;
    target.assert_holds("m/other/tool", "latest", &image("tool")).await;
    assert_eq!(target.tag_digest("m/team/app", "1.1").await, None, "only what is sure");
    assert_eq!(source.count(RequestType::Tags), 0, "nothing is listed");

    source.clear_requests();
    let json = run(&program, &[]).await.assert_code(0).json();
    assert_eq!((&json["counts"]["unchanged"], &json["counts"]["copied"]), (&4.into(), &0.into()), "{json}");
    assert_eq!(source.total(), 3, "a HEAD for each tag, and nothing for the digest: {}", source.describe_requests());

    // The files are read at each run.
    program.file("lists/images.txt", format!("{host}/team/app:1.1\n"));
    let json = run(&program, &[]).await.assert_code(0).json();
    assert_eq!((&json["counts"]["total"], &json["counts"]["copied"]), (&3.into(), &1.into()), "{json}");
    target.assert_holds("m/team/app", "1.1", &image("1.1")).await;
    let output = program.again().args(["verify", "--json"]).run().await.assert_code(0);
    assert_eq!(output.json()["counts"]["unchanged"], 3, "{}", output.json());
}

#[tokio::test]
async fn names_that_cannot_be_decided_fail_and_the_others_are_copied() {
    let (source, target) = tokio::join!(FaultRegistry::start(), FaultRegistry::start());
    let image = images::single("decided");
    source.push("a", "1", &image);
    let program = configured(&format!("rules:\n- images: pods.yaml\n  to: {}/m\n  naming: keep\n", target.host()));
    program.file(
        "pods.yaml",
        format!("kind: Pod\nspec: {{containers: [{{name: a, image: '{}/a:1'}}, {{name: b, image: '{{{{ .Values.image }}}}'}}]}}\n", source.host()),
    );
    let output = run(&program, &[]).await.assert_code(1);
    assert_eq!(output.json()["counts"]["copied"], 1, "{}", output.json());
    assert!(output.stderr.contains("copying `{{ .Values.image }}` at"), "{}", output.stderr);
    target.assert_holds("m/a", "1", &image);

    program.file("pods.yaml", "kind: Service\n");
    let output = run(&program, &[]).await.assert_code(1);
    assert!(output.stderr.contains("there are none in 1 file"), "{}", output.stderr);
    std::fs::remove_file(program.work_dir().join("pods.yaml")).unwrap();
    let output = run(&program, &[]).await;
    assert!(output.stderr.contains("pods.yaml: No such file"), "{}", output.stderr);
}

#[tokio::test]
async fn templates_in_config_maps_are_a_warning_and_unreadable_files_a_failure_of_their_own() {
    let (source, target) = tokio::join!(FaultRegistry::start(), FaultRegistry::start());
    source.push("a", "1", &images::single("beside-templates"));
    let program = configured(&format!("rules:\n- images: manifests/\n  to: {}/m\n  naming: keep\n", target.host()));
    std::fs::create_dir_all(program.work_dir().join("manifests")).unwrap();
    program.file("manifests/images.txt", format!("{}/a:1\n", source.host()));
    program.file(
        "manifests/inject.yaml",
        "kind: ConfigMap\ndata:\n  inject: |\n    containers:\n    - image: '{{ .ProxyImage }}'\n",
    );
    let output = run(&program, &[]).await.assert_code(0);
    assert!(
        output.stderr.contains("1 string in arguments, variables or ConfigMaps may name images"),
        "{}",
        output.stderr
    );
    let output = program.again().args(["images", "manifests"]).run().await.assert_code(0);
    assert!(output.stderr.contains("perhaps undecided: `{{ .ProxyImage }}` at manifests/inject.yaml:5"), "{output:?}");

    std::fs::write(program.work_dir().join("manifests/binary.yaml"), b"\x7fELF\0").unwrap();
    let output = run(&program, &[]).await.assert_code(1);
    assert!(output.stderr.contains("binary.yaml: it is not text"), "{}", output.stderr);
    assert!(!output.stderr.contains("copying manifests"), "{}", output.stderr);
    assert!(!output.stderr.contains("render the template"), "{}", output.stderr);
}

#[tokio::test]
async fn a_signature_that_a_file_names_by_its_tag_is_copied() {
    let (source, target) = tokio::join!(FaultRegistry::start(), FaultRegistry::start());
    let (image, signature) = (images::single("signed-for-zarf"), images::single("signature-for-zarf"));
    let tag = format!("{}.sig", image.root.replace(':', "-"));
    source.push("app", "1", &image);
    source.push("app", &tag, &signature);
    let zarf = |names: &[&str]| {
        let lines: String = names.iter().map(|name| format!("  - {}/app:{name}\n", source.host())).collect();
        format!("kind: ZarfPackageConfig\ncomponents:\n- name: app\n  images:\n{lines}")
    };
    let program = configured(&format!("rules:\n- images: zarf.yaml\n  to: {}/m\n  naming: keep\n", target.host()));
    program.file("zarf.yaml", zarf(&[&tag]));
    let json = run(&program, &[]).await.assert_code(0).json();
    assert_eq!(json["counts"]["copied"], 1, "{json}");
    target.assert_holds("m/app", &tag, &signature);
    assert_eq!(target.tags("m/app").len(), 1, "{:?}", target.tags("m/app"));

    program.file("zarf.yaml", zarf(&["1", &tag]));
    let json = run(&program, &[]).await.assert_code(0).json();
    assert_eq!((&json["counts"]["total"], &json["counts"]["failed"]), (&2.into(), &0.into()), "{json}");
    target.assert_holds("m/app", "1", &image);
    let to = format!("{}/m", target.host());
    let output = program.again().args(["images", "zarf.yaml", "--to-config", "--to", &to]).run().await.assert_code(0);
    let command = format!("imgsync sync {}/app:{tag} {to}/", source.host());
    assert!(output.stdout.lines().any(|line| line.starts_with('#') && line.contains(&command)), "{}", output.stdout);
    assert!(output.stdout.contains("include: [\"1\"]"), "{}", output.stdout);
}

#[tokio::test]
async fn a_cluster_becomes_a_configuration_that_copies_exactly_its_images() {
    let (source, target) =
        tokio::join!(DockerRegistry::start(DockerRegistryAuth::None), DockerRegistry::start(DockerRegistryAuth::None));
    let image = |name: &str| images::multi_platform(&format!("cluster-{name}"));
    source.push("web", "1.0", &image("web-1.0")).await;
    source.push("web", "1.1", &image("web-1.1")).await;
    source.push("db", "any", &image("db")).await;
    let host = source.host();
    let db = image("db");
    let pods = format!(
        "kind: List\nitems:\n- {{kind: Pod, spec: {{containers: [{{name: a, image: '{host}/web:1.0'}}]}}}}\n\
         - {{kind: Pod, spec: {{containers: [{{name: a, image: '{host}/db@{}'}}]}}}}\n",
        db.root
    );
    let target_name = format!("{}/mirror", target.host());
    let program = Imgsync::new();
    let images =
        |more: &[&str]| program.again().args(["images", "-", "--naming", "keep"]).args(more).stdin(pods.clone());
    // As the shell does for `> imgsync.yaml`.
    program.file("imgsync.yaml", "");
    let config = images(&["--to-config", "--to", &target_name]).run().await.assert_code(0).stdout;
    assert_eq!(
        config,
        format!(
            "defaults:\n  to: {target_name}\n  naming: keep\nrules:\n  - from: {host}/db\n    digests: [{}]\n  \
             - from: {host}/web\n    tags:\n      include: [\"1.0\"]\n",
            db.root
        )
    );
    program.file("imgsync.yaml", &config);
    images(&["--check", &target_name]).run().await.assert_code(1);
    let json = run(&program, &[]).await.assert_code(0).json();
    assert_eq!(json["counts"]["copied"], 2, "{json}");
    target.assert_holds("mirror/web", "1.0", &image("web-1.0")).await;
    target.assert_holds("mirror/db", &pinned_tag(&db), &db).await;
    let json = run(&program, &[]).await.assert_code(0).json();
    assert_eq!((&json["counts"]["total"], &json["counts"]["unchanged"]), (&2.into(), &2.into()), "{json}");
    images(&["--check", &target_name]).run().await.assert_code(0);
}

#[tokio::test]
async fn a_digest_is_copied_with_its_signature_after_its_tag_has_moved() {
    let (source, target) = tokio::join!(FaultRegistry::start(), FaultRegistry::start());
    let image = images::single("signed-and-pinned");
    source.push("a", "1", &image);
    let signature = images::single("signature");
    source.push("a", &format!("{}.sig", image.root.replace(':', "-")), &signature);
    source.push("a", "1", &images::single("moved"));
    let program = configured(&format!(
        "rules:\n- from: {}/a\n  digests: ['{}']\n  to: {}/m\n  naming: keep\n",
        source.host(),
        image.root,
        target.host()
    ));
    let json = run(&program, &[]).await.assert_code(0).json();
    assert_eq!(json["counts"]["copied"], 1, "{json}");
    target.assert_holds("m/a", &pinned_tag(&image), &image);
    target.assert_holds("m/a", &format!("{}.sig", image.root.replace(':', "-")), &signature);
    assert_eq!(target.tags("m/a").len(), 2, "{:?}", target.tags("m/a"));
    let output = program.again().args(["run", "--dry-run"]).run().await.assert_code(0);
    assert!(!output.stderr.contains("error"), "{}", output.stderr);
}
