//! Transport settings of registries: certificates, proxies, HTTP versions.

use std::sync::Arc;

use imgsync_tests::fault::FaultRegistry;
use imgsync_tests::images;
use imgsync_tests::program::{Imgsync, Output};
use imgsync_tests::proxy::Proxy;
use imgsync_tests::tls::Authority;

const NAME: &str = "registry.example.com";

/// Copies `NAME/a:1` to a registry on loopback, with these settings for `NAME`.
async fn sync(authority: &Authority, settings: &str, target: &FaultRegistry) -> Output {
    let sync = Imgsync::new();
    sync.file("ca.pem", authority.pem());
    let client = authority.client();
    sync.file("client.pem", &client.certificate_pem);
    sync.file("client.key", &client.key_pem);
    let config = sync.file("imgsync.yaml", format!("registries:\n  {NAME}: {{{settings}}}\n"));
    let to = format!("{}/b:1", target.host());
    sync.args(["sync", &format!("{NAME}/a:1"), &to, "--json", "--attempts", "1", "-c"]).arg(config).run().await
}

#[tokio::test]
async fn every_kind_of_proxy_leads_to_the_registry() {
    let authority = Arc::new(Authority::new());
    let source = FaultRegistry::builder().tls(authority.clone()).host_name(NAME).start().await;
    let image = images::multi_platform("proxied");
    source.push("a", "1", &image);
    let address = source.address().to_string();
    for proxy in [Proxy::http().await, Proxy::https(&authority).await, Proxy::socks5().await] {
        let proxy = proxy.map_host(NAME, &address);
        let target = FaultRegistry::start().await;
        sync(&authority, &format!("ca: ca.pem, proxy: \"{}\"", proxy.url()), &target).await.assert_code(0);
        target.assert_holds("b", "1", &image);
        assert!(!proxy.requests().is_empty() && proxy.hosts().iter().all(|host| host.starts_with(NAME)));
    }
}

/// Returns a password for each special character, and one with all of them.
fn odd_passwords() -> Vec<String> {
    let characters = ['@', '/', '#', '?', '%', ':', '[', ']', '+', '&', '\\', ' ', 'ü'];
    characters.iter().map(|odd| format!("12{odd}34")).chain([characters.iter().collect()]).collect()
}

fn encoded(text: &str) -> String {
    text.bytes().map(|byte| format!("%{byte:02X}")).collect()
}

#[tokio::test]
async fn any_password_opens_every_kind_of_proxy_wherever_it_is_written() {
    let authority = Arc::new(Authority::new());
    let source = FaultRegistry::builder().tls(authority.clone()).host_name(NAME).start().await;
    let target = FaultRegistry::start().await;
    source.push("a", "1", &images::single("proxy-passwords"));
    let address = source.address().to_string();
    for password in odd_passwords() {
        for proxy in [Proxy::http().await, Proxy::https(&authority).await, Proxy::socks5().await] {
            let proxy = proxy.map_host(NAME, &address).require_credentials("me", &password);
            let (scheme, host) = (proxy.url().split_once("://").unwrap().0.to_owned(), proxy.host());
            let encoded = encoded(&password);
            let (url, all) = (format!("{scheme}://me:{encoded}@{host}"), "${PASSWORD}");
            let written = [
                (format!(", proxy: \"{scheme}://me:{all}@{host}\""), None),
                (format!(", proxy: {{url: \"{scheme}://{host}\", username: me, password: \"{all}\"}}"), None),
                (format!(", proxy: \"{url}\""), None),
                (String::new(), Some(url)),
            ];
            for (settings, environment) in written {
                let sync = Imgsync::new().env("PASSWORD", &password);
                sync.file("ca.pem", authority.pem());
                sync.file("imgsync.yaml", format!("registries:\n  {NAME}: {{ca: ca.pem{settings}}}\n"));
                let from = format!("{NAME}/a:1");
                let to = format!("{}/b:1", target.host());
                let sync = sync.args(["sync", &from, &to, "--attempts", "1"]);
                let is_set = environment.is_some();
                let sync = environment.into_iter().fold(sync, |sync, url| sync.env("HTTPS_PROXY", url));
                let output = sync.run().await;
                assert_eq!(output.code, Some(0), "{password} by {scheme}{settings} ({is_set}): {}", output.stderr);
                assert!(!output.stderr.contains(&password) && !output.stderr.contains(&encoded), "{}", output.stderr);
            }
            assert!(proxy.requests().iter().all(|request| request.forwarded), "{password}");
        }
    }
}

#[tokio::test]
async fn a_proxy_of_the_environment_whose_password_has_no_clear_end_is_refused() {
    let target = FaultRegistry::start().await;
    for (name, proxy) in [
        ("HTTPS_PROXY", "http://me:p@ss/w#rd@nowhere.invalid:3128"),
        ("https_proxy", "me:12/34@nowhere.invalid:3128"),
        ("ALL_PROXY", "socks5h://me:12?34@nowhere.invalid"),
    ] {
        let (from, to) = (format!("{NAME}/a:1"), format!("{}/b:1", target.host()));
        let sync = Imgsync::new().env(name, proxy).args(["sync", &from, &to]);
        let output = sync.run().await.assert_code(2);
        let advice = "percent-encode the password, or use `username`/`password`";
        assert!(output.stderr.contains(name) && output.stderr.contains(advice), "{}", output.stderr);
        assert!(!output.stderr.contains("34") && !output.stderr.contains("w#rd"), "{}", output.stderr);
    }
}

#[tokio::test]
async fn http_1_is_used_where_it_is_asked_for_and_http_2_elsewhere() {
    let authority = Arc::new(Authority::new());
    let source = FaultRegistry::builder().tls(authority.clone()).host_name(NAME).start().await;
    source.push("a", "1", &images::single("versions"));
    let proxy = Proxy::http().await.map_host(NAME, &source.address().to_string());
    for (more, http2) in [("", true), (", http1: true", false)] {
        source.clear_requests();
        let target = FaultRegistry::start().await;
        sync(&authority, &format!("ca: ca.pem, proxy: \"{}\"{more}", proxy.url()), &target).await.assert_code(0);
        assert!(source.requests().iter().all(|request| request.http2 == http2), "{more}");
    }
}

#[tokio::test]
async fn a_large_image_crosses_http_2_at_both_ends() {
    let authority = Arc::new(Authority::new());
    let registry = || FaultRegistry::builder().tls(authority.clone()).host_name(NAME).start();
    let (source, target) = tokio::join!(registry(), FaultRegistry::builder().tls(authority.clone()).start());
    let image = images::TestImage::single("h2").layers(3, 1000).layers(4, 6 << 20).build();
    source.push("a", "1", &image);
    let proxy = Proxy::http().await.map_host(NAME, &source.address().to_string());
    let sync = Imgsync::new();
    sync.file("ca.pem", authority.pem());
    let config = sync.file(
        "imgsync.yaml",
        format!(
            "registries:\n  {NAME}: {{ca: ca.pem, proxy: \"{}\"}}\n  \"{}\": {{ca: ca.pem, tls: on}}\n",
            proxy.url(),
            target.host()
        ),
    );
    let (from, to) = (format!("{NAME}/a:1"), format!("{}/b:1", target.host()));
    sync.args(["sync", &from, &to, "-c"]).arg(config).run().await.assert_code(0);
    target.assert_holds("b", "1", &image);
    assert!(target.requests().iter().all(|request| request.http2));
}

#[tokio::test]
async fn a_client_certificate_is_shown_where_it_is_wanted() {
    let authority = Arc::new(Authority::new());
    let source =
        FaultRegistry::builder().tls(authority.clone()).host_name(NAME).demand_client_certificate().start().await;
    source.push("a", "1", &images::single("mutual"));
    let (proxy, target) =
        (Proxy::http().await.map_host(NAME, &source.address().to_string()), FaultRegistry::start().await);
    let proxy = format!("proxy: \"{}\"", proxy.url());
    let shown = format!("{proxy}, ca: ca.pem, client_cert: client.pem, client_key: client.key");
    sync(&authority, &shown, &target).await.assert_code(0);
    // The moment at which the registry closes the connection varies, and so does the error.
    source.clear_requests();
    assert_ne!(sync(&authority, &format!("{proxy}, ca: ca.pem"), &target).await.code, Some(0));
    assert_eq!(source.total_with_pings_and_tokens(), 0);
}

#[tokio::test]
async fn an_unknown_certificate_is_taken_only_where_told_so() {
    let authority = Arc::new(Authority::new());
    let source = FaultRegistry::builder().tls(authority.clone()).host_name(NAME).start().await;
    source.push("a", "1", &images::single("unknown"));
    let (proxy, target) =
        (Proxy::http().await.map_host(NAME, &source.address().to_string()), FaultRegistry::start().await);
    let proxy = format!("proxy: \"{}\"", proxy.url());
    let output = sync(&authority, &proxy, &target).await.assert_code(1);
    assert_eq!(output.json()["kind"], "insecure");
    sync(&authority, &format!("{proxy}, insecure: true"), &target).await.assert_code(0);
}

#[tokio::test]
async fn a_certificate_that_a_registry_gave_itself_is_taken_where_it_is_named() {
    let (authority, other) = (Arc::new(Authority::self_signed()), Authority::self_signed());
    let (source, target) =
        tokio::join!(FaultRegistry::builder().tls(authority.clone()).start(), FaultRegistry::start());
    let image = images::single("self-signed");
    source.push("a", "1", &image);
    let port = source.address().port();
    let sync = async |host: &str, ca: &Authority| {
        let sync = Imgsync::new();
        sync.file("ca.pem", ca.pem());
        sync.file("imgsync.yaml", format!("registries:\n  \"{host}:{port}\": {{tls: on, ca: ca.pem}}\n"));
        let (from, to) = (format!("{host}:{port}/a:1"), format!("{}/b:1", target.host()));
        sync.args(["sync", &from, &to, "--attempts", "1"]).run().await
    };
    sync("localhost", &authority).await.assert_code(0);
    target.assert_holds("b", "1", &image);
    let elsewhere = sync("127.0.0.1", &authority).await.assert_code(1);
    assert!(elsewhere.stderr.contains("name the registry as its certificate does"), "{}", elsewhere.stderr);
    let unknown = sync("localhost", &other).await.assert_code(1);
    assert!(unknown.stderr.contains("set `ca:` for the registry"), "{}", unknown.stderr);
}

#[tokio::test]
async fn a_name_without_tls_is_reached_only_where_told_so() {
    let source = FaultRegistry::start().await;
    source.push("a", "1", &images::single("plain"));
    let (proxy, target) =
        (Proxy::http().await.map_host(NAME, &source.address().to_string()), FaultRegistry::start().await);
    let authority = Authority::new();
    let proxy = format!("proxy: \"{}\"", proxy.url());
    let output = sync(&authority, &proxy, &target).await;
    assert_ne!(output.code, Some(0));
    sync(&authority, &format!("{proxy}, tls: off"), &target).await.assert_code(0);
}
