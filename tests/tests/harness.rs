//! The harness holds what it promises: without this, no other suite says anything.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "tests")]

use std::sync::Arc;
use std::time::{Duration, Instant};

use imgsync_tests::fault::{
    Action, Bearer, FaultRegistry, Kind, Match, MountPolicy, Refresh, TokenField,
};
use imgsync_tests::images::{self, Blob, Image, Known, Layer, floor, sha256};
use imgsync_tests::program::Signal;
use imgsync_tests::proxy::Proxy;
use imgsync_tests::relay::{Direction, Relay};
use imgsync_tests::servers::{Auth, Options};
use imgsync_tests::skopeo::Skopeo;
use imgsync_tests::tls::Authority;
use imgsync_tests::{DockerEngine, DockerRegistry, Imgsync};
use tokio::sync::Semaphore;

fn client() -> reqwest::Client {
    imgsync_tests::tls::install_provider();
    let builder = reqwest::Client::builder()
        .no_proxy()
        .redirect(reqwest::redirect::Policy::none());
    builder.build().unwrap()
}

fn gallery(name: &str) -> Vec<Image> {
    let single = images::single(&format!("{name}/single"));
    vec![
        images::referrer(&format!("{name}/referrer"), &single),
        single,
        images::single_docker(&format!("{name}/docker")),
        images::multi_platform(&format!("{name}/multi")),
        images::nested(&format!("{name}/nested")),
        images::shared_child(&format!("{name}/shared-child")),
        images::shared_layers(&format!("{name}/shared-layers")),
        images::artifact(&format!("{name}/artifact")),
        images::odd_config(&format!("{name}/odd")),
        images::layer_twice(&format!("{name}/twice")),
        images::inline_data(&format!("{name}/inline")),
        images::foreign_layer(&format!("{name}/foreign"), "http://127.0.0.1:1/layer"),
        images::zero_layer(&format!("{name}/zero")),
    ]
}

#[test]
fn synthetic_content_is_the_same_by_any_range() {
    let blob = Blob::synthetic("ranges", 300_001);
    let whole: Vec<u8> = blob.pieces().flatten().collect();
    assert_eq!(whole.len(), 300_001);
    assert_eq!(sha256(&whole), blob.sha256());
    for (start, end) in [
        (0, 1),
        (3, 11),
        (65_530, 65_545),
        (65_537, 131_080),
        (299_999, 300_001),
    ] {
        assert_eq!(
            blob.read(start..end),
            whole[start as usize..end as usize],
            "{start}..{end}"
        );
    }
}

#[test]
fn images_follow_from_their_names() {
    assert_eq!(images::nested("a").root, images::nested("a").root);
    assert_ne!(images::nested("a").root, images::nested("b").root);
    assert_eq!(images::shared_child("a").manifests.len(), 2);
    assert_eq!(images::shared_layers("a").blobs.len(), 5);
    assert_eq!(images::layer_twice("a").layers().len(), 3);
    assert_eq!(images::layer_twice("a").blobs.len(), 3);
    let image = images::multi_platform("a");
    assert_eq!(
        floor(&image, &Known::nothing()),
        images::Floor {
            source: 9,
            target: 16
        }
    );
    assert_eq!(
        floor(&image, &Known::mountable(&image)),
        images::Floor {
            source: 3,
            target: 10
        }
    );
}

#[tokio::test]
async fn both_registries_hold_every_kind_of_image() {
    let fault = FaultRegistry::start().await;
    let real = DockerRegistry::start(Auth::None).await;
    for (number, image) in gallery("kinds").iter().enumerate() {
        let tag = format!("v{number}");
        fault.push("some/app", &tag, image);
        fault.assert_holds("some/app", &tag, image);
        real.push("some/app", &tag, image).await;
        real.assert_holds("some/app", &tag, image).await;
    }
    fault.assert_tags_complete();
    assert!(real.storage_bytes() > 10_000);
    assert!(
        real.requests()
            .iter()
            .any(|request| request.method == "PUT" && request.status == 201)
    );
}

#[tokio::test]
async fn skopeo_copies_from_the_fault_registry_to_a_real_one_and_back() {
    let (source, target) = (FaultRegistry::start().await, FaultRegistry::start().await);
    let real = DockerRegistry::start(Auth::htpasswd("amy", "pass word")).await;
    let image = images::multi_platform("there-and-back");
    source.push("library/app", "1.0", &image);
    let there = Skopeo::new().target_credentials("amy", "pass word");
    let middle = format!("{}/mirror/app:1.0", real.host());
    there
        .copy(&format!("{}/library/app:1.0", source.host()), &middle)
        .await
        .unwrap();
    real.assert_holds("mirror/app", "1.0", &image).await;
    let back = Skopeo::new().source_credentials("amy", "pass word");
    back.copy(&middle, &format!("{}/back/app:1.0", target.host()))
        .await
        .unwrap();
    target.assert_holds("back/app", "1.0", &image);
    assert_eq!(target.open_uploads(), 0);
    assert_eq!(source.count(Kind::BlobGet), 6);
    assert!(source.bytes_sent() >= image.blob_bytes());
    assert!(target.bytes_received() >= image.blob_bytes());
}

#[tokio::test]
async fn signed_tokens_let_skopeo_into_a_real_registry() {
    let source = FaultRegistry::start().await;
    let real = DockerRegistry::start(Auth::token("amy", "secret")).await;
    let image = images::single("signed");
    source.push("app", "1", &image);
    let target = format!("{}/app:1", real.host());
    let from = format!("{}/app:1", source.host());
    assert!(
        Skopeo::new()
            .target_credentials("amy", "wrong")
            .copy(&from, &target)
            .await
            .is_err()
    );
    Skopeo::new()
        .target_credentials("amy", "secret")
        .copy(&from, &target)
        .await
        .unwrap();
    real.assert_holds("app", "1", &image).await;
    assert!(
        real.tokens()
            .unwrap()
            .requests()
            .iter()
            .any(|request| request.granted)
    );
}

#[tokio::test]
async fn tokens_of_the_fault_registry_let_skopeo_in() {
    let source = FaultRegistry::builder()
        .bearer(Bearer::anonymous())
        .start()
        .await;
    let target = FaultRegistry::builder()
        .bearer(Bearer::user("amy", "secret"))
        .start()
        .await;
    let image = images::single("tokens");
    source.push("app", "1", &image);
    let (from, to) = (
        format!("{}/app:1", source.host()),
        format!("{}/app:1", target.host()),
    );
    assert!(Skopeo::new().copy(&from, &to).await.is_err());
    Skopeo::new()
        .target_credentials("amy", "secret")
        .copy(&from, &to)
        .await
        .unwrap();
    target.assert_holds("app", "1", &image);
    assert!(target.count(Kind::Token) > 0);
    assert!(target.total() < target.total_with_all());
}

#[tokio::test]
async fn tls_registries_speak_http2_to_who_trusts_their_authority() {
    let authority = Arc::new(Authority::new());
    let registry = FaultRegistry::builder()
        .tls(Arc::clone(&authority))
        .start()
        .await;
    imgsync_tests::tls::install_provider();
    let root = reqwest::Certificate::from_pem(authority.pem().as_bytes()).unwrap();
    let trusting = reqwest::Client::builder()
        .no_proxy()
        .tls_certs_only([root])
        .build()
        .unwrap();
    assert!(
        trusting
            .get(format!("{}/v2/", registry.url()))
            .send()
            .await
            .unwrap()
            .status()
            .is_success()
    );
    assert!(registry.requests()[0].http2);
    assert!(
        client()
            .get(format!("{}/v2/", registry.url()))
            .send()
            .await
            .is_err()
    );
    Skopeo::new()
        .inspect_raw(&format!("{}/app:1", registry.host()))
        .await
        .unwrap_err();
    assert_eq!(registry.count(Kind::ManifestGet), 1);
}

#[tokio::test]
async fn an_upload_that_was_cut_resumes() {
    let registry = FaultRegistry::start().await;
    let (blob, http) = (Blob::synthetic("cut-upload", 100_000), client());
    let digest = blob.sha256();
    let start = http
        .post(format!("{}/v2/app/blobs/uploads/", registry.url()))
        .send()
        .await
        .unwrap();
    let location = start.headers()["location"].to_str().unwrap().to_owned();
    registry
        .on(Kind::UploadPut)
        .act(Action::CutUploadAfter { bytes: 40_000 });
    let put = |bytes| http.put(format!("{location}&digest={digest}")).body(bytes);
    put(blob.read(0..100_000)).send().await.unwrap_err();
    let status = http.get(&location).send().await.unwrap();
    assert_eq!(status.status(), 204);
    assert_eq!(status.headers()["range"], "0-39999");
    assert_eq!(
        put(blob.read(40_000..100_000))
            .send()
            .await
            .unwrap()
            .status(),
        201
    );
    assert!(registry.has_blob("app", &digest));
}

#[tokio::test]
async fn a_registry_without_resuming_forgets_a_cut_upload() {
    let registry = FaultRegistry::builder().not_resumable().start().await;
    let http = client();
    let start = http
        .post(format!("{}/v2/app/blobs/uploads/", registry.url()))
        .send()
        .await
        .unwrap();
    let location = start.headers()["location"].to_str().unwrap().to_owned();
    registry
        .on(Kind::UploadPatch)
        .act(Action::CutUploadAfter { bytes: 10 });
    http.patch(&location)
        .body(vec![0; 1000])
        .send()
        .await
        .unwrap_err();
    registry
        .wait_until(
            |registry| registry.open_uploads() == 0,
            Duration::from_secs(5),
        )
        .await;
    let status = http.get(&location).send().await.unwrap();
    assert_eq!(status.status(), 404);
    assert!(status.text().await.unwrap().contains("BLOB_UPLOAD_INVALID"));
}

#[tokio::test]
async fn chunks_must_come_in_order() {
    let registry = FaultRegistry::builder().relative_locations().start().await;
    let http = client();
    let start = http
        .post(format!("{}/v2/app/blobs/uploads/", registry.url()))
        .send()
        .await
        .unwrap();
    let location = format!(
        "{}{}",
        registry.url(),
        start.headers()["location"].to_str().unwrap()
    );
    let patch = |range: &str| {
        http.patch(&location)
            .header("content-range", range)
            .body("abcde")
    };
    assert_eq!(patch("0-4").send().await.unwrap().status(), 202);
    let refused = patch("7-11").send().await.unwrap();
    assert_eq!(refused.status(), 416);
    assert_eq!(refused.headers()["range"], "0-4");
    assert_eq!(patch("5-9").send().await.unwrap().headers()["range"], "0-9");
    let digest = sha256(b"abcdeabcde");
    assert_eq!(
        http.put(format!("{location}&digest={digest}"))
            .send()
            .await
            .unwrap()
            .status(),
        201
    );
}

#[tokio::test]
async fn a_mount_gives_the_blob_or_a_session() {
    let image = images::single("mounts");
    let digest = image.largest_blob();
    let status = async |policy: MountPolicy, from: &str| {
        let registry = FaultRegistry::builder().mounts(policy).start().await;
        registry.push("a", "1", &image);
        let url = format!(
            "{}/v2/b/blobs/uploads/?mount={digest}&from={from}",
            registry.url()
        );
        let answer = client().post(url).send().await.unwrap().status().as_u16();
        assert_eq!(registry.count(Kind::UploadMount), 1);
        (answer, registry.has_blob("b", &digest))
    };
    assert_eq!(status(MountPolicy::Mount, "a").await, (201, true));
    assert_eq!(status(MountPolicy::Mount, "c").await, (202, false));
    assert_eq!(status(MountPolicy::Ignore, "a").await, (202, false));
    assert_eq!(
        status(MountPolicy::Refuse(http::StatusCode::FORBIDDEN), "a").await,
        (403, false)
    );
}

#[tokio::test]
async fn faults_of_an_answer_are_as_they_were_asked_for() {
    let registry = FaultRegistry::start().await;
    let image = images::big("faults", 200_000);
    registry.push("app", "1", &image);
    let digest = image.largest_blob();
    let blob = image.blobs[&digest].read(0..200_000);
    let (http, url) = (
        client(),
        format!("{}/v2/app/blobs/{digest}", registry.url()),
    );
    let on = || registry.on(Match::kind(Kind::BlobGet).reference(&digest));
    let get = async || http.get(&url).send().await.unwrap();

    let range = http
        .get(&url)
        .header("range", "bytes=150000-")
        .send()
        .await
        .unwrap();
    assert_eq!(
        (range.status().as_u16(), range.bytes().await.unwrap()),
        (206, blob.slice(150_000..))
    );

    on().act(Action::CutAfter { bytes: 70_000 });
    get().await.bytes().await.unwrap_err();
    assert_eq!(registry.requests().last().unwrap().sent, 70_000);

    on().act(Action::Corrupt { at: 123_456 });
    let corrupt = get().await.bytes().await.unwrap();
    assert_eq!(
        corrupt
            .iter()
            .zip(&blob)
            .filter(|(found, wanted)| found != wanted)
            .count(),
        1
    );

    on().act(Action::Truncate { to: 5 });
    assert_eq!(get().await.bytes().await.unwrap(), blob.slice(..5));

    on().act(Action::CutBefore);
    http.get(&url).send().await.unwrap_err();

    on().act(Action::StallAfter { bytes: 100 });
    let stalled = tokio::time::timeout(Duration::from_millis(300), get().await.bytes()).await;
    assert!(stalled.is_err());

    on().act(Action::Redirect {
        to: "http://other.example{path}".to_owned(),
        status: 307,
    });
    assert_eq!(
        get().await.headers()["location"],
        format!("http://other.example/v2/app/blobs/{digest}")
    );

    let twice = on().skip(1).times(2).act(Action::too_many("3"));
    let mut statuses = Vec::new();
    for _ in 0..4 {
        statuses.push(get().await.status().as_u16());
    }
    assert_eq!((statuses, twice.hits()), (vec![200, 429, 429, 200], 2));

    on().act(Action::Throttle {
        bytes_per_second: 400_000,
    });
    let started = Instant::now();
    assert_eq!(get().await.bytes().await.unwrap(), blob);
    assert!(started.elapsed() > Duration::from_millis(450));
    assert!(registry.requests().last().unwrap().done);
}

#[tokio::test]
async fn a_gate_holds_a_request_until_the_test_opens_it() {
    let registry = FaultRegistry::start().await;
    let gate = Arc::new(Semaphore::new(0));
    registry
        .on(Kind::Ping)
        .always()
        .act(Action::Gate(Arc::clone(&gate)));
    let ping = tokio::spawn(client().get(format!("{}/v2/", registry.url())).send());
    registry
        .wait_until(
            |registry| registry.count(Kind::Ping) == 1,
            Duration::from_secs(5),
        )
        .await;
    assert_eq!(registry.requests()[0].status, None);
    gate.add_permits(1);
    assert_eq!(ping.await.unwrap().unwrap().status(), 200);
}

#[tokio::test]
async fn lists_come_by_the_page() {
    let registry = FaultRegistry::builder().page(2).google().start().await;
    let image = images::single("pages");
    for tag in ["a", "b", "c", "d", "e"] {
        registry.push("org/app", tag, &image);
    }
    registry.push("org/app/sub", "x", &image);
    let http = client();
    let (mut next, mut tags) = (Some("/v2/org/app/tags/list".to_owned()), Vec::new());
    while let Some(path) = next {
        let page = http
            .get(format!("{}{path}", registry.url()))
            .send()
            .await
            .unwrap();
        let link = page
            .headers()
            .get("link")
            .map(|link| link.to_str().unwrap().to_owned());
        next = link.map(|link| link[1..].split_once('>').unwrap().0.to_owned());
        let page: serde_json::Value = page.json().await.unwrap();
        assert_eq!(page["child"][0], "sub");
        assert_eq!(
            page["manifest"][&image.root]["tag"]
                .as_array()
                .unwrap()
                .len(),
            5
        );
        tags.extend(page["tags"].as_array().unwrap().clone());
    }
    assert_eq!(tags, ["a", "b", "c", "d", "e"]);
    assert_eq!(registry.count(Kind::Tags), 3);
}

#[tokio::test]
async fn referrers_are_listed_and_manifests_without_their_blobs_refused() {
    let registry = FaultRegistry::start().await;
    let image = images::single("subject");
    registry.push("app", "1", &image);
    let signature = images::referrer("signature", &image);
    let (http, url) = (client(), format!("{}/v2/app", registry.url()));
    let put = || {
        let manifest = signature.root_manifest();
        let request = http.put(format!("{url}/manifests/{}", signature.root));
        request
            .header("content-type", &manifest.media_type)
            .body(manifest.bytes.clone())
            .send()
    };
    let refused = put().await.unwrap();
    assert_eq!(refused.status(), 400);
    assert!(
        refused
            .text()
            .await
            .unwrap()
            .contains("MANIFEST_BLOB_UNKNOWN")
    );
    for (digest, blob) in &signature.blobs {
        registry.push_blob("app", digest, blob);
    }
    assert_eq!(put().await.unwrap().headers()["oci-subject"], *image.root);
    let found: serde_json::Value = http
        .get(format!("{url}/referrers/{}", image.root))
        .send()
        .await
        .unwrap()
        .json()
        .await
        .unwrap();
    assert_eq!(found["manifests"][0]["digest"], *signature.root);
    assert_eq!(
        found["manifests"][0]["artifactType"],
        "application/vnd.example.signature.v1"
    );
}

#[tokio::test]
async fn a_blackhole_takes_what_it_does_not_keep() {
    let registry = FaultRegistry::builder().blackhole().start().await;
    let blob = Blob::synthetic("blackhole", 64 << 20);
    let (digest, http) = (blob.sha256(), client());
    let start = http
        .post(format!("{}/v2/app/blobs/uploads/", registry.url()))
        .send()
        .await
        .unwrap();
    let location = start.headers()["location"].to_str().unwrap().to_owned();
    let size = blob.size();
    let pieces = futures_util::stream::iter(
        (0..64u64).map(move |mib| Ok::<_, std::io::Error>(blob.read(mib << 20..(mib + 1) << 20))),
    );
    let body = reqwest::Body::wrap_stream(pieces);
    assert_eq!(
        http.put(format!("{location}&digest={digest}"))
            .body(body)
            .send()
            .await
            .unwrap()
            .status(),
        201
    );
    let head = http
        .head(format!("{}/v2/app/blobs/{digest}", registry.url()))
        .send()
        .await
        .unwrap();
    assert_eq!(head.headers()["content-length"], size.to_string());
}

#[tokio::test]
async fn a_relay_counts_and_cuts() {
    let registry = FaultRegistry::start().await;
    let image = images::big("relay", 500_000);
    registry.push("app", "1", &image);
    let relay = Relay::start(&registry.host()).await;
    let url = format!("{}/v2/app/blobs/{}", relay.url(), image.largest_blob());
    let http = client();
    relay.cut_after(Direction::Down, 100_000);
    http.get(&url)
        .send()
        .await
        .unwrap()
        .bytes()
        .await
        .unwrap_err();
    assert_eq!(
        http.get(&url)
            .send()
            .await
            .unwrap()
            .bytes()
            .await
            .unwrap()
            .len(),
        500_000
    );
    assert!(relay.bytes(Direction::Down) > 600_000);
    assert_eq!(relay.connections(), 2);
    relay.cut_all();
    relay.refuse(true);
    http.get(&url).send().await.unwrap_err();
    relay.refuse(false);
    relay.delay(Direction::Down, Duration::from_millis(150));
    let started = Instant::now();
    http.get(&url).send().await.unwrap();
    assert!(started.elapsed() >= Duration::from_millis(150));
}

#[tokio::test]
async fn a_real_registry_deletes_restarts_and_is_gone_when_dropped() {
    let mut real = DockerRegistry::start_with(Options {
        delete: true,
        ..Options::default()
    })
    .await;
    let image = images::single("restart");
    real.push("app", "1", &image).await;
    real.kill();
    real.restart().await;
    real.assert_holds("app", "1", &image).await;
    real.delete_manifest("app", &image.root).await;
    assert_eq!(real.tag_digest("app", "1").await, None);
    let pid = real.pid();
    drop(real);
    assert!(!std::path::Path::new(&format!("/proc/{pid}")).exists());
}

#[tokio::test]
async fn docker_engine_pulls_and_unpacks_an_image() {
    if let Err(reason) = DockerEngine::available() {
        eprintln!("skipped: {reason}");
        return;
    }
    let engine = DockerEngine::start().await.unwrap();
    let registry = FaultRegistry::start().await;
    let image = images::single_docker("engine");
    registry.push("app", "1", &image);
    let reference = format!("{}/app:1", registry.host());
    engine.pull(&reference).await.unwrap();
    assert_eq!(engine.image_id(&reference).await.unwrap(), image.config());
}

#[tokio::test]
async fn skopeo_unpacks_what_is_real() {
    let registry = FaultRegistry::start().await;
    let image = Image::single("unpack").layer(Layer::File(100_000)).build();
    registry.push("app", "1", &image);
    let folder = tempfile::tempdir().unwrap();
    Skopeo::new()
        .copy_to_dir(&format!("{}/app:1", registry.host()), folder.path())
        .await
        .unwrap();
    assert!(folder.path().join("manifest.json").exists());
    let inspected = Skopeo::new()
        .inspect(&format!("{}/app:1", registry.host()))
        .await
        .unwrap();
    assert_eq!(inspected["Architecture"], "amd64");
}

#[tokio::test]
async fn proxies_lead_public_names_to_loopback() {
    let authority = Arc::new(Authority::new());
    let plain = FaultRegistry::start().await;
    let builder = FaultRegistry::builder()
        .tls(Arc::clone(&authority))
        .host_name("registry.example.com");
    let secure = builder.start().await;
    for proxy in [
        Proxy::http().await,
        Proxy::https(&authority).await,
        Proxy::socks5().await,
    ] {
        let proxy = proxy
            .lead("registry.example.com", &secure.host())
            .lead("plain.example.com", &plain.host());
        let proxy = proxy.demand("amy", "secret");
        let ask = async |url: &str, password: &str| {
            let through = reqwest::Proxy::all(proxy.url())
                .unwrap()
                .basic_auth("amy", password);
            let root = reqwest::Certificate::from_pem(authority.pem().as_bytes()).unwrap();
            let builder = reqwest::Client::builder()
                .tls_certs_only([root])
                .proxy(through);
            builder
                .build()
                .unwrap()
                .get(url)
                .send()
                .await
                .map(|answer| answer.status().as_u16())
        };
        assert_eq!(
            ask("https://registry.example.com/v2/", "secret")
                .await
                .unwrap(),
            200
        );
        assert_eq!(
            ask("http://plain.example.com/v2/", "secret").await.unwrap(),
            200
        );
        assert!(
            ask("https://registry.example.com/v2/", "wrong")
                .await
                .is_err()
        );
        assert!(
            ask("https://unknown.example.com/v2/", "secret")
                .await
                .is_err()
        );
        let served: Vec<_> = proxy
            .requests()
            .into_iter()
            .map(|request| (request.host, request.port, request.served))
            .collect();
        let expected = [
            ("registry", 443, true),
            ("plain", 80, true),
            ("registry", 443, false),
            ("unknown", 443, false),
        ];
        assert_eq!(
            served,
            expected.map(|(name, port, served)| (format!("{name}.example.com"), port, served))
        );
    }
    assert_eq!((secure.count(Kind::Ping), plain.count(Kind::Ping)), (3, 3));
}

#[tokio::test]
async fn a_client_certificate_is_demanded() {
    let authority = Arc::new(Authority::new());
    let builder = FaultRegistry::builder()
        .tls(Arc::clone(&authority))
        .demand_client_certificate();
    let registry = builder.http1_only().start().await;
    imgsync_tests::tls::install_provider();
    let ask = async |identity: Option<reqwest::Identity>| {
        let root = reqwest::Certificate::from_pem(authority.pem().as_bytes()).unwrap();
        let builder = reqwest::Client::builder().no_proxy().tls_certs_only([root]);
        let builder = identity
            .into_iter()
            .fold(builder, reqwest::ClientBuilder::identity);
        builder
            .build()
            .unwrap()
            .get(format!("{}/v2/", registry.url()))
            .send()
            .await
    };
    assert!(ask(None).await.is_err());
    let identity = authority.client();
    let pem = format!("{}{}", identity.certificate_pem, identity.key_pem);
    let identity = reqwest::Identity::from_pem(pem.as_bytes()).unwrap();
    assert_eq!(ask(Some(identity)).await.unwrap().status(), 200);
    assert!(!registry.requests()[0].http2);
}

#[tokio::test]
async fn a_program_is_measured_and_told_its_homes() {
    let shell = Imgsync::at("/bin/sh")
        .arg("-c")
        .arg("cat; echo $HOME >&2; exit 7")
        .stdin("hello");
    let output = shell.run().await.assert_code(7);
    assert_eq!(output.stdout, "hello");
    assert_eq!(
        output.stderr.trim(),
        shell.home().join("home").to_str().unwrap()
    );

    // `tail` keeps as much as it will print.
    let tail = Imgsync::at("/usr/bin/tail")
        .arg("-c")
        .arg("40000000")
        .stdin(vec![b'x'; 50_000_000]);
    let output = tail.run().await.assert_code(0);
    assert_eq!(output.stdout.len(), 40_000_000);
    assert!(
        (40_000_000..80_000_000).contains(&output.peak_rss_bytes),
        "{}",
        output.peak_rss_bytes
    );

    let busy =
        Imgsync::at("/bin/sh").args(["-c", "i=0; while [ $i -lt 300000 ]; do i=$((i+1)); done"]);
    let output = busy.run().await.assert_code(0);
    assert!(
        output.cpu_seconds > 0.05 && output.cpu_seconds <= output.elapsed.as_secs_f64() + 0.05,
        "{output:?}"
    );
}

#[tokio::test]
async fn a_program_is_signalled_when_it_has_said_a_line() {
    let script = "trap 'echo bye; exit 4' INT; echo 'now ready' >&2; while :; do sleep 0.05; done";
    let mut running = Imgsync::at("/bin/sh").args(["-c", script]).spawn();
    let line = running
        .wait_for_line(|line| line.contains("ready"), Duration::from_secs(10))
        .await;
    assert_eq!(line, "now ready");
    running.signal(Signal::INT);
    let output = running.wait().await.assert_code(4);
    assert_eq!(output.stdout, "bye\n");
    let running = Imgsync::at("/bin/sleep").arg("60").spawn();
    let (pid, started) = (running.pid(), Instant::now());
    drop(running);
    let is_alive = || {
        std::fs::read_to_string(format!("/proc/{pid}/stat"))
            .is_ok_and(|stat| !stat.contains(") Z "))
    };
    while is_alive() && started.elapsed() < Duration::from_secs(5) {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    assert!(!is_alive());
}

#[tokio::test]
async fn any_path_can_be_answered_and_its_body_is_remembered() {
    let registry = FaultRegistry::start().await;
    let rule = Match::any().path("/api/v1/hook");
    registry.on(rule).always().act(Action::compute(|record| {
        Action::json(&serde_json::json!({"n": record.n}))
    }));
    let http = client();
    for n in 0..2 {
        let answer = http
            .post(format!("{}/api/v1/hook", registry.url()))
            .body("hello")
            .send()
            .await
            .unwrap();
        assert_eq!(answer.json::<serde_json::Value>().await.unwrap()["n"], n);
    }
    assert_eq!(registry.requests()[1].body, b"hello");
    assert_eq!(
        http.get(format!("{}/other", registry.url()))
            .send()
            .await
            .unwrap()
            .status(),
        404
    );
}

#[tokio::test]
async fn tokens_expire_and_identity_tokens_are_taken() {
    let refresh = Refresh::Accept("identity".to_owned());
    let bearer = Bearer::user("amy", "secret")
        .refresh(refresh)
        .field(TokenField::AccessToken);
    let registry = FaultRegistry::builder().bearer(bearer).start().await;
    registry.push("app", "1", &images::single("expire"));
    let (http, url) = (client(), format!("{}/v2/app/manifests/1", registry.url()));
    let challenge = http.get(&url).send().await.unwrap().headers()["www-authenticate"]
        .to_str()
        .unwrap()
        .to_owned();
    assert!(
        challenge.ends_with(",scope=\"repository:app:pull\""),
        "{challenge}"
    );
    let form = format!(
        "grant_type=refresh_token&refresh_token=identity&service={}&scope=repository:app:pull",
        registry.host()
    );
    let token = http
        .post(registry.token_url())
        .body(form)
        .send()
        .await
        .unwrap();
    let token = token.json::<serde_json::Value>().await.unwrap()["access_token"]
        .as_str()
        .unwrap()
        .to_owned();
    let status = async |url: &str| {
        http.get(url)
            .bearer_auth(&token)
            .send()
            .await
            .unwrap()
            .status()
            .as_u16()
    };
    assert_eq!(status(&url).await, 200);
    assert_eq!(
        status(&format!("{}/v2/other/manifests/1", registry.url())).await,
        401
    );
    registry.expire_tokens();
    assert_eq!(status(&url).await, 401);
    assert_eq!(
        http.get(registry.token_url())
            .basic_auth("amy", Some("wrong"))
            .send()
            .await
            .unwrap()
            .status(),
        401
    );
}

#[tokio::test]
async fn sha512_names_blobs_too() {
    let registry = FaultRegistry::start().await;
    let image = images::sha512_blobs("sha512");
    registry.push("app", "1", &image);
    registry.assert_tags_complete();
    let (digest, http) = (images::sha512(b"hello"), client());
    let post = |digest: &str| {
        http.post(format!(
            "{}/v2/app/blobs/uploads/?digest={digest}",
            registry.url()
        ))
        .body("hello")
        .send()
    };
    assert_eq!(post(&image.largest_blob()).await.unwrap().status(), 400);
    assert_eq!(post(&digest).await.unwrap().status(), 201);
    assert!(registry.has_blob("app", &digest));
}
