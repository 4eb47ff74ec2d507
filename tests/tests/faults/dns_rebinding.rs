//! DNS rebinding: the address of the connection counts, at each hop. Each test has its own network, in which
//! 93.184.215.14 is a public address of this machine.

use std::future::Future;

use imgsync_tests::dns::DnsServer;
use imgsync_tests::fault::{FaultAction, FaultRegistry, RequestType};
use imgsync_tests::images::{self, Layer, TestImage};
use imgsync_tests::namespace;
use imgsync_tests::program::{Imgsync, Output};
use imgsync_tests::proxy::Proxy;
use imgsync_tests::tcp_proxy::TcpProxy;

const PUBLIC: &str = "93.184.215.14";
const METADATA: &str = "169.254.169.254";
const NAME: &str = "registry.example.com";
const CDN: &str = "cdn.example.com";

/// Runs a test in its own network, if namespaces can be created.
fn run_in_namespace<F: Future<Output = ()>>(test: &str, work: impl FnOnce() -> F) {
    if namespace::enter(&format!("dns_rebinding::{test}"), &[PUBLIC, METADATA]) {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
        runtime.block_on(work());
    }
}

/// Starts a registry on loopback that a TCP proxy exposes at a public address with the same port.
async fn public() -> (FaultRegistry, TcpProxy) {
    let registry = FaultRegistry::start().await;
    let port = registry.address().port();
    let relay = TcpProxy::start_at(&format!("{PUBLIC}:{port}"), &registry.address().to_string()).await;
    (registry, relay)
}

fn port(registry: &FaultRegistry) -> u16 {
    registry.address().port()
}

async fn sync(settings: &[(String, &str)], from: &str, to: &str) -> Output {
    let sync = Imgsync::new().args(["sync", from, to, "--json", "--attempts", "1", "-c"]);
    let lines: Vec<String> = settings.iter().map(|(name, keys)| format!("  '{name}': {{{keys}}}\n")).collect();
    let config = sync.file("imgsync.yaml", format!("registries:\n{}", lines.concat()));
    sync.arg(config).run().await
}

#[track_caller]
fn assert_refused(output: Output, inside: &FaultRegistry) {
    let output = output.assert_code(1);
    assert_eq!(output.json()["kind"], "insecure", "{output:?}");
    assert_eq!(inside.total_with_pings_and_tokens(), 0, "{}", inside.describe_requests());
}

#[test]
fn a_name_that_is_public_first_and_loopback_later_leads_no_read_inside() {
    run_in_namespace("a_name_that_is_public_first_and_loopback_later_leads_no_read_inside", || async {
        let ((source, _relay), inside, target) = tokio::join!(public(), FaultRegistry::start(), FaultRegistry::start());
        let image = images::multi_platform("rebound");
        source.push("a", "1", &image);
        inside.push("a", "1", &image);
        let dns = DnsServer::start().await;
        for kind in [RequestType::BlobGet, RequestType::ManifestGet] {
            dns.set_answers(NAME, &[&[PUBLIC], &["127.0.0.1"]]);
            let to = format!("{}{{path}}", inside.url());
            source.on(kind).always().act(FaultAction::Redirect { to, status: 307 });
            let name = format!("{NAME}:{}", port(&source));
            let (from, to) = (format!("{name}/a:1"), format!("{}/b:1", target.host()));
            assert_refused(sync(&[(name, "tls: off")], &from, &to).await, &inside);
            source.clear_rules();
        }
    });
}

#[test]
fn a_name_that_is_public_first_and_loopback_later_leads_no_upload_inside() {
    run_in_namespace("a_name_that_is_public_first_and_loopback_later_leads_no_upload_inside", || async {
        let ((target, _relay), inside, source) = tokio::join!(public(), FaultRegistry::start(), FaultRegistry::start());
        let image = TestImage::single("rebound-upload").layer(Layer::Synthetic(2 << 20)).build();
        source.push("a", "1", &image);
        let dns = DnsServer::start().await;
        for answers in [[&[PUBLIC][..], &["127.0.0.1"]], [&["127.0.0.1"], &[PUBLIC]]] {
            dns.set_answers(NAME, &answers);
            let elsewhere = format!("{}/v2/b/blobs/uploads/1", inside.url());
            for kind in [RequestType::UploadStart, RequestType::UploadMount] {
                target.on(kind).always().act(FaultAction::Status {
                    code: 202,
                    headers: vec![("location".into(), elsewhere.clone())],
                    body: Default::default(),
                });
            }
            let name = format!("{NAME}:{}", port(&target));
            let (from, to) = (format!("{}/a:1", source.host()), format!("{name}/b:1"));
            let output = sync(&[(name, "tls: off")], &from, &to).await;
            target.clear_rules();
            if answers[0] == [PUBLIC] {
                assert_refused(output, &inside);
            }
        }
    });
}

#[test]
fn each_hop_is_judged_by_who_names_it() {
    run_in_namespace("each_hop_is_judged_by_who_names_it", || async {
        let ((cdn, _relay), source, inside, target) =
            tokio::join!(public(), FaultRegistry::start(), FaultRegistry::start(), FaultRegistry::start());
        let dns = DnsServer::start().await;
        let image = images::single("hops");
        for registry in [&source, &inside, &cdn] {
            registry.push("a", "1", &image);
        }
        // From inside, a public host is allowed; what that host names must be public as well, by address or by name.
        dns.set_answers(CDN, &[&[PUBLIC]]).set_answers("inside.example.com", &[&["127.0.0.1"]]);
        let to_cdn = FaultAction::Redirect { to: format!("http://{CDN}:{}{{path}}", port(&cdn)), status: 307 };
        source.on(RequestType::BlobGet).always().act(to_cdn);
        let (from, to) = (format!("{}/a:1", source.host()), format!("{}/b:1", target.host()));
        sync(&[], &from, &to).await.assert_code(0);
        for host in ["127.0.0.1", "inside.example.com"] {
            let to_inside = format!("http://{host}:{}{{path}}", port(&inside));
            cdn.on(RequestType::BlobGet).always().act(FaultAction::Redirect { to: to_inside, status: 307 });
            let target = FaultRegistry::start().await;
            assert_refused(sync(&[], &from, &format!("{}/b:1", target.host())).await, &inside);
            cdn.clear_rules();
        }
    });
}

#[test]
fn a_name_that_leads_inside_from_its_second_question_on_is_refused() {
    run_in_namespace("a_name_that_leads_inside_from_its_second_question_on_is_refused", || async {
        let ((source, _relay), inside, target) = tokio::join!(public(), FaultRegistry::start(), FaultRegistry::start());
        let dns = DnsServer::start().await;
        dns.set_answers(NAME, &[&[PUBLIC]]).set_answers(CDN, &[&["127.0.0.1"]]);
        source.push("a", "1", &images::single("second"));
        let to = format!("http://{CDN}:{}{{path}}", port(&inside));
        source.on(RequestType::BlobGet).always().act(FaultAction::Redirect { to, status: 307 });
        let name = format!("{NAME}:{}", port(&source));
        let (from, to) = (format!("{name}/a:1"), format!("{}/b:1", target.host()));
        let output = sync(&[(name.clone(), "tls: off")], &from, &to).await;
        assert!(output.stderr.contains("allow_private"), "{}", output.stderr);
        assert_refused(output, &inside);
        // Both addresses in one response: the public one is used.
        dns.set_answers(CDN, &[&["127.0.0.1", PUBLIC]]);
        assert_ne!(sync(&[(name, "tls: off")], &from, &to).await.code, Some(0));
        assert_eq!(inside.total_with_pings_and_tokens(), 0, "{}", inside.describe_requests());
    });
}

#[test]
fn through_a_proxy_the_registrys_name_is_not_looked_up() {
    run_in_namespace("through_a_proxy_the_registrys_name_is_not_looked_up", || async {
        let (source, inside, target) =
            tokio::join!(FaultRegistry::start(), FaultRegistry::start(), FaultRegistry::start());
        let dns = DnsServer::start().await;
        dns.set_answers(NAME, &[&["127.0.0.1"]]);
        source.push("a", "1", &images::single("proxied"));
        let proxy = Proxy::http().await.map_host(NAME, &source.address().to_string());
        let to = format!("{}{{path}}", inside.url());
        source.on(RequestType::BlobGet).always().act(FaultAction::Redirect { to, status: 307 });
        let name = format!("{NAME}:5000");
        let settings = format!("tls: off, proxy: '{}'", proxy.url());
        let (from, to) = (format!("{name}/a:1"), format!("{}/b:1", target.host()));
        assert_refused(sync(&[(name, &settings)], &from, &to).await, &inside);
        assert_eq!(dns.query_count(NAME), 0);
    });
}

#[test]
fn a_metadata_service_is_reached_only_where_it_is_named() {
    run_in_namespace("a_metadata_service_is_reached_only_where_it_is_named", || async {
        let (source, inside, target) =
            tokio::join!(FaultRegistry::start(), FaultRegistry::start(), FaultRegistry::start());
        let at = format!("{METADATA}:{}", port(&inside));
        let _relay = TcpProxy::start_at(&at, &inside.address().to_string()).await;
        let dns = DnsServer::start().await;
        dns.set_answers(CDN, &[&[METADATA]]);
        let image = images::single("metadata");
        source.push("a", "1", &image);
        inside.push("a", "1", &image);
        let (from, to) = (format!("{}/a:1", source.host()), format!("{}/b:1", target.host()));
        for host in [METADATA, CDN] {
            let elsewhere = format!("http://{host}:{}{{path}}", port(&inside));
            source.on(RequestType::BlobGet).always().act(FaultAction::Redirect { to: elsewhere, status: 307 });
            for keys in ["tls: off", "allow_private: true", "allow_metadata: 169.254.169.253"] {
                let output = sync(&[(source.host(), keys)], &from, &to).await;
                assert!(output.stderr.contains(&format!("allow_metadata: {METADATA}")), "{}", output.stderr);
                assert_refused(output, &inside);
            }
            sync(&[(source.host(), "allow_metadata: 169.254.169.254")], &from, &to).await.assert_code(0);
            target.delete_repository("b");
            source.clear_rules();
            inside.clear_requests();
        }
        // A registry itself may not be there either, by address or by name.
        for host in [METADATA, CDN] {
            let name = format!("{host}:{}", port(&inside));
            let from = format!("{name}/a:1");
            let refused = sync(&[(name.clone(), "tls: off, allow_private: true")], &from, &to).await;
            assert_refused(refused, &inside);
            sync(&[(name, "tls: off, allow_metadata: [169.254.169.254]")], &from, &to).await.assert_code(0);
            target.delete_repository("b");
            inside.clear_requests();
        }
    });
}

#[test]
fn a_blob_read_without_credentials_from_a_public_address_needs_no_proof() {
    run_in_namespace("a_blob_read_without_credentials_from_a_public_address_needs_no_proof", || async {
        let ((source, _relay), other, target) = tokio::join!(public(), FaultRegistry::start(), FaultRegistry::start());
        let dns = DnsServer::start().await;
        dns.set_answers(NAME, &[&[PUBLIC]]);
        let base = Layer::Shared("public/base".to_owned(), 2 << 20);
        let [one, two] = ["one", "two"].map(|name| TestImage::single(name).layer(base.clone()).build());
        source.push("a", "1", &one);
        other.push("a", "1", &two);
        let program = Imgsync::new();
        let run = async |from: String, to: &str| {
            let rule = format!("rules: [{{from: '{from}/a', to: '{}/{to}', naming: keep}}]\n", target.host());
            let config = format!("registries: {{'{NAME}:{}': {{tls: off}}}}\n{rule}", port(&source));
            let file = program.file("imgsync.yaml", config);
            program.again().args(["run", "-c"]).arg(file).run().await.assert_code(0);
        };
        run(format!("{NAME}:{}", port(&source)), "one").await;
        run(other.host(), "two").await;
        target.assert_holds("two/a", "1", &two);
        assert_eq!(other.count(RequestType::BlobHead), 0, "{}", other.describe_requests());
        assert_eq!(other.count(RequestType::BlobGet), 1, "the config alone: {}", other.describe_requests());
    });
}
