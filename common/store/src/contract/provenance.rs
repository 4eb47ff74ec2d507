//! Provenance of target tags, and what is recorded per batch.

use std::time::Duration;

use std::sync::Arc;

use jiff::Timestamp;

use super::{StoreUnderTest, locator, new_batch};
use crate::{EmptyRule, HashedFile, PruneOutcome, PruneRecord, TagProvenance};
use imgsync_model::batch::TagLocator;
use imgsync_oci::error::ErrorKind;
use imgsync_oci::{Algorithm, Digest};

fn tag_locator(registry: &str, path: &str, tag: &str) -> TagLocator {
    TagLocator { repository: Arc::new(locator(registry, path)), tag: tag.parse().unwrap() }
}

fn names(records: &[TagProvenance]) -> Vec<String> {
    records.iter().map(|record| format!("{} of {}", record.target, record.source_tag)).collect()
}

pub async fn a_target_tag_has_the_last_recorded_provenance(subject: StoreUnderTest) {
    let store = &subject.store;
    let (one, two) = (Digest::sha256(b"1"), Digest::from_bytes(Algorithm::Sha512, b"2"));
    let source = tag_locator("gcr.io", "a", "v1");
    assert_eq!(store.provenance_by_source(&source.repository).await.unwrap(), []);
    let targets = [
        tag_locator("b.example", "x", "v1"),
        tag_locator("a.example", "x", "other"),
        tag_locator("b.example", "x", "V1"),
    ];
    for target in &targets {
        store.record_provenance(&source, target, &one).await.unwrap();
        store.record_provenance(&source, target, &two).await.unwrap();
    }
    let found = store.provenance_by_source(&source.repository).await.unwrap();
    assert_eq!(names(&found), ["a.example/x:other of v1", "b.example/x:V1 of v1", "b.example/x:v1 of v1"]);
    assert!(found.iter().all(|record| record.digest == two && record.missing_since.is_none()), "{found:?}");
    // Another source has written the tag since.
    let other = tag_locator("gcr.io", "b", "v9");
    store.record_provenance(&other, &targets[0], &one).await.unwrap();
    assert_eq!(store.provenance_by_source(&source.repository).await.unwrap().len(), 2);
    assert_eq!(names(&store.provenance_by_source(&other.repository).await.unwrap()), ["b.example/x:v1 of v9"]);
    store.forget_provenance(&source.repository, &targets).await.unwrap();
    assert_eq!(store.provenance_by_source(&source.repository).await.unwrap(), []);
    assert_eq!(
        store.provenance_by_source(&other.repository).await.unwrap().len(),
        1,
        "it is not the source's to forget"
    );
    for n in 0..1_500 {
        let target = tag_locator("a.example", "many", &format!("v{n:04}"));
        store
            .record_provenance(&TagLocator { tag: target.tag.clone(), ..source.clone() }, &target, &one)
            .await
            .unwrap();
    }
    assert_eq!(store.provenance_sources().await.unwrap(), [(*source.repository).clone(), (*other.repository).clone()]);
    let found = store.provenance_by_source(&source.repository).await.unwrap();
    assert_eq!((found.len(), found[7].target.tag.as_str(), found[7].source_tag.as_str()), (1_500, "v0007", "v0007"));
    // One of many tags is found, changed and deleted like one of few.
    let (last, since) = (found[1_499].target.clone(), Timestamp::from_second(1_767_225_600).unwrap());
    store.set_missing_since(&source.repository, vec![(last.clone(), Some(since))]).await.unwrap();
    assert_eq!(store.provenance_by_source(&source.repository).await.unwrap()[1_499].missing_since, Some(since));
    store.forget_provenance(&source.repository, std::slice::from_ref(&last)).await.unwrap();
    assert_eq!(store.provenance_by_source(&source.repository).await.unwrap().len(), 1_499);
    let all: Vec<TagLocator> = found.into_iter().map(|record| record.target).collect();
    store.forget_provenance(&source.repository, &all).await.unwrap();
    assert_eq!(store.provenance_by_source(&source.repository).await.unwrap(), []);
    assert_eq!(
        store.provenance_sources().await.unwrap(),
        [(*other.repository).clone()],
        "nothing is left of what is forgotten"
    );
}

pub async fn unclaimed_since_is_kept_until_a_rule_makes_the_target(subject: StoreUnderTest) {
    let store = &subject.store;
    let digest = Digest::from_bytes(Algorithm::Sha512, b"1");
    let (source, target) = (tag_locator("gcr.io", "a", "v1"), tag_locator("b.example", "x", "v2"));
    let (since, missing) =
        (Timestamp::from_second(1_767_225_600).unwrap(), Timestamp::from_second(1_767_312_000).unwrap());
    let times = async || {
        let found = store.provenance_by_source(&source.repository).await.unwrap();
        assert_eq!(
            (found[0].digest.clone(), found[0].source_tag.as_str(), found[0].is_authentic),
            (digest.clone(), "v1", true)
        );
        (found[0].missing_since, found[0].unclaimed_since)
    };
    store.set_unclaimed_since(&source.repository, vec![(target.clone(), Some(since))]).await.unwrap();
    assert_eq!(store.provenance_by_source(&source.repository).await.unwrap(), [], "what is not known is not made up");
    store.record_provenance(&source, &target, &digest).await.unwrap();
    assert_eq!(times().await, (None, None));
    store.set_unclaimed_since(&source.repository, vec![(target.clone(), Some(since))]).await.unwrap();
    store.set_missing_since(&source.repository, vec![(target.clone(), Some(missing))]).await.unwrap();
    assert_eq!(times().await, (Some(missing), Some(since)));
    store.set_unclaimed_since(&locator("gcr.io", "other"), vec![(target.clone(), None)]).await.unwrap();
    store.set_missing_since(&source.repository, vec![(target.clone(), None)]).await.unwrap();
    assert_eq!(times().await, (None, Some(since)));
    store.set_unclaimed_since(&source.repository, vec![(target.clone(), None)]).await.unwrap();
    assert_eq!(times().await, (None, None));
    store.set_unclaimed_since(&source.repository, vec![(target.clone(), Some(since))]).await.unwrap();
    store.record_provenance(&source, &target, &digest).await.unwrap();
    assert_eq!(times().await, (None, None), "what was written again is some rule's");
}

pub async fn missing_since_is_kept_until_the_source_is_back(subject: StoreUnderTest) {
    let store = &subject.store;
    let digest = Digest::sha256(b"1");
    let (source, target) = (tag_locator("gcr.io", "a", "v1"), tag_locator("b.example", "x", "v2"));
    let since = Timestamp::from_second(1_767_225_600).unwrap();
    let missing = async || {
        store.provenance_by_source(&source.repository).await.unwrap().first().map(|record| record.missing_since)
    };
    store.set_missing_since(&source.repository, vec![(target.clone(), Some(since))]).await.unwrap();
    assert_eq!(missing().await, None, "what is not known is not made up");
    store.record_provenance(&source, &target, &digest).await.unwrap();
    store.set_missing_since(&source.repository, vec![(target.clone(), Some(since))]).await.unwrap();
    assert_eq!(missing().await, Some(Some(since)));
    let found = store.provenance_by_source(&source.repository).await.unwrap();
    assert_eq!(found[0].source_tag.as_str(), "v1");
    store.set_missing_since(&locator("gcr.io", "other"), vec![(target.clone(), None)]).await.unwrap();
    assert_eq!(missing().await, Some(Some(since)));
    store.set_missing_since(&source.repository, vec![(target.clone(), None)]).await.unwrap();
    assert_eq!(missing().await, Some(None));
    store.set_missing_since(&source.repository, vec![(target.clone(), Some(since))]).await.unwrap();
    store.record_provenance(&source, &target, &digest).await.unwrap();
    assert_eq!(missing().await, Some(None), "what was written again is there again");
}

pub async fn empty_rules_are_kept_with_their_batch(subject: StoreUnderTest) {
    let store = &subject.store;
    let batch = new_batch();
    let id = batch.id;
    let rule = |rule: u32, reason: &str| EmptyRule {
        rule,
        from: "gcr.io/a/**".to_owned(),
        repositories: 3,
        tags: 40,
        reason: reason.to_owned(),
    };
    assert_eq!(store.record_empty_rule(id, rule(1, "x")).await.unwrap_err().kind(), ErrorKind::NotFound);
    store.create(batch).await.unwrap();
    assert_eq!(store.empty_rules(id).await.unwrap(), []);
    for (number, reason) in [(12, "40 not a version"), (2, "x"), (2, "40 not >=9")] {
        store.record_empty_rule(id, rule(number, reason)).await.unwrap();
    }
    assert_eq!(store.empty_rules(id).await.unwrap(), [rule(2, "40 not >=9"), rule(12, "40 not a version")]);
}

pub async fn sent_notifications_are_kept_with_their_batch(subject: StoreUnderTest) {
    let store = &subject.store;
    let batch = new_batch();
    let id = batch.id;
    assert_eq!(store.record_notification(id, "0 webhook").await.unwrap_err().kind(), ErrorKind::NotFound);
    assert_eq!(store.sent_notifications(id).await.unwrap_err().kind(), ErrorKind::NotFound);
    store.create(batch).await.unwrap();
    store.complete_plan(id, crate::PlanSize::default()).await.unwrap();
    assert_eq!(store.sent_notifications(id).await.unwrap(), [""; 0]);
    for notified_target in ["0 webhook", "0", "0 webhook"] {
        store.record_notification(id, notified_target).await.unwrap();
    }
    assert_eq!(store.sent_notifications(id).await.unwrap(), ["0", "0 webhook"]);
    assert_eq!(store.remove_before((subject.now)() + Duration::from_secs(1)).await.unwrap(), 1);
    assert_eq!(store.sent_notifications(id).await.unwrap_err().kind(), ErrorKind::NotFound);
}

pub async fn a_hashed_file_is_known_in_that_version_only(subject: StoreUnderTest) {
    let store = &subject.store;
    let file = |folder: &str, content: &[u8], version: &str| HashedFile {
        folder: folder.to_owned(),
        digest: Digest::sha256(content),
        version: version.to_owned(),
    };
    assert!(!store.is_hashed_file(&file("/a", b"1", "v1")).await.unwrap());
    store.record_hashed_file(&file("/a", b"1", "v1")).await.unwrap();
    assert!(store.is_hashed_file(&file("/a", b"1", "v1")).await.unwrap());
    for other in [file("/b", b"1", "v1"), file("/a", b"2", "v1"), file("/a", b"1", "v2")] {
        assert!(!store.is_hashed_file(&other).await.unwrap(), "{other:?}");
    }
    store.record_hashed_file(&file("/a", b"1", "v2")).await.unwrap();
    assert!(!store.is_hashed_file(&file("/a", b"1", "v1")).await.unwrap(), "the last version stays");
    assert!(store.is_hashed_file(&file("/a", b"1", "v2")).await.unwrap());
}

pub async fn prune_records_are_kept_with_their_batch(subject: StoreUnderTest) {
    let store = &subject.store;
    let batch = new_batch();
    let id = batch.id;
    let line = |target: &str, outcome| PruneRecord {
        source: "gcr.io/a:v1".to_owned(),
        target: target.to_owned(),
        outcome,
        digest: Some(Digest::sha256(b"1")),
        reason: "because".to_owned(),
    };
    let unknown = store.record_pruned(id, line("b.example/x:v1", PruneOutcome::Left)).await.unwrap_err();
    assert_eq!(unknown.kind(), ErrorKind::NotFound);
    store.create(batch).await.unwrap();
    assert_eq!(store.prune_records(id).await.unwrap(), []);
    store.record_pruned(id, line("b.example/x:v2", PruneOutcome::Failed)).await.unwrap();
    store.record_pruned(id, line("b.example/x:v1", PruneOutcome::Left)).await.unwrap();
    store.complete_plan(id, crate::PlanSize::default()).await.unwrap();
    store.record_pruned(id, line("b.example/x:v2", PruneOutcome::Removed)).await.unwrap();
    let expected = [line("b.example/x:v2", PruneOutcome::Removed), line("b.example/x:v1", PruneOutcome::Left)];
    assert_eq!(store.prune_records(id).await.unwrap(), expected);
}
