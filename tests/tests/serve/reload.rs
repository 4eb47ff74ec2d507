//! Reloading the configuration while serving.

use std::time::{Duration, Instant};

use imgsync_tests::ServeProcess;
use imgsync_tests::program::Signal;
use imgsync_tests::servers::WebhookReceiver;
use serde_json::json;

use crate::support::ServeFixture;

const WAIT_TIMEOUT: Duration = Duration::from_secs(60);

#[tokio::test]
async fn a_changed_configuration_holds_and_a_wrong_one_leaves_the_one_before() {
    let fixture = ServeFixture::new(&["a", "b"], 1).await;
    let served = fixture.serve(&[("a", "{every: 1h}")]).await;
    served.wait_for_ended_batches(1).await;

    let config = fixture.config(&[("a", "{every: 1h}"), ("b", "{every: 1h}")]);
    fixture.write(&config.replace("naming: keep", "namign: keep"));
    served.running.wait_for_line(|line| line.contains("the previous one stays in use"), WAIT_TIMEOUT).await;
    let status = served.wait_for("status", |status| status["configuration"]["error"].is_string()).await;
    let error = status["configuration"]["error"].as_str().unwrap();
    assert!(error.contains("did you mean `naming`?") && error.contains("imgsync.yaml"), "{error}");
    assert_eq!(status["configuration"]["rules"], 1);
    served.get("schedules").await;

    fixture.write(&config);
    let status = served.wait_for("status", |status| status["configuration"]["error"].is_null()).await;
    assert_eq!(status["configuration"]["rules"], 2);
    let batches = served.wait_for_ended_batches(2).await;
    assert!(
        batches[0]["title"].as_str().unwrap().ends_with("/b"),
        "what is new is begun, what is old is not: {batches:#?}"
    );
    assert_eq!(batches.len(), 2);
    assert_eq!(fixture.target.tags("m/b"), ["v0"]);

    let readings = |log: &str| log.matches("configuration reloaded").count();
    let before = readings(&served.running.stderr());
    served.running.signal(Signal::HUP);
    let log = || served.running.stderr();
    let started = std::time::Instant::now();
    while readings(&log()) == before {
        assert!(started.elapsed() < WAIT_TIMEOUT, "{}", log());
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    served.stop().await.assert_code(0);
}

#[tokio::test]
async fn a_renamed_rule_keeps_its_schedule_and_a_rule_with_another_meaning_is_started() {
    let fixture = ServeFixture::new(&["a"], 2).await;
    let config = |name: &str, rule: &str| {
        let (from, to) = (fixture.source.host(), fixture.target.host());
        format!(
            "rules:\n- {{name: {name}, from: {from}/a, to: {to}/m, naming: keep, {rule}, schedule: {{every: 1h}}}}\n"
        )
    };
    fixture.write(&config("one", "tags: {include: [v0, v1]}, verify_every: 1h"));
    let served = ServeProcess::start(&fixture.program, &[]).await;
    let first = served.wait_for("batches", |all| all["batches"][0]["state"] == "done").await["batches"][0].clone();
    assert_eq!((&first["title"], &first["rules"][0]), (&json!("one"), &json!("one")), "{first:#}");
    let before = served.get("schedules").await.1["schedules"][0].clone();
    assert_eq!(before["name"], "one");

    fixture.write(&config("two", "verify_every: 60m, tags: {include: ['v1', v0, v1]}"));
    let schedules = served.wait_for("schedules", |schedules| schedules["schedules"][0]["name"] == "two").await;
    for same in ["rule", "next", "last"] {
        assert_eq!(schedules["schedules"][0][same], before[same], "{same}");
    }

    fixture.write(&config("two", "tags: {include: [v0]}, verify_every: 1h"));
    let schedules = served.wait_for("schedules", |schedules| schedules["schedules"][0]["rule"] != before["rule"]).await;
    assert_eq!(schedules["schedules"][0]["name"], "two");
    let batches = served.wait_for_ended_batches(2).await;
    assert_eq!(batches.len(), 2, "nothing was begun for a new name: {batches:#?}");
    served.wait_for("batches", |all| all["batches"][0]["state"] == "done").await;

    let (status, start_response) = served.post("schedules/two/start", &json!({})).await;
    assert_eq!(status, 202, "a rule is begun by its name: {start_response}");
    let shown = served.wait_for("batches", |all| all["batches"].as_array().is_some_and(|all| all.len() == 3)).await;
    assert_eq!(shown["batches"][0]["batch"], start_response["batch"]);
    served.stop().await.assert_code(0);
}

#[tokio::test]
async fn what_needs_a_new_start_is_said() {
    let fixture = ServeFixture::new(&["a"], 1).await;
    let served = fixture.serve(&[("a", "")]).await;
    fixture.write(&format!("serve: {{token: 0123456789abcdef}}\n{}", fixture.config(&[("a", "")])));
    served.running.wait_for_line(|line| line.contains("take effect at the next start"), WAIT_TIMEOUT).await;
    let (status, _) = served.post("batches/01890a5d-ac96-774b-bcce-b302099a8057/pause", &json!({})).await;
    assert_eq!(status, 404, "the token of this start still holds");
}

#[tokio::test]
async fn notifications_link_to_the_address_of_the_flag_also_after_a_reload() {
    let fixture = ServeFixture::new(&["a"], 1).await;
    let hook = WebhookReceiver::start().await;
    let config = fixture.config(&[("a", "{every: 1h}")]);
    let notify = format!("serve: {{listen: '127.0.0.1:1'}}\nnotify: {{webhook: {{url: \"{}\"}}}}\n", hook.url());
    fixture.write(&format!("{config}{notify}"));
    let served = ServeProcess::start(&fixture.program, &[]).await;
    let link_of = async |number: usize| {
        let batches = served.wait_for_ended_batches(number).await;
        let started = Instant::now();
        while hook.received().len() < number {
            assert!(started.elapsed() < WAIT_TIMEOUT, "no notification of batch {number}");
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        let link = hook.received()[number - 1].json()["url"].clone();
        assert_eq!(link, format!("{}/#/batches/{}", served.url, batches[0]["batch"].as_str().unwrap()));
    };
    link_of(1).await;
    fixture.write(&format!("# changed\n{config}{notify}"));
    served.running.wait_for_line(|line| line.contains("configuration reloaded"), WAIT_TIMEOUT).await;
    let (_, rules) = served.get("rules").await;
    let start = format!("rules/{}/start", rules["rules"][0]["rule"].as_str().unwrap());
    assert_eq!(served.post(&start, &json!({})).await.0, 202);
    link_of(2).await;
}
