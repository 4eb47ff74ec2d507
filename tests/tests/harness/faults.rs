//! Requested faults occur, and listings are served.

use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::client;
use imgsync_tests::fault::{FaultAction, FaultRegistry, RequestMatcher, RequestType};
use imgsync_tests::images;
use tokio::sync::Semaphore;

#[tokio::test]
async fn faults_of_an_answer_are_as_they_were_asked_for() {
    let registry = FaultRegistry::start().await;
    let image = images::big("faults", 200_000);
    registry.push("app", "1", &image);
    let digest = image.largest_blob();
    let blob = image.blobs[&digest].read(0..200_000);
    let (http, url) = (client(), format!("{}/v2/app/blobs/{digest}", registry.url()));
    let on = || registry.on(RequestMatcher::kind(RequestType::BlobGet).reference(&digest));
    let get = async || http.get(&url).send().await.unwrap();

    let range = http.get(&url).header("range", "bytes=150000-").send().await.unwrap();
    assert_eq!((range.status().as_u16(), range.bytes().await.unwrap()), (206, blob.slice(150_000..)));

    on().act(FaultAction::CutAfter { bytes: 70_000 });
    get().await.bytes().await.unwrap_err();
    assert_eq!(registry.requests().last().unwrap().sent, 70_000);

    on().act(FaultAction::Corrupt { at: 123_456 });
    let corrupt = get().await.bytes().await.unwrap();
    assert_eq!(corrupt.iter().zip(&blob).filter(|(found, wanted)| found != wanted).count(), 1);

    on().act(FaultAction::Truncate { to: 5 });
    assert_eq!(get().await.bytes().await.unwrap(), blob.slice(..5));

    on().act(FaultAction::CutBefore);
    http.get(&url).send().await.unwrap_err();

    on().act(FaultAction::StallAfter { bytes: 100 });
    let stalled = tokio::time::timeout(Duration::from_millis(300), get().await.bytes()).await;
    assert!(stalled.is_err());

    on().act(FaultAction::Redirect { to: "http://other.example{path}".to_owned(), status: 307 });
    assert_eq!(get().await.headers()["location"], format!("http://other.example/v2/app/blobs/{digest}"));

    let twice = on().skip(1).times(2).act(FaultAction::too_many_requests("3"));
    let mut statuses = Vec::new();
    for _ in 0..4 {
        statuses.push(get().await.status().as_u16());
    }
    assert_eq!((statuses, twice.hits()), (vec![200, 429, 429, 200], 2));

    on().act(FaultAction::Throttle { bytes_per_second: 400_000 });
    let started = Instant::now();
    assert_eq!(get().await.bytes().await.unwrap(), blob);
    assert!(started.elapsed() > Duration::from_millis(450));
    assert!(registry.requests().last().unwrap().is_body_complete);
}

#[tokio::test]
async fn answers_and_uploads_drip_and_heads_never_end_where_that_is_asked_for() {
    const EVERY: Duration = Duration::from_millis(20);
    let registry = FaultRegistry::start().await;
    let (http, url) = (client(), format!("{}/v2/", registry.url()));
    let within = async |request: reqwest::RequestBuilder| {
        let answer = async { request.send().await?.bytes().await };
        tokio::time::timeout(Duration::from_secs(20), answer).await.expect("it ends")
    };
    let body = || FaultAction::ReplaceBody(vec![b'x'; 20].into());

    registry.on(RequestType::Ping).act_all([body(), FaultAction::Drip { after: 10, every: EVERY }]);
    let started = Instant::now();
    assert_eq!(within(http.get(&url)).await.unwrap().len(), 20);
    assert!(started.elapsed() >= 10 * EVERY, "{:?}", started.elapsed());

    registry.on(RequestType::Ping).act_all([body(), FaultAction::DripHead { every: EVERY / 10 }]);
    let started = Instant::now();
    assert_eq!(within(http.get(&url)).await.unwrap().len(), 20);
    assert!(started.elapsed() >= 5 * EVERY, "{:?}", started.elapsed());

    registry.on(RequestType::Ping).act(FaultAction::EndlessHead);
    within(http.get(&url)).await.unwrap_err();

    registry.on(RequestType::Other).act(FaultAction::DripUpload { after: 5, every: EVERY });
    let started = Instant::now();
    within(http.post(format!("{}/elsewhere", registry.url())).body(vec![b'x'; 15])).await.unwrap();
    assert!(started.elapsed() >= 10 * EVERY, "{:?}", started.elapsed());
    assert_eq!(registry.requests().last().unwrap().received, 15);
}

#[tokio::test]
async fn a_gate_holds_a_request_until_the_test_opens_it() {
    let registry = FaultRegistry::start().await;
    let gate = Arc::new(Semaphore::new(0));
    registry.on(RequestType::Ping).always().act(FaultAction::Gate(Arc::clone(&gate)));
    let ping = tokio::spawn(client().get(format!("{}/v2/", registry.url())).send());
    registry.wait_until(|registry| registry.count(RequestType::Ping) == 1, Duration::from_secs(5)).await;
    assert_eq!(registry.requests()[0].status, None);
    gate.add_permits(1);
    assert_eq!(ping.await.unwrap().unwrap().status(), 200);
}

#[tokio::test]
async fn lists_come_by_the_page() {
    let registry = FaultRegistry::builder().page(2).google().start().await;
    let image = images::single("pages");
    for tag in ["a", "b", "c", "d", "e"] {
        registry.push("org/app", tag, &image);
    }
    registry.push("org/app/sub", "x", &image);
    let http = client();
    let (mut next, mut tags) = (Some("/v2/org/app/tags/list".to_owned()), Vec::new());
    while let Some(path) = next {
        let page = http.get(format!("{}{path}", registry.url())).send().await.unwrap();
        let link = page.headers().get("link").map(|link| link.to_str().unwrap().to_owned());
        next = link.map(|link| link[1..].split_once('>').unwrap().0.to_owned());
        let page: serde_json::Value = page.json().await.unwrap();
        assert_eq!(page["child"][0], "sub");
        assert_eq!(page["manifest"][&image.root]["tag"].as_array().unwrap().len(), 5);
        tags.extend(page["tags"].as_array().unwrap().clone());
    }
    assert_eq!(tags, ["a", "b", "c", "d", "e"]);
    assert_eq!(registry.count(RequestType::Tags), 3);
}

#[tokio::test]
async fn referrers_are_listed_and_manifests_without_their_blobs_refused() {
    let registry = FaultRegistry::start().await;
    let image = images::single("subject");
    registry.push("app", "1", &image);
    let signature = images::referrer("signature", &image);
    let (http, url) = (client(), format!("{}/v2/app", registry.url()));
    let put = || {
        let manifest = signature.root_manifest();
        let request = http.put(format!("{url}/manifests/{}", signature.root));
        request.header("content-type", &manifest.media_type).body(manifest.bytes.clone()).send()
    };
    let refused = put().await.unwrap();
    assert_eq!(refused.status(), 400);
    assert!(refused.text().await.unwrap().contains("MANIFEST_BLOB_UNKNOWN"));
    for (digest, blob) in &signature.blobs {
        registry.push_blob("app", digest, blob);
    }
    assert_eq!(put().await.unwrap().headers()["oci-subject"], *image.root);
    let found: serde_json::Value =
        http.get(format!("{url}/referrers/{}", image.root)).send().await.unwrap().json().await.unwrap();
    assert_eq!(found["manifests"][0]["digest"], *signature.root);
    assert_eq!(found["manifests"][0]["artifactType"], "application/vnd.example.signature.v1");
}

#[tokio::test]
async fn any_path_can_be_answered_and_its_body_is_remembered() {
    let registry = FaultRegistry::start().await;
    let rule = RequestMatcher::any().path("/api/v1/hook");
    registry
        .on(rule)
        .always()
        .act(FaultAction::compute(|record| FaultAction::json(&serde_json::json!({"n": record.n}))));
    let http = client();
    for n in 0..2 {
        let answer = http.post(format!("{}/api/v1/hook", registry.url())).body("hello").send().await.unwrap();
        assert_eq!(answer.json::<serde_json::Value>().await.unwrap()["n"], n);
    }
    assert_eq!(registry.requests()[1].body, b"hello");
    assert_eq!(http.get(format!("{}/other", registry.url())).send().await.unwrap().status(), 404);
}
