//! Search across rules and batches: the results of an image, why and when.

use imgsync_tests::ServeProcess;
use imgsync_tests::fault::{FaultAction, RequestMatcher, RequestType};
use serde_json::{Value, json};

use crate::support::{ServeFixture, rule};

async fn search(served: &ServeProcess, text: &str) -> Value {
    let url = reqwest::Url::parse_with_params("http://any/", [("text", text)]).unwrap();
    let (status, found) = served.get(&format!("search?{}", url.query().unwrap())).await;
    assert_eq!(status, 200, "{found:#}");
    found
}

#[tokio::test]
async fn an_image_is_found_in_every_rule_with_its_result_and_its_error() {
    let fixture = ServeFixture::new(&["team/api", "team/web"], 4).await;
    let kinds = [RequestType::ManifestGet, RequestType::ManifestHead];
    let refused = FaultAction::Status { code: 403, headers: Vec::new(), body: "{}".into() };
    fixture.source.on(RequestMatcher::kinds(&kinds).repository("team/web").reference("v2")).always().act(refused);
    let rules = [("team/api", "{every: 1h}"), ("team/web", "{every: 1h}"), ("gone", "{every: 1h}")];
    let served = fixture.serve(&rules).await;
    served.wait_for_ended_batches(3).await;

    let found = search(&served, "team/API:v1").await;
    let results = found["results"].as_array().unwrap();
    assert_eq!(results.len(), 1, "{found:#}");
    assert_eq!(results[0]["state"], "copied");
    assert_eq!(results[0]["source"], format!("{}/team/api:v1", fixture.source.host()));
    assert!(results[0]["digest"].as_str().unwrap().starts_with("sha256:") && results[0]["seen_at"].is_string());
    let (_, schedules) = served.get("schedules").await;
    assert_eq!(results[0]["rule"], rule(&schedules, "team/api")["rule"]);

    let found = search(&served, "m/team/web:v2").await;
    assert_eq!((&found["results"][0]["state"], &found["results"][0]["kind"]), (&json!("failed"), &json!("denied")));
    assert!(found["results"][0]["advice"].as_str().unwrap().contains("credentials"), "{found:#}");
    assert_eq!(search(&served, ":v2").await["results"].as_array().unwrap().len(), 2, "in both rules");

    // A repository that could not be listed is named, and what was searched is said.
    let found = search(&served, &format!("https://{}/gone:v1", fixture.source.host())).await;
    assert_eq!(
        (&found["results"][0]["state"], &found["results"][0]["kind"]),
        (&json!("not_listed"), &json!("not_found"))
    );
    assert_eq!(
        found["searched"],
        json!({"runs_per_rule": 3, "batches": 3, "tasks": 8, "complete": true, "stopped": null})
    );

    let found = search(&served, &format!("{}/gone-by:v1", fixture.source.host())).await;
    assert_eq!(found["results"], json!([]), "another repository whose name begins the same");

    // A tag that no batch contains: the rules that read its repository.
    let found = search(&served, &format!("{}/team/api:other", fixture.source.host())).await;
    assert_eq!(found["results"], json!([]));
    assert_eq!(found["read_by"][0]["rule"], rule(&schedules, "team/api")["rule"], "{found:#}");
}

#[tokio::test]
async fn a_search_reads_the_newest_batches_of_each_rule_and_stops_at_its_limit() {
    let fixture = ServeFixture::new(&["a"], 5).await;
    let served = fixture.serve(&[("a", "")]).await;
    let (_, schedules) = served.get("schedules").await;
    let id = rule(&schedules, "a")["rule"].as_str().unwrap().to_owned();
    for number in 1..=4 {
        served.post(&format!("rules/{id}/start"), &json!({})).await;
        served.wait_for_ended_batches(number).await;
    }
    let found = search(&served, "a:v0").await;
    let states: Vec<&str> =
        found["results"].as_array().unwrap().iter().filter_map(|result| result["state"].as_str()).collect();
    assert_eq!(states, ["unchanged", "unchanged", "unchanged"], "the newest three of four batches");
    let (_, found) = served.get("search?text=a:v&limit=2").await;
    assert_eq!(found["results"].as_array().unwrap().len(), 2);
    assert_eq!(found["searched"]["complete"], false, "{found:#}");
    assert!(found["searched"]["stopped"].as_str().unwrap().contains("more results"), "{found:#}");
    // What could not be listed counts as a result, too.
    fixture.write(&fixture.config(&[("gone-1", "{every: 1h}"), ("gone-2", "{every: 1h}")]));
    let all = served.wait_for("search?text=gone", |found| found["results"].as_array().unwrap().len() == 2).await;
    assert_eq!(all["searched"]["complete"], true, "{all:#}");
    let (_, found) = served.get("search?text=gone&limit=1").await;
    assert_eq!((found["results"].as_array().unwrap().len(), &found["searched"]["complete"]), (1, &json!(false)));
    for wrong in ["search", "search?text=a", "search?text=%20a%20", "search?text=abc&limit=201"] {
        assert_eq!(served.get(wrong).await.0, 400, "{wrong}");
    }
}

#[tokio::test]
async fn a_filtered_list_of_failed_images_counts_the_attempts_of_each() {
    let fixture = ServeFixture::new(&["web"], 4).await;
    let kinds = [RequestType::ManifestGet, RequestType::ManifestHead];
    let refused = FaultAction::Status { code: 403, headers: Vec::new(), body: "{}".into() };
    fixture.source.on(RequestMatcher::kinds(&kinds).repository("web")).always().act(refused);
    let served = fixture.serve(&[("web", "{every: 1h}")]).await;
    served.wait_for_ended_batches(1).await;
    let (_, batches) = served.get("batches").await;
    let id = batches["batches"][0]["batch"].as_str().unwrap().to_owned();
    let (_, failures) = served.get(&format!("batches/{id}/failures")).await;
    let attempts = &failures["failures"][0]["attempts"];
    assert!(attempts.as_u64().is_some_and(|attempts| attempts > 0), "{failures:#}");
    // The last of the four, in a page of one.
    let (_, tasks) = served.get(&format!("batches/{id}/tasks?state=failed&text=:v3&limit=1")).await;
    assert_eq!((tasks["tasks"].as_array().unwrap().len(), &tasks["tasks"][0]["attempts"]), (1, attempts), "{tasks:#}");
}
