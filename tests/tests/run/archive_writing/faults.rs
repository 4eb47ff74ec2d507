//! Sources that cut and lie, pipes that close, and large blobs.

use imgsync_tests::fault::{FaultAction, FaultRegistry, RequestMatcher, RequestType};
use imgsync_tests::images::{self, Layer, TestImage};
use imgsync_tests::program::Imgsync;

use super::{file_names, members, sync};

#[tokio::test]
async fn a_cut_layer_is_continued_where_it_was_cut() {
    let source = FaultRegistry::start().await;
    let image = images::big("cut", 3 << 20);
    source.push("app", "1", &image);
    let from = format!("{}/app:1", source.host());
    let blob = || RequestMatcher::kind(RequestType::BlobGet).reference(&image.largest_blob());
    source.on(blob()).act(FaultAction::CutAfter { bytes: 1 << 20 });
    source.on(blob()).act(FaultAction::CutAfter { bytes: 1 << 19 });
    let program = Imgsync::new();
    sync(&program, &[&from, "oci-archive:a.tar"]).run().await.assert_code(0);
    let gets = source.requests_of_kind(RequestType::BlobGet);
    let of_layer = gets.iter().filter(|get| get.reference.as_deref() == Some(&image.largest_blob()));
    assert_eq!(of_layer.count(), 3, "{}", source.describe_requests());
    // Nothing was sent twice, but for what was in flight when it was cut.
    assert!(source.bytes_sent() < (3 << 20) + (1 << 20), "{}", source.describe_requests());
    let members = members(&program.work_dir().join("a.tar"));
    let digest = images::sha256(&members.last().unwrap().1);
    assert_eq!(digest, image.largest_blob());
}

#[tokio::test]
async fn wrong_content_is_read_once_more_and_fails_if_it_stays_wrong() {
    // One that is read into memory, and one that is streamed.
    for image in [images::single("lies"), images::big("lies-big", 3 << 20)] {
        let source = FaultRegistry::start().await;
        source.push("app", "1", &image);
        let from = format!("{}/app:1", source.host());
        let program = Imgsync::new();
        let target = program.work_dir().join("a.tar");
        std::fs::write(&target, "the former archive").unwrap();
        let blob = || RequestMatcher::kind(RequestType::BlobGet).reference(&image.largest_blob());
        let lie = source.on(blob()).always().act(FaultAction::Corrupt { at: 100 });
        let output = sync(&program, &[&from, "oci-archive:a.tar"]).run().await.assert_code(1);
        assert!(output.stderr.contains(&image.largest_blob()) && output.stderr.contains("digest"), "{}", output.stderr);
        assert_eq!(lie.hits(), 2);
        assert_eq!(std::fs::read(&target).unwrap(), b"the former archive");
        lie.remove();

        source.on(blob()).act(FaultAction::Corrupt { at: 100 });
        sync(&program, &[&from, "oci-archive:a.tar"]).run().await.assert_code(0);
        for (path, content) in members(&target).iter().skip(3) {
            assert!(images::sha256(content).ends_with(path.rsplit('/').next().unwrap()));
        }
        assert_eq!(file_names(&program.work_dir()), ["a.tar"]);
    }
}

#[tokio::test]
async fn stdout_carries_the_archive_alone_and_a_closed_pipe_is_an_error() {
    let source = FaultRegistry::start().await;
    let image = images::big("piped", 3 << 20);
    source.push("app", "1", &image);
    let from = format!("{}/app:1", source.host());
    let program = Imgsync::new();
    sync(&program, &[&from, "oci-archive:a.tar"]).run().await.assert_code(0);
    let piped = program.file("piped.tar", "");
    let output = sync(&program, &[&from, "oci-archive:-"]).stdout_to(&piped).run().await.assert_code(0);
    assert!(output.stderr.contains("copied"), "{}", output.stderr);
    assert!(std::fs::read(&piped).unwrap() == std::fs::read(program.work_dir().join("a.tar")).unwrap());

    let script = format!(
        "'{}' sync {from} oci-archive:- | head -c 1000 >/dev/null; exit ${{PIPESTATUS[0]}}",
        program.path().display()
    );
    let output = Imgsync::at("/bin/bash").args(["-c", &script]).run().await.assert_code(1);
    assert!(output.stderr.contains("the pipe was closed") && output.stderr.contains("hint:"), "{}", output.stderr);
    assert!(!output.stderr.contains("panicked"), "{}", output.stderr);
}

#[tokio::test]
async fn memory_does_not_grow_with_the_size_of_a_layer() {
    let source = FaultRegistry::start().await;
    let mut peaks = Vec::new();
    for mib in [16_u64, 256] {
        let image = TestImage::single(&format!("memory-{mib}")).layer(Layer::Synthetic(mib << 20)).build();
        source.push("app", &mib.to_string(), &image);
        let from = format!("{}/app:{mib}", source.host());
        let program = Imgsync::new();
        let output = sync(&program, &[&from, "oci-archive:/dev/null"]).run().await.assert_code(0);
        peaks.push(output.peak_rss_bytes >> 20);
    }
    assert!(peaks[1] < peaks[0] + 16, "{peaks:?} MiB");
}
