//! Rules whose images are named in files: they run when the files change.

use std::time::Duration;

use imgsync_tests::program::Signal;
use imgsync_tests::{ServeProcess, TestCluster};

use crate::support::ServeFixture;

const WAIT_TIMEOUT: Duration = Duration::from_secs(60);

/// Writes a configuration with a rule for the files, and returns it.
fn config(fixture: &ServeFixture) -> String {
    format!(
        "rules:\n- {{name: listed, images: [images.txt, manifests/], to: {}/m, naming: keep, schedule: {{every: 24h}}}}\n",
        fixture.target.host()
    )
}

/// Writes the list of images.
fn list(fixture: &ServeFixture, images: &[&str]) {
    let lines: String = images.iter().map(|image| format!("{}/{image}\n", fixture.source.host())).collect();
    fixture.program.file("images.txt", lines);
}

#[tokio::test]
async fn a_changed_list_and_a_new_manifest_start_their_rule() {
    let fixture = ServeFixture::new(&["a", "b", "c"], 2).await;
    std::fs::create_dir_all(fixture.program.work_dir().join("manifests")).unwrap();
    fixture.write(&config(&fixture));
    list(&fixture, &["a:v0"]);
    let served = ServeProcess::start(&fixture.program, &[]).await;
    served.wait_for_ended_batches(1).await;
    assert_eq!(fixture.target.tags("m/a"), ["v0"]);

    list(&fixture, &["a:v0", "b:v1"]);
    let batches = served.wait_for_ended_batches(2).await;
    assert_eq!((&batches[0]["title"], &batches[0]["counts"]["copied"]), (&"listed".into(), &1.into()), "{batches:#?}");
    assert_eq!(fixture.target.tags("m/b"), ["v1"]);
    served
        .running
        .wait_for_line(|line| line.contains("listed") && line.contains("files have changed"), WAIT_TIMEOUT)
        .await;

    // A new file in a folder, and a file that is replaced.
    let manifest = format!("kind: Pod\nspec: {{containers: [{{name: c, image: '{}/c:v0'}}]}}\n", fixture.source.host());
    std::fs::remove_file(fixture.program.work_dir().join("images.txt")).unwrap();
    fixture.program.file("manifests/c.yaml", manifest);
    list(&fixture, &["a:v0", "b:v1", "a:v1"]);
    let done = |batches: &serde_json::Value| {
        let all = batches["batches"].as_array().unwrap();
        all.iter().all(|batch| !batch["ended"].is_null())
            && fixture.target.tags("m/c") == ["v0"]
            && fixture.target.tags("m/a") == ["v0", "v1"]
    };
    served.wait_for("batches", done).await;
    served.stop().await.assert_code(0);
}

#[tokio::test]
async fn a_list_that_changes_while_nothing_serves_is_copied_by_the_next_process() {
    let fixture = ServeFixture::new(&["a"], 2).await;
    std::fs::create_dir_all(fixture.program.work_dir().join("manifests")).unwrap();
    fixture.write(&config(&fixture));
    list(&fixture, &["a:v0"]);
    let served = ServeProcess::start(&fixture.program, &[]).await;
    served.wait_for_ended_batches(1).await;
    served.stop().await.assert_code(0);

    list(&fixture, &["a:v0", "a:v1"]);
    let served = ServeProcess::start(&fixture.program, &[]).await;
    served.wait_for_ended_batches(2).await;
    assert_eq!(fixture.target.tags("m/a"), ["v0", "v1"]);
    served.stop().await.assert_code(0);

    let explained =
        fixture.program.again().args(["explain"]).arg(format!("{}/a:v1", fixture.source.host())).run().await;
    let explained = explained.assert_code(0).stdout;
    assert!(
        explained
            .contains("rule 1 listed (line 2, images of images.txt, manifests/): selected, named at images.txt:2\n"),
        "{explained}"
    );
}

#[tokio::test]
async fn in_a_cluster_the_leader_starts_the_rule_and_its_successor_finds_what_changed_meanwhile() {
    let cluster = TestCluster::start();
    let mut fixture = ServeFixture::new(&["a"], 3).await;
    let _workers = cluster.start_workers(1, 2).await;
    let config = config(&fixture);
    fixture.program = cluster.imgsync(&config);
    std::fs::create_dir_all(fixture.program.work_dir().join("manifests")).unwrap();
    list(&fixture, &["a:v0"]);
    let mut first = ServeProcess::start(&fixture.program, &[]).await;
    first.wait_for_ended_batches(1).await;
    list(&fixture, &["a:v0", "a:v1"]);
    first.wait_for_ended_batches(2).await;
    assert_eq!(fixture.target.tags("m/a"), ["v0", "v1"]);

    first.running.signal(Signal::KILL);
    first.running.wait().await;
    list(&fixture, &["a:v0", "a:v1", "a:v2"]);
    let second = ServeProcess::start(&fixture.program, &[]).await;
    second.wait_for_ended_batches(3).await;
    assert_eq!(fixture.target.tags("m/a"), ["v0", "v1", "v2"]);
    second.stop().await.assert_code(0);
}
