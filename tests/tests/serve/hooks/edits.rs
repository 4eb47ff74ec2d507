//! Rules that are edited while their pushes wait, and coordinators that have other rules.

use imgsync_store::PushRule;

use super::*;

#[tokio::test]
async fn a_pending_run_of_a_whole_rule_goes_to_the_edited_rule_of_its_name() {
    let fixture = HookFixture::new("").await;
    let app = image("app");
    for tag in ["1", "2", "3-dev"] {
        fixture.source.push("apps/a", tag, &app);
    }
    let store = fixture.store().await;
    let old = |id: &str, name: &str| PushRule { id: id.to_owned(), name: name.to_owned() };
    store.add_whole_runs(vec![old("0123456789ab", "apps"), old("ba9876543210", "unknown")]).await.unwrap();
    drop(store);
    let served = fixture.serve().await;
    for tag in ["1", "2", "3-dev"] {
        fixture.wait_for_copy("apps/a", tag, &app).await;
    }
    assert!(metric(&served, "imgsync_hook_whole_rules_total").await >= 1.0);
    // Another coordinator may have the other rule.
    wait_until("one rests", async || metric(&served, "imgsync_hook_pending_pushes").await == 1.0).await;
    assert_eq!(outcome(&served, "rule_gone").await, 0.0);
    served.stop().await.assert_code(0);
}

#[tokio::test]
async fn a_leader_that_has_the_former_rule_leaves_pushes_to_one_that_has_the_edited_rule() {
    let cluster = TestCluster::start();
    let (source, target) = tokio::join!(FaultRegistry::start(), FaultRegistry::start());
    let config = |folder: &str| {
        format!(
            "rules:\n- {{name: apps, from: {0}/apps/**, to: {1}/{folder}, naming: keep}}\nhooks:\n  pushes: {{registry: \
             {0}, kind: generic, secret: {SECRET}}}\n",
            source.host(),
            target.host()
        )
    };
    let app = image("app");
    source.push("apps/a", "1", &app);
    let mut leader = ServeProcess::start(&cluster.imgsync(&config("old")), &[]).await;
    let standby = ServeProcess::start(&cluster.imgsync(&config("new")), &[]).await;
    standby.running.wait_for_line(|line| line.contains("standby"), WAIT_TIMEOUT).await;
    let payload = json!({"image": format!("{}/apps/a:1", source.host())});
    let (status, answer) = send_json(standby.notification("pushes").bearer_auth(SECRET).json(&payload)).await;
    assert_eq!((status, &answer["accepted"]), (202, &json!(1)), "{answer:#}");
    wait_until("the leader sees it", async || metric(&leader, "imgsync_hook_pending_pushes").await == 1.0).await;
    assert_eq!(target.tags_in_all(), 0);
    let _workers = cluster.start_workers(1, 2).await;
    leader.running.signal(Signal::KILL);
    leader.running.wait().await;
    wait_until("the copy", async || target.tag_digest("new/apps/a", "1").as_deref() == Some(&*app.root)).await;
    assert_eq!(target.tags_in_all(), 1, "nothing is copied by the former rule");
    standby.stop().await.assert_code(0);
}
