//! What else hooks trigger: rules that name images, and the grace period of `prune`; and where their batches are shown.

use imgsync_model::batch::{PushedReference, RepositoryLocator};
use imgsync_store::ProvenanceStore as _;
use imgsync_tests::fault::{FaultAction, RequestMatcher, RequestType};

use super::*;

#[tokio::test]
async fn a_push_of_an_image_that_a_rule_names_triggers_the_rule() {
    let (source, target) = tokio::join!(FaultRegistry::start(), FaultRegistry::start());
    let program = Imgsync::new();
    let config = format!(
        "rules:\n- {{name: deployed, images: deploy, to: {1}/m, naming: keep}}\nhooks:\n  pushes: {{registry: {0}, kind: \
         generic, secret: {SECRET}, rules: [deployed]}}\n",
        source.host(),
        target.host()
    );
    program.file("imgsync.yaml", config);
    let (app, pinned, other) = (image("app"), image("pinned"), image("other"));
    let pod = format!(
        "apiVersion: v1\nkind: Pod\nmetadata: {{name: a}}\nspec:\n  containers:\n  - {{name: a, image: \"{0}/team/app:1\"}}\n  \
         - {{name: b, image: \"{0}/team/tool@{1}\"}}\n",
        source.host(),
        pinned.root
    );
    std::fs::create_dir_all(program.work_dir().join("deploy")).unwrap();
    program.file("deploy/pod.yaml", pod);
    let served = ServeProcess::start(&program, &[]).await;
    source.push("team/app", "1", &app);
    source.push("team/app", "2", &other);
    source.push("team/tool", "latest", &pinned);
    source.push("team/other", "1", &other);
    let images = [
        "team/app:1".to_owned(),
        "team/app:2".to_owned(),
        format!("team/tool:latest@{}", pinned.root),
        "team/other:1".to_owned(),
    ];
    let images = images.map(|image| format!("{}/{image}", source.host()));
    let request = served.notification("pushes").bearer_auth(SECRET).json(&json!({"images": images}));
    assert_eq!(send_json(request).await.0, 202);
    wait_until("the tag", async || target.tag_digest("m/team/app", "1").as_deref() == Some(&*app.root)).await;
    wait_until("the digest", async || target.tags("m/team/tool").len() == 1).await;
    wait_until("nothing is pending", async || metric(&served, "imgsync_hook_pending_pushes").await == 0.0).await;
    assert_eq!((target.tags_in_all(), target.tags("m/team/app")), (2, vec!["1".to_owned()]));
    target.assert_tags_complete();
    served.stop().await.assert_code(0);
}

#[tokio::test]
async fn the_history_of_a_rule_has_the_batches_that_pushes_started() {
    let fixture = HookFixture::new("").await;
    let app = image("app");
    fixture.source.push("apps/a", "1", &app);
    let served = fixture.serve().await;
    fixture.notify(&served, "apps/a:1").await;
    fixture.wait_for_copy("apps/a", "1", &app).await;
    served.wait_for_ended_batches(1).await;
    assert_eq!(served.post("rules/apps/start", &json!({})).await.0, 202);
    let batches = served.wait_for_ended_batches(2).await;
    let (_, history) = served.get("rules/apps/history").await;
    let runs: Vec<(&Value, &Value)> =
        history["runs"].as_array().unwrap().iter().map(|run| (&run["batch"], &run["pushed"])).collect();
    assert_eq!(runs, [(&batches[0]["batch"], &json!(false)), (&batches[1]["batch"], &json!(true))], "{history:#}");
    let (_, of_rule) = served.get("batches?rule=apps").await;
    assert_eq!(of_rule["batches"].as_array().unwrap().len(), 2, "{of_rule:#}");
    served.stop().await.assert_code(0);
}

#[tokio::test]
async fn a_deletion_begins_the_grace_period_and_removes_nothing() {
    let fixture = HookFixture::new(", prune: {keep_days: 0, limit: 100%}").await;
    let config = std::fs::read_to_string(fixture.program.work_dir().join("imgsync.yaml")).unwrap();
    let hook = format!("  registry: {{registry: {}, kind: distribution, secret: {SECRET}}}\n", fixture.source.host());
    fixture.program.file("imgsync.yaml", format!("{config}{hook}"));
    let app = image("app");
    for tag in ["1", "2"] {
        fixture.source.push("apps/a", tag, &app);
    }
    let served = fixture.serve().await;
    let start = async || assert_eq!(served.post("rules/apps/start", &json!({})).await.0, 202);
    start().await;
    served.wait_for_ended_batches(1).await;
    fixture.source.delete_tag("apps/a", "2");
    let deletion = json!({"events": [{"id": "1", "action": "delete", "target": {"repository": "apps/a", "tag": "2"}}]});
    let (status, answer) = send_json(served.notification("registry").bearer_auth(SECRET).json(&deletion)).await;
    assert_eq!((status, &answer["accepted"]), (202, &json!(1)), "{answer:#}");
    let store = fixture.store().await;
    let home = RepositoryLocator::in_registry(fixture.source.host().parse().unwrap(), &"apps/a".parse().unwrap());
    let missing = async || -> Vec<String> {
        let made = store.provenance_by_source(&home).await.unwrap();
        made.iter().filter(|made| made.missing_since.is_some()).map(|made| made.source_tag.to_string()).collect()
    };
    wait_until("it is missing", async || missing().await == ["2"]).await;
    served.wait_for_ended_batches(2).await;
    assert_eq!(fixture.target.tags("m/apps/a"), ["1", "2"], "a hook removes nothing");
    assert_eq!(outcome(&served, "deletion").await, 1.0);
    start().await;
    served.wait_for_ended_batches(3).await;
    wait_until("the run removes it", async || fixture.target.tags("m/apps/a") == ["1"]).await;
    served.stop().await.assert_code(0);
}

#[tokio::test]
async fn a_listing_that_a_deletion_needs_holds_up_no_push() {
    let hook = format!("  registry: {{registry: SOURCE, kind: distribution, secret: {SECRET}}}\n");
    let fixture = HookFixture::with_more(", prune: {keep_days: 0, limit: 100%}", &hook).await;
    let app = image("app");
    fixture.source.push("apps/a", "1", &app);
    let served = fixture.serve().await;
    // A tag that is pushed and deleted together with another one.
    let notify = async |id: &str, repository: &str| {
        let event = |action: &str, tag: &str| {
            let target = json!({"repository": repository, "tag": tag});
            json!({"id": format!("{id}-{action}"), "action": action, "target": target})
        };
        let events = json!({"events": [event("push", "1"), event("delete", "2")]});
        let (status, answer) = send_json(served.notification("registry").bearer_auth(SECRET).json(&events)).await;
        assert_eq!((status, &answer["accepted"]), (202, &json!(2)), "{answer:#}");
    };
    notify("a", "apps/gone").await;
    let batches = served.wait_for_ended_batches(1).await;
    assert_eq!(batches[0]["unlisted"], json!(0), "the repository is deleted: {batches:#?}");

    let listing = RequestMatcher::kind(RequestType::Tags).repository("apps/a");
    let held = fixture.source.on(listing).always().act(FaultAction::status(403));
    notify("b", "apps/a").await;
    fixture.wait_for_copy("apps/a", "1", &app).await;
    let store = fixture.store().await;
    let pending = async || -> Vec<PushedReference> {
        let pushed = store.pending_pushes().await.unwrap().into_iter().filter_map(|push| push.pushed);
        pushed.filter(|(_, repository, _)| repository.as_str() == "apps/a").map(|(_, _, reference)| reference).collect()
    };
    wait_until("the deletion alone waits", async || pending().await == [PushedReference::Deletion]).await;
    held.remove();
    served.stop().await.assert_code(0);
}

#[tokio::test]
async fn a_tag_that_is_back_or_not_there_yet_has_no_grace_period() {
    let hook = format!("  registry: {{registry: SOURCE, kind: distribution, secret: {SECRET}}}\n");
    let fixture = HookFixture::with_more(", prune: {keep_days: 1, limit: 100%}", &hook).await;
    let app = image("app");
    for tag in ["1", "2", "3"] {
        fixture.source.push("apps/a", tag, &app);
    }
    let served = fixture.serve().await;
    assert_eq!(served.post("rules/apps/start", &json!({})).await.0, 202);
    served.wait_for_ended_batches(1).await;
    let store = fixture.store().await;
    let home = RepositoryLocator::in_registry(fixture.source.host().parse().unwrap(), &"apps/a".parse().unwrap());
    let missing = async || -> Vec<String> {
        let made = store.provenance_by_source(&home).await.unwrap();
        made.iter().filter(|made| made.missing_since.is_some()).map(|made| made.source_tag.to_string()).collect()
    };
    let notify = async |id: &str, events: &[(&str, &str)]| {
        let event = |(number, (action, tag)): (usize, &(&str, &str))| {
            let target = json!({"repository": "apps/a", "tag": tag, "digest": app.root});
            json!({"id": format!("{id}-{number}"), "action": action, "target": target})
        };
        let events: Vec<Value> = events.iter().enumerate().map(event).collect();
        let request = served.notification("registry").bearer_auth(SECRET).json(&json!({"events": events}));
        let (status, answer) = send_json(request).await;
        assert_eq!((status, &answer["accepted"]), (202, &json!(events.len())), "{answer:#}");
    };
    // Deleted, and restored with the same digest: nothing is copied.
    fixture.source.delete_tag("apps/a", "2");
    notify("gone", &[("delete", "2")]).await;
    wait_until("it is missing", async || missing().await == ["2"]).await;
    served.wait_for_ended_batches(2).await;
    fixture.source.move_tag("apps/a", "2", &app.root);
    notify("back", &[("push", "2")]).await;
    let batches = served.wait_for_ended_batches(3).await;
    assert_eq!(batches[0]["counts"]["unchanged"], json!(1), "{batches:#?}");
    assert_eq!(missing().await, Vec::<String>::new());

    // The registry notifies before it sets the tag, together with a deletion.
    for tag in ["1", "3"] {
        fixture.source.delete_tag("apps/a", tag);
    }
    notify("late", &[("push", "3"), ("delete", "1")]).await;
    served.wait_for_ended_batches(4).await;
    assert_eq!(missing().await, ["1"]);
    fixture.source.move_tag("apps/a", "3", &app.root);
    wait_until("nothing is pending", async || metric(&served, "imgsync_hook_pending_pushes").await == 0.0).await;
    assert_eq!(missing().await, ["1"]);
    served.stop().await.assert_code(0);
}

/// A rule that names its images in a list, and nothing else starts it.
async fn serve_list(list: Option<&str>) -> (HookFixture, ServeProcess) {
    let (source, target) = tokio::join!(FaultRegistry::start(), FaultRegistry::start());
    let fixture = HookFixture { source, target, program: Imgsync::new() };
    fixture.program.file("imgsync.yaml", list_config(&fixture));
    for (repository, tag) in [("team/app", "1"), ("team/new", "1"), ("team/other", "1")] {
        fixture.source.push(repository, tag, &image(repository));
    }
    if let Some(list) = list {
        fixture.program.file("images.txt", list.replace("SOURCE", &fixture.source.host()));
    }
    let served = fixture.serve().await;
    (fixture, served)
}

fn list_config(fixture: &HookFixture) -> String {
    format!(
        "rules:\n- {{name: listed, images: images.txt, to: {1}/m, naming: keep}}\nhooks:\n  pushes: {{registry: {0}, kind: \
         generic, secret: {SECRET}}}\n",
        fixture.source.host(),
        fixture.target.host()
    )
}

#[tokio::test]
async fn a_new_image_of_a_list_is_wanted_at_once_and_a_reload_forgets_none() {
    let (fixture, served) = serve_list(Some("SOURCE/team/app:1\n")).await;
    let accepted = |answer: &Value| (answer["accepted"].as_u64().unwrap(), answer["unwanted"].as_u64().unwrap());
    assert_eq!(accepted(&fixture.notify(&served, "team/new:1").await), (0, 1));
    let list = "SOURCE/team/app:1\nSOURCE/team/new:1\n".replace("SOURCE", &fixture.source.host());
    fixture.program.file("images.txt", &list);
    assert_eq!(accepted(&fixture.notify(&served, "team/new:1").await), (1, 0));
    fixture.wait_for_copy("team/new", "1", &image("team/new")).await;
    served.wait_for_ended_batches(1).await;

    // The list is gone when the configuration is loaded again: what it named last counts, and nothing else.
    std::fs::remove_file(fixture.program.work_dir().join("images.txt")).unwrap();
    fixture.program.file("imgsync.yaml", format!("# changed\n{}", list_config(&fixture)));
    served.running.wait_for_line(|line| line.contains("configuration reloaded"), WAIT_TIMEOUT).await;
    assert_eq!(accepted(&fixture.notify(&served, "team/other:1").await), (0, 1));
    fixture.program.file("images.txt", &list);
    assert_eq!(accepted(&fixture.notify(&served, "team/app:1").await), (1, 0));
    fixture.wait_for_copy("team/app", "1", &image("team/app")).await;
    assert_eq!(fixture.target.tags_in_all(), 2);
    served.stop().await.assert_code(0);
}

#[tokio::test]
async fn pushes_wait_as_one_run_of_the_rule_until_a_list_can_be_read() {
    let (fixture, served) = serve_list(None).await;
    for image in ["team/app:1", "team/new:1", "team/other:1"] {
        assert_eq!(fixture.notify(&served, image).await["accepted"], 1);
    }
    wait_until("one run waits", async || metric(&served, "imgsync_hook_pending_pushes").await == 1.0).await;
    served.running.wait_for_line(|line| line.contains("images.txt") && line.contains("wait"), WAIT_TIMEOUT).await;
    // Longer than a run of the whole rule waits for others.
    tokio::time::sleep(Duration::from_secs(7)).await;
    assert!(served.get("batches").await.1["batches"].as_array().unwrap().is_empty());
    let list = "SOURCE/team/app:1\nSOURCE/team/new:1\n".replace("SOURCE", &fixture.source.host());
    fixture.program.file("images.txt", list);
    for name in ["team/app", "team/new"] {
        fixture.wait_for_copy(name, "1", &image(name)).await;
    }
    wait_until("nothing is pending", async || metric(&served, "imgsync_hook_pending_pushes").await == 0.0).await;
    assert_eq!(served.wait_for_ended_batches(1).await.len(), 1);
    assert_eq!(fixture.target.tags_in_all(), 2);
    served.stop().await.assert_code(0);
}
