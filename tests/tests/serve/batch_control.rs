//! Batches are paused, cancelled and requeued by the API, also concurrently, and nothing is lost.

use std::sync::Arc;
use std::time::Duration;

use imgsync_tests::ServeProcess;
use imgsync_tests::fault::{FaultAction, RequestMatcher, RequestType};
use serde_json::{Value, json};
use tokio::sync::Semaphore;

use crate::support::{ServeFixture, assert_sums};

const WAIT_TIMEOUT: Duration = Duration::from_secs(60);

async fn newest(served: &ServeProcess) -> String {
    let value = served.wait_for("batches", |value| value["batches"][0]["batch"].is_string()).await;
    value["batches"][0]["batch"].as_str().unwrap().to_owned()
}

#[tokio::test]
async fn failures_are_grouped_and_requeued_by_error_kind_and_by_registry() {
    let fixture = ServeFixture::new(&["a"], 6).await;
    let denied = |code, text: &'static str| FaultAction::Status {
        code,
        headers: vec![("content-type".to_owned(), "application/json".to_owned())],
        body: text.into(),
    };
    let body = "{\"errors\":[{\"code\":\"DENIED\",\"message\":\"not for you\"}]}";
    let mut rules = Vec::new();
    for tag in ["v0", "v1", "v2"] {
        let its = RequestMatcher::kinds(&[RequestType::ManifestGet, RequestType::ManifestHead]).reference(tag);
        rules.push(fixture.source.on(its).always().act(denied(403, body)));
    }
    for tag in ["v3", "v4"] {
        let its = RequestMatcher::kinds(&[RequestType::ManifestGet, RequestType::ManifestHead]).reference(tag);
        rules.push(fixture.source.on(its).always().act(denied(404, "{\"errors\":[{\"code\":\"MANIFEST_UNKNOWN\"}]}")));
    }
    let served = fixture.serve(&[("a", "{every: 1h}")]).await;
    let batches = served.wait_for_ended_batches(1).await;
    let id = batches[0]["batch"].as_str().unwrap();
    assert_eq!((&batches[0]["counts"]["failed"], &batches[0]["counts"]["copied"]), (&5.into(), &1.into()));
    let (_, groups) = served.get(&format!("batches/{id}/failures/groups")).await;
    let by = |key: &str, name: &str| -> Vec<(String, u64)> {
        let rows = groups[key].as_array().unwrap().iter();
        rows.map(|row| (row[name].as_str().unwrap().to_owned(), row["failed"].as_u64().unwrap())).collect()
    };
    assert_eq!(by("by_kind", "kind"), [("denied".to_owned(), 3), ("not_found".to_owned(), 2)], "{groups:#}");
    assert_eq!(by("by_registry", "registry"), [(fixture.source.host(), 5)], "the target answered none of the errors");
    assert_eq!(groups["by_kind"][0]["registries"], json!([{"registry": fixture.source.host(), "failed": 3}]));
    let steps = [&groups["by_kind"][0]["next_step"], &groups["by_kind"][1]["next_step"]];
    assert_eq!(steps, [&json!("fix_and_requeue"), &json!("change_and_run")], "requeuing does not help a 404");

    // Page by page, each failure once.
    let mut from = 0;
    let mut seen = Vec::new();
    loop {
        let (_, page) = served.get(&format!("batches/{id}/failures?limit=2&from={from}")).await;
        seen.extend(page["failures"].as_array().unwrap().iter().map(|row| row["index"].as_u64().unwrap()));
        match page["next"].as_u64() {
            Some(next) => from = next,
            None => break,
        }
    }
    assert_eq!(seen.len(), 5);
    let (_, tasks) = served.get(&format!("batches/{id}/tasks?state=copied")).await;
    assert_eq!(tasks["tasks"].as_array().unwrap().len(), 1);

    // Access is allowed now; missing manifests are still missing.
    rules.drain(..3).for_each(|rule| rule.remove());
    let (status, answer) = served.post(&format!("batches/{id}/requeue"), &json!({"kind": "denied"})).await;
    assert_eq!((status, &answer["requeued"]), (200, &3.into()));
    let done = |batch: &Value| batch["counts"]["copied"] == 4 && !batch["ended"].is_null();
    let batch = served.wait_for(&format!("batches/{id}"), done).await;
    assert_eq!((&batch["run"], &batch["counts"]["failed"]), (&1.into(), &2.into()));
    rules.drain(..).for_each(|rule| rule.remove());
    let (_, answer) = served
        .post(&format!("batches/{id}/requeue"), &json!({"kind": "refused", "registry": fixture.source.host()}))
        .await;
    assert_eq!(answer["requeued"], 0, "both must match");
    let registry = json!({"registry": fixture.source.host()});
    let (_, answer) = served.post(&format!("batches/{id}/requeue"), &registry).await;
    assert_eq!(answer["requeued"], 2);
    let batch = served.wait_for(&format!("batches/{id}"), |batch| batch["counts"]["copied"] == 6).await;
    assert_sums(&batch);
    fixture.target.assert_tags_complete();
    assert_eq!(fixture.target.tags("m/a").len(), 6);
}

#[tokio::test]
async fn a_batch_is_paused_resumed_and_cancelled_and_says_so_where_it_cannot_be() {
    let fixture = ServeFixture::new(&["a"], 40).await;
    let gate = Arc::new(Semaphore::new(0));
    let puts =
        fixture.target.on(RequestMatcher::kind(RequestType::ManifestPut)).always().act(FaultAction::Gate(gate.clone()));
    let served = fixture.serve(&[("a", "{every: 1h}")]).await;
    fixture.target.wait_until(|target| target.count(RequestType::ManifestPut) > 0, WAIT_TIMEOUT).await;
    let id = newest(&served).await;
    let control = async |what: &str| served.post(&format!("batches/{id}/{what}"), &json!({})).await;
    assert_eq!(control("pause").await, (200, json!({"batch": id, "state": "paused"})));
    assert_eq!(control("pause").await.0, 200, "twice is as once");
    puts.remove();
    gate.add_permits(1_000);
    // Running tasks end, waiting ones stay.
    let paused = served.wait_for(&format!("batches/{id}"), |batch| batch["counts"]["running"] == 0).await;
    assert_eq!(paused["state"], "paused");
    assert!(paused["counts"]["waiting"].as_u64().unwrap() >= 20, "{paused:#}");
    assert_eq!(control("resume").await.0, 200);
    let batches = served.wait_for_ended_batches(1).await;
    assert_eq!(batches[0]["counts"]["copied"], 40);
    for what in ["pause", "resume", "cancel"] {
        let (status, error_body) = control(what).await;
        assert_eq!(status, 409, "{what}: {error_body}");
        assert!(error_body["error"]["message"].as_str().unwrap().contains("is done"), "{error_body}");
    }
}

#[tokio::test]
async fn cancelled_and_requeued_at_once_a_batch_ends_and_every_image_is_counted() {
    let fixture = ServeFixture::new(&["a"], 60).await;
    let refused = FaultAction::Status { code: 403, headers: Vec::new(), body: "{}".into() };
    let odd = |request: &imgsync_tests::fault::RecordedRequest| {
        request.reference.as_deref().is_some_and(|tag| tag.ends_with(['1', '3', '5', '7', '9']))
    };
    fixture
        .source
        .on(RequestMatcher::kinds(&[RequestType::ManifestGet, RequestType::ManifestHead]).when(odd))
        .always()
        .act(refused);
    let served = fixture.serve(&[("a", "{every: 1h}")]).await;
    let batches = served.wait_for_ended_batches(1).await;
    let id = batches[0]["batch"].as_str().unwrap().to_owned();
    assert_eq!(batches[0]["counts"]["failed"], 30);
    let served = Arc::new(served);
    let mut asked = tokio::task::JoinSet::new();
    for number in 0..24 {
        let (served, id) = (served.clone(), id.clone());
        asked.spawn(async move {
            let what = ["requeue", "pause", "resume", "requeue", "requeue", "cancel"][number % 6];
            // The batch is cancelled in the last round only.
            let what = if number < 18 && what == "cancel" { "requeue" } else { what };
            let (status, answer) = served.post(&format!("batches/{id}/{what}"), &json!({})).await;
            assert!([200, 409].contains(&status), "{what}: {status} {answer}");
            let (status, batch) = served.get(&format!("batches/{id}")).await;
            assert_eq!(status, 200);
            assert_sums(&batch);
        });
    }
    while let Some(done) = asked.join_next().await {
        done.unwrap();
    }
    // Whatever came last, the batch can be ended and all images are counted.
    let _ = served.post(&format!("batches/{id}/cancel"), &json!({})).await;
    let ended = |batch: &Value| !batch["ended"].is_null();
    let batch = served.wait_for(&format!("batches/{id}"), ended).await;
    assert_sums(&batch);
    assert_eq!(batch["counts"]["total"], 60);
    assert_eq!(batch["counts"]["copied"], 30, "what was done stays done: {batch:#}");
    assert_eq!(batch["counts"]["waiting"], 0);
    let (status, error_body) = served.post(&format!("batches/{id}/requeue"), &json!({})).await;
    match batch["state"].as_str().unwrap() {
        "cancelled" => assert_eq!(status, 409, "{error_body}"),
        state => assert_eq!((state, status), ("done", 200)),
    }
}

#[tokio::test]
async fn events_start_with_the_full_state_and_then_send_changes() {
    let fixture = ServeFixture::new(&["a"], 5).await;
    let gate = Arc::new(Semaphore::new(0));
    fixture.target.on(RequestMatcher::kind(RequestType::ManifestPut)).always().act(FaultAction::Gate(gate.clone()));
    let served = fixture.serve(&[("a", "{every: 1h}")]).await;
    fixture.target.wait_until(|target| target.count(RequestType::ManifestPut) > 0, WAIT_TIMEOUT).await;
    let id = newest(&served).await;
    let mut response = served.request(reqwest::Method::GET, "events").send().await.unwrap();
    assert_eq!(response.headers()["content-type"], "text/event-stream");
    let mut text = String::new();
    let mut opened = false;
    loop {
        let chunk = tokio::time::timeout(WAIT_TIMEOUT, response.chunk()).await.expect("it is told in time").unwrap();
        text.push_str(&String::from_utf8_lossy(&chunk.expect("the line stays open")));
        let events = || {
            text.split("\n\n").filter_map(|event| {
                let (name, data) = event.strip_prefix("event: ")?.split_once("\ndata: ")?;
                Some((name.to_owned(), serde_json::from_str::<Value>(data).ok()?))
            })
        };
        let has = |wanted: &str| events().any(|(name, _)| name == wanted);
        let is_first = ["status", "overview", "workers", "routes", "batch"].into_iter().all(has);
        if is_first && !std::mem::replace(&mut opened, true) {
            gate.add_permits(100);
        }
        let ended = |(name, value): (String, Value)| {
            name == "batch" && value["batch"] == *id && value["state"] == "done" && value["counts"]["copied"] == 5
        };
        if opened && events().any(ended) && has("timeline") {
            break;
        }
    }
    // A watching client does not keep it from ending.
    served.stop().await.assert_code(0);
}
