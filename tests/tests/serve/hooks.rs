//! Hooks: notifications of registries, and the copies of what was pushed.

use std::sync::Arc;
use std::time::{Duration, Instant};

use imgsync_store::{PushInbox as _, SqliteStore, SystemClock};
use imgsync_tests::fault::FaultRegistry;
use imgsync_tests::images::signing::CosignKey;
use imgsync_tests::images::{Layer, TestImage, multi_platform};
use imgsync_tests::program::Signal;
use imgsync_tests::serve_process::send_json;
use imgsync_tests::servers::{DockerRegistry, DockerRegistryOptions, free_port};
use imgsync_tests::{Imgsync, ServeProcess, TestCluster};
use serde_json::{Value, json};

mod edits;
mod failures;
mod rechecks;
mod requests;
mod scope;

const SECRET: &str = "a-secret-of-this-test";
const WAIT_TIMEOUT: Duration = Duration::from_secs(180);

/// Waits until a condition holds.
async fn wait_until(what: &str, condition: impl AsyncFn() -> bool) {
    let began = Instant::now();
    while !condition().await {
        assert!(began.elapsed() < WAIT_TIMEOUT, "not within {WAIT_TIMEOUT:?}: {what}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

fn image(name: &str) -> TestImage {
    TestImage::single(name).layer(Layer::File(400)).build()
}

/// A source and a target of the harness, and a program with a hook of the kind `generic`.
struct HookFixture {
    source: FaultRegistry,
    target: FaultRegistry,
    program: Imgsync,
}

impl HookFixture {
    /// Writes a configuration with the rule `apps` for all repositories below `apps`.
    async fn new(rule: &str) -> HookFixture {
        HookFixture::with_more(rule, "").await
    }

    /// The same with more lines of the configuration, in which SOURCE is the source.
    async fn with_more(rule: &str, more: &str) -> HookFixture {
        let (source, target) = tokio::join!(FaultRegistry::start(), FaultRegistry::start());
        let program = Imgsync::new();
        let config = format!(
            "rules:\n- {{name: apps, from: {0}/apps/**, to: {1}/m, naming: keep{rule}}}\nhooks:\n  pushes: {{registry: \
             {0}, kind: generic, secret: {SECRET}}}\n{more}",
            source.host(),
            target.host()
        );
        program.file("imgsync.yaml", config.replace("SOURCE", &source.host()));
        HookFixture { source, target, program }
    }

    async fn serve(&self) -> ServeProcess {
        ServeProcess::start(&self.program, &[]).await
    }

    /// Opens the store of the program, which does not run.
    async fn store(&self) -> SqliteStore {
        let state = self.program.state_dir().join("imgsync");
        SqliteStore::open(&state, Arc::new(SystemClock)).await.unwrap()
    }

    fn payload(&self, image: &str) -> Value {
        json!({"image": format!("{}/{image}", self.source.host())})
    }

    async fn notify(&self, served: &ServeProcess, image: &str) -> Value {
        let (status, answer) =
            send_json(served.notification("pushes").bearer_auth(SECRET).json(&self.payload(image))).await;
        assert_eq!(status, 202, "{answer:#}");
        answer
    }

    async fn wait_for_copy(&self, repository: &str, tag: &str, image: &TestImage) {
        let at = format!("m/{repository}");
        wait_until(&format!("{at}:{tag}"), async || self.target.tag_digest(&at, tag).as_deref() == Some(&*image.root))
            .await;
        self.target.assert_holds(&at, tag, image);
    }
}

/// Returns a metric of `serve`.
async fn metric(served: &ServeProcess, name: &str) -> f64 {
    let text = served.fetch("/metrics").await.text().await.unwrap();
    let line = text.lines().find(|line| line.strip_prefix(name).is_some_and(|rest| rest.starts_with(' ')));
    line.and_then(|line| line.rsplit(' ').next()?.parse().ok()).unwrap_or_else(|| panic!("{name} in\n{text}"))
}

async fn outcome(served: &ServeProcess, outcome: &str) -> f64 {
    metric(served, &format!("imgsync_hook_notifications_total{{outcome=\"{outcome}\"}}")).await
}

#[tokio::test]
async fn what_is_pushed_to_a_real_registry_is_at_the_target_without_a_schedule() {
    let port = free_port();
    let notify = Some((format!("http://127.0.0.1:{port}/hooks/pushes"), format!("Bearer {SECRET}")));
    let options = DockerRegistryOptions { notify, ..DockerRegistryOptions::default() };
    let (source, target) =
        tokio::join!(DockerRegistry::start_with(options), DockerRegistry::start_with(DockerRegistryOptions::default()));
    let program = Imgsync::new();
    let config = format!(
        "rules:\n- {{from: {0}/apps/**, to: {1}/m, naming: keep, tags: {{exclude: '*-dev'}}}}\nhooks:\n  pushes: \
         {{registry: '{0}', kind: distribution, secret: {SECRET}}}\n",
        source.host(),
        target.host()
    );
    program.file("imgsync.yaml", config);
    let served = ServeProcess::start(&program, &["--listen", &format!("127.0.0.1:{port}")]).await;
    // Tags that exist, and are not pushed, are left alone; what the rule does not select, too.
    let (first, platforms, moved) = (image("first"), multi_platform("platforms"), image("moved"));
    source.push("other/app", "1.0", &first).await;
    source.push("apps/web", "1.0-dev", &first).await;
    source.push("apps/web", "1.0", &first).await;
    wait_until("the first", async || target.tag_digest("m/apps/web", "1.0").await.is_some()).await;
    target.assert_holds("m/apps/web", "1.0", &first).await;
    source.push("apps/api", "2.0", &platforms).await;
    wait_until("two platforms", async || target.tag_digest("m/apps/api", "2.0").await.is_some()).await;
    target.assert_holds("m/apps/api", "2.0", &platforms).await;
    // The tag moves: what was there before is never taken for what was pushed.
    source.push("apps/web", "1.0", &moved).await;
    wait_until("the moved tag", async || target.tag_digest("m/apps/web", "1.0").await.as_deref() == Some(&*moved.root))
        .await;
    assert_eq!(target.tag_digest("m/apps/web", "1.0-dev").await, None);
    assert_eq!(target.tag_digest("m/other/app", "1.0").await, None);
    let count = |batches: &Value, name: &str| -> Vec<u64> {
        batches["batches"].as_array().unwrap().iter().map(|batch| batch["counts"][name].as_u64().unwrap()).collect()
    };
    let batches = served.wait_for("batches", |batches| count(batches, "copied").iter().sum::<u64>() >= 3).await;
    assert_eq!(count(&batches, "copied").iter().sum::<u64>(), 3, "{batches:#}");
    // What was pushed without a tag may have had a batch of its own, in which nothing was to do.
    assert!(count(&batches, "total").iter().all(|total| *total <= 1), "{batches:#}");
    for batch in batches["batches"].as_array().unwrap() {
        assert!(batch["title"].as_str().unwrap().starts_with("pushes to "), "{batch:#}");
    }
    assert!(outcome(&served, "accepted").await >= 3.0);
    assert!(outcome(&served, "unwanted").await >= 2.0);
    assert_eq!(outcome(&served, "secret").await, 0.0);
    served.stop().await.assert_code(0);
}

#[tokio::test]
async fn a_notification_says_where_to_look_and_only_with_its_secret() {
    let fixture = HookFixture::new(", tags: {exclude: '*-dev'}").await;
    let app = image("app");
    fixture.source.push("apps/a", "1", &app);
    fixture.source.push("apps/a", "2", &app);
    fixture.source.push("apps/a", "3-dev", &app);
    fixture.source.push("other/a", "1", &app);
    let served = fixture.serve().await;
    let post = |hook: &str| served.notification(hook).json(&fixture.payload("apps/a:1"));
    for (request, status) in [
        (post("pushes"), 401),
        (post("pushes").bearer_auth("another-secret-of-it"), 401),
        (post("pushes").bearer_auth(&served.token), 401),
        (post(&format!("pushes?secret={SECRET}")), 401),
        (post("nothing").bearer_auth(SECRET), 404),
        (served.notification("pushes").bearer_auth(SECRET).body("{\"image\""), 202),
        (served.notification("pushes").bearer_auth(SECRET).body("{\"events\": []}"), 202),
        (served.notification("pushes").bearer_auth(SECRET).body(vec![b' '; (1 << 20) + 1]), 202),
        (served.notification("pushes").bearer_auth(SECRET).header("host", "evil.example").json(&json!({})), 421),
    ] {
        let (got, answer) = send_json(request).await;
        assert_eq!(got, status, "{answer:#}");
        assert!(!answer.to_string().contains(SECRET));
        assert!(answer["error"]["message"].is_string(), "{answer:#}");
    }
    let refused = [("secret", 4.0), ("unknown_hook", 1.0), ("malformed", 2.0), ("too_large", 1.0), ("host", 1.0)];
    for (name, number) in refused.into_iter().chain([("accepted", 0.0)]) {
        assert_eq!(outcome(&served, name).await, number, "{name}");
    }
    // The secret of a hook opens nothing else.
    let request = served.request(reqwest::Method::POST, "rules/apps/start").bearer_auth(SECRET);
    assert_eq!(send_json(request).await.0, 401);
    // Names are data: what is none, or of another registry, is refused, and the others count.
    let images = [
        format!("{}/apps/a:1", fixture.source.host()),
        format!("{}/apps/../other/a:1", fixture.source.host()),
        format!("{}/apps/a:{}", fixture.source.host(), "x".repeat(200)),
        "evil.example/apps/a:1".to_owned(),
        format!("{}/apps/a:3-dev", fixture.source.host()),
        format!("{}/other/a:1", fixture.source.host()),
        "nothing".to_owned(),
    ];
    let request = served.notification("pushes").bearer_auth(SECRET).json(&json!({"images": images}));
    let (status, answer) = send_json(request).await;
    let wanted = json!({"accepted": 1, "coalesced": 0, "repeated": 0, "unwanted": 2, "refused": 4});
    assert_eq!((status, answer), (202, wanted));
    assert_eq!((outcome(&served, "foreign_host").await, outcome(&served, "invalid_name").await), (1.0, 3.0));
    fixture.wait_for_copy("apps/a", "1", &app).await;
    let batches = served.wait_for_ended_batches(1).await;
    assert_eq!((batches.len(), &batches[0]["counts"]["total"]), (1, &1.into()), "{batches:#?}");
    assert_eq!(fixture.target.tags_in_all(), 1);
    let (_, config) = served.get("status").await;
    assert!(!config.to_string().contains(SECRET));
    let output = served.stop().await.assert_code(0);
    assert!(!output.stderr.contains(SECRET), "{}", output.stderr);
}

#[tokio::test]
async fn a_repeated_notification_copies_nothing_and_a_tag_that_is_not_set_yet_is_waited_for() {
    let fixture = HookFixture::new("").await;
    let app = image("app");
    fixture.source.push_untagged("apps/a", &app);
    let served = fixture.serve().await;
    let payload = json!({"id": "7", "image": format!("{}/apps/a:1@{}", fixture.source.host(), app.root)});
    let send = || send_json(served.notification("pushes").bearer_auth(SECRET).json(&payload));
    assert_eq!(send().await.1["accepted"], 1);
    // The registry notifies before it sets the tag, as distribution does.
    wait_until("it is asked again", async || metric(&served, "imgsync_hook_tag_waits_total").await >= 2.0).await;
    fixture.source.move_tag("apps/a", "1", &app.root);
    fixture.wait_for_copy("apps/a", "1", &app).await;
    wait_until("nothing is pending", async || metric(&served, "imgsync_hook_pending_pushes").await == 0.0).await;
    let (requests, batches) = (fixture.source.total(), served.wait_for_ended_batches(1).await.len());
    assert_eq!(send().await.1["repeated"], 1);
    assert_eq!(send().await.1["repeated"], 1);
    wait_until("nothing is pending", async || metric(&served, "imgsync_hook_pending_pushes").await == 0.0).await;
    assert_eq!(fixture.source.total(), requests);
    assert_eq!(served.wait_for_ended_batches(1).await.len(), batches);
    served.stop().await.assert_code(0);
}

#[tokio::test]
async fn the_limits_of_a_rule_hold_for_pushed_tags() {
    let fixture = HookFixture::new(", tags: {newest: 2}").await;
    for tag in ["1.0", "1.1", "1.2"] {
        fixture.source.push("apps/a", tag, &image(tag));
    }
    let served = fixture.serve().await;
    fixture.notify(&served, "apps/a:1.0").await;
    fixture.notify(&served, "apps/b:1.0").await;
    fixture.notify(&served, "apps/a:1.2").await;
    fixture.wait_for_copy("apps/a", "1.2", &image("1.2")).await;
    served.wait_for_ended_batches(1).await;
    assert_eq!(fixture.target.tags_in_all(), 1, "1.1 was not pushed, and 1.0 is not among the newest");
    served.stop().await.assert_code(0);
}

#[tokio::test]
async fn a_signature_or_a_referrer_is_copied_to_the_image_that_it_names() {
    let fixture = HookFixture::new("").await;
    let (app, other) = (image("app"), image("other"));
    fixture.source.push("apps/a", "1", &app);
    fixture.source.push("apps/a", "2", &other);
    let served = fixture.serve().await;
    fixture.notify(&served, "apps/a:1").await;
    fixture.wait_for_copy("apps/a", "1", &app).await;
    served.wait_for_ended_batches(1).await;
    let (signature, sbom) = (image("signature"), TestImage::single("sbom").subject(&app).artifact("text/spdx").build());
    let tag = app.digest_tag("sig");
    fixture.source.push("apps/a", &tag, &signature);
    fixture.source.push_untagged("apps/a", &sbom);
    let images = [format!("apps/a:{tag}"), format!("apps/a@{}", sbom.root)];
    let images = images.map(|image| format!("{}/{image}", fixture.source.host()));
    let request = served.notification("pushes").bearer_auth(SECRET).json(&json!({"images": images}));
    assert_eq!(send_json(request).await.0, 202);
    wait_until("the signature", async || fixture.target.tag_digest("m/apps/a", &tag).is_some()).await;
    wait_until("the referrer", async || fixture.target.manifest("m/apps/a", &sbom.root).is_some()).await;
    let batches = served.wait_for_ended_batches(2).await;
    assert_eq!((batches.len(), &batches[0]["counts"]["total"]), (2, &1.into()), "one task for both: {batches:#?}");
    assert_eq!(fixture.target.tag_digest("m/apps/a", "2"), None, "it was not named");
    served.stop().await.assert_code(0);
}

#[tokio::test]
async fn an_image_that_is_signed_after_its_push_arrives_by_itself_and_an_unsigned_one_never() {
    let fixture = HookFixture::new(", policy: {signed: {keys: cosign.pub}}").await;
    let key = CosignKey::new();
    fixture.program.file("cosign.pub", key.public());
    let images = ["notified", "checked again", "unsigned"].map(image);
    let served = fixture.serve().await;
    for (number, image) in images.iter().enumerate() {
        fixture.source.push("apps/a", &number.to_string(), image);
        fixture.notify(&served, &format!("apps/a:{number}")).await;
    }
    let is_refused = |value: &Value| {
        let batches = value["batches"].as_array().unwrap();
        batches.iter().map(|batch| batch["counts"]["failed"].as_u64().unwrap()).sum::<u64>() >= 3
    };
    served.wait_for("batches", is_refused).await;
    assert_eq!(fixture.target.tags_in_all(), 0);
    // A registry that notifies of signatures.
    let signature = images[0].digest_tag("sig");
    fixture.source.push("apps/a", &signature, &key.sign_simply(&images[0].root));
    fixture.notify(&served, &format!("apps/a:{signature}")).await;
    fixture.wait_for_copy("apps/a", "0", &images[0]).await;
    // One that does not: the images are checked again, also by the next process. A minute passes.
    wait_until("three wait", async || metric(&served, "imgsync_hook_pending_pushes").await == 3.0).await;
    served.stop().await.assert_code(0);
    fixture.source.push("apps/a", &images[1].digest_tag("sig"), &key.sign_simply(&images[1].root));
    let store = fixture.store().await;
    let pending = store.pending_pushes().await.unwrap();
    assert!(pending.iter().all(|push| push.postponed.checks >= 1 && push.not_before.is_some()), "{pending:#?}");
    store.postpone_pushes(&pending, jiff::Timestamp::now()).await.unwrap();
    drop(store);
    let served = fixture.serve().await;
    fixture.wait_for_copy("apps/a", "1", &images[1]).await;
    wait_until("one waits at most", async || metric(&served, "imgsync_hook_pending_pushes").await <= 1.0).await;
    assert_eq!(fixture.target.tag_digest("m/apps/a", "2"), None);
    served.stop().await.assert_code(0);
}

#[tokio::test]
async fn rules_that_form_a_circle_do_not_copy_their_own_copies() {
    let (one, other) = tokio::join!(FaultRegistry::start(), FaultRegistry::start());
    let program = Imgsync::new();
    let config = format!(
        "rules:\n- {{name: there, from: {0}/**, to: {1}, naming: keep, platforms: linux/amd64}}\n- {{name: back, from: \
         {1}/**, to: {0}, naming: keep}}\nhooks:\n  one: {{registry: {0}, kind: generic, secret: {SECRET}}}\n  other: \
         {{registry: {1}, kind: generic, secret: {SECRET}}}\n",
        one.host(),
        other.host()
    );
    program.file("imgsync.yaml", config);
    let app = multi_platform("app");
    one.push("app", "1", &app);
    let served = ServeProcess::start(&program, &[]).await;
    let notify = async |hook: &str, registry: &FaultRegistry| {
        let payload = json!({"image": format!("{}/app:1", registry.host())});
        assert_eq!(send_json(served.notification(hook).bearer_auth(SECRET).json(&payload)).await.0, 202);
    };
    notify("one", &one).await;
    wait_until("the copy", async || other.tag_digest("app", "1").is_some()).await;
    assert_ne!(other.tag_digest("app", "1"), Some(app.root.clone()), "one platform only");
    notify("other", &other).await;
    wait_until("the circle", async || outcome(&served, "loop").await >= 1.0).await;
    served.wait_for_ended_batches(2).await;
    assert_eq!(one.tag_digest("app", "1"), Some(app.root.clone()));
    // What somebody pushes there is copied back.
    let pushed = image("pushed");
    other.push("app", "1", &pushed);
    notify("other", &other).await;
    wait_until("what was pushed", async || one.tag_digest("app", "1").as_deref() == Some(&*pushed.root)).await;
    let output = served.stop().await.assert_code(0);
    assert!(output.stderr.contains("the rules form a circle"), "{}", output.stderr);
}

#[tokio::test]
async fn in_a_cluster_any_coordinator_receives_and_the_leader_copies() {
    let mut cluster = TestCluster::start();
    let port = free_port();
    let notify = Some((format!("http://127.0.0.1:{port}/hooks/pushes"), format!("Bearer {SECRET}")));
    let options = DockerRegistryOptions { notify, ..DockerRegistryOptions::default() };
    let (source, target) =
        tokio::join!(DockerRegistry::start_with(options), DockerRegistry::start_with(DockerRegistryOptions::default()));
    let config = format!(
        "rules:\n- {{from: {0}/apps/**, to: {1}/m, naming: keep}}\nhooks:\n  pushes: {{registry: '{0}', kind: \
         distribution, secret: {SECRET}}}\n",
        source.host(),
        target.host()
    );
    let _workers = cluster.start_workers(3, 4).await;
    let mut leader = ServeProcess::start(&cluster.imgsync(&config), &[]).await;
    let listen = format!("127.0.0.1:{port}");
    let standby = ServeProcess::start(&cluster.imgsync(&config), &["--listen", &listen]).await;
    standby.running.wait_for_line(|line| line.contains("standby"), WAIT_TIMEOUT).await;
    let (first, second, third) = (image("first"), image("second"), image("third"));
    let wait_for = async |repository: &str, image: &TestImage| {
        let at = format!("m/{repository}");
        wait_until(&at, async || target.tag_digest(&at, "1").await.as_deref() == Some(&*image.root)).await;
        target.assert_holds(&at, "1", image).await;
    };
    source.push("apps/a", "1", &first).await;
    wait_for("apps/a", &first).await;
    assert_eq!(outcome(&standby, "accepted").await, 1.0);
    assert_eq!(outcome(&leader, "accepted").await, 0.0);
    // The batch is counted after it has begun.
    wait_until("the batch", async || metric(&leader, "imgsync_hook_batches_total").await >= 1.0).await;

    // What another version has stored stays, and holds up nothing.
    let pushes = cluster.store.cli(&["KEYS", "*push_ids"]).trim().replace("push_ids", "pushes");
    cluster.store.cli(&["SADD", &pushes, "later"]);
    let key = "r.example/a (a later kind)";
    assert_eq!(cluster.store.cli(&["HSET", &format!("{pushes}:later"), key, "1|1|1|0|0|"]).trim(), "1");
    wait_until("it is counted", async || metric(&leader, "imgsync_hook_unreadable_pushes").await == 1.0).await;

    // Without the store, the sender is told to send again, and does.
    cluster.store.kill();
    source.push("apps/b", "1", &second).await;
    wait_until("the answer 503", async || outcome(&standby, "store").await >= 1.0).await;
    cluster.store.restart();
    wait_for("apps/b", &second).await;

    // The next leader copies what was confirmed before.
    leader.running.signal(Signal::KILL);
    leader.running.wait().await;
    source.push("apps/c", "1", &third).await;
    wait_for("apps/c", &third).await;
    let (_, batches) = standby.get("batches").await;
    for batch in batches["batches"].as_array().unwrap() {
        assert_eq!(batch["counts"]["failed"], 0, "{batch:#}");
    }
    standby.stop().await.assert_code(0);
}
