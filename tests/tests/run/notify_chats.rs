//! Chat, mail and ping notifications: content, signatures, and errors of the receivers.

use std::time::Duration;

use imgsync_tests::fault::{FaultAction, RequestMatcher};
use imgsync_tests::servers::{ChatServer, MailServer, WebhookReceiver};

use crate::notify::{NotifyFixture, run};

const CHATS: [&str; 4] = ["slack", "wecom", "feishu", "dingtalk"];

/// Builds `notify:` for all chats, with their secrets.
fn all_chats(server: &ChatServer, on: &str) -> String {
    let mut notify = "notify:\n".to_owned();
    for chat in CHATS {
        let secret = match chat {
            "feishu" | "dingtalk" => format!(", secret: {}", server.secret()),
            _ => String::new(),
        };
        notify.push_str(&format!("  {chat}: {{url: \"{}\"{secret}, on: {on}}}\n", server.url(chat)));
    }
    notify
}

#[tokio::test]
async fn each_chat_is_notified_once_of_a_batch_in_its_own_format_and_no_secret_is_shown() {
    let fixture = NotifyFixture::new(2, 2).await;
    let chats = ChatServer::start().await;
    let program = fixture.program(&all_chats(&chats, "always"));
    let output = run(&program, &["--debug"]).await.assert_code(1);
    assert_eq!(chats.requests(), 4, "one message for each, not one for each image: {}", output.stderr);
    for chat in CHATS {
        let [text] = &chats.messages_to(chat)[..] else { panic!("{chat}: {:?}\n{}", chats.messages(), output.stderr) };
        for part in ["imgsync: 2 of 4 images failed", "Images: 4", "Failed: 2", "bad:v0001", "<b>no</b>"] {
            assert!(text.contains(part), "{chat}: {part} in {text}");
        }
    }
    assert!(!output.stderr.contains("notification failed"), "{}", output.stderr);
    let shown = program.again().args(["config", "show"]).run().await.assert_code(0);
    for text in [&output.stderr, &output.stdout, &shown.stdout] {
        assert!(!text.contains(chats.token()) && !text.contains(chats.secret()), "{text}");
    }
}

#[tokio::test]
async fn a_long_report_is_cut_to_what_each_chat_takes_and_says_how_much_more_there_is() {
    let fixture = NotifyFixture::new(0, 150).await;
    let chats = ChatServer::start().await;
    run(&fixture.program(&all_chats(&chats, "always")), &[]).await.assert_code(1);
    for chat in CHATS {
        let [text] = &chats.messages_to(chat)[..] else { panic!("{chat}: {:?}", chats.messages()) };
        assert!(text.contains("150 of 150 images failed") && text.contains("more lines"), "{chat}: {text}");
    }
}

#[tokio::test]
async fn notifications_follow_their_filter_and_a_ping_follows_successful_batches_only() {
    let chats = ChatServer::start().await;
    let notify = |on: &str| format!("{}  ping: \"{}\"\n", all_chats(&chats, on), chats.url("ping"));
    let good = NotifyFixture::new(2, 0).await;
    let program = good.program(&notify("failure"));
    run(&program, &[]).await.assert_code(0);
    assert_eq!((chats.messages_to("ping").len(), chats.messages().len()), (1, 1), "{:?}", chats.messages());
    run(&program, &["--dry-run"]).await.assert_code(0);
    assert_eq!(chats.messages().len(), 1, "a dry run tells nobody");

    let bad = NotifyFixture::new(1, 1).await;
    run(&bad.program(&notify("failure")), &[]).await.assert_code(1);
    assert_eq!(chats.messages_to("ping").len(), 1, "no ping for a batch in which something failed");
    assert_eq!(chats.messages().len(), 5, "{:?}", chats.messages());
}

#[tokio::test]
async fn a_busy_chat_is_notified_again_and_one_that_refuses_is_a_warning_with_a_hint() {
    let fixture = NotifyFixture::new(1, 0).await;
    let chats = ChatServer::start().await;
    let one = |chat: &str, more: &str| format!("notify:\n  {chat}: {{url: \"{}\"{more}}}\n", chats.url(chat));
    let signed = format!(", secret: {}", chats.secret());
    for (chat, more, busy) in [
        ("slack", "", (429, "rate_limited")),
        ("wecom", "", (200, r#"{"errcode": 45009, "errmsg": "api freq out of limit"}"#)),
        ("feishu", signed.as_str(), (200, r#"{"code": 11232, "msg": "frequency limited"}"#)),
        (
            "dingtalk",
            signed.as_str(),
            (200, r#"{"errcode": 130101, "errmsg": "send too fast, exceed 20 times per minute"}"#),
        ),
    ] {
        chats.refuse_once(busy.0, busy.1);
        let before = chats.requests();
        let output = run(&fixture.program(&one(chat, more)), &[]).await.assert_code(0);
        assert_eq!(chats.requests() - before, 2, "{chat}: {}", output.stderr);
        assert_eq!(chats.messages_to(chat).len(), 1, "{chat}");
    }
    for (chat, wanted) in [
        ("dingtalk", "DingTalk notification failed: "),
        ("dingtalk", "DingTalk 310000: sign not match"),
        ("dingtalk", "check `secret`"),
        ("feishu", "Feishu 19021: sign match fail"),
    ] {
        let output = run(&fixture.program(&one(chat, ", secret: another")), &[]).await.assert_code(0);
        assert!(output.stderr.contains(wanted) && !output.stderr.contains(chats.token()), "{}", output.stderr);
    }
    let moved = one("slack", "").replace(chats.token(), "revoked");
    let output = run(&fixture.program(&moved), &[]).await.assert_code(0);
    assert!(output.stderr.contains("HTTP 404: no_team") && output.stderr.contains("was revoked"), "{}", output.stderr);
    assert!(!output.stderr.contains("revoked/") && !output.stderr.contains("/revoked"), "{}", output.stderr);
}

#[tokio::test]
async fn a_template_makes_the_message_and_a_broken_one_is_found_at_the_start() {
    let fixture = NotifyFixture::new(1, 1).await;
    let chats = ChatServer::start().await;
    let notify = format!("notify:\n  slack: [{{url: \"{}\", template: slack.txt.j2}}]\n", chats.url("slack"));
    let program = fixture.program(&notify);
    program.file(
        "slack.txt.j2",
        "*{{ headline }}* {% for group in failures.groups %}{{ group.kind }}: {{ group.count }}{% endfor %}",
    );
    run(&program, &[]).await.assert_code(1);
    assert_eq!(chats.messages_to("slack"), ["*1 of 2 images failed* denied: 1"]);
    program.file("slack.txt.j2", "{{ headlin }}");
    let output = run(&program, &[]).await.assert_code(2);
    assert!(output.stderr.contains("slack.txt.j2: line 1: undefined value"), "{}", output.stderr);
}

/// Builds `notify:` for mail.
fn mail(server: &MailServer, scheme: &str, password: &str, on: &str) -> String {
    format!(
        "notify:\n  email:\n    server: {scheme}://{}\n    username: robot\n    password: {password}\n    ca: mail.pem\n    from: imgsync <imgsync@example.com>\n    to: [ops@example.com, second@example.com]\n    on: {on}\n",
        server.address()
    )
}

#[tokio::test]
async fn a_mail_brings_the_report_as_text_and_as_a_page_over_tls_alone() {
    let fixture = NotifyFixture::new(2, 1).await;
    for (scheme, wrapped) in [("smtps", true), ("smtp", false)] {
        let server = MailServer::start("robot", "mail-secret", wrapped).await;
        let program = fixture.program(&mail(&server, scheme, "mail-secret", "always"));
        program.file("mail.pem", server.ca());
        let output = run(&program, &["--debug"]).await.assert_code(1);
        let [mail] = &server.mails()[..] else { panic!("{:?}\n{}", server.mails(), output.stderr) };
        assert_eq!(
            (mail.from.as_str(), &mail.to[..]),
            ("imgsync@example.com", &["ops@example.com".into(), "second@example.com".into()][..])
        );
        assert_eq!(mail.header("subject").as_deref(), Some("imgsync: 1 of 3 images failed"));
        assert_eq!(mail.header("auto-submitted").as_deref(), Some("auto-generated"));
        let parts = mail.parts();
        let [(text_kind, text), (page_kind, page)] = &parts[..] else { panic!("{parts:?}") };
        assert!(text_kind.starts_with("text/plain") && page_kind.starts_with("text/html"), "{text_kind}, {page_kind}");
        assert!(text.contains("Failed: 1") && text.contains("</pre><b>no</b>"), "{text}");
        assert!(page.contains("<!doctype html>") || page.contains("<!DOCTYPE html>"), "{page}");
        assert!(
            !output.stderr.contains("mail-secret") && !output.stderr.contains("email notification failed"),
            "{}",
            output.stderr
        );
    }
}

#[tokio::test]
async fn a_mail_is_tried_again_and_what_keeps_it_from_going_is_said() {
    let fixture = NotifyFixture::new(1, 0).await;
    let server = MailServer::start("robot", "mail-secret", false).await;
    server.refuse_once("451 4.3.0 come back later");
    let program = fixture.program(&mail(&server, "smtp", "mail-secret", "always"));
    program.file("mail.pem", server.ca());
    run(&program, &[]).await.assert_code(0);
    assert_eq!(server.mails().len(), 1, "tried again");

    let program = fixture.program(&mail(&server, "smtp", "wrong-secret", "always"));
    program.file("mail.pem", server.ca());
    let output = run(&program, &[]).await.assert_code(0);
    let said = &output.stderr;
    assert!(
        said.contains("email notification failed: sending a mail by 127.0.0.1:")
            && said.contains("the server rejected `username` and `password`"),
        "{said}"
    );
    assert!(!said.contains("wrong-secret"), "{said}");

    let program = fixture.program(&mail(&server, "smtp", "mail-secret", "always").replace("    ca: mail.pem\n", ""));
    let output = run(&program, &[]).await.assert_code(0);
    assert!(
        output.stderr.contains("email notification failed") && output.stderr.contains("set `ca`"),
        "{}",
        output.stderr
    );
    assert_eq!(server.mails().len(), 1, "a certificate that is not trusted is given nothing");
}

#[tokio::test]
async fn a_registry_that_holds_up_a_batch_is_notified_once() {
    let fixture = NotifyFixture::new(3, 0).await;
    let (chats, hook) = tokio::join!(ChatServer::start(), WebhookReceiver::start());
    let slow = FaultAction::too_many_requests("3600");
    fixture
        .source
        .on(RequestMatcher::any()
            .repository("good")
            .when(|request| request.kind != imgsync_tests::fault::RequestType::Tags))
        .always()
        .act(slow);
    let notify = format!(
        "{}  webhook: {{url: \"{}\"}}\n  ping: \"{}\"\n  throttled: 10m\n",
        all_chats(&chats, "failure"),
        hook.url(),
        chats.url("ping")
    );
    let program = fixture.program(&notify);
    let file = program.work_dir().join("imgsync.yaml");
    let mut running = program.again().args(["run", "--retry-delay", "10ms", "-c"]).arg(file).spawn();
    let limit = Duration::from_secs(60);
    let started = std::time::Instant::now();
    while (chats.messages().len() < 4 || hook.received().is_empty()) && started.elapsed() < limit {
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    for chat in CHATS {
        let [text] = &chats.messages_to(chat)[..] else {
            panic!("{chat}: {:?}\n{}", chats.messages(), running.stderr())
        };
        assert!(text.contains(&fixture.source.host()) && text.contains("a batch is waiting for"), "{text}");
        assert!(text.contains("held until"), "{text}");
    }
    let notification = hook.received()[0].json();
    assert_eq!(
        (&notification["event"], &notification["registry"]),
        (&"registry.throttled".into(), &fixture.source.host().into())
    );
    assert_eq!((&notification["open"], chats.messages_to("ping").len()), (&3.into(), 0));
    running.signal(imgsync_tests::program::Signal::INT);
    running.signal(imgsync_tests::program::Signal::INT);
    let ended = running.wait().await;
    assert_eq!(ended.code, Some(4), "{}", ended.stderr);
    assert_eq!(chats.messages().len(), 4, "told once, and an interrupted run is no end: {:?}", chats.messages());
}
