//! `credentials: auto` and `none`: when the identity is used, and when images are read anonymously.

use std::time::Duration;

use imgsync_tests::fault::{
    Bearer, FaultAction, FaultRegistry, FaultRegistryBuilder, Quirks, RequestMatcher, RequestType, TokenField,
};
use imgsync_tests::program::Imgsync;
use imgsync_tests::registry_profiles::RegistryProfile;
use serde_json::json;

use super::{
    ACCESS_TOKEN, Cloud, SERVICE_ACCOUNT, SERVICE_ACCOUNT_KEY, ecr, google, key_file, metadata_server,
    passwords_of_ecr, pod_identity,
};

#[tokio::test]
async fn auto_uses_a_stored_login_before_the_identity() {
    let cloud = Cloud::start(RegistryProfile { settings: "", ..google() }).await;
    let host = cloud.registry.profile.registry;
    cloud.program.write_docker_config(&[(host, "oauth2accesstoken", ACCESS_TOKEN)]);
    cloud.sync(&metadata_server(&cloud)).run().await.assert_code(0);
    assert_eq!(cloud.services.paths().len(), 0, "a stored login goes first");
    cloud.assert_arrived();

    let cloud = Cloud::start(RegistryProfile { settings: "", ..google() }).await;
    cloud.sync(&metadata_server(&cloud)).run().await.assert_code(0);
    assert_eq!(cloud.services.paths().len(), 1);
    cloud.assert_arrived();

    let cloud = Cloud::start(RegistryProfile { settings: "", ..google() }).await;
    let words = ["no credentials for europe-docker.pkg.dev were found", "this machine has no identity of `gcp`"];
    cloud.assert_denied(&[("NO_GCE_CHECK", "true".to_owned())], &words).await;
}

/// A registry of Google's that everybody may read, and that knows another user.
fn public() -> FaultRegistryBuilder {
    let host = "europe-docker.pkg.dev";
    let bearer = Bearer::user("oauth2accesstoken", "another").field(TokenField::Both).service(host);
    FaultRegistry::builder().bearer(bearer.anonymous_pull(true)).google().quirks(Quirks {
        host: Some(host),
        token_path: Some("/v2/token"),
        realm: Some("https://europe-docker.pkg.dev/v2/token"),
        ..Quirks::default()
    })
}

/// Starts a cloud with such a registry, which holds two images.
async fn start_public(settings: &'static str) -> Cloud {
    let cloud = Cloud::start(RegistryProfile { settings, builder: public, ..google() }).await;
    for repository in [cloud.registry.profile.repository, cloud.registry.profile.other_repository] {
        cloud.registry.registry.push(repository, "1", &cloud.image);
    }
    cloud
}

/// Returns a run that pulls both images.
fn pull(cloud: &Cloud, variables: &[(&str, String)]) -> Imgsync {
    let (host, to) = (cloud.registry.profile.registry, cloud.source.host());
    let rules = [cloud.registry.profile.repository, cloud.registry.profile.other_repository]
        .map(|repository| format!("- {{from: {host}/{repository}, to: {to}/m, naming: keep}}\n"));
    let program = variables.iter().fold(cloud.program.again(), |program, (name, value)| program.env(name, value));
    program.file("rules.yaml", format!("rules:\n{}", rules.concat()));
    program.args(["run", "--config", "rules.yaml", "--json", "--attempts", "1", "--concurrency", "1"])
}

/// Returns a copy of one of the images.
fn pull_one(cloud: &Cloud, variables: &[(&str, String)]) -> Imgsync {
    let program = variables.iter().fold(cloud.program.again(), |program, (name, value)| program.env(name, value));
    let to = format!("{}/b:1", cloud.source.host());
    program.args(["sync", &cloud.registry.reference("1"), &to, "--json", "--retry-delay", "10ms"])
}

fn assert_pulled(cloud: &Cloud) {
    for repository in [cloud.registry.profile.repository, cloud.registry.profile.other_repository] {
        cloud.source.assert_holds(&format!("m/{repository}"), "1", &cloud.image);
    }
}

#[tokio::test]
async fn auto_pulls_anonymously_if_the_identity_is_refused() {
    let cloud = start_public("").await;
    pull(&cloud, &metadata_server(&cloud)).run().await.assert_code(0);
    assert_pulled(&cloud);
    assert!(!cloud.services.paths().is_empty());

    let cloud = start_public("credentials: gcp").await;
    pull_one(&cloud, &metadata_server(&cloud)).run().await.assert_code(1);
}

#[tokio::test]
async fn auto_pulls_anonymously_also_if_each_login_gives_another_token_and_logs_in_again_once() {
    let cloud = start_public("").await;
    cloud.services.grant(|grants| grants.every_token_differs = true);
    // When the registry refuses the first token, the login is old enough for another one.
    cloud.registry.registry.on(RequestType::Token).act(FaultAction::Delay(Duration::from_millis(1500)));
    pull_one(&cloud, &key_file(&cloud)).run().await.assert_code(0);
    cloud.source.assert_holds("b", "1", &cloud.image);
    assert_eq!(cloud.services.paths(), ["POST /token 200", "POST /token 200"]);

    pull(&cloud, &key_file(&cloud)).run().await.assert_code(0);
    assert_pulled(&cloud);
}

/// Returns the variables of a key whose token service is not there.
fn key_without_service(cloud: &Cloud) -> [(&'static str, String); 1] {
    let key = json!({
        "type": "service_account", "client_email": SERVICE_ACCOUNT, "private_key_id": "key-1",
        "private_key": SERVICE_ACCOUNT_KEY, "token_uri": "http://127.0.0.1:1/token",
    });
    let file = cloud.program.file("key.json", key.to_string());
    [("GOOGLE_APPLICATION_CREDENTIALS", file.display().to_string())]
}

#[tokio::test]
async fn an_outage_of_a_token_service_keeps_from_pushing_and_not_from_pulling_what_is_public() {
    let cloud = start_public("").await;
    let variables = key_without_service(&cloud);
    let output = pull(&cloud, &variables).run().await.assert_code(0);
    assert_pulled(&cloud);
    let words = "http://127.0.0.1:1 did not answer";
    let warnings: Vec<&str> = output.stderr.lines().filter(|line| line.contains("are read anonymously")).collect();
    assert!(warnings.len() == 1 && warnings[0].contains(words), "{}", output.stderr);

    cloud.assert_fails("unreachable", &variables, &[words]).await;
}

#[tokio::test]
async fn a_private_image_fails_in_an_outage_with_the_reason_and_not_for_good() {
    let cloud = start_public("").await;
    // Everybody gets a token there, which does not permit to read.
    let with_token = RequestMatcher::kinds(&[RequestType::ManifestHead, RequestType::ManifestGet])
        .when(|asked| asked.header("authorization").is_some());
    cloud.registry.registry.on(with_token).always().act(FaultAction::error(403, "DENIED"));
    let output = pull_one(&cloud, &key_without_service(&cloud)).run().await.assert_code(3);
    assert_eq!(output.json()["kind"], "unreachable", "{output:?}");
    assert!(output.stderr.contains("were found") && output.stderr.contains("did not answer"), "{}", output.stderr);
}

#[tokio::test]
async fn auto_logs_in_at_a_mirror_in_a_cloud() {
    let cloud = Cloud::start(RegistryProfile { settings: "", ..ecr() }).await;
    cloud.registry.registry.push(cloud.registry.profile.repository, "1", &cloud.image);
    let target = FaultRegistry::start().await;
    let (host, mirror) = (FaultRegistry::start().await, cloud.registry.profile.registry);
    // `mirror/app` there is `app` here.
    let settings = format!("registries:\n  \"{}\": {{mirrors: [\"https://{mirror}/v2/mirror\"]}}\n", host.host());
    cloud.program.file("imgsync.yaml", settings);
    let variables = pod_identity(&cloud);
    let program = variables.iter().fold(cloud.program.again(), |program, (name, value)| program.env(name, value));
    let (from, to) = (format!("{}/app:1", host.host()), format!("{}/b:1", target.host()));
    let output = program.args(["sync", &from, &to, "--json"]).run().await.assert_code(0);
    target.assert_holds("b", "1", &cloud.image);
    assert_eq!(passwords_of_ecr(&cloud), 1, "{}", output.stderr);
    assert_eq!(host.count(RequestType::ManifestGet), 0, "{}", host.describe_requests());
}

#[tokio::test]
async fn none_sends_neither_a_stored_login_nor_the_identity() {
    let cloud = Cloud::start(RegistryProfile { settings: "credentials: none", ..google() }).await;
    let host = cloud.registry.profile.registry;
    cloud.program.write_docker_config(&[(host, "oauth2accesstoken", ACCESS_TOKEN)]);
    cloud.assert_denied(&metadata_server(&cloud), &["`credentials: none` of europe-docker.pkg.dev"]).await;
    assert_eq!(cloud.services.paths().len(), 0);
}
