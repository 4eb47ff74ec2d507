//! Images that a policy refuses until they are signed.

use imgsync_store::{Ledger as _, PendingPush, Postponed};
use imgsync_tests::servers::WebhookReceiver;

use super::*;

const POLICY: &str = ", policy: {signed: {keys: cosign.pub}}";

#[tokio::test]
async fn only_the_last_refusal_of_a_push_that_is_not_signed_is_notified_of() {
    let hook = WebhookReceiver::start().await;
    let more = format!("notify: {{webhook: {{url: \"{}\", on: failure}}}}\n", hook.url());
    let fixture = HookFixture::with_more(POLICY, &more).await;
    fixture.program.file("cosign.pub", CosignKey::new().public());
    fixture.source.push("apps/a", "1", &image("unsigned"));
    let served = fixture.serve().await;
    fixture.notify(&served, "apps/a:1").await;
    let first = served.wait_for_ended_batches(1).await[0]["batch"].as_str().unwrap().parse().unwrap();
    let store = fixture.store().await;
    wait_until("it is decided", async || !store.sent_notifications(first).await.unwrap().is_empty()).await;
    assert_eq!(hook.received().len(), 0);
    served.stop().await.assert_code(0);

    let make_due = async |postponed: Postponed| {
        let pending = store.pending_pushes().await.unwrap();
        assert_eq!(pending.len(), 1, "{pending:#?}");
        let due: Vec<_> = pending.into_iter().map(|push| PendingPush { postponed, ..push }).collect();
        store.postpone_pushes(&due, jiff::Timestamp::now()).await.unwrap();
    };
    // As if the tag had lagged and the source had failed before: that is no check.
    make_due(Postponed { checks: 0, lags: 5, failures: 4 }).await;
    let served = fixture.serve().await;
    let second = served.wait_for_ended_batches(2).await[0]["batch"].as_str().unwrap().parse().unwrap();
    wait_until("it is decided", async || !store.sent_notifications(second).await.unwrap().is_empty()).await;
    assert_eq!(hook.received().len(), 0);
    served.stop().await.assert_code(0);

    // As after 15 minutes: the last check is due.
    make_due(Postponed { checks: 3, lags: 0, failures: 0 }).await;
    let served = fixture.serve().await;
    wait_until("the notification", async || !hook.received().is_empty()).await;
    wait_until("nothing is pending", async || metric(&served, "imgsync_hook_pending_pushes").await == 0.0).await;
    let batches = served.wait_for_ended_batches(3).await;
    let received = hook.received();
    assert_eq!(received.len(), 1);
    assert_eq!(received[0].json()["batch"], batches[0]["batch"]);
    served.stop().await.assert_code(0);
}

#[tokio::test]
async fn a_failure_that_is_no_refusal_is_notified_of_at_once() {
    let hook = WebhookReceiver::start().await;
    let more = format!("notify: {{webhook: {{url: \"{}\", on: failure}}}}\n", hook.url());
    let fixture = HookFixture::with_more(POLICY, &more).await;
    let key = CosignKey::new();
    fixture.program.file("cosign.pub", key.public());
    let (unsigned, incomplete) = (image("unsigned"), image("incomplete"));
    fixture.source.push("apps/a", "1", &unsigned);
    fixture.source.push("apps/a", "2", &incomplete);
    fixture.source.push("apps/a", &incomplete.digest_tag("sig"), &key.sign_simply(&incomplete.root));
    for digest in incomplete.blobs.keys() {
        fixture.source.delete_blob("apps/a", digest);
    }
    let served = fixture.serve().await;
    let images = ["1", "2"].map(|tag| format!("{}/apps/a:{tag}", fixture.source.host()));
    let request = served.notification("pushes").bearer_auth(SECRET).json(&json!({"images": images}));
    assert_eq!(send_json(request).await.0, 202);
    wait_until("the notification", async || !hook.received().is_empty()).await;
    assert_eq!(hook.received()[0].json()["counts"]["failed"], 2);
    served.stop().await.assert_code(0);
}

#[tokio::test]
async fn the_signature_of_a_moved_tag_is_followed_without_a_further_check() {
    let fixture = HookFixture::new(POLICY).await;
    let key = CosignKey::new();
    fixture.program.file("cosign.pub", key.public());
    let sign = |image: &TestImage| {
        fixture.source.push("apps/a", &image.digest_tag("sig"), &key.sign_simply(&image.root));
    };
    let (old, new) = (image("old"), image("new"));
    for tag in ["1", "2", "3", "latest"] {
        fixture.source.push("apps/a", tag, &old);
    }
    sign(&old);
    let served = fixture.serve().await;
    let images = ["1", "2", "3", "latest"].map(|tag| format!("{}/apps/a:{tag}", fixture.source.host()));
    let request = served.notification("pushes").bearer_auth(SECRET).json(&json!({"images": images}));
    assert_eq!(send_json(request).await.0, 202);
    fixture.wait_for_copy("apps/a", "latest", &old).await;
    // The tag moves, and the digest cache has its old image.
    fixture.source.push("apps/a", "latest", &new);
    fixture.notify(&served, "apps/a:latest").await;
    let is_refused =
        |value: &Value| value["batches"].as_array().unwrap().iter().any(|batch| batch["counts"]["failed"] == json!(1));
    served.wait_for("batches", is_refused).await;
    let store = fixture.store().await;
    wait_until("its further check is planned", async || {
        let pending = store.pending_pushes().await.unwrap();
        pending.len() == 1 && pending[0].not_before.is_some()
    })
    .await;
    // That check takes no part.
    let in_an_hour = jiff::Timestamp::now() + Duration::from_secs(3600);
    let later = jiff::Timestamp::from_millisecond(in_an_hour.as_millisecond()).unwrap();
    store.postpone_pushes(&store.pending_pushes().await.unwrap(), later).await.unwrap();
    sign(&new);
    fixture.notify(&served, &format!("apps/a:{}", new.digest_tag("sig"))).await;
    fixture.wait_for_copy("apps/a", "latest", &new).await;
    let pending = store.pending_pushes().await.unwrap();
    let waits = pending.iter().filter(|push| push.not_before == Some(later));
    assert!(waits.count() >= 1, "{pending:#?}");
    served.stop().await.assert_code(0);
}
