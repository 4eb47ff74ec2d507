//! Who may ask.

use imgsync_tests::{Served, served};
use reqwest::Method;
use serde_json::json;

use crate::scene::Scene;

const NONE: &str = "batches/01890a5d-ac96-774b-bcce-b302099a8057";

#[tokio::test]
async fn on_loopback_reading_is_free_and_changing_needs_the_token_that_was_made_up() {
    let scene = Scene::new(&["a"], 1).await;
    let served = scene.serve(&[("a", "")]).await;
    let pause = format!("{NONE}/pause");
    let ask = async |request: reqwest::RequestBuilder| served::answer(request).await.0;
    assert_eq!(ask(served.request(Method::GET, "batches")).await, 200);
    assert_eq!(ask(served.request(Method::POST, &pause)).await, 401);
    assert_eq!(ask(served.request(Method::POST, &pause).bearer_auth("0".repeat(64))).await, 401);
    assert_eq!(ask(served.request(Method::POST, &pause).bearer_auth(&served.token)).await, 404);
    let refused = served.request(Method::POST, &pause).send().await.unwrap();
    assert_eq!(refused.headers()["www-authenticate"], "Bearer realm=\"imgsync\"");

    // Pages of others: by a name that leads here, and from their own.
    let token = || served.request(Method::POST, &pause).bearer_auth(&served.token);
    assert_eq!(ask(token().header("host", "evil.example")).await, 421);
    assert_eq!(ask(served.request(Method::GET, "batches").header("host", "evil.example")).await, 421);
    assert_eq!(ask(token().header("origin", "http://evil.example")).await, 403);
    assert_eq!(ask(token().header("origin", "null")).await, 403);
    assert_eq!(ask(token().header("origin", &served.url)).await, 404);
    assert_eq!(ask(token().header("sec-fetch-site", "cross-site")).await, 403);
    assert_eq!(scene.source.total(), 0, "nothing was begun by any of it");

    // The token is kept for its owner, is the same at the next start, and is nowhere else.
    let file = scene.program.state().join("imgsync/serve-token");
    assert_eq!(std::fs::read_to_string(&file).unwrap().trim(), served.token);
    let mode = std::os::unix::fs::PermissionsExt::mode(&std::fs::metadata(&file).unwrap().permissions());
    assert_eq!(mode & 0o777, 0o600);
    for path in ["status", "openapi.json", "workers", "lanes", "schedules"] {
        let (status, value) = served.get(path).await;
        assert!(status == 200 && !value.to_string().contains(&served.token), "{path}");
    }
    let before = served.token.clone();
    served.end().await.assert_code(0);
    assert_eq!(Served::start(&scene.program, &[]).await.token, before);
}

#[tokio::test]
async fn off_loopback_reading_needs_the_configured_token_too_and_the_page_holds_nothing() {
    let scene = Scene::new(&["a"], 1).await;
    let token = "correct-horse-battery";
    scene.write(&format!("serve: {{listen: '0.0.0.0:0', token: {token}}}\n{}", scene.config(&[("a", "")])));
    let served = Served::start(&scene.program, &["--listen", "0.0.0.0:0"]).await;
    assert!(!served.running.stderr().contains(token));
    for path in ["status", "batches", "events", "openapi.json", NONE] {
        let (status, value) = served::answer(served.request(Method::GET, path)).await;
        assert_eq!(status, 401, "{path}: {value}");
    }
    let (status, _) = served::answer(served.request(Method::GET, "batches").bearer_auth(token)).await;
    assert_eq!(status, 200);
    // A variable goes before the file.
    served.end().await.assert_code(0);
    let other = scene.program.again().env("IMGSYNC_TOKEN", "another-horse-battery");
    let served = Served::start(&other, &["--listen", "0.0.0.0:0"]).await;
    let asked = async |token: &str| served::answer(served.request(Method::GET, "batches").bearer_auth(token)).await.0;
    assert_eq!((asked(token).await, asked("another-horse-battery").await), (401, 200));
    let page = served.fetch("/").await;
    assert_eq!(page.status(), 200);
    let policy = page.headers()["content-security-policy"].to_str().unwrap().to_owned();
    for part in ["default-src 'none'", "script-src 'self'", "frame-ancestors 'none'", "base-uri 'none'"] {
        assert!(policy.contains(part), "{policy}");
    }
    assert!(!policy.contains("unsafe"), "{policy}");
    assert_eq!(served.fetch("/healthz").await.status(), 200);
    assert_eq!(served.fetch("/readyz").await.status(), 200);
    let weak = scene.program.again().env("IMGSYNC_TOKEN", "hush").args(["serve", "--listen", "127.0.0.1:0"]);
    served.end().await.assert_code(0);
    let weak = weak.run().await.assert_code(2);
    assert!(weak.stderr.contains("can be guessed"), "{}", weak.stderr);
}

#[tokio::test]
async fn bodies_are_small_and_what_they_are_said_to_be() {
    let scene = Scene::new(&["a"], 1).await;
    let served = scene.serve(&[("a", "")]).await;
    let (_, schedules) = served.get("schedules").await;
    let path = format!("schedules/{}/start", schedules[0]["rule"].as_str().unwrap());
    let send = async |kind: &str, body: Vec<u8>| {
        let request = served.request(Method::POST, &path).bearer_auth(&served.token);
        served::answer(request.header("content-type", kind).body(body)).await.0
    };
    assert_eq!(send("application/json", vec![b' '; 64 << 20]).await, 413);
    assert_eq!(send("application/json", vec![b' '; 17 << 10]).await, 413);
    assert_eq!(send("text/plain", b"{}".to_vec()).await, 415);
    assert_eq!(send("application/x-www-form-urlencoded", b"a=b".to_vec()).await, 415);
    assert_eq!(send("application/json", b"{\"force\": true}".to_vec()).await, 400);
    assert_eq!(send("application/json", b"{".to_vec()).await, 400);
    assert_eq!(send("application/json", [b"[".repeat(10_000), b"]".repeat(6_000)].concat()).await, 400);
    assert_eq!(scene.source.total(), 0, "nothing was begun by any of it");
    assert_eq!(send("application/json; charset=utf-8", b"{}".to_vec()).await, 202);
    let nowhere = served.get("nothing").await;
    assert_eq!(nowhere.0, 404);
    assert_eq!(nowhere.1["error"]["class"], "not_found");
    assert_eq!(served.post("batches", &json!({})).await.0, 405);
}
