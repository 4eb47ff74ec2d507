//! The policy holds for every way in which an image is asked for, and in what is shown.

use imgsync_tests::fault::FaultRegistry;
use imgsync_tests::images::signing::CosignKey;
use imgsync_tests::images::{self, TestImage};
use imgsync_tests::program::{Imgsync, Output};

use super::{assert_refused, counts, rule, sign, signed_rule};
use crate::end_to_end::{configured, run};

/// A source with a signed and an unsigned image, and a target.
struct Registries {
    key: CosignKey,
    source: FaultRegistry,
    target: FaultRegistry,
    signed: TestImage,
    unsigned: TestImage,
}

impl Registries {
    async fn new(name: &str) -> Self {
        let (source, target) = tokio::join!(FaultRegistry::start(), FaultRegistry::start());
        let key = CosignKey::new();
        let (signed, unsigned) =
            (images::multi_platform(&format!("{name}-signed")), images::multi_platform(&format!("{name}-unsigned")));
        source.push("app", "signed", &signed);
        source.push("app", "unsigned", &unsigned);
        sign(&source, &signed, &key);
        Self { key, source, target, signed, unsigned }
    }

    fn program(&self) -> Imgsync {
        signed_rule(&self.source.host(), &self.target.host(), &self.key)
    }

    async fn sync(&self, program: &Imgsync, tag: &str, target: &str, more: &[&str]) -> Output {
        let from = format!("{}/app:{tag}", self.source.host());
        program.again().args(["sync", &from, target, "--json"]).args(more).run().await
    }
}

#[tokio::test]
async fn sync_demands_the_keys_of_its_option_or_the_policy_of_the_defaults() {
    let all = Registries::new("policy-sync").await;
    let key = all.key.public();
    let plain = Imgsync::new();
    let path = plain.file("cosign.pub", &key).to_str().unwrap().to_owned();
    let other = plain.file("other.pub", CosignKey::new().public()).to_str().unwrap().to_owned();
    let to = |tag: &str| format!("{}/s:{tag}", all.target.host());
    let refused = all.sync(&plain, "unsigned", &to("unsigned"), &["--signed-by", &path]).await.assert_code(1);
    assert_eq!(refused.json()["kind"], "refused_by_policy");
    assert!(refused.stderr.contains("not signed by") && refused.stderr.contains("hint: sign it"), "{}", refused.stderr);
    let dry = all.sync(&plain, "unsigned", &to("unsigned"), &["--signed-by", &path, "--dry-run"]).await.assert_code(1);
    assert_eq!(dry.json()["kind"], "refused_by_policy");
    all.sync(&plain, "signed", &to("signed"), &["--signed-by", &other]).await.assert_code(1);
    assert_eq!(all.target.tags("s"), [] as [String; 0]);
    all.sync(&plain, "signed", &to("signed"), &["--signed-by", &other, "--signed-by", &path]).await.assert_code(0);
    all.target.assert_holds("s", "signed", &all.signed);
    // Also for a platform of the index, and for an archive.
    all.sync(&plain, "signed", &to("one"), &["--signed-by", &path, "--platform", "linux/arm64"]).await.assert_code(0);
    all.sync(&plain, "unsigned", &to("two"), &["--signed-by", &path, "--platform", "linux/arm64"]).await.assert_code(1);
    let archive = |name: &str| format!("oci-archive:{}", plain.work_dir().join(name).display());
    all.sync(&plain, "unsigned", &archive("u.tar"), &["--signed-by", &path]).await.assert_code(1);
    assert!(!plain.work_dir().join("u.tar").exists());
    all.sync(&plain, "signed", &archive("s.tar"), &["--signed-by", &path]).await.assert_code(0);
    // Wrong keys are wrong usage, before anything is asked.
    let private = plain.file("cosign.key", "-----BEGIN ENCRYPTED SIGSTORE PRIVATE KEY-----\n");
    all.source.clear_requests();
    for (key, said) in [(private.to_str().unwrap(), "private key"), ("none.pub", "none.pub")] {
        let wrong = all.sync(&plain, "signed", &to("x"), &["--signed-by", key]).await.assert_code(2);
        assert!(wrong.stderr.contains(said), "{}", wrong.stderr);
    }
    assert_eq!(all.source.total(), 0);

    let with_defaults = configured("defaults: {policy: {signed: {keys: cosign.pub}}}\n");
    with_defaults.file("cosign.pub", &key);
    let config = with_defaults.work_dir().join("imgsync.yaml");
    let config = ["-c", config.to_str().unwrap()];
    let refused = all.sync(&with_defaults, "unsigned", &to("unsigned"), &config).await.assert_code(1);
    assert_eq!(refused.json()["kind"], "refused_by_policy");
    assert_eq!(all.target.tag_digest("s", "unsigned"), None);
    let without = [config[0], config[1], "--no-policy"];
    all.sync(&with_defaults, "unsigned", &to("unsigned"), &without).await.assert_code(0);
    all.target.assert_holds("s", "unsigned", &all.unsigned);
}

#[tokio::test]
async fn a_run_counts_and_names_what_was_refused_and_a_requeue_copies_it_once_it_is_signed() {
    let all = Registries::new("policy-run").await;
    let program = all.program();
    let dry = run(&program, &["--dry-run"]).await.assert_code(1);
    let line = dry.stdout.lines().find(|line| line.contains("app:unsigned")).unwrap();
    assert!(line.contains(r#""action":"fail""#) && line.contains("not signed by cosign.pub"), "{}", dry.stdout);
    assert!(dry.stdout.lines().any(|line| line.contains("app:signed") && line.contains(r#""action":"copy""#)));
    assert_eq!(all.target.total(), all.target.count_where(|request| matches!(&*request.method, "GET" | "HEAD")));

    let json = run(&program, &["--report", "r.md"]).await.assert_code(1).json();
    assert_eq!(counts(&json), (1, 0, 1), "{json:#}");
    assert_refused(&json, "unsigned", "no signature");
    let shown = program.again().args(["batch", "show", "--json"]).run().await.assert_code(0).json();
    let group = &shown["failed_by_kind"][0];
    assert_eq!((&group["kind"], &group["failed"]), (&"refused_by_policy".into(), &1.into()), "{shown:#}");
    let report = std::fs::read_to_string(program.work_dir().join("r.md")).unwrap();
    assert!(report.contains("Refused by policy"), "{report}");
    all.target.assert_holds("m/app", "signed", &all.signed);

    let file = program.work_dir().join("imgsync.yaml");
    let requeue = async || {
        let requeue =
            program.again().args(["batch", "requeue", "--kind", "refused_by_policy", "--json", "-c"]).arg(&file);
        requeue.run().await
    };
    assert_refused(&requeue().await.assert_code(1).json(), "unsigned", "no signature");
    assert_eq!(all.target.tag_digest("m/app", "unsigned"), None);
    sign(&all.source, &all.unsigned, &all.key);
    assert_eq!(counts(&requeue().await.assert_code(0).json()), (2, 0, 0));
    all.target.assert_holds("m/app", "unsigned", &all.unsigned);
    assert!(all.target.tag_digest("m/app", &all.unsigned.digest_tag("sig")).is_some(), "with its signature");
}

#[tokio::test]
async fn layouts_archives_and_bundles_carry_signatures_that_count() {
    let all = Registries::new("policy-layout").await;
    let source = all.source.host();
    // Both images, in a layout and in an archive, without any policy.
    let program = configured(&format!("rules:\n- {{from: {source}/app, to: 'oci:layout'}}\n"));
    run(&program, &[]).await.assert_code(0);
    program.file("cosign.pub", all.key.public());
    let mut tar = std::process::Command::new("tar");
    tar.args(["cf", "../images.tar", "."]).current_dir(program.work_dir().join("layout"));
    assert!(tar.status().unwrap().success());
    // Compressed like this, an archive can only be read forward.
    let mut zstd = std::process::Command::new("zstd");
    assert!(zstd.args(["-q", "images.tar"]).current_dir(program.work_dir()).status().unwrap().success());
    for (number, from) in ["oci:layout", "oci-archive:images.tar", "oci-archive:images.tar.zst"].into_iter().enumerate()
    {
        let to = format!("{}/m{number}", all.target.host());
        let policy = "policy: {signed: {keys: cosign.pub}}";
        program.file("imgsync.yaml", format!("rules:\n- {{from: '{from}', to: {to}, naming: keep, {policy}}}\n"));
        let json = run(&program, &[]).await.assert_code(1).json();
        assert_eq!(counts(&json), (1, 0, 1), "{from}: {json:#}");
        assert_refused(&json, "unsigned", "no signature");
        all.target.assert_holds(&format!("m{number}/app"), "signed", &all.signed);
    }

    // A bundle is made of what the policy allows, and loaded by the policy of the defaults.
    let near = all.program();
    let create = near.again().args(["bundle", "create", "-c", "imgsync.yaml", "--out", "b.tar", "--json"]).run().await;
    let refused = create.assert_code(1);
    assert!(refused.stdout.contains("refused_by_policy"), "{}{}", refused.stdout, refused.stderr);
    let open = rule(&source, &all.target.host(), &[], "");
    open.again().args(["bundle", "create", "-c", "imgsync.yaml", "--out", "b.tar"]).run().await.assert_code(0);
    let far = configured("defaults: {policy: {signed: {keys: cosign.pub}}}\n");
    far.file("cosign.pub", all.key.public());
    let to = format!("{}/far", all.target.host());
    let bundle = open.work_dir().join("b.tar");
    let load = far.again().args(["bundle", "load", bundle.to_str().unwrap(), "--to", &to, "-c", "imgsync.yaml"]);
    load.run().await.assert_code(1);
    all.target.assert_holds("far/app", "signed", &all.signed);
    assert_eq!(all.target.tag_digest("far/app", "unsigned"), None);
}

#[tokio::test]
async fn keys_that_cannot_be_used_are_errors_of_the_configuration() {
    let all = Registries::new("policy-keys").await;
    let program = all.program();
    for (content, said) in [
        (Some("no key at all"), "no public key in PEM"),
        (Some("-----BEGIN PUBLIC KEY-----\nAAAA\n-----END PUBLIC KEY-----\n"), "no key of Ed25519"),
        (None, "No such file"),
    ] {
        match content {
            Some(content) => _ = program.file("cosign.pub", content),
            None => std::fs::remove_file(program.work_dir().join("cosign.pub")).unwrap(),
        }
        let wrong = run(&program, &[]).await.assert_code(2);
        assert!(wrong.stderr.contains(said) && wrong.stderr.contains("cosign.pub"), "{}", wrong.stderr);
    }
    assert_eq!((all.source.total(), all.target.total()), (0, 0));
    // With one key in two files, one signature would be enough for `need: all`.
    let key = all.key.public();
    program.file("cosign.pub", &key);
    let copy = program.file("copy.pub", format!("A comment.\n{}", key.replace('\n', "\r\n")));
    let (source, target) = (all.source.host(), all.target.host());
    let policy = "policy: {signed: {keys: [cosign.pub, copy.pub], need: all}}";
    program.file("imgsync.yaml", format!("rules:\n- {{from: {source}/app, to: {target}/m, {policy}}}\n"));
    let wrong = run(&program, &[]).await.assert_code(2);
    assert!(wrong.stderr.contains("cosign.pub of the same policy has the same key"), "{}", wrong.stderr);
    assert!(wrong.stderr.contains("copy.pub"), "{}", wrong.stderr);
    let (one, two) = (program.work_dir().join("cosign.pub"), copy);
    let twice = ["--signed-by", one.to_str().unwrap(), "--signed-by", two.to_str().unwrap()];
    let wrong = all.sync(&Imgsync::new(), "signed", &format!("{target}/s:1"), &twice).await.assert_code(2);
    assert!(wrong.stderr.contains("has the same key"), "{}", wrong.stderr);
    // Two rules may have the same key.
    let rule =
        |to: &str| format!("- {{from: {source}/app, to: {target}/{to}, policy: {{signed: {{keys: cosign.pub}}}}}}\n");
    program.file("imgsync.yaml", format!("rules:\n{}{}", rule("a"), rule("b")));
    run(&program, &["--dry-run"]).await.assert_code(1);
    assert_eq!(all.target.count_where(|request| !matches!(&*request.method, "GET" | "HEAD")), 0);
}

#[tokio::test]
async fn a_requeue_uses_the_policy_that_its_batch_was_made_with_and_a_run_the_configured_one() {
    let all = Registries::new("policy-requeue").await;
    let program = all.program();
    assert_eq!(counts(&run(&program, &[]).await.assert_code(1).json()), (1, 0, 1));
    // Another key in the file: the batch still has the first one.
    let other = CosignKey::new();
    program.file("cosign.pub", other.public());
    sign(&all.source, &all.unsigned, &all.key);
    let file = program.work_dir().join("imgsync.yaml");
    let requeue = program.again().args(["batch", "requeue", "--json", "-c"]).arg(&file).run().await;
    assert_eq!(counts(&requeue.assert_code(0).json()), (2, 0, 0));
    all.target.assert_holds("m/app", "unsigned", &all.unsigned);
    let json = run(&program, &[]).await.assert_code(1).json();
    assert_eq!(counts(&json), (0, 0, 2), "{json:#}");
    assert_refused(&json, "unsigned", "not made with the key");
}

#[tokio::test]
async fn a_check_of_signatures_costs_the_requests_that_the_page_says() {
    let (source, key) = (FaultRegistry::start().await, CosignKey::new());
    let image = |name: &str| images::single(&format!("policy-cost-{name}"));
    for tag in ["simple", "bundle", "unsigned"] {
        source.push("app", tag, &image(tag));
    }
    let index = images::multi_platform("policy-cost-index");
    source.push("app", "index", &index);
    sign(&source, &image("simple"), &key);
    source.push_untagged("app", &key.sign_in_bundle(&image("bundle").descriptor()));
    let program = Imgsync::new();
    let path = program.file("cosign.pub", key.public()).to_str().unwrap().to_owned();
    // Without referrers, so that those of the copy do not count.
    let cost = async |tag: &str, more: &[&str]| {
        let target = FaultRegistry::start().await;
        source.clear_requests();
        let (from, to) = (format!("{}/app:{tag}", source.host()), format!("{}/t:1", target.host()));
        program.again().args(["sync", &from, &to, "--referrers", "none"]).args(more).run().await;
        source.total() + source.referrer_requests().len() as u64
    };
    let signed = ["--signed-by", &path];
    assert_eq!(cost("simple", &signed).await - cost("simple", &[]).await, 3, "{}", source.describe_requests());
    assert_eq!(cost("bundle", &signed).await - cost("bundle", &[]).await, 4, "{}", source.describe_requests());
    // The manifest of the tag, and the check.
    assert_eq!(cost("unsigned", &signed).await, 1 + 2, "{}", source.describe_requests());
    assert_eq!(cost("index", &signed).await, 1 + 2 + 2, "{}", source.describe_requests());
}
