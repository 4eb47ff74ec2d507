//! Connections that cannot work are tried once and explained.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use imgsync_tests::fault::{FaultAction, FaultRegistry, RequestType};
use imgsync_tests::images;
use imgsync_tests::program::{Imgsync, Output};
use imgsync_tests::proxy::Proxy;
use imgsync_tests::tls::Authority;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

const NAME: &str = "registry.example.com";

/// Copies `HOST/a:1` to a registry on loopback, with these settings for `HOST`. Transient errors are retried.
async fn sync_from(host: &str, settings: &str, files: &[(&str, &[u8])]) -> Output {
    let target = FaultRegistry::start().await;
    let sync = Imgsync::new();
    for (name, content) in files {
        sync.file(name, content);
    }
    sync.file("imgsync.yaml", format!("registries:\n  \"{host}\": {{{settings}}}\n"));
    let to = format!("{}/b:1", target.host());
    sync.args(["sync", &format!("{host}/a:1"), &to, "--json", "--retry-delay", "1ms"]).run().await
}

#[track_caller]
fn assert_stderr_contains(output: &Output, words: &[&str]) {
    for words in words {
        assert!(output.stderr.contains(words), "`{words}` is missing in:\n{}", output.stderr);
    }
}

async fn serving(authority: Authority) -> FaultRegistry {
    let source = FaultRegistry::builder().tls(Arc::new(authority)).start().await;
    source.push("a", "1", &images::single("served"));
    source
}

#[tokio::test]
async fn a_certificate_out_of_its_time_is_told_of_with_the_date() {
    for (from, until, words) in [
        ((2019, 1, 1), (2024, 2, 29), "expired on 2024-02-29"),
        ((2001, 5, 6), (2001, 5, 7), "expired on 2001-05-07"),
        ((2091, 10, 3), (2099, 1, 1), "is valid from 2091-10-03 only"),
    ] {
        let authority = Authority::named("Clockwork CA").valid(from, until);
        let pem = authority.pem().to_owned();
        let source = serving(authority).await;
        let output =
            sync_from(&source.host(), "tls: on, ca: ca.pem", &[("ca.pem", pem.as_bytes())]).await.assert_code(1);
        assert_eq!((output.json()["kind"].as_str(), source.connections()), (Some("insecure"), 1), "{}", output.stderr);
        assert_stderr_contains(&output, &[words, &source.host()]);
    }
}

#[tokio::test]
async fn a_certificate_that_is_missing_is_named() {
    let root = Authority::named("Ample Root R3");
    let issuing = || root.intermediate("Ample Issuing CA 7");
    let root_pem = root.pem().to_owned();
    let check = async |authority: Authority, ca: Option<&str>, words: &[&str]| {
        let source = serving(authority).await;
        let settings = if ca.is_some() { "tls: on, ca: ca.pem" } else { "tls: on" };
        let output = sync_from(&source.host(), settings, &[("ca.pem", ca.unwrap_or_default().as_bytes())]).await;
        let output = output.assert_code(1);
        assert_eq!((output.json()["kind"].as_str(), source.connections()), (Some("insecure"), 1), "{}", output.stderr);
        assert_stderr_contains(&output, words);
    };
    check(issuing(), Some(&root_pem), &["Ample Issuing CA 7", "an intermediate", "add it to `ca:`"]).await;
    check(issuing(), None, &["Ample Issuing CA 7", "set `ca:` for the registry"]).await;
    check(issuing().with_ca_in_chain(), None, &["Ample Root R3", "set `ca:` for the registry"]).await;
    check(Authority::named("Lonely"), Some(&root_pem), &["Lonely", "is missing"]).await;
    check(Authority::named("Ample Root R3"), Some(&root_pem), &["Ample Root R3", "a different key"]).await;
    check(Authority::self_signed(), None, &["self-signed", "set `ca:` for the registry"]).await;
    // With the certificate, or if the server sends it, the copy succeeds.
    let issuing = issuing();
    let both = format!("{}{root_pem}", issuing.pem());
    let source = serving(issuing).await;
    sync_from(&source.host(), "tls: on, ca: ca.pem", &[("ca.pem", both.as_bytes())]).await.assert_code(0);
    let source = serving(root.intermediate("Ample Issuing CA 8").with_ca_in_chain()).await;
    sync_from(&source.host(), "tls: on, ca: ca.pem", &[("ca.pem", root_pem.as_bytes())]).await.assert_code(0);
}

#[tokio::test]
async fn a_name_that_a_certificate_does_not_have_is_told_of_with_those_it_has() {
    let authority = Authority::named("Names CA");
    let pem = authority.pem().to_owned();
    let source = serving(authority).await;
    let proxy = Proxy::http().await.map_host(NAME, &source.address().to_string());
    let settings = format!("ca: ca.pem, proxy: \"{}\"", proxy.url());
    let output = sync_from(NAME, &settings, &[("ca.pem", pem.as_bytes())]).await.assert_code(1);
    assert_eq!((output.json()["kind"].as_str(), source.connections()), (Some("insecure"), 1), "{}", output.stderr);
    assert_stderr_contains(&output, &[NAME, "localhost", "name the registry as its certificate does"]);
}

#[tokio::test]
async fn plain_http_at_a_port_of_tls_and_the_reverse_are_told_apart_and_not_tried_again() {
    let source = serving(Authority::new()).await;
    let output = sync_from(&source.host(), "", &[]).await.assert_code(1);
    assert_eq!(
        (output.json()["kind"].as_str(), source.connections()),
        (Some("invalid_response"), 1),
        "{}",
        output.stderr
    );
    assert_stderr_contains(
        &output,
        &["does not speak HTTP", &format!("if {} speaks TLS, set `tls: on`", source.host())],
    );

    let source = FaultRegistry::start().await;
    let output = sync_from(&source.host(), "tls: on", &[]).await.assert_code(1);
    assert_eq!(
        (output.json()["kind"].as_str(), source.connections()),
        (Some("invalid_response"), 1),
        "{}",
        output.stderr
    );
    assert_stderr_contains(
        &output,
        &["does not speak TLS", &format!("if {} speaks plain HTTP, set `tls: off`", source.host())],
    );

    // Go, nginx and Apache recognise plain HTTP.
    for words in [
        "Client sent an HTTP request to an HTTPS server.\n",
        "<html><head><title>400 The plain HTTP request was sent to HTTPS port</title></head></html>",
        "<title>400 Bad Request</title><p>You're speaking plain HTTP to an SSL-enabled server port.</p>",
    ] {
        let source = FaultRegistry::start().await;
        let headers = Vec::new();
        source.on(RequestType::ManifestGet).always().act(FaultAction::Status {
            code: 400,
            headers,
            body: words.into(),
        });
        let output = sync_from(&source.host(), "", &[]).await.assert_code(1);
        assert_eq!(source.count(RequestType::ManifestGet), 1);
        assert_stderr_contains(&output, &["set `tls: on`"]);
    }
}

#[tokio::test]
async fn settings_of_tls_imply_tls_on_a_loopback_address() {
    let authority = Authority::named("Loopback CA");
    let pem = authority.pem().to_owned();
    let source = serving(authority).await;
    let files = [("ca.pem", pem.as_bytes())];
    for settings in ["ca: ca.pem", "insecure: true", "tls: on, ca: ca.pem"] {
        sync_from(&source.host(), settings, &files).await.assert_code(0);
    }
    let client = Authority::named("Client CA").client();
    let files = [("cert.pem", client.certificate_pem.as_bytes()), ("key.pem", client.key_pem.as_bytes())];
    let output = sync_from(&source.host(), "client_cert: cert.pem, client_key: key.pem", &files).await.assert_code(1);
    assert_stderr_contains(&output, &["Loopback CA", "set `ca:` for the registry"]);
    // What contradicts that is an error.
    let output = sync_from(&source.host(), "tls: off, ca: ca.pem", &[]).await.assert_code(2);
    assert_stderr_contains(&output, &["`ca` has no effect with `tls: off`"]);
    let output = sync_from(&source.host(), "tls: enabled", &[]).await.assert_code(2);
    assert_stderr_contains(&output, &["`tls` is `on` or `off`, not `enabled`"]);
}

#[tokio::test]
async fn a_400_without_a_reason_over_plain_http_hints_at_tls() {
    let source = FaultRegistry::start().await;
    let rejection = FaultAction::Status { code: 400, headers: Vec::new(), body: "".into() };
    source.on(RequestType::ManifestHead).always().act(rejection.clone());
    source.on(RequestType::ManifestGet).always().act(rejection);
    let output = sync_from(&source.host(), "", &[]).await.assert_code(1);
    let hint = format!("{} may expect TLS: set `tls: on` for it under `registries`", source.host());
    assert_stderr_contains(&output, &["400 Bad Request", &hint, "the default for loopback addresses"]);
    // Over TLS, that is no reason.
    let authority = Authority::named("Reasons CA");
    let pem = authority.pem().to_owned();
    let source = serving(authority).await;
    let rejection = FaultAction::Status { code: 400, headers: Vec::new(), body: "".into() };
    source.on(RequestType::ManifestHead).always().act(rejection.clone());
    source.on(RequestType::ManifestGet).always().act(rejection);
    let output = sync_from(&source.host(), "ca: ca.pem", &[("ca.pem", pem.as_bytes())]).await.assert_code(1);
    assert!(!output.stderr.contains("may expect TLS"), "{}", output.stderr);
}

#[tokio::test]
async fn an_alert_of_tls_is_explained_and_the_server_asked_once() {
    for (alert, words) in
        [(70, "TLS 1.0 or 1.1"), (112, "the server does not know that name"), (116, "client certificate")]
    {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let host = listener.local_addr().unwrap().to_string();
        let asked = Arc::new(AtomicUsize::new(0));
        let count = asked.clone();
        let server = tokio::spawn(async move {
            loop {
                let (mut client, _) = listener.accept().await.unwrap();
                count.fetch_add(1, Ordering::SeqCst);
                // The client's data is read, otherwise the alert would be lost with the connection.
                let _ = client.read(&mut [0; 4096]).await;
                let _ = client.write_all(&[21, 3, 1, 0, 2, 2, alert]).await;
                let _ = client.shutdown().await;
            }
        });
        let output = sync_from(&host, "tls: on", &[]).await.assert_code(1);
        assert_eq!(output.json()["kind"], "insecure", "{}", output.stderr);
        assert_stderr_contains(&output, &[words]);
        assert_eq!(asked.load(Ordering::SeqCst), 1);
        server.abort();
    }
}

#[tokio::test]
async fn a_proxy_that_wants_to_know_who_asks_is_named_and_asked_once() {
    let authority = Authority::new();
    let ca = authority.pem().to_owned();
    let secure = FaultRegistry::builder().tls(Arc::new(authority)).host_name(NAME).start().await;
    let plain = FaultRegistry::start().await;
    let image = images::single("demanding");
    for source in [&secure, &plain] {
        source.push("a", "1", &image);
    }
    for (source, tls) in [(&secure, "ca: ca.pem"), (&plain, "tls: off")] {
        for proxy in [Proxy::http().await, Proxy::socks5().await] {
            let proxy = proxy.map_host(NAME, &source.address().to_string()).require_credentials("me", "right");
            for (login, words) in [("", "requires a user and a password"), ("me:wrong@", "rejects the user")] {
                let asked = proxy.requests().len();
                let url = proxy.url().replace("://", &format!("://{login}"));
                let settings = format!("{tls}, proxy: \"{url}\"");
                let output = sync_from(NAME, &settings, &[("ca.pem", ca.as_bytes())]).await.assert_code(1);
                assert_eq!(output.json()["kind"], "denied", "{}", output.stderr);
                assert_stderr_contains(&output, &[words, &format!("the proxy {}", proxy.url()), "HTTPS_PROXY"]);
                assert!(!output.stderr.contains("wrong") && !output.stdout.contains("wrong"), "{}", output.stderr);
                assert_eq!(proxy.requests().len() - asked, 1, "{:?}", proxy.requests());
            }
            let url = proxy.url().replace("://", "://me:right@");
            let settings = format!("{tls}, proxy: \"{url}\"");
            sync_from(NAME, &settings, &[("ca.pem", ca.as_bytes())]).await.assert_code(0);
        }
    }
}

#[tokio::test]
async fn a_proxy_before_a_target_that_wants_to_know_who_asks_is_not_taken_for_the_target() {
    let source = FaultRegistry::start().await;
    source.push("a", "1", &images::single("before-the-target"));
    let proxy = Proxy::http().await.require_credentials("me", "right");
    let sync = Imgsync::new();
    sync.file("imgsync.yaml", format!("registries:\n  {NAME}: {{proxy: \"{}\"}}\n", proxy.url()));
    let output = sync.args(["sync", &format!("{}/a:1", source.host()), &format!("{NAME}/b:1")]).run().await;
    assert_stderr_contains(&output.assert_code(1), &["requires a user and a password", &proxy.url()]);
    assert_eq!((proxy.requests().len(), source.total()), (1, 0));
}

#[tokio::test]
async fn certificates_are_read_as_people_have_them_or_refused_by_name() {
    let authority = Authority::named("Formats CA");
    let (pem, der) = (authority.pem().to_owned(), authority.der().to_vec());
    let key = authority.client().key_pem;
    let source = serving(authority).await;
    let trusted = pem.replace("CERTIFICATE", "TRUSTED CERTIFICATE");
    let old = pem.replace("CERTIFICATE", "X509 CERTIFICATE");
    let behind = format!("subject=CN = Formats CA\r\n{}", pem.replace('\n', "\r\n"));
    for (name, content) in [
        ("ca.der", der.as_slice()),
        ("ca.cer", &der),
        ("ca.crt", old.as_bytes()),
        ("windows.pem", behind.as_bytes()),
        ("with-key.pem", format!("{key}{pem}").as_bytes()),
    ] {
        sync_from(&source.host(), &format!("tls: on, ca: {name}"), &[(name, content)]).await.assert_code(0);
    }
    let wide: Vec<u8> = [0xff, 0xfe].into_iter().chain(pem.bytes().flat_map(|byte| [byte, 0])).collect();
    let half = pem.replace("-----END CERTIFICATE-----", "");
    for (name, content, words) in [
        ("trusted.pem", trusted.as_bytes(), "TRUSTED CERTIFICATE"),
        ("mixed.pem", format!("{pem}{trusted}").as_bytes(), "openssl x509 -in FILE"),
        ("key.pem", key.as_bytes(), "PRIVATE KEY and no CERTIFICATE"),
        ("request.pem", pem.replace("CERTIFICATE", "CERTIFICATE REQUEST").as_bytes(), "CERTIFICATE REQUEST"),
        ("store.p12", &[0x30, 0x03, 0x02, 0x01, 0x03], "PKCS#12"),
        ("cut.der", &der[..der.len() - 9], "it is DER, but no certificate"),
        ("wide.pem", &wide, "UTF-16"),
        ("half.pem", half.as_bytes(), "damaged"),
        ("notes.txt", b"the certificate is with Bob\n", "neither PEM"),
        ("empty.pem", b"", "it is empty"),
    ] {
        let output = sync_from(&source.host(), &format!("tls: on, ca: {name}"), &[(name, content)]).await;
        assert_stderr_contains(&output.assert_code(2), &[name, words]);
    }
}

/// Copies from `NAME` over TLS with these variables. Returns whether the proxy was used.
async fn asks_proxy(host: &str, variables: &[(&str, &str)]) -> (bool, Output) {
    let (proxy, target) = tokio::join!(Proxy::http(), FaultRegistry::start());
    let to = format!("{}/b:1", target.host());
    let sync = Imgsync::new().args(["sync", &format!("{host}/a:1"), &to, "--attempts", "1", "--json"]);
    let sync = variables.iter().fold(sync, |sync, (name, value)| sync.env(name, value.replace("PROXY", &proxy.url())));
    let output = sync.run().await;
    assert_ne!(output.code, Some(0));
    (!proxy.requests().is_empty(), output)
}

#[tokio::test]
async fn no_proxy_is_read_as_go_reads_it() {
    for (exceptions, is_asked) in [
        ("", true),
        ("example.org,*.org", true),
        ("*.example.com", false),
        (".example.com", false),
        ("example.com", false),
        ("other.example, Registry.Example.com:443", false),
        ("registry.example.com:5000", true),
        ("*.registry.example.com", true),
        ("*.com:443", false),
        ("10.0.0.0/8:443", true),
        ("*", false),
    ] {
        for name in ["NO_PROXY", "no_proxy"] {
            let (asked, output) = asks_proxy(NAME, &[("https_proxy", "PROXY"), (name, exceptions)]).await;
            assert_eq!(asked, is_asked, "{name}={exceptions}: {}", output.stderr);
        }
    }
}

#[tokio::test]
async fn a_proxy_variable_that_cannot_be_used_is_an_error_and_no_reason_to_go_without() {
    for (name, value) in [
        ("https_proxy", "ftp://127.0.0.1:3128"),
        ("HTTPS_PROXY", "http://me:se#cret@127.0.0.1:3128"),
        ("all_proxy", "127.0.0.1:port"),
        ("ALL_PROXY", "socks9://127.0.0.1:1080"),
    ] {
        let (_, output) = asks_proxy(NAME, &[(name, value)]).await;
        let output = output.assert_code(2);
        assert_eq!(output.json()["kind"], "invalid");
        assert_stderr_contains(&output, &[&format!("`{name}`"), "is not a proxy", "http://HOST:PORT"]);
        assert!(!output.stderr.contains("cret"), "{}", output.stderr);
        // Connections that need no proxy are unaffected.
        let (source, target) = tokio::join!(FaultRegistry::start(), FaultRegistry::start());
        source.push("a", "1", &images::single("without-a-proxy"));
        let (from, to) = (format!("{}/a:1", source.host()), format!("{}/b:1", target.host()));
        Imgsync::new().args(["sync", &from, &to]).env(name, value).run().await.assert_code(0);
    }
}

#[tokio::test]
async fn a_proxy_that_is_out_of_reach_is_named() {
    let gone = Proxy::http().await.url();
    let (_, output) = asks_proxy(NAME, &[("https_proxy", &gone)]).await;
    assert_stderr_contains(&output, &[&format!("by the proxy {gone}"), "hint: check the proxy: that it runs"]);
    let proxy = Proxy::http().await;
    proxy.refuse(true);
    let (_, output) = asks_proxy(NAME, &[("https_proxy", &proxy.url())]).await;
    let hint = "hint: the proxy runs, but did not connect to the host";
    assert_stderr_contains(&output, &[&format!("by the proxy {}", proxy.url()), hint]);
}

#[tokio::test]
async fn with_an_endpoint_the_hint_names_the_host_whose_login_is_used() {
    let source = FaultRegistry::builder().basic("me", "secret").start().await;
    source.push("a", "1", &images::single("endpoint"));
    let settings = format!("endpoint: \"{}\"", source.url());
    let output = sync_from(NAME, &settings, &[]).await.assert_code(1);
    assert_stderr_contains(
        &output,
        &[&format!("docker login {}", source.host()), &format!("set them for {NAME} under `registries`")],
    );
    let output = sync_from(NAME, &format!("{settings}, username: me, password: wrong"), &[]).await.assert_code(1);
    assert_stderr_contains(&output, &[&format!("for {} (the `endpoint` of {NAME})", source.host())]);
    // The login of that host is used.
    let target = FaultRegistry::start().await;
    let sync = Imgsync::new();
    sync.file("imgsync.yaml", format!("registries:\n  {NAME}: {{{settings}}}\n"));
    sync.write_docker_config(&[(NAME, "me", "wrong"), (&source.host(), "me", "secret")]);
    let to = format!("{}/b:1", target.host());
    sync.args(["sync", &format!("{NAME}/a:1"), &to]).run().await.assert_code(0);
}
