//! One platform of an index, where the target has something under the tag already.

use imgsync_tests::fault::{FaultRegistry, Kind};
use imgsync_tests::images;
use imgsync_tests::program::{Imgsync, Output};

async fn sync(source: &FaultRegistry, target: &FaultRegistry, from: &str) -> Output {
    let (from, to) = (format!("{}/{from}", source.host()), format!("{}/b:1", target.host()));
    Imgsync::new().args(["sync", &from, &to, "--json", "--platform", "linux/arm64"]).run().await
}

#[tokio::test]
async fn one_platform_replaces_the_whole_index_that_the_target_has() {
    for by_digest in [false, true] {
        let (source, target) = tokio::join!(FaultRegistry::start(), FaultRegistry::start());
        let image = images::multi_platform("chosen");
        source.push("a", "1", &image);
        target.push("b", "1", &image);
        let from = if by_digest { format!("a@{}", image.root) } else { "a:1".to_owned() };
        assert_eq!(sync(&source, &target, &from).await.assert_code(0).json()["outcome"], "copied");
        let chosen = image.subtree(&image.children()[1]);
        target.assert_holds("b", "1", &chosen);
        // It was all there: one PUT.
        assert_eq!(source.count(Kind::BlobGet), 0, "{}", source.describe_requests());
        target.clear_requests();
        assert_eq!(sync(&source, &target, &from).await.assert_code(0).json()["outcome"], "unchanged");
        assert_eq!(target.total(), 1, "{}", target.describe_requests());
    }
}
