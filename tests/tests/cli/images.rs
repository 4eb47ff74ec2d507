//! `imgsync images`: from files to the images that they name.

use imgsync_tests::fault::{FaultRegistry, RequestType};
use imgsync_tests::images;
use imgsync_tests::program::Imgsync;
use imgsync_tests::servers::{DockerRegistry, DockerRegistryAuth};

const DEPLOYMENT: &str = "\
apiVersion: apps/v1
kind: Deployment
metadata: {name: web}
spec:
  template:
    spec:
      containers:
      - name: web
        image: nginx:1.25
        args: [--sidecar=quay.io/team/sidecar:v2]
---
apiVersion: apps/v1
kind: Deployment
metadata: {name: other}
spec: {template: {spec: {containers: [{name: other, image: nginx:1.25}]}}}
";

#[tokio::test]
async fn images_are_printed_once_and_all_else_is_named_on_stderr() {
    let program = Imgsync::new();
    let folder = program.work_dir().join("manifests");
    std::fs::create_dir(&folder).unwrap();
    program.file("manifests/web.yaml", DEPLOYMENT);
    program.file("manifests/images.txt", "r.example:5000/a/b\n");
    program.file("manifests/README.md", "nothing\n");
    let output = program.again().args(["images", "manifests"]).run().await.assert_code(0);
    assert_eq!(output.stdout, "docker.io/library/nginx:1.25\nr.example:5000/a/b:latest\n");
    assert_eq!(
        output.stderr,
        "perhaps quay.io/team/sidecar:v2 at manifests/web.yaml:10 (Deployment/web spec.template.spec.containers[0].args[0])\n\
         2 images, 1 perhaps in 2 files; 1 file skipped by name or type\n\
         hint: --probe asks the registries which of the strings are images, --perhaps takes all of them\n"
    );
    let output = program.again().args(["images", "manifests", "--places", "--perhaps"]).run().await.assert_code(0);
    assert_eq!(
        output.stdout,
        "docker.io/library/nginx:1.25\n  \
           manifests/web.yaml:9 (Deployment/web spec.template.spec.containers[0].image)\n  \
           manifests/web.yaml:15 (Deployment/other spec.template.spec.containers[0].image)\n\
         quay.io/team/sidecar:v2\n  \
           manifests/web.yaml:10 (Deployment/web spec.template.spec.containers[0].args[0])\n\
         r.example:5000/a/b:latest\n  \
           manifests/images.txt:1\n"
    );
    let output = program.again().args(["images", "-", "--json"]).stdin(DEPLOYMENT).run().await.assert_code(0);
    let json = output.json();
    assert_eq!((&json["image"], &json["certainty"]), (&"docker.io/library/nginx:1.25".into(), &"sure".into()));
    assert_eq!((&json["place_count"], &json["places"][1]["line"]), (&2.into(), &15.into()));
    assert_eq!(json["places"][0]["file"], "stdin");
}

#[tokio::test]
async fn what_is_not_decided_or_understood_is_an_exit_code() {
    let program = Imgsync::new();
    let images = |stdin: &str| program.again().args(["images", "-"]).stdin(stdin);
    let template = "kind: Pod\nspec: {containers: [{name: a, image: \"{{ .Values.image }}\"}]}\n";
    let output = images(template).run().await.assert_code(1);
    assert!(
        output.stderr.contains("undecided: `{{ .Values.image }}` at stdin:2 (Pod spec.containers[0].image)"),
        "{}",
        output.stderr
    );
    let output =
        images("a: [\n---\nkind: Pod\nspec: {containers: [{name: a, image: alpine}]}\n").run().await.assert_code(1);
    assert_eq!(output.stdout, "docker.io/library/alpine:latest\n");
    assert!(output.stderr.contains("not read: stdin:"), "{}", output.stderr);
    let output = program.again().args(["images", "-"]).stdin(b"\x7fELF\0".to_vec()).run().await.assert_code(1);
    assert!(output.stderr.contains("not read: stdin: it is not text"), "{}", output.stderr);
    let output = program.again().args(["images", "none.yaml"]).run().await.assert_code(2);
    assert!(output.stderr.contains("reading none.yaml: No such file"), "{}", output.stderr);
    images("").run().await.assert_code(0);
}

#[tokio::test]
async fn digests_that_run_take_the_place_of_tags() {
    let digest = images::single("running").root;
    let pods = format!(
        "kind: List\nitems:\n- kind: Pod\n  spec: {{containers: [{{name: a, image: 'r.example/a:1'}}]}}\n  \
         status: {{containerStatuses: [{{name: a, imageID: 'docker-pullable://r.example/a@{digest}'}}]}}\n"
    );
    let images = |more: &[&str]| Imgsync::new().args(["images", "-"]).args(more).stdin(pods.clone());
    assert_eq!(images(&[]).run().await.assert_code(0).stdout, "r.example/a:1\n");
    let output = images(&["--running"]).run().await.assert_code(0);
    assert_eq!(output.stdout, format!("r.example/a:1@{digest}\n"));

    // A mirror with another image under the tag lacks what runs.
    let mirror = DockerRegistry::start(DockerRegistryAuth::None).await;
    mirror.push("m/r.example_a", "1", &images::single("moved")).await;
    let target = format!("{}/m", mirror.host());
    images(&["--check", &target]).run().await.assert_code(0);
    let output = images(&["--check", &target, "--running", "--places"]).run().await.assert_code(1);
    assert!(output.stdout.starts_with(&format!("r.example/a:1@{digest}\n  stdin:4 (")), "{}", output.stdout);
    mirror.push("m/r.example_a", "running", &images::single("running")).await;
    images(&["--check", &target, "--running"]).run().await.assert_code(0);
}

#[tokio::test]
async fn strings_are_asked_for_without_credentials_and_only_at_registries_that_are_public_or_configured() {
    let registry = FaultRegistry::start().await;
    registry.push("team/real", "1.0", &images::single("real"));
    let host = registry.host();
    let manifest = format!(
        "kind: Pod\nspec: {{containers: [{{name: a, image: 'alpine:3', args: [--a={host}/team/real:1.0, --b={host}/team/none:1.0]}}]}}\n"
    );
    let program = Imgsync::new();
    program.write_docker_config(&[(&host, "me", "secret")]);
    let probe = || program.again().args(["images", "-", "--probe"]).stdin(manifest.clone());
    let output = probe().run().await.assert_code(1);
    assert!(output.stderr.contains("is a private, link-local or loopback address"), "{}", output.stderr);
    assert_eq!((output.stdout.as_str(), registry.total_with_pings_and_tokens()), ("docker.io/library/alpine:3\n", 0));

    program.file("imgsync.yaml", format!("registries: {{\"{host}\": {{username: me, password: secret}}}}\n"));
    let output = probe().run().await.assert_code(0);
    assert_eq!(output.stdout, format!("{host}/team/real:1.0\ndocker.io/library/alpine:3\n"));
    assert!(output.stderr.contains(&format!("no image: {host}/team/none:1.0")), "{}", output.stderr);
    assert_eq!(registry.count(RequestType::ManifestHead), 2);
    assert!(registry.requests().iter().all(|request| request.header("authorization").is_none()));
}

#[tokio::test]
async fn what_a_mirror_lacks_is_printed() {
    let mirror = DockerRegistry::start(DockerRegistryAuth::None).await;
    let (tagged, pinned) = (images::single("tagged"), images::single("pinned"));
    mirror.push("m/r.example_a", "1", &tagged).await;
    mirror.push("m/r.example_b", "any", &pinned).await;
    let list = format!("r.example/a:1\nr.example/a:2\nr.example/b@{}\nr.example/b@{}\n", pinned.root, tagged.root);
    let target = format!("{}/m", mirror.host());
    let check = |more: &[&str]| Imgsync::new().args(["images", "-", "--check", &target]).args(more).stdin(list.clone());
    let output = check(&[]).run().await.assert_code(1);
    assert_eq!(output.stdout, format!("r.example/a:2\nr.example/b@{}\n", tagged.root));
    assert!(output.stderr.contains(&format!("{target}: 2 of 4 images there, 2 missing")), "{}", output.stderr);
    let output = check(&["--naming", "full"]).run().await.assert_code(1);
    assert_eq!(output.stdout.lines().count(), 4);
    let there = format!("r.example/a:1\nr.example/b@{}\n", pinned.root);
    let output = Imgsync::new().args(["images", "-", "--check", &target]).stdin(there).run().await.assert_code(0);
    assert_eq!(output.stdout, "");
}
