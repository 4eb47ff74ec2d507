//! Complete and interrupted uploads.

use std::time::Duration;

use crate::client;
use imgsync_tests::fault::{FaultAction, FaultRegistry, MountPolicy, RequestType};
use imgsync_tests::images::{self, Blob, sha256};

#[tokio::test]
async fn an_upload_that_was_cut_resumes() {
    let registry = FaultRegistry::start().await;
    let (blob, http) = (Blob::synthetic("cut-upload", 100_000), client());
    let digest = blob.sha256();
    let start = http.post(format!("{}/v2/app/blobs/uploads/", registry.url())).send().await.unwrap();
    let location = start.headers()["location"].to_str().unwrap().to_owned();
    registry.on(RequestType::UploadPut).act(FaultAction::CutUploadAfter { bytes: 40_000 });
    let put = |bytes| http.put(format!("{location}&digest={digest}")).body(bytes);
    put(blob.read(0..100_000)).send().await.unwrap_err();
    let status = http.get(&location).send().await.unwrap();
    assert_eq!(status.status(), 204);
    assert_eq!(status.headers()["range"], "0-39999");
    assert_eq!(put(blob.read(40_000..100_000)).send().await.unwrap().status(), 201);
    assert!(registry.has_blob("app", &digest));
}

#[tokio::test]
async fn a_registry_without_resuming_forgets_a_cut_upload() {
    let registry = FaultRegistry::builder().not_resumable().start().await;
    let http = client();
    let start = http.post(format!("{}/v2/app/blobs/uploads/", registry.url())).send().await.unwrap();
    let location = start.headers()["location"].to_str().unwrap().to_owned();
    registry.on(RequestType::UploadPatch).act(FaultAction::CutUploadAfter { bytes: 10 });
    http.patch(&location).body(vec![0; 1000]).send().await.unwrap_err();
    registry.wait_until(|registry| registry.open_uploads() == 0, Duration::from_secs(5)).await;
    let status = http.get(&location).send().await.unwrap();
    assert_eq!(status.status(), 404);
    assert!(status.text().await.unwrap().contains("BLOB_UPLOAD_INVALID"));
}

#[tokio::test]
async fn chunks_must_come_in_order() {
    let registry = FaultRegistry::builder().relative_locations().start().await;
    let http = client();
    let start = http.post(format!("{}/v2/app/blobs/uploads/", registry.url())).send().await.unwrap();
    let location = format!("{}{}", registry.url(), start.headers()["location"].to_str().unwrap());
    let patch = |range: &str| http.patch(&location).header("content-range", range).body("abcde");
    assert_eq!(patch("0-4").send().await.unwrap().status(), 202);
    let refused = patch("7-11").send().await.unwrap();
    assert_eq!(refused.status(), 416);
    assert_eq!(refused.headers()["range"], "0-4");
    assert_eq!(patch("5-9").send().await.unwrap().headers()["range"], "0-9");
    let digest = sha256(b"abcdeabcde");
    assert_eq!(http.put(format!("{location}&digest={digest}")).send().await.unwrap().status(), 201);
}

#[tokio::test]
async fn a_mount_gives_the_blob_or_a_session() {
    let image = images::single("mounts");
    let digest = image.largest_blob();
    let status = async |policy: MountPolicy, from: &str| {
        let registry = FaultRegistry::builder().mounts(policy).start().await;
        registry.push("a", "1", &image);
        let url = format!("{}/v2/b/blobs/uploads/?mount={digest}&from={from}", registry.url());
        let answer = client().post(url).send().await.unwrap().status().as_u16();
        assert_eq!(registry.count(RequestType::UploadMount), 1);
        (answer, registry.has_blob("b", &digest))
    };
    assert_eq!(status(MountPolicy::Mount, "a").await, (201, true));
    assert_eq!(status(MountPolicy::Mount, "c").await, (202, false));
    assert_eq!(status(MountPolicy::Ignore, "a").await, (202, false));
    assert_eq!(status(MountPolicy::Refuse(http::StatusCode::FORBIDDEN), "a").await, (403, false));
}

#[tokio::test]
async fn a_blackhole_takes_what_it_does_not_keep() {
    let registry = FaultRegistry::builder().blackhole().start().await;
    let blob = Blob::synthetic("blackhole", 64 << 20);
    let (digest, http) = (blob.sha256(), client());
    let start = http.post(format!("{}/v2/app/blobs/uploads/", registry.url())).send().await.unwrap();
    let location = start.headers()["location"].to_str().unwrap().to_owned();
    let size = blob.size();
    let pieces = futures_util::stream::iter(
        (0..64u64).map(move |mib| Ok::<_, std::io::Error>(blob.read(mib << 20..(mib + 1) << 20))),
    );
    let body = reqwest::Body::wrap_stream(pieces);
    assert_eq!(http.put(format!("{location}&digest={digest}")).body(body).send().await.unwrap().status(), 201);
    let head = http.head(format!("{}/v2/app/blobs/{digest}", registry.url())).send().await.unwrap();
    assert_eq!(head.headers()["content-length"], size.to_string());
}

#[tokio::test]
async fn sha512_names_blobs_too() {
    let registry = FaultRegistry::start().await;
    let image = images::sha512_blobs("sha512");
    registry.push("app", "1", &image);
    registry.assert_tags_complete();
    let (digest, http) = (images::sha512(b"hello"), client());
    let post = |digest: &str| {
        http.post(format!("{}/v2/app/blobs/uploads/?digest={digest}", registry.url())).body("hello").send()
    };
    assert_eq!(post(&image.largest_blob()).await.unwrap().status(), 400);
    assert_eq!(post(&digest).await.unwrap().status(), 201);
    assert!(registry.has_blob("app", &digest));
}

#[tokio::test]
async fn uploads_are_answered_early_and_bodies_are_as_big_as_asked() {
    let registry = FaultRegistry::builder().chunk_minimum(100).start().await;
    let http = client();
    let start = async || {
        let start = http.post(format!("{}/v2/app/blobs/uploads/", registry.url())).send().await.unwrap();
        assert_eq!(start.headers()["oci-chunk-min-length"], "100");
        start.headers()["location"].to_str().unwrap().to_owned()
    };
    // If the response comes while the body is still being sent, closing the connection may lose it.
    registry.on(RequestType::UploadPut).act(FaultAction::AnswerUploadEarly { after: 1000, status: 413 });
    let body = vec![0; 64 << 20];
    let early = http.put(format!("{}&digest=sha256:0", start().await)).body(body).send().await;
    assert!(early.is_err() || early.unwrap().status() == 413);
    let put = registry.requests_of_kind(RequestType::UploadPut).pop().unwrap();
    assert_eq!((put.received, put.status), (1000, Some(413)));

    let location = start().await;
    let patch = async |bytes| http.patch(&location).body(vec![0; bytes]).send().await.unwrap().status().as_u16();
    assert_eq!((patch(150).await, patch(20).await, patch(150).await), (202, 202, 416));

    registry.on(RequestType::Ping).act_all([
        FaultAction::BigBody { mib: 3, announced: false },
        FaultAction::SetHeader("x-odd".to_owned(), "yes".to_owned()),
        FaultAction::RemoveHeader("content-type".to_owned()),
    ]);
    let big = http.get(format!("{}/v2/", registry.url())).send().await.unwrap();
    assert_eq!((big.content_length(), big.headers().get("content-type")), (None, None));
    assert_eq!(big.headers()["x-odd"], "yes");
    assert_eq!(big.bytes().await.unwrap().len(), 3 << 20);
}

#[tokio::test]
async fn big_blobs_take_no_memory() {
    let source = FaultRegistry::start().await;
    let target = FaultRegistry::builder().blackhole().start().await;
    let image = images::big("memory", 256 << 20);
    let digest = image.largest_blob();
    source.push("app", "1", &image);
    let http = client();
    let start = http.post(format!("{}/v2/app/blobs/uploads/", target.url())).send().await.unwrap();
    let location = start.headers()["location"].to_str().unwrap().to_owned();
    let get = http.get(format!("{}/v2/app/blobs/{digest}", source.url())).send().await.unwrap();
    let put = http.put(format!("{location}&digest={digest}")).body(reqwest::Body::wrap_stream(get.bytes_stream()));
    assert_eq!(put.send().await.unwrap().status(), 201);
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let peak = status.lines().find_map(|line| line.strip_prefix("VmHWM:")?.trim().strip_suffix(" kB")).unwrap();
    assert!(peak.parse::<u64>().unwrap() < 100_000, "{peak} kB");
    assert_eq!((source.bytes_sent(), target.bytes_received()), (256 << 20, 256 << 20));
}
