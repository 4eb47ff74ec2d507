//! Registries that limit concurrent requests, or refuse some without `Retry-After`: every copy completes and no attempt
//! is spent.

use std::time::Duration;

use futures_util::future::join_all;
use imgsync_oci::retry::RetryPolicy;
use imgsync_registry::{Access, ClientSettings, ManifestRef, RegistrySettings};
use imgsync_tests::fault::{FaultAction, FaultRegistry, Quirks, RequestMatcher, RequestType};
use imgsync_tests::images::{self, Layer, TestImage};
use imgsync_tests::program::{Imgsync, Signal};

use super::client::{client, repository};

const RUN_TIMEOUT: Duration = Duration::from_secs(90);

async fn registry_with_max_in_flight(most: u64, status: u16) -> FaultRegistry {
    let quirks = Quirks { max_in_flight: Some((most, status)), ..Quirks::default() };
    FaultRegistry::builder().latency(Duration::from_millis(15)).quirks(quirks).start().await
}

fn refused(registry: &FaultRegistry) -> u64 {
    registry.count_where(|request| matches!(request.status, Some(429 | 503)))
}

#[tokio::test]
async fn the_concurrency_window_adapts_to_what_a_registry_accepts() {
    for status in [429, 503] {
        let registry = registry_with_max_in_flight(6, status).await;
        registry.push("a", "1", &images::single("congestion"));
        let retry = RetryPolicy { attempts: 10, first_delay: Duration::from_millis(50), ..RetryPolicy::default() };
        let client = client(ClientSettings { retry, ..ClientSettings::default() });
        let asking = (0..24).map(|_| async {
            let repository = repository(&client, &registry, "a", Access::Pull);
            for _ in 0..6 {
                repository.get_manifest(&ManifestRef::Tag("1".parse().unwrap())).await.unwrap();
            }
        });
        join_all(asking).await;
        let (total, refused) = (registry.total(), refused(&registry));
        assert_eq!(total, 24 * 6 + refused, "{status}: each was answered in the end");
        // The first round, and then one or two for each probe of a larger window.
        assert!((1..72).contains(&refused), "{status}: {refused} of {total} were refused");
    }
}

#[tokio::test]
async fn a_batch_completes_at_registries_that_accept_few_requests_at_a_time() {
    // One per kind of request.
    let (registry, target) = (registry_with_max_in_flight(4, 503).await, registry_with_max_in_flight(4, 429).await);
    let mut images = Vec::new();
    for n in 0..6 {
        let image = TestImage::single(&format!("one-{n}")).layers(3, 2000).build();
        registry.push("a", &format!("v{n}"), &image);
        images.push((format!("v{n}"), image));
    }
    let program = Imgsync::new();
    program.file(
        "imgsync.yaml",
        format!("rules: [{{from: {}/a, to: {}/m, naming: keep}}]\n", registry.host(), target.host()),
    );
    let output = program.args(["run", "--json", "--retry-delay", "100ms", "--attempts", "20"]).run().await;
    assert_eq!(output.assert_code(0).json()["counts"]["copied"], 6);
    for (tag, image) in &images {
        target.assert_holds("m/a", tag, image);
    }
}

fn batch(source: &FaultRegistry, target: &FaultRegistry) -> Imgsync {
    let program = Imgsync::new();
    program.file(
        "imgsync.yaml",
        format!("rules: [{{from: {}/a, to: {}/m, naming: keep}}]\n", source.host(), target.host()),
    );
    program
}

#[tokio::test]
async fn a_refusal_that_does_not_say_for_how_long_spends_no_attempt() {
    let (source, target) = tokio::join!(FaultRegistry::start(), FaultRegistry::start());
    let mut images = Vec::new();
    for n in 0..12 {
        let image = images::single(&format!("plain-{n}"));
        source.push("a", &format!("v{n}"), &image);
        images.push((format!("v{n}"), image));
    }
    // Each image has a single attempt, for reading and for writing.
    source.on(RequestType::ManifestGet).times(4).act(FaultAction::error(429, "TOOMANYREQUESTS"));
    target.on(RequestType::ManifestPut).skip(1).times(3).act(FaultAction::error(429, "TOOMANYREQUESTS"));
    let output = batch(&source, &target).args(["run", "--json", "--attempts", "1"]).run().await.assert_code(0);
    let json = output.json();
    assert_eq!((&json["counts"]["copied"], &json["counts"]["failed"]), (&12.into(), &0.into()), "{json}");
    for (tag, image) in &images {
        target.assert_holds("m/a", tag, image);
    }
}

#[tokio::test]
async fn a_registry_that_refuses_for_long_is_left_alone_and_it_is_said_until_when() {
    let (source, target) = tokio::join!(FaultRegistry::start(), FaultRegistry::start());
    for n in 0..5 {
        source.push("a", &format!("v{n}"), &images::single(&format!("long-{n}")));
    }
    source.on(RequestType::ManifestGet).always().act(FaultAction::error(429, "TOOMANYREQUESTS"));
    let program = batch(&source, &target);
    let mut running = program.again().args(["run", "--json", "--attempts", "1"]).spawn();
    let says = |line: &str| line.contains("rejects requests without saying for how long") && line.contains(" UTC");
    running.wait_for_line(says, RUN_TIMEOUT).await;
    let asked = source.count(RequestType::ManifestGet);
    assert!(asked <= 60, "{asked} requests in half a minute");
    let shown = program.again().args(["batch", "show", "--json"]).run().await.assert_code(0).json();
    let waits = shown["rate_limit_messages"].to_string();
    assert!(waits.contains(&source.host()) && waits.contains("held until 2"), "{shown}");
    running.signal(Signal::INT);
    let json = running.wait().await.assert_code(4).json();
    assert_eq!(json["counts"]["failed"], 0, "{json}");
    // Everything can be copied another day.
    source.clear_rules();
    let resumed = program.again().args(["batch", "resume", "--json"]).run().await.assert_code(0).json();
    assert_eq!(resumed["counts"]["copied"], 5, "{resumed}");
}

#[tokio::test]
async fn a_single_image_obeys_the_rate_limit_and_the_concurrency_limit() {
    let (source, target) = tokio::join!(
        FaultRegistry::builder().rate((20.0, 20.0)).start(),
        FaultRegistry::builder().rate((20.0, 20.0)).start()
    );
    let image = TestImage::single("paced").layers(40, 2000).build();
    source.push("a", "1", &image);
    let (from, to) = (format!("{}/a:1", source.host()), format!("{}/b:1", target.host()));
    let sync = Imgsync::new().args(["sync", &from, &to, "--json"]);
    let rate_limited = |host: String| format!("  \"{host}\": {{requests_per_second: 20}}\n");
    sync.file("imgsync.yaml", format!("registries:\n{}{}", rate_limited(source.host()), rate_limited(target.host())));
    sync.run().await.assert_code(0);
    target.assert_holds("b", "1", &image);
    assert_eq!((refused(&source), refused(&target)), (0, 0));

    let (source, target) = (registry_with_max_in_flight(2, 429).await, registry_with_max_in_flight(2, 503).await);
    source.push("a", "1", &image);
    let (from, to) = (format!("{}/a:1", source.host()), format!("{}/b:1", target.host()));
    let sync = Imgsync::new().args(["sync", &from, &to, "--json", "--retry-delay", "100ms", "--attempts", "10"]);
    sync.run().await.assert_code(0);
    target.assert_holds("b", "1", &image);
}

#[tokio::test]
async fn a_mirror_whose_quota_is_used_up_is_passed_over_and_never_overdrawn() {
    let window = Duration::from_secs(600);
    let (mirror, source) = tokio::join!(FaultRegistry::builder().pulls((5, window)).start(), FaultRegistry::start());
    for n in 0..8 {
        let image = TestImage::single(&format!("mirrored-{n}")).layer(Layer::File(500)).build();
        mirror.push("a", &format!("v{n}"), &image);
        source.push("a", &format!("v{n}"), &image);
    }
    let one = RegistrySettings { mirrors: vec![mirror.url().parse().unwrap()], ..RegistrySettings::default() };
    let client = client(ClientSettings {
        registries: [(source.host().parse().unwrap(), one)].into(),
        ..ClientSettings::default()
    });
    for n in 0..8 {
        let tag = ManifestRef::Tag(format!("v{n}").parse().unwrap());
        repository(&client, &source, "a", Access::Pull).get_manifest(&tag).await.unwrap();
    }
    let answered =
        mirror.count_where(|request| request.status == Some(200) && request.kind == RequestType::ManifestGet);
    assert_eq!((answered, refused(&mirror)), (5, 0), "{}", mirror.describe_requests());
    assert_eq!(source.count(RequestType::ManifestGet), 3);
}

#[tokio::test]
async fn a_mirror_that_refuses_is_not_waited_for() {
    let (mirror, source) = tokio::join!(FaultRegistry::start(), FaultRegistry::start());
    let image = images::single("hurried");
    for registry in [&mirror, &source] {
        registry.push("a", "1", &image);
    }
    let rule = mirror.on(RequestMatcher::any()).always().act(FaultAction::error(429, "TOOMANYREQUESTS"));
    let one = RegistrySettings { mirrors: vec![mirror.url().parse().unwrap()], ..RegistrySettings::default() };
    let client = client(ClientSettings {
        registries: [(source.host().parse().unwrap(), one)].into(),
        ..ClientSettings::default()
    });
    for _ in 0..3 {
        let tag = ManifestRef::Tag("1".parse().unwrap());
        repository(&client, &source, "a", Access::Pull).get_manifest(&tag).await.unwrap();
    }
    assert_eq!((rule.hits(), source.count(RequestType::ManifestGet)), (1, 3));
}
