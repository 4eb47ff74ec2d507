//! Registries that echo requests: no password and no token gets into output or storage.

use std::path::Path;
use std::sync::{Arc, Mutex};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use imgsync_tests::fault::{Bearer, FaultAction, FaultRegistry, FaultRegistryBuilder, RecordedRequest, RequestType};
use imgsync_tests::images;
use imgsync_tests::program::Imgsync;
use imgsync_tests::proxy::Proxy;

const LOGIN: (&str, &str) = ("robot", "pa55 word+of/the?robot");

/// Form in which a header is echoed.
#[derive(Clone, Copy, Debug)]
enum EchoForm {
    Json,
    Html,
    Text,
    Base64,
    Percent,
    CutOff,
    Code,
    Redirect,
}

const ECHO_FORMS: [EchoForm; 8] = [
    EchoForm::Json,
    EchoForm::Html,
    EchoForm::Text,
    EchoForm::Base64,
    EchoForm::Percent,
    EchoForm::CutOff,
    EchoForm::Code,
    EchoForm::Redirect,
];

fn percent(text: &str) -> String {
    text.bytes().map(|byte| format!("%{byte:02X}")).collect()
}

/// Returns the credentials of a request, as sent and decoded.
fn sent(request: &RecordedRequest) -> String {
    let header = request.header("authorization").unwrap_or("nothing").to_owned();
    let plain = header.strip_prefix("Basic ").and_then(|text| STANDARD.decode(text).ok());
    let plain = plain.and_then(|bytes| String::from_utf8(bytes).ok()).unwrap_or_default();
    format!("{header} {plain}")
}

fn echo(request: &RecordedRequest, how: EchoForm) -> FaultAction {
    let sent = sent(request);
    let answer = |kind: &str, body: String| FaultAction::Status {
        code: 400,
        headers: vec![("content-type".to_owned(), kind.to_owned())],
        body: body.into(),
    };
    let json = |code: &str, message: &str| {
        let body = serde_json::json!({"errors": [{"code": code, "message": message, "detail": {"got": message}}]});
        answer("application/json", body.to_string())
    };
    match how {
        EchoForm::Json => json("DENIED", &format!("you sent {sent}")),
        EchoForm::Html => answer("text/html", format!("<html><title>400 {sent}</title><p>{sent}</html>")),
        EchoForm::Text => answer("text/plain", format!("bad request: {sent}, {sent}")),
        EchoForm::Base64 => json("DENIED", &STANDARD.encode(format!("headers: {sent}"))),
        EchoForm::Percent => json("DENIED", &format!("{} {}", percent(&sent), percent(&percent(&sent)))),
        EchoForm::CutOff => json("DENIED", &format!("you sent {}", &sent[..sent.len() * 2 / 3])),
        EchoForm::Code => json(&sent, ""),
        EchoForm::Redirect => {
            FaultAction::Redirect { to: format!("ftp://elsewhere.example.com/{}", percent(&sent)), status: 307 }
        }
    }
}

/// Returns all secrets that a registry was sent.
fn secrets(registry: &FaultRegistry) -> Vec<String> {
    let headers: Vec<String> = registry
        .requests()
        .iter()
        .filter_map(|request| request.header("authorization")?.split_once(' ').map(|(_, text)| text.to_owned()))
        .collect();
    let mut all = vec![LOGIN.1.to_owned(), percent(LOGIN.1)];
    for text in headers {
        // Parts of a token that was cut off, too.
        all.push(text[..text.len() / 2].to_owned());
        all.push(text);
    }
    all
}

#[track_caller]
fn assert_hidden(text: &str, secrets: &[String], what: &str) {
    let lower = text.to_lowercase();
    for secret in secrets {
        assert!(!lower.contains(&secret.to_lowercase()), "{what}: {secret} is shown in {text}");
    }
}

fn builders() -> Vec<FaultRegistryBuilder> {
    let bearer = Bearer::user(LOGIN.0, LOGIN.1);
    vec![FaultRegistry::builder().basic(LOGIN.0, LOGIN.1), FaultRegistry::builder().bearer(bearer)]
}

#[tokio::test]
async fn what_a_registry_sends_back_of_a_login_is_masked_in_every_form() {
    for builder in builders() {
        for how in ECHO_FORMS {
            for (kind, as_source) in
                [(RequestType::ManifestGet, true), (RequestType::BlobGet, true), (RequestType::UploadMount, false)]
            {
                let (own, other) = tokio::join!(builder.clone().start(), FaultRegistry::start());
                let (source, target) = if as_source { (&own, &other) } else { (&other, &own) };
                source.push("a", "1", &images::single("echo"));
                let is_login = |request: &RecordedRequest| request.header("authorization").is_some();
                let rule =
                    imgsync_tests::fault::RequestMatcher::kinds(&[kind, RequestType::UploadStart]).when(is_login);
                own.on(rule).always().act(FaultAction::compute(move |request| echo(request, how)));
                let (from, to) = (format!("{}/a:1", source.host()), format!("{}/b:1", target.host()));
                let sync =
                    Imgsync::new().args(["sync", &from, &to, "--json", "--attempts", "2", "--retry-delay", "1ms"]);
                sync.write_docker_config(&[(&own.host(), LOGIN.0, LOGIN.1)]);
                let output = sync.run().await.assert_code(1);
                let what = format!("{how:?} {kind:?}");
                assert_hidden(&output.stderr, &secrets(&own), &what);
                assert_hidden(&output.stdout, &secrets(&own), &what);
                let shows_mask = !matches!(how, EchoForm::Redirect);
                assert!(!shows_mask || output.stderr.contains("***"), "{what}: {}", output.stderr);
            }
        }
    }
}

/// Returns the bytes of all files below a folder, as text.
fn all_files(folder: &Path) -> String {
    let mut text = String::new();
    for entry in std::fs::read_dir(folder).unwrap().map(Result::unwrap) {
        match entry.file_type().unwrap().is_dir() {
            true => text.push_str(&all_files(&entry.path())),
            false => text.push_str(&String::from_utf8_lossy(&std::fs::read(entry.path()).unwrap())),
        }
    }
    text
}

#[tokio::test]
async fn a_login_that_is_sent_back_is_in_no_log_report_or_database() {
    for builder in builders() {
        let (source, target) = tokio::join!(builder.start(), FaultRegistry::start());
        for tag in ["1", "2"] {
            source.push("a", tag, &images::single(&format!("echo-{tag}")));
        }
        source.on(RequestType::BlobGet).always().act(FaultAction::compute(|request| echo(request, EchoForm::Json)));
        let program = Imgsync::new();
        program.write_docker_config(&[(&source.host(), LOGIN.0, LOGIN.1)]);
        let rule = format!("rules: [{{from: '{}/a', to: '{}/b', naming: keep}}]\n", source.host(), target.host());
        let file = program.file("imgsync.yaml", rule);
        for (log, report) in [("text", "out.html"), ("json", "out.json"), ("text", "out.md")] {
            let run = program.again().args(["run", "--json", "--attempts", "1", "--log-format", log]);
            let run = run.args([&format!("--report={report}"), "--report-level=3", "-c"]).arg(&file);
            let output = run.run().await.assert_code(1);
            assert!(output.stderr.contains("***"), "{}", output.stderr);
            assert_hidden(&output.stderr, &secrets(&source), "stderr");
            assert_hidden(&output.stdout, &secrets(&source), "stdout");
        }
        assert_hidden(&all_files(&program.work_dir()), &secrets(&source), "reports");
        assert_hidden(&all_files(&program.state_dir()), &secrets(&source), "the state");
    }
}

#[tokio::test]
async fn a_password_that_comes_back_as_a_hosts_name_is_masked() {
    let password = "Pa55word-that-is-a-Host";
    let source = FaultRegistry::builder().basic("robot", password).start().await;
    let target = FaultRegistry::start().await;
    source.push("a", "1", &images::single("echo-host"));
    let to = format!("ftp://{password}.example.com/x");
    source.on(RequestType::BlobGet).always().act(FaultAction::Redirect { to, status: 307 });
    let (from, to) = (format!("{}/a:1", source.host()), format!("{}/b:1", target.host()));
    let sync = Imgsync::new().args(["sync", &from, &to, "--attempts", "1"]);
    sync.write_docker_config(&[(&source.host(), "robot", password)]);
    let output = sync.run().await.assert_code(1);
    assert!(output.stderr.contains("ftp://***.example.com"), "{}", output.stderr);
    assert_hidden(&output.stderr, &[password.to_owned()], "a redirect");
}

#[tokio::test]
async fn a_listing_and_a_token_service_that_send_a_login_back_show_nothing() {
    let registry = FaultRegistry::builder().bearer(Bearer::user(LOGIN.0, LOGIN.1)).start().await;
    registry.push("a", "1", &images::single("echo-list"));
    let tags = |registry: &FaultRegistry| {
        let program = Imgsync::new().args(["tags", &format!("{}/a", registry.host()), "--attempts", "1"]);
        program.write_docker_config(&[(&registry.host(), LOGIN.0, LOGIN.1)]);
        program
    };
    let is_login = |request: &RecordedRequest| request.header("authorization").is_some();
    let rule = registry.on(imgsync_tests::fault::RequestMatcher::kind(RequestType::Tags).when(is_login)).always();
    let rule = rule.act(FaultAction::compute(|request| echo(request, EchoForm::Text)));
    let output = tags(&registry).run().await.assert_code(1);
    assert!(output.stderr.contains("***"), "{}", output.stderr);
    assert_hidden(&output.stderr, &secrets(&registry), "a listing");
    rule.remove();
    registry.on(RequestType::Token).always().act(FaultAction::compute(|request| echo(request, EchoForm::Json)));
    let output = tags(&registry).run().await.assert_code(1);
    assert!(output.stderr.contains("***"), "{}", output.stderr);
    assert_hidden(&output.stderr, &secrets(&registry), "the token service");
    registry.clear_rules();
    // A malformed JSON response is not quoted, since the token may be in it.
    let body = format!("{{\"token\": \"a-token-that-nobody-knows-yet\", \"access_token\": [\"{}\"]}}", LOGIN.1);
    registry.on(RequestType::Token).always().act(FaultAction::Status {
        code: 200,
        headers: Vec::new(),
        body: body.into(),
    });
    let output = tags(&registry).run().await.assert_code(1);
    assert!(!output.stderr.contains("nobody-knows"), "{}", output.stderr);
    assert_hidden(&output.stderr, &secrets(&registry), "an answer that is none");
}

#[tokio::test]
async fn a_token_that_was_replaced_is_masked_too_and_so_are_others_logins() {
    // Somebody who has the target's password reveals it to the source; what matters is that it is known here.
    let (source, target) = tokio::join!(
        FaultRegistry::builder().bearer(Bearer::user(LOGIN.0, LOGIN.1)).start(),
        FaultRegistry::builder().basic("pusher", "the-password-of-the-target").start()
    );
    source.push("a", "1", &images::single("echo-old"));
    let first = Arc::new(Mutex::new(None::<String>));
    let seen = first.clone();
    let challenge = format!("Bearer realm=\"{}\",service=\"{}\"", source.token_url(), source.host());
    source.on(RequestType::BlobGet).times(1).act(FaultAction::compute(move |request| {
        *seen.lock().unwrap() = request.header("authorization").map(str::to_owned);
        let headers = vec![("www-authenticate".into(), challenge.clone())];
        FaultAction::Status { code: 401, headers, body: Default::default() }
    }));
    let response_text = first.clone();
    source.on(RequestType::BlobGet).always().act(FaultAction::compute(move |_| {
        let old = response_text.lock().unwrap().clone().unwrap_or_default();
        let body = format!("{old} the-password-of-the-target");
        FaultAction::Status { code: 400, headers: Vec::new(), body: body.into() }
    }));
    let (from, to) = (format!("{}/a:1", source.host()), format!("{}/b:1", target.host()));
    let sync = Imgsync::new().args(["sync", &from, &to, "--attempts", "1"]);
    sync.write_docker_config(&[
        (&source.host(), LOGIN.0, LOGIN.1),
        (&target.host(), "pusher", "the-password-of-the-target"),
    ]);
    let output = sync.run().await.assert_code(1);
    let old = first.lock().unwrap().clone().expect("a token was refused");
    let old = old.trim_start_matches("Bearer ").to_owned();
    assert!(output.stderr.contains("***"), "{}", output.stderr);
    assert_hidden(&output.stderr, &[old, "the-password-of-the-target".to_owned()], "a later answer");
}

#[tokio::test]
async fn a_proxy_that_sends_its_login_back_shows_nothing() {
    let (source, target) = tokio::join!(FaultRegistry::start(), FaultRegistry::start());
    source.push("a", "1", &images::single("echo-proxy"));
    let password = "proxy-pass/word";
    let basic = STANDARD.encode(format!("me:{password}"));
    let response_text = format!("407 for {password} {basic} {}", percent(password));
    source.on(RequestType::ManifestGet).always().act(FaultAction::Status {
        code: 400,
        headers: Vec::new(),
        body: response_text.into(),
    });
    let proxy = Proxy::http().await.map_host("10.0.0.5", &source.address().to_string());
    let url = proxy.url().replace("http://", "http://me:proxy-pass%2Fword@");
    let sync = Imgsync::new().args(["sync", "10.0.0.5:5000/a:1", &format!("{}/b:1", target.host()), "--attempts", "1"]);
    let config =
        sync.file("imgsync.yaml", format!("registries:\n  \"10.0.0.5:5000\": {{tls: off, proxy: \"{url}\"}}\n"));
    let output = sync.arg("-c").arg(config).run().await.assert_code(1);
    assert!(output.stderr.contains("***"), "{}", output.stderr);
    assert_hidden(&output.stderr, &[password.to_owned(), basic, percent(password)], "a proxy");
}
