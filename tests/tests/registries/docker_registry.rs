//! Copies between two of Debian's docker-registry servers, verified with skopeo and the Docker Engine.

use super::media_types;
use imgsync_tests::images::{self, TestImage};
use imgsync_tests::program::Imgsync;
use imgsync_tests::servers::{DockerEngine, DockerRegistry, DockerRegistryAuth};
use imgsync_tests::skopeo::Skopeo;

/// All kinds of images that docker-registry 2.8 accepts.
pub(crate) fn fixtures(name: &str) -> Vec<(&'static str, TestImage)> {
    vec![
        ("single", images::single(&format!("{name}-single"))),
        ("docker", images::single_docker(&format!("{name}-docker"))),
        ("multi", images::multi_platform(&format!("{name}-multi"))),
        ("nested", images::nested(&format!("{name}-nested"))),
        ("shared-child", images::shared_child(&format!("{name}-shared-child"))),
        ("shared-layers", images::shared_layers(&format!("{name}-shared-layers"))),
        ("artifact", images::artifact(&format!("{name}-artifact"))),
        ("odd-config", images::helm_chart(&format!("{name}-odd"))),
        ("layer-twice", images::layer_twice(&format!("{name}-twice"))),
        ("zero-layer", images::empty_layer(&format!("{name}-zero"))),
        ("sha512", images::sha512_blobs(&format!("{name}-sha512"))),
        ("inline", images::inline_data(&format!("{name}-inline"))),
        ("wasm", media_types::wasm(&format!("{name}-wasm"))),
        ("zstd", media_types::zstd(&format!("{name}-zstd"))),
        ("unknown", media_types::unknown(&format!("{name}-unknown"))),
        ("attested", media_types::attested(&format!("{name}-attested"))),
        ("cache", media_types::cache(&format!("{name}-cache"))),
        ("cache-image", media_types::cache_as_image(&format!("{name}-cache-image"))),
    ]
}

async fn all_arrive(source: DockerRegistryAuth, target: DockerRegistryAuth) {
    let (source, target) = tokio::join!(DockerRegistry::start(source), DockerRegistry::start(target));
    let mut skopeo = Skopeo::new();
    let sync = Imgsync::new();
    let logins: Vec<_> =
        [&source, &target].into_iter().filter_map(|end| Some((end.host(), end.credentials()?))).collect();
    sync.write_docker_config(
        &logins.iter().map(|(host, (user, password))| (&**host, &**user, &**password)).collect::<Vec<_>>(),
    );
    if let Some((user, password)) = target.credentials() {
        skopeo = skopeo.source_credentials(&user, &password);
    }
    for (tag, image) in fixtures("real") {
        source.push("some/app", tag, &image).await;
        let (from, to) = (format!("{}/some/app:{tag}", source.host()), format!("{}/mirror/app", target.host()));
        let output = sync.again().args(["sync", &from, &to, "--json"]).run().await.assert_code(0).json();
        assert_eq!(output["outcome"], "copied", "{tag}");
        assert_eq!(output["digest"], image.root, "{tag}");
        target.assert_holds("mirror/app", tag, &image).await;
        let seen = skopeo.inspect_raw(&format!("{to}:{tag}")).await.expect("skopeo reads what landed");
        assert_eq!(seen, image.root_manifest().bytes, "{tag}");
    }
}

#[tokio::test]
async fn every_kind_of_image_arrives_as_it_was() {
    all_arrive(DockerRegistryAuth::None, DockerRegistryAuth::None).await;
}

#[tokio::test]
async fn every_kind_of_image_arrives_from_behind_a_password_where_tokens_are_wanted() {
    all_arrive(DockerRegistryAuth::htpasswd("reader", "one"), DockerRegistryAuth::token("writer", "two")).await;
}

#[tokio::test]
async fn every_kind_of_image_arrives_from_behind_tokens_where_a_password_is_wanted() {
    all_arrive(DockerRegistryAuth::token("reader", "one"), DockerRegistryAuth::htpasswd("writer", "two")).await;
}

#[tokio::test]
async fn skopeo_unpacks_copied_images() {
    let (source, target) =
        tokio::join!(DockerRegistry::start(DockerRegistryAuth::None), DockerRegistry::start(DockerRegistryAuth::None));
    let image = images::single("unpacked");
    source.push("a", "1", &image).await;
    let (from, to) = (format!("{}/a:1", source.host()), format!("{}/b:1", target.host()));
    let output = Imgsync::new().args(["sync", &from, &to]).run().await.assert_code(0);
    assert_eq!(output.stdout.trim(), format!("{to}@{}", image.root));
    let folder = tempfile::tempdir().expect("a folder");
    Skopeo::new().copy_to_dir(&to, folder.path()).await.expect("skopeo verifies every blob");
}

#[tokio::test]
async fn the_docker_engine_pulls_copied_images() {
    if let Err(reason) = DockerEngine::available() {
        imgsync_tests::skipped(&format!("the Docker Engine pulls what landed: {reason}"));
        return;
    }
    let engine = match DockerEngine::start().await {
        Ok(engine) => engine,
        Err(reason) => return imgsync_tests::skipped(&format!("the Docker Engine pulls what landed: {reason}")),
    };
    let (source, target) =
        tokio::join!(DockerRegistry::start(DockerRegistryAuth::None), DockerRegistry::start(DockerRegistryAuth::None));
    let image = images::multi_platform("pulled");
    source.push("a", "1", &image).await;
    let (from, to) = (format!("{}/a:1", source.host()), format!("{}/b:1", target.host()));
    Imgsync::new().args(["sync", &from, &to]).run().await.assert_code(0);
    engine.pull(&to).await.expect("the engine pulls it");
}

#[tokio::test]
async fn a_repository_with_a_password_and_one_with_tokens_are_both_written_and_read() {
    let (source, target) = tokio::join!(
        DockerRegistry::start(DockerRegistryAuth::htpasswd("reader", "one:two")),
        DockerRegistry::start(DockerRegistryAuth::token("writer", "s3cret"))
    );
    let image = images::multi_platform("login");
    source.push("team/app", "1.0", &image).await;
    let (from, to) = (format!("{}/team/app:1.0", source.host()), format!("{}/mirror/app:1.0", target.host()));

    // Credentials from docker's config.json, in both directions.
    let there = Imgsync::new().args(["sync", &from, &to]);
    there.write_docker_config(&[(&source.host(), "reader", "one:two"), (&target.host(), "writer", "s3cret")]);
    there.run().await.assert_code(0);
    target.assert_holds("mirror/app", "1.0", &image).await;
    let back = Imgsync::new().args(["sync", &to, &format!("{}/team/again", source.host())]);
    back.write_docker_config(&[(&source.host(), "reader", "one:two"), (&target.host(), "writer", "s3cret")]);
    back.run().await.assert_code(0);
    source.assert_holds("team/again", "1.0", &image).await;

    // One token serves all requests to the target.
    let tokens = target.tokens().expect("it has tokens").requests();
    let pushes = tokens.iter().filter(|request| request.scopes.iter().any(|scope| scope.contains("push"))).count();
    assert_eq!(pushes, 1, "{tokens:?}");
}

#[tokio::test]
async fn the_targets_password_may_come_from_stdin_or_the_environment() {
    let (source, target) = tokio::join!(
        DockerRegistry::start(DockerRegistryAuth::None),
        DockerRegistry::start(DockerRegistryAuth::htpasswd("me", "pass word"))
    );
    let image = images::single("typed");
    source.push("a", "1", &image).await;
    let (from, to) = (format!("{}/a:1", source.host()), format!("{}/b", target.host()));
    let sync = || Imgsync::new().args(["sync", &from, &to, "--user", "me"]);
    sync().arg("--password-stdin").stdin("pass word\n").run().await.assert_code(0);
    target.assert_holds("b", "1", &image).await;
    sync().env("IMGSYNC_PASSWORD", "pass word").run().await.assert_code(0);
    sync().args(["--password", "pass word"]).run().await.assert_code(0);

    let refused = sync().args(["--password", "wrong", "--force"]).run().await.assert_code(1);
    assert!(refused.stderr.contains("401") && refused.stderr.contains("check the user and password"), "{refused:?}");
    assert!(!refused.stderr.contains("wrong"), "{refused:?}");
}

/// The client without the rest of imgsync.
#[tokio::test]
async fn the_example_of_the_registry_client_lists_and_copies_an_image() {
    let source = DockerRegistry::start(DockerRegistryAuth::None).await;
    let target = DockerRegistry::start(DockerRegistryAuth::htpasswd("amy", "pass word")).await;
    let image = images::nested("example");
    for tag in ["1.0", "1.1"] {
        source.push("some/app", tag, &image).await;
    }
    let example = Imgsync::example("imgsync-registry", "copy_image");
    example.write_docker_config(&[(&target.host(), "amy", "pass word")]);
    let (from, to) = (format!("{}/some/app:1.1", source.host()), format!("{}/mirror/app:1.1", target.host()));
    let output = example.args([&from, &to]).run().await.assert_code(0);
    assert!(output.stdout.contains("some/app has 2 tags"), "{}", output.stdout);
    target.assert_holds("mirror/app", "1.1", &image).await;
}
