//! Hostile input of any kind: the memory of a process stays below 256 MiB, and other work continues.

use std::time::Duration;

use imgsync_tests::ServeProcess;
use imgsync_tests::fault::{FaultAction, FaultRegistry, RequestMatcher, RequestType};
use imgsync_tests::images::{self, Layer, TestImage};
use imgsync_tests::program::{Imgsync, Output, Signal};
use serde_json::json;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

const MIB: u64 = 1 << 20;
/// Limit of private memory under every input.
const MAX_OWN_BYTES: u64 = 256 * MIB;

fn page(body: Vec<u8>) -> FaultAction {
    let headers = vec![("content-type".to_owned(), "application/json".to_owned())];
    FaultAction::Status { code: 200, headers, body: body.into() }
}

/// Builds a page of tags of six hexadecimal digits.
fn tag_page(tags: usize) -> Vec<u8> {
    page_of((0..tags).map(|tag| format!("{tag:06x}")))
}

fn page_of(tags: impl Iterator<Item = String>) -> Vec<u8> {
    let mut body = br#"{"name":"a","tags":["#.to_vec();
    for tag in tags {
        body.extend_from_slice(format!("\"{tag}\",").as_bytes());
    }
    body.pop();
    body.extend_from_slice(b"]}");
    body
}

async fn list(registry: &FaultRegistry, repository: &str, flags: &[&str]) -> Output {
    let name = format!("{}/{repository}", registry.host());
    Imgsync::new().args(["tags", "--attempts", "1", &name]).args(flags).run().await
}

#[track_caller]
fn assert_below(output: &Output, limit: u64) {
    let peak = output.peak_own_bytes;
    assert!(peak < limit, "{} MiB", peak / MIB);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_page_of_14_million_tags_is_an_error_and_not_read_to_its_end() {
    let registry = FaultRegistry::start().await;
    let body = tag_page(14_000_000);
    assert!(body.len() as u64 > 119 * MIB);
    registry.on(RequestType::Tags).always().act(page(body));
    let output = list(&registry, "a/app", &[]).await.assert_code(1);
    assert!(output.stderr.contains("it lists more than 300000 entries"), "{}", output.stderr);
    assert_below(&output, 96 * MIB);
    assert!(registry.bytes_sent() < 40 * MIB, "{} MiB were sent", registry.bytes_sent() / MIB);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_page_of_100_000_tags_takes_less_than_80_mib() {
    let registry = FaultRegistry::start().await;
    registry.on(RequestType::Tags).always().act(page(tag_page(100_000)));
    let output = list(&registry, "a/app", &[]).await.assert_code(0);
    assert_eq!(output.stdout.lines().count(), 100_000);
    assert_below(&output, 80 * MIB);
}

#[tokio::test(flavor = "multi_thread")]
async fn two_hundred_thousand_tags_are_listed_and_planned() {
    let registry = FaultRegistry::start().await;
    registry.on(RequestType::Tags).always().act(page(tag_page(200_000)));
    let output = list(&registry, "a/app", &[]).await.assert_code(0);
    assert_eq!(output.stdout.lines().count(), 200_000);
    assert_below(&output, MAX_OWN_BYTES);
    // Planned in full before the first copy starts.
    let target = FaultRegistry::start().await;
    let run = Imgsync::new();
    run.file("imgsync.yaml", format!("rules: [{{from: {}/a/app, to: {}/copies}}]", registry.host(), target.host()));
    let mut run = run.args(["run", "--quiet"]).spawn();
    registry.wait_until(|registry| registry.count(RequestType::ManifestGet) > 0, Duration::from_secs(300)).await;
    run.signal(Signal::KILL);
    assert_below(&run.wait().await, MAX_OWN_BYTES);
}

#[tokio::test(flavor = "multi_thread")]
async fn texts_and_fillers_of_a_page_are_limited() {
    let registry = FaultRegistry::start().await;
    let long = 100 * MIB as usize;
    let bodies = [
        (
            [br#"{"tags":[""#.to_vec(), vec![b'x'; long], br#""]}"#.to_vec()].concat(),
            Some("a text in it has more than 1 MiB"),
        ),
        (
            [br#"{"tags":["1"],"more":""#.to_vec(), vec![b'x'; long], br#""}"#.to_vec()].concat(),
            Some("a text in it has more"),
        ),
        ([br#"{"tags":["1"]"#.to_vec(), vec![b' '; long], b"}".to_vec()].concat(), None),
        ([br#"{"tags":["1"],"more":["#.to_vec(), b"[[],{}],".repeat(long / 8), b"0]}".to_vec()].concat(), None),
    ];
    for (body, words) in bodies {
        registry.on(RequestType::Tags).act(page(body));
        let output = list(&registry, "a/app", &[]).await.assert_code(i32::from(words.is_some()));
        assert!(output.stderr.contains(words.unwrap_or("1 of 1 tag")), "{}", output.stderr);
        assert_below(&output, 64 * MIB);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn twenty_listings_at_once_share_one_budget_and_all_are_listed() {
    let registry = FaultRegistry::start().await;
    let names: Vec<String> = (0..20).map(|n| format!("p/r{n:02}")).collect();
    registry.on(RequestType::Catalog).always().act(FaultAction::json(&json!({"repositories": names})));
    registry
        .on(RequestMatcher::kind(RequestType::Tags).repository("p"))
        .always()
        .act(FaultAction::error(404, "NAME_UNKNOWN"));
    registry.on(RequestType::Tags).always().act(page(page_of((0..100_000).map(|tag| format!("1.{tag}")))));
    let output = list(&registry, "p/*", &["--newest", "1"]).await.assert_code(0);
    assert!(output.stderr.contains("20 of 2,000,000 tags in 20 repositories"), "{}", output.stderr);
    assert_below(&output, MAX_OWN_BYTES);
}

#[tokio::test(flavor = "multi_thread")]
async fn hostile_listings_keep_no_honest_one_from_being_listed() {
    let registry = FaultRegistry::start().await;
    let names: Vec<String> = (0..40).map(|n| format!("p/r{n:02}")).collect();
    registry.on(RequestType::Catalog).always().act(FaultAction::json(&json!({"repositories": names})));
    let is_hostile = |request: &imgsync_tests::fault::RecordedRequest| {
        request.repository.as_deref().is_some_and(|name| name.ends_with(['0', '2', '4', '6', '8']))
    };
    registry.on(RequestMatcher::kind(RequestType::Tags).when(is_hostile)).always().act(page(tag_page(2_000_000)));
    registry
        .on(RequestMatcher::kind(RequestType::Tags).repository("p"))
        .always()
        .act(FaultAction::error(404, "NAME_UNKNOWN"));
    registry.on(RequestType::Tags).always().act(page(tag_page(10)));
    let output = list(&registry, "p/*", &["-q"]).await.assert_code(1);
    assert_eq!(output.stdout.lines().count(), 20 * 10);
    assert_below(&output, MAX_OWN_BYTES);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_catalog_and_lists_of_referrers_are_limited_too() {
    let registry = FaultRegistry::start().await;
    registry.on(RequestType::Tags).always().act(FaultAction::error(404, "NAME_UNKNOWN"));
    let names: Vec<String> = (0..1_000_000).map(|n| format!("p/r{n}")).collect();
    registry.on(RequestType::Catalog).always().act(page(json!({"repositories": names}).to_string().into_bytes()));
    let output = list(&registry, "p/*", &[]).await.assert_code(1);
    assert!(output.stderr.contains("it lists more than 300000 entries"), "{}", output.stderr);
    assert_below(&output, 96 * MIB);

    let (source, target) = tokio::join!(FaultRegistry::start(), FaultRegistry::start());
    source.push("a", "1", &images::single("referred to"));
    let entry = |n: usize| json!({"mediaType": "a/b", "digest": images::sha256(&n.to_be_bytes()), "size": 1});
    let index = json!({"schemaVersion": 2, "manifests": (0..50_000).map(entry).collect::<Vec<_>>()});
    let headers = vec![("content-type".to_owned(), "application/vnd.oci.image.index.v1+json".to_owned())];
    let body = index.to_string().into_bytes().into();
    source.on(RequestType::Referrers).always().act(FaultAction::Status { code: 200, headers, body });
    let (from, to) = (format!("{}/a:1", source.host()), format!("{}/a:1", target.host()));
    let output = Imgsync::new().args(["sync", &from, &to, "--referrers", "all"]).run().await.assert_code(1);
    assert!(output.stderr.contains("it lists more than 10000 entries"), "{}", output.stderr);
    assert_below(&output, 96 * MIB);
}

async fn check(config: &str) -> Output {
    let check = Imgsync::new();
    let file = check.file("imgsync.yaml", config);
    let output = check.args(["config", "check", "-c"]).arg(file).run().await.assert_code(2);
    assert!(output.stderr.len() < 4 << 20, "{} bytes", output.stderr.len());
    assert_below(&output, MAX_OWN_BYTES);
    output
}

#[tokio::test]
async fn aliases_of_a_configuration_take_no_gigabytes() {
    let mib = "x".repeat(1 << 20);
    let aliases = "*a, ".repeat(19_000);
    let output = check(&format!("a: &a {mib}\nb: [{aliases}*a]\n")).await;
    assert!(output.stderr.contains("more than 8 MiB"), "{}", &output.stderr[..1000]);
    // Anchors within anchors are copies as well.
    let nested = format!("{}{mib}{}", (0..60).map(|n| format!("&a{n} [")).collect::<String>(), "]".repeat(60));
    assert!(check(&format!("a: {nested}\n")).await.stderr.contains("more than 8 MiB"));
}

#[tokio::test]
async fn problems_of_a_configuration_are_shown_up_to_a_number() {
    let flow: String = (0..20_000).map(|n| format!("unknown{n}: 1, ")).collect();
    let block: String = (0..20_000).map(|n| format!("unknown{n}: 1\n")).collect();
    let twice = "rules: []\n".repeat(20_000);
    for config in [format!("{{{flow}}}"), block, twice] {
        let output = check(&config).await;
        assert!(output.stderr.contains("more problems are not shown"), "{}", &output.stderr[..1000]);
        assert_eq!(output.stderr.matches("error: ").count(), 51);
    }
}

#[tokio::test]
async fn variables_and_values_of_a_configuration_are_limited() {
    let variable = Imgsync::new().env("LARGE", "x".repeat(100_000));
    let file = variable.file("imgsync.yaml", format!("rules: [{}]", "\"${LARGE}\", ".repeat(20_000)));
    let output = variable.args(["config", "check", "-c"]).arg(file).run().await.assert_code(2);
    assert!(output.stderr.contains("more than 8 MiB"), "{}", &output.stderr[..1000]);
    assert_below(&output, MAX_OWN_BYTES);
    let output = check(&format!("a: [{}0]", "0,".repeat(2_000_000))).await;
    assert!(output.stderr.contains("more than 500000 values"), "{}", &output.stderr[..1000]);
    let output = check(&"#".repeat(17 << 20)).await;
    assert!(output.stderr.contains("at most 16 MiB"), "{}", &output.stderr[..1000]);
}

#[tokio::test(flavor = "multi_thread")]
async fn health_is_answered_while_3000_half_requests_are_held() {
    let served = ServeProcess::start(&Imgsync::new().open_files(1024, 1024), &[]).await;
    let address = served.url.strip_prefix("http://").unwrap().to_owned();
    let mut held = Vec::new();
    for _ in 0..3000 {
        let mut half = TcpStream::connect(&address).await.unwrap();
        half.write_all(b"GET /healthz HTTP/1.1\r\nHost: ").await.unwrap();
        held.push(half);
    }
    for path in ["/healthz", "/readyz", "/metrics"] {
        let answer =
            tokio::time::timeout(Duration::from_secs(5), served.fetch(path)).await.expect("it answers at once");
        assert_eq!(answer.status(), 200, "{path}");
    }
    // A half-sent request cannot hold a connection forever.
    let mut last = held.pop().unwrap();
    let mut rest = Vec::new();
    let ended = tokio::time::timeout(Duration::from_secs(40), last.read_to_end(&mut rest)).await;
    assert!(ended.is_ok(), "it is still open");
    // The others hold theirs, while requests are still served.
    let (status, _) = served.get("status").await;
    assert_eq!(status, 200);
    served.stop().await.assert_code(0);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_soft_limit_of_open_files_is_raised_to_the_hard_one() {
    let served = ServeProcess::start(&Imgsync::new().open_files(128, 4096), &[]).await;
    let limits = std::fs::read_to_string(format!("/proc/{}/limits", served.running.pid())).unwrap();
    let line = limits.lines().find(|line| line.starts_with("Max open files")).unwrap();
    let numbers: Vec<&str> = line.split_whitespace().filter(|word| word.parse::<u64>().is_ok()).collect();
    assert_eq!(numbers, ["4096", "4096"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_hundred_images_at_once_go_into_a_layout_with_1024_files() {
    let source = FaultRegistry::builder().latency(Duration::from_millis(20)).start().await;
    for tag in 0..120 {
        let image = TestImage::single(&format!("image-{tag}"));
        let image = (0..12).fold(image, |image, layer| image.layer(Layer::Synthetic(40_000 + tag * 100 + layer)));
        source.push("a/app", &format!("v{tag}"), &image.build());
    }
    let run = Imgsync::new().open_files(1024, 1024);
    run.file("imgsync.yaml", format!("concurrency: 100\nrules: [{{from: {}/a/app, to: 'oci:copies'}}]", source.host()));
    let output = run.args(["run", "--json", "--attempts", "1"]).run().await.assert_code(0);
    let json = output.json();
    assert_eq!((&json["counts"]["copied"], &json["counts"]["failed"]), (&json!(120), &json!(0)), "{json:#}");
    assert!(!output.stderr.contains("Too many open files"), "{}", output.stderr);
}
