//! Tokens: what is asked for, how long it is used, and what happens when it runs out in the middle of things.

use std::time::Duration;

use imgsync_tests::fault::{Action, Bearer, FaultRegistry, Kind, Match, Refresh, TokenField};
use imgsync_tests::images;
use imgsync_tests::program::Imgsync;

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
        assert_eq!((source.count(Kind::Token), target.count(Kind::Token)), (1, 1));
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
    assert_eq!(source.count(Kind::Token), 1);
}

#[tokio::test]
async fn a_token_that_is_revoked_in_the_middle_is_replaced_and_the_copy_goes_on() {
    let (source, target) = tokio::join!(
        FaultRegistry::builder().bearer(Bearer::user("me", "secret").service("registry")).start(),
        FaultRegistry::builder().bearer(Bearer::user("me", "secret").service("registry")).start()
    );
    let image = images::big("revoked", 8 << 20);
    source.push("a", "1", &image);
    // The upload of the large blob meets a token that no longer holds: the registry answers before it takes a byte.
    let unauthorized = |realm: String| Action::Status {
        code: 401,
        headers: vec![("www-authenticate".into(), format!("Bearer realm=\"{realm}\",service=\"registry\""))],
        body: Default::default(),
    };
    let large = Match::kind(Kind::UploadPut).when(|request| {
        request.header("content-length").and_then(|length| length.parse::<u64>().ok()).is_some_and(|n| n > 1 << 20)
    });
    let met = target.on(large).act(unauthorized(target.token_url()));
    source.on(Kind::BlobGet).skip(1).act(unauthorized(source.token_url()));
    sync(&source, &target).await.assert_code(0);
    target.assert_holds("b", "1", &image);
    assert_eq!(met.hits(), 1);
    assert_eq!(target.open_uploads(), 0, "{}", target.describe_requests());
    assert!(target.count(Kind::Token) >= 2 && source.count(Kind::Token) >= 2);
}

#[tokio::test]
async fn a_token_that_lives_a_second_is_renewed_as_often_as_needed() {
    let ttl = Duration::from_secs(1);
    let (source, target) = tokio::join!(
        FaultRegistry::builder().bearer(Bearer::user("me", "secret").ttl(ttl)).start(),
        FaultRegistry::builder().bearer(Bearer::user("me", "secret").ttl(ttl)).start()
    );
    let image = images::Image::single("short-lived").layers(4, 2 << 20).build();
    source.push("a", "1", &image);
    source.on(Kind::BlobGet).always().act(Action::Throttle { bytes_per_second: 1 << 20 });
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
    source.on(Kind::BlobGet).always().act(Action::Throttle { bytes_per_second: 200 << 10 });
    let (from, to) = (format!("{}/a:1", source.host()), format!("{}/b:1", target.host()));
    // Slow is not still: bytes come, if few.
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
    for refresh in [Refresh::Accept("identity".into()), Refresh::Refuse(status(404)), Refresh::Refuse(status(405))] {
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
