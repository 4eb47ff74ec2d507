//! Slow senders, sources that fail, killed servers, and storms.

use futures_util::StreamExt as _;
use imgsync_tests::fault::{FaultAction, RequestMatcher, RequestType};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

use super::*;

#[tokio::test]
async fn senders_that_prove_nothing_do_not_keep_others_waiting() {
    let fixture = HookFixture::new("").await;
    let app = image("app");
    fixture.source.push("apps/a", "1", &app);
    let signed =
        format!("  signed: {{registry: {}, kind: generic, auth: hmac, secret: {SECRET}}}\n", fixture.source.host());
    let config =
        format!("{}{signed}", std::fs::read_to_string(fixture.program.work_dir().join("imgsync.yaml")).unwrap());
    fixture.program.file("imgsync.yaml", config);
    let served = fixture.serve().await;
    let address = served.url.strip_prefix("http://").unwrap().trim_end_matches('/').to_owned();
    // More than the memory for all bodies.
    let mut slow = Vec::new();
    for _ in 0..20 {
        let mut connection = TcpStream::connect(&address).await.unwrap();
        let head = format!(
            "POST /hooks/signed HTTP/1.1\r\nhost: {}\r\nx-hub-signature-256: sha256=0\r\ncontent-length: 1048576\r\n\r\n",
            address
        );
        connection.write_all(head.as_bytes()).await.unwrap();
        slow.push(connection);
    }
    fixture.notify(&served, "apps/a:1").await;
    fixture.wait_for_copy("apps/a", "1", &app).await;
    for mut connection in slow {
        let mut answer = [0; 12];
        connection.read_exact(&mut answer).await.unwrap();
        assert_eq!(&answer, b"HTTP/1.1 503");
    }
    assert_eq!(outcome(&served, "timed_out").await, 20.0);
    served.stop().await.assert_code(0);
}

#[tokio::test]
async fn one_push_that_cannot_be_read_does_not_lose_the_others() {
    let fixture = HookFixture::new("").await;
    let app = image("app");
    for tag in ["1", "2", "3"] {
        fixture.source.push("apps/a", tag, &app);
    }
    let broken = RequestMatcher::kinds(&[RequestType::ManifestHead, RequestType::ManifestGet]).reference("2");
    let held = fixture.source.on(broken).always().act(FaultAction::status(403));
    let served = fixture.serve().await;
    let images = ["1", "2", "3"].map(|tag| format!("{}/apps/a:{tag}", fixture.source.host()));
    let request = served.notification("pushes").bearer_auth(SECRET).json(&json!({"images": images}));
    assert_eq!(send_json(request).await.0, 202);
    for tag in ["1", "3"] {
        fixture.wait_for_copy("apps/a", tag, &app).await;
    }
    served.wait_for_ended_batches(1).await;
    assert_eq!(fixture.target.tag_digest("m/apps/a", "2"), None);
    // It is tried again, also by the next process. A minute passes.
    served.stop().await.assert_code(0);
    held.remove();
    let store = fixture.store().await;
    let pending = store.pending_pushes().await.unwrap();
    assert!(pending.iter().all(|push| push.not_before.is_some()), "{pending:#?}");
    assert!(!pending.is_empty());
    store.postpone_pushes(&pending, jiff::Timestamp::now()).await.unwrap();
    drop(store);
    let served = fixture.serve().await;
    fixture.wait_for_copy("apps/a", "2", &app).await;
    wait_until("nothing is pending", async || metric(&served, "imgsync_hook_pending_pushes").await == 0.0).await;
    served.stop().await.assert_code(0);
}

#[tokio::test]
async fn a_server_that_is_killed_loses_no_notification_that_it_confirmed() {
    let fixture = HookFixture::new("").await;
    let tags: Vec<String> = (0..40).map(|number| format!("v{number}")).collect();
    let app = image("app");
    for tag in &tags {
        fixture.source.push("apps/a", tag, &app);
    }
    let gate = Arc::new(tokio::sync::Semaphore::new(0));
    let reads = RequestMatcher::kind(RequestType::ManifestHead);
    let held = fixture.source.on(reads).always().act(FaultAction::Gate(gate.clone()));
    // Killed with one batch that is being listed, and pushes that wait.
    let mut served = fixture.serve().await;
    fixture.notify(&served, "apps/a:v0").await;
    served.wait_for("batches", |value| value["batches"].as_array().unwrap().len() == 1).await;
    for tag in &tags[1..] {
        fixture.notify(&served, &format!("apps/a:{tag}")).await;
    }
    served.running.signal(Signal::KILL);
    served.running.wait().await;
    held.remove();
    gate.add_permits(10_000);
    let served = fixture.serve().await;
    wait_until("all tags", async || fixture.target.tags_in_all() == tags.len()).await;
    served.wait_for_ended_batches(2).await;
    fixture.target.assert_tags_complete();
    served.stop().await.assert_code(0);
}

#[tokio::test]
async fn ten_thousand_notifications_lose_none_and_run_the_whole_rule() {
    const NOTIFICATIONS: usize = 10_000;
    const TAGS: usize = 2_500;
    let fixture = HookFixture::new("").await;
    let app = image("app");
    for number in 0..TAGS {
        fixture.source.push("apps/a", &format!("v{number}"), &app);
    }
    // No batch ends before the last notification.
    let gate = Arc::new(tokio::sync::Semaphore::new(0));
    let reads = RequestMatcher::kind(RequestType::ManifestHead);
    let held = fixture.source.on(reads).always().act(FaultAction::Gate(gate.clone()));
    let served = fixture.serve().await;
    let sent = futures_util::stream::iter(0..NOTIFICATIONS).map(async |number| {
        let image = format!("{}/apps/a:v{}", fixture.source.host(), number % TAGS);
        let payload = json!({"id": number.to_string(), "image": image});
        loop {
            match send_json(served.notification("pushes").bearer_auth(SECRET).json(&payload)).await {
                // Senders send it again.
                (503, _) => tokio::time::sleep(Duration::from_millis(100)).await,
                (status, answer) => break assert_eq!(status, 202, "{answer:#}"),
            }
        }
    });
    sent.buffer_unordered(32).for_each(|()| std::future::ready(())).await;
    let mut confirmed = 0.0;
    for name in ["accepted", "coalesced", "repeated"] {
        confirmed += outcome(&served, name).await;
    }
    assert_eq!(confirmed, NOTIFICATIONS as f64);
    held.remove();
    gate.add_permits(10_000);
    let (mut copied, mut last_change) = (0, Instant::now());
    while copied < TAGS {
        let now = fixture.target.tags_in_all();
        if now > copied {
            (copied, last_change) = (now, Instant::now());
        }
        assert!(last_change.elapsed() < WAIT_TIMEOUT, "{copied} of {TAGS}");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    assert!(metric(&served, "imgsync_hook_whole_rules_total").await >= 1.0);
    served.stop().await.assert_code(0);
}
