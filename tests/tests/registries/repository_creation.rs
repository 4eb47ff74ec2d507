//! `create: true`: missing repositories and projects are created once; without it, the error says how to create them.

use imgsync_tests::fault::{FaultAction, FaultRegistry, RequestMatcher, RequestType};
use imgsync_tests::images::{Layer, TestImage};
use imgsync_tests::program::{Imgsync, Output};
use imgsync_tests::registry_profiles::{self, RunningProfile};
use serde_json::{Value, json};

const KEYS: [(&str, &str); 3] = [
    ("AWS_ACCESS_KEY_ID", "AKIAIOSFODNN7EXAMPLE"),
    ("AWS_SECRET_ACCESS_KEY", "wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY"),
    ("AWS_SESSION_TOKEN", "of some/hours+=="),
];

/// A registry profile in which nothing was created, and a source with images in three repositories.
struct CreationFixture {
    profile: RunningProfile,
    source: FaultRegistry,
    images: Vec<(String, TestImage)>,
}

impl CreationFixture {
    async fn new(name: &str) -> CreationFixture {
        let profile = registry_profiles::all().into_iter().find(|one| one.name == name).unwrap();
        let (one, other) = (profile.repository, profile.other_repository);
        let running = profile.start().await;
        for made in [one, other] {
            running.registry.delete_repository(made);
        }
        let source = FaultRegistry::start().await;
        let mut images = Vec::new();
        for app in ["one", "two", "three"] {
            for tag in ["1", "2"] {
                let base = Layer::Shared("create/base".to_owned(), 6000);
                let image = TestImage::single(&format!("create-{app}-{tag}")).layer(base).layers(4, 3000).build();
                source.push(&format!("mirror/{app}"), tag, &image);
                images.push((format!("mirror/{app}:{tag}"), image));
            }
        }
        CreationFixture { profile: running, source, images }
    }

    fn registry(&self) -> &'static str {
        self.profile.profile.registry
    }

    /// Creates a run that copies all images.
    fn program(&self, settings: &str) -> Imgsync {
        let program = self.profile.configure(Imgsync::new());
        let rules: Vec<String> = ["one", "two", "three"]
            .iter()
            .map(|app| {
                format!("  - {{from: {}/mirror/{app}, to: {}, naming: keep}}\n", self.source.host(), self.registry())
            })
            .collect();
        let config = format!("registries:\n  {}: {{{settings}}}\nrules:\n{}", self.registry(), rules.concat());
        program.file("imgsync.yaml", config);
        program.args(["run", "--json", "--retry-delay", "10ms", "--attempts", "1"])
    }

    fn assert_arrived(&self) {
        for (place, image) in &self.images {
            let (repository, tag) = place.split_once(':').unwrap();
            self.profile.registry.assert_holds(repository, tag, image);
        }
        self.profile.registry.assert_tags_complete();
        assert_eq!(self.profile.registry.open_uploads(), 0);
    }

    fn made(&self) -> Vec<Value> {
        let asked = self.profile.registry.requests_of_kind(RequestType::ApiCreate);
        let mut bodies: Vec<Value> = asked.iter().map(|asked| serde_json::from_slice(&asked.body).unwrap()).collect();
        bodies.sort_by_key(Value::to_string);
        bodies
    }
}

fn with_keys(program: Imgsync) -> Imgsync {
    KEYS.iter().fold(program, |program, (name, value)| program.env(name, value))
}

#[track_caller]
fn assert_no_secret(output: &Output) {
    for (name, value) in &KEYS[1..] {
        assert!(!output.stderr.contains(value) && !output.stdout.contains(value), "{name}: {output:?}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn repositories_of_ecr_are_made_once_each_and_no_attempt_is_spent() {
    let fixture = CreationFixture::new("ECR").await;
    let output = with_keys(fixture.program("create: true")).run().await.assert_code(0);
    assert_no_secret(&output);
    assert_eq!(output.json()["counts"]["copied"], 6, "{}", output.stderr);
    fixture.assert_arrived();
    let of = |name: &str| json!({"repositoryName": format!("mirror/{name}"), "registryId": "123456789012"});
    assert_eq!(fixture.made(), [of("one"), of("three"), of("two")], "{}", fixture.profile.registry.describe_requests());
    let again = with_keys(fixture.program("create: true")).run().await.assert_code(0);
    assert_eq!((again.json()["counts"]["unchanged"].as_u64(), fixture.made().len()), (Some(6), 3));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn keys_are_found_in_the_shared_file_and_a_failure_that_passes_is_tried_again() {
    let fixture = CreationFixture::new("ECR").await;
    let throttled = FaultAction::Status {
        code: 400,
        headers: Vec::new(),
        body: r#"{"__type":"com.amazonaws.ecr#ThrottlingException","message":"Rate exceeded"}"#.into(),
    };
    let rule = fixture.profile.registry.on(RequestMatcher::kind(RequestType::ApiCreate)).times(1).act(throttled);
    let program = fixture.program("create: true");
    let [id, key, session] = KEYS.map(|(name, value)| format!("{} = {value}\n", name.to_ascii_lowercase()));
    let file = program.file("keys", format!("[default]\naws_access_key_id = wrong\n[mirror]\n{id}{key}{session}"));
    let program = program.env("AWS_SHARED_CREDENTIALS_FILE", file).env("AWS_PROFILE", "mirror");
    program.run().await.assert_code(0);
    fixture.assert_arrived();
    assert_eq!((rule.hits(), fixture.made().len()), (1, 4));
}

#[tokio::test]
async fn who_has_only_the_helpers_password_hears_which_keys_are_missing() {
    let fixture = CreationFixture::new("ECR").await;
    let output = fixture.program("create: true").run().await.assert_code(1);
    let failure = &output.json()["failures"][0];
    assert_eq!(failure["kind"], "denied", "{output:?}");
    assert!(output.stderr.contains("AWS_ACCESS_KEY_ID"), "{}", output.stderr);
    assert!(output.stderr.contains("aws ecr create-repository --repository-name mirror/"), "{}", output.stderr);
    assert_eq!(fixture.made().len(), 0);
}

#[tokio::test]
async fn keys_that_may_not_are_refused_once_for_each_repository_with_what_to_allow() {
    let fixture = CreationFixture::new("ECR").await;
    let refused = FaultAction::Status {
        code: 400,
        headers: Vec::new(),
        body: r#"{"__type":"AccessDeniedException","Message":"User: arn:aws:iam::1:user/m is not authorized"}"#.into(),
    };
    fixture.profile.registry.on(RequestMatcher::kind(RequestType::ApiCreate)).always().act(refused);
    let output = with_keys(fixture.program("create: true")).run().await.assert_code(1);
    assert_eq!(output.json()["counts"]["failed"], 6, "{output:?}");
    assert!(output.stderr.contains("ecr:CreateRepository"), "{}", output.stderr);
    assert_eq!(fixture.made().len(), 3);
    assert_no_secret(&output);
}

#[tokio::test]
async fn a_wrong_key_is_said_to_be_wrong() {
    let fixture = CreationFixture::new("ECR").await;
    let program = with_keys(fixture.program("create: true")).env("AWS_SECRET_ACCESS_KEY", "another");
    let output = program.run().await.assert_code(1);
    assert!(output.stderr.contains("check the AWS keys"), "{}", output.stderr);
    assert!(output.stderr.contains("The request signature does not match"), "{}", output.stderr);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_project_of_harbor_is_made_once_for_all_of_its_repositories() {
    let fixture = CreationFixture::new("Harbor").await;
    let output = fixture.program("create: true").run().await.assert_code(0);
    assert_eq!(output.json()["counts"]["copied"], 6, "{}", output.stderr);
    fixture.assert_arrived();
    let project = json!({"project_name": "mirror", "metadata": {"public": "false"}});
    assert_eq!(fixture.made(), [project], "{}", fixture.profile.registry.describe_requests());
    assert!(!output.stderr.contains("retrying in"), "{}", output.stderr);
}

#[tokio::test]
async fn what_another_made_meanwhile_is_as_good() {
    let limit = std::time::Duration::from_secs(60);
    for name in ["ECR", "Harbor"] {
        let fixture = CreationFixture::new(name).await;
        let registry = &fixture.profile.registry;
        let gate = std::sync::Arc::new(tokio::sync::Semaphore::new(0));
        registry.on(RequestMatcher::kind(RequestType::ApiCreate)).always().act(FaultAction::Gate(gate.clone()));
        let program = with_keys(fixture.program("create: true"));
        let mut running = program.spawn();
        registry.wait_until(|registry| registry.count(RequestType::ApiCreate) > 0, limit).await;
        for app in ["one", "two", "three"] {
            registry.create_repository(&format!("mirror/{app}"));
        }
        gate.add_permits(3);
        tokio::time::timeout(limit, running.wait()).await.unwrap().assert_code(0);
        fixture.assert_arrived();
        let refused = registry.count_where(|asked| asked.kind == RequestType::ApiCreate && asked.status != Some(200));
        assert!(refused > 0, "{name}: {}", registry.describe_requests());
    }
}

#[tokio::test]
async fn who_may_not_make_projects_hears_it_once_and_why_the_push_was_refused() {
    let fixture = CreationFixture::new("Harbor").await;
    fixture
        .profile
        .registry
        .on(RequestMatcher::kind(RequestType::ApiCreate))
        .always()
        .act(FaultAction::error(403, "FORBIDDEN"));
    let output = fixture.program("create: true").run().await.assert_code(1);
    assert_eq!(output.stderr.matches("the user may not create projects").count(), 1, "{}", output.stderr);
    assert_eq!(output.json()["failures"][0]["kind"], "denied", "{output:?}");
    assert_eq!(fixture.made().len(), 1);
}

#[tokio::test]
async fn without_it_nothing_is_made_and_the_error_says_how() {
    for name in ["ECR", "Harbor"] {
        let fixture = CreationFixture::new(name).await;
        let output = with_keys(fixture.program("")).run().await.assert_code(1);
        assert!(output.stderr.contains("`create: true` for"), "{name}: {}", output.stderr);
        assert_eq!(fixture.made().len(), 0, "{name}");
    }
}
