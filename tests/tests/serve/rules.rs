//! Rules with their state and history, the overview and its problems, and batches in pages.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use imgsync_tests::fault::{FaultAction, RequestMatcher, RequestType};
use imgsync_tests::program::Signal;
use imgsync_tests::serve_process::send_json;
use imgsync_tests::{RedisServer, ServeProcess, TestCluster, images};
use serde_json::{Value, json};
use tokio::sync::Semaphore;

use crate::support::ServeFixture;

const WAIT_TIMEOUT: Duration = Duration::from_secs(60);
const MANIFEST_READS: [RequestType; 2] = [RequestType::ManifestGet, RequestType::ManifestHead];

fn denied() -> FaultAction {
    FaultAction::Status { code: 403, headers: Vec::new(), body: "{\"errors\":[{\"code\":\"DENIED\"}]}".into() }
}

/// Returns the rule with this name.
fn named<'v>(rules: &'v Value, name: &str) -> &'v Value {
    let rules = rules["rules"].as_array().expect("a page of rules");
    rules.iter().find(|rule| rule["name"] == name).unwrap_or_else(|| panic!("no rule {name}: {rules:#?}"))
}

fn names(rules: &Value) -> Vec<&str> {
    rules["rules"].as_array().expect("a page of rules").iter().filter_map(|rule| rule["name"].as_str()).collect()
}

/// Serves five rules: one that is good, one whose images are denied, one that cannot be listed, one that selects
/// nothing, and one that was never run.
async fn serve_five(fixture: &ServeFixture) -> ServeProcess {
    fixture.source.on(RequestMatcher::kinds(&MANIFEST_READS).repository("secret")).always().act(denied());
    let (from, to) = (fixture.source.host(), fixture.target.host());
    fixture.write(&format!(
        "defaults: {{to: {to}/m, naming: keep}}\nrules:\n\
         - {{name: good, from: {from}/good, schedule: {{every: 1h}}}}\n\
         - {{name: secret, from: {from}/secret, schedule: {{every: 1h}}}}\n\
         - {{name: missing, from: {from}/missing, schedule: {{every: 1h}}}}\n\
         - {{name: empty, from: {from}/good, tags: {{include: ['nothing-*']}}, schedule: {{every: 1h}}}}\n\
         - {{name: manual, from: {from}/good, tags: {{include: [v0]}}, to: {to}/other}}\n"
    ));
    let served = ServeProcess::start(&fixture.program, &[]).await;
    served.wait_for_ended_batches(4).await;
    served
}

#[tokio::test]
async fn rules_are_shown_with_their_state_and_the_overview_says_what_is_wrong_and_what_to_do() {
    let fixture = ServeFixture::new(&["good", "secret"], 3).await;
    let served = serve_five(&fixture).await;
    let has_ended = |rules: &Value| rules["states"]["running"] == 0;
    let rules = served.wait_for("rules", has_ended).await;
    let states = ["good", "secret", "missing", "empty", "manual"].map(|name| named(&rules, name)["state"].clone());
    assert_eq!(states, ["in_sync", "failing", "failing", "nothing_selected", "never_run"], "{rules:#}");
    assert_eq!(named(&rules, "good")["tags"], json!({"in_sync": 3, "total": 3}));
    assert!(named(&rules, "good")["last_good"].is_string() && named(&rules, "good")["next"].is_string());
    assert_eq!(named(&rules, "secret")["tags"], json!({"in_sync": 0, "total": 3}));
    let failure = &named(&rules, "secret")["last_failure"];
    assert_eq!((&failure["failed"], &failure["kind"]), (&json!(3), &json!("denied")), "{failure:#}");
    assert!(failure["advice"].as_str().unwrap().contains("credentials"), "{failure:#}");
    assert_eq!(named(&rules, "missing")["last_failure"]["unlisted"], 1, "a listing failure is a failure");
    assert_eq!(named(&rules, "missing")["tags"], Value::Null, "its tags were never listed");
    assert_eq!(named(&rules, "missing")["failing_since"], named(&rules, "missing")["last_failure"]["at"]);

    // Filters and pages.
    let (_, failing) = served.get("rules?state=failing").await;
    assert_eq!((names(&failing), &failing["total"]), (vec!["secret", "missing"], &json!(2)));
    let (_, several) = served.get("rules?state=never_run,in_sync").await;
    assert_eq!(names(&several), ["good", "manual"]);
    assert_eq!(names(&served.get("rules?text=SECRET").await.1), ["secret"]);
    assert_eq!(names(&served.get("rules?text=/other").await.1), ["manual"], "targets are searched, too");
    assert_eq!(names(&served.get("rules?registry=nowhere.example").await.1), [] as [&str; 0]);
    assert_eq!(names(&served.get(&format!("rules?registry={}", fixture.target.host())).await.1).len(), 5);
    let (_, page) = served.get("rules?limit=2&from=1").await;
    assert_eq!((names(&page), &page["next"], &page["total"]), (vec!["secret", "missing"], &json!(3), &json!(5)));
    let (_, last) = served.get("rules?limit=2&from=3").await;
    assert_eq!((names(&last), &last["next"]), (vec!["empty", "manual"], &Value::Null));
    assert_eq!(served.get("rules?state=odd").await.0, 400);
    let (_, schedules) = served.get("schedules?limit=1").await;
    assert_eq!((&schedules["schedules"][0]["name"], &schedules["next"]), (&json!("good"), &json!(1)));

    let (_, overview) = served.get("overview").await;
    assert_eq!(overview["totals"]["states"]["failing"], 2);
    assert_eq!((&overview["totals"]["tags_in_sync"], &overview["totals"]["tags"]), (&json!(3), &json!(6)));
    let problems = overview["problems"].as_array().unwrap();
    let title = |problem: &Value| problem["title"].as_str().unwrap().to_owned();
    let mut titles: Vec<String> = problems.iter().map(title).collect();
    titles.sort();
    assert_eq!(
        titles,
        [
            format!("1 rule is failing: denied ({})", fixture.source.host()),
            format!("1 rule is failing: not found ({})", fixture.source.host()),
            "1 rule selects no tag".to_owned()
        ],
        "{overview:#}"
    );
    for problem in problems {
        assert!(!problem["advice"].as_str().unwrap().is_empty(), "{problem:#}");
        assert_eq!(problem["rules"].as_array().unwrap().len(), 1, "{problem:#}");
    }
    assert_eq!(problems[2]["severity"], "warning", "the worst first");

    // The error passes: the next run of the rule is good, and its last failure stays known.
    fixture.source.push("missing", "v0", &images::single("found"));
    let id = named(&rules, "missing")["rule"].as_str().unwrap().to_owned();
    let (status, started) = served.post(&format!("rules/{id}/start"), &json!({})).await;
    assert_eq!(status, 202, "{started:#}");
    let rule = served.wait_for(&format!("rules/{id}"), |rule| rule["state"] == "in_sync").await;
    assert_eq!(rule["failing_since"], Value::Null);
    assert_eq!(rule["last_failure"]["unlisted"], 1, "the last failure stays known after a good run: {rule:#}");
    assert_eq!(rule["last"], started["batch"]);
    assert_eq!(served.get("rules/nothing").await.0, 404);
    assert_eq!(served.get("rules/missing").await.1["rule"], id, "by its name, too");
}

#[tokio::test]
async fn a_rule_whose_batches_are_all_too_old_has_no_recent_run_and_is_not_one_that_never_ran() {
    let fixture = ServeFixture::new(&["a", "b"], 1).await;
    let served = fixture.serve(&[("a", "{every: 1h}"), ("b", "")]).await;
    served.wait_for_ended_batches(1).await;
    served.stop().await.assert_code(0);
    // Removes all batches that ended earlier; long enough that a run on a busy machine does not remove its own.
    const KEEP: Duration = Duration::from_secs(1);
    tokio::time::sleep(KEEP).await;
    let short = format!("keep: {}ms\n{}", KEEP.as_millis(), fixture.config(&[("b", "")]).replace("/m,", "/other,"));
    fixture.program.file("short.yaml", short);
    fixture.program.again().args(["run", "short.yaml"]).run().await.assert_code(0);

    let served = fixture.serve(&[("a", "{every: 1h}"), ("b", "")]).await;
    let (_, rules) = served.get("rules").await;
    let states: Vec<&Value> = rules["rules"].as_array().unwrap().iter().map(|rule| &rule["state"]).collect();
    assert_eq!(states, ["no_recent_run", "never_run"], "{rules:#}");
    assert_eq!(names(&served.get("rules?state=no_recent_run").await.1).len(), 1);
}

#[tokio::test]
async fn the_interrupted_listing_of_a_run_of_some_rules_is_continued_with_those() {
    let fixture = ServeFixture::new(&["a", "b", "c"], 2).await;
    fixture.write(&fixture.config(&[("a", ""), ("b", ""), ("c", "")]));
    let gate = Arc::new(Semaphore::new(0));
    let held = fixture.source.on(RequestMatcher::kind(RequestType::Tags)).always().act(FaultAction::Gate(gate.clone()));
    let mut running = fixture.program.again().args(["run", "--rule", "1", "--rule", "3"]).spawn();
    fixture.source.wait_until(|source| source.count(RequestType::Tags) > 0, WAIT_TIMEOUT).await;
    running.signal(Signal::KILL);
    running.wait().await;
    held.remove();
    gate.add_permits(100);
    let served = ServeProcess::start(&fixture.program, &[]).await;
    let batches = served.wait_for_ended_batches(1).await;
    assert_eq!((batches.len(), &batches[0]["counts"]["copied"]), (1, &json!(4)), "{batches:#?}");
    let copied = ["a", "b", "c"].map(|name| fixture.target.tags(&format!("m/{name}")).len());
    assert_eq!(copied, [2, 0, 2]);
}

/// A push event as Harbor sends it.
const HARBOR_PUSH: &str = r#"{"type":"PUSH_ARTIFACT","occur_at":1700000000,"operator":"admin","event_data":{"resources":
    [{"digest":"sha256:0000000000000000000000000000000000000000000000000000000000000000","tag":"v1",
    "resource_url":"harbor.example/library/app:v1"}],"repository":{"name":"app","namespace":"library",
    "repo_full_name":"library/app","repo_type":"private"}}}"#;

#[tokio::test]
async fn a_webhook_of_a_registry_starts_a_rule_whatever_its_body() {
    let fixture = ServeFixture::new(&["a"], 1).await;
    let served = fixture.serve(&[("a", "")]).await;
    let (_, rules) = served.get("rules").await;
    let path = format!("rules/{}/start", rules["rules"][0]["rule"].as_str().unwrap());
    let notification = json!({"events": [{"action": "push", "target": {"repository": "a", "tag": "v1"}}]}).to_string();
    for (number, (kind, body)) in [
        ("application/json", HARBOR_PUSH.to_owned()),
        ("application/vnd.docker.distribution.events.v1+json", notification),
        ("application/json", format!("[{}0]", "0,".repeat(100_000))),
        ("text/plain", "pushed".to_owned()),
    ]
    .into_iter()
    .enumerate()
    {
        let hook = |token: &str| {
            let request = served.request(reqwest::Method::POST, &path).bearer_auth(token);
            send_json(request.header("content-type", kind).body(body.clone()))
        };
        // A long body is not read: the client may see the end of the connection before the answer.
        if body.len() < 10_000 {
            assert_eq!(hook("wrong").await.0, 401, "{kind}");
        }
        let (status, started) = hook(&served.token).await;
        assert_eq!(status, 202, "{kind}: {started:#}");
        assert_eq!(served.wait_for_ended_batches(number + 1).await[0]["batch"], started["batch"], "{kind}");
    }
    let endless = served.request(reqwest::Method::POST, &path).bearer_auth(&served.token).body(vec![b'x'; 2 << 20]);
    // Likewise.
    if let Ok(answer) = endless.send().await {
        assert_eq!(answer.status(), 413, "a body that is no notification");
    }
    assert_eq!(served.get("batches").await.1["batches"].as_array().unwrap().len(), 4);
}

#[tokio::test]
async fn a_rule_that_runs_again_after_a_failure_is_a_problem_until_a_run_is_good() {
    let fixture = ServeFixture::new(&["a"], 2).await;
    let fault = fixture.source.on(RequestMatcher::kinds(&MANIFEST_READS)).always().act(denied());
    let served = fixture.serve(&[("a", "{every: 1h}")]).await;
    let rules = served.wait_for("rules", |rules| rules["rules"][0]["state"] == "failing").await;
    let (id, since) = (rules["rules"][0]["rule"].as_str().unwrap(), &rules["rules"][0]["failing_since"]);
    fault.remove();
    let gate = Arc::new(Semaphore::new(0));
    fixture.source.on(RequestMatcher::kind(RequestType::Tags)).always().act(FaultAction::Gate(gate.clone()));
    served.post(&format!("rules/{id}/start"), &json!({})).await;
    let running = served.wait_for("rules", |rules| rules["rules"][0]["state"] == "running").await;
    assert_eq!(&running["rules"][0]["failing_since"], since, "{running:#}");
    let (_, overview) = served.get("overview").await;
    let problem = &overview["problems"][0];
    assert_eq!(problem["title"], format!("1 rule is failing: denied ({})", fixture.source.host()), "{overview:#}");
    assert_eq!(&problem["since"], since);
    gate.add_permits(100);
    let rules = served.wait_for("rules", |rules| rules["rules"][0]["state"] == "in_sync").await;
    let failure = &rules["rules"][0]["last_failure"];
    assert_eq!(failure["failed"], 2, "{rules:#}");
    assert_eq!(served.get("overview").await.1["problems"], json!([]));
    // The failed images of the older batch are requeued and copied: nothing has failed any more.
    served.post(&format!("batches/{}/requeue", failure["batch"].as_str().unwrap()), &json!({})).await;
    served.wait_for("rules", |rules| rules["rules"][0]["last_failure"].is_null()).await;
}

#[tokio::test]
async fn a_run_of_all_rules_counts_for_each_rule_by_its_own_images_and_listings() {
    let fixture = ServeFixture::new(&["good", "secret"], 2).await;
    fixture.source.on(RequestMatcher::kinds(&MANIFEST_READS).repository("secret")).always().act(denied());
    fixture.write(&fixture.config(&[("good", ""), ("secret", ""), ("missing", "")]));
    fixture.program.again().args(["run"]).run().await.assert_code(1);
    let served = ServeProcess::start(&fixture.program, &[]).await;
    let (_, rules) = served.get("rules").await;
    let rules = rules["rules"].as_array().unwrap();
    let states: Vec<_> = rules.iter().map(|rule| rule["state"].as_str().unwrap()).collect();
    assert_eq!(states, ["in_sync", "failing", "failing"], "{rules:#?}");
    assert!(rules.iter().all(|rule| rule["shared"] == true), "{rules:#?}");
    assert!(rules[0]["last_good"].is_string(), "{rules:#?}");
    assert_eq!((&rules[0]["last_failure"], &rules[0]["failing_since"]), (&Value::Null, &Value::Null));
    assert_eq!((&rules[1]["last_good"], &rules[1]["last_failure"]["kind"]), (&Value::Null, &json!("denied")));
    let (_, overview) = served.get("overview").await;
    assert_eq!(overview["totals"]["states"]["failing"], 2, "{overview:#}");
}

#[tokio::test]
async fn a_rule_that_runs_or_is_paused_says_so() {
    let fixture = ServeFixture::new(&["a"], 2).await;
    let gate = Arc::new(Semaphore::new(0));
    fixture.target.on(RequestMatcher::kind(RequestType::ManifestPut)).always().act(FaultAction::Gate(gate.clone()));
    let served = fixture.serve(&[("a", "{every: 1h}")]).await;
    let rules = served.wait_for("rules", |rules| rules["rules"][0]["tags"]["total"] == 2).await;
    assert_eq!(rules["rules"][0]["state"], "running", "{rules:#}");
    let batch = rules["rules"][0]["running"].as_str().unwrap().to_owned();
    served.post(&format!("batches/{batch}/pause"), &json!({})).await;
    served.wait_for("rules", |rules| rules["rules"][0]["state"] == "paused").await;
    served.post(&format!("batches/{batch}/cancel"), &json!({})).await;
    served.wait_for("rules", |rules| rules["rules"][0]["state"] == "cancelled").await;
    gate.add_permits(100);
}

#[tokio::test]
async fn the_history_of_a_rule_and_the_batches_are_read_in_pages() {
    let fixture = ServeFixture::new(&["a", "b"], 2).await;
    let served = fixture.serve(&[("a", ""), ("b", "")]).await;
    let (_, rules) = served.get("rules").await;
    let id = |number: usize| rules["rules"][number]["rule"].as_str().unwrap().to_owned();
    let (first, second) = (id(0), id(1));
    for number in 1..=3 {
        served.post(&format!("rules/{first}/start"), &json!({})).await;
        served.wait_for_ended_batches(number).await;
    }
    served.post(&format!("rules/{second}/start"), &json!({})).await;
    served.wait_for_ended_batches(4).await;

    let path = format!("rules/{first}/history?limit=2");
    let history = served.wait_for(&path, |history| history["runs"][0]["good"] == true).await;
    let runs = history["runs"].as_array().unwrap();
    assert_eq!(runs.len(), 2);
    assert_eq!((&runs[0]["unchanged"], &runs[0]["copied"]), (&json!(2), &json!(0)), "the third run");
    let next = history["next"].as_str().unwrap();
    assert_eq!(runs[1]["batch"], next);
    let (_, rest) = served.get(&format!("{path}&before={next}")).await;
    let rest = rest["runs"].as_array().unwrap().clone();
    assert_eq!((rest.len(), &rest[0]["copied"]), (1, &json!(2)), "the first run copied: {rest:#?}");
    assert!(rest[0]["bytes"].as_u64().unwrap() > 0);

    let (_, page) = served.get("batches?limit=3").await;
    assert_eq!(page["batches"].as_array().unwrap().len(), 3);
    assert_eq!(page["batches"][0]["rule"], second);
    let (_, rest) = served.get(&format!("batches?limit=3&before={}", page["next"].as_str().unwrap())).await;
    assert_eq!((rest["batches"].as_array().unwrap().len(), &rest["next"]), (1, &Value::Null));
    let (_, of_rule) = served.get(&format!("batches?rule={second}")).await;
    assert_eq!(of_rule["batches"].as_array().unwrap().len(), 1, "{of_rule:#}");
    let (_, done) = served.get("batches?state=done&limit=2").await;
    assert_eq!(done["batches"].as_array().unwrap().len(), 2);
    assert_eq!(served.get("batches?state=paused").await.1, json!({"batches": [], "next": null}));
    for wrong in ["batches?before=x", "batches?state=odd", "rules/nothing/history?limit=201"] {
        assert_eq!(served.get(wrong).await.0, 400, "{wrong}");
    }
}

#[tokio::test]
async fn the_rows_of_a_batch_are_filtered_by_kind_registry_and_text() {
    let fixture = ServeFixture::new(&["a"], 12).await;
    for tag in ["v1", "v10", "v11"] {
        fixture.source.on(RequestMatcher::kinds(&MANIFEST_READS).reference(tag)).always().act(denied());
    }
    let missing = FaultAction::error(404, "MANIFEST_UNKNOWN");
    fixture.source.on(RequestMatcher::kinds(&MANIFEST_READS).reference("v2")).always().act(missing);
    let served = fixture.serve(&[("a", "{every: 1h}")]).await;
    let batches = served.wait_for_ended_batches(1).await;
    let path = format!("batches/{}", batches[0]["batch"].as_str().unwrap());
    let sources = async |query: &str, field: &str| -> Vec<String> {
        let (status, page) = served.get(&format!("{path}/{query}")).await;
        assert_eq!(status, 200, "{query}: {page:#}");
        let row = |row: &Value| row["source"].as_str().unwrap().rsplit(':').next().unwrap().to_owned();
        let mut tags: Vec<String> = page[field].as_array().unwrap().iter().map(row).collect();
        tags.sort();
        tags
    };
    let (source, target) = (fixture.source.host(), fixture.target.host());
    assert_eq!(sources("failures?kind=denied", "failures").await, ["v1", "v10", "v11"]);
    assert_eq!(sources("failures?kind=not_found&text=:v2", "failures").await, ["v2"]);
    assert_eq!(sources(&format!("failures?registry={source}&text=V1"), "failures").await, ["v1", "v10", "v11"]);
    assert_eq!(sources(&format!("failures?registry={target}"), "failures").await, [] as [&str; 0]);
    assert_eq!(sources("tasks?text=:v1", "tasks").await, ["v1", "v10", "v11"]);
    assert_eq!(sources(&format!("tasks?state=copied&registry={target}&text=a:v"), "tasks").await.len(), 8);
    let (_, page) = served.get(&format!("{path}/failures?kind=denied&limit=2")).await;
    let (_, rest) = served.get(&format!("{path}/failures?kind=denied&from={}", page["next"])).await;
    assert_eq!((page["failures"].as_array().unwrap().len(), rest["failures"].as_array().unwrap().len()), (2, 1));
    assert_eq!(served.get(&format!("{path}/failures?kind=odd")).await.0, 400);
}

#[tokio::test]
async fn the_report_of_a_batch_links_to_it_and_does_not_requeue_what_is_gone() {
    let fixture = ServeFixture::new(&["a"], 3).await;
    let missing = FaultAction::error(404, "MANIFEST_UNKNOWN");
    fixture.source.on(RequestMatcher::kinds(&MANIFEST_READS).reference("v2")).always().act(missing);
    let served = fixture.serve(&[("a", "{every: 1h}"), ("nowhere", "{every: 1h}")]).await;
    let batches = served.wait_for_ended_batches(2).await;
    let batch = batches.iter().find(|batch| batch["counts"]["failed"] == 1).unwrap();
    let id = batch["batch"].as_str().unwrap();
    let response = served.request(reqwest::Method::GET, &format!("batches/{id}/report")).send().await.unwrap();
    let header = |name: &str| response.headers()[name].to_str().unwrap().to_owned();
    assert!(header("content-security-policy").contains("style-src 'unsafe-inline'"), "it has a style of its own");
    assert!(!header("content-security-policy").contains("script-src"), "and no scripts");
    assert_eq!(header("content-disposition"), format!("attachment; filename=\"imgsync-{id}.html\""));
    let page = response.text().await.unwrap();
    assert!(page.contains(&format!("<a href=\"{}/#/batches/{id}\">", served.url)), "{page}");
    assert!(page.contains("Requeuing repeats the error") && !page.contains("batch requeue"), "{page}");
    assert!(page.contains("Next: <code>imgsync run</code>"), "{page}");
    assert!(page.contains(&format!("{} answered", fixture.source.host())), "{page}");
    let unlisted = batches.iter().find(|batch| batch["unlisted"] == 1).unwrap()["batch"].as_str().unwrap();
    let (_, page) = served.get(&format!("batches/{unlisted}/unlisted")).await;
    assert_eq!((&page["unlisted"][0]["kind"], &page["total"]), (&json!("not_found"), &json!(1)), "{page:#}");
    let report = served.request(reqwest::Method::GET, &format!("batches/{unlisted}/report")).send().await.unwrap();
    let page = report.text().await.unwrap();
    assert!(page.contains("Not listed") && page.contains("/nowhere"), "{page}");
    assert_eq!(served.get("batches/nothing/report").await.0, 404);
}

#[tokio::test]
async fn the_overview_of_a_cluster_names_missing_workers_and_other_configurations() {
    let cluster = TestCluster::start();
    let mut fixture = ServeFixture::new(&["a"], 4).await;
    let config = format!(
        "registries: {{'{}': {{concurrency: 7}}}}\n{}",
        fixture.source.host(),
        fixture.config(&[("a", "{every: 1h}")])
    );
    fixture.program = cluster.imgsync(&config);
    let served = ServeProcess::start(&fixture.program, &[]).await;
    let has = |title: &'static str| {
        move |overview: &Value| {
            let problems = overview["problems"].as_array().unwrap();
            problems.iter().any(|problem| problem["title"].as_str().unwrap().contains(title))
        }
    };
    let overview = served.wait_for("overview", has("No worker is running")).await;
    assert_eq!(overview["totals"]["workers"], 0);
    // A worker for other registries only: the tasks wait, and the overview says for whom.
    let elsewhere = cluster.worker("").args(["--registries", "other.example"]).spawn();
    let overview = served.wait_for("overview", has("No worker serves")).await;
    assert!(!has("No worker is running")(&overview), "{overview:#}");
    assert_eq!(served.get("routes").await.1["routes"][0]["served"], false);
    let other = config.replace("concurrency: 7", "concurrency: 8");
    let worker = cluster.worker(&other).spawn();
    let overview = served.wait_for("overview", has("1 worker uses another configuration")).await;
    assert!(!has("No worker serves")(&overview), "one worker is enough: {overview:#}");
    let (_, routes) = served.get("routes").await;
    assert_eq!(routes["routes"][0]["served"], true, "{routes:#}");
    assert_eq!(
        routes["routes"][0]["unserved_reasons"].as_array().unwrap().len(),
        1,
        "the other one does not: {routes:#}"
    );
    served.wait_for_ended_batches(1).await;
    drop(elsewhere);
    drop(worker);
    let same = cluster.worker(&config).spawn();
    let is_same = |workers: &Value| {
        let workers = workers["workers"].as_array().unwrap();
        workers.iter().any(|worker| worker["config_differs"] == false)
    };
    served.wait_for("workers", is_same).await;
    drop(same);
    // The state of the rules is the same as without a cluster.
    let rules = served.wait_for("rules", |rules| rules["rules"][0]["state"] == "in_sync").await;
    assert_eq!(rules["rules"][0]["tags"], json!({"in_sync": 4, "total": 4}), "{rules:#}");
    let (_, found) = served.get("search?text=a:v3").await;
    assert_eq!((&found["results"][0]["state"], &found["searched"]["complete"]), (&json!("copied"), &json!(true)));
}

/// Returns the calls of each command of the store so far, but not those of the test.
fn command_calls(store: &RedisServer) -> BTreeMap<String, u64> {
    let stats = store.command(&["INFO", "commandstats"]);
    let calls = stats.lines().filter_map(|line| {
        let (name, rest) = line.strip_prefix("cmdstat_")?.split_once(":calls=")?;
        Some((name.to_owned(), rest.split(',').next()?.parse().ok()?))
    });
    calls.filter(|(name, _)| name != "info").collect()
}

#[tokio::test]
async fn a_poll_of_200_rules_reads_their_histories_and_newest_batches_and_nothing_else_by_rule() {
    const RULES: u64 = 200;
    // Those that ran: each has a batch.
    const RUN: u64 = 20;
    let cluster = TestCluster::start();
    let mut fixture = ServeFixture::new(&["a"], 1).await;
    let (from, to) = (fixture.source.host(), fixture.target.host());
    let rule = |number: u64| {
        let schedule = if number < RUN { ", schedule: {every: 1h}" } else { "" };
        format!(
            "- {{name: r{number}, from: {from}/a, tags: {{include: [none-{number}]}}, to: {to}/m/r{number}{schedule}}}\n"
        )
    };
    let rules: String = (0..RULES).map(rule).collect();
    fixture.program = cluster.imgsync(&format!("rules:\n{rules}"));
    let served = ServeProcess::start(&fixture.program, &[]).await;
    served.wait_for("rules", |rules| rules["states"]["nothing_selected"] == RUN).await;
    // The server polls while a client follows the events.
    let _events = served.request(reqwest::Method::GET, "events").send().await.unwrap();
    let store = &cluster.store;
    let polled = async |from: u64, polls: u64| {
        let started = Instant::now();
        while store.calls("zrange") < from + polls * RULES {
            assert!(started.elapsed() < WAIT_TIMEOUT, "{:#?}", command_calls(store));
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    };
    // The first poll reads details of the batches.
    polled(store.calls("zrange"), 2).await;
    let before = command_calls(store);
    polled(before["zrange"], 3).await;
    let after = command_calls(store);
    let calls = |name: &str| after[name] - before.get(name).copied().unwrap_or_default();
    let polls = calls("zrange") / RULES;
    // Besides, the newest batches are read twice a second.
    let batches = 50 * (calls("zrange") % RULES);
    assert!(calls("hgetall") <= (polls + 1) * RUN + batches, "{} {before:#?} {after:#?}", calls("hgetall"));
    let others: u64 =
        after.keys().filter(|name| !["zrange", "hgetall"].contains(&name.as_str())).map(|n| calls(n)).sum();
    assert!(others < polls * RUN, "{others} other commands in {polls} polls: {before:#?} {after:#?}");
}
