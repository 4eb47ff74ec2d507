//! Registries that try to redirect requests or credentials to places they must not go.

use std::sync::Arc;

use imgsync_tests::fault::{Bearer, FaultAction, FaultRegistry, RecordedRequest, RequestType};
use imgsync_tests::images;
use imgsync_tests::program::{Imgsync, Output};
use imgsync_tests::proxy::Proxy;
use imgsync_tests::tls::Authority;

const LOGIN: (&str, &str) = ("me", "s3cret-password");

fn carries_login(request: &RecordedRequest) -> bool {
    request.header("authorization").is_some() || request.header("cookie").is_some()
}

async fn sync(source: &FaultRegistry, target: &FaultRegistry) -> Output {
    let (from, to) = (format!("{}/a:1", source.host()), format!("{}/b:1", target.host()));
    let sync = Imgsync::new().args(["sync", &from, &to, "--json", "--retry-delay", "10ms"]);
    sync.write_docker_config(&[(&source.host(), LOGIN.0, LOGIN.1), (&target.host(), LOGIN.0, LOGIN.1)]);
    sync.run().await
}

#[tokio::test]
async fn credentials_do_not_follow_a_redirect() {
    let cdn = FaultRegistry::start().await;
    for (source, kind) in [
        (FaultRegistry::builder().basic(LOGIN.0, LOGIN.1).start().await, RequestType::BlobGet),
        (FaultRegistry::builder().bearer(Bearer::user(LOGIN.0, LOGIN.1)).start().await, RequestType::BlobGet),
        (FaultRegistry::builder().basic(LOGIN.0, LOGIN.1).start().await, RequestType::ManifestGet),
    ] {
        let target = FaultRegistry::start().await;
        let image = images::single("redirected");
        source.push("a", "1", &image);
        cdn.push("a", "1", &image);
        cdn.clear_requests();
        source
            .on(kind)
            .skip(1)
            .always()
            .act(FaultAction::Redirect { to: format!("{}{{path}}", cdn.url()), status: 307 });
        sync(&source, &target).await.assert_code(0);
        target.assert_holds("b", "1", &image);
        assert!(cdn.total() > 0);
        assert!(!cdn.requests().iter().any(carries_login), "{}", cdn.describe_requests());
    }
}

#[tokio::test]
async fn credentials_do_not_follow_an_upload_location() {
    let thief = FaultRegistry::start().await;
    let source = FaultRegistry::start().await;
    let target = FaultRegistry::builder().basic(LOGIN.0, LOGIN.1).start().await;
    source.push("a", "1", &images::single("location"));
    let elsewhere = format!("{}/v2/b/blobs/uploads/1", thief.url());
    for kind in [RequestType::UploadStart, RequestType::UploadMount] {
        target.on(kind).always().act(FaultAction::Status {
            code: 202,
            headers: vec![("location".into(), elsewhere.clone())],
            body: Default::default(),
        });
    }
    sync(&source, &target).await.assert_code(1);
    assert!(thief.total() > 0);
    assert!(!thief.requests().iter().any(carries_login), "{}", thief.describe_requests());
}

#[tokio::test]
async fn a_foreign_layers_url_is_not_visited() {
    let (source, target, thief) = tokio::join!(FaultRegistry::start(), FaultRegistry::start(), FaultRegistry::start());
    let image = images::foreign_layer("foreign", &format!("{}/layer", thief.url()));
    source.push("a", "1", &image);
    sync(&source, &target).await.assert_code(0);
    target.assert_holds("b", "1", &image);
    assert_eq!(thief.total_with_pings_and_tokens(), 0);
}

/// Starts a registry under a public name over TLS, reached through a proxy.
async fn public(authority: &Arc<Authority>, name: &str) -> FaultRegistry {
    FaultRegistry::builder().tls(authority.clone()).host_name(name).start().await
}

async fn sync_public(authority: &Authority, proxy: &Proxy, target: &FaultRegistry, login: bool) -> Output {
    let to = format!("{}/b:1", target.host());
    let sync = Imgsync::new().args(["sync", "registry.example.com/a:1", &to, "--json", "--attempts", "1"]);
    let ca = sync.file("ca.pem", authority.pem());
    if login {
        sync.write_docker_config(&[("registry.example.com", LOGIN.0, LOGIN.1)]);
    }
    sync.env("SSL_CERT_FILE", ca).env("HTTPS_PROXY", proxy.url()).env("HTTP_PROXY", proxy.url()).run().await
}

#[tokio::test]
async fn a_public_registry_may_not_lead_to_loopback_link_local_or_private_addresses() {
    let authority = Arc::new(Authority::new());
    let source = public(&authority, "registry.example.com").await;
    let proxy = Proxy::http().await.map_host("registry.example.com", &source.address().to_string());
    let (target, inside) = tokio::join!(FaultRegistry::start(), FaultRegistry::start());
    source.push("a", "1", &images::single("inside"));
    for to in ["https://127.0.0.1:1/x", "https://169.254.169.254/latest", "https://10.0.0.1/x", "https://[::1]/x"] {
        source.on(RequestType::BlobGet).always().act(FaultAction::Redirect { to: to.into(), status: 307 });
        let output = sync_public(&authority, &proxy, &target, false).await.assert_code(1);
        assert_eq!(output.json()["kind"], "insecure", "{to}: {output:?}");
        assert!(output.stderr.contains("allow_private"), "{}", output.stderr);
        source.clear_rules();
    }
    // From https to http, at an address that is reachable.
    source
        .on(RequestType::BlobGet)
        .always()
        .act(FaultAction::Redirect { to: format!("{}{{path}}", inside.url()), status: 302 });
    let output = sync_public(&authority, &proxy, &target, false).await.assert_code(1);
    assert_eq!(output.json()["kind"], "insecure");
    assert!(output.stderr.contains("from https to http"), "{}", output.stderr);
    assert_eq!(inside.total_with_pings_and_tokens(), 0);
}

#[tokio::test]
async fn a_public_registry_may_not_name_a_token_service_inside_or_without_tls() {
    let authority = Arc::new(Authority::new());
    let source = public(&authority, "registry.example.com").await;
    let proxy = Proxy::http().await.map_host("registry.example.com", &source.address().to_string());
    let (target, inside) = tokio::join!(FaultRegistry::start(), FaultRegistry::start());
    source.push("a", "1", &images::single("realm"));
    for realm in ["https://127.0.0.1:1/token", "https://192.168.1.1/token", &format!("{}/token", inside.url())] {
        source.on(RequestType::ManifestGet).always().act(FaultAction::Status {
            code: 401,
            headers: vec![("www-authenticate".into(), format!("Bearer realm=\"{realm}\",service=\"x\""))],
            body: Default::default(),
        });
        let output = sync_public(&authority, &proxy, &target, true).await.assert_code(1);
        assert_eq!(output.json()["kind"], "insecure", "{realm}: {output:?}");
        assert!(!output.stderr.contains(LOGIN.1));
        source.clear_rules();
    }
    assert_eq!(inside.total_with_pings_and_tokens(), 0, "no password went to where it did not belong");
}

#[tokio::test]
async fn tls_is_spoken_through_a_proxy_and_an_unknown_authority_is_refused() {
    let authority = Arc::new(Authority::new());
    let source = public(&authority, "registry.example.com").await;
    let proxy = Proxy::http().await.map_host("registry.example.com", &source.address().to_string());
    let target = FaultRegistry::start().await;
    let image = images::multi_platform("through-a-proxy");
    source.push("a", "1", &image);
    sync_public(&authority, &proxy, &target, false).await.assert_code(0);
    target.assert_holds("b", "1", &image);
    assert!(source.requests().iter().all(|request| request.http2), "HTTP/2 where the registry offers it");
    assert!(proxy.hosts().iter().all(|host| host.starts_with("registry.example.com")), "{:?}", proxy.hosts());

    let output = sync_public(&Authority::new(), &proxy, &target, false).await.assert_code(1);
    assert_eq!(output.json()["kind"], "insecure");
    assert!(output.stderr.contains("ca:"), "{}", output.stderr);
}

#[tokio::test]
async fn control_characters_of_a_registry_do_not_reach_the_terminal() {
    let (source, target) = tokio::join!(FaultRegistry::start(), FaultRegistry::start());
    source.on(RequestType::ManifestGet).always().act(FaultAction::Status {
        code: 404,
        headers: vec![("content-type".into(), "text/plain".into())],
        body: bytes::Bytes::from_static("\u{1b}]0;owned\u{7}\u{1b}[2Jgone\r\nerror: fake\u{202e}".as_bytes()),
    });
    let output = sync(&source, &target).await.assert_code(1);
    let hidden = |c: char| (c.is_control() && c != '\n') || c == '\u{202e}';
    assert!(!output.stderr.chars().any(hidden) && !output.stdout.chars().any(hidden), "{:?}", output.stderr);
    assert_eq!(output.stderr.lines().filter(|line| line.starts_with("error:")).count(), 1, "{}", output.stderr);
}
