//! The dashboard, in a real browser.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use imgsync_tests::fault::{FaultAction, RequestMatcher, RequestType};
use imgsync_tests::{Browser, ServeProcess, skipped};
use serde_json::json;
use tokio::sync::Semaphore;

use crate::support::ServeFixture;

const WAIT_TIMEOUT: Duration = Duration::from_secs(60);

/// Starts a browser, or reports that there is none.
async fn browser(what: &str) -> Option<Browser> {
    let browser = Browser::start().await;
    if browser.is_none() {
        skipped(&format!("{what} (chromium is not installed)"));
    }
    browser
}

fn refused(text: &str) -> FaultAction {
    let body = json!({"errors": [{"code": "DENIED", "message": text}]}).to_string();
    let headers = vec![("content-type".to_owned(), "application/json".to_owned())];
    FaultAction::Status { code: 403, headers, body: body.into() }
}

#[tokio::test]
async fn the_dashboard_updates_a_batch_without_a_reload() {
    let Some(mut browser) = browser("the page in a browser").await else { return };
    let fixture = ServeFixture::new(&["a"], 6).await;
    let gate = Arc::new(Semaphore::new(0));
    fixture.target.on(RequestMatcher::kind(RequestType::ManifestPut)).always().act(FaultAction::Gate(gate.clone()));
    let served = fixture.serve(&[("a", "{every: 1h}"), ("b", "0 3 * * *")]).await;
    fixture.target.wait_until(|target| target.count(RequestType::ManifestPut) > 0, WAIT_TIMEOUT).await;
    browser.open(&served.dashboard_url()).await;
    browser.wait_for_text("live · single process").await;
    browser.wait_for("document.querySelector('#progress .chip').textContent === 'running'").await;
    browser.wait_for_text("every 1h").await;
    browser.wait_for_text("0 3 * * * (UTC)").await;
    browser.wait_for("document.querySelector('#workers').innerText.includes('6 of 20 slots')").await;
    browser.wait_for("document.querySelector('#workers').innerText.includes('/a:v0')").await;
    browser.wait_for("document.querySelector('#routes').innerText.includes(' to ')").await;
    browser.eval("window.loaded = 'once'").await;
    gate.add_permits(3);
    browser.wait_for("[...document.querySelectorAll('dd')].some((it) => it.previousSibling.textContent === 'copied' && it.textContent === '3')").await;
    gate.add_permits(100);
    browser.wait_for("document.querySelector('#progress .chip').textContent === 'done'").await;
    browser.wait_for("document.querySelector('#progress svg.plot rect.copied') !== null").await;
    assert_eq!(browser.eval("window.loaded").await, "once");
    assert_eq!(browser.eval("location.hash").await, "", "the token is in no history");
    assert_eq!(browser.page_errors(), &[] as &[String]);
    // Everything came from this server, with no request to another.
    let foreign = "performance.getEntriesByType('resource').filter((it) => !it.name.startsWith(location.origin)).map((it) => it.name)";
    assert_eq!(browser.eval(foreign).await, json!([]));
}

#[tokio::test]
async fn failures_are_requeued_by_a_button_and_a_batch_is_paused_and_cancelled() {
    let Some(mut browser) = browser("steering by the page").await else { return };
    let fixture = ServeFixture::new(&["a"], 4).await;
    let kinds = [RequestType::ManifestGet, RequestType::ManifestHead];
    let denied = fixture.source.on(RequestMatcher::kinds(&kinds)).always().act(refused("not for you"));
    let served = fixture.serve(&[("a", "{every: 1h}")]).await;
    browser.open(&served.dashboard_url()).await;
    browser.wait_for_text("done, with failures").await;
    browser.wait_for_text("Failures by kind").await;
    browser.click("#images button", "Show").await;
    browser.wait_for("document.querySelectorAll('#images tbody tr').length === 4").await;
    denied.remove();
    let gate = Arc::new(Semaphore::new(0));
    fixture.target.on(RequestMatcher::kind(RequestType::ManifestPut)).always().act(FaultAction::Gate(gate.clone()));
    browser.click("#progress .item button", "Denied").await;
    browser.wait_for_text("4 failed images requeued.").await;
    browser.click("#progress button", "Pause").await;
    browser.wait_for("document.querySelector('#progress .chip').textContent === 'paused'").await;
    browser.click("#progress button", "Resume").await;
    browser.wait_for("document.querySelector('#progress .chip').textContent === 'running'").await;
    // With the keyboard: the confirmation before a batch is cancelled.
    browser.wait_for("document.querySelector('#progress [data-key=cancel]') !== null").await;
    browser.eval("document.querySelector('#progress [data-key=cancel]').focus()").await;
    browser.press("Enter").await;
    browser.wait_for("document.querySelector('#ask').open").await;
    browser.press("Escape").await;
    browser.wait_for("!document.querySelector('#ask').open").await;
    gate.add_permits(100);
    browser.wait_for("document.querySelector('#progress .chip').textContent === 'done'").await;
    assert_eq!(fixture.target.tags("m/a").len(), 4);
    browser.click("#schedules button", "Start").await;
    browser.wait_for("document.querySelectorAll('#batches li').length === 2").await;
    assert_eq!(browser.page_errors(), &[] as &[String]);
}

#[tokio::test]
async fn without_the_token_nothing_is_changed_and_the_dashboard_asks_for_it() {
    let Some(mut browser) = browser("the page without a token").await else { return };
    let fixture = ServeFixture::new(&["a"], 1).await;
    let served = fixture.serve(&[("a", "")]).await;
    browser.open(&format!("{}/#token=wrong-wrong-wrong-wrong", served.url)).await;
    browser.click("#schedules button", "Start").await;
    browser.wait_for("document.querySelector('#ask-token').open").await;
    browser.wait_for_text("the token is not valid").await;
    assert_eq!(served.get("batches").await.1, json!({"batches": []}));
    browser.eval("document.querySelector('#token').focus()").await;
    browser.type_text(&served.token).await;
    // Both in one script: the browser tells the page only later that the dialog is closed.
    browser
        .eval(
            "[...document.querySelectorAll('#ask-token button')].find((it) => it.innerText === 'Sign in').click(), \
             [...document.querySelectorAll('#schedules button')].find((it) => it.innerText === 'Start').click()",
        )
        .await;
    browser.wait_for("document.querySelectorAll('#batches li').length === 1").await;
    assert_eq!(browser.eval("document.querySelector('#ask-token').open").await, json!(false));
    served.wait_for_ended_batches(1).await;
}

#[tokio::test]
async fn off_loopback_the_dashboard_shows_nothing_before_it_is_given_the_token() {
    let Some(mut browser) = browser("the page off loopback").await else { return };
    let fixture = ServeFixture::new(&["a"], 1).await;
    let token = "correct-horse-battery";
    fixture.write(&format!("serve: {{token: {token}}}\n{}", fixture.config(&[("a", "{every: 1h}")])));
    let served = ServeProcess::start(&fixture.program, &["--listen", "0.0.0.0:0"]).await;
    browser.open(&served.url).await;
    browser.wait_for("document.querySelector('#ask-token').open").await;
    assert!(!browser.text().await.contains(&fixture.source.host()));
    browser.eval("document.querySelector('#token').focus()").await;
    browser.type_text(token).await;
    browser.press("Enter").await;
    // The first button of the dialog is "no": what was typed is then not used.
    browser.wait_for("!document.querySelector('#ask-token').open").await;
    browser.wait_for("document.body.innerText.includes('live') || document.querySelector('#ask-token').open").await;
    if browser.eval("document.querySelector('#ask-token').open").await == json!(true) {
        panic!("Enter is to use what was typed: {}", browser.text().await);
    }
    browser.wait_for_text(&fixture.source.host()).await;
}

#[tokio::test]
async fn what_registries_and_files_say_is_shown_as_text_and_never_run() {
    let Some(mut browser) = browser("scripts in names on the page").await else { return };
    let fixture = ServeFixture::new(&["a"], 1).await;
    let script = "<script>window.pwned=1</script><img src=x onerror=window.pwned=1>";
    fixture.source.push("a", script, &imgsync_tests::TestImage::single("odd").build());
    fixture
        .source
        .on(RequestMatcher::kinds(&[RequestType::ManifestGet, RequestType::ManifestHead]))
        .always()
        .act(refused(script));
    let folder = format!("- {{from: 'oci:{script}', schedule: {{every: 1h}}}}\n");
    fixture.write(&format!("{}{folder}", fixture.config(&[("a", "{every: 1h}")])));
    let served = ServeProcess::start(&fixture.program, &[]).await;
    browser.open(&served.dashboard_url()).await;
    let title = format!("oci:{script}");
    browser.wait_for(&format!("document.querySelector('#schedules').textContent.includes({})", json!(title))).await;
    browser.wait_for("document.querySelectorAll('#batches li').length === 2").await;
    for which in ["oci:", "/a"] {
        browser.click("#batches button", which).await;
        browser.wait_for(&format!("document.querySelector('#progress').textContent.includes({})", json!(script))).await;
    }
    browser.click("#images button", "Show").await;
    browser.wait_for(&format!("document.querySelector('#images').textContent.includes({})", json!(script))).await;
    assert_eq!(browser.eval("window.pwned ?? null").await, json!(null));
    assert_eq!(browser.eval("document.querySelectorAll('body script, img').length").await, 0);
    assert_eq!(browser.page_errors(), &[] as &[String]);
}

/// Screenshots for maintainers of the dashboard: `IMGSYNC_SCREENSHOTS` names the folder. The layout is always tested.
#[tokio::test]
async fn the_dashboard_fits_a_phone_and_a_wide_screen_in_dark_and_in_light() {
    let Some(mut browser) = browser("the page in several sizes").await else { return };
    let folder = std::env::var_os("IMGSYNC_SCREENSHOTS").map(PathBuf::from);
    let fixture = ServeFixture::new(&["team/api", "team/web", "team/worker"], 30).await;
    let bad = |request: &imgsync_tests::fault::RecordedRequest| {
        request.reference.as_deref().is_some_and(|tag| tag.ends_with('7'))
    };
    fixture
        .source
        .on(RequestMatcher::kinds(&[RequestType::ManifestGet, RequestType::ManifestHead]).when(bad))
        .always()
        .act(refused("requested access to the resource is denied"));
    let gate = Arc::new(Semaphore::new(40));
    fixture.target.on(RequestMatcher::kind(RequestType::ManifestPut)).always().act(FaultAction::Gate(gate.clone()));
    let from = fixture.source.host();
    let to = fixture.target.host();
    fixture.write(&format!(
        "defaults: {{to: {to}/m, naming: keep}}\nregistries: {{'{from}': {{requests_per_second: 500, concurrency: 40}}}}\nrules:\n\
         - {{from: {from}/team/api, schedule: {{every: 6h, jitter: 10m}}}}\n\
         - {{from: {from}/team/web, schedule: {{cron: 0 3 * * *, zone: Asia/Shanghai}}}}\n\
         - {{from: {from}/team/worker, schedule: {{every: 1h}}}}\n\
         - {{from: 'oci:missing', schedule: {{every: 1h}}}}\n"
    ));
    let served = ServeProcess::start(&fixture.program, &[]).await;
    browser.open(&served.dashboard_url()).await;
    browser.wait_for("document.querySelectorAll('#batches li').length >= 3").await;
    browser.wait_for_text("Listing failed").await;
    browser.click("#batches button", "worker").await;
    browser.wait_for_text("Failures by kind").await;
    browser.wait_for("document.querySelector('#progress svg.plot rect') !== null").await;
    browser.wait_for("document.querySelector('#routes').innerText.includes(' to ')").await;
    browser.wait_for("document.querySelector('#workers').innerText.includes('14 of 20 slots')").await;
    for (width, height) in [(1440, 1000), (900, 1100), (390, 844), (320, 640)] {
        browser.resize(width, height).await;
        browser.wait_for(&format!("innerWidth === {width}")).await;
        let over = browser.eval("document.documentElement.scrollWidth - innerWidth").await;
        assert!(over.as_i64().is_some_and(|over| over <= 0), "{over} pixels hang out at {width}");
        for scheme in ["light", "dark"] {
            browser.set_color_scheme(scheme).await;
            let picture = folder.as_ref().map(|folder| folder.join(format!("{width}-{scheme}.png")));
            if let Some(picture) = picture {
                browser.save_screenshot(&picture).await;
            }
        }
    }
    gate.add_permits(1_000);
    assert_eq!(browser.page_errors(), &[] as &[String]);
}
