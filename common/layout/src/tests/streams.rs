//! Archives that come out of a pipe: each blob is read while it passes, and what is out of order is refused.

use std::fs::File;
use std::io::Write as _;
use std::os::fd::OwnedFd;
use std::time::Duration;

use tokio_util::sync::CancellationToken;

use super::archives::{TarFile, index_json};
use super::*;

const MINUTE: PipeTimeout = PipeTimeout { limit: Duration::from_secs(60), option: None };
const TIMEOUTS: PipeTimeouts = PipeTimeouts { start: MINUTE, stall: MINUTE };

/// Content that can be told apart at every offset.
fn content(seed: u8, bytes: usize) -> Vec<u8> {
    (0..bytes).map(|at| (at / 251) as u8 ^ (at % 251) as u8 ^ seed).collect()
}

fn ordered(layers: &[&[u8]]) -> TarFile {
    let image = manifest(layers);
    let tar = TarFile::new()
        .file("oci-layout", br#"{"imageLayoutVersion":"1.0.0"}"#)
        .file("index.json", index_json(&image).as_bytes())
        .file("notes.txt", b"not JSON, and not a blob")
        .blob(image.bytes())
        .blob(b"{}");
    layers.iter().fold(tar, |tar, layer| tar.blob(layer))
}

/// Returns a pipe through which the bytes come, and which is closed then.
fn pipe_of(bytes: Vec<u8>) -> File {
    let (reader, mut writer) = std::io::pipe().unwrap();
    std::thread::spawn(move || {
        // The reader may stop early.
        let _ = writer.write_all(&bytes);
    });
    File::from(OwnedFd::from(reader))
}

async fn open(bytes: Vec<u8>) -> Result<Layout> {
    Layout::open_stream(pipe_of(bytes), &"oci-archive:-".parse().unwrap(), TIMEOUTS, &CancellationToken::new()).await
}

#[tokio::test]
async fn each_blob_is_read_while_it_passes() {
    let (one, two, three) = (content(1, 300_000), content(2, 70_000), content(3, 1000));
    let layout = open(ordered(&[&one, &two, &three]).finish()).await.unwrap();
    assert!(layout.is_stream() && !layout.is_sequential());
    let image = layout.repository(None).get_manifest(&tag("1")).await.unwrap();
    assert_eq!(image.digest(), manifest(&[&one, &two, &three]).digest());
    assert!(layout.is_in_memory(&blob(b"{}").digest) && !layout.is_in_memory(&blob(&one).digest));
    let next = async || layout.next_streamed_blob().await.unwrap();
    assert_eq!(next().await, Some(blob(&one).digest));
    assert!(read(&layout, &blob(&one), 0).await.unwrap() == one);
    // Its last bytes are still there, and configs always are.
    assert!(read(&layout, &blob(&one), 0).await.unwrap() == one);
    assert_eq!(read(&layout, &blob(b"{}"), 0).await.unwrap(), b"{}");
    assert_eq!(next().await, Some(blob(&two).digest));
    // Skipped, but for its end.
    assert!(read(&layout, &blob(&two), 60_000).await.unwrap() == two[60_000..]);
    let error = read(&layout, &blob(&two), 0).await.unwrap_err();
    assert_eq!((error.kind(), error.hint().unwrap().contains("--spool DIR")), (ErrorKind::Unsupported, true));
    assert_eq!(next().await, Some(blob(&three).digest));
    let error = read(&layout, &blob(&one), 0).await.unwrap_err();
    assert!(error.to_string().contains("has passed it"), "{error}");
    assert_eq!((next().await, next().await), (None, None));
    // What was never there.
    let error = read(&layout, &blob(b"other"), 0).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::NotFound, "{error}");
}

#[tokio::test]
async fn the_last_mebibytes_of_a_large_blob_can_be_read_again() {
    let large = content(7, 20 << 20);
    let layout = open(ordered(&[&large]).finish()).await.unwrap();
    layout.next_streamed_blob().await.unwrap();
    let mut stream = layout.open_blob(&blob(&large), 0).await.unwrap().stream;
    let mut at = 0;
    while at < 13 << 20 {
        at += stream.next_chunk().await.unwrap().unwrap().len();
    }
    // The chunk after it may be read already.
    let again = at - (8 << 20) + (256 << 10);
    assert!(read(&layout, &blob(&large), again as u64).await.unwrap() == large[again..]);
    let error = read(&layout, &blob(&large), at as u64 - (8 << 20) - 1).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unsupported, "{error}");
}

#[tokio::test]
async fn what_does_not_come_first_is_refused_with_the_way_out() {
    let image = manifest(&[b"one"]);
    let layout = || TarFile::new().file("oci-layout", br#"{"imageLayoutVersion":"1.0.0"}"#);
    let index = index_json(&image);
    // The index after a layer, as skopeo, ctr and docker write it.
    let late_index = layout().blob(b"one").blob(b"{}").blob(image.bytes()).file("index.json", index.as_bytes());
    let error = open(late_index.finish()).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unsupported, "{error}");
    assert!(error.to_string().contains("its index does not come first"), "{error}");
    assert!(error.hint().unwrap().contains("--spool DIR"), "{error:?}");
    // A manifest after a layer.
    let late = layout().file("index.json", index.as_bytes()).blob(b"one").blob(b"{}").blob(image.bytes());
    let opened = open(late.finish()).await.unwrap();
    let error = opened.repository(None).get_manifest(&tag("1")).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unsupported, "{error}");
    assert!(error.to_string().contains("does not come before the layers"), "{error}");
    // A format without manifests.
    let pipe = pipe_of(Vec::new());
    let docker = "docker-archive:-".parse().unwrap();
    let error = Layout::open_stream(pipe, &docker, TIMEOUTS, &CancellationToken::new()).await.unwrap_err();
    assert!(error.hint().unwrap().contains("--spool DIR"), "{error:?}");
}

#[tokio::test]
async fn damage_is_noticed_at_the_latest_at_the_end() {
    let one = content(1, 300_000);
    let whole = ordered(&[&one]).finish();
    let to_end = async |bytes: Vec<u8>| -> Result<()> {
        let layout = open(bytes).await?;
        layout.repository(None).get_manifest(&tag("1")).await?;
        layout.finish_stream().await
    };
    to_end(whole.clone()).await.unwrap();
    for cut in [100, 600, 2000, whole.len() - 300_000, whole.len() - 2000] {
        let error = to_end(whole[..cut].to_vec()).await.unwrap_err();
        assert!(matches!(error.kind(), ErrorKind::Corrupt | ErrorKind::InvalidResponse), "cut at {cut}: {error}");
    }
    let layout = open(whole[..whole.len() - 2000].to_vec()).await.unwrap();
    layout.next_streamed_blob().await.unwrap();
    let error = read(&layout, &blob(&one), 0).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Corrupt, "{error}");
    assert!(error.to_string().contains("ended in the middle"), "{error}");
    // Two members of one name, and much after the end.
    let error = to_end(ordered(&[&one]).blob(&one).finish()).await.unwrap_err();
    assert!(error.to_string().contains("two members"), "{error}");
    to_end([&whole[..], &[0; 20 << 10]].concat()).await.unwrap();
    let error = to_end([whole, vec![1; 17 << 20]].concat()).await.unwrap_err();
    assert!(error.to_string().contains("follow the end"), "{error}");
}

#[tokio::test]
async fn a_pipe_that_stalls_ends_at_its_limit_and_by_cancellation() {
    let whole = ordered(&[&content(1, 300_000)]).finish();
    for compress in [false, true] {
        let bytes = match compress {
            false => whole.clone(),
            true => {
                let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::none());
                encoder.write_all(&whole).unwrap();
                encoder.finish().unwrap()
            }
        };
        let opened = async |stall: Duration, cancel: &CancellationToken| {
            let (reader, mut writer) = std::io::pipe().unwrap();
            // A decoder reads ahead.
            writer.write_all(&bytes[..60_000]).unwrap();
            let stall = PipeTimeout { limit: stall, option: Some("--stall-timeout") };
            let timeouts = PipeTimeouts { stall, ..TIMEOUTS };
            let pipe = File::from(OwnedFd::from(reader));
            let layout = Layout::open_stream(pipe, &"oci-archive:-".parse().unwrap(), timeouts, cancel).await.unwrap();
            layout.next_streamed_blob().await.unwrap();
            (layout, writer)
        };
        let (layout, _writer) = opened(Duration::from_millis(200), &CancellationToken::new()).await;
        let error = layout.next_streamed_blob().await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::TimedOut, "{error}");
        assert!(error.to_string().contains("--stall-timeout"), "{error:?}");
        let cancel = CancellationToken::new();
        let (layout, _writer) = opened(MINUTE.limit, &cancel).await;
        let (done, ()) = tokio::join!(layout.finish_stream(), async { cancel.cancel() });
        assert!(done.unwrap_err().is_cancelled());
    }
}
