//! Referrers written by several workers concurrently.

use std::time::Duration;

use imgsync_tests::cluster::{TestCluster, number};
use imgsync_tests::fault::FaultRegistry;
use imgsync_tests::images::{self, TestImage};

/// Number of tags that are signatures of one image.
const SIGNATURES: usize = 32;

#[tokio::test]
async fn four_workers_write_one_index_of_referrers_and_nothing_of_it_is_lost() {
    let cluster = TestCluster::start();
    let (source, modern, target) = tokio::join!(FaultRegistry::start(), FaultRegistry::start(), async {
        // Slow enough that all have read before the first has written.
        FaultRegistry::builder().without_referrers().latency(Duration::from_millis(15)).start().await
    });
    let amd64 = TestImage::single("signed-by-many").layers(2, 3000).build();
    let index = TestImage::index("signed-by-many").child(&amd64, "linux/amd64");
    let image = index.attestation(&images::artifact("many-provenance"), &amd64).build();
    source.push("app", &image.digest_tag("sig"), &images::cosign("many-cosign"));
    source.push("app", "1", &image);
    source.push("app", "latest", &image);
    let child = image.subtree(&image.children()[0]);
    let sboms: Vec<TestImage> = (0..3).map(|n| images::referrer(&format!("many-sbom-{n}"), &child)).collect();
    let signatures: Vec<TestImage> =
        (0..SIGNATURES).map(|n| images::referrer(&format!("many-signature-{n}"), &image)).collect();
    for sbom in &sboms {
        source.push_untagged("app", sbom);
    }
    for (n, signature) in signatures.iter().enumerate() {
        // Each in its own task, and each refers to the same image.
        source.push("app", &format!("signature-{n}"), signature);
        let again = images::referrer(&format!("countersigned-{n}"), signature);
        source.push_untagged("app", &again);
    }
    let to = format!("[{}/m, {}/m]", target.host(), modern.host());
    let config = format!("rules:\n- {{from: {}/app, to: {to}, naming: keep}}\n", source.host());
    let _workers = cluster.start_workers(4, 4).await;
    let run = cluster.imgsync(&config).args(["run", "--json"]).run().await.assert_code(0).json();
    assert_eq!(number(&run, "/counts/copied"), 2 * (SIGNATURES + 2) as u64, "{run}");
    for target in [&target, &modern] {
        target.assert_holds("m/app", "1", &image);
        target.assert_holds("m/app", "latest", &image);
        target.assert_holds("m/app", &image.digest_tag("sig"), &images::cosign("many-cosign"));
        for referrer in signatures.iter().chain(&sboms) {
            target.assert_holds_untagged("m/app", referrer);
        }
        target.assert_children_came_first();
    }
    assert!(modern.manifest("m/app", &image.digest_tag("")).is_none(), "it keeps them by itself");
    let listed = |subject: &TestImage| {
        let index = target.manifest("m/app", &subject.digest_tag("")).expect("there is an index");
        let mut listed = images::children(&index.json());
        listed.sort();
        listed
    };
    let roots = |images: &[TestImage]| {
        let mut roots: Vec<String> = images.iter().map(|image| image.root.clone()).collect();
        roots.sort();
        roots
    };
    assert_eq!(listed(&image), roots(&signatures), "each once, none lost");
    assert_eq!(listed(&child), roots(&sboms));
    for signature in &signatures {
        assert_eq!(listed(signature).len(), 1, "what refers to what refers");
    }

    // A second run in a cluster with a cache sends no request for any of it.
    source.clear_requests();
    target.clear_requests();
    let again = cluster.imgsync(&config).args(["run", "--json"]).run().await.assert_code(0).json();
    assert_eq!(number(&again, "/counts/unchanged"), 2 * (SIGNATURES + 2) as u64, "{again}");
    assert_eq!((source.referrer_requests().len(), target.referrer_requests().len()), (0, 0));
}
