//! The TCP proxy and the HTTP and SOCKS proxies.

use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::client;
use imgsync_tests::fault::{FaultRegistry, RequestType};
use imgsync_tests::images;
use imgsync_tests::proxy::Proxy;
use imgsync_tests::tcp_proxy::{Direction, TcpProxy};
use imgsync_tests::tls::Authority;

#[tokio::test]
async fn a_relay_counts_and_cuts() {
    let registry = FaultRegistry::start().await;
    let image = images::big("relay", 500_000);
    registry.push("app", "1", &image);
    let relay = TcpProxy::start(&registry.host()).await;
    let url = format!("{}/v2/app/blobs/{}", relay.url(), image.largest_blob());
    let http = client();
    relay.cut_after(Direction::Down, 100_000);
    http.get(&url).send().await.unwrap().bytes().await.unwrap_err();
    assert_eq!(http.get(&url).send().await.unwrap().bytes().await.unwrap().len(), 500_000);
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
async fn proxies_lead_public_names_to_loopback() {
    let authority = Arc::new(Authority::new());
    let plain = FaultRegistry::start().await;
    let builder = FaultRegistry::builder().tls(Arc::clone(&authority)).host_name("registry.example.com");
    let secure = builder.start().await;
    for proxy in [Proxy::http().await, Proxy::https(&authority).await, Proxy::socks5().await] {
        let proxy = proxy.map_host("registry.example.com", &secure.host()).map_host("plain.example.com", &plain.host());
        let proxy = proxy.require_credentials("amy", "secret");
        let ask = async |url: &str, password: &str| {
            let through = reqwest::Proxy::all(proxy.url()).unwrap().basic_auth("amy", password);
            let root = reqwest::Certificate::from_pem(authority.pem().as_bytes()).unwrap();
            let builder = reqwest::Client::builder().tls_certs_only([root]).proxy(through);
            builder.build().unwrap().get(url).send().await.map(|answer| answer.status().as_u16())
        };
        assert_eq!(ask("https://registry.example.com/v2/", "secret").await.unwrap(), 200);
        assert_eq!(ask("http://plain.example.com/v2/", "secret").await.unwrap(), 200);
        assert!(ask("https://registry.example.com/v2/", "wrong").await.is_err());
        assert!(ask("https://unknown.example.com/v2/", "secret").await.is_err());
        let served: Vec<_> =
            proxy.requests().into_iter().map(|request| (request.host, request.port, request.forwarded)).collect();
        let expected =
            [("registry", 443, true), ("plain", 80, true), ("registry", 443, false), ("unknown", 443, false)];
        let mut expected = expected.map(|(name, port, served)| (format!("{name}.example.com"), port, served));
        if proxy.url().starts_with("socks") {
            // SOCKS5 asks for credentials before it receives the destination.
            expected[2] = (String::new(), 0, false);
        }
        assert_eq!(served, expected);
    }
    assert_eq!((secure.count(RequestType::Ping), plain.count(RequestType::Ping)), (3, 3));
}

#[test]
fn a_test_can_have_a_network_of_its_own_with_names_whose_addresses_change() {
    let test = "network::a_test_can_have_a_network_of_its_own_with_names_whose_addresses_change";
    if !imgsync_tests::namespace::enter(test, &["93.184.215.14"]) {
        return;
    }
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    runtime.block_on(async {
        let dns = imgsync_tests::dns::DnsServer::start().await;
        dns.set_answers("a.example.com", &[&["93.184.215.14"], &["127.0.0.1", "10.0.0.1"]]);
        let find = async |name: &str| {
            let found = tokio::net::lookup_host((name, 80)).await.map(|found| found.map(|at| at.ip().to_string()));
            found.map(|found| found.collect::<Vec<_>>()).unwrap_or_default()
        };
        assert_eq!(find("A.example.com").await, ["93.184.215.14"]);
        for _ in 0..2 {
            let mut found = find("a.example.com").await;
            found.sort();
            assert_eq!(found, ["10.0.0.1", "127.0.0.1"]);
        }
        assert_eq!(dns.query_count("a.example.com"), 3);
        assert!(find("b.example.com").await.is_empty());
        let listener = tokio::net::TcpListener::bind("93.184.215.14:0").await.unwrap();
        let at = listener.local_addr().unwrap();
        assert!(tokio::net::TcpStream::connect(at).await.is_ok());
    });
}

#[tokio::test]
async fn an_intermediate_is_trusted_by_its_root_only_where_it_is_sent_along() {
    imgsync_tests::tls::install_provider();
    let root = Authority::named("Root of the tests");
    for (authority, is_taken) in [
        (root.intermediate("Sent"), true),
        (root.intermediate("Kept"), false),
        (root.intermediate("Old").valid((2001, 1, 1), (2002, 1, 1)), false),
    ] {
        let authority = if is_taken { authority.with_ca_in_chain() } else { authority };
        let registry = FaultRegistry::builder().tls(Arc::new(authority)).start().await;
        let trusted = reqwest::Certificate::from_der(root.der()).unwrap();
        let client = reqwest::Client::builder().no_proxy().tls_certs_only([trusted]).build().unwrap();
        assert_eq!(client.get(format!("{}/v2/", registry.url())).send().await.is_ok(), is_taken);
    }
}
