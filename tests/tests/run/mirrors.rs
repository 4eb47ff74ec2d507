//! `imgsync mirrors`: its files make containerd, podman and docker pull from the mirror when the source is gone.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use imgsync_tests::fault::FaultRegistry;
use imgsync_tests::images::{self, TestImage};
use imgsync_tests::podman::Podman;
use imgsync_tests::program::{Imgsync, Output};
use imgsync_tests::servers::{Containerd, DockerEngine, DockerRegistry, DockerRegistryAuth};
use imgsync_tests::skipped;
use imgsync_tests::tls::Authority;

use crate::end_to_end::{configured, run};

/// A mirror that `imgsync run` filled from a Docker Hub and a registry of a team, which are gone.
struct Mirror {
    program: Imgsync,
    registry: DockerRegistry,
    /// docker.io/library/app:1.0.
    app: TestImage,
    /// docker.io/org/tool:2.
    tool: TestImage,
}

impl Mirror {
    /// Fills it. `{mirror}` and `{hub}` in the rules are the addresses.
    async fn filled(name: &str, rules: &str) -> Mirror {
        let (hub, registry) = tokio::join!(FaultRegistry::start(), DockerRegistry::start(DockerRegistryAuth::None));
        let app = images::multi_platform(&format!("mirrors-{name}-app"));
        let tool = images::single(&format!("mirrors-{name}-tool"));
        hub.push("library/app", "1.0", &app);
        hub.push("org/tool", "2", &tool);
        let program = configured(&format!(
            "registries: {{docker.io: {{endpoint: \"{}\"}}}}\nrules:\n{}",
            hub.url(),
            rules.replace("{mirror}", &registry.host()).replace("{hub}", &hub.host())
        ));
        run(&program, &[]).await.assert_code(0);
        registry.clear_requests();
        Mirror { program, registry, app, tool }
    }

    /// Runs `imgsync mirrors`.
    async fn write(&self, format: &str, more: &[&str]) -> Output {
        self.program.again().args(["mirrors", "--format", format]).args(more).run().await
    }

    /// Writes a file of one format and returns its path.
    async fn written(&self, format: &str, file: &str) -> PathBuf {
        self.write(format, &["--out", "out"]).await.assert_code(0);
        self.program.work_dir().join("out").join(file)
    }

    /// Asserts that requests since the last call were answered by the mirror, below this path.
    fn assert_asked(&self, path: &str) {
        let requests = self.registry.requests();
        let ours = |uri: &str| uri.starts_with(&format!("/v2/{path}/")) || uri == "/v2/";
        assert!(requests.iter().any(|request| request.uri.contains("/blobs/")), "{requests:?}");
        assert!(requests.iter().all(|request| ours(&request.uri) && request.status < 400), "{requests:?}");
        self.registry.clear_requests();
    }
}

async fn podman_pull(podman: &Podman, file: &Path, image: &str) {
    let output = podman.run_with(&[("CONTAINERS_REGISTRIES_CONF", file)], &["pull", image]).await;
    assert!(output.status.success(), "{image}: {}", String::from_utf8_lossy(&output.stderr));
}

#[tokio::test]
async fn containerd_pulls_from_a_mirror_with_a_path_by_tag_and_by_digest() {
    if let Err(reason) = Containerd::available() {
        return skipped(&reason);
    }
    let rules = "- {from: docker.io/library/*, to: \"{mirror}/team/mirror\", naming: keep}\n\
                 - {from: docker.io/org/tool, to: \"{mirror}/full\", naming: full}\n";
    let mirror = Mirror::filled("containerd", rules).await;
    let written = mirror.write("containerd", &["--out", "certs.d"]).await.assert_code(0);
    assert!(written.stderr.contains("the rule in line 3: 1 repository, from what was copied\n"), "{}", written.stderr);
    assert!(written.stderr.contains("2 names (repositories or patterns) reachable in the mirror, 0 not\n"));
    let hosts = mirror.program.work_dir().join("certs.d");
    let containerd = Containerd::start().await.unwrap();
    let by_digest = format!("docker.io/library/app@{}", mirror.app.root);
    for image in ["docker.io/library/app:1.0", &by_digest] {
        containerd.pull(image, &hosts).await.unwrap_or_else(|error| panic!("{image}: {error}"));
    }
    mirror.assert_asked("team/mirror/library/app");
    // The second host of the file has what the first one lacks.
    containerd.pull("docker.io/org/tool:2", &hosts).await.unwrap();
    let found = mirror.registry.requests();
    assert!(found.iter().any(|request| request.uri.starts_with("/v2/full/docker.io/org/tool/blobs/")), "{found:?}");
    let mut expected = vec![
        ("docker.io/library/app:1.0".to_owned(), mirror.app.root.clone()),
        ("docker.io/org/tool:2".to_owned(), mirror.tool.root.clone()),
        (by_digest, mirror.app.root.clone()),
    ];
    expected.sort();
    assert_eq!(containerd.images().await, expected);
}

#[tokio::test]
async fn containerd_trusts_the_mirrors_authority_by_the_file_beside_its_own() {
    if let Err(reason) = Containerd::available() {
        return skipped(&reason);
    }
    let authority = Arc::new(Authority::default());
    let mirror = FaultRegistry::builder().tls(Arc::clone(&authority)).start().await;
    let image = images::single("mirrors-tls");
    mirror.push("m/library/app", "1.0", &image);
    let program = configured(&format!(
        "registries: {{\"{0}\": {{ca: ca.pem, username: me, password: hidden}}}}\n\
         rules: [{{from: docker.io/library/app, to: \"{0}/m\", naming: keep}}]\n",
        mirror.host()
    ));
    program.file("ca.pem", authority.pem());
    let printed =
        program.again().args(["mirrors", "--format", "containerd", "--from-rules"]).run().await.assert_code(0);
    assert!(printed.stdout.contains("-----BEGIN CERTIFICATE-----"), "{}", printed.stdout);
    assert!(!(printed.stdout + &printed.stderr).contains("hidden"));
    let write = || program.again().args(["mirrors", "--format", "containerd", "--from-rules", "--out", "certs.d"]);
    write().run().await.assert_code(0);
    let hosts = program.work_dir().join("certs.d");
    let containerd = Containerd::start().await.unwrap();
    containerd.pull("docker.io/library/app:1.0", &hosts).await.unwrap();

    // Without the certificate, the mirror is not trusted; with `insecure`, none is needed.
    for file in std::fs::read_dir(hosts.join("docker.io")).unwrap().map(|entry| entry.unwrap().path()) {
        std::fs::remove_file(file).unwrap();
    }
    program.file(
        "imgsync.yaml",
        format!(
            "registries: {{\"{0}\": {{insecure: true}}}}\n\
             rules: [{{from: docker.io/library/app, to: \"{0}/m\", naming: keep}}]\n",
            mirror.host()
        ),
    );
    write().run().await.assert_code(0);
    let by_digest = format!("docker.io/library/app@{}", image.root);
    containerd.pull(&by_digest, &hosts).await.unwrap();
}

#[tokio::test]
async fn podman_pulls_names_that_are_kept_and_names_that_are_flat() {
    if let Err(reason) = Podman::available() {
        return skipped(&reason);
    }
    let rules = "- {from: docker.io/library/*, to: \"{mirror}/team/mirror\", naming: keep}\n\
                 - {from: docker.io/org/*, to: \"{mirror}/flat\"}\n";
    let mirror = Mirror::filled("podman", rules).await;
    let file = mirror.written("registries.conf", "imgsync-mirrors.conf").await;
    let podman = Podman::new();
    podman_pull(&podman, &file, "docker.io/library/app:1.0").await;
    mirror.assert_asked("team/mirror/library/app");
    podman_pull(&podman, &file, "docker.io/org/tool:2").await;
    mirror.assert_asked("flat/docker.io_org_tool");
    let podman = Podman::new();
    for image in
        [format!("docker.io/library/app@{}", mirror.app.root), format!("docker.io/org/tool@{}", mirror.tool.root)]
    {
        podman_pull(&podman, &file, &image).await;
    }
    let images = podman.images().await;
    let digests: Vec<&str> = images.iter().filter_map(|image| image["Digest"].as_str()).collect();
    assert_eq!(images.len(), 2, "{images:?}");
    assert!(digests.contains(&mirror.tool.root.as_str()), "{images:?}");

    // The kept name alone is one that containerd reaches.
    let containerd = mirror.write("containerd", &[]).await.assert_code(1);
    let flat = format!("not reachable: docker.io/org/tool in {}/flat/docker.io_org_tool\n", mirror.registry.host());
    assert!(containerd.stderr.contains(&flat), "{}", containerd.stderr);
    assert!(containerd.stderr.contains("use `naming: keep` or `naming: full`"), "{}", containerd.stderr);
    assert!(containerd.stdout.starts_with("# docker.io/hosts.toml\n"), "{}", containerd.stdout);
}

#[tokio::test]
async fn docker_pulls_from_a_mirror_without_a_path() {
    if let Err(reason) = DockerEngine::available() {
        return skipped(&reason);
    }
    let mirror = Mirror::filled("docker", "- {from: docker.io/library/app, to: \"{mirror}\", naming: keep}\n").await;
    let file = mirror.written("docker", "daemon.json").await;
    let engine = DockerEngine::start_configured(&std::fs::read_to_string(file).unwrap()).await.unwrap();
    engine.pull("app:1.0").await.unwrap();
    mirror.assert_asked("library/app");
    engine.pull(&format!("app@{}", mirror.app.root)).await.unwrap();
}

#[tokio::test]
async fn names_are_from_the_store_or_from_the_rules_and_both_are_said() {
    let rules = "- {name: loose, from: docker.io/org/**, to: \"{mirror}/flat\"}\n\
                 - {name: kept, from: docker.io/library/app, to: [\"{mirror}/kept\", \"oci:layout\"], naming: keep}\n";
    let mirror = Mirror::filled("origins", rules).await;
    let flat = format!("{}/flat/docker.io_org_tool", mirror.registry.host());
    // From the store: also what the rule alone does not say.
    let output = mirror.write("kustomize", &["--rule", "loose"]).await.assert_code(0);
    assert!(
        output.stdout.contains(&format!("  - name: docker.io/org/tool\n    newName: {flat}\n")),
        "{}",
        output.stdout
    );
    assert!(output.stderr.contains("rule loose: 1 repository, from what was copied\n"), "{}", output.stderr);
    let output = mirror.write("kustomize", &["--rule", "loose", "--from-rules"]).await.assert_code(1);
    assert!(output.stderr.contains("not reachable: docker.io/org/** in "), "{}", output.stderr);
    assert!(output.stderr.contains("rule loose: names from the rule\n"), "{}", output.stderr);
    assert_eq!(output.stdout, "");
    // Nothing can be pulled from a layout.
    let output = mirror.write("k3s", &["--rule", "kept"]).await.assert_code(1);
    assert!(output.stderr.contains("not reachable: docker.io/library/app in oci:layout\n"), "{}", output.stderr);
    assert!(output.stdout.contains("      ^(.*)$: kept/$1\n"), "{}", output.stdout);
    let output = mirror.write("kustomize", &["--rule", "none"]).await.assert_code(2);
    assert!(output.stderr.contains("the configuration has no rule `none`"), "{}", output.stderr);
}

#[tokio::test]
async fn names_that_another_program_copied_are_known_from_the_batch_and_those_of_removed_rules_are_left_out() {
    let (source, target) = tokio::join!(FaultRegistry::start(), FaultRegistry::start());
    let image = images::single("mirrors-batch");
    for (registry, path) in [(&source, "team/app"), (&source, "other/app"), (&target, "m/app")] {
        registry.push(path, "1.0", &image);
    }
    let rule = |path: &str, naming: &str| {
        format!("rules: [{{from: {}/{path}/**, to: {}/m, naming: \"{naming}\"}}]\n", source.host(), target.host())
    };
    let program = configured(&rule("team", "{{basename}}"));
    let json = run(&program, &[]).await.assert_code(0).json();
    assert_eq!((&json["counts"]["copied"], &json["counts"]["unchanged"]), (&0.into(), &1.into()), "{json}");
    let write = || program.again().args(["mirrors", "--format", "registries.conf"]);
    let output = write().run().await.assert_code(0);
    let prefix = format!("prefix = \"{}/team/app\"\n", source.host());
    let location = format!("location = \"{}/m/app\"\ninsecure = true\n", target.host());
    assert!(output.stdout.contains(&prefix) && output.stdout.contains(&location), "{}", output.stdout);

    // Another rule has copied nothing yet, and its template says nothing of a pattern.
    program.file("imgsync.yaml", rule("other", "{{basename}}"));
    let output = write().run().await.assert_code(1);
    assert!(output.stderr.contains("names from the rule, nothing was copied yet"), "{}", output.stderr);
    assert_eq!(output.stdout, "");

    // Tags with other names in the mirror can be pulled by digest only.
    program.file("imgsync.yaml", rule("other", "{{basename}}:{{tag}}-mirror"));
    run(&program, &[]).await.assert_code(0);
    let output = write().run().await.assert_code(1);
    let renamed = format!("not reachable: {}/other/app:1.0 in {}/m/app:1.0-mirror\n", source.host(), target.host());
    assert!(output.stderr.contains(&renamed), "{}", output.stderr);
}

#[tokio::test]
async fn files_of_others_are_kept_and_files_of_registries_that_are_gone_are_named() {
    let program = configured("rules: [{from: quay.io/a/b, to: m.example/m, naming: keep}]\n");
    let arguments = ["mirrors", "--format", "containerd", "--from-rules", "--out", "certs.d"];
    let write = async || program.again().args(arguments).run().await;
    write().await.assert_code(0);
    let quay = program.work_dir().join("certs.d/quay.io/hosts.toml");
    let before = std::fs::read_to_string(&quay).unwrap();
    assert!(before.starts_with("# Written by `imgsync mirrors`"), "{before}");

    program.file("imgsync.yaml", "rules: [{from: gcr.io/a/b, to: m.example/m, naming: keep}]\n");
    let output = write().await.assert_code(0);
    let stale = "warning: certs.d/quay.io/hosts.toml is of an earlier run, and this run did not write it\n";
    assert!(output.stderr.contains(stale), "{}", output.stderr);

    let gcr = program.work_dir().join("certs.d/gcr.io/hosts.toml");
    std::fs::write(&gcr, "server = \"https://mine.example\"\n").unwrap();
    let output = write().await.assert_code(2);
    assert!(
        output.stderr.contains("the file exists with other content, and nothing says that this command wrote it"),
        "{}",
        output.stderr
    );
    assert_eq!(std::fs::read_to_string(&gcr).unwrap(), "server = \"https://mine.example\"\n");
    let none = Imgsync::new().args(["mirrors", "--format", "k3s"]).run().await.assert_code(2);
    assert!(none.stderr.contains("the configuration has no rules"), "{}", none.stderr);
}

#[tokio::test]
async fn no_consumer_pulls_an_image_of_another_registry_from_a_shared_mirror() {
    if let Err(reason) = Podman::available() {
        return skipped(&reason);
    }
    let other = FaultRegistry::start().await;
    let image = images::single("mirrors-shared");
    other.push("team/app", "1.0", &image);
    let rules = format!(
        "- {{from: docker.io/library/app, to: \"{{mirror}}/m\", naming: keep}}\n\
         - {{from: {}/team/app, to: \"{{mirror}}/m\", naming: keep}}\n",
        other.host()
    );
    let mirror = Mirror::filled("shared", &rules).await;
    let file = mirror.written("registries.conf", "imgsync-mirrors.conf").await;
    let podman = Podman::new();
    podman_pull(&podman, &file, "docker.io/library/app:1.0").await;
    mirror.assert_asked("m/library/app");
    // The mirror has m/library/app, but not that of the other registry, which has none.
    let environment: [(&str, &Path); 1] = [("CONTAINERS_REGISTRIES_CONF", &file)];
    let refused = podman.run_with(&environment, &["pull", &format!("{}/library/app:1.0", other.host())]).await;
    assert!(!refused.status.success());
    assert_eq!(mirror.registry.requests().len(), 0, "{:?}", mirror.registry.requests());

    // containerd and Docker cannot tell them apart.
    let ours = format!("docker.io/library/app in {0}/m/library/app\n", mirror.registry.host());
    let output = mirror.write("containerd", &["--out", "certs.d"]).await.assert_code(1);
    assert!(output.stderr.contains(&format!("not reachable: {ours}")), "{}", output.stderr);
    let reason = format!(
        "because nodes might pull an image of {}/team/app for docker.io/team/app, as both are {}/m/team/app in the mirror",
        other.host(),
        mirror.registry.host()
    );
    assert!(output.stderr.contains(&reason), "{}", output.stderr);
    // Also if the rule of the other registry is not chosen.
    let output = mirror.write("containerd", &["--out", "certs.d", "--rule", "1"]).await.assert_code(1);
    assert!(output.stderr.contains(&reason), "{}", output.stderr);
    assert!(!mirror.program.work_dir().join("certs.d").exists());
    let output = mirror.write("containerd", &["--out", "certs.d", "--shared-names"]).await.assert_code(0);
    assert!(output.stderr.contains("warning: nodes may pull an image of "), "{}", output.stderr);
    let output = mirror.write("containerd", &["--out", "certs.d"]).await.assert_code(1);
    let stale = "warning: certs.d/docker.io/hosts.toml is of an earlier run, and this run did not write it\n";
    assert!(output.stderr.contains(stale), "{}", output.stderr);
}

#[tokio::test]
async fn podman_finds_a_name_below_one_with_another_name_in_the_mirror() {
    if let Err(reason) = Podman::available() {
        return skipped(&reason);
    }
    let source = FaultRegistry::start().await;
    let (app, sub) = (images::single("mirrors-hides"), images::single("mirrors-hidden"));
    source.push("org/app", "1.0", &app);
    source.push("org/app/sub", "1.0", &sub);
    let host = source.host();
    let rules = format!(
        "- {{from: {host}/org/app, to: \"{{mirror}}/flat\"}}\n- {{from: {host}/org/app/sub, to: \"{{mirror}}/m\", naming: keep}}\n"
    );
    let mirror = Mirror::filled("hidden", &rules).await;
    let file = mirror.written("registries.conf", "imgsync-mirrors.conf").await;
    drop(source);
    let podman = Podman::new();
    podman_pull(&podman, &file, &format!("{host}/org/app/sub:1.0")).await;
    mirror.assert_asked("m/org/app/sub");
    podman_pull(&podman, &file, &format!("{host}/org/app:1.0")).await;
    mirror.assert_asked(&format!("flat/{}_org_app", host.replace(':', "_")));
}

#[tokio::test]
async fn containerd_goes_back_to_a_source_with_an_authority_of_its_own() {
    if let Err(reason) = Containerd::available() {
        return skipped(&reason);
    }
    let authority = Arc::new(Authority::default());
    let (source, mirror) =
        tokio::join!(FaultRegistry::builder().tls(Arc::clone(&authority)).start(), FaultRegistry::start());
    let image = images::single("mirrors-way-back");
    source.push("team/app", "1.0", &image);
    let rules = format!("rules: [{{from: {}/team/*, to: \"{}/m\", naming: keep}}]\n", source.host(), mirror.host());
    let program = configured(&format!("registries: {{\"{}\": {{ca: ca.pem}}}}\n{rules}", source.host()));
    program.file("ca.pem", authority.pem());
    let write = || program.again().args(["mirrors", "--format", "containerd", "--from-rules", "--out", "certs.d"]);
    write().run().await.assert_code(0);
    let hosts = program.work_dir().join("certs.d");
    let containerd = Containerd::start().await.unwrap();
    let name = format!("{}/team/app:1.0", source.host());
    containerd.pull(&name, &hosts).await.unwrap();
    assert!(
        mirror.requests().iter().any(|request| request.path.starts_with("/v2/m/team/app/")),
        "the mirror was asked first"
    );

    program.file("imgsync.yaml", format!("registries: {{\"{}\": {{insecure: true}}}}\n{rules}", source.host()));
    write().run().await.assert_code(0);
    std::fs::remove_file(hosts.join(source.host()).join(format!("ca-{}.pem", source.host().replace(':', "_"))))
        .unwrap();
    let by_digest = format!("{}/team/app@{}", source.host(), image.root);
    containerd.pull(&by_digest, &hosts).await.unwrap();
}

#[tokio::test]
async fn docker_settings_of_an_earlier_run_are_replaced_and_those_of_others_are_kept() {
    let rules = |mirror: &str| format!("rules: [{{from: docker.io/library/app, to: {mirror}, naming: keep}}]\n");
    let program = configured(&rules("a.example"));
    let write =
        async || program.again().args(["mirrors", "--format", "docker", "--from-rules", "--out", "out"]).run().await;
    write().await.assert_code(0);
    program.file("imgsync.yaml", rules("b.example"));
    write().await.assert_code(0);
    let file = program.work_dir().join("out/daemon.json");
    let text = std::fs::read_to_string(&file).unwrap();
    assert!(text.contains("https://b.example") && !text.contains("a.example"), "{text}");
    std::fs::write(&file, text.replace('{', "{\"debug\": true,")).unwrap();
    let output = write().await.assert_code(2);
    assert!(output.stderr.contains("nothing says that this command wrote it"), "{}", output.stderr);
    assert!(std::fs::read_to_string(&file).unwrap().contains("debug"));
}
