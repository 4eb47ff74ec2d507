//! Memory does not grow with the size of blobs.

use imgsync_tests::fault::FaultRegistry;
use imgsync_tests::images::{Layer, TestImage};
use imgsync_tests::program::Imgsync;

const MIB: u64 = 1 << 20;
/// Limits of private memory, without the executable, whose size differs between builds. A blob in flight takes up to
/// 1.6 MiB: four buffers of 400 KiB between the source's socket and the target's.
const MAX_BYTES_FOR_TWO: u64 = 16 * MIB;
const MAX_BYTES_FOR_TWENTY: u64 = 48 * MIB;

/// Returns peak memory in bytes, without and with the executable.
async fn peak_memory_bytes(image: &TestImage, concurrency: &str) -> (u64, u64) {
    let (source, target) = tokio::join!(FaultRegistry::start(), FaultRegistry::builder().blackhole().start());
    source.push("a", "1", image);
    let (from, to) = (format!("{}/a:1", source.host()), format!("{}/b:1", target.host()));
    let output = Imgsync::new().args(["sync", &from, &to, "--concurrency", concurrency]).run().await.assert_code(0);
    assert_eq!(target.tag_digest("b", "1").as_ref(), Some(&image.root));
    (output.peak_own_bytes, output.peak_rss_bytes)
}

#[tokio::test]
async fn two_layers_of_a_gib_take_less_than_16_mib() {
    let image =
        TestImage::single("gib").layer(Layer::Synthetic(1024 * MIB)).layer(Layer::Synthetic(1024 * MIB + 1)).build();
    let (peak, whole) = peak_memory_bytes(&image, "8").await;
    println!("peak: {} MiB, {} with its executable", peak / MIB, whole / MIB);
    assert!(peak < MAX_BYTES_FOR_TWO, "{} MiB", peak / MIB);
}

#[tokio::test]
async fn twenty_blobs_of_256_mib_in_flight_take_less_than_48_mib() {
    let layers = (0..20).fold(TestImage::single("twenty"), |image, n| image.layer(Layer::Synthetic(256 * MIB + n)));
    let (peak, whole) = peak_memory_bytes(&layers.build(), "20").await;
    println!("peak: {} MiB, {} with its executable", peak / MIB, whole / MIB);
    assert!(peak < MAX_BYTES_FOR_TWENTY, "{} MiB", peak / MIB);
}
