//! Which requests a push costs, and which server is asked.

use imgsync_tests::fault::{FaultAction, RequestMatcher, RequestType};

use super::*;

#[tokio::test]
async fn a_pushed_tag_is_copied_without_listing_unless_other_tags_count() {
    for (rule, lists) in [
        ("", false),
        (", tags: {include: 'v*', exclude: '*-dev'}", false),
        (", tags: {semver: '>=1'}", false),
        (", tags: {newest: 5}", true),
    ] {
        let fixture = HookFixture::new(rule).await;
        let (app, other) = (image("app"), image("other"));
        for number in 0..1_000 {
            fixture.source.push("apps/a", &format!("v1.{number}"), &other);
        }
        fixture.source.push("apps/a", "v1.1000", &app);
        let served = fixture.serve().await;
        fixture.notify(&served, "apps/a:v1.1000").await;
        fixture.wait_for_copy("apps/a", "v1.1000", &app).await;
        served.wait_for_ended_batches(1).await;
        assert_eq!(fixture.target.tags_in_all(), 1, "{rule}");
        let listed = fixture.source.count(RequestType::Tags);
        assert_eq!(listed > 0, lists, "{rule}: {}", fixture.source.describe_requests());
        if !lists {
            // The tag, its manifest, config and layer, and what may refer to it; some of them again if the machine is busy.
            assert!(fixture.source.total() < 100, "{rule}: {}", fixture.source.describe_requests());
        }
        served.stop().await.assert_code(0);
    }
}

#[tokio::test]
async fn a_mirror_is_not_asked_what_a_tag_shows() {
    let mirror = FaultRegistry::start().await;
    let more = format!("registries: {{SOURCE: {{mirrors: ['{}']}}}}\n", mirror.url());
    let fixture = HookFixture::with_more("", &more).await;
    let (old, new) = (image("old"), image("new"));
    fixture.source.push("apps/a", "1", &new);
    mirror.push("apps/a", "1", &old);
    let served = fixture.serve().await;
    fixture.notify(&served, &format!("apps/a:1@{}", new.root)).await;
    fixture.wait_for_copy("apps/a", "1", &new).await;
    wait_until("nothing is pending", async || metric(&served, "imgsync_hook_pending_pushes").await == 0.0).await;
    assert_eq!(metric(&served, "imgsync_hook_tag_waits_total").await, 0.0);
    served.stop().await.assert_code(0);
}

#[tokio::test]
async fn a_tag_that_lags_is_asked_for_again_and_holds_up_no_other_push() {
    let fixture = HookFixture::new("").await;
    let (late, other) = (image("late"), image("other"));
    fixture.source.push_untagged("apps/a", &late);
    fixture.source.push("apps/b", "1", &other);
    let served = fixture.serve().await;
    fixture.notify(&served, &format!("apps/a:1@{}", late.root)).await;
    served.wait_for_ended_batches(1).await;
    wait_until("it waits", async || metric(&served, "imgsync_hook_pending_pushes").await == 1.0).await;
    fixture.notify(&served, "apps/b:1").await;
    fixture.wait_for_copy("apps/b", "1", &other).await;
    assert_eq!(outcome(&served, "outdated").await, 0.0);
    fixture.source.move_tag("apps/a", "1", &late.root);
    fixture.wait_for_copy("apps/a", "1", &late).await;
    wait_until("nothing is pending", async || metric(&served, "imgsync_hook_pending_pushes").await == 0.0).await;
    for batch in served.wait_for_ended_batches(3).await {
        assert_eq!((&batch["counts"]["failed"], &batch["unlisted"]), (&json!(0), &json!(0)), "{batch:#}");
    }
    served.stop().await.assert_code(0);
}

#[tokio::test]
async fn a_repository_that_does_not_answer_holds_up_no_other_of_its_batch() {
    let fixture = HookFixture::new("").await;
    let app = image("app");
    for repository in ["apps/a", "apps/b", "apps/c"] {
        fixture.source.push(repository, "1", &app);
    }
    let gate = Arc::new(tokio::sync::Semaphore::new(0));
    let reads = RequestMatcher::kind(RequestType::ManifestHead).repository("apps/a");
    let held = fixture.source.on(reads).always().act(FaultAction::Gate(gate.clone()));
    let served = fixture.serve().await;
    let images = ["a", "b", "c"].map(|name| format!("{}/apps/{name}:1", fixture.source.host()));
    let request = served.notification("pushes").bearer_auth(SECRET).json(&json!({"images": images}));
    assert_eq!(send_json(request).await.0, 202);
    fixture.wait_for_copy("apps/b", "1", &app).await;
    fixture.wait_for_copy("apps/c", "1", &app).await;
    assert_eq!(fixture.target.tag_digest("m/apps/a", "1"), None);
    held.remove();
    gate.add_permits(1_000);
    fixture.wait_for_copy("apps/a", "1", &app).await;
    served.stop().await.assert_code(0);
}
