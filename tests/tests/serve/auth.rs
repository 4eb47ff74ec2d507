//! Authentication and authorization.

use imgsync_tests::{ServeProcess, serve_process};
use reqwest::Method;
use serde_json::json;

use crate::support::ServeFixture;

const MISSING_BATCH: &str = "batches/01890a5d-ac96-774b-bcce-b302099a8057";

#[tokio::test]
async fn on_loopback_reading_is_free_and_changing_needs_the_token_that_was_made_up() {
    let fixture = ServeFixture::new(&["a"], 1).await;
    let served = fixture.serve(&[("a", "")]).await;
    let pause = format!("{MISSING_BATCH}/pause");
    let ask = async |request: reqwest::RequestBuilder| serve_process::send_json(request).await.0;
    assert_eq!(ask(served.request(Method::GET, "batches")).await, 200);
    assert_eq!(ask(served.request(Method::POST, &pause)).await, 401);
    assert_eq!(ask(served.request(Method::POST, &pause).bearer_auth("0".repeat(64))).await, 401);
    assert_eq!(ask(served.request(Method::POST, &pause).bearer_auth(&served.token)).await, 404);
    let refused = served.request(Method::POST, &pause).send().await.unwrap();
    assert_eq!(refused.headers()["www-authenticate"], "Bearer realm=\"imgsync\"");

    // Foreign pages: by a name that resolves here, and from their own origin.
    let token = || served.request(Method::POST, &pause).bearer_auth(&served.token);
    assert_eq!(ask(token().header("host", "evil.example")).await, 421);
    assert_eq!(ask(served.request(Method::GET, "batches").header("host", "evil.example")).await, 421);
    assert_eq!(ask(token().header("origin", "http://evil.example")).await, 403);
    assert_eq!(ask(token().header("origin", "null")).await, 403);
    assert_eq!(ask(token().header("origin", &served.url)).await, 404);
    assert_eq!(ask(token().header("sec-fetch-site", "cross-site")).await, 403);
    assert_eq!(fixture.source.total(), 0, "nothing was begun by any of it");

    // The token file is readable by its owner only, stays the same after a restart, and the token is nowhere else.
    let file = fixture.program.state_dir().join("imgsync/serve-token");
    assert_eq!(std::fs::read_to_string(&file).unwrap().trim(), served.token);
    let mode = std::os::unix::fs::PermissionsExt::mode(&std::fs::metadata(&file).unwrap().permissions());
    assert_eq!(mode & 0o777, 0o600);
    for path in ["status", "openapi.json", "workers", "routes", "schedules", "overview", "rules"] {
        let (status, value) = served.get(path).await;
        assert!(status == 200 && !value.to_string().contains(&served.token), "{path}");
    }
    let before = served.token.clone();
    served.stop().await.assert_code(0);
    assert_eq!(ServeProcess::start(&fixture.program, &[]).await.token, before);
}

/// A reverse proxy on loopback, as nginx, Caddy and Traefik are configured: it forwards the requested host name.
#[tokio::test]
async fn through_a_proxy_on_this_machine_reading_needs_the_token_and_other_names_are_refused() {
    let fixture = ServeFixture::new(&["a"], 1).await;
    fixture.write(&format!("serve: {{hosts: [sync.example.com]}}\n{}", fixture.config(&[("a", "")])));
    let served = ServeProcess::start(&fixture.program, &[]).await;
    let ask = async |request: reqwest::RequestBuilder| request.send().await.unwrap().status().as_u16();
    let api = |path: &str, host: &str| served.request(Method::GET, path).header("host", host);
    for path in [
        "status",
        "batches",
        "schedules",
        "rules",
        "overview",
        "rules/nothing/history",
        "search?text=ab",
        "batches/nothing/report",
        "batches/nothing/unlisted",
        "workers",
        "routes",
        "events",
        "openapi.json",
        MISSING_BATCH,
    ] {
        for host in ["sync.example.com", "SYNC.example.com:443"] {
            assert_eq!(ask(api(path, host)).await, 401, "{path} by {host}");
        }
        for header in ["forwarded", "x-forwarded-for", "x-forwarded-host", "x-real-ip"] {
            let request = served.request(Method::GET, path).header(header, "203.0.113.7");
            assert_eq!(ask(request).await, 401, "{path} with {header}");
        }
        assert_eq!(ask(api(path, "evil.example")).await, 421, "{path}");
        let known = if path == MISSING_BATCH || path.contains("nothing") { 404 } else { 200 };
        assert_eq!(ask(api(path, "sync.example.com").bearer_auth(&served.token)).await, known, "{path} with the token");
        assert_eq!(ask(api(path, "localhost")).await, known, "{path} from this machine");
    }
    let refused = api("status", "sync.example.com").send().await.unwrap();
    assert_eq!(refused.headers()["www-authenticate"], "Bearer realm=\"imgsync\"");
    let pause = format!("{MISSING_BATCH}/pause");
    let post = served.request(Method::POST, &pause).header("host", "sync.example.com");
    assert_eq!(ask(post).await, 401);

    // The page holds no data; health says nothing; metrics name registries.
    for (path, by_proxy) in
        [("/", 200), ("/dashboard/app.js", 200), ("/healthz", 200), ("/readyz", 200), ("/metrics", 401)]
    {
        let by = async |host: &str| ask(served.request_outside_api(path).header("host", host)).await;
        assert_eq!(by("sync.example.com").await, by_proxy, "{path}");
        assert_eq!(by("127.0.0.1:9").await, 200, "{path}");
        let foreign = if path == "/" || path.starts_with("/dashboard/") { 200 } else { 421 };
        assert_eq!(by("evil.example").await, foreign, "{path}");
        assert_eq!(by("10.9.8.7:8080").await, foreign, "{path}");
    }
    let metrics = served.request_outside_api("/metrics").header("host", "sync.example.com").bearer_auth(&served.token);
    assert_eq!(ask(metrics).await, 200);
    served.stop().await.assert_code(0);

    // In Kubernetes, probes use pod addresses and service names.
    fixture.write(&format!("serve: {{hosts: [sync.example.com]}}\n{}", fixture.config(&[("a", "")])));
    let served = ServeProcess::start(&fixture.program, &["--listen", "0.0.0.0:0"]).await;
    for path in ["/healthz", "/readyz", "/metrics"] {
        for host in ["10.9.8.7:8080", "imgsync.mirror.svc.cluster.local"] {
            assert_eq!(ask(served.request_outside_api(path).header("host", host)).await, 200, "{path} by {host}");
        }
    }
    assert_eq!(ask(served.request_outside_api("/metrics").header("host", "sync.example.com")).await, 401);
}

#[tokio::test]
async fn off_loopback_reading_needs_the_configured_token_too_and_the_dashboard_holds_nothing() {
    let fixture = ServeFixture::new(&["a"], 1).await;
    let token = "correct-horse-battery";
    fixture.write(&format!("serve: {{listen: '0.0.0.0:0', token: {token}}}\n{}", fixture.config(&[("a", "")])));
    let served = ServeProcess::start(&fixture.program, &["--listen", "0.0.0.0:0"]).await;
    assert!(!served.running.stderr().contains(token));
    for path in ["status", "batches", "events", "openapi.json", MISSING_BATCH] {
        let (status, value) = serve_process::send_json(served.request(Method::GET, path)).await;
        assert_eq!(status, 401, "{path}: {value}");
    }
    let (status, _) = serve_process::send_json(served.request(Method::GET, "batches").bearer_auth(token)).await;
    assert_eq!(status, 200);
    // An environment variable overrides the file.
    served.stop().await.assert_code(0);
    let other = fixture.program.again().env("IMGSYNC_TOKEN", "another-horse-battery");
    let served = ServeProcess::start(&other, &["--listen", "0.0.0.0:0"]).await;
    let asked =
        async |token: &str| serve_process::send_json(served.request(Method::GET, "batches").bearer_auth(token)).await.0;
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
    let weak = fixture.program.again().env("IMGSYNC_TOKEN", "hush").args(["serve", "--listen", "127.0.0.1:0"]);
    served.stop().await.assert_code(0);
    let weak = weak.run().await.assert_code(2);
    assert!(weak.stderr.contains("can be guessed"), "{}", weak.stderr);
}

#[tokio::test]
async fn bodies_are_small_and_what_they_are_said_to_be() {
    let fixture = ServeFixture::new(&["a"], 1).await;
    let served = fixture.serve(&[("a", "")]).await;
    let (_, schedules) = served.get("schedules").await;
    let start = format!("schedules/{}/start", schedules["schedules"][0]["rule"].as_str().unwrap());
    let send_to = async |path: &str, kind: &str, body: Vec<u8>| {
        let request = served.request(Method::POST, path).bearer_auth(&served.token);
        serve_process::send_json(request.header("content-type", kind).body(body)).await.0
    };
    let send = async |kind: &str, body: Vec<u8>| send_to("batches/nothing/pause", kind, body).await;
    assert_eq!(send("application/json", vec![b' '; 64 << 20]).await, 413);
    assert_eq!(send("application/json", vec![b' '; 17 << 10]).await, 413);
    assert_eq!(send("text/plain", b"{}".to_vec()).await, 415);
    assert_eq!(send("application/x-www-form-urlencoded", b"a=b".to_vec()).await, 415);
    assert_eq!(send("application/json", b"{\"force\": true}".to_vec()).await, 400);
    assert_eq!(send("application/json", b"{".to_vec()).await, 400);
    assert_eq!(send("application/json", [b"[".repeat(10_000), b"]".repeat(6_000)].concat()).await, 400);
    assert_eq!(send("application/json; charset=utf-8", b"{}".to_vec()).await, 404, "the body is fine");
    // A start ignores its body, which is limited all the same.
    assert_eq!(send_to(&start, "application/json", vec![b' '; 64 << 20]).await, 413);
    assert_eq!(fixture.source.total(), 0, "nothing was begun by any of it");
    assert_eq!(send_to(&start, "application/json; charset=utf-8", b"{}".to_vec()).await, 202);
    let nowhere = served.get("nothing").await;
    assert_eq!(nowhere.0, 404);
    assert_eq!(nowhere.1["error"]["kind"], "not_found");
    assert_eq!(served.post("batches", &json!({})).await.0, 405);
}
