//! Two registries for experiments: a slow one with images of some size, and an empty one.
//!
//! `cargo run -p imgsync-tests --example playground [BYTES_PER_SECOND]`, then run the printed `imgsync sync` commands.
#![allow(clippy::print_stdout, reason = "it is there to be read")]

use imgsync_tests::fault::{FaultAction, FaultRegistry, RequestType};
use imgsync_tests::images::{self, TestImage};

#[tokio::main]
async fn main() {
    let rate = std::env::args().nth(1).and_then(|rate| rate.parse().ok()).unwrap_or(4 << 20);
    let (source, target) = tokio::join!(FaultRegistry::start(), FaultRegistry::builder().blackhole().start());
    source.push("team/app", "1.0", &TestImage::single("playground").layers(4, 30 << 20).layers(6, 200_000).build());
    source.push("team/multi", "1.0", &images::multi_platform("playground-multi"));
    source.on(RequestType::BlobGet).always().act(FaultAction::Throttle { bytes_per_second: rate });
    println!("imgsync sync {}/team/app:1.0 {}/mirror/app", source.host(), target.host());
    println!("imgsync sync {}/team/multi:1.0 {}/mirror/multi", source.host(), target.host());
    println!("ends on Ctrl-C");
    std::future::pending::<()>().await;
}
