//! A run of unchanged tags and a cold one: seconds, CPU, memory, requests, bytes of the store.
//!
//! `cargo bench --bench run`
#![allow(clippy::print_stdout, clippy::unwrap_used, reason = "a benchmark prints, and fails where it cannot go on")]

use std::path::Path;

use imgsync_tests::fault::FaultRegistry;
use imgsync_tests::images::{self, Layer, TargetContents, TestImage, floor};
use imgsync_tests::program::{Imgsync, Output};
use imgsync_tests::servers::{DockerRegistry, DockerRegistryAuth};

const REPOSITORIES: usize = 1000;
const TAGS: usize = 100;

#[tokio::main]
async fn main() {
    println!("{:<44} {:>8} {:>8} {:>8} {:>10} {:>10}", "", "seconds", "CPU s", "MiB", "source", "target");
    unchanged(true).await;
    unchanged(false).await;
    cold().await;
}

/// 1,000 repositories × 100 tags, all at the target already.
async fn unchanged(google: bool) {
    let start = || async {
        let builder = FaultRegistry::builder();
        if google { builder.google().start().await } else { builder.start().await }
    };
    let (source, target) = tokio::join!(start(), start());
    // Digests are compared, so each repository has an image of its own.
    for repository in 0..REPOSITORIES {
        let image = images::single(&format!("bench-{repository}"));
        for (registry, name) in [(&source, format!("p/r{repository}")), (&target, format!("m/p/r{repository}"))] {
            registry.push(&name, "v0", &image);
            (1..TAGS).for_each(|tag| registry.move_tag(&name, &format!("v{tag}"), &image.root));
        }
    }
    let rules = match google {
        true => format!("- from: {}/p/**\n", source.host()),
        false => (0..REPOSITORIES).map(|n| format!("- from: {}/p/r{n}\n", source.host())).collect(),
    };
    let program = configured(&format!("defaults: {{to: {}/m, naming: keep}}\nrules:\n{rules}", target.host()));
    let kind = if google { "Google style" } else { "plain" };
    for pass in ["first", "second"] {
        source.clear_requests();
        target.clear_requests();
        let output = run(&program).await;
        assert_eq!(output.json()["counts"]["unchanged"], REPOSITORIES * TAGS, "{}", output.stdout);
        print_row(&format!("100,000 unchanged tags, {kind}, {pass} run"), &output, source.total(), target.total());
    }
    let bytes = store_bytes(&program.state_dir());
    println!("  {:.1} bytes of store per tag after two runs", bytes as f64 / (REPOSITORIES * TAGS) as f64);
}

/// 400 tags of small images between two docker-registry servers, compared with the minimum of requests.
async fn cold() {
    let (source, target) =
        tokio::join!(DockerRegistry::start(DockerRegistryAuth::None), DockerRegistry::start(DockerRegistryAuth::None));
    let mut rules = String::new();
    let (mut least_source, mut least_target) = (0, 0);
    for repository in 0..40 {
        for tag in 0..10 {
            let child = |platform: &str| {
                TestImage::single(&format!("cold-{repository}-{tag}-{platform}"))
                    .layer(Layer::Shared(format!("base-{repository}-{platform}"), 2000))
                    .layer(Layer::File(1500))
                    .build()
            };
            let image = TestImage::index(&format!("cold-{repository}-{tag}"))
                .child(&child("amd64"), "linux/amd64")
                .child(&child("arm64"), "linux/arm64")
                .build();
            source.push(&format!("r{repository}"), &format!("v{tag}"), &image).await;
            let mut known = TargetContents::nothing();
            if tag > 0 {
                let shared = |platform: &str| child(platform).layers()[0].clone();
                known.in_repository.extend([shared("amd64"), shared("arm64")]);
            }
            let least = floor(&image, &known);
            least_source += least.source;
            least_target += least.target;
        }
        rules.push_str(&format!("- from: {}/r{repository}\n", source.host()));
    }
    least_source += 40;
    let program = configured(&format!("defaults: {{to: {}/m, naming: keep}}\nrules:\n{rules}", target.host()));
    source.clear_requests();
    let output = run(&program).await;
    let json = output.json();
    assert_eq!(json["counts"]["copied"], 400, "{}", output.stdout);
    let (from, to) = (source.requests().len() as u64, target.requests().len() as u64);
    print_row("400 tags of small images, cold", &output, from, to);
    println!(
        "  floor {least_source} + {least_target}: ratio {:.3} (aim 1.02)",
        (from + to) as f64 / (least_source + least_target) as f64
    );
}

fn configured(yaml: &str) -> Imgsync {
    let program = Imgsync::at(env!("CARGO_BIN_EXE_imgsync"));
    program.file("imgsync.yaml", yaml);
    program
}

async fn run(program: &Imgsync) -> Output {
    let file = program.work_dir().join("imgsync.yaml");
    program.again().args(["run", "--json", "--quiet", "-c"]).arg(file).run().await.assert_code(0)
}

fn print_row(what: &str, output: &Output, source: u64, target: u64) {
    println!(
        "{what:<44} {:>8.2} {:>8.2} {:>8} {source:>10} {target:>10}",
        output.elapsed.as_secs_f64(),
        output.cpu_seconds,
        output.peak_rss_bytes >> 20
    );
}

fn store_bytes(folder: &Path) -> u64 {
    let Ok(entries) = std::fs::read_dir(folder) else { return 0 };
    entries
        .filter_map(Result::ok)
        .map(|entry| match entry.metadata() {
            Ok(metadata) if metadata.is_dir() => store_bytes(&entry.path()),
            Ok(metadata) => metadata.len(),
            Err(_) => 0,
        })
        .sum()
}
