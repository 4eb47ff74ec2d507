//! Tokens, passwords and certificates grant the intended access and nothing else.

use std::sync::Arc;

use crate::client;
use imgsync_tests::fault::{Bearer, FaultRegistry, RefreshPolicy, RequestType, TokenField};
use imgsync_tests::images;
use imgsync_tests::skopeo::Skopeo;
use imgsync_tests::tls::Authority;

#[tokio::test]
async fn tokens_of_the_fault_registry_let_skopeo_in() {
    let source = FaultRegistry::builder().bearer(Bearer::anonymous()).start().await;
    let target = FaultRegistry::builder().bearer(Bearer::user("amy", "secret")).start().await;
    let image = images::single("tokens");
    source.push("app", "1", &image);
    let (from, to) = (format!("{}/app:1", source.host()), format!("{}/app:1", target.host()));
    assert!(Skopeo::new().copy(&from, &to).await.is_err());
    Skopeo::new().target_credentials("amy", "secret").copy(&from, &to).await.unwrap();
    target.assert_holds("app", "1", &image);
    assert!(target.count(RequestType::Token) > 0);
    assert!(target.total() < target.total_with_pings_and_tokens());
}

#[tokio::test]
async fn tls_registries_speak_http2_to_who_trusts_their_authority() {
    let authority = Arc::new(Authority::new());
    let registry = FaultRegistry::builder().tls(Arc::clone(&authority)).start().await;
    imgsync_tests::tls::install_provider();
    let root = reqwest::Certificate::from_pem(authority.pem().as_bytes()).unwrap();
    let trusting = reqwest::Client::builder().no_proxy().tls_certs_only([root]).build().unwrap();
    assert!(trusting.get(format!("{}/v2/", registry.url())).send().await.unwrap().status().is_success());
    assert!(registry.requests()[0].http2);
    assert!(client().get(format!("{}/v2/", registry.url())).send().await.is_err());
    Skopeo::new().inspect_raw(&format!("{}/app:1", registry.host())).await.unwrap_err();
    assert_eq!(registry.count(RequestType::ManifestGet), 1);
}

#[tokio::test]
async fn a_client_certificate_is_demanded() {
    let authority = Arc::new(Authority::new());
    let builder = FaultRegistry::builder().tls(Arc::clone(&authority)).demand_client_certificate();
    let registry = builder.http1_only().start().await;
    imgsync_tests::tls::install_provider();
    let ask = async |identity: Option<reqwest::Identity>| {
        let root = reqwest::Certificate::from_pem(authority.pem().as_bytes()).unwrap();
        let builder = reqwest::Client::builder().no_proxy().tls_certs_only([root]);
        let builder = identity.into_iter().fold(builder, reqwest::ClientBuilder::identity);
        builder.build().unwrap().get(format!("{}/v2/", registry.url())).send().await
    };
    assert!(ask(None).await.is_err());
    let identity = authority.client();
    let pem = format!("{}{}", identity.certificate_pem, identity.key_pem);
    let identity = reqwest::Identity::from_pem(pem.as_bytes()).unwrap();
    assert_eq!(ask(Some(identity)).await.unwrap().status(), 200);
    assert!(!registry.requests()[0].http2);
}

#[tokio::test]
async fn tokens_expire_and_identity_tokens_are_taken() {
    let refresh = RefreshPolicy::Accept("identity".to_owned());
    let bearer = Bearer::user("amy", "secret").refresh(refresh).field(TokenField::AccessToken);
    let registry = FaultRegistry::builder().bearer(bearer).start().await;
    registry.push("app", "1", &images::single("expire"));
    let (http, url) = (client(), format!("{}/v2/app/manifests/1", registry.url()));
    let challenge = http.get(&url).send().await.unwrap().headers()["www-authenticate"].to_str().unwrap().to_owned();
    assert!(challenge.ends_with(",scope=\"repository:app:pull\""), "{challenge}");
    let form = format!(
        "grant_type=refresh_token&refresh_token=identity&service={}&scope=repository:app:pull",
        registry.host()
    );
    let token = http.post(registry.token_url()).body(form).send().await.unwrap();
    let token = token.json::<serde_json::Value>().await.unwrap()["access_token"].as_str().unwrap().to_owned();
    let status = async |url: &str| http.get(url).bearer_auth(&token).send().await.unwrap().status().as_u16();
    assert_eq!(status(&url).await, 200);
    assert_eq!(status(&format!("{}/v2/other/manifests/1", registry.url())).await, 401);
    registry.expire_tokens();
    assert_eq!(status(&url).await, 401);
    assert_eq!(http.get(registry.token_url()).basic_auth("amy", Some("wrong")).send().await.unwrap().status(), 401);
}

#[tokio::test]
async fn one_registry_gives_tokens_for_another() {
    let tokens = FaultRegistry::builder().bearer(Bearer::user("amy", "secret")).start().await;
    let bearer = Bearer::user("amy", "secret").realm(&tokens.token_url()).service("the registry");
    let registry = FaultRegistry::builder().bearer(bearer).start().await;
    let image = images::single("elsewhere");
    registry.push("app", "1", &image);
    let skopeo = Skopeo::new().source_credentials("amy", "secret");
    let raw = skopeo.inspect_raw(&format!("{}/app:1", registry.host())).await.unwrap();
    assert_eq!(raw, image.root_manifest().bytes);
    assert_eq!((registry.count(RequestType::Token), tokens.count(RequestType::Token)), (0, 1));
    assert_eq!(tokens.requests()[0].parameter("service").unwrap(), "the registry");
}
