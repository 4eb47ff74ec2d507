//! Large blobs over connections that break, at source or target.

use imgsync_tests::fault::{FaultAction, FaultRegistry, RequestMatcher, RequestType};
use imgsync_tests::images::{self, TestImage};
use imgsync_tests::program::{Imgsync, Output};
use imgsync_tests::servers::{DockerRegistry, DockerRegistryAuth};
use imgsync_tests::tcp_proxy::{Direction, TcpProxy};

const MIB: u64 = 1 << 20;

async fn sync(from: &str, to: &str) -> Output {
    Imgsync::new().args(["sync", from, to, "--json", "--retry-delay", "20ms"]).run().await
}

/// Matches a GET of the image's large blob.
fn large_blob(image: &TestImage) -> RequestMatcher {
    RequestMatcher::kind(RequestType::BlobGet).reference(&image.largest_blob())
}

/// Matches a PUT of a large blob, or of a large part of one.
fn large_put() -> RequestMatcher {
    RequestMatcher::kind(RequestType::UploadPut).when(|request| {
        request.header("content-length").and_then(|length| length.parse::<u64>().ok()).is_some_and(|n| n > MIB)
    })
}

/// Matches such a PUT that resumes a session.
fn resumed_put() -> RequestMatcher {
    large_put().when(|request| request.header("content-range").is_some())
}

#[tokio::test]
async fn a_source_that_breaks_three_times_is_read_little_more_than_once() {
    let size = 256 * MIB;
    let (source, target) = tokio::join!(FaultRegistry::start(), FaultRegistry::builder().blackhole().start());
    let image = images::big("breaks", size);
    source.push("a", "1", &image);
    for after in [50, 70, 90] {
        source.on(large_blob(&image)).act(FaultAction::CutAfter { bytes: after * MIB + 12_345 });
    }
    let output = sync(&format!("{}/a:1", source.host()), &format!("{}/b:1", target.host())).await.assert_code(0);
    assert_eq!(target.tag_digest("b", "1").as_ref(), Some(&image.root));
    let read: u64 = source.requests_of_kind(RequestType::BlobGet).iter().map(|request| request.sent).sum();
    assert!(read <= image.blob_bytes() * 105 / 100, "{read} bytes of {} were read", image.blob_bytes());
    assert_eq!(source.count_where(|request| request.header("range").is_some()), 3);
    // The upload continued meanwhile: one session, one PUT.
    let puts = target.count_where(|request| request.kind == RequestType::UploadPut && request.received > MIB);
    assert_eq!(puts, 1, "{}", target.describe_requests());
    assert_eq!(output.json()["traffic"]["source"]["retries"], 3);
}

#[tokio::test]
async fn a_source_that_cuts_every_few_mib_still_completes() {
    let (source, target) = tokio::join!(FaultRegistry::start(), FaultRegistry::start());
    let image = images::big("always-cut", 64 * MIB);
    source.push("a", "1", &image);
    source.on(large_blob(&image)).always().act(FaultAction::CutAfter { bytes: 3 * MIB });
    let output = Imgsync::new()
        .args(["sync", &format!("{}/a:1", source.host()), &format!("{}/b:1", target.host())])
        .args(["--retry-delay", "5ms"])
        .run()
        .await
        .assert_code(0);
    target.assert_holds("b", "1", &image);
    assert!(source.requests_of_kind(RequestType::BlobGet).len() > 20, "{output:?}");
}

#[tokio::test]
async fn a_source_without_ranges_is_read_again_and_the_upload_is_not() {
    let (source, target) = tokio::join!(FaultRegistry::start(), FaultRegistry::start());
    let image = images::big("no-ranges", 16 * MIB);
    source.push("a", "1", &image);
    source.on(large_blob(&image)).act(FaultAction::CutAfter { bytes: 9 * MIB });
    let whole = image.blobs[&image.largest_blob()].read(0..16 * MIB);
    source.on(large_blob(&image)).act(FaultAction::Status { code: 200, headers: vec![], body: whole });
    sync(&format!("{}/a:1", source.host()), &format!("{}/b:1", target.host())).await.assert_code(0);
    target.assert_holds("b", "1", &image);
    assert_eq!(target.count_where(|request| request.kind == RequestType::UploadPut && request.received > MIB), 1);
}

#[tokio::test]
async fn a_target_that_breaks_once_is_sent_only_what_it_does_not_hold() {
    let size = 256 * MIB;
    let (source, target) = tokio::join!(FaultRegistry::start(), FaultRegistry::builder().blackhole().start());
    let image = images::big("target-breaks", size);
    source.push("a", "1", &image);
    target.on(large_put()).act(FaultAction::CutUploadAfter { bytes: 100 * MIB });
    let output = sync(&format!("{}/a:1", source.host()), &format!("{}/b:1", target.host())).await.assert_code(0).json();
    assert_eq!(target.tag_digest("b", "1").as_ref(), Some(&image.root));
    let puts: Vec<_> =
        target.requests_of_kind(RequestType::UploadPut).into_iter().filter(|put| put.received > MIB).collect();
    assert_eq!(puts.len(), 2, "{}", target.describe_requests());
    let received: u64 = puts.iter().map(|put| put.received).sum();
    assert_eq!(received, size, "every byte was taken once");
    // The source is read again from the saved hash state below the target's offset: there is one at every MiB.
    let first_of = |range: Option<&str>| -> u64 {
        range.unwrap().trim_start_matches("bytes=").split('-').next().unwrap().parse().unwrap()
    };
    let held = first_of(puts[1].header("content-range"));
    let gets: Vec<_> = source.requests_of_kind(RequestType::BlobGet).into_iter().filter(|get| get.sent > MIB).collect();
    assert_eq!(gets.len(), 2, "{}", source.describe_requests());
    let again_from = first_of(gets[1].header("range"));
    assert_eq!(again_from, held / MIB * MIB);
    // Bytes received from the source: what the first stream forwarded to the first PUT, and the second stream. At most
    // one chunk more was read and not forwarded.
    let small = image.blob_bytes() - size;
    let received = output["traffic"]["source"]["received"].as_u64().unwrap();
    let handed = output["traffic"]["target"]["sent"].as_u64().unwrap() - small - (size - held);
    let read_first = received - small - (size - again_from);
    assert!(handed >= held, "{handed} {held}");
    assert!((handed..=handed + MIB).contains(&read_first), "{read_first} bytes were read to hand on {handed}");
    assert_eq!(target.open_uploads(), 0);
}

#[tokio::test]
async fn a_target_that_forgets_its_session_gets_one_more_upload_of_that_blob() {
    let (source, registry) = tokio::join!(FaultRegistry::start(), DockerRegistry::start(DockerRegistryAuth::None));
    let relay = TcpProxy::start(&registry.host()).await;
    let image =
        TestImage::single("forgets").layers(2, 2000).layer(imgsync_tests::images::Layer::Synthetic(24 * MIB)).build();
    source.push("a", "1", &image);
    relay.cut_after(Direction::Up, 10 * MIB);
    sync(&format!("{}/a:1", source.host()), &format!("{}/b:1", relay.host())).await.assert_code(0);
    registry.assert_holds("b", "1", &image).await;
    let blobs = source.requests_of_kind(RequestType::BlobGet);
    let large = blobs.iter().filter(|request| request.reference.as_deref() == Some(&image.largest_blob())).count();
    assert_eq!(large, 2, "the large blob was read twice, the others once");
    assert_eq!(blobs.len() as u64, image.blobs.len() as u64 + 1, "{}", source.describe_requests());
}

#[tokio::test]
async fn an_answer_that_is_lost_after_the_last_byte_costs_no_second_upload() {
    let (source, target) = tokio::join!(FaultRegistry::start(), FaultRegistry::start());
    let image = images::big("lost-answer", 8 * MIB);
    source.push("a", "1", &image);
    target.on(RequestType::UploadPut).times(2).act(FaultAction::CutInsteadOfAnswer);
    sync(&format!("{}/a:1", source.host()), &format!("{}/b:1", target.host())).await.assert_code(0);
    target.assert_holds("b", "1", &image);
    let puts = target.requests_of_kind(RequestType::UploadPut).len();
    assert_eq!(puts, image.blobs.len(), "{}", target.describe_requests());
    assert_eq!(target.open_uploads(), 0, "{}", target.describe_requests());
}

#[tokio::test]
async fn many_transient_errors_are_retried_until_the_copy_completes() {
    let (source, target) = tokio::join!(FaultRegistry::start(), FaultRegistry::start());
    let image = images::multi_platform("storm");
    source.push("a", "1", &image);
    for (registry, kinds) in [
        (&source, [RequestType::ManifestGet, RequestType::BlobGet]),
        (&target, [RequestType::UploadPut, RequestType::ManifestPut]),
    ] {
        for kind in kinds {
            registry.on(kind).act(FaultAction::status(503));
            registry.on(kind).act(FaultAction::CutBefore);
            registry.on(kind).act(FaultAction::too_many_requests("0"));
        }
    }
    target.on(RequestType::UploadMount).act(FaultAction::status(502));
    target.on(RequestType::ManifestHead).act(FaultAction::CutBefore);
    sync(&format!("{}/a:1", source.host()), &format!("{}/b:1", target.host())).await.assert_code(0);
    target.assert_holds("b", "1", &image);
    target.assert_tags_complete();
    target.assert_children_came_first();
    assert_eq!(target.open_uploads(), 0, "{}", target.describe_requests());
}

#[tokio::test]
async fn a_registry_that_wants_chunks_gets_them() {
    let (source, target) = tokio::join!(FaultRegistry::start(), FaultRegistry::start());
    let image = images::big("chunks", 40 * MIB);
    source.push("a", "1", &image);
    // A proxy in front of the registry that limits the size of request bodies.
    let large = RequestMatcher::kind(RequestType::UploadPut).when(|request| {
        request.header("content-length").and_then(|length| length.parse::<u64>().ok()).is_some_and(|n| n > 20 * MIB)
    });
    target.on(large).always().act(FaultAction::status(413));
    sync(&format!("{}/a:1", source.host()), &format!("{}/b:1", target.host())).await.assert_code(0);
    target.assert_holds("b", "1", &image);
    assert_eq!(target.count(RequestType::UploadPatch), 3, "{}", target.describe_requests());
}

#[tokio::test]
async fn a_tag_that_moves_during_the_copy_gives_one_whole_image() {
    let (source, target) = tokio::join!(FaultRegistry::start(), FaultRegistry::start());
    let (before, after) = (images::multi_platform("before"), images::multi_platform("after"));
    source.push("a", "1", &before);
    source.push_untagged("a", &after);
    let gate = std::sync::Arc::new(tokio::sync::Semaphore::new(0));
    source.on(RequestType::BlobGet).act(FaultAction::Gate(gate.clone()));
    let (from, to) = (format!("{}/a:1", source.host()), format!("{}/b:1", target.host()));
    let running = tokio::spawn(async move { sync(&from, &to).await });
    source.wait_until(|source| source.count(RequestType::BlobGet) > 0, std::time::Duration::from_secs(20)).await;
    source.move_tag("a", "1", &after.root);
    gate.add_permits(1000);
    running.await.unwrap().assert_code(0);
    target.assert_holds("b", "1", &before);
}

#[tokio::test]
async fn thirty_blobs_at_once_that_the_source_cuts_once_each_are_all_resumed() {
    for size in [2 * MIB, MIB / 2] {
        let (source, target) = tokio::join!(FaultRegistry::start(), FaultRegistry::builder().blackhole().start());
        let image = TestImage::single("thirty-cuts");
        let image = (0..30).fold(image, |image, _| image.layer(imgsync_tests::images::Layer::Synthetic(size))).build();
        source.push("a", "1", &image);
        for layer in image.layers() {
            source
                .on(RequestMatcher::kind(RequestType::BlobGet).reference(&layer))
                .act(FaultAction::CutAfter { bytes: size / 2 });
        }
        let (from, to) = (format!("{}/a:1", source.host()), format!("{}/b:1", target.host()));
        let output = Imgsync::new()
            .args(["sync", &from, &to, "--json", "--retry-delay", "20ms", "--concurrency", "30"])
            .run()
            .await
            .assert_code(0);
        assert_eq!(output.json()["traffic"]["source"]["retries"], 30);
        target.assert_holds("b", "1", &image);
        assert_eq!(target.open_uploads(), 0);
    }
}

#[tokio::test]
async fn while_a_target_is_asked_how_far_it_is_no_stream_of_the_source_is_held_open() {
    let (source, target) = tokio::join!(FaultRegistry::start(), FaultRegistry::start());
    let image = images::big("not-held", 64 * MIB);
    source.push("a", "1", &image);
    target.on(large_put()).act(FaultAction::CutUploadAfter { bytes: 4 * MIB });
    let gate = std::sync::Arc::new(tokio::sync::Semaphore::new(0));
    target.on(RequestType::UploadStatus).act(FaultAction::Gate(gate.clone()));
    let (from, to) = (format!("{}/a:1", source.host()), format!("{}/b:1", target.host()));
    let running = tokio::spawn(async move { sync(&from, &to).await });
    let limit = std::time::Duration::from_secs(20);
    target.wait_until(|target| target.count(RequestType::UploadStatus) > 0, limit).await;
    source.wait_until(|source| source.in_flight() == 0, limit).await;
    gate.add_permits(1000);
    running.await.unwrap().assert_code(0);
    target.assert_holds("b", "1", &image);
}

#[tokio::test]
async fn a_resumed_part_that_the_target_refuses_is_sent_once_more_from_the_start() {
    for refusal in
        [FaultAction::error(400, "DIGEST_INVALID"), FaultAction::error(416, "RANGE_INVALID"), FaultAction::status(405)]
    {
        let (source, target) = tokio::join!(FaultRegistry::start(), FaultRegistry::start());
        let image = images::big("bad-resume", 16 * MIB);
        source.push("a", "1", &image);
        target.on(large_put()).act(FaultAction::CutUploadAfter { bytes: 5 * MIB });
        target.on(resumed_put()).always().act(refusal);
        sync(&format!("{}/a:1", source.host()), &format!("{}/b:1", target.host())).await.assert_code(0);
        target.assert_holds("b", "1", &image);
        assert_eq!(target.open_uploads(), 0, "{}", target.describe_requests());
    }
}

#[tokio::test]
async fn a_target_that_refuses_every_part_is_sent_the_blob_twice_and_no_more() {
    let (source, target) = tokio::join!(FaultRegistry::start(), FaultRegistry::start());
    let image = images::big("bad-always", 16 * MIB);
    source.push("a", "1", &image);
    target.on(large_put()).act(FaultAction::CutUploadAfter { bytes: 5 * MIB });
    target.on(large_put()).always().act(FaultAction::error(400, "DIGEST_INVALID"));
    let output = sync(&format!("{}/a:1", source.host()), &format!("{}/b:1", target.host())).await.assert_code(1);
    assert_eq!(output.json()["kind"], "refused");
    // Cut, refused when resumed, refused from the start.
    let puts = target.requests_of_kind(RequestType::UploadPut).into_iter().filter(|put| put.received > MIB).count();
    assert_eq!(puts, 3, "{}", target.describe_requests());
    assert_eq!(target.open_uploads(), 0, "{}", target.describe_requests());
    assert!(target.tags("b").is_empty());
}

#[tokio::test]
async fn a_session_that_is_elsewhere_than_was_thought_is_asked_again() {
    let (source, target) = tokio::join!(FaultRegistry::start(), FaultRegistry::start());
    let image = images::big("out-of-step", 16 * MIB);
    source.push("a", "1", &image);
    target.on(large_put()).act(FaultAction::CutUploadAfter { bytes: 5 * MIB });
    target.on(resumed_put()).act(FaultAction::error(416, "RANGE_INVALID"));
    sync(&format!("{}/a:1", source.host()), &format!("{}/b:1", target.host())).await.assert_code(0);
    target.assert_holds("b", "1", &image);
    assert_eq!(target.count(RequestType::UploadStatus), 2, "{}", target.describe_requests());
    let sessions: std::collections::HashSet<_> = target
        .requests_of_kind(RequestType::UploadPut)
        .into_iter()
        .filter(|put| put.reference.as_ref() == Some(&image.largest_blob()))
        .map(|put| put.path)
        .collect();
    assert_eq!(sessions.len(), 1, "{}", target.describe_requests());
}

#[tokio::test]
async fn a_session_that_does_not_say_how_far_it_is_is_ended_before_another_begins() {
    let (source, target) = tokio::join!(FaultRegistry::start(), FaultRegistry::start());
    let image = images::big("says-nothing", 8 * MIB);
    source.push("a", "1", &image);
    target.on(large_put()).act(FaultAction::CutUploadAfter { bytes: 3 * MIB });
    target.on(RequestType::UploadStatus).act(FaultAction::RemoveHeader("range".into()));
    sync(&format!("{}/a:1", source.host()), &format!("{}/b:1", target.host())).await.assert_code(0);
    target.assert_holds("b", "1", &image);
    assert_eq!(target.open_uploads(), 0, "{}", target.describe_requests());
}

#[tokio::test]
async fn a_small_blob_whose_upload_was_cut_leaves_no_session_behind() {
    let (source, target) = tokio::join!(FaultRegistry::start(), FaultRegistry::start());
    let image = images::single("small-cut");
    source.push("a", "1", &image);
    target.on(RequestType::UploadPut).times(2).act(FaultAction::CutBefore);
    sync(&format!("{}/a:1", source.host()), &format!("{}/b:1", target.host())).await.assert_code(0);
    target.assert_holds("b", "1", &image);
    assert_eq!(target.open_uploads(), 0, "{}", target.describe_requests());
}

#[tokio::test]
async fn a_chunk_of_which_less_was_taken_is_gone_on_with_from_there() {
    let (source, target) = tokio::join!(FaultRegistry::start(), FaultRegistry::start());
    let image = images::big("short-chunk", 40 * MIB);
    source.push("a", "1", &image);
    let whole = RequestMatcher::kind(RequestType::UploadPut).when(|request| {
        request.header("content-length").and_then(|length| length.parse::<u64>().ok()).is_some_and(|n| n > 20 * MIB)
    });
    target.on(whole).always().act(FaultAction::status(413));
    target.on(RequestType::UploadPatch).act(FaultAction::AnswerUploadEarly { after: 3 * MIB, status: 202 });
    sync(&format!("{}/a:1", source.host()), &format!("{}/b:1", target.host())).await.assert_code(0);
    target.assert_holds("b", "1", &image);
    assert_eq!(target.open_uploads(), 0, "{}", target.describe_requests());
}

/// Matches a GET of an open-ended range.
fn open_range(image: &TestImage) -> RequestMatcher {
    large_blob(image).when(|get| get.header("range").is_some_and(|range| range.ends_with('-')))
}

#[tokio::test]
async fn a_source_that_takes_no_open_range_is_read_on_by_a_closed_one_or_again() {
    let not_satisfiable = || FaultAction::error(416, "RANGE_INVALID");
    let other_part = || FaultAction::Status {
        code: 206,
        headers: vec![("content-range".into(), format!("bytes {}-{}/{}", 5 * MIB, 6 * MIB - 1, 6 * MIB))],
        body: vec![7; MIB as usize].into(),
    };
    for (case, open, closed, whole) in [
        ("closed ranges", not_satisfiable(), None, 1),
        ("no ranges", not_satisfiable(), Some(not_satisfiable()), 2),
        ("other parts", other_part(), Some(other_part()), 2),
        ("400", FaultAction::error(400, "UNSUPPORTED"), Some(FaultAction::status(501)), 2),
    ] {
        let (source, target) = tokio::join!(FaultRegistry::start(), FaultRegistry::start());
        let image = images::big("odd-ranges", 6 * MIB);
        source.push("a", "1", &image);
        source.on(large_blob(&image)).act(FaultAction::CutAfter { bytes: 3 * MIB + 77 });
        source.on(open_range(&image)).always().act(open);
        if let Some(closed) = closed {
            source.on(large_blob(&image).when(|get| get.header("range").is_some())).always().act(closed);
        }
        sync(&format!("{}/a:1", source.host()), &format!("{}/b:1", target.host())).await.assert_code(0);
        target.assert_holds("b", "1", &image);
        let gets = source
            .requests_of_kind(RequestType::BlobGet)
            .into_iter()
            .filter(|get| get.sent > MIB || get.header("range").is_some());
        let (with, without): (Vec<_>, Vec<_>) = gets.partition(|get| get.header("range").is_some());
        assert_eq!((with.len(), without.len()), (2, whole), "{case}\n{}", source.describe_requests());
        assert!(with[1].header("range").unwrap().ends_with(&format!("-{}", 6 * MIB - 1)), "{case}");
        // The upload continued meanwhile.
        let puts = target.count_where(|put| put.kind == RequestType::UploadPut && put.received > MIB);
        assert_eq!(puts, 1, "{case}\n{}", target.describe_requests());
    }
}

#[tokio::test]
async fn a_blob_that_really_ends_too_early_is_said_to_be_too_short() {
    let (source, target) = tokio::join!(FaultRegistry::start(), FaultRegistry::start());
    let image = images::big("really-short", 6 * MIB);
    source.push("a", "1", &image);
    source.on(large_blob(&image)).act(FaultAction::CutAfter { bytes: 3 * MIB });
    source
        .on(large_blob(&image).when(|get| get.header("range").is_some()))
        .always()
        .act(FaultAction::error(416, "RANGE_INVALID"));
    source.on(large_blob(&image)).always().act(FaultAction::Truncate { to: 3 * MIB });
    let output = sync(&format!("{}/a:1", source.host()), &format!("{}/b:1", target.host())).await.assert_code(1);
    assert_eq!(output.json()["kind"], "corrupt", "{output:?}");
    assert!(output.stderr.contains(&(3 * MIB).to_string()), "{}", output.stderr);
    assert!(target.tags("b").is_empty());
}
