//! Requests per image, compared with the computed minimum. Exact, the same on every machine.
//!
//! `cargo bench --bench requests`
#![allow(clippy::print_stdout, reason = "a benchmark prints")]

use imgsync_tests::fault::FaultRegistry;
use imgsync_tests::images::{self, TargetContents, TestImage, floor};
use imgsync_tests::program::Imgsync;

#[tokio::main]
async fn main() {
    let layers = (0..20).fold(TestImage::single("many-layers"), |image, n| image.layer(images::Layer::File(1000 + n)));
    let images: [(&str, TestImage); 7] = [
        ("one platform, one layer", images::single("single")),
        ("one platform, 20 layers", layers.build()),
        ("several platforms", images::multi_platform("multi")),
        ("index within an index", images::nested("nested")),
        ("layers shared by platforms", images::shared_layers("shared")),
        ("the same layer twice", images::layer_twice("twice")),
        ("artifact", images::artifact("artifact")),
    ];
    println!("{:<28} {:>14} {:>14} {:>7} {:>10}", "image", "floor", "fresh", "ratio", "unchanged");
    for (name, image) in images {
        let (source, target) = tokio::join!(FaultRegistry::start(), FaultRegistry::start());
        source.push("a", "1", &image);
        let (from, to) = (format!("{}/a:1", source.host()), format!("{}/b:1", target.host()));
        let sync = Imgsync::at(env!("CARGO_BIN_EXE_imgsync")).args(["sync", "--quiet", &from, &to]);
        sync.run().await.assert_code(0);
        let fresh = (source.total(), target.total());
        source.clear_requests();
        target.clear_requests();
        sync.run().await.assert_code(0);
        let least = floor(&image, &TargetContents::nothing());
        println!(
            "{name:<28} {:>14} {:>14} {:>7.3} {:>10}",
            format!("{} + {}", least.source, least.target),
            format!("{} + {}", fresh.0, fresh.1),
            (fresh.0 + fresh.1) as f64 / (least.source + least.target) as f64,
            format!("{} + {}", source.total(), target.total())
        );
    }
}
