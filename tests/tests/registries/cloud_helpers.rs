//! Credential helpers of the clouds: stand-ins with the same names, calls and responses, found through the entries that
//! the clouds' own commands write into docker's config.json.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::time::Duration;

use imgsync_tests::fault::{
    Bearer, FaultAction, FaultRegistry, FaultRegistryBuilder, Quirks, RefreshPolicy, RequestType, TokenField,
};
use imgsync_tests::images;
use imgsync_tests::program::Imgsync;
use imgsync_tests::registry_profiles::{self, ProfileLogin, RegistryProfile, RunningProfile};
use serde_json::{Value, json};

fn named(name: &str) -> RegistryProfile {
    registry_profiles::all().into_iter().find(|profile| profile.name == name).expect("there is such a one")
}

/// Returns an Artifact Registry that takes two access tokens, one after the other, as the password of a user.
pub(crate) fn artifact_registry(user: &'static str) -> FaultRegistryBuilder {
    let host = "europe-docker.pkg.dev";
    let bearer = Bearer::user(user, "ya29.first").field(TokenField::Both).service(host);
    FaultRegistry::builder().bearer(bearer).google().quirks(Quirks {
        host: Some(host),
        token_path: Some("/v2/token"),
        realm: Some("https://europe-docker.pkg.dev/v2/token"),
        next_password: Some("ya29.next"),
        multi_scope_status: Some(403),
        ..Quirks::default()
    })
}

/// Writes `docker-credential-NAME` into the folder that is the program's PATH. It knows one host, records each call,
/// and prints the secret from a file.
fn helper(program: &Imgsync, name: &str, host: &str, answer: &str) {
    let work = program.work_dir();
    let script = format!(
        "#!/bin/sh\n[ \"$1\" = get ] || exit 1\nasked=$(cat)\necho \"$asked\" >> '{work}/asked'\n\
         case \"$asked\" in *{host}*) ;; *) echo 'credentials not found in native keychain'; exit 1;; esac\n\
         secret=$(cat '{work}/secret')\necho 'time=\"now\" level=info msg=\"checking\"' >&2\ncat <<END\n{answer}\nEND\n",
        work = work.display()
    );
    let file = program.file(&format!("docker-credential-{name}"), script);
    fs::set_permissions(file, fs::Permissions::from_mode(0o755)).unwrap();
}

fn asked(program: &Imgsync) -> usize {
    fs::read_to_string(program.work_dir().join("asked")).unwrap_or_default().lines().count()
}

/// Copies an image to a cloud's registry, and then another one whose credentials expire after the first request to the
/// target and before anything is written.
async fn push(played: &RunningProfile, program: &Imgsync, secrets: [&str; 2], config: &Value) {
    let source = FaultRegistry::start().await;
    let image = images::multi_platform("clouds");
    source.push("a", "1", &image);
    program.file("secret", secrets[0]);
    program.write_docker_json(config);
    let sync = program.again().args(["sync", &format!("{}/a:1", source.host()), &played.reference("1"), "--json"]);
    sync.run().await.assert_code(0);
    played.registry.assert_holds(played.profile.repository, "1", &image);
    assert_eq!(asked(program), 1, "one answer is used for all");

    let other = images::multi_platform("clouds-later");
    source.push("a", "2", &other);
    // Long enough for the first credentials to count as old.
    source.on(RequestType::ManifestGet).act(FaultAction::Delay(Duration::from_millis(1500)));
    source.clear_requests();
    let sync = program.again().args(["sync", &format!("{}/a:2", source.host()), &played.reference("2"), "--json"]);
    let mut running = sync.spawn();
    source.wait_until(|source| source.count(RequestType::ManifestGet) > 0, Duration::from_secs(30)).await;
    program.file("secret", secrets[1]);
    played.registry.expire_tokens();
    running.wait().await.assert_code(0);
    played.registry.assert_holds(played.profile.repository, "2", &other);
    assert_eq!(asked(program), 3, "asked anew when it had run out");
}

#[tokio::test]
async fn ecr_login_gives_passwords_of_twelve_hours() {
    let mut profile = named("ECR");
    profile.login = ProfileLogin::None;
    let running = profile.start().await;
    let program = running.configure(Imgsync::new());
    let host = running.profile.registry;
    let answer = format!(r#"{{"ServerURL":"https://{host}","Username":"AWS","Secret":"$secret"}}"#);
    helper(&program, "ecr-login", host, &answer);
    push(&running, &program, ["twelve-hours", "twelve-more"], &json!({"credsStore": "ecr-login"})).await;
}

#[tokio::test]
async fn gcloud_gives_access_tokens_of_an_hour() {
    let mut profile = named("GCR, Artifact Registry");
    profile.login = ProfileLogin::None;
    profile.builder = || artifact_registry("_dcgcloud_token");
    let running = profile.start().await;
    let program = running.configure(Imgsync::new());
    let host = running.profile.registry;
    helper(&program, "gcloud", host, "{\n  \"Secret\": \"$secret\",\n  \"Username\": \"_dcgcloud_token\"\n}");
    let config = json!({"credHelpers": {"gcr.io": "gcloud", "europe-docker.pkg.dev": "gcloud"}});
    push(&running, &program, ["ya29.first", "ya29.next"], &config).await;
}

#[tokio::test]
async fn acr_env_gives_refresh_tokens_of_three_hours_under_the_name_of_nobody() {
    for user in ["<token>", "00000000-0000-0000-0000-000000000000"] {
        let mut profile = named("ACR");
        profile.login = ProfileLogin::None;
        profile.builder = || {
            let host = "team.azurecr.io";
            // By POST if marked as a refresh token; by Basic under the user of zeros.
            let bearer = Bearer::user("00000000-0000-0000-0000-000000000000", "refresh-1").service(host);
            let bearer = bearer.refresh(RefreshPolicy::Accept("refresh-1".to_owned())).field(TokenField::AccessToken);
            FaultRegistry::builder().bearer(bearer).relative_locations().quirks(Quirks {
                host: Some(host),
                token_path: Some("/oauth2/token"),
                realm: Some("https://team.azurecr.io/oauth2/token"),
                next_password: Some("refresh-2"),
                multi_scope_status: Some(400),
                ..Quirks::default()
            })
        };
        let running = profile.start().await;
        let program = running.configure(Imgsync::new());
        let host = running.profile.registry;
        helper(&program, "acr-env", host, &format!("{{\"Username\":\"{user}\",\"Secret\":\"$secret\"}}"));
        let config = json!({"credHelpers": {host: "acr-env"}});
        push(&running, &program, ["refresh-1", "refresh-2"], &config).await;
        let posts =
            running.registry.count_where(|request| request.kind == RequestType::Token && request.method == "POST");
        assert_eq!(posts > 0, user == "<token>", "{}", running.registry.describe_requests());
    }
}

#[tokio::test]
async fn a_wrong_password_of_a_helper_is_asked_for_no_more_often_than_once_a_second() {
    let source = FaultRegistry::start().await;
    let mut profile = named("GCR, Artifact Registry");
    profile.login = ProfileLogin::None;
    let running = profile.start().await;
    let program = running.configure(Imgsync::new());
    let host = running.profile.registry;
    helper(&program, "gcloud", host, r#"{"Secret": "$secret", "Username": "_dcgcloud_token"}"#);
    program.file("secret", "wrong");
    program.write_docker_json(&json!({"credHelpers": {host: "gcloud"}}));
    let image = images::multi_platform("wrong");
    source.push("a", "1", &image);
    let sync = program.again().args(["sync", &format!("{}/a:1", source.host()), &running.reference("1"), "--json"]);
    let output = sync.run().await.assert_code(1);
    assert_eq!(output.json()["kind"], "denied", "{output:?}");
    assert!(output.stderr.contains("check the user and password"), "{}", output.stderr);
    let most = 2 + output.elapsed.as_secs() as usize;
    assert!(asked(&program) <= most, "{} times in {:?}", asked(&program), output.elapsed);
}
