//! Requests that an HTTP/2 server reports as not processed, by a refused stream or a closed connection, are sent again
//! and spend no attempt.

use std::sync::Arc;

use imgsync_tests::fault::{FaultAction, FaultRegistry, RequestType};
use imgsync_tests::images;
use imgsync_tests::program::{Imgsync, Output};
use imgsync_tests::tls::Authority;

const MIB: u64 = 1 << 20;

async fn behind_tls(authority: &Arc<Authority>) -> FaultRegistry {
    FaultRegistry::builder().tls(authority.clone()).start().await
}

/// Copies an image with a single attempt for everything.
async fn sync(source: &FaultRegistry, target: &FaultRegistry, authority: &Authority) -> Output {
    let (from, to) = (format!("{}/a:1", source.host()), format!("{}/b:1", target.host()));
    let sync = Imgsync::new().args(["sync", &from, &to, "--json", "--attempts", "1", "--retry-delay", "5s"]);
    let ca = sync.file("ca.pem", authority.pem());
    let entry = |host: String| format!("  \"{host}\": {{tls: on, ca: {}}}\n", ca.display());
    sync.file("imgsync.yaml", format!("registries:\n{}{}", entry(source.host()), entry(target.host())));
    sync.run().await
}

#[tokio::test]
async fn a_refused_stream_spends_no_attempt() {
    let authority = Arc::new(Authority::new());
    let (source, target) = tokio::join!(behind_tls(&authority), behind_tls(&authority));
    let image = images::big("refused-streams", 5 * MIB);
    source.push("a", "1", &image);
    let mut rules = Vec::new();
    for kind in [RequestType::ManifestGet, RequestType::BlobGet] {
        rules.push((source.on(kind).times(3).act(FaultAction::RefuseStream), 3));
    }
    for kind in [RequestType::ManifestHead, RequestType::UploadMount, RequestType::UploadPut, RequestType::ManifestPut]
    {
        rules.push((target.on(kind).times(3).act(FaultAction::RefuseStream), 3));
    }
    sync(&source, &target, &authority).await.assert_code(0);
    target.assert_holds("b", "1", &image);
    for (rule, times) in &rules {
        assert_eq!(rule.hits(), *times, "{}\n{}", source.describe_requests(), target.describe_requests());
    }
    assert!(source.requests().iter().chain(&target.requests()).all(|request| request.http2));
    assert_eq!(target.open_uploads(), 0);
}

#[tokio::test]
async fn a_connection_that_is_closed_to_its_first_request_spends_no_attempt() {
    let authority = Arc::new(Authority::new());
    let (source, target) = tokio::join!(behind_tls(&authority), behind_tls(&authority));
    let image = images::multi_platform("go-away");
    source.push("a", "1", &image);
    source.send_goaway(4);
    target.send_goaway(3);
    sync(&source, &target, &authority).await.assert_code(0);
    target.assert_holds("b", "1", &image);
    assert_eq!((source.pending_goaways(), target.pending_goaways()), (0, 0));
}

#[tokio::test]
async fn a_server_that_takes_nothing_at_all_ends_the_copy() {
    let authority = Arc::new(Authority::new());
    let (source, target) = tokio::join!(behind_tls(&authority), behind_tls(&authority));
    source.push("a", "1", &images::single("takes-nothing"));
    let rule = source.on(RequestType::ManifestGet).always().act(FaultAction::RefuseStream);
    let output = sync(&source, &target, &authority).await.assert_code(3);
    assert_eq!(output.json()["kind"], "unreachable", "{output:?}");
    assert!((2..100).contains(&rule.hits()), "{}", rule.hits());
    assert!(target.tags("b").is_empty());
}
