//! Bad input: one clear error with a hint, the right exit code, and no partial effects.

use imgsync_tests::fault::FaultRegistry;
use imgsync_tests::images;
use imgsync_tests::program::{Imgsync, Output};
use imgsync_tests::servers::free_port;

async fn fails(arguments: &[&str], code: i32, words: &[&str]) -> Output {
    let output = Imgsync::new().args(arguments);
    let output = output.run().await.assert_code(code);
    for words in words {
        assert!(output.stderr.contains(words), "{arguments:?}: {words:?} is not in\n{}", output.stderr);
    }
    assert_eq!(output.stderr.lines().filter(|line| line.starts_with("error:")).count(), 1, "{}", output.stderr);
    output
}

#[tokio::test]
async fn malformed_references_are_refused_with_the_reason() {
    for (reference, words) in [
        ("Alpine", "lowercase (did you mean `library/alpine`?)"),
        ("https://gcr.io/a/b", "without `https://`"),
        ("x@sha256:abc", "64 hexadecimal digits"),
        ("host:port/x", "port"),
        ("a/b:-x", "a tag has"),
        ("a//b", "between slashes"),
        ("", "empty"),
    ] {
        fails(&["sync", reference, "127.0.0.1:1/x"], 2, &[words]).await;
        fails(&["sync", "127.0.0.1:1/x", reference], 2, &[words]).await;
    }
}

#[tokio::test]
async fn impossible_options_are_refused() {
    fails(&["sync", "a", "127.0.0.1:1/b", "--platform", "linux"], 2, &["os/arch"]).await;
    fails(&["sync", "a", "127.0.0.1:1/b", "--timeout", "soon"], 2, &["90s, 10m or 1h30m"]).await;
    fails(&["sync", "a", "127.0.0.1:1/b", "--password", "x"], 2, &["--user"]).await;
    fails(&["sync", "a", "127.0.0.1:1/b", "--concurrency", "0"], 2, &["1..=200"]).await;
    fails(&["sync", "a", "127.0.0.1:1/b", "--no-such"], 2, &["--no-such"]).await;
    for place in ["localhost:5000", "registry.example.com:5000"] {
        fails(
            &["sync", "127.0.0.1:1/a", place],
            2,
            &["names a registry without a repository", &format!("write {place}/NAME")],
        )
        .await;
    }
    fails(&["sync", "a", "127.0.0.1:1/b", "--referrers", "sbom"], 2, &["not an artifact type", "all, or none"]).await;
    fails(&["sync"], 2, &["SOURCE"]).await;
    fails(&["sync", "127.0.0.1:1/a"], 2, &["no Docker Hub user", "docker login"]).await;
    fails(&["sync", "127.0.0.1:1/a", "127.0.0.1:1/b", "-c", "no-such.yaml"], 2, &["no-such.yaml"]).await;
}

#[tokio::test]
async fn a_configuration_that_is_wrong_is_shown_with_its_place() {
    let sync = Imgsync::new().args(["sync", "127.0.0.1:1/a", "127.0.0.1:1/b"]);
    let file = sync.file("imgsync.yaml", "registries:\n  gcr.io: {usrname: x}\n  quay.io: {tls: maybe}\n");
    let output = sync.arg("-c").arg(file).run().await.assert_code(2);
    for words in ["usrname", "username", "imgsync.yaml:2:", "imgsync.yaml:3:", "^"] {
        assert!(output.stderr.contains(words), "{words}: {}", output.stderr);
    }
}

#[tokio::test]
async fn hosts_that_are_not_there_are_named() {
    let target = FaultRegistry::start().await;
    let (nobody, to) = (format!("127.0.0.1:{}/a/b:1", free_port()), format!("{}/b:1", target.host()));
    let retry_args = ["--attempts", "2", "--retry-delay", "1ms"];
    for (from, words) in [
        (nobody.as_str(), ["onnection refused", "failed 2 times"]),
        ("no-such-host.invalid/a/b:1", ["no-such-host.invalid/a/b:1", "does not resolve"]),
    ] {
        let output = fails(&[&["sync", from, &to], &retry_args[..]].concat(), 3, &words).await;
        assert!(output.stderr.contains("hint:"), "{}", output.stderr);
        assert!(output.stderr.contains(from), "the image is named: {}", output.stderr);
    }
}

#[tokio::test]
async fn a_missing_tag_repository_or_digest_is_named() {
    let (source, target) = tokio::join!(FaultRegistry::start(), FaultRegistry::start());
    let image = images::single("there");
    source.push("a", "1", &image);
    target.push("b", "1", &image);
    let gone = format!("a@{}", images::single("gone").root);
    for from in ["a:2", "nothing/here:1", &gone] {
        for to in ["b:1", "b:other"] {
            let (from, to) = (format!("{}/{from}", source.host()), format!("{}/{to}", target.host()));
            let output = fails(&["sync", &from, &to, "--json"], 1, &[&from]).await;
            assert_eq!(output.json()["kind"], "not_found");
        }
    }
    assert_eq!(target.tags("b"), ["1"]);
    let (from, to) = (format!("{}/a:1", source.host()), format!("{}/b@{}", target.host(), images::single("x").root));
    fails(&["sync", &from, &to], 2, &["does not match the target digest"]).await;
}

#[tokio::test]
async fn a_platform_that_an_image_lacks_is_refused_with_those_it_has() {
    let (source, target) = tokio::join!(FaultRegistry::start(), FaultRegistry::start());
    source.push("a", "1", &images::multi_platform("platforms"));
    let (from, to) = (format!("{}/a:1", source.host()), format!("{}/b:1", target.host()));
    fails(&["sync", &from, &to, "--platform", "plan9/mips"], 1, &["plan9/mips", "linux/amd64", "linux/arm64"]).await;
    assert!(target.tags("b").is_empty());
}
