//! Roles of Amazon: assumed with other keys, used to create repositories, and at ECR Public.

use imgsync_tests::fault::{Bearer, CreateApi, FaultRegistry, Quirks, RequestType};
use imgsync_tests::registry_profiles::RegistryProfile;

use super::{Cloud, KEYS, assert_no_secret, ecr, instance_role, irsa, named, task_role};

#[tokio::test]
async fn missing_repositories_of_ecr_are_created_with_the_keys_of_the_role() {
    let cloud = Cloud::start(RegistryProfile { settings: "credentials: aws, create: true", ..ecr() }).await;
    cloud.registry.registry.delete_repository(cloud.registry.profile.repository);
    cloud.sync(&irsa(&cloud)).run().await.assert_code(0);
    cloud.assert_arrived();
    assert_eq!(cloud.services.paths(), ["POST / 200"], "the keys of the login create it, too");
}

/// Returns the variables of a profile that assumes a role with the keys of a source.
fn profile(cloud: &Cloud, source: &str, region: &str) -> Vec<(&'static str, String)> {
    let (id, secret, session) = KEYS;
    let text = format!(
        "[profile base]\naws_access_key_id = {id}\naws_secret_access_key = {secret}\naws_session_token = {session}\n\
         [profile mirror]\nrole_arn = arn:aws:iam::123456789012:role/mirror\nexternal_id = mirror-1\n{source}\n"
    );
    vec![
        ("AWS_CONFIG_FILE", cloud.program.file("config", text).display().to_string()),
        ("AWS_PROFILE", "mirror".to_owned()),
        ("AWS_ENDPOINT_URL_STS", cloud.services.url()),
        ("AWS_REGION", region.to_owned()),
    ]
}

#[tokio::test]
async fn a_role_is_assumed_with_a_signature_for_the_region_of_sts_and_not_of_the_registry() {
    let cloud = Cloud::start(ecr()).await;
    let output = cloud.sync(&profile(&cloud, "source_profile = base", "eu-central-1")).run().await.assert_code(0);
    assert_no_secret(&output);
    cloud.assert_arrived();
    assert_eq!(cloud.services.paths(), ["POST / 200"]);
    let elsewhere = profile(&cloud, "source_profile = base", "us-east-1");
    cloud.assert_denied(&elsewhere, &["Credential should be scoped to a valid region"]).await;
    let nobody = profile(&cloud, "source_profile = nobody", "eu-central-1");
    cloud.assert_denied(&nobody, &["there is no profile nobody in"]).await;
    let none = profile(&cloud, "", "eu-central-1");
    cloud.assert_denied(&none, &["has a `role_arn`, but neither `source_profile`, `credential_source` nor"]).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_role_is_assumed_with_the_keys_of_the_environment_the_container_and_the_instance() {
    type Variables = fn(&Cloud) -> Vec<(&'static str, String)>;
    let environment: Variables = |_| {
        let (id, secret, session) = KEYS;
        [("AWS_ACCESS_KEY_ID", id), ("AWS_SECRET_ACCESS_KEY", secret), ("AWS_SESSION_TOKEN", session)]
            .map(|(name, value)| (name, value.to_owned()))
            .into()
    };
    let roles = "/latest/meta-data/iam/security-credentials/";
    for (source, variables, asked) in [
        ("EcsContainer", task_role as Variables, vec!["GET /v1/credentials 200".to_owned()]),
        (
            "Ec2InstanceMetadata",
            instance_role,
            vec![
                "PUT /latest/api/token 200".to_owned(),
                format!("GET {roles} 200"),
                format!("GET {roles}mirror-role 200"),
            ],
        ),
    ] {
        let cloud = Cloud::start(ecr()).await;
        let role = profile(&cloud, &format!("credential_source = {source}"), "eu-central-1");
        // Without the keys, the error says so.
        cloud.assert_fails(missing(source), &role, &["the role of the profile mirror are missing"]).await;
        let output = cloud.sync(&[role, variables(&cloud)].concat()).run().await.assert_code(0);
        assert_no_secret(&output);
        cloud.assert_arrived();
        assert_eq!(cloud.services.paths(), [asked, vec!["POST / 200".to_owned()]].concat(), "{source}");
    }
    // Keys in variables go before a profile, which has them assume the role only if nothing else is there.
    let cloud = Cloud::start(ecr()).await;
    let role = profile(&cloud, "credential_source = Environment", "eu-central-1");
    cloud.sync(&[role, environment(&cloud)].concat()).run().await.assert_code(0);
    cloud.assert_arrived();
    assert!(cloud.services.paths().is_empty());
}

/// Returns the kind of the error if the service that hands out keys is not there.
fn missing(source: &str) -> &'static str {
    if source == "EcsContainer" { "denied" } else { "unreachable" }
}

#[tokio::test]
async fn ecr_public_gives_a_password_for_its_token_service() {
    let builder = || {
        let host = "public.ecr.aws";
        let bearer = Bearer::user("AWS", "secret").anonymous_pull(true).service(host).without_expiry();
        FaultRegistry::builder().bearer(bearer).quirks(Quirks {
            host: Some(host),
            token_path: Some("/token/"),
            realm: Some("https://public.ecr.aws/token/"),
            no_new_repositories: true,
            create_api: Some(CreateApi::Ecr {
                service: "ecr-public",
                account: "",
                region: "us-east-1",
                key: (KEYS.0, KEYS.1),
                session: KEYS.2,
            }),
            ..Quirks::default()
        })
    };
    let profile = named("ECR Public");
    let other_hosts = &["d2glxqk2uabbnd.cloudfront.net", "api.ecr-public.us-east-1.amazonaws.com"];
    let settings = "credentials: aws";
    let cloud = Cloud::start(RegistryProfile { settings, builder, other_hosts, ..profile }).await;
    let output = cloud.sync(&instance_role(&cloud)).run().await.assert_code(0);
    assert_no_secret(&output);
    cloud.assert_arrived();
    let asked = cloud.registry.registry.count_where(|asked| {
        asked.kind == RequestType::ApiCreate
            && asked.header("x-amz-target") == Some("SpencerFrontendService.GetAuthorizationToken")
    });
    assert_eq!(asked, 1, "{}", cloud.registry.registry.describe_requests());
}
