//! Provenance of target tags, and what is recorded per batch.

use std::time::Duration;

use std::sync::Arc;

use jiff::Timestamp;

use super::{Subject, home, new_batch};
use crate::batch::Place;
use crate::error::Class;
use crate::image::{Algorithm, Digest};
use crate::store::{EmptyRule, HashedFile, Origin, PruneOutcome, Pruned};

fn place(registry: &str, path: &str, tag: &str) -> Place {
    Place { home: Arc::new(home(registry, path)), tag: tag.parse().unwrap() }
}

fn names(origins: &[Origin]) -> Vec<String> {
    origins.iter().map(|origin| format!("{} of {}", origin.target, origin.source_tag)).collect()
}

pub async fn a_target_tag_has_the_origin_that_was_noted_last(subject: Subject) {
    let store = &subject.store;
    let (one, two) = (Digest::sha256(b"1"), Digest::of(Algorithm::Sha512, b"2"));
    let source = place("gcr.io", "a", "v1");
    assert_eq!(store.origins(&source.home).await.unwrap(), []);
    let targets = [place("b.example", "x", "v1"), place("a.example", "x", "other"), place("b.example", "x", "V1")];
    for target in &targets {
        store.note_origin(&source, target, &one).await.unwrap();
        store.note_origin(&source, target, &two).await.unwrap();
    }
    let found = store.origins(&source.home).await.unwrap();
    assert_eq!(names(&found), ["a.example/x:other of v1", "b.example/x:V1 of v1", "b.example/x:v1 of v1"]);
    assert!(found.iter().all(|origin| origin.digest == two && origin.missing_since.is_none()), "{found:?}");
    // Another source has written the tag since.
    let other = place("gcr.io", "b", "v9");
    store.note_origin(&other, &targets[0], &one).await.unwrap();
    assert_eq!(store.origins(&source.home).await.unwrap().len(), 2);
    assert_eq!(names(&store.origins(&other.home).await.unwrap()), ["b.example/x:v1 of v9"]);
    store.forget_origins(&source.home, &targets).await.unwrap();
    assert_eq!(store.origins(&source.home).await.unwrap(), []);
    assert_eq!(store.origins(&other.home).await.unwrap().len(), 1, "it is not the source's to forget");
    for n in 0..1_500 {
        let target = place("a.example", "many", &format!("v{n:04}"));
        store.note_origin(&Place { tag: target.tag.clone(), ..source.clone() }, &target, &one).await.unwrap();
    }
    assert_eq!(store.origin_sources().await.unwrap(), [(*source.home).clone(), (*other.home).clone()]);
    let found = store.origins(&source.home).await.unwrap();
    assert_eq!((found.len(), found[7].target.tag.as_str(), found[7].source_tag.as_str()), (1_500, "v0007", "v0007"));
    // One of many tags is found, changed and deleted like one of few.
    let (last, since) = (found[1_499].target.clone(), Timestamp::from_second(1_767_225_600).unwrap());
    store.note_missing(&source.home, vec![(last.clone(), Some(since))]).await.unwrap();
    assert_eq!(store.origins(&source.home).await.unwrap()[1_499].missing_since, Some(since));
    store.forget_origins(&source.home, std::slice::from_ref(&last)).await.unwrap();
    assert_eq!(store.origins(&source.home).await.unwrap().len(), 1_499);
    let all: Vec<Place> = found.into_iter().map(|origin| origin.target).collect();
    store.forget_origins(&source.home, &all).await.unwrap();
    assert_eq!(store.origins(&source.home).await.unwrap(), []);
    assert_eq!(store.origin_sources().await.unwrap(), [(*other.home).clone()], "nothing is left of what is forgotten");
}

pub async fn since_when_no_rule_makes_a_target_is_kept_until_one_does(subject: Subject) {
    let store = &subject.store;
    let digest = Digest::of(Algorithm::Sha512, b"1");
    let (source, target) = (place("gcr.io", "a", "v1"), place("b.example", "x", "v2"));
    let (since, missing) =
        (Timestamp::from_second(1_767_225_600).unwrap(), Timestamp::from_second(1_767_312_000).unwrap());
    let times = async || {
        let found = store.origins(&source.home).await.unwrap();
        assert_eq!(
            (found[0].digest.clone(), found[0].source_tag.as_str(), found[0].is_authentic),
            (digest.clone(), "v1", true)
        );
        (found[0].missing_since, found[0].unclaimed_since)
    };
    store.note_unclaimed(&source.home, vec![(target.clone(), Some(since))]).await.unwrap();
    assert_eq!(store.origins(&source.home).await.unwrap(), [], "what is not known is not made up");
    store.note_origin(&source, &target, &digest).await.unwrap();
    assert_eq!(times().await, (None, None));
    store.note_unclaimed(&source.home, vec![(target.clone(), Some(since))]).await.unwrap();
    store.note_missing(&source.home, vec![(target.clone(), Some(missing))]).await.unwrap();
    assert_eq!(times().await, (Some(missing), Some(since)));
    store.note_unclaimed(&home("gcr.io", "other"), vec![(target.clone(), None)]).await.unwrap();
    store.note_missing(&source.home, vec![(target.clone(), None)]).await.unwrap();
    assert_eq!(times().await, (None, Some(since)));
    store.note_unclaimed(&source.home, vec![(target.clone(), None)]).await.unwrap();
    assert_eq!(times().await, (None, None));
    store.note_unclaimed(&source.home, vec![(target.clone(), Some(since))]).await.unwrap();
    store.note_origin(&source, &target, &digest).await.unwrap();
    assert_eq!(times().await, (None, None), "what was written again is some rule's");
}

pub async fn since_when_a_source_is_missing_is_kept_until_it_is_back(subject: Subject) {
    let store = &subject.store;
    let digest = Digest::sha256(b"1");
    let (source, target) = (place("gcr.io", "a", "v1"), place("b.example", "x", "v2"));
    let since = Timestamp::from_second(1_767_225_600).unwrap();
    let missing = async || store.origins(&source.home).await.unwrap().first().map(|origin| origin.missing_since);
    store.note_missing(&source.home, vec![(target.clone(), Some(since))]).await.unwrap();
    assert_eq!(missing().await, None, "what is not known is not made up");
    store.note_origin(&source, &target, &digest).await.unwrap();
    store.note_missing(&source.home, vec![(target.clone(), Some(since))]).await.unwrap();
    assert_eq!(missing().await, Some(Some(since)));
    let found = store.origins(&source.home).await.unwrap();
    assert_eq!(found[0].source_tag.as_str(), "v1");
    store.note_missing(&home("gcr.io", "other"), vec![(target.clone(), None)]).await.unwrap();
    assert_eq!(missing().await, Some(Some(since)));
    store.note_missing(&source.home, vec![(target.clone(), None)]).await.unwrap();
    assert_eq!(missing().await, Some(None));
    store.note_missing(&source.home, vec![(target.clone(), Some(since))]).await.unwrap();
    store.note_origin(&source, &target, &digest).await.unwrap();
    assert_eq!(missing().await, Some(None), "what was written again is there again");
}

pub async fn rules_that_chose_nothing_are_told_with_their_batch(subject: Subject) {
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
    assert_eq!(store.note_empty_rule(id, rule(1, "x")).await.unwrap_err().class(), Class::NotFound);
    store.create(batch).await.unwrap();
    assert_eq!(store.empty_rules(id).await.unwrap(), []);
    for (number, reason) in [(12, "40 not a version"), (2, "x"), (2, "40 not >=9")] {
        store.note_empty_rule(id, rule(number, reason)).await.unwrap();
    }
    assert_eq!(store.empty_rules(id).await.unwrap(), [rule(2, "40 not >=9"), rule(12, "40 not a version")]);
}

pub async fn whom_the_end_of_a_batch_was_told_to_is_kept_with_it(subject: Subject) {
    let store = &subject.store;
    let batch = new_batch();
    let id = batch.id;
    assert_eq!(store.note_told(id, "0 webhook").await.unwrap_err().class(), Class::NotFound);
    assert_eq!(store.told(id).await.unwrap_err().class(), Class::NotFound);
    store.create(batch).await.unwrap();
    store.seal_all(id).await.unwrap();
    assert_eq!(store.told(id).await.unwrap(), [""; 0]);
    for told in ["0 webhook", "0", "0 webhook"] {
        store.note_told(id, told).await.unwrap();
    }
    assert_eq!(store.told(id).await.unwrap(), ["0", "0 webhook"]);
    assert_eq!(store.remove_before((subject.now)() + Duration::from_secs(1)).await.unwrap(), 1);
    assert_eq!(store.told(id).await.unwrap_err().class(), Class::NotFound);
}

pub async fn a_file_that_was_hashed_is_known_in_that_version_alone(subject: Subject) {
    let store = &subject.store;
    let file = |folder: &str, content: &[u8], version: &str| HashedFile {
        folder: folder.to_owned(),
        digest: Digest::sha256(content),
        version: version.to_owned(),
    };
    assert!(!store.is_hashed(&file("/a", b"1", "v1")).await.unwrap());
    store.note_hashed(&file("/a", b"1", "v1")).await.unwrap();
    assert!(store.is_hashed(&file("/a", b"1", "v1")).await.unwrap());
    for other in [file("/b", b"1", "v1"), file("/a", b"2", "v1"), file("/a", b"1", "v2")] {
        assert!(!store.is_hashed(&other).await.unwrap(), "{other:?}");
    }
    store.note_hashed(&file("/a", b"1", "v2")).await.unwrap();
    assert!(!store.is_hashed(&file("/a", b"1", "v1")).await.unwrap(), "the last version stays");
    assert!(store.is_hashed(&file("/a", b"1", "v2")).await.unwrap());
}

pub async fn what_was_removed_is_told_with_its_batch(subject: Subject) {
    let store = &subject.store;
    let batch = new_batch();
    let id = batch.id;
    let line = |target: &str, outcome| Pruned {
        source: "gcr.io/a:v1".to_owned(),
        target: target.to_owned(),
        outcome,
        digest: Some(Digest::sha256(b"1")),
        reason: "because".to_owned(),
    };
    let unknown = store.note_pruned(id, line("b.example/x:v1", PruneOutcome::Left)).await.unwrap_err();
    assert_eq!(unknown.class(), Class::NotFound);
    store.create(batch).await.unwrap();
    assert_eq!(store.pruned(id).await.unwrap(), []);
    store.note_pruned(id, line("b.example/x:v2", PruneOutcome::Failed)).await.unwrap();
    store.note_pruned(id, line("b.example/x:v1", PruneOutcome::Left)).await.unwrap();
    store.seal_all(id).await.unwrap();
    store.note_pruned(id, line("b.example/x:v2", PruneOutcome::Removed)).await.unwrap();
    let expected = [line("b.example/x:v2", PruneOutcome::Removed), line("b.example/x:v1", PruneOutcome::Left)];
    assert_eq!(store.pruned(id).await.unwrap(), expected);
}
