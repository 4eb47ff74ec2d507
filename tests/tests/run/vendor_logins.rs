//! Logins at vendor APIs, and errors when they do not suffice.

use imgsync_tests::FaultRegistry;
use imgsync_tests::fault::{FaultAction, RequestMatcher, RequestType, VendorKind};

use super::{VendorRegistries, lines, put_tags};

const ME: &str = "username: me, password: secret";

#[tokio::test]
async fn what_is_private_is_listed_to_who_may_see_it() {
    for vendor in VendorRegistries::ALL {
        let builder = FaultRegistry::builder().vendor(vendor).page(1);
        let (user, entry) = match vendor {
            VendorKind::Quay => ("$oauthtoken", "username: $oauthtoken, password: secret"),
            _ => ("me", ME),
        };
        let registry = builder.vendor_login(user, "secret").basic(user, "secret").start().await;
        for name in ["me/a", "me/b"] {
            put_tags(&registry, name, ["1", "2"]);
        }
        let entry = VendorRegistries::entry(vendor, &registry, entry);
        let output = VendorRegistries::tags_with(&entry, vendor, "me/*", &["--json"]).await.assert_code(0);
        assert_eq!(lines(&output).len(), 4, "{vendor:?}");
        assert!(lines(&output).iter().all(|line| line.contains("sha256:")), "{vendor:?}: {}", output.stdout);
        assert_eq!(registry.total(), 2 + 4, "{vendor:?}: {}", registry.describe_requests());
        assert_eq!(registry.count(RequestType::ApiLogin), u64::from(vendor == VendorKind::Hub), "one for all");
    }
}

#[tokio::test]
async fn a_login_at_docker_hub_that_runs_out_is_renewed_and_the_old_way_is_known_too() {
    let registry = FaultRegistry::builder().vendor(VendorKind::Hub).page(1).vendor_login("me", "secret").start().await;
    put_tags(&registry, "me/a", ["1", "2", "3"]);
    let entry = VendorRegistries::entry(VendorKind::Hub, &registry, ME);
    // The first token has expired when the second page is requested.
    registry.on(RequestType::ApiTags).skip(1).act(FaultAction::status(401));
    let output = VendorRegistries::tags_with(&entry, VendorKind::Hub, "me/a", &[]).await.assert_code(0);
    assert_eq!(lines(&output), ["1", "2", "3"]);
    assert_eq!((registry.count(RequestType::ApiLogin), registry.count(RequestType::ApiTags)), (2, 4));

    registry.clear_requests();
    registry.on(RequestMatcher::any().path("/v2/auth/token")).always().act(FaultAction::status(404));
    VendorRegistries::tags_with(&entry, VendorKind::Hub, "me/a", &[]).await.assert_code(0);
    let paths: Vec<_> =
        registry.requests_of_kind(RequestType::ApiLogin).into_iter().map(|request| request.path).collect();
    assert_eq!(paths, ["/v2/auth/token", "/v2/users/login"]);
}

#[tokio::test]
async fn a_wrong_password_is_sent_to_docker_hub_once_and_said() {
    let registry = FaultRegistry::builder().vendor(VendorKind::Hub).vendor_login("me", "right").start().await;
    for name in ["me/a", "me/b"] {
        put_tags(&registry, name, ["1"]);
    }
    let entry = VendorRegistries::entry(VendorKind::Hub, &registry, "username: me, password: hunter2");
    let output = VendorRegistries::tags_with(&entry, VendorKind::Hub, "me/*", &[]).await.assert_code(1);
    assert!(output.stdout.is_empty() && output.stderr.contains("access token"), "{}", output.stderr);
    assert_eq!((registry.count(RequestType::ApiLogin), registry.total()), (1, 0), "{}", registry.describe_requests());
    assert!(!output.stderr.contains("hunter2"), "{}", output.stderr);
    // One repository is listed by the registry itself; several cost no more than one failure.
    registry.clear_requests();
    let program = super::tags_command("docker.io/me/a", &[]);
    program.file("imgsync.yaml", format!("registries:\n{entry}"));
    let output = program.run().await.assert_code(0);
    assert_eq!(lines(&output), ["1"]);
    assert!(output.stderr.contains("Incorrect authentication credentials"), "{}", output.stderr);
    assert_eq!((registry.count(RequestType::ApiLogin), registry.count(RequestType::Tags)), (1, 1));
}

#[tokio::test]
async fn a_login_goes_to_the_api_and_the_registry_that_it_is_for_and_nowhere_else() {
    for vendor in [VendorKind::Hub, VendorKind::GitHub] {
        let registry = FaultRegistry::start().await;
        let (api, other) = tokio::join!(
            FaultRegistry::builder().vendor(vendor).vendor_login("me", "secret").start(),
            FaultRegistry::start()
        );
        put_tags(&api, "me/a", ["1"]);
        let name = VendorRegistries::name(vendor);
        let entry = format!("  {name}: {{endpoint: '{}', api: '{}', {ME}}}\n", registry.url(), api.url());
        let away = FaultAction::Redirect { to: format!("{}/elsewhere", other.url()), status: 302 };
        api.on(RequestType::ApiTags).act(away);
        VendorRegistries::tags_with(&entry, vendor, "me/a", &[]).await.assert_code(1);
        let sent = other.requests();
        assert_eq!(sent.len(), 1, "{}", other.describe_requests());
        assert!(sent[0].header("authorization").is_none(), "{:?}", sent[0]);
        VendorRegistries::tags_with(&entry, vendor, "me/a", &[]).await.assert_code(0);
        assert!(registry.requests().iter().all(|request| request.header("authorization").is_none()));
        let basic = |request: &imgsync_tests::fault::RecordedRequest| {
            request.header("authorization").is_some_and(|given| given.starts_with("Basic"))
        };
        assert_eq!(api.count_where(basic), 0);
    }
}

#[tokio::test]
async fn without_a_token_github_is_not_asked_and_a_namespace_says_what_is_needed() {
    let registry = FaultRegistry::builder().vendor(VendorKind::GitHub).start().await;
    put_tags(&registry, "me/a", ["1", "2"]);
    let entry = VendorRegistries::entry(VendorKind::GitHub, &registry, "http1: false");
    let output = VendorRegistries::tags_with(&entry, VendorKind::GitHub, "me/a", &[]).await.assert_code(0);
    assert_eq!(lines(&output), ["1", "2"]);
    assert!(!output.stderr.contains("warning"), "{}", output.stderr);
    assert_eq!((registry.count(RequestType::Tags), registry.total()), (1, 1));
    let output = VendorRegistries::tags_with(&entry, VendorKind::GitHub, "me/*", &[]).await.assert_code(1);
    for words in ["needs a token with `read:packages`", "`password` of ghcr.io", "name the repositories explicitly"] {
        assert!(output.stderr.contains(words), "{words}: {}", output.stderr);
    }
    assert_eq!(registry.total(), 1);
}

#[tokio::test]
async fn a_robot_account_sees_what_is_public_at_quay_and_is_told_so() {
    let registry = FaultRegistry::builder().vendor(VendorKind::Quay).start().await;
    put_tags(&registry, "me/a", ["1"]);
    let entry = VendorRegistries::entry(VendorKind::Quay, &registry, "username: me+robot, password: secret");
    let output = VendorRegistries::tags_with(&entry, VendorKind::Quay, "me/*", &[]).await.assert_code(0);
    assert_eq!(lines(&output), ["quay.io/me/a:1"]);
    assert!(output.stderr.contains("only public repositories are listed"), "{}", output.stderr);
    assert!(output.stderr.contains("$oauthtoken"), "{}", output.stderr);
    // Tags of a private repository: the registry accepts the robot account.
    let private =
        FaultRegistry::builder().vendor(VendorKind::Quay).vendor_login("$oauthtoken", "t").basic("me+robot", "secret");
    let private = private.start().await;
    put_tags(&private, "me/a", ["1"]);
    let entry = VendorRegistries::entry(VendorKind::Quay, &private, "username: me+robot, password: secret");
    let output = VendorRegistries::tags_with(&entry, VendorKind::Quay, "me/a", &[]).await.assert_code(0);
    assert_eq!(lines(&output), ["1"]);
    assert!(output.stderr.contains("OAuth"), "{}", output.stderr);
}

#[tokio::test]
async fn who_may_not_see_a_namespace_is_told_what_to_do() {
    for vendor in VendorRegistries::ALL {
        let registry = FaultRegistry::builder().vendor(vendor).vendor_login("me", "right").start().await;
        put_tags(&registry, "me/a", ["1"]);
        let output = VendorRegistries::tags(vendor, &registry, "me/*", &[]).await.assert_code(1);
        assert!(output.stdout.is_empty(), "{vendor:?}");
        let words = match vendor {
            VendorKind::Quay => "Quay's API takes OAuth tokens",
            // It does not distinguish hidden from missing.
            VendorKind::Hub => "check the namespace, and that this user can see it on docker.io",
            VendorKind::Harbor => "no credentials for harbor.example.org were found",
            VendorKind::GitHub => "GitHub's API needs a token with `read:packages`",
        };
        assert!(output.stderr.contains(words), "{vendor:?}: {}", output.stderr);
        assert!(output.stderr.contains("name the repositories explicitly"), "{vendor:?}: {}", output.stderr);
    }
}
