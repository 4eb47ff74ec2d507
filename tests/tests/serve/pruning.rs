//! Batches of `serve` that prune: notified when they have pruned, and as failed if that failed.

use std::time::Duration;

use imgsync_tests::ServeProcess;
use imgsync_tests::fault::{FaultAction, RequestType};
use imgsync_tests::servers::WebhookReceiver;
use serde_json::{Value, json};
use tokio::time::Instant;

use super::support::ServeFixture;

const WAIT_TIMEOUT: Duration = Duration::from_secs(60);

async fn wait_for_notification(hook: &WebhookReceiver, number: usize) -> Value {
    let started = Instant::now();
    while hook.received().len() < number {
        assert!(started.elapsed() < WAIT_TIMEOUT, "no notification {number}");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    hook.received()[number - 1].json()
}

#[tokio::test]
async fn the_notification_of_a_batch_says_what_was_pruned_and_a_removal_that_fails_is_a_failure() {
    let fixture = ServeFixture::new(&["a"], 4).await;
    let (always, failures) = tokio::join!(WebhookReceiver::start(), WebhookReceiver::start());
    fixture.write(&format!(
        "defaults: {{to: {}/m, naming: keep}}\nrules:\n- {{name: it, from: {}/a, prune: {{keep_days: 0, limit: 100%}}}}\n\
         notify:\n  webhook:\n  - {{url: \"{}\"}}\n  - {{url: \"{}\", on: failure}}\n",
        fixture.target.host(),
        fixture.source.host(),
        always.url(),
        failures.url()
    ));
    let served = ServeProcess::start(&fixture.program, &[]).await;
    let start = async |number: usize| {
        assert_eq!(served.post("rules/it/start", &json!({})).await.0, 202);
        wait_for_notification(&always, number).await
    };
    assert_eq!(start(1).await["counts"]["copied"], 4);

    // Slow enough for a notification that does not wait.
    let slow = fixture.target.on(RequestType::ManifestDelete).always().act(FaultAction::Delay(Duration::from_secs(1)));
    fixture.source.delete_tag("a", "v3");
    let removed = start(2).await;
    assert_eq!((&removed["ok"], &removed["pruned"]["total"]), (&json!(true), &json!(1)), "{removed:#}");
    assert_eq!(fixture.target.tags("m/a"), ["v0", "v1", "v2"]);
    assert_eq!(failures.received().len(), 0);

    slow.remove();
    fixture.target.on(RequestType::ManifestDelete).always().act(FaultAction::error(405, "UNSUPPORTED"));
    fixture.source.delete_tag("a", "v2");
    let kept = start(3).await;
    assert_eq!((&kept["ok"], &kept["pruned"]["total"]), (&json!(false), &json!(1)), "{kept:#}");
    assert_eq!(kept["headline"], "One tag or rule could not be pruned", "{kept:#}");
    assert_eq!(wait_for_notification(&failures, 1).await["batch"], kept["batch"]);
}
