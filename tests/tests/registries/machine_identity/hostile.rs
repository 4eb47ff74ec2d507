//! Metadata services and token services that stall or lie.

use imgsync_tests::fault::RequestType;
use imgsync_tests::registry_profiles::RegistryProfile;
use imgsync_tests::servers::IdentityBehavior;

use super::{
    Cloud, acr, app_identity, assert_no_secret, ecr, google, instance_role, irsa, key_file, metadata_server,
    pod_identity, workload_identity,
};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_metadata_service_that_lies_is_not_asked_again_and_one_that_stalls_twice() {
    type Start = fn() -> RegistryProfile;
    type Variables = fn(&Cloud) -> Vec<(&'static str, String)>;
    // Amazon's service may answer anything to the request for a session, which fails with the next one.
    let clouds: [(Start, Variables, usize); 3] = [
        (ecr, instance_role, 2),
        (google, metadata_server, 1),
        (acr, |cloud| vec![("AZURE_POD_IDENTITY_AUTHORITY_HOST", cloud.services.url())], 1),
    ];
    for (start, variables, limit) in clouds {
        let cloud = Cloud::start(start()).await;
        for behavior in
            [IdentityBehavior::Stall, IdentityBehavior::Huge, IdentityBehavior::Html, IdentityBehavior::Redirect]
        {
            cloud.services.behave(behavior);
            let before = cloud.services.paths().len();
            let is_silent = behavior == IdentityBehavior::Stall;
            let output = cloud.sync(&variables(&cloud)).run().await.assert_code(if is_silent { 3 } else { 1 });
            let asked = cloud.services.paths().split_off(before);
            let limit = if is_silent { 3 } else { limit };
            assert!((1..=limit).contains(&asked.len()), "{behavior:?}: {asked:?} {}", output.stderr);
            assert!(!asked.iter().any(|asked| asked.contains("elsewhere")), "{behavior:?}: {asked:?}");
            let words = match behavior {
                IdentityBehavior::Stall => "no answer within 2.0 s",
                IdentityBehavior::Huge => "more than 128 KiB",
                IdentityBehavior::Html => "text/html of",
                _ => "a redirect, which is not followed",
            };
            assert!(output.stderr.contains(words), "{behavior:?}: {}", output.stderr);
            assert_eq!(cloud.registry.registry.count(RequestType::ManifestPut), 0);
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_token_service_that_lies_gets_no_further_and_its_answer_is_not_shown() {
    type Start = fn() -> RegistryProfile;
    type Variables = fn(&Cloud) -> Vec<(&'static str, String)>;
    let clouds: [(Start, Variables); 3] = [(ecr, irsa), (google, key_file), (acr, workload_identity)];
    for (start, variables) in clouds {
        let cloud = Cloud::start(start()).await;
        for behavior in [IdentityBehavior::Huge, IdentityBehavior::Html, IdentityBehavior::Redirect] {
            cloud.services.behave(behavior);
            let before = cloud.services.paths().len();
            let output = cloud.sync(&variables(&cloud)).run().await.assert_code(1);
            let asked = cloud.services.paths().split_off(before);
            assert_eq!(asked.len(), 1, "{behavior:?}: {asked:?} {}", output.stderr);
            let words = match behavior {
                IdentityBehavior::Huge => "more than 128 KiB",
                IdentityBehavior::Html => "text/html of 36 bytes",
                _ => "a redirect, which is not followed",
            };
            assert!(output.stderr.contains(words), "{behavior:?}: {}", output.stderr);
            assert!(!output.stderr.contains("Welcome"), "{}", output.stderr);
            assert_no_secret(&output);
            assert_eq!(cloud.registry.registry.count(RequestType::ManifestPut), 0);
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_metadata_service_that_is_busy_for_a_moment_is_asked_again() {
    type Start = fn() -> RegistryProfile;
    type Variables = fn(&Cloud) -> Vec<(&'static str, String)>;
    let clouds: [(Start, Variables); 5] = [
        (ecr, instance_role),
        (ecr, pod_identity),
        (google, metadata_server),
        (acr, |cloud| vec![("AZURE_POD_IDENTITY_AUTHORITY_HOST", cloud.services.url())]),
        (acr, app_identity),
    ];
    for (start, variables) in clouds {
        let cloud = Cloud::start(start()).await;
        let variables = variables(&cloud);
        cloud.services.behave(IdentityBehavior::Busy(1));
        cloud.sync(&variables).run().await.assert_code(0);
        cloud.assert_arrived();
        let asked = cloud.services.paths();
        assert!(asked[0].ends_with(" 503") && asked[1].ends_with(" 200"), "{asked:?}");

        // It stays busy: that may pass, and is no missing identity.
        cloud.services.behave(IdentityBehavior::Busy(u32::MAX));
        cloud.assert_fails("server_error", &variables, &["refused (503)"]).await;
    }
}
