//! CPU time per byte from registry to registry, compared with a bare relay in the same run: two std sockets, a buffer
//! of 64 KiB, the same hash. Prints the ratio; the aim is at most 1.25.
//!
//! `cargo bench --bench pipe [-- MIB]`
#![allow(clippy::print_stdout, clippy::unwrap_used, reason = "a benchmark prints, and fails where it cannot go on")]

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::TcpStream;

use imgsync_tests::fault::FaultRegistry;
use imgsync_tests::images::{Layer, TestImage};
use imgsync_tests::program::Imgsync;
use sha2::{Digest as _, Sha256};

const PAIRS: usize = 5;
const MIB: u64 = 1 << 20;

fn main() {
    let arguments: Vec<String> = std::env::args().collect();
    if let [_, mode, source, target, digest, size] = arguments.as_slice()
        && mode == "--relay"
    {
        return relay(source, target, digest, size.parse().unwrap());
    }
    let mib = arguments.iter().find_map(|argument| argument.parse::<u64>().ok()).unwrap_or(2048);
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap();
    runtime.block_on(compare(mib * MIB));
}

async fn compare(size: u64) {
    let image = TestImage::single("pipe").layer(Layer::Synthetic(size)).build();
    let digest = image.largest_blob();
    let source = FaultRegistry::start().await;
    source.push("a", "1", &image);
    let (mut ours, mut bare) = (Vec::new(), Vec::new());
    // Cost of the program without bytes: start, TLS roots, a small image.
    let small = TestImage::single("small").layer(Layer::Synthetic(1000)).build();
    source.push("small", "1", &small);
    let start = sync(&source, "small").await;
    for pair in 0..PAIRS {
        let program = sync(&source, "a").await - start;
        let target = FaultRegistry::builder().blackhole().start().await;
        let relay = Imgsync::at(std::env::current_exe().unwrap())
            .args(["--relay", &source.host(), &target.host(), &digest, &size.to_string()])
            .run()
            .await
            .assert_code(0);
        let per_byte = |seconds: f64| seconds * 1e9 / size as f64;
        println!(
            "pair {pair}: imgsync {:.3} ns/B, bare relay {:.3} ns/B, ratio {:.3}",
            per_byte(program),
            per_byte(relay.cpu_seconds),
            program / relay.cpu_seconds
        );
        ours.push(program);
        bare.push(relay.cpu_seconds);
    }
    let ratio = ours.iter().sum::<f64>() / bare.iter().sum::<f64>();
    println!("pipe: {ratio:.3} times the CPU of a bare relay per byte ({} MiB, {PAIRS} pairs; aim 1.25)", size / MIB);
}

async fn sync(source: &FaultRegistry, repository: &str) -> f64 {
    let target = FaultRegistry::builder().blackhole().start().await;
    let (from, to) = (format!("{}/{repository}:1", source.host()), format!("{}/b:1", target.host()));
    let program = Imgsync::at(env!("CARGO_BIN_EXE_imgsync")).args(["sync", "--quiet", &from, &to]);
    program.run().await.assert_code(0).cpu_seconds
}

/// Reads a blob from one registry and writes it to another.
fn relay(source: &str, target: &str, digest: &str, size: u64) {
    let (_, location) = request(target, "POST /v2/b/blobs/uploads/", "Content-Length: 0\r\n");
    let path = location.split_once(target).map_or(location.as_str(), |(_, path)| path).to_owned();
    let (mut from, _) = request(source, &format!("GET /v2/a/blobs/{digest}"), "");
    let mut to = TcpStream::connect(target).unwrap();
    let separator = if path.contains('?') { '&' } else { '?' };
    let head = format!(
        "PUT {path}{separator}digest={digest} HTTP/1.1\r\nHost: {target}\r\nContent-Length: {size}\r\n\
         Content-Type: application/octet-stream\r\n\r\n"
    );
    to.write_all(head.as_bytes()).unwrap();
    let (mut buffer, mut hash, mut left) = (vec![0; 64 << 10], Sha256::new(), size);
    // Bytes buffered while reading the response head.
    let ahead = from.buffer().to_vec();
    hash.update(&ahead);
    to.write_all(&ahead).unwrap();
    left -= ahead.len() as u64;
    let from = from.get_mut();
    while left > 0 {
        let count = from.read(&mut buffer).unwrap();
        assert!(count > 0, "the source ended early");
        hash.update(&buffer[..count]);
        to.write_all(&buffer[..count]).unwrap();
        left -= count as u64;
    }
    let found = hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect::<String>();
    assert_eq!(format!("sha256:{found}"), digest);
    let mut status = String::new();
    BufReader::new(to).read_line(&mut status).unwrap();
    assert!(status.contains(" 201 "), "{status}");
}

/// Sends a request and reads the response head; returns the `Location` too.
fn request(host: &str, line: &str, headers: &str) -> (BufReader<TcpStream>, String) {
    let mut stream = TcpStream::connect(host).unwrap();
    stream.write_all(format!("{line} HTTP/1.1\r\nHost: {host}\r\n{headers}\r\n").as_bytes()).unwrap();
    let (mut reader, mut location) = (BufReader::new(stream), String::new());
    loop {
        let mut line = String::new();
        reader.read_line(&mut line).unwrap();
        match line.trim_end().split_once(": ") {
            Some((name, value)) if name.eq_ignore_ascii_case("location") => location = value.to_owned(),
            None if line.trim_end().is_empty() => return (reader, location),
            _ => {}
        }
    }
}
