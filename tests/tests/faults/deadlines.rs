//! Every read and write against a peer that stalls, drips or never ends is given up in time, and Ctrl-C ends each at
//! once.

use std::time::{Duration, Instant};

use bytes::Bytes;
use futures_util::StreamExt as _;
use imgsync_tests::fault::{Bearer, FaultAction, FaultRegistry, RequestMatcher, RequestType, VendorKind};
use imgsync_tests::images::{self, TestImage};
use imgsync_tests::program::{Imgsync, Signal};

const MIB: u64 = 1 << 20;
/// Interval between dripped bytes, well below the stall limit: a limit on silence alone would wait for minutes.
const DRIP_INTERVAL: Duration = Duration::from_millis(300);
const STALL_TIMEOUT: &str = "800ms";
const LONG_STALL_TIMEOUT: &str = "5s";
/// Time limit of each operation on a busy machine. A target whose responses are replaced denies what it was sent, and
/// the copy waits until it may have seen it.
const GIVE_UP_TIMEOUT: Duration = Duration::from_secs(120);
/// Waits that run concurrently.
const MAX_CONCURRENT_WAITS: usize = 6;

/// Operation that waits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Operation {
    /// Copies an image whose largest blob has this many bytes.
    Copy(u64),
    /// Copies an image in chunks.
    CopyInPieces,
    /// Copies an image whose blobs are on another host.
    CopyFromElsewhere,
    Tags,
    Catalog,
    VendorTags,
}

const SMALL: Operation = Operation::Copy(1000);
const LARGE: Operation = Operation::Copy(12 * MIB);

/// Side that has the fault.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum FaultySide {
    Source,
    Target,
}

/// Part of the exchange that has the fault.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum ExchangePart {
    Head,
    Body,
    ErrorBody,
    Upload,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum WaitFault {
    Stall,
    Drip,
    Endless,
}

type Wait = (Operation, FaultySide, RequestType, ExchangePart);

/// Returns every request of a copy and of listings, with the parts that can be waited for.
fn waits() -> Vec<Wait> {
    use ExchangePart::{Body, ErrorBody, Head, Upload};
    use FaultySide::{Source, Target};
    let source = [RequestType::Token, RequestType::ManifestGet, RequestType::Referrers];
    let mut waits: Vec<Wait> =
        source.into_iter().flat_map(|kind| [Head, Body, ErrorBody].map(|part| (SMALL, Source, kind, part))).collect();
    let target =
        [RequestType::ManifestHead, RequestType::UploadMount, RequestType::UploadPut, RequestType::ManifestPut];
    for kind in target {
        waits.extend([(SMALL, Target, kind, Head), (SMALL, Target, kind, ErrorBody)]);
    }
    for kind in [RequestType::UploadMount, RequestType::UploadPut, RequestType::ManifestPut] {
        waits.push((SMALL, Target, kind, Body));
    }
    for task in [SMALL, LARGE] {
        waits.extend([Head, Body, ErrorBody].map(|part| (task, Source, RequestType::BlobGet, part)));
        waits.push((task, Target, RequestType::UploadPut, Upload));
    }
    waits.push((SMALL, Target, RequestType::ManifestPut, Upload));
    waits.push((Operation::CopyInPieces, Target, RequestType::UploadPatch, Upload));
    waits.push((Operation::CopyInPieces, Target, RequestType::UploadPatch, Head));
    waits
        .extend([Head, Body, ErrorBody].map(|part| (Operation::CopyFromElsewhere, Source, RequestType::BlobGet, part)));
    for (task, kind) in [
        (Operation::Tags, RequestType::Tags),
        (Operation::Catalog, RequestType::Catalog),
        (Operation::VendorTags, RequestType::ApiTags),
    ] {
        waits.extend([Head, Body, ErrorBody].map(|part| (task, Source, kind, part)));
    }
    waits
}

/// Returns the actions of a fault; `None` if it does not apply.
fn actions((_, end, kind, part): Wait, fault: WaitFault) -> Option<Vec<FaultAction>> {
    let failed = |bytes| FaultAction::Status {
        code: 500,
        headers: vec![("content-type".into(), "application/json".into())],
        body: Bytes::from(vec![b' '; bytes]),
    };
    // Most responses to writes have no body.
    let given = match end {
        FaultySide::Source => Vec::new(),
        FaultySide::Target => vec![FaultAction::ReplaceBody(Bytes::from(vec![b' '; 1000]))],
    };
    let with = |action| given.iter().cloned().chain([action]).collect();
    Some(match (part, fault) {
        (ExchangePart::Head, WaitFault::Stall) => vec![FaultAction::StallForever],
        (ExchangePart::Head, WaitFault::Drip) => vec![FaultAction::DripHead { every: DRIP_INTERVAL }],
        (ExchangePart::Head, WaitFault::Endless) => vec![FaultAction::EndlessHead],
        (ExchangePart::Body, WaitFault::Stall) => with(FaultAction::StallAfter { bytes: 3 }),
        (ExchangePart::Body, WaitFault::Drip) => with(FaultAction::Drip { after: 3, every: DRIP_INTERVAL }),
        // Only bodies that can be larger than a disk.
        (ExchangePart::Body, WaitFault::Endless) if kind == RequestType::UploadMount => return None,
        (ExchangePart::Body, WaitFault::Endless) => vec![FaultAction::BigBody { mib: 1 << 20, announced: false }],
        (ExchangePart::ErrorBody, WaitFault::Stall) => vec![failed(1000), FaultAction::StallAfter { bytes: 3 }],
        (ExchangePart::ErrorBody, WaitFault::Drip) => {
            vec![failed(1000), FaultAction::Drip { after: 3, every: DRIP_INTERVAL }]
        }
        (ExchangePart::ErrorBody, WaitFault::Endless) => vec![failed(64 << 20)],
        (ExchangePart::Upload, WaitFault::Stall) => vec![FaultAction::StallUploadAfter { bytes: 3 }],
        (ExchangePart::Upload, WaitFault::Drip) => vec![FaultAction::DripUpload { after: 3, every: DRIP_INTERVAL }],
        (ExchangePart::Upload, WaitFault::Endless) => return None,
    })
}

/// Registries and an image.
struct WaitFixture {
    source: FaultRegistry,
    target: FaultRegistry,
    elsewhere: FaultRegistry,
    image: TestImage,
}

/// Prepares the registries and the program that waits.
async fn fixture(task: Operation, kind: RequestType) -> (WaitFixture, Imgsync) {
    let builder = match (task, kind) {
        (_, RequestType::Token) => FaultRegistry::builder().bearer(Bearer::anonymous()),
        (Operation::VendorTags, _) => FaultRegistry::builder().vendor(VendorKind::Harbor),
        _ => FaultRegistry::builder(),
    };
    let (source, target, elsewhere) = tokio::join!(builder.start(), FaultRegistry::start(), FaultRegistry::start());
    let image = match task {
        LARGE => images::big("waits", 12 * MIB),
        Operation::CopyInPieces => images::big("waits", 4 * MIB),
        _ => images::big("waits", 1000),
    };
    for registry in [&source, &elsewhere] {
        registry.push("me/a", "1", &image);
        registry.push("me/a", "sig", &images::referrer("waits", &image));
    }
    if task == Operation::CopyFromElsewhere {
        let to = format!("{}{{path}}", elsewhere.url());
        source.on(RequestType::BlobGet).always().act(FaultAction::Redirect { to, status: 307 });
    }
    let (from, to) = (format!("{}/me/a:1", source.host()), format!("{}/b:1", target.host()));
    let program = match task {
        Operation::Copy(_) | Operation::CopyInPieces | Operation::CopyFromElsewhere => {
            Imgsync::new().args(["sync", &from, &to, "--referrers", "all"])
        }
        Operation::Tags => Imgsync::new().args(["tags", &format!("{}/me/a", source.host())]),
        Operation::Catalog => Imgsync::new().args(["tags", &format!("{}/**", source.host())]),
        Operation::VendorTags => Imgsync::new().args(["tags", "harbor.example.org/me/a"]),
    };
    let program = program.args(["--retry-delay", "10ms"]);
    let entry = match task {
        Operation::CopyInPieces => format!("  \"{}\": {{chunk: 1MiB}}\n", target.host()),
        Operation::VendorTags => {
            format!("  harbor.example.org: {{endpoint: '{0}', listing: harbor, api: '{0}'}}\n", source.url())
        }
        _ => String::new(),
    };
    if !entry.is_empty() {
        program.file("imgsync.yaml", format!("registries:\n{entry}"));
    }
    (WaitFixture { source, target, elsewhere, image }, program)
}

/// Adds the fault. Returns the registry that has it.
fn inject_fault(fixture: &WaitFixture, wait: Wait, actions: Vec<FaultAction>) -> &FaultRegistry {
    let (task, end, kind, _) = wait;
    let registry = match (task, end) {
        (Operation::CopyFromElsewhere, _) => &fixture.elsewhere,
        (_, FaultySide::Source) => &fixture.source,
        (_, FaultySide::Target) => &fixture.target,
    };
    let what = match (task, kind) {
        (_, RequestType::BlobGet) => RequestMatcher::kind(kind).reference(&fixture.image.largest_blob()),
        (LARGE, RequestType::UploadPut) => RequestMatcher::kind(kind).when(|request| {
            request.header("content-length").and_then(|length| length.parse::<u64>().ok()).is_some_and(|n| n > MIB)
        }),
        _ => RequestMatcher::kind(kind),
    };
    registry.on(what).always().act_all(actions);
    registry
}

/// Returns what is wrong with the end of a program that has such a fault. On a busy machine an earlier request may use
/// up the timeout; then a longer one is tried.
async fn is_given_up(wait: Wait, fault: WaitFault) -> Option<String> {
    let (task, end, kind, part) = wait;
    let mut ended = None;
    for timeout in [STALL_TIMEOUT, LONG_STALL_TIMEOUT] {
        let (fixture, program) = fixture(task, kind).await;
        let registry = inject_fault(&fixture, wait, actions(wait, fault)?);
        let program = program.args(["--attempts", "1", "--stall-timeout", timeout]);
        let output = program.limit(GIVE_UP_TIMEOUT).run().await;
        let reached = registry.count_where(|request| request.kind == kind) > 0;
        ended = Some((reached, output));
        if reached {
            break;
        }
    }
    let (reached, output) = ended?;
    // A response whose rest is already known does not fail the copy, a mount is optional, and without a usable vendor
    // API the registry itself is listed.
    let may_succeed = end == FaultySide::Target && (part == ExchangePart::Body || kind == RequestType::UploadMount)
        || (kind, fault) == (RequestType::ApiTags, WaitFault::Endless);
    let wrong = match output.code {
        _ if !reached => "was never asked",
        Some(1 | 3) => return None,
        Some(0) if may_succeed => return None,
        _ => "ended otherwise",
    };
    Some(format!("{wait:?} {fault:?} {wrong}: {output:?}"))
}

#[tokio::test]
async fn every_read_and_write_that_stalls_drips_or_never_ends_is_given_up() {
    let all = waits()
        .into_iter()
        .flat_map(|wait| [WaitFault::Stall, WaitFault::Drip, WaitFault::Endless].map(|fault| (wait, fault)));
    let wrong: Vec<String> = futures_util::stream::iter(all)
        .map(|(wait, fault)| is_given_up(wait, fault))
        .buffer_unordered(MAX_CONCURRENT_WAITS)
        .filter_map(std::future::ready)
        .collect()
        .await;
    assert!(wrong.is_empty(), "{} of them:\n{}", wrong.len(), wrong.join("\n"));
}

async fn ends_at_ctrl_c(wait: Wait, fault: WaitFault) -> Option<String> {
    let actions = actions(wait, fault)?;
    let (task, _, kind, _) = wait;
    let (fixture, program) = fixture(task, kind).await;
    let registry = inject_fault(&fixture, wait, actions);
    let mut running = program.limit(GIVE_UP_TIMEOUT).spawn();
    registry.wait_until(|registry| registry.count_where(|request| request.kind == kind) > 0, GIVE_UP_TIMEOUT).await;
    // In the middle of a dripping transfer.
    tokio::time::sleep(DRIP_INTERVAL).await;
    let asked = Instant::now();
    running.signal(Signal::INT);
    let output = running.wait().await;
    let took = asked.elapsed();
    (output.code != Some(4) || took > Duration::from_millis(2500)).then(|| format!("{wait:?} {took:?}: {output:?}"))
}

#[tokio::test]
async fn ctrl_c_ends_every_read_and_write_that_stalls_or_drips() {
    // Responses to writes are no longer needed and arrive before the signal.
    let lasts = |(_, end, _, part): &Wait| {
        (*end == FaultySide::Source || *part != ExchangePart::Body) && *part != ExchangePart::ErrorBody
    };
    let all = waits()
        .into_iter()
        .filter(lasts)
        .flat_map(|wait| [WaitFault::Stall, WaitFault::Drip].map(|fault| (wait, fault)));
    let wrong: Vec<String> = futures_util::stream::iter(all)
        .map(|(wait, fault)| ends_at_ctrl_c(wait, fault))
        .buffer_unordered(MAX_CONCURRENT_WAITS)
        .filter_map(std::future::ready)
        .collect()
        .await;
    assert!(wrong.is_empty(), "{} of them:\n{}", wrong.len(), wrong.join("\n"));
}

/// Replaces the size of the largest layer in the manifest.
fn claiming(image: &TestImage, size: u64, claimed: u64) -> Bytes {
    let text = String::from_utf8(image.root_manifest().bytes.to_vec()).unwrap();
    let lying = text.replace(&format!("\"size\": {size}"), &format!("\"size\": {claimed}"));
    assert_ne!(text, lying);
    Bytes::from(lying)
}

#[tokio::test]
async fn a_size_that_is_only_claimed_gives_an_image_no_more_time() {
    const CLAIMED: u64 = 1 << 49;
    // At two bytes per tenth of a second the stall limit never applies: the image's deadline ends the copy.
    for flow in
        [FaultAction::StallAfter { bytes: 2 * MIB }, FaultAction::Drip { after: MIB, every: Duration::from_millis(1) }]
    {
        let (source, target) = tokio::join!(FaultRegistry::start(), FaultRegistry::start());
        let image = images::big("claims", 8 * MIB);
        source.push("a", "1", &image);
        let manifest = claiming(&image, 8 * MIB, CLAIMED);
        let said = [FaultAction::ReplaceBody(manifest), FaultAction::RemoveHeader("docker-content-digest".into())];
        source.on(RequestType::ManifestGet).always().act_all(said);
        let blob = RequestMatcher::kind(RequestType::BlobGet).reference(&image.largest_blob());
        let length = FaultAction::SetHeader("content-length".into(), CLAIMED.to_string());
        source.on(blob).always().act_all([length, flow]);
        let run = Imgsync::new().args(["run", "--json", "--attempts", "1"]).limit(Duration::from_secs(60));
        let rule = format!("  - {{from: {}/a, to: {}/b}}\n", source.host(), target.host());
        run.file("imgsync.yaml", format!("timeout: 3s\nrules:\n{rule}"));
        let output = run.run().await.assert_code(1);
        assert!(output.stdout.contains("timed_out") && output.stdout.contains("not finished within"), "{output:?}");
        assert!(target.tags("b").is_empty());
    }
}

#[tokio::test]
async fn a_slow_line_works_in_both_directions_however_many_share_it() {
    // Half of each stream's share when sixteen streams share a link of 200 KiB/s.
    const RATE: u64 = 6 << 10;
    let (source, target) = tokio::join!(FaultRegistry::start(), FaultRegistry::start());
    for number in 0..4 {
        source.push("a", &number.to_string(), &images::big(&format!("slow-{number}"), 40_000));
    }
    source.on(RequestType::BlobGet).always().act(FaultAction::Throttle { bytes_per_second: RATE });
    target.on(RequestType::UploadPut).always().act(FaultAction::Throttle { bytes_per_second: RATE });
    let run = Imgsync::new().args(["run", "--json", "--attempts", "1", "--stall-timeout", "20s"]);
    run.file("imgsync.yaml", format!("rules:\n  - {{from: {}/a, to: {}/b}}\n", source.host(), target.host()));
    let report = run.run().await.assert_code(0).json();
    assert_eq!(report["counts"]["copied"], 4, "{report}");
}

#[tokio::test]
async fn our_own_bandwidth_limit_is_not_held_against_registries() {
    let (source, target) = tokio::join!(FaultRegistry::start(), FaultRegistry::start());
    let tags = 20;
    for number in 0..tags {
        source.push("a", &number.to_string(), &images::big(&format!("throttled-{number}"), 12_000));
    }
    source.push("a", "large", &images::big("throttled-large", 3 * MIB / 2));
    // The whole run takes half a minute or more: many times the stall limit and the deadline of an image.
    let run = Imgsync::new().args(["run", "--json", "--attempts", "1", "--stall-timeout", "2s", "--concurrency", "20"]);
    let rule = format!("  - {{from: {}/a, to: {}/b}}\n", source.host(), target.host());
    run.file("imgsync.yaml", format!("bandwidth: 50KiB\ntimeout: 2s\nrules:\n{rule}"));
    let output = run.run().await.assert_code(0);
    assert!(output.elapsed > Duration::from_secs(25), "{:?}: the limit was not kept", output.elapsed);
    assert_eq!(output.json()["counts"]["copied"], tags + 1);
}

#[tokio::test]
async fn a_listing_that_goes_on_for_ever_is_given_up() {
    let source = FaultRegistry::start().await;
    source.push("a", "1", &images::single("endless"));
    // Each page adds a tag and links to the next.
    let page = |request: &imgsync_tests::fault::RecordedRequest| {
        let next = (format!("</v2/a/tags/list?n=1000&last={0}>; rel=\"next\"", request.n), request.n);
        FaultAction::Status {
            code: 200,
            headers: vec![("link".into(), next.0)],
            body: format!("{{\"name\": \"a\", \"tags\": [\"t{}\"]}}", next.1).into(),
        }
    };
    source
        .on(RequestType::Tags)
        .always()
        .act_all([FaultAction::Delay(Duration::from_millis(20)), FaultAction::compute(page)]);
    let tags = Imgsync::new().args(["tags", &format!("{}/a", source.host()), "--stall-timeout", "200ms"]);
    let output = tags.limit(Duration::from_secs(90)).run().await.assert_code(1);
    assert!(output.stderr.contains("the listing was not complete within 6.0 s"), "{}", output.stderr);
}

#[tokio::test]
async fn images_whose_source_drips_do_not_keep_others_from_being_copied_for_longer_than_their_time() {
    let (source, target) = tokio::join!(FaultRegistry::start(), FaultRegistry::start());
    for number in 0..4 {
        let image = images::big(&format!("hostile-{number}"), 1000);
        source.push("a", &format!("0.{number}"), &image);
        let blob = RequestMatcher::kind(RequestType::BlobGet).reference(&image.largest_blob());
        source.on(blob).always().act(FaultAction::Drip { after: 0, every: Duration::from_secs(4) });
    }
    for number in 0..5 {
        source.push("a", &format!("1.{number}"), &images::single(&format!("honest-{number}")));
    }
    let run = Imgsync::new().args(["run", "--json", "--attempts", "1", "--timeout", "5s", "--concurrency", "4"]);
    run.file("imgsync.yaml", format!("rules:\n  - {{from: {}/a, to: {}/b}}\n", source.host(), target.host()));
    let output = run.limit(Duration::from_secs(60)).run().await.assert_code(1);
    let report = output.json();
    assert_eq!([&report["counts"]["copied"], &report["counts"]["failed"]], [5, 4], "{report}");
}
