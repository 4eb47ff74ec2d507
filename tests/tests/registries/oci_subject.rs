//! Artifacts within an index, at a registry without the referrers API.

use imgsync_tests::fault::FaultRegistry;
use imgsync_tests::images::{self, TestImage};
use imgsync_tests::program::Imgsync;

#[tokio::test]
async fn an_artifact_that_is_there_already_is_listed_under_its_subject_all_the_same() {
    let source = FaultRegistry::start().await;
    let target = FaultRegistry::builder().without_referrers().start().await;
    let image = images::single("index-subject");
    let signature = images::referrer("index-signature", &image);
    let other = images::single("index-other");
    let before = TestImage::index("with-artifact").bare_child(&signature).build();
    let after = TestImage::index("with-artifact").bare_child(&signature).child(&other, "linux/amd64").build();
    // Its push was interrupted before the referrers index was updated.
    target.push("b", "1", &before);
    source.push("a", "1", &after);
    let (from, to) = (format!("{}/a:1", source.host()), format!("{}/b:1", target.host()));
    Imgsync::new().args(["sync", &from, &to]).run().await.assert_code(0);
    target.assert_holds("b", "1", &after);
    let fallback = target.manifest("b", &image.root.replace(':', "-")).expect("the fallback index is there");
    assert_eq!(images::children(&fallback.json()), [signature.root]);
}
