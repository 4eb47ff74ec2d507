//! Pruning, backups and verification by several processes: the same rules apply, and the results are in the shared
//! store.

use imgsync_tests::cluster::{TestCluster, number};
use imgsync_tests::fault::{FaultRegistry, RequestType};
use imgsync_tests::images::{self, TestImage};
use serde_json::{Value, json};

fn image(name: &str) -> TestImage {
    images::multi_platform(&format!("cluster-keep-{name}"))
}

#[tokio::test]
async fn a_cluster_removes_what_is_gone_keeps_what_it_overwrites_and_compares() {
    let cluster = TestCluster::start();
    let (source, target) = tokio::join!(FaultRegistry::start(), FaultRegistry::start());
    for tag in ["1", "2", "latest", "v1"] {
        source.push("app", tag, &image(tag));
    }
    target.push("m/app", "by-hand", &image("by-hand"));
    let config = format!(
        "rules:\n- {{from: {}/app, to: {}/m, naming: keep, immutable: 'v*', backup: '{{{{tag}}}}-before-{{{{date}}}}', \
         prune: {{keep_days: 0, limit: 50%}}}}\n",
        source.host(),
        target.host()
    );
    let _workers = cluster.start_workers(2, 4).await;
    let run = async |arguments: &[&str], code: i32| -> Value {
        cluster.imgsync(&config).args(arguments).arg("--json").run().await.assert_code(code).json()
    };
    let first = run(&["run"], 0).await;
    assert_eq!(number(&first, "/counts/copied"), 4, "{first}");

    // One tag is gone, one has moved, and one immutable tag has moved.
    source.delete_tag("app", "2");
    source.push("app", "latest", &image("newer"));
    source.push("app", "v1", &image("another"));
    let second = run(&["run"], 0).await;
    assert_eq!(second["pruned"][0]["outcome"], "removed", "{second}");
    assert_eq!(second["pruned"].as_array().map(Vec::len), Some(1), "{second}");
    assert_eq!(target.tag_digest("m/app", "2"), None);
    target.assert_holds("m/app", "by-hand", &image("by-hand"));
    target.assert_holds("m/app", "latest", &image("newer"));
    // An immutable tag is not requested at the source, so nobody notices.
    target.assert_holds("m/app", "v1", &image("v1"));
    let tags = target.tags("m/app");
    let backup = tags.iter().find(|tag| tag.starts_with("latest-before-")).unwrap_or_else(|| panic!("{tags:?}"));
    target.assert_holds("m/app", backup, &image("latest"));

    // Workers compare and write nothing.
    target.clear_requests();
    let verified = run(&["verify", "--deep"], 1).await;
    assert_eq!((number(&verified, "/counts/unchanged"), number(&verified, "/counts/failed")), (2, 1), "{verified}");
    assert_eq!(verified["failures"][0]["kind"], json!("differs"), "{verified}");
    assert_eq!(
        target.count(RequestType::ManifestPut)
            + target.count(RequestType::UploadStart)
            + target.count(RequestType::ManifestDelete),
        0
    );
    let id = first["batch"].as_str().unwrap();
    let again = run(&["verify", "--batch", id], 1).await;
    assert_eq!(number(&again, "/counts/total"), 4, "{again}");
}
