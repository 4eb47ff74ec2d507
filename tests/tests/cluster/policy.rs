//! Policies in a cluster: the coordinator reads the keys, and the workers verify signatures with them.

use imgsync_tests::cluster::TestCluster;
use imgsync_tests::fault::FaultRegistry;
use imgsync_tests::images::signing::CosignKey;
use imgsync_tests::images::{self, TestImage};
use imgsync_tests::servers::{DockerRegistry, DockerRegistryAuth};

#[tokio::test]
async fn workers_without_key_files_copy_what_is_signed_and_nothing_else() {
    let cluster = TestCluster::start();
    let (source, target) = tokio::join!(DockerRegistry::start(DockerRegistryAuth::None), FaultRegistry::start());
    let (key, other) = (CosignKey::new(), CosignKey::new());
    let image = |name: &str, n: usize| images::multi_platform(&format!("cluster-policy-{name}-{n}"));
    let sign = async |image: &TestImage, key: &CosignKey| {
        source.push("app", &image.digest_tag("sig"), &key.sign_simply(&image.root)).await;
    };
    for n in 0..6 {
        let (good, bad) = (image("good", n), image("bad", n));
        source.push("app", &format!("good-{n}"), &good).await;
        sign(&good, &key).await;
        source.push("app", &format!("bad-{n}"), &bad).await;
        if n % 2 == 0 {
            sign(&bad, &other).await;
        }
    }
    let policy = "policy: {signed: {keys: keys/cosign.pub}}";
    let config =
        format!("rules:\n- {{from: {}/app, to: {}/m, naming: keep, {policy}}}\n", source.host(), target.host());
    let workers = cluster.start_workers(3, 2).await;
    let program = cluster.imgsync(&config);
    std::fs::create_dir(program.work_dir().join("keys")).unwrap();
    program.file("keys/cosign.pub", key.public());
    let run = program.again().args(["run", "--json", "-c", "imgsync.yaml"]).run().await.assert_code(1).json();
    assert_eq!((&run["counts"]["copied"], &run["counts"]["failed"]), (&6.into(), &6.into()), "{run:#}");
    let failures = run["failures"].as_array().unwrap();
    assert!(failures.iter().all(|failure| failure["kind"] == "refused_by_policy"), "{run:#}");
    assert!(failures.iter().all(|failure| failure["attempts"] == 1), "not tried again: {run:#}");
    for n in 0..6 {
        target.assert_holds("m/app", &format!("good-{n}"), &image("good", n));
        assert_eq!(target.tag_digest("m/app", &format!("bad-{n}")), None);
        assert!(target.manifest("m/app", &image("bad", n).root).is_none());
    }
    // Signed meanwhile: a requeue of the same batch needs no key file, for the batch has the key.
    for n in 0..6 {
        sign(&image("bad", n), &key).await;
    }
    let requeue = cluster.imgsync("").args(["batch", "requeue", "--json"]).run().await.assert_code(0).json();
    assert_eq!(requeue["counts"]["copied"], 12, "{requeue:#}");
    for n in 0..6 {
        target.assert_holds("m/app", &format!("bad-{n}"), &image("bad", n));
    }
    drop(workers);
}
