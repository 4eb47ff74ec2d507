//! Tokens: requested scopes, reuse, and expiry during a copy.

use std::time::Duration;

use base64::Engine as _;
use imgsync_tests::fault::{
    Bearer, FaultAction, FaultRegistry, RefreshPolicy, RequestMatcher, RequestType, TokenField,
};
use imgsync_tests::images;
use imgsync_tests::program::Imgsync;
use serde_json::{Value, json};

async fn sync(source: &FaultRegistry, target: &FaultRegistry) -> imgsync_tests::program::Output {
    let (from, to) = (format!("{}/a:1", source.host()), format!("{}/b:1", target.host()));
    let sync = Imgsync::new().args(["sync", &from, &to, "--retry-delay", "10ms"]);
    sync.write_docker_config(&[(&source.host(), "me", "secret"), (&target.host(), "me", "secret")]);
    sync.run().await
}

#[tokio::test]
async fn tokens_are_read_under_either_name_and_without_an_expiry() {
    for bearer in [
        Bearer::user("me", "secret").field(TokenField::AccessToken),
        Bearer::user("me", "secret").field(TokenField::Token).without_expiry(),
    ] {
        let (source, target) = tokio::join!(
            FaultRegistry::builder().bearer(bearer).start(),
            FaultRegistry::builder().bearer(Bearer::user("me", "secret")).start()
        );
        let image = images::multi_platform("tokens");
        source.push("a", "1", &image);
        sync(&source, &target).await.assert_code(0);
        target.assert_holds("b", "1", &image);
        assert_eq!((source.count(RequestType::Token), target.count(RequestType::Token)), (1, 1));
    }
}

#[tokio::test]
async fn who_has_no_credentials_gets_an_anonymous_token() {
    let (source, target) =
        tokio::join!(FaultRegistry::builder().bearer(Bearer::anonymous()).start(), FaultRegistry::start());
    let image = images::multi_platform("anonymous");
    source.push("a", "1", &image);
    let (from, to) = (format!("{}/a:1", source.host()), format!("{}/b:1", target.host()));
    Imgsync::new().args(["sync", &from, &to]).run().await.assert_code(0);
    target.assert_holds("b", "1", &image);
    assert_eq!(source.count(RequestType::Token), 1);
}

#[tokio::test]
async fn a_token_that_is_revoked_in_the_middle_is_replaced_and_the_copy_goes_on() {
    let (source, target) = tokio::join!(
        FaultRegistry::builder().bearer(Bearer::user("me", "secret").service("registry")).start(),
        FaultRegistry::builder().bearer(Bearer::user("me", "secret").service("registry")).start()
    );
    let image = images::big("revoked", 8 << 20);
    source.push("a", "1", &image);
    // The upload of the large blob meets an expired token: the registry responds before it reads a byte.
    let unauthorized = |realm: String| FaultAction::Status {
        code: 401,
        headers: vec![("www-authenticate".into(), format!("Bearer realm=\"{realm}\",service=\"registry\""))],
        body: Default::default(),
    };
    let large = RequestMatcher::kind(RequestType::UploadPut).when(|request| {
        request.header("content-length").and_then(|length| length.parse::<u64>().ok()).is_some_and(|n| n > 1 << 20)
    });
    let met = target.on(large).act(unauthorized(target.token_url()));
    source.on(RequestType::BlobGet).skip(1).act(unauthorized(source.token_url()));
    sync(&source, &target).await.assert_code(0);
    target.assert_holds("b", "1", &image);
    assert_eq!(met.hits(), 1);
    assert_eq!(target.open_uploads(), 0, "{}", target.describe_requests());
    assert!(target.count(RequestType::Token) >= 2 && source.count(RequestType::Token) >= 2);
}

#[tokio::test]
async fn a_token_that_lives_a_second_is_renewed_as_often_as_needed() {
    let ttl = Duration::from_secs(1);
    let (source, target) = tokio::join!(
        FaultRegistry::builder().bearer(Bearer::user("me", "secret").ttl(ttl)).start(),
        FaultRegistry::builder().bearer(Bearer::user("me", "secret").ttl(ttl)).start()
    );
    let image = images::TestImage::single("short-lived").layers(4, 2 << 20).build();
    source.push("a", "1", &image);
    source.on(RequestType::BlobGet).always().act(FaultAction::Throttle { bytes_per_second: 1 << 20 });
    sync(&source, &target).await.assert_code(0);
    target.assert_holds("b", "1", &image);
}

#[tokio::test]
async fn a_token_of_five_seconds_outlasts_an_upload_of_thirty_from_a_source_of_200_kib_a_second() {
    let ttl = Duration::from_secs(5);
    let (source, target) = tokio::join!(
        FaultRegistry::builder().bearer(Bearer::user("me", "secret").ttl(ttl)).start(),
        FaultRegistry::builder().bearer(Bearer::user("me", "secret").ttl(ttl)).start()
    );
    let image = images::big("thirty-seconds", 6 << 20);
    source.push("a", "1", &image);
    source.on(RequestType::BlobGet).always().act(FaultAction::Throttle { bytes_per_second: 200 << 10 });
    let (from, to) = (format!("{}/a:1", source.host()), format!("{}/b:1", target.host()));
    // Slow is not stalled: bytes keep coming.
    let sync = Imgsync::new().args(["sync", &from, &to, "--json", "--attempts", "1", "--stall-timeout", "3s"]);
    sync.write_docker_config(&[(&source.host(), "me", "secret"), (&target.host(), "me", "secret")]);
    let output = sync.run().await.assert_code(0);
    target.assert_holds("b", "1", &image);
    assert!(output.elapsed > Duration::from_secs(25), "the upload was as long as it was to be: {:?}", output.elapsed);
    assert_eq!(output.json()["traffic"]["source"]["retries"], 0);
    assert_eq!(target.open_uploads(), 0);
}

#[tokio::test]
async fn an_identity_token_goes_by_post_and_where_that_is_unknown_by_get() {
    for refresh in [
        RefreshPolicy::Accept("identity".into()),
        RefreshPolicy::Refuse(status(404)),
        RefreshPolicy::Refuse(status(405)),
    ] {
        let source =
            FaultRegistry::builder().bearer(Bearer::user("<token>", "identity").refresh(refresh)).start().await;
        let target = FaultRegistry::start().await;
        let image = images::single("identity");
        source.push("a", "1", &image);
        let (from, to) = (format!("{}/a:1", source.host()), format!("{}/b:1", target.host()));
        let sync = Imgsync::new().args(["sync", &from, &to]);
        sync.write_docker_json(&serde_json::json!({"auths": {source.host(): {"identitytoken": "identity"}}}));
        sync.run().await.assert_code(0);
        target.assert_holds("b", "1", &image);
    }
}

#[tokio::test]
async fn wrong_credentials_end_with_one_clear_error_and_no_secret_in_it() {
    let source = FaultRegistry::builder().bearer(Bearer::user("me", "other").anonymous_pull(false)).start().await;
    let target = FaultRegistry::start().await;
    source.push("a", "1", &images::single("refused"));
    let output = sync(&source, &target).await.assert_code(1);
    assert!(output.stderr.contains("check the user and password"), "{}", output.stderr);
    assert!(!output.stderr.contains("secret"), "{}", output.stderr);
    assert_eq!(output.stderr.matches("error:").count(), 1, "{}", output.stderr);
    assert_eq!(target.tags("b").len(), 0);
}

#[tokio::test]
async fn no_credentials_at_all_is_said_with_how_to_log_in() {
    let source = FaultRegistry::builder().basic("me", "secret").start().await;
    let target = FaultRegistry::start().await;
    source.push("a", "1", &images::single("nobody"));
    let (from, to) = (format!("{}/a:1", source.host()), format!("{}/b:1", target.host()));
    let output = Imgsync::new().args(["sync", &from, &to]).run().await.assert_code(1);
    assert!(output.stderr.contains(&format!("docker login {}", source.host())), "{}", output.stderr);
}

fn status(code: u16) -> axum::http::StatusCode {
    axum::http::StatusCode::from_u16(code).expect("a status")
}

#[tokio::test]
async fn every_shape_of_an_entry_in_the_files_of_docker_and_podman_logs_in() {
    let target = FaultRegistry::builder().basic("me", "pa:ss wörd").start().await;
    let source = FaultRegistry::start().await;
    source.push("a", "1", &images::single("shapes"));
    let host = target.host();
    let encode = |text: &str| base64::engine::general_purpose::STANDARD.encode(text);
    let right = encode("me:pa:ss wörd");
    let (wrong, padded) = (encode("you:no"), encode("me:pa:ss wörd\0\0"));
    let entry = json!({"auth": right});
    let keyed = |key: String| json!({"auths": {key: entry}});
    let held = |entry: Value| json!({"auths": {host.as_str(): entry}});
    let docker = [
        keyed(host.clone()),
        keyed(format!("http://{host}")),
        keyed(format!("https://{host}")),
        keyed(format!("https://{host}/")),
        keyed(format!("https://{host}/v1/")),
        keyed(format!("http://{host}/v2/")),
        keyed(format!("{host}/")),
        keyed(format!("{host}/b")),
        json!({"auths": {format!("{host}/b"): entry, host.as_str(): {"auth": wrong}}}),
        json!({"auths": {format!("{host}/bb"): {"auth": wrong}, host.as_str(): entry}}),
        json!({"auths": {format!("https://{host}"): {"auth": wrong}, host.as_str(): entry}}),
        held(json!({"auth": right.trim_end_matches('=')})),
        held(json!({"auth": right.replace('+', "-").replace('/', "_")})),
        held(json!({"auth": format!(" {right}\n")})),
        held(json!({"auth": padded})),
        held(json!({"username": "me", "password": "pa:ss wörd"})),
        held(json!({"username": "me", "password": "pa:ss wörd", "email": "me@example.com", "auth": ""})),
        held(json!({"auth": right, "username": "you", "password": "no"})),
        held(json!({"auth": right, "serveraddress": "x", "registrytoken": "", "identitytoken": ""})),
        json!({"auths": {host.as_str(): entry}, "HttpHeaders": {"User-Agent": "x"}, "currentContext": "y", "proxies": {}}),
        json!({"auths": {host.as_str(): entry}, "credHelpers": {host.as_str(): ""}, "credsStore": "none-there"}),
        json!({"auths": {host.as_str(): entry, "other.example": null}, "credHelpers": null}),
    ];
    let podman = [keyed(host.clone()), keyed(format!("{host}/b"))];
    assert_eq!(docker.len() + podman.len(), 24);
    let sync = async |file: &str, config: &Value| {
        let (from, to) = (format!("{}/a:1", source.host()), format!("{host}/b:1"));
        let sync = Imgsync::new().args(["sync", &from, &to, "--force"]);
        let file = sync.home_dir().join(file);
        std::fs::create_dir_all(file.parent().unwrap()).unwrap();
        std::fs::write(file, config.to_string()).unwrap();
        let output = sync.run().await;
        assert_eq!(output.code, Some(0), "{config}\n{}", output.stderr);
    };
    for config in &docker {
        sync("docker/config.json", config).await;
    }
    for config in &podman {
        sync("runtime/containers/auth.json", config).await;
    }
}
