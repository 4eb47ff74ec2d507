//! Commands and flags of imgsync 2.1: their targets, names, and notes about replacements.

use std::time::Duration;

use imgsync_tests::fault::{Bearer, FaultAction, FaultRegistry, RequestType};
use imgsync_tests::images;
use imgsync_tests::program::{Imgsync, Output};
use imgsync_tests::servers::TelegramServer;

use super::presets::{configured, endpoints, pairs, planned};

/// Starts a registry with the former content of gcr.io: two images in google-containers, one with another below it, and
/// another namespace.
async fn google() -> FaultRegistry {
    let registry = FaultRegistry::builder().google().start().await;
    for (repository, tags) in [
        ("google-containers/pause", &["3.1", "3.2"][..]),
        ("google-containers/etcd", &["3.4.3-0"]),
        ("google-containers/etcd/debug", &["1"]),
        ("team/app", &["v1"]),
    ] {
        for tag in tags {
            registry.push(repository, tag, &images::single(&format!("{repository}:{tag}")));
        }
    }
    registry
}

/// gcr.io, Docker Hub, and the program between them.
struct LegacyFixture {
    source: FaultRegistry,
    target: FaultRegistry,
    program: Imgsync,
}

impl LegacyFixture {
    async fn new() -> LegacyFixture {
        LegacyFixture::with_registries(google().await, FaultRegistry::start().await)
    }

    fn with_registries(source: FaultRegistry, target: FaultRegistry) -> LegacyFixture {
        let program = configured(&endpoints(&[("gcr.io", &source), ("docker.io", &target)]));
        LegacyFixture { source, target, program }
    }

    async fn gcr(&self, more: &[&str]) -> Output {
        self.program.again().args(["gcr", "--user", "me", "--retry-delay", "10ms"]).args(more).run().await
    }
}

const GOOGLE_CONTAINERS: [(&str, &str); 4] = [
    ("gcr.io/google-containers/etcd:3.4.3-0", "docker.io/me/gcr.io_google-containers_etcd:3.4.3-0"),
    ("gcr.io/google-containers/etcd/debug:1", "docker.io/me/gcr.io_google-containers_etcd_debug:1"),
    ("gcr.io/google-containers/pause:3.1", "docker.io/me/gcr.io_google-containers_pause:3.1"),
    ("gcr.io/google-containers/pause:3.2", "docker.io/me/gcr.io_google-containers_pause:3.2"),
];

#[tokio::test]
async fn gcr_copies_a_namespace_whole_to_the_user_at_docker_hub() {
    let target = FaultRegistry::builder().bearer(Bearer::user("me", "secret")).start().await;
    let fixture = LegacyFixture::with_registries(google().await, target);
    let output = fixture.gcr(&["--password", "secret", "--json"]).await.assert_code(0);
    assert_eq!(output.json()["counts"]["copied"], 4);
    for (source, target) in GOOGLE_CONTAINERS {
        let (name, tag) = target.trim_start_matches("docker.io/").rsplit_once(':').unwrap();
        let image = images::single(source.trim_start_matches("gcr.io/"));
        fixture.target.assert_holds(name, tag, &image);
    }
    assert!(!output.stderr.contains("secret") && !output.stdout.contains("secret"));
    // The password from other sources, and finally the login stored by `docker login`.
    let gcr = || fixture.program.again().args(["gcr", "--json", "--user", "me"]);
    for program in [gcr().arg("--password-stdin").stdin("secret\n"), gcr().env("IMGSYNC_PASSWORD", "secret")] {
        assert_eq!(program.run().await.assert_code(0).json()["counts"]["unchanged"], 4);
    }
    // (With an `endpoint`, the login of that host.)
    fixture.program.write_docker_config(&[(&fixture.target.host(), "me", "secret")]);
    for program in [gcr(), gcr().args(["--password", ""]), fixture.program.again().args(["gcr", "--json"])] {
        assert_eq!(program.run().await.assert_code(0).json()["counts"]["unchanged"], 4);
    }
    fixture.program.write_docker_config(&[]);
    let output = fixture.gcr(&["--password", "wrong", "--force", "--attempts", "1"]).await.assert_code(1);
    assert!(output.stderr.contains("denied"), "{}", output.stderr);
}

#[tokio::test]
async fn a_user_needs_no_password_and_nobody_needs_a_name() {
    let fixture = LegacyFixture::new().await;
    let output = fixture.gcr(&["--dry-run", "--json"]).await.assert_code(0);
    assert_eq!(planned(&output), pairs(&GOOGLE_CONTAINERS));
    let yaml = endpoints(&[("gcr.io", &fixture.source)]);
    let known = configured(&format!("{yaml}  docker.io: {{username: me, endpoint: '{}'}}\n", fixture.target.url()));
    let output = known.args(["gcr", "--dry-run", "--json"]).run().await.assert_code(0);
    assert_eq!(planned(&output), pairs(&GOOGLE_CONTAINERS));
    let output = fixture.program.again().arg("gcr").run().await.assert_code(2);
    assert!(output.stderr.contains("pass --to or --user"), "{}", output.stderr);
    let output = fixture.program.again().args(["gcr", "--password", "x"]).run().await.assert_code(2);
    assert!(output.stderr.contains("--user"), "{}", output.stderr);
}

#[tokio::test]
async fn a_namespace_is_read_where_it_is_today_and_keeps_its_names() {
    let fixture = LegacyFixture::new().await;
    let output = fixture.gcr(&["--namespace", "team", "--dry-run", "--json"]).await.assert_code(0);
    assert_eq!(planned(&output), pairs(&[("gcr.io/team/app:v1", "docker.io/me/gcr.io_team_app:v1")]));

    let (istio, samples) = tokio::join!(FaultRegistry::start(), FaultRegistry::builder().google().start());
    let image = images::single("moved");
    for name in ["install-cni", "istioctl", "operator", "pilot", "proxyv2", "ztunnel"] {
        istio.push(&format!("release/{name}"), "1.30.0", &image);
    }
    samples.push("google-samples/containers/gke/hello-app", "1.0", &image);
    let yaml =
        endpoints(&[("registry.istio.io", &istio), ("us-docker.pkg.dev", &samples), ("docker.io", &fixture.target)]);
    let program = configured(&yaml);
    let gcr = |namespace: &str| {
        program.again().args(["gcr", "--user", "me", "--dry-run", "--json", "--namespace", namespace])
    };
    let output = gcr("istio-release").run().await.assert_code(0);
    let planned_here = planned(&output);
    assert_eq!(planned_here.len(), 6);
    let pilot = ("registry.istio.io/release/pilot:1.30.0", "docker.io/me/gcr.io_istio-release_pilot:1.30.0");
    assert!(pairs(&[pilot]).is_subset(&planned_here), "{planned_here:?}");
    let words = "gcr.io/istio-release has moved: registry.istio.io/release is read instead; target names stay the same \
         (preset istio)";
    assert!(output.stderr.contains(words), "{}", output.stderr);
    let output = gcr("google-samples").run().await.assert_code(0);
    let hello = (
        "us-docker.pkg.dev/google-samples/containers/gke/hello-app:1.0",
        "docker.io/me/gcr.io_google-samples_hello-app:1.0",
    );
    assert_eq!(planned(&output), pairs(&[hello]));
}

#[tokio::test]
async fn kubeadm_is_registry_k8s_io_under_the_old_names_whatever_the_namespace() {
    let (source, target) = tokio::join!(FaultRegistry::builder().google().start(), FaultRegistry::start());
    let image = images::single("kubeadm");
    source.push("pause", "3.9", &image);
    source.push("coredns/coredns", "v1.11.1", &image);
    let program = configured(&endpoints(&[("registry.k8s.io", &source), ("docker.io", &target)]));
    let gcr = program.again().args(["gcr", "--user", "Me", "--kubeadm", "--namespace", "ignored", "--json"]);
    let output = gcr.run().await.assert_code(0);
    assert_eq!(output.json()["counts"]["copied"], 2);
    target.assert_holds("me/k8s.gcr.io_pause", "3.9", &image);
    target.assert_holds("me/k8s.gcr.io_coredns_coredns", "v1.11.1", &image);
    assert!(output.stderr.contains("k8s.gcr.io has moved: registry.k8s.io is read"), "{}", output.stderr);
}

#[tokio::test]
async fn flannel_keeps_its_old_name_at_all_of_its_locations() {
    let (source, older, target) = tokio::join!(FaultRegistry::start(), FaultRegistry::start(), FaultRegistry::start());
    let image = images::single("flannel");
    source.push("flannel-io/flannel", "v0.27.4", &image);
    source.push("flannel-io/flannel-cni-plugin", "v1.8.0-flannel1", &image);
    target.push("flannel/flannel", "v0.24.0", &image);
    target.push("flannel/flannel-cni-plugin", "v1.4.0-flannel1", &image);
    older.push("coreos/flannel", "v0.15.1", &image);
    let hosts = [("ghcr.io", &source), ("docker.io", &target), ("quay.io", &older)];
    let program = configured(&endpoints(&hosts));
    let output = program.again().args(["flannel", "--user", "me", "--report"]).run().await.assert_code(0);
    for tag in ["v0.27.4", "v0.24.0", "v0.15.1"] {
        target.assert_holds("me/quay.io_coreos_flannel", tag, &image);
    }
    target.assert_holds("me/ghcr.io_flannel-io_flannel-cni-plugin", "v1.8.0-flannel1", &image);
    target.assert_holds("me/docker.io_flannel_flannel-cni-plugin", "v1.4.0-flannel1", &image);
    let moved = "quay.io/coreos has moved: ghcr.io/flannel-io, docker.io/flannel are read first, and quay.io/coreos for \
                 tags that only it has; target names stay the same (preset flannel)";
    assert!(output.stderr.contains(moved), "{}", output.stderr);
    assert!(output.stdout.contains("Sync Repo: flannel\nSync Total: 5\n"), "{}", output.stdout);
}

#[tokio::test]
async fn rules_and_choices_of_a_configuration_do_not_change_what_the_commands_mean() {
    let fixture = LegacyFixture::new().await;
    let yaml = endpoints(&[("gcr.io", &fixture.source), ("docker.io", &fixture.target)]);
    let defaults =
        "defaults: {tags: {newest: 1}, to: docker.io/other, naming: flat}\nrules: [{from: gcr.io/team/**}]\n";
    fixture.program.file("imgsync.yaml", format!("{yaml}{defaults}"));
    let output = fixture.gcr(&["--dry-run", "--json"]).await.assert_code(0);
    assert_eq!(planned(&output), pairs(&GOOGLE_CONTAINERS));
    let output =
        fixture.gcr(&["--dry-run", "--json", "--to", "r.example.com/m", "--naming", "basename", "--attempts", "1"]);
    assert!(output.await.stdout.contains("r.example.com/m/pause:3.1"));
}

#[tokio::test]
async fn limits_are_kept() {
    let lists = FaultRegistry::builder().google().latency(Duration::from_millis(20)).start().await;
    for number in 0..12 {
        lists.push_untagged(&format!("google-containers/x{number:02}"), &images::single("limits"));
    }
    let fixture = LegacyFixture::with_registries(lists, FaultRegistry::start().await);
    fixture.gcr(&["--query-limit", "3", "--dry-run"]).await.assert_code(0);
    assert_eq!((fixture.source.count(RequestType::Tags), fixture.source.peak_in_flight()), (13, 3));

    let fixture = LegacyFixture::new().await;
    let output = fixture.gcr(&["--process-limit", "1"]).await.assert_code(0);
    assert!(output.stderr.contains("--process-limit is superseded by --concurrency"), "{}", output.stderr);
    assert_eq!(fixture.target.tags_in_all(), 4);
    let output = fixture.gcr(&["--concurrency", "1"]).await.assert_code(0);
    assert!(!output.stderr.contains("superseded"), "{}", output.stderr);
    let both = fixture.gcr(&["--process-limit", "1", "--concurrency", "2"]).await.assert_code(2);
    assert!(both.stderr.contains("cannot be used with"), "{}", both.stderr);
}

#[tokio::test]
async fn a_timeout_is_what_one_image_is_given() {
    let fixture = LegacyFixture::new().await;
    fixture.source.on(RequestType::BlobGet).always().act(FaultAction::StallForever);
    let output =
        fixture.gcr(&["--namespace", "team", "--timeout", "1s", "--attempts", "1", "--json"]).await.assert_code(1);
    assert_eq!(output.json()["failures"][0]["kind"], "timed_out", "{}", output.stdout);
}

#[tokio::test]
async fn slices_add_up_to_the_whole() {
    let fixture = LegacyFixture::new().await;
    let mut whole = Vec::new();
    for number in ["1", "2", "3"] {
        let slice = ["--batch-size", "3", "--batch-number", number, "--dry-run"];
        let output = fixture.gcr(&slice).await.assert_code(0);
        whole.push(output.stdout.lines().map(|line| line.split(' ').nth(1).unwrap().to_owned()).collect::<Vec<_>>());
    }
    assert_eq!(whole.iter().map(Vec::len).collect::<Vec<_>>(), [3, 1, 0]);
    assert_eq!(whole.concat(), GOOGLE_CONTAINERS.map(|(source, _)| source));
}

#[tokio::test]
async fn manifests_are_compared_without_copying_and_an_old_folder_of_them_is_a_hint() {
    let fixture = LegacyFixture::new().await;
    let there = images::single("google-containers/pause:3.1");
    fixture.target.push("me/gcr.io_google-containers_pause", "3.1", &there);
    let json = fixture.gcr(&["--download-manifests", "--json"]).await.assert_code(1).json();
    assert_eq!((&json["counts"]["unchanged"], &json["counts"]["copied"]), (&1.into(), &0.into()), "{json}");
    assert_eq!((fixture.target.tags_in_all(), fixture.target.count(RequestType::ManifestPut)), (1, 0), "{json}");

    // The target has what 2.1 copied from k8s.gcr.io under its old name, and the manifests folder lists it.
    let source = FaultRegistry::builder().google().start().await;
    let target = FaultRegistry::start().await;
    let program = configured(&endpoints(&[("registry.k8s.io", &source), ("docker.io", &target)]));
    let folder = program.work_dir().join("manifests/k8s.gcr.io/pause");
    std::fs::create_dir_all(&folder).unwrap();
    for number in 0..9 {
        let image = images::single(&format!("hint-{number}"));
        source.push("pause", &format!("3.{number}"), &image);
        target.push("me/k8s.gcr.io_pause", &format!("3.{number}"), &image);
        std::fs::write(folder.join(format!("3.{number}.json")), image.root_manifest().bytes.clone()).unwrap();
    }
    let gcr = ["gcr", "--user", "me", "--kubeadm", "--manifests", "manifests", "--json"];
    let output = program.again().args(gcr).run().await.assert_code(0);
    assert_eq!(output.json()["counts"]["unchanged"], 9);
    assert!(target.count(RequestType::ManifestHead) <= 1, "the run's handful: {}", target.describe_requests());
}

#[tokio::test]
async fn reports_have_three_levels_and_a_name() {
    let fixture = LegacyFixture::new().await;
    fixture.source.on(RequestType::BlobGet).times(1).act(FaultAction::error(404, "BLOB_UNKNOWN"));
    let first = fixture.gcr(&["--report", "--report-level", "2", "--report-name", "nightly"]).await.assert_code(1);
    let words = ["Sync Repo: nightly", "Sync Total: 4", "Sync Failed: 1", "Sync Success: 3", "Manifests CacheHit: 0"];
    assert!(words.iter().all(|words| first.stdout.contains(words)), "{}", first.stdout);
    assert!(first.stdout.contains("Failed images:") && !first.stdout.contains("All images:"), "{}", first.stdout);
    let all = fixture.gcr(&["--report", "--report-level", "3"]).await.assert_code(0);
    assert!(all.stdout.contains("Sync Repo: gcr.io/google-containers/**"), "{}", all.stdout);
    assert!(all.stdout.contains("All images:") && all.stdout.contains("Manifests CacheHit: 3"), "{}", all.stdout);
    let totals = fixture.gcr(&["--report"]).await.assert_code(0);
    assert!(!totals.stdout.contains("images:\n"), "{}", totals.stdout);
    fixture.gcr(&["--report-level", "4"]).await.assert_code(2);
    // Whatever prints the report as text, unless another format is named.
    fixture.gcr(&["--report", "r.txt"]).await.assert_code(0);
    let file = std::fs::read_to_string(fixture.program.work_dir().join("r.txt")).unwrap();
    assert!(file.contains("Sync Total: 4\nSync Failed: 0\nSync Success: 4\nManifests CacheHit: 4\n"), "{file}");
    let later = fixture.program.again().args(["batch", "report"]).run().await.assert_code(0);
    assert!(later.stdout.contains("Sync Total: 4\n"), "{}", later.stdout);
    let today = fixture.gcr(&["--report-format", "text"]).await.assert_code(0);
    assert!(today.stdout.contains("Images: 4\nCopied: 0\nUnchanged: 4\nFailed: 0\n"), "{}", today.stdout);
    assert!(!today.stdout.contains("Sync"), "{}", today.stdout);
}

#[tokio::test]
async fn a_group_of_telegram_is_sent_the_report_by_both_commands() {
    const TOKEN: &str = "1234567890:AAF-secret_TokenOfABot";
    let (telegram, flannel) = tokio::join!(TelegramServer::start(TOKEN, "-1001234567890"), FaultRegistry::start());
    flannel.push("flannel-io/flannel", "v0.27.4", &images::single("flannel"));
    flannel.push("flannel-io/flannel-cni-plugin", "v1.8.0", &images::single("flannel"));
    let fixture = LegacyFixture::new().await;
    flannel.push("coreos/flannel", "v0.15.1", &images::single("flannel"));
    fixture.target.push("flannel/flannel", "v0.24.0", &images::single("flannel"));
    fixture.target.push("flannel/flannel-cni-plugin", "v1.4.0", &images::single("flannel"));
    let hosts =
        [("gcr.io", &fixture.source), ("ghcr.io", &flannel), ("quay.io", &flannel), ("docker.io", &fixture.target)];
    fixture.program.file("imgsync.yaml", endpoints(&hosts));
    let api = telegram.url();
    let telegram_args = ["--telegram-api", &api, "--telegram-token", TOKEN, "--telegram-group", "-1001234567890"];
    for command in [&["gcr", "--namespace", "team"][..], &["flannel"]] {
        let program = fixture.program.again().args(command).args(["--user", "me"]).args(telegram_args);
        let output = program.run().await.assert_code(0);
        assert!(!output.stderr.contains(TOKEN) && !output.stdout.contains(TOKEN), "{}", output.stderr);
    }
    let texts = telegram.texts();
    assert_eq!(texts.len(), 2, "{texts:?}");
    for (text, words) in
        texts.iter().zip(["Sync Repo: gcr.io/team/**\nSync Total: 1", "Sync Repo: flannel\nSync Total: 5"])
    {
        assert!(text.contains(words), "{text}");
    }
    let output = fixture.gcr(&["--telegram-group", "friends"]).await.assert_code(2);
    assert!(output.stderr.contains("--telegram-group"), "{}", output.stderr);
}

#[tokio::test]
async fn the_version_and_what_is_done_are_told() {
    let fixture = LegacyFixture::new().await;
    for flag in ["--version", "-v"] {
        let output = Imgsync::new().arg(flag).run().await.assert_code(0);
        assert!(output.stdout.starts_with("imgsync 3."), "{}", output.stdout);
    }
    let quiet = fixture.gcr(&["--namespace", "team"]).await.assert_code(0);
    let words = "started gcr.io/team/app:v1 to docker.io/me/gcr.io_team_app:v1";
    assert!(!quiet.stderr.contains(words), "{}", quiet.stderr);
    let debug = fixture.gcr(&["--namespace", "team", "--debug", "--force"]).await.assert_code(0);
    assert!(debug.stderr.contains(words), "{}", debug.stderr);
}

#[tokio::test]
async fn sync_takes_the_flags_of_then_and_says_what_superseded_them() {
    let (source, target) = tokio::join!(FaultRegistry::start(), FaultRegistry::start());
    source.push("a/b", "1", &images::single("then"));
    let program = configured(&endpoints(&[("gcr.io", &source), ("docker.io", &target)]));
    let sync = |more: &[&str]| program.again().args(["sync", "gcr.io/a/b:1", "--user", "me"]).args(more);
    let output = sync(&["--download-manifests"]).run().await.assert_code(0);
    assert!(output.stderr.contains("superseded by --dry-run"), "{}", output.stderr);
    assert_eq!(target.tags_in_all(), 0);
    let output = sync(&["--manifests", "manifests", "--password", "x", "--timeout", "5m"]).run().await.assert_code(0);
    assert!(output.stderr.contains("--manifests is ignored"), "{}", output.stderr);
    assert_eq!(target.tags("me/gcr.io_a_b"), ["1"]);
}
