//! Redirects to other hosts: through a proxy inside the network, without our client certificate, and never with a
//! password in clear text.

use std::sync::Arc;

use imgsync_tests::fault::{FaultAction, FaultRegistry, RequestMatcher, RequestType};
use imgsync_tests::images;
use imgsync_tests::program::{Imgsync, Output};
use imgsync_tests::proxy::Proxy;
use imgsync_tests::tls::Authority;

const NAME: &str = "registry.example.com";
const CDN: &str = "cdn.example.com";

/// Names a proxy by `localhost`, which resolves to a private address.
fn named(proxy: &Proxy) -> String {
    proxy.url().replace("127.0.0.1", "localhost")
}

async fn source_and_cdn(authority: &Arc<Authority>) -> (FaultRegistry, FaultRegistry, images::TestImage) {
    let registry = |name| FaultRegistry::builder().tls(authority.clone()).host_name(name).start();
    let (source, cdn) = tokio::join!(registry(NAME), registry(CDN));
    let image = images::single("sent-elsewhere");
    source.push("a", "1", &image);
    cdn.push("a", "1", &image);
    source
        .on(RequestType::BlobGet)
        .always()
        .act(FaultAction::Redirect { to: format!("https://{CDN}{{path}}"), status: 307 });
    (source, cdn, image)
}

async fn sync(settings: &str, authority: &Authority, target: &FaultRegistry, proxy: Option<&str>) -> Output {
    let to = format!("{}/b:1", target.host());
    let sync = Imgsync::new().args(["sync", &format!("{NAME}/a:1"), &to, "--json", "--attempts", "1"]);
    let ca = sync.file("ca.pem", authority.pem());
    let client = authority.client();
    sync.file("client.pem", &client.certificate_pem);
    sync.file("client.key", &client.key_pem);
    let config = sync.file("imgsync.yaml", format!("registries:\n  {NAME}: {{{settings}}}\n"));
    let sync = sync.env("SSL_CERT_FILE", ca).arg("-c").arg(config);
    let sync = proxy.into_iter().fold(sync, |sync, proxy| sync.env("https_proxy", proxy));
    sync.run().await
}

#[tokio::test]
async fn a_proxy_that_is_named_by_a_host_inside_leads_to_where_a_registry_redirects() {
    let authority = Arc::new(Authority::new());
    let (source, cdn, image) = source_and_cdn(&authority).await;
    for proxy in [Proxy::http().await, Proxy::socks5().await] {
        let proxy = proxy.map_host(NAME, &source.address().to_string()).map_host(CDN, &cdn.address().to_string());
        let configured = format!("proxy: \"{}\"", named(&proxy));
        let environment = named(&proxy).replace("http://", "");
        for (settings, environment) in [(configured.as_str(), None), ("", Some(environment.as_str()))] {
            cdn.clear_requests();
            let target = FaultRegistry::start().await;
            sync(settings, &authority, &target, environment).await.assert_code(0);
            target.assert_holds("b", "1", &image);
            assert!(cdn.total() > 0);
        }
    }
}

#[tokio::test]
async fn a_client_certificate_is_for_the_registry_and_not_for_where_it_redirects() {
    let authority = Arc::new(Authority::new());
    let registry =
        |name| FaultRegistry::builder().tls(authority.clone()).host_name(name).demand_client_certificate().start();
    let (source, curious, target) = tokio::join!(registry(NAME), registry(CDN), FaultRegistry::start());
    let image = images::single("certificate-elsewhere");
    source.push("a", "1", &image);
    curious.push("a", "1", &image);
    let proxy = Proxy::http().await;
    let proxy = proxy.map_host(NAME, &source.address().to_string()).map_host(CDN, &curious.address().to_string());
    let settings = format!("proxy: \"{}\", client_cert: client.pem, client_key: client.key", proxy.url());
    sync(&settings, &authority, &target, None).await.assert_code(0);
    source
        .on(RequestType::BlobGet)
        .always()
        .act(FaultAction::Redirect { to: format!("https://{CDN}{{path}}"), status: 307 });
    let target = FaultRegistry::start().await;
    assert_ne!(sync(&settings, &authority, &target, None).await.code, Some(0));
    assert_eq!(curious.total_with_pings_and_tokens(), 0);
}

#[tokio::test]
async fn a_registry_without_tls_gets_no_password_sent_in_clear_to_another_host() {
    let (source, other, target) = tokio::join!(FaultRegistry::start(), FaultRegistry::start(), FaultRegistry::start());
    source.push("a", "1", &images::single("clear"));
    source.on(RequestType::ManifestGet).always().act(FaultAction::Status {
        code: 401,
        headers: vec![("www-authenticate".into(), "Bearer realm=\"http://10.0.0.6/token\",service=\"x\"".into())],
        body: Default::default(),
    });
    let proxy = Proxy::http().await;
    let proxy =
        proxy.map_host("10.0.0.5", &source.address().to_string()).map_host("10.0.0.6", &other.address().to_string());
    let sync = Imgsync::new().args(["sync", "10.0.0.5:5000/a:1", &format!("{}/b:1", target.host()), "--json", "-c"]);
    let config = format!("registries:\n  \"10.0.0.5:5000\": {{tls: off, proxy: \"{}\"}}\n", proxy.url());
    let config = sync.file("imgsync.yaml", config);
    sync.write_docker_config(&[("10.0.0.5:5000", "me", "s3cret-password")]);
    let output = sync.arg(config).run().await.assert_code(1);
    assert_eq!(output.json()["kind"], "insecure", "{output:?}");
    assert_eq!(other.total_with_pings_and_tokens(), 0);
}

/// Faults of a redirect's target, with a word of the expected error.
fn redirect_faults() -> Vec<(FaultAction, &'static str)> {
    vec![
        (FaultAction::error(403, "AccessDenied"), "redirected; credentials are not sent"),
        (FaultAction::error(404, "NoSuchKey"), "NoSuchKey"),
        (FaultAction::error(400, "AuthFailure"), "AuthFailure"),
        (FaultAction::error(503, "SlowDown"), "SlowDown"),
        (FaultAction::CutBefore, "connection"),
        (FaultAction::StallForever, "no response"),
    ]
}

#[tokio::test]
async fn an_error_at_the_host_of_a_redirect_names_that_host() {
    let image = images::single("blobs-elsewhere");
    let layer = image.largest_blob();
    let sync = async |source: &FaultRegistry| {
        let target = FaultRegistry::start().await;
        let (from, to) = (format!("{}/a:1", source.host()), format!("{}/b:1", target.host()));
        let sync = Imgsync::new().args(["sync", &from, &to, "--attempts", "1", "--stall-timeout", "1s"]);
        sync.run().await
    };
    for (fault, words) in redirect_faults() {
        let (source, cdn) = tokio::join!(FaultRegistry::start(), FaultRegistry::start());
        source.push("a", "1", &image);
        source
            .on(RequestType::BlobGet)
            .always()
            .act(FaultAction::Redirect { to: format!("{}{{path}}", cdn.url()), status: 307 });
        cdn.push("a", "1", &image);
        cdn.on(RequestType::BlobGet).always().act(fault);
        let output = sync(&source).await;
        assert_ne!(output.code, Some(0));
        assert!(output.stderr.contains(&cdn.url()) && output.stderr.contains(words), "{words}: {}", output.stderr);
        assert!(!output.stderr.contains("docker login"), "{}", output.stderr);
    }
    // In the middle of a body, and without a listener.
    let (source, cdn) = tokio::join!(FaultRegistry::start(), FaultRegistry::start());
    source.push("a", "1", &image);
    cdn.push("a", "1", &image);
    source
        .on(RequestType::BlobGet)
        .always()
        .act(FaultAction::Redirect { to: format!("{}{{path}}", cdn.url()), status: 302 });
    let in_body = RequestMatcher::kind(RequestType::BlobGet).reference(&layer);
    cdn.on(in_body).always().act(FaultAction::StallAfter { bytes: 100 });
    let output = sync(&source).await;
    assert!(output.stderr.contains(&cdn.url()), "{}", output.stderr);
    let url = cdn.url();
    drop(cdn);
    let output = sync(&source).await;
    assert!(output.stderr.contains(&url), "{}", output.stderr);
    // Without a redirect the registry's name suffices.
    source.clear_rules();
    source.on(RequestType::BlobGet).always().act(FaultAction::error(403, "DENIED"));
    let output = sync(&source).await;
    assert!(!output.stderr.contains(", at http"), "{}", output.stderr);
}

#[tokio::test]
async fn an_error_at_the_host_of_an_upload_names_that_host() {
    for (fault, words) in redirect_faults() {
        let (source, target, store) =
            tokio::join!(FaultRegistry::start(), FaultRegistry::start(), FaultRegistry::start());
        source.push("a", "1", &images::single("uploads-elsewhere"));
        let location = format!("{}/v2/b/blobs/uploads/session-1?_state=x", store.url());
        let starts = RequestMatcher::kinds(&[RequestType::UploadStart, RequestType::UploadMount]);
        target.on(starts).always().act(FaultAction::SetHeader("location".into(), location));
        store.on(RequestMatcher::any()).always().act(fault);
        let (from, to) = (format!("{}/a:1", source.host()), format!("{}/b:1", target.host()));
        let sync = Imgsync::new().args(["sync", &from, &to, "--attempts", "1", "--stall-timeout", "1s"]);
        let output = sync.run().await;
        assert_ne!(output.code, Some(0));
        assert!(output.stderr.contains(&store.url()), "{words}: {}", output.stderr);
        assert!(!output.stderr.contains("docker login") && !output.stderr.contains("_state"), "{}", output.stderr);
    }
}
