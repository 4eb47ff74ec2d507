//! `credentials: aws|gcp|azure`: logs in with the identity of the machine, at registries and services that check what the
//! real ones document.

mod auto;
mod hostile;
mod roles;

use std::sync::Arc;
use std::time::Duration;

use imgsync_tests::fault::{
    Bearer, CreateApi, FaultAction, FaultRegistry, Quirks, RefreshPolicy, RequestType, TokenField,
};
use imgsync_tests::images::{self, TestImage};
use imgsync_tests::program::{Imgsync, Output};
use imgsync_tests::registry_profiles::{self, ProfileLogin, RegistryProfile, RunningProfile};
use imgsync_tests::servers::{
    APP_SECRET, IdentityBehavior, IdentityGrants, IdentityServices, SERVICE_ACCOUNT, SERVICE_ACCOUNT_KEY,
};
use serde_json::json;
use tokio::sync::Semaphore;

use crate::cloud_helpers::artifact_registry;

const KEYS: (&str, &str, &str) =
    ("AKIAIOSFODNN7EXAMPLE", "wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY", "of some/hours+==");
const WORKLOAD_TOKEN: &str = "eyJhbGciOiJSUzI1NiJ9.workload.c2ln";
const ACCESS_TOKEN: &str = "ya29.first";
const CLIENT: &str = "6a1b3c4d-0000-4000-8000-000000000001";
const LIMIT: Duration = Duration::from_secs(60);

/// A registry of a cloud, the services of the cloud, and a source with an image.
struct Cloud {
    registry: RunningProfile,
    services: IdentityServices,
    source: FaultRegistry,
    image: TestImage,
    program: Imgsync,
}

impl Cloud {
    async fn start(profile: RegistryProfile) -> Cloud {
        let services = IdentityServices::start(IdentityGrants {
            keys: KEYS,
            workload_token: WORKLOAD_TOKEN,
            access_token: ACCESS_TOKEN,
            lifetime: 3600,
            client_id: None,
            every_token_differs: false,
        })
        .await;
        let source = FaultRegistry::start().await;
        let image = images::multi_platform("identity");
        source.push("a", "1", &image);
        let registry = profile.start().await;
        let program = registry.configure(Imgsync::new());
        // No service of the machine on which the tests run is asked.
        let program = program
            .env("AWS_EC2_METADATA_SERVICE_ENDPOINT", "http://127.0.0.1:1")
            .env("GCE_METADATA_HOST", "127.0.0.1:1")
            .env("AZURE_POD_IDENTITY_AUTHORITY_HOST", "http://127.0.0.1:1");
        Cloud { registry, services, source, image, program }
    }

    fn sync(&self, variables: &[(&str, String)]) -> Imgsync {
        let program = variables.iter().fold(self.program.again(), |program, (name, value)| program.env(name, value));
        let (from, to) = (format!("{}/a:1", self.source.host()), self.registry.reference("1"));
        program.args(["sync", &from, &to, "--json", "--retry-delay", "10ms"])
    }

    fn assert_arrived(&self) {
        self.registry.registry.assert_holds(self.registry.profile.repository, "1", &self.image);
    }

    /// Asserts that a copy fails with an error that says all of this.
    async fn assert_denied(&self, variables: &[(&str, String)], words: &[&str]) -> Output {
        self.assert_fails("denied", variables, words).await
    }

    /// The same, with an error of any kind.
    async fn assert_fails(&self, kind: &str, variables: &[(&str, String)], words: &[&str]) -> Output {
        let code = if kind == "unreachable" { 3 } else { 1 };
        let output = self.sync(variables).run().await.assert_code(code);
        assert_eq!(output.json()["kind"], kind, "{output:?}");
        for words in words {
            assert!(output.stderr.contains(words), "`{words}` is missing in {}", output.stderr);
        }
        assert_no_secret(&output);
        output
    }

    /// Copies while the credentials in use end after the first request to the registry, and before its uploads are done.
    async fn sync_while_credentials_end(&self, variables: &[(&str, String)], next: impl FnOnce(&IdentityServices)) {
        // Long enough for the first credentials to count as old.
        self.source.on(RequestType::ManifestGet).act(FaultAction::Delay(Duration::from_millis(1500)));
        let gate = Arc::new(Semaphore::new(0));
        self.source.on(RequestType::BlobGet).act(FaultAction::Gate(gate.clone()));
        let mut running = self.sync(variables).spawn();
        self.source.wait_until(|source| source.count(RequestType::BlobGet) > 0, LIMIT).await;
        next(&self.services);
        self.registry.registry.expire_tokens();
        gate.add_permits(1);
        let output = tokio::time::timeout(LIMIT, running.wait()).await.unwrap().assert_code(0);
        assert_no_secret(&output);
        self.assert_arrived();
    }
}

#[track_caller]
fn assert_no_secret(output: &Output) {
    for secret in [
        KEYS.1,
        KEYS.2,
        WORKLOAD_TOKEN,
        ACCESS_TOKEN,
        APP_SECRET,
        "ya29.next",
        "twelve-hours",
        "refresh-1",
        "entra-token",
    ] {
        assert!(!output.stderr.contains(secret) && !output.stdout.contains(secret), "{secret}: {output:?}");
    }
}

fn named(name: &str) -> RegistryProfile {
    let profile =
        registry_profiles::all().into_iter().find(|profile| profile.name == name).expect("there is such a one");
    RegistryProfile { login: ProfileLogin::None, ..profile }
}

fn ecr() -> RegistryProfile {
    RegistryProfile { settings: "credentials: aws", ..named("ECR") }
}

fn google() -> RegistryProfile {
    let builder = || artifact_registry("oauth2accesstoken");
    RegistryProfile { settings: "credentials: gcp", builder, ..named("GCR, Artifact Registry") }
}

fn acr() -> RegistryProfile {
    let builder = || {
        let host = "team.azurecr.io";
        let bearer = Bearer::user("nobody", "nothing").field(TokenField::AccessToken).without_expiry();
        let bearer = bearer.refresh(RefreshPolicy::Accept("refresh-1".to_owned())).service(host);
        FaultRegistry::builder().bearer(bearer).relative_locations().quirks(Quirks {
            host: Some(host),
            token_path: Some("/oauth2/token"),
            realm: Some("https://team.azurecr.io/oauth2/token"),
            next_password: Some("refresh-2"),
            exchanged_token: Some(ACCESS_TOKEN),
            multi_scope_status: Some(400),
            ..Quirks::default()
        })
    };
    RegistryProfile { settings: "credentials: azure", builder, ..named("ACR") }
}

/// Returns how often ECR handed out a password.
fn passwords_of_ecr(cloud: &Cloud) -> u64 {
    cloud.registry.registry.count_where(|asked| {
        asked.kind == RequestType::ApiCreate
            && asked.header("x-amz-target").is_some_and(|target| target.ends_with(".GetAuthorizationToken"))
            && asked.status == Some(200)
    })
}

fn irsa(cloud: &Cloud) -> Vec<(&'static str, String)> {
    let token = cloud.program.file("token", format!("{WORKLOAD_TOKEN}\n"));
    vec![
        ("AWS_WEB_IDENTITY_TOKEN_FILE", token.display().to_string()),
        ("AWS_ROLE_ARN", "arn:aws:iam::123456789012:role/mirror".to_owned()),
        ("AWS_ENDPOINT_URL_STS", cloud.services.url()),
    ]
}

fn pod_identity(cloud: &Cloud) -> Vec<(&'static str, String)> {
    let token = cloud.program.file("token", WORKLOAD_TOKEN);
    vec![
        ("AWS_CONTAINER_CREDENTIALS_FULL_URI", format!("{}/v1/credentials", cloud.services.url())),
        ("AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE", token.display().to_string()),
    ]
}

fn task_role(cloud: &Cloud) -> Vec<(&'static str, String)> {
    vec![
        ("AWS_CONTAINER_CREDENTIALS_FULL_URI", format!("{}/v1/credentials", cloud.services.url())),
        ("AWS_CONTAINER_AUTHORIZATION_TOKEN", WORKLOAD_TOKEN.to_owned()),
    ]
}

fn instance_role(cloud: &Cloud) -> Vec<(&'static str, String)> {
    vec![("AWS_EC2_METADATA_SERVICE_ENDPOINT", cloud.services.url())]
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn each_identity_of_amazon_logs_in_at_ecr_once() {
    let roles = "/latest/meta-data/iam/security-credentials/";
    let keys: fn(&Cloud) -> Vec<(&'static str, String)> = |_| {
        let (id, secret, session) = KEYS;
        [("AWS_ACCESS_KEY_ID", id), ("AWS_SECRET_ACCESS_KEY", secret), ("AWS_SESSION_TOKEN", session)]
            .map(|(name, value)| (name, value.to_owned()))
            .into()
    };
    let profile: fn(&Cloud) -> Vec<(&'static str, String)> = |cloud| {
        let (id, secret, session) = KEYS;
        let text = format!(
            "[profile mirror]\naws_access_key_id = {id}\naws_secret_access_key = {secret}\naws_session_token = {session}\n"
        );
        let file = cloud.program.file("config", text).display().to_string();
        vec![("AWS_CONFIG_FILE", file), ("AWS_PROFILE", "mirror".to_owned())]
    };
    let profile_with_role: fn(&Cloud) -> Vec<(&'static str, String)> = |cloud| {
        let token = cloud.program.file("token", WORKLOAD_TOKEN);
        let role = "arn:aws:iam::123456789012:role/mirror";
        let text = format!("[default]\nrole_arn = {role}\nweb_identity_token_file = {}\n", token.display());
        let file = cloud.program.file("config", text).display().to_string();
        vec![("AWS_CONFIG_FILE", file), ("AWS_ENDPOINT_URL_STS", cloud.services.url())]
    };
    for (variables, asked) in [
        (keys, vec![]),
        (profile, vec![]),
        (profile_with_role, vec!["POST / 200".to_owned()]),
        (irsa, vec!["POST / 200".to_owned()]),
        (pod_identity, vec!["GET /v1/credentials 200".to_owned()]),
        (task_role, vec!["GET /v1/credentials 200".to_owned()]),
        (
            instance_role,
            vec![
                "PUT /latest/api/token 200".to_owned(),
                format!("GET {roles} 200"),
                format!("GET {roles}mirror-role 200"),
            ],
        ),
    ] {
        let cloud = Cloud::start(ecr()).await;
        let variables = variables(&cloud);
        let output = cloud.sync(&variables).run().await.assert_code(0);
        assert_no_secret(&output);
        cloud.assert_arrived();
        assert_eq!(cloud.services.paths(), asked, "{variables:?}");
        assert_eq!(passwords_of_ecr(&cloud), 1, "{variables:?}: {}", cloud.registry.registry.describe_requests());
    }
}

#[tokio::test]
async fn a_password_of_ecr_that_ends_while_blobs_are_copied_is_renewed_with_the_same_keys() {
    let cloud = Cloud::start(ecr()).await;
    cloud.sync_while_credentials_end(&instance_role(&cloud), |_| {}).await;
    assert_eq!((passwords_of_ecr(&cloud), cloud.services.paths().len()), (2, 3));
}

#[tokio::test]
async fn a_password_of_ecr_is_renewed_when_its_time_is_over() {
    let mut profile = ecr();
    profile.builder = || {
        let host = "123456789012.dkr.ecr.eu-west-1.amazonaws.com";
        FaultRegistry::builder().basic("AWS", "twelve-hours").quirks(Quirks {
            host: Some(host),
            password_seconds: Some(2),
            create_api: Some(CreateApi::Ecr {
                service: "ecr",
                account: "123456789012",
                region: "eu-west-1",
                key: (KEYS.0, KEYS.1),
                session: KEYS.2,
            }),
            ..Quirks::default()
        })
    };
    let cloud = Cloud::start(profile).await;
    // Longer than the password lives.
    cloud.source.on(RequestType::BlobGet).act(FaultAction::Delay(Duration::from_millis(2500)));
    cloud.sync(&pod_identity(&cloud)).run().await.assert_code(0);
    cloud.assert_arrived();
    assert!(passwords_of_ecr(&cloud) >= 2, "{}", cloud.registry.registry.describe_requests());
    assert_eq!(cloud.services.paths(), ["GET /v1/credentials 200"]);
}

#[tokio::test]
async fn a_refused_role_fails_with_the_error_of_amazon() {
    let cloud = Cloud::start(ecr()).await;
    cloud.services.behave(IdentityBehavior::Refuse);
    let words =
        ["AccessDenied: Not authorized to perform sts:AssumeRoleWithWebIdentity", "the trust policy of arn:aws:iam"];
    cloud.assert_denied(&irsa(&cloud), &words).await;
    assert_eq!(cloud.services.paths(), ["POST / 403"], "a refusal is remembered");
    cloud.assert_denied(&pod_identity(&cloud), &["EKS does not have permissions to assume the associated role"]).await;
    cloud.assert_denied(&instance_role(&cloud), &["the instance has no role"]).await;
    cloud.services.behave(IdentityBehavior::Right);
    let refused = FaultAction::Status {
        code: 400,
        headers: Vec::new(),
        body: r#"{"__type":"AccessDeniedException","Message":"User: arn:aws:sts::1:assumed-role/m is not authorized"}"#
            .into(),
    };
    cloud.registry.registry.on(RequestType::ApiCreate).always().act(refused);
    let words = [
        "User: arn:aws:sts::1:assumed-role/m is not authorized",
        "allow `ecr:GetAuthorizationToken`",
        "role mirror-role",
    ];
    cloud.assert_denied(&instance_role(&cloud), &words).await;
}

#[tokio::test]
async fn without_an_identity_the_error_says_what_was_looked_for() {
    let cloud = Cloud::start(ecr()).await;
    let words = [
        "this machine has no identity of `aws`",
        "AWS_ACCESS_KEY_ID is not set",
        "there is no profile default in",
        "AWS_WEB_IDENTITY_TOKEN_FILE is not set",
        "AWS_CONTAINER_CREDENTIALS_FULL_URI is not set",
        "the instance metadata service at http://127.0.0.1:1 did not answer",
        "hint: give the pod, task or instance a role",
    ];
    cloud.assert_fails("unreachable", &[], &words).await;
    let disabled = [("AWS_EC2_METADATA_DISABLED", "true".to_owned())];
    cloud.assert_denied(&disabled, &[&words[..5], &["AWS_EC2_METADATA_DISABLED is true", words[6]]].concat()).await;
    let missing = [("AWS_WEB_IDENTITY_TOKEN_FILE", "/nowhere/token".to_owned()), ("AWS_ROLE_ARN", "arn:x".to_owned())];
    cloud.assert_denied(&missing, &["/nowhere/token, named by AWS_WEB_IDENTITY_TOKEN_FILE, does not exist"]).await;
    let profile = [("AWS_PROFILE", "nobody".to_owned())];
    cloud.assert_denied(&profile, &["there is no profile nobody in"]).await;
    let far = [("AWS_CONTAINER_CREDENTIALS_FULL_URI", "http://192.0.2.1/x".to_owned())];
    let output = cloud.sync(&far).run().await.assert_code(1);
    assert!(output.stderr.contains("neither https nor a known address of this machine"), "{}", output.stderr);

    let cloud = Cloud::start(google()).await;
    let words = [
        "this machine has no identity of `gcp`",
        "GOOGLE_APPLICATION_CREDENTIALS is not set",
        "application_default_credentials.json does not exist",
        "the metadata server at http://127.0.0.1:1 did not answer",
    ];
    cloud.assert_fails("unreachable", &[], &words).await;
    let disabled = [("NO_GCE_CHECK", "true".to_owned())];
    cloud.assert_denied(&disabled, &[words[0], "NO_GCE_CHECK is true"]).await;
    let keys = json!({"type": "external_account", "audience": "a", "subject_token_type": "t", "token_url": "https://x/",
        "credential_source": {"environment_id": "aws1", "url": "http://169.254.169.254/latest/meta-data/x"}});
    let keys =
        [("GOOGLE_APPLICATION_CREDENTIALS", cloud.program.file("aws.json", keys.to_string()).display().to_string())];
    let words = ["exchanges keys of AWS (`environment_id: aws1`), which is not supported", "--credential-source-file"];
    cloud.assert_denied(&keys, &words).await;

    let cloud = Cloud::start(acr()).await;
    let words = [
        "this machine has no identity of `azure`",
        "AZURE_FEDERATED_TOKEN_FILE is not set",
        "IDENTITY_ENDPOINT is not set",
        "the instance metadata service at http://127.0.0.1:1 did not answer",
    ];
    cloud.assert_fails("unreachable", &[], &words).await;
    let arc = [("IDENTITY_ENDPOINT", "http://127.0.0.1:1/metadata/identity/oauth2/token".to_owned())];
    cloud.assert_fails("unreachable", &arc, &["IDENTITY_HEADER is not (Azure Arc is not supported)"]).await;
    let half = [("AZURE_FEDERATED_TOKEN_FILE", "/t".to_owned())];
    cloud.assert_denied(&half, &["AZURE_CLIENT_ID or AZURE_TENANT_ID is not"]).await;
}

fn key_file(cloud: &Cloud) -> Vec<(&'static str, String)> {
    let key = json!({
        "type": "service_account", "client_email": SERVICE_ACCOUNT, "private_key_id": "key-1",
        "private_key": SERVICE_ACCOUNT_KEY, "token_uri": format!("{}/token", cloud.services.url()),
    });
    let file = cloud.program.file("key.json", key.to_string());
    vec![("GOOGLE_APPLICATION_CREDENTIALS", file.display().to_string())]
}

fn federation(cloud: &Cloud) -> Vec<(&'static str, String)> {
    let token = cloud.program.file("oidc.json", json!({"id_token": WORKLOAD_TOKEN}).to_string());
    let format = json!({"type": "json", "subject_token_field_name": "id_token"});
    federation_with(cloud, &json!({"file": token, "format": format}))
}

/// A federation as `gcloud iam workload-identity-pools create-cred-config --azure` writes it.
fn federation_of_azure(cloud: &Cloud) -> Vec<(&'static str, String)> {
    let query = "api-version=2018-02-01&resource=api://federation";
    federation_with(
        cloud,
        &json!({
            "url": format!("{}/metadata/identity/oauth2/token?{query}", cloud.services.url()),
            "headers": {"Metadata": "True"},
            "format": {"type": "json", "subject_token_field_name": "access_token"},
        }),
    )
}

fn federation_with(cloud: &Cloud, source: &serde_json::Value) -> Vec<(&'static str, String)> {
    let url = cloud.services.url();
    let config = json!({
        "type": "external_account",
        "audience": "//iam.googleapis.com/projects/1/locations/global/workloadIdentityPools/pool/providers/ci",
        "subject_token_type": "urn:ietf:params:oauth:token-type:jwt",
        "token_url": format!("{url}/v1/token"),
        "service_account_impersonation_url":
            format!("{url}/v1/projects/-/serviceAccounts/{SERVICE_ACCOUNT}:generateAccessToken"),
        "credential_source": source,
    });
    let file = cloud.program.file("federation.json", config.to_string());
    vec![("GOOGLE_APPLICATION_CREDENTIALS", file.display().to_string())]
}

fn metadata_server(cloud: &Cloud) -> Vec<(&'static str, String)> {
    vec![("GCE_METADATA_HOST", cloud.services.host())]
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn each_identity_of_google_logs_in_and_is_renewed_while_blobs_are_copied() {
    let impersonation = format!("POST /v1/projects/-/serviceAccounts/{SERVICE_ACCOUNT}:generateAccessToken 200");
    type Variables = fn(&Cloud) -> Vec<(&'static str, String)>;
    let exchange = || "POST /v1/token 200".to_owned();
    let subject = "GET /metadata/identity/oauth2/token 200".to_owned();
    let ways: [(Variables, Vec<String>); 4] = [
        (key_file, vec!["POST /token 200".to_owned()]),
        (federation, vec![exchange(), impersonation.clone()]),
        (federation_of_azure, vec![subject, exchange(), impersonation]),
        (metadata_server, vec!["GET /computeMetadata/v1/instance/service-accounts/default/token 200".to_owned()]),
    ];
    for (variables, login) in ways {
        let cloud = Cloud::start(google()).await;
        let next = |services: &IdentityServices| services.grant(|grants| grants.access_token = "ya29.next");
        cloud.sync_while_credentials_end(&variables(&cloud), next).await;
        assert_eq!(cloud.services.paths(), [login.clone(), login].concat());
    }
}

#[tokio::test]
async fn a_refused_identity_of_google_fails_with_the_reason() {
    let cloud = Cloud::start(google()).await;
    cloud.services.behave(IdentityBehavior::Refuse);
    cloud.assert_denied(&key_file(&cloud), &["invalid_grant: Invalid grant: account not found"]).await;
    cloud.assert_denied(&federation(&cloud), &["The given credential is rejected by the attribute condition"]).await;
    cloud.assert_denied(&metadata_server(&cloud), &["the machine has no service account"]).await;
    cloud.services.behave(IdentityBehavior::Right);
    cloud.services.grant(|grants| grants.access_token = "ya29.next");
    // The registry refuses what the cloud issued.
    cloud
        .assert_denied(&metadata_server(&cloud), &["check that the service account of this machine may push to"])
        .await;
}

fn workload_identity(cloud: &Cloud) -> Vec<(&'static str, String)> {
    let token = cloud.program.file("token", WORKLOAD_TOKEN);
    vec![
        ("AZURE_FEDERATED_TOKEN_FILE", token.display().to_string()),
        ("AZURE_CLIENT_ID", CLIENT.to_owned()),
        ("AZURE_TENANT_ID", "tenant-1".to_owned()),
        ("AZURE_AUTHORITY_HOST", format!("{}/", cloud.services.url())),
    ]
}

fn managed_identity(cloud: &Cloud) -> Vec<(&'static str, String)> {
    vec![("AZURE_POD_IDENTITY_AUTHORITY_HOST", cloud.services.url()), ("AZURE_CLIENT_ID", CLIENT.to_owned())]
}

fn app_identity(cloud: &Cloud) -> Vec<(&'static str, String)> {
    vec![
        ("IDENTITY_ENDPOINT", format!("{}/msi/token", cloud.services.url())),
        ("IDENTITY_HEADER", APP_SECRET.to_owned()),
        ("AZURE_CLIENT_ID", CLIENT.to_owned()),
    ]
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn each_identity_of_azure_logs_in_and_is_renewed_while_blobs_are_copied() {
    type Variables = fn(&Cloud) -> Vec<(&'static str, String)>;
    let ways: [(Variables, &str); 3] = [
        (workload_identity, "POST /tenant-1/oauth2/v2.0/token 200"),
        (app_identity, "GET /msi/token 200"),
        (managed_identity, "GET /metadata/identity/oauth2/token 200"),
    ];
    for (variables, login) in ways {
        let cloud = Cloud::start(acr()).await;
        cloud.services.grant(|grants| grants.client_id = Some(CLIENT));
        cloud.sync_while_credentials_end(&variables(&cloud), |_| {}).await;
        assert_eq!(cloud.services.paths(), [login, login]);
        assert_eq!(cloud.registry.registry.count(RequestType::Exchange), 2);
    }
}

#[tokio::test]
async fn a_refused_identity_of_azure_fails_with_the_reason() {
    let cloud = Cloud::start(acr()).await;
    cloud.services.behave(IdentityBehavior::Refuse);
    cloud.assert_denied(&workload_identity(&cloud), &["AADSTS700016: Application was not found"]).await;
    cloud.assert_denied(&managed_identity(&cloud), &["Identity not found"]).await;
    cloud.assert_denied(&app_identity(&cloud), &["No User Assigned or Delegated Managed Identity"]).await;
    let far = [("IDENTITY_ENDPOINT", "http://192.0.2.1/msi/token".to_owned()), ("IDENTITY_HEADER", "x".to_owned())];
    cloud.assert_fails("insecure", &far, &["IDENTITY_ENDPOINT names http://192.0.2.1"]).await;
    cloud.services.behave(IdentityBehavior::Right);
    cloud.services.grant(|grants| grants.access_token = "ya29.next");
    let words = ["CONNECTIVITY_REFRESH_TOKEN_ERROR", "the role AcrPull", CLIENT];
    cloud.assert_denied(&managed_identity(&cloud), &words).await;
}
