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

/// Waits until an element contains a text.
async fn wait_in(browser: &mut Browser, selector: &str, text: &str) {
    let (selector, text) = (json!(selector), json!(text));
    browser.wait_for(&format!("document.querySelector({selector})?.textContent.includes({text})")).await;
}

/// Waits until the state of the batch that is shown is this word.
async fn wait_for_state(browser: &mut Browser, words: &str) {
    browser.wait_for(&format!("document.querySelector('#progress .mark')?.textContent === {}", json!(words))).await;
}

async fn open_page(browser: &mut Browser, path: &str) {
    browser.eval(&format!("location.hash = {}", json!(path))).await;
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
    assert_eq!(browser.eval("location.hash").await, "#/", "the token is in no history");
    wait_in(&mut browser, "#rules tr.running", "0 of 6").await;
    browser.eval("window.loaded = 'once'").await;
    open_page(&mut browser, "/workers").await;
    wait_in(&mut browser, "#workers", "6 of 20 slots").await;
    wait_in(&mut browser, "#routes", " → ").await;
    browser.click("#workers td.name a", "-1").await;
    wait_in(&mut browser, "#worker", "/a:v0").await;
    assert!(browser.eval("location.hash").await.as_str().unwrap().starts_with("#/workers/"), "a worker has a URL");
    open_page(&mut browser, "/").await;
    browser.click("#rules a", "Progress").await;
    wait_for_state(&mut browser, "running").await;
    gate.add_permits(3);
    browser.wait_for("[...document.querySelectorAll('dd')].some((it) => it.previousSibling.textContent === 'copied' && it.textContent === '3')").await;
    gate.add_permits(100);
    wait_for_state(&mut browser, "done").await;
    browser.wait_for("document.querySelector('#timeline svg.plot rect.copied') !== null").await;
    open_page(&mut browser, "/").await;
    wait_in(&mut browser, "#rules tr.in_sync", "6 of 6").await;
    assert_eq!(browser.eval("window.loaded").await, "once");
    assert_eq!(browser.page_errors(), &[] as &[String]);
    // Everything came from this server, with no request to another.
    let foreign = "performance.getEntriesByType('resource').filter((it) => !it.name.startsWith(location.origin)).map((it) => it.name)";
    assert_eq!(browser.eval(foreign).await, json!([]));
}

#[tokio::test]
async fn the_overview_shows_problems_first_and_a_row_for_each_rule() {
    let Some(mut browser) = browser("the overview").await else { return };
    let fixture = ServeFixture::new(&["good", "secret"], 3).await;
    let kinds = [RequestType::ManifestGet, RequestType::ManifestHead];
    fixture.source.on(RequestMatcher::kinds(&kinds).repository("secret")).always().act(refused("not for you"));
    let rules = [("good", "{every: 1h}"), ("secret", "{every: 1h}"), ("missing", "{every: 1h}"), ("good/manual", "")];
    let served = fixture.serve(&rules).await;
    served.wait_for_ended_batches(3).await;
    browser.open(&served.dashboard_url()).await;
    browser.wait_for("document.querySelectorAll('#rules tbody tr').length === 4").await;
    browser.wait_for("document.querySelectorAll('#problems .problem').length === 2").await;
    // What failed, which registry said so, and what to do: without a click.
    wait_in(&mut browser, "#problems", "1 rule is failing: denied").await;
    wait_in(&mut browser, "#problems", "check the credentials").await;
    wait_in(&mut browser, "#problems", "1 rule is failing: not found").await;
    wait_in(&mut browser, "#rules tr.in_sync", "3 of 3").await;
    wait_in(&mut browser, "#rules tr.never_run", "manual").await;
    wait_in(&mut browser, "#totals", "3 of 6 tags in sync").await;

    // Filters are part of the URL.
    browser.click("#totals button", "failing").await;
    browser.wait_for("document.querySelectorAll('#rules tbody tr').length === 2").await;
    assert_eq!(browser.eval("location.hash").await, "#/?state=failing");
    browser.eval("document.querySelector('#rule-filters input').focus()").await;
    browser.type_text("secret").await;
    browser.wait_for("document.querySelectorAll('#rules tbody tr').length === 1").await;
    browser.wait_for("location.hash === '#/?state=failing&text=secret'").await;
    let filtered = browser.eval("location.href").await.as_str().unwrap().to_owned();
    browser.open(&filtered).await;
    browser.wait_for("document.querySelectorAll('#rules tbody tr').length === 1").await;
    assert_eq!(browser.eval("document.querySelector('#rule-filters input').value").await, "secret");

    // From the failure to its batch, where requeuing is no primary button for a permanent error.
    browser.click("#rules td.failure a", "denied").await;
    wait_in(&mut browser, "#failures", "3 images: denied").await;
    wait_in(&mut browser, "#failures", &format!("answered by {}", fixture.source.host())).await;
    wait_in(&mut browser, "#failures button", "Requeue after the fix").await;
    assert_eq!(browser.eval("document.querySelectorAll('#failures button.main').length").await, 0);
    assert_eq!(browser.page_errors(), &[] as &[String]);
}

#[tokio::test]
async fn the_page_of_a_rule_shows_its_history_as_a_plot_and_a_table() {
    let Some(mut browser) = browser("the page of a rule").await else { return };
    let fixture = ServeFixture::new(&["a"], 3).await;
    let served = fixture.serve(&[("a", "")]).await;
    browser.open(&served.dashboard_url()).await;
    wait_in(&mut browser, "#rules", "No rule has run yet").await;
    browser.click("#rules td.name a", "/a").await;
    wait_in(&mut browser, "#rule", "It has not run yet, and has no schedule").await;
    for runs in 1..=3 {
        browser.click("#rule button", "Start").await;
        browser.wait_for(&format!("document.querySelectorAll('#history tbody tr').length === {runs}")).await;
        served.wait_for_ended_batches(runs).await;
        wait_in(&mut browser, "#rule .mark", "in sync").await;
    }
    browser.wait_for("document.querySelectorAll('#history svg a').length === 3").await;
    browser.wait_for("document.querySelector('#history svg rect.copied') !== null").await;
    browser.wait_for("document.querySelector('#history svg rect.bytes') !== null").await;
    wait_in(&mut browser, "#rule", "3 of 3").await;
    // A bar of the plot leads to its batch, also with the keyboard.
    let page = browser.eval("location.hash").await.as_str().unwrap().to_owned();
    assert!(page.starts_with("#/rules/"), "{page}");
    browser.eval("document.querySelector('#history svg a').focus()").await;
    browser.press("Enter").await;
    browser.wait_for("location.hash.startsWith('#/batches/')").await;
    wait_for_state(&mut browser, "done").await;
    browser.eval("history.back()").await;
    browser.wait_for("document.querySelectorAll('#history tbody tr').length === 3").await;
    open_page(&mut browser, "/rules/nothing").await;
    browser.wait_for_text("There is no such rule").await;
    assert_eq!(browser.page_errors(), &[] as &[String]);
}

#[tokio::test]
async fn a_search_shows_the_results_of_an_image_and_what_was_searched() {
    let Some(mut browser) = browser("the search").await else { return };
    let fixture = ServeFixture::new(&["team/api", "team/web"], 3).await;
    let kinds = [RequestType::ManifestGet, RequestType::ManifestHead];
    let web = RequestMatcher::kinds(&kinds).repository("team/web").reference("v2");
    fixture.source.on(web).always().act(refused("not for you"));
    let served = fixture.serve(&[("team/api", "{every: 1h}"), ("team/web", "{every: 1h}")]).await;
    served.wait_for_ended_batches(2).await;
    browser.open(&served.dashboard_url()).await;
    browser.wait_for_text("live").await;
    browser.press("/").await;
    browser.wait_for("document.activeElement.id === 'search-text'").await;
    browser.type_text(":v2").await;
    browser.press("Enter").await;
    browser.wait_for("document.querySelectorAll('#results .result').length === 2").await;
    wait_in(&mut browser, "#results", "Searched the newest 3 batches of each rule: 6 images in 2 batches.").await;
    wait_in(&mut browser, "#results", "not for you").await;
    wait_in(&mut browser, "#results", "check the credentials").await;
    wait_in(&mut browser, "#results", "The batch copied it.").await;
    assert_eq!(browser.eval("location.hash").await, "#/search?text=%3Av2");
    // A tag that no batch contains: who reads its repository, and what to ask next.
    let missing = format!("{}/team/api:other", fixture.source.host());
    open_page(&mut browser, &format!("/search?text={missing}")).await;
    wait_in(&mut browser, "#results", "1 rule reads this repository").await;
    wait_in(&mut browser, "#results", &format!("imgsync explain {missing}")).await;
    assert_eq!(browser.page_errors(), &[] as &[String]);
}

#[tokio::test]
async fn without_rules_the_overview_explains_the_first_step_and_a_rule_appears_by_itself() {
    let Some(mut browser) = browser("an empty dashboard").await else { return };
    let fixture = ServeFixture::new(&["a"], 1).await;
    fixture.write("rules: []\n");
    let served = ServeProcess::start(&fixture.program, &[]).await;
    browser.open(&served.dashboard_url()).await;
    browser.wait_for_text("No rules yet").await;
    browser.wait_for_text("imgsync config check").await;
    open_page(&mut browser, "/batches").await;
    browser.wait_for_text("No batches yet").await;
    open_page(&mut browser, "/").await;
    browser.wait_for_text("No rules yet").await;
    fixture.write(&fixture.config(&[("a", "{every: 1h}")]));
    wait_in(&mut browser, "#rules tr.in_sync", "1 of 1").await;
    assert_eq!(browser.page_errors(), &[] as &[String]);
}

#[tokio::test]
async fn five_hundred_rules_are_shown_in_pages() {
    let Some(mut browser) = browser("many rules").await else { return };
    let fixture = ServeFixture::new(&["a"], 1).await;
    let names: Vec<String> = (0..500).map(|number| format!("team-{number:03}/app")).collect();
    let rules: Vec<(&str, &str)> = names.iter().map(|name| (name.as_str(), "")).collect();
    let served = fixture.serve(&rules).await;
    browser.open(&served.dashboard_url()).await;
    browser.wait_for("document.querySelectorAll('#rules tbody tr').length === 100").await;
    wait_in(&mut browser, "#rules .pager", "1–100 of 500 rules").await;
    browser.click("#rules .pager button", "Next").await;
    wait_in(&mut browser, "#rules .pager", "101–200 of 500 rules").await;
    wait_in(&mut browser, "#rules tbody tr", "team-100").await;
    assert_eq!(browser.eval("location.hash").await, "#/?from=100");
    browser.eval("document.querySelector('#rule-filters input').focus()").await;
    browser.type_text("team-44").await;
    browser.wait_for("document.querySelectorAll('#rules tbody tr').length === 10").await;
    assert_eq!(browser.page_errors(), &[] as &[String]);
}

#[tokio::test]
async fn failures_are_requeued_by_a_button_and_a_batch_is_paused_and_cancelled() {
    let Some(mut browser) = browser("steering by the page").await else { return };
    let fixture = ServeFixture::new(&["a"], 4).await;
    let kinds = [RequestType::ManifestGet, RequestType::ManifestHead];
    let denied = fixture.source.on(RequestMatcher::kinds(&kinds)).always().act(refused("not for you"));
    let served = fixture.serve(&[("a", "{every: 1h}")]).await;
    let id = served.wait_for_ended_batches(1).await[0]["batch"].as_str().unwrap().to_owned();
    browser.open(&served.dashboard_url()).await;
    open_page(&mut browser, &format!("/batches/{id}")).await;
    wait_for_state(&mut browser, "failed").await;
    wait_in(&mut browser, "#failures", "4 images: denied").await;
    // The images, filtered, in pages.
    browser.eval("(() => { const select = document.querySelector('#images select'); select.value = 'failed'; select.dispatchEvent(new Event('change')) })()").await;
    browser.wait_for("document.querySelectorAll('#images tbody tr').length === 4").await;
    browser.eval("[...document.querySelectorAll('#images input')].pop().focus()").await;
    browser.type_text("a:v3").await;
    browser.wait_for("document.querySelectorAll('#images tbody tr').length === 1").await;
    denied.remove();
    let gate = Arc::new(Semaphore::new(0));
    fixture.target.on(RequestMatcher::kind(RequestType::ManifestPut)).always().act(FaultAction::Gate(gate.clone()));
    browser.click("#failures button", "Denied").await;
    browser.wait_for_text("4 failed images requeued.").await;
    wait_in(&mut browser, "#progress", "requeued 1 time").await;
    wait_in(&mut browser, "#progress", "of work").await;
    browser.click("#progress button", "Pause").await;
    wait_for_state(&mut browser, "paused").await;
    browser.click("#progress button", "Resume").await;
    wait_for_state(&mut browser, "running").await;
    // With the keyboard: the confirmation before a batch is cancelled.
    browser.wait_for("document.querySelector('#progress [data-key=cancel]') !== null").await;
    browser.eval("document.querySelector('#progress [data-key=cancel]').focus()").await;
    browser.press("Enter").await;
    browser.wait_for("document.querySelector('#ask').open").await;
    browser.press("Escape").await;
    browser.wait_for("!document.querySelector('#ask').open").await;
    gate.add_permits(100);
    wait_for_state(&mut browser, "done").await;
    assert_eq!(fixture.target.tags("m/a").len(), 4);
    open_page(&mut browser, "/").await;
    browser.click("#rules button", "Start").await;
    open_page(&mut browser, "/batches").await;
    browser.wait_for("document.querySelectorAll('#batches tbody tr').length === 2").await;
    assert_eq!(browser.page_errors(), &[] as &[String]);
}

#[tokio::test]
async fn without_the_token_nothing_is_changed_and_the_dashboard_asks_for_it() {
    let Some(mut browser) = browser("the page without a token").await else { return };
    let fixture = ServeFixture::new(&["a"], 1).await;
    let served = fixture.serve(&[("a", "")]).await;
    browser.open(&format!("{}/#token=wrong-wrong-wrong-wrong", served.url)).await;
    browser.click("#rules button", "Start").await;
    browser.wait_for("document.querySelector('#ask-token').open").await;
    browser.wait_for_text("the token is not valid").await;
    assert_eq!(served.get("batches").await.1, json!({"batches": [], "next": null}));
    browser.eval("document.querySelector('#token').focus()").await;
    browser.type_text(&served.token).await;
    // Both in one script: the browser tells the page only later that the dialog is closed.
    browser
        .eval(
            "[...document.querySelectorAll('#ask-token button')].find((it) => it.innerText === 'Sign in').click(), \
             [...document.querySelectorAll('#rules button')].find((it) => it.innerText === 'Start').click()",
        )
        .await;
    served.wait_for("batches", |batches| batches["batches"].as_array().unwrap().len() == 1).await;
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
    wait_in(&mut browser, "#rules", &title).await;
    wait_in(&mut browser, "#problems", script).await;
    let batches = served.wait_for_ended_batches(2).await;
    for batch in &batches {
        open_page(&mut browser, &format!("/batches/{}", batch["batch"].as_str().unwrap())).await;
        wait_in(&mut browser, "#failures", script).await;
    }
    for rule in served.get("rules").await.1["rules"].as_array().unwrap() {
        open_page(&mut browser, &format!("/rules/{}", rule["rule"].as_str().unwrap())).await;
        wait_in(&mut browser, "#failures", script).await;
    }
    open_page(&mut browser, &format!("/search?text={}", "window.pwned")).await;
    wait_in(&mut browser, "#results", script).await;
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
    browser.wait_for("document.querySelectorAll('#rules tbody tr').length === 4").await;
    wait_in(&mut browser, "#problems", "failing").await;
    let rules =
        served.wait_for("rules", |rules| rules["states"]["running"].as_u64().is_some_and(|running| running > 0)).await;
    let worker =
        rules["rules"].as_array().unwrap().iter().find(|rule| rule["name"].as_str().unwrap().ends_with("worker"));
    let rule = worker.unwrap();
    let batch = rule["last"].as_str().unwrap();
    let (_, workers) = served.get("workers").await;
    let pages = [
        ("overview", "/".to_owned(), "#rules tbody tr"),
        ("batch", format!("/batches/{batch}"), "#timeline svg.plot rect"),
        ("rule", format!("/rules/{}", rule["rule"].as_str().unwrap()), "#history tbody tr"),
        ("batches", "/batches".to_owned(), "#batches tbody tr"),
        ("workers", "/workers".to_owned(), "#routes tbody tr"),
        ("search", "/search?text=team".to_owned(), "#results .result"),
        ("worker", format!("/workers/{}", workers["workers"][0]["worker"].as_str().unwrap()), "#worker"),
    ];
    for (name, path, shown) in &pages {
        open_page(&mut browser, path).await;
        browser.wait_for(&format!("document.querySelector({}) !== null", json!(shown))).await;
        for (width, height) in [(1440, 1000), (1024, 1000), (390, 844), (320, 640)] {
            browser.resize(width, height).await;
            browser.wait_for(&format!("innerWidth === {width}")).await;
            let over = browser.eval("document.documentElement.scrollWidth - innerWidth").await;
            assert!(over.as_i64().is_some_and(|over| over <= 0), "{name}: {over} pixels hang out at {width}");
            for scheme in ["light", "dark"] {
                browser.set_color_scheme(scheme).await;
                let picture = folder.as_ref().map(|folder| folder.join(format!("{name}-{width}-{scheme}.png")));
                if let Some(picture) = picture {
                    browser.save_screenshot(&picture).await;
                }
            }
        }
    }
    gate.add_permits(1_000);
    assert_eq!(browser.page_errors(), &[] as &[String]);
}
