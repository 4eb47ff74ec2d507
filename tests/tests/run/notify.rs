//! Notifications at the end of a batch: Telegram, webhooks, and their failures.

use imgsync_tests::fault::{FaultAction, FaultRegistry, RequestMatcher, RequestType};
use imgsync_tests::images;
use imgsync_tests::program::{Imgsync, Output};
use imgsync_tests::servers::{TelegramPost, TelegramServer, WebhookReceiver};
use serde_json::{Value, json};

use crate::end_to_end::configured;

const TOKEN: &str = "1234567890:AAF-secret_TokenOfABot";
const GROUP: &str = "-1001234567890";
/// Error text of a registry, all markup.
const HOSTILE: &str = "</pre><b>no</b> &lt; & `x` *y* [z](tg://user?id=1)";

/// Two registries, and images of which those in `bad` cannot be read.
pub(crate) struct NotifyFixture {
    pub(crate) source: FaultRegistry,
    pub(crate) target: FaultRegistry,
}

impl NotifyFixture {
    pub(crate) async fn new(good: usize, bad: usize) -> NotifyFixture {
        let (source, target) = tokio::join!(FaultRegistry::start(), FaultRegistry::start());
        for n in 0..good {
            source.push("good", &format!("v{n}"), &images::single(&format!("notify-{n}")));
        }
        for n in 0..bad {
            source.push("bad", &format!("v{n:04}"), &images::single("notify-bad"));
        }
        let refusal = json!({"errors": [{"code": "DENIED", "message": HOSTILE}]}).to_string();
        let body = FaultAction::Status { code: 403, headers: Vec::new(), body: refusal.into() };
        let manifests = |record: &imgsync_tests::fault::RecordedRequest| {
            record.repository.as_deref() == Some("bad")
                && matches!(record.kind, RequestType::ManifestGet | RequestType::ManifestHead)
        };
        source.on(RequestMatcher::any().when(manifests)).always().act(body);
        NotifyFixture { source, target }
    }

    pub(crate) fn program(&self, more: &str) -> Imgsync {
        let (source, target) = (self.source.host(), self.target.host());
        configured(&format!("rules:\n- {{from: {source}/*, to: {target}/m, naming: keep}}\n{more}"))
    }
}

pub(crate) async fn run(program: &Imgsync, more: &[&str]) -> Output {
    let file = program.work_dir().join("imgsync.yaml");
    program.again().args(["run", "--retry-delay", "10ms", "-c"]).arg(file).args(more).run().await
}

fn flags(telegram: &TelegramServer) -> [String; 3] {
    [
        format!("--telegram-api={}", telegram.url()),
        format!("--telegram-token={TOKEN}"),
        format!("--telegram-group={GROUP}"),
    ]
}

async fn run_and_notify(program: &Imgsync, telegram: &TelegramServer, more: &[&str]) -> Output {
    let flags = flags(telegram);
    let typed: Vec<&str> = flags.iter().map(String::as_str).chain(more.iter().copied()).collect();
    run(program, &typed).await
}

#[tokio::test]
async fn a_group_of_telegram_is_sent_the_report_whatever_registries_say() {
    let fixture = NotifyFixture::new(2, 2).await;
    let telegram = TelegramServer::start(TOKEN, GROUP).await;
    let program = fixture.program("");
    let output = run_and_notify(&program, &telegram, &["--report-name", "nightly <1>"]).await.assert_code(1);
    let [TelegramPost::Message { text, is_preformatted: true }] = &telegram.posts()[..] else {
        panic!("{:?}\n{}", telegram.posts(), output.stderr)
    };
    let report = program.again().args(["batch", "report", "--report-level", "2"]).run().await.assert_code(0);
    assert_eq!(text, report.stdout.trim(), "what `batch report` says");
    for part in ["Rules: nightly <1>", "Images: 4", "Failed: 2", "bad:v0001", "</pre><b>no</b> &lt; &"] {
        assert!(text.contains(part), "{part} in {text}");
    }
    assert!(!output.stderr.contains("warning"), "{}", output.stderr);
}

#[tokio::test]
async fn a_long_report_comes_in_parts_and_a_very_long_one_as_a_file() {
    let fixture = NotifyFixture::new(0, 24).await;
    let telegram = TelegramServer::start(TOKEN, GROUP).await;
    let program = fixture.program("");
    run_and_notify(&program, &telegram, &[]).await.assert_code(1);
    let level_2 = ["batch", "report", "--report-level", "2"];
    let report = program.again().args(level_2).run().await.stdout;
    let texts = telegram.texts();
    assert!((2..=3).contains(&texts.len()), "{} parts", texts.len());
    // A message never starts with the blanks that the first line of a part may have had.
    let lines = |text: &str| text.trim().lines().map(|line| line.trim().to_owned()).collect::<Vec<_>>();
    assert_eq!(lines(&texts.join("\n")), lines(&report));

    let fixture = NotifyFixture::new(1, 400).await;
    let telegram = TelegramServer::start(TOKEN, GROUP).await;
    let program = fixture.program("");
    run_and_notify(&program, &telegram, &[]).await.assert_code(1);
    let [TelegramPost::Message { text, .. }, TelegramPost::File { name, content }] = &telegram.posts()[..] else {
        panic!("{:?}", telegram.texts())
    };
    assert!(text.contains("Failed: 400") && text.ends_with("The rest is in the file."), "{text}");
    assert!(name.starts_with("imgsync-") && name.ends_with(".txt"), "{name}");
    let content = String::from_utf8(content.clone()).unwrap();
    assert_eq!(content.matches("bad:v").count(), 1_200, "each as source and target, and in its error");
    assert_eq!(content, program.again().args(level_2).run().await.stdout);
}

#[tokio::test]
async fn telegram_is_retried_when_it_says_so_or_fails_with_a_transient_error() {
    let fixture = NotifyFixture::new(1, 0).await;
    let telegram = TelegramServer::start(TOKEN, GROUP).await;
    telegram.rate_limit_once(1);
    telegram.refuse_once(http::StatusCode::BAD_GATEWAY, json!({"ok": false, "description": "Bad Gateway"}));
    let output = run_and_notify(&fixture.program(""), &telegram, &[]).await.assert_code(0);
    assert_eq!((telegram.requests(), telegram.posts().len()), (3, 1), "{}", output.stderr);
    assert!(!output.stderr.contains("warning"), "{}", output.stderr);
}

#[tokio::test]
async fn a_failed_notification_is_a_warning_and_no_token_is_ever_shown() {
    let fixture = NotifyFixture::new(1, 0).await;
    let telegram = TelegramServer::start("99:other", GROUP).await;
    let hook = WebhookReceiver::start().await;
    hook.refuse_once(400);
    let nobody = format!("http://127.0.0.1:{}/hook/path-secret", imgsync_tests::servers::free_port());
    let notify = format!(
        "notify:\n  webhook:\n  - {{url: \"{nobody}\"}}\n  - {{url: \"{}/path-secret?key=query-secret\"}}\n",
        hook.url()
    );
    let program = fixture.program(&notify);
    let output = run_and_notify(&program, &telegram, &["--debug"]).await.assert_code(0);
    let warnings: Vec<&str> = output.stderr.lines().filter(|line| line.starts_with("warning: ")).collect();
    for part in [
        "Telegram notification failed: sending a message to -1001234567890",
        "HTTP 401, Unauthorized (is the token right?)",
        "webhook notification failed: posting to http://127.0.0.1:",
        "failed 5 times",
        "HTTP 400",
    ] {
        assert!(warnings.iter().any(|line| line.contains(part)), "{part} in {warnings:?}");
    }
    let shown = format!("{}{}", output.stdout, output.stderr);
    for secret in [TOKEN, "secret_Token", "path-secret", "query-secret"] {
        assert!(!shown.contains(secret), "{secret} in {shown}");
    }
    assert_eq!(telegram.requests(), 1, "a wrong token is not tried again");

    // The group has migrated.
    let telegram = TelegramServer::start(TOKEN, GROUP).await;
    let typed = [&format!("--telegram-api={}", telegram.url()), "--telegram-group=-5"];
    let program = fixture.program("").again().env("IMGSYNC_TELEGRAM_TOKEN", TOKEN);
    let output = run(&program, &typed).await.assert_code(0);
    assert!(output.stderr.contains("chat not found"), "{}", output.stderr);
}

#[tokio::test]
async fn telegram_is_set_by_the_environment_or_by_the_file_and_half_of_it_is_said() {
    let fixture = NotifyFixture::new(1, 0).await;
    let telegram = TelegramServer::start(TOKEN, GROUP).await;
    let api = telegram.url();
    let program = fixture.program("");
    let by_environment = program
        .again()
        .env("IMGSYNC_TELEGRAM_TOKEN", TOKEN)
        .env("IMGSYNC_TELEGRAM_GROUP", GROUP)
        .env("IMGSYNC_TELEGRAM_API", &api);
    run(&by_environment, &[]).await.assert_code(0);
    assert_eq!(telegram.posts().len(), 1);

    let notify =
        format!("notify: {{telegram: {{token: \"${{BOT}}\", group: {GROUP}, api: \"{api}\", on: failure}}}}\n");
    let program = fixture.program(&notify);
    let by_file = program.again().env("BOT", TOKEN);
    run(&by_file, &[]).await.assert_code(0);
    assert_eq!(telegram.posts().len(), 1, "all went well");
    fixture
        .source
        .on(RequestMatcher::kind(RequestType::Tags).repository("good"))
        .always()
        .act(FaultAction::error(403, "DENIED"));
    run(&by_file, &[]).await.assert_code(1);
    let texts = telegram.texts();
    assert!(texts.len() == 2 && texts[1].contains("Skipped: 1 repository (could not be listed)"), "{texts:?}");

    let half = run(&fixture.program(""), &[&format!("--telegram-token={TOKEN}")]).await.assert_code(1);
    assert!(
        half.stderr.contains("warning: no Telegram notification: the token is set but the group is not"),
        "{}",
        half.stderr
    );
    let dry = run_and_notify(&fixture.program(""), &telegram, &["--dry-run"]).await;
    assert_eq!((dry.code, telegram.posts().len()), (Some(1), 2), "a dry run tells nobody");
}

#[tokio::test]
async fn a_webhook_is_posted_the_report_s_data_signed() {
    let fixture = NotifyFixture::new(2, 1).await;
    let hook = WebhookReceiver::start().await;
    hook.refuse_once(503);
    let notify = format!(
        "notify:\n  webhook:\n    url: \"{}/hook?x=1\"\n    headers: {{Authorization: Bearer abc}}\n    secret: sesame\n",
        hook.url()
    );
    let output = run(&fixture.program(&notify), &["--json"]).await.assert_code(1);
    let [refused, received] = &hook.received()[..] else { panic!("{}", output.stderr) };
    assert_eq!(refused.body, received.body, "the same again after a passing failure");
    assert_eq!((received.method.as_str(), received.target.as_str()), ("POST", "/hook?x=1"));
    assert_eq!(received.header("authorization"), Some("Bearer abc"));
    assert_eq!(received.header("content-type"), Some("application/json"));
    let key = ring::hmac::Key::new(ring::hmac::HMAC_SHA256, b"sesame");
    let signature = format!("sha256={}", hex::encode(ring::hmac::sign(&key, &received.body)));
    assert_eq!(received.header("x-imgsync-signature"), Some(signature.as_str()));
    let (body, json) = (received.json(), output.json());
    for field in ["batch", "state", "counts", "bytes", "requests"] {
        assert_eq!(body[field], json[field], "{field}");
    }
    assert_eq!((&body["event"], &body["ok"]), (&"batch.ended".into(), &false.into()));
    assert_eq!(body["headline"], "1 of 3 images failed");
    let group = &body["failures"]["groups"][0];
    assert_eq!((&group["kind"], &group["count"]), (&"denied".into(), &1.into()));
    assert!(group["images"][0]["error"].as_str().unwrap().contains("<b>no</b>"), "as it was said: {group}");
}

#[tokio::test]
async fn a_report_that_cannot_be_written_does_not_stop_notifications() {
    let fixture = NotifyFixture::new(1, 0).await;
    let hook = WebhookReceiver::start().await;
    let program = fixture.program(&format!("notify:\n  webhook: {{url: \"{}\"}}\n", hook.url()));
    // A missing folder is detected before anything is copied; one that is not writable is not.
    let output = run(&program, &["--report=missing/report.html"]).await.assert_code(2);
    assert!(output.stderr.contains("there is no folder missing"), "{}", output.stderr);
    assert_eq!(hook.received().len(), 0);
    let output = run(&program, &["--report=/proc/report.html"]).await.assert_code(3);
    assert!(output.stderr.contains("writing the report /proc/report.html"), "{}", output.stderr);
    assert!(output.stderr.contains("Images: 1"), "{}", output.stderr);
    assert_eq!(hook.received().len(), 1);
}

#[tokio::test]
async fn a_webhook_s_template_makes_the_body_and_a_broken_one_is_found_before_anything_is_asked() {
    let fixture = NotifyFixture::new(1, 1).await;
    let hook = WebhookReceiver::start().await;
    let notify =
        |on: &str| format!("notify:\n  webhook:\n  - {{url: \"{}\", template: chat.json.j2, on: {on}}}\n", hook.url());
    let program = fixture.program(&notify("changes"));
    let template = r#"{"text": {{ headline }}, "errors": [
        {%- for group in failures.groups %}{% for image in group.images %}{{ image.error }}{% if not loop.last %},{% endif %}{% endfor %}{% endfor %}]}"#;
    program.file("chat.json.j2", template);
    run(&program, &[]).await.assert_code(1);
    let body: Value = hook.received()[0].json();
    assert_eq!(body["text"], "1 of 2 images failed");
    assert!(body["errors"][0].as_str().unwrap().contains("</pre><b>no</b>"), "{body}");

    program.file("chat.json.j2", "{{ headlin }}");
    fixture.source.clear_requests();
    let output = run(&program, &[]).await.assert_code(2);
    assert!(output.stderr.contains("chat.json.j2: line 1: undefined value"), "{}", output.stderr);
    assert_eq!(fixture.source.total(), 0);
}

#[tokio::test]
async fn a_test_reaches_every_target_and_says_which_it_does_not_reach() {
    let telegram = TelegramServer::start(TOKEN, GROUP).await;
    let (hook, broken, ping) =
        tokio::join!(WebhookReceiver::start(), WebhookReceiver::start(), WebhookReceiver::start());
    let program = configured(&format!(
        "notify:\n  telegram: {{token: \"{TOKEN}\", group: \"{GROUP}\", api: \"{}\", on: failure}}\n  webhook:\n  \
         - {{url: \"{}/path-secret\", secret: 0123456789abcdef, on: failure}}\n  - {{url: \"{}/path-secret\"}}\n  \
         ping: \"{}/path-secret\"\n",
        telegram.url(),
        hook.url(),
        broken.url(),
        ping.url()
    ));
    let test = |more: &[&str]| {
        let program = program.again().args(["config", "test-notify", "imgsync.yaml"]).args(more);
        async move { program.run().await }
    };
    broken.refuse_once(503);
    let output = test(&[]).await.assert_code(1);
    let [TelegramPost::Message { text, .. }] = &telegram.posts()[..] else { panic!("{:?}", telegram.posts()) };
    assert!(text.starts_with("imgsync: test message from ") && text.contains("No batch has ended."), "{text}");
    let received = hook.received();
    assert_eq!((received.len(), &received[0].json()["event"]), (1, &json!("test")));
    assert!(received[0].header("x-imgsync-signature").is_some(), "signed as others are");
    assert_eq!(broken.received().len(), 1, "a test is not retried");
    assert_eq!(ping.received().len(), 0, "a ping would count as a successful batch");
    let sent: Vec<&str> = output.stdout.lines().filter(|line| line.ends_with(": sent")).collect();
    assert_eq!(
        sent,
        [format!("telegram {GROUP} at {}/: sent", telegram.url()), format!("webhook {}/***: sent", hook.url())]
    );
    assert!(output.stdout.contains(&format!("ping {}/***: not requested", ping.url())), "{}", output.stdout);
    for part in [format!("webhook {}/***: ", broken.url()), "HTTP 503".to_owned(), "hint: check `webhook`".to_owned()] {
        assert!(output.stderr.contains(&part), "{part} in {}", output.stderr);
    }
    let shown = format!("{}{}", output.stdout, output.stderr);
    assert!(!shown.contains("path-secret") && !shown.contains("secret_Token"), "{shown}");

    // One kind, by its key.
    test(&["--only", "ping"]).await.assert_code(0);
    assert_eq!((ping.received().len(), hook.received().len(), telegram.posts().len()), (1, 1, 1));
    test(&["--only", "webhook", "--only", "telegram"]).await.assert_code(0);
    assert_eq!((hook.received().len(), broken.received().len(), telegram.posts().len()), (2, 2, 2));
    let output = test(&["--only", "slack"]).await.assert_code(2);
    assert!(output.stderr.contains("hint: the configured kinds are telegram, webhook, ping"), "{}", output.stderr);
    let output = configured("rules: []\n").args(["config", "test-notify"]).run().await.assert_code(2);
    assert!(output.stderr.contains("no notification target is configured"), "{}", output.stderr);
}
