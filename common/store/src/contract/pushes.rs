//! Contract of [`PushInbox`](crate::PushInbox).

use std::time::Duration;

use super::StoreUnderTest;
use crate::{
    AddedPushes, MAX_PENDING_PUSHES, PUSH_ID_TTL, PendingPush, Postponed, PushRule, ReceivedPush, hash_push_id,
};
use imgsync_model::batch::PushedReference;
use imgsync_oci::Digest;

const NEVER: Postponed = Postponed { checks: 0, lags: 0, failures: 0 };

fn push(id: Option<&str>, tag: &str, content: &str, rules: &[&str]) -> ReceivedPush {
    let repository = "a/b".parse().unwrap();
    let reference = PushedReference::Tag(tag.parse().unwrap(), Some(Digest::sha256(content.as_bytes())));
    ReceivedPush {
        id: id.map(|id| hash_push_id("hook", id, &repository, &reference)),
        registry: "r.example".parse().unwrap(),
        repository,
        reference,
        rules: rules.iter().map(|id| rule(id)).collect(),
    }
}

fn rule(id: &str) -> PushRule {
    PushRule { id: id.to_owned(), name: format!("name | of {id}") }
}

fn kept(added: u64, coalesced: u64, repeated: u64) -> AddedPushes {
    AddedPushes { added, coalesced, repeated }
}

async fn pending(subject: &StoreUnderTest) -> Vec<PendingPush> {
    let mut pending = subject.store.pending_pushes().await.unwrap();
    pending.sort_by_key(|pending| (pending.rule.clone(), format!("{:?}", pending.pushed)));
    pending
}

pub async fn a_push_is_pending_once_for_each_rule_with_its_last_digest(subject: StoreUnderTest) {
    assert_eq!(pending(&subject).await, []);
    let first_at = (subject.now)();
    let store = &subject.store;
    assert_eq!(store.add_pushes(vec![push(Some("1"), "v1", "x", &["a", "b"])]).await.unwrap(), kept(1, 0, 0));
    (subject.advance)(Duration::from_secs(2));
    let again = vec![push(Some("2"), "v1", "y", &["a"]), push(Some("3"), "v2", "z", &["a"])];
    assert_eq!(store.add_pushes(again).await.unwrap(), kept(1, 1, 0));
    let found = pending(&subject).await;
    let v1 = |content: &str| push(None, "v1", content, &[]).reference;
    let references: Vec<_> = found.iter().map(|push| (push.rule.as_str(), push.pushed.clone().unwrap().2)).collect();
    assert_eq!(references, [("a", v1("y")), ("a", push(None, "v2", "z", &[]).reference), ("b", v1("x"))]);
    assert_eq!((found[0].notifications, found[1].notifications), (2, 1));
    assert_eq!((found[0].first_at, found[0].last_at), (first_at, (subject.now)()));
}

pub async fn a_repeated_notification_changes_nothing(subject: StoreUnderTest) {
    let store = &subject.store;
    store.add_pushes(vec![push(Some("1"), "v1", "x", &["a"])]).await.unwrap();
    let before = pending(&subject).await;
    (subject.advance)(Duration::from_secs(2));
    let again = vec![push(Some("1"), "v1", "x", &["a"]), push(Some("1"), "v1", "x", &["a"])];
    assert_eq!(store.add_pushes(again).await.unwrap(), kept(0, 0, 2));
    assert_eq!(pending(&subject).await, before);
    // Some senders give one id to several pushes.
    assert_eq!(store.add_pushes(vec![push(Some("1"), "v9", "x", &["a"])]).await.unwrap(), kept(1, 0, 0));
    store.remove_pushes(&pending(&subject).await).await.unwrap();
    assert_eq!(store.add_pushes(vec![push(Some("1"), "v1", "x", &["a"])]).await.unwrap(), kept(0, 0, 1));
    assert_eq!(pending(&subject).await, [], "also once it is copied");
    (subject.advance)(PUSH_ID_TTL + Duration::from_secs(1));
    assert_eq!(store.add_pushes(vec![push(Some("1"), "v1", "x", &["a"])]).await.unwrap(), kept(1, 0, 0));
}

pub async fn what_arrives_after_the_read_stays_pending(subject: StoreUnderTest) {
    let store = &subject.store;
    store.add_pushes(vec![push(None, "v1", "x", &["a"]), push(None, "v2", "x", &["a"])]).await.unwrap();
    let read = pending(&subject).await;
    store.add_pushes(vec![push(None, "v2", "y", &["a"])]).await.unwrap();
    store.remove_pushes(&read).await.unwrap();
    store.remove_pushes(&read).await.unwrap();
    // The same push again is another one, also if it has had as many notifications.
    (subject.advance)(Duration::from_secs(1));
    store.add_pushes(vec![push(None, "v1", "z", &["a"])]).await.unwrap();
    store.remove_pushes(&read).await.unwrap();
    store.postpone_pushes(&read, (subject.now)()).await.unwrap();
    let mut left = pending(&subject).await;
    let again = left.remove(0);
    assert_eq!((again.pushed.unwrap().2, again.postponed), (push(None, "v1", "z", &[]).reference, NEVER));
    assert_eq!(left.len(), 1);
    assert_eq!(left[0].pushed.clone().unwrap().2, push(None, "v2", "y", &[]).reference);
}

pub async fn a_postponed_push_is_due_again_with_its_next_notification(subject: StoreUnderTest) {
    let store = &subject.store;
    store.add_pushes(vec![push(None, "v1", "x", &["a"]), push(None, "v2", "x", &["a"])]).await.unwrap();
    let read = pending(&subject).await;
    store.add_pushes(vec![push(None, "v2", "y", &["a"])]).await.unwrap();
    let until = (subject.now)() + Duration::from_secs(60);
    let counts = Postponed { checks: 1, lags: 255, failures: 26 };
    let read: Vec<_> = read.into_iter().map(|push| PendingPush { postponed: counts, ..push }).collect();
    store.postpone_pushes(&read, until).await.unwrap();
    let postponed = pending(&subject).await;
    let times =
        |pending: &[PendingPush]| -> Vec<_> { pending.iter().map(|push| (push.not_before, push.postponed)).collect() };
    assert_eq!(times(&postponed), [(Some(until), counts), (None, NEVER)], "the second one has arrived again");
    store.postpone_pushes(&postponed[..1], until).await.unwrap();
    assert_eq!(times(&pending(&subject).await), [(Some(until), counts), (None, NEVER)]);
    assert_eq!(store.add_pushes(vec![push(None, "v1", "z", &["a"])]).await.unwrap(), kept(0, 1, 0));
    let again = pending(&subject).await;
    assert_eq!(times(&again), [(None, NEVER), (None, NEVER)]);
    assert_eq!(again[0].pushed.clone().unwrap().2, push(None, "v1", "z", &[]).reference);
}

pub async fn too_many_pushes_make_the_whole_rule_due(subject: StoreUnderTest) {
    let store = &subject.store;
    let many = |from: usize, to: usize| -> Vec<ReceivedPush> {
        (from..to).map(|number| push(None, &format!("v{number}"), "x", &["a"])).collect()
    };
    store.add_pushes(many(0, MAX_PENDING_PUSHES)).await.unwrap();
    assert!(pending(&subject).await.iter().all(|pending| pending.pushed.is_some()));
    let more = many(MAX_PENDING_PUSHES - 1, MAX_PENDING_PUSHES + 20);
    assert_eq!(store.add_pushes(more).await.unwrap(), kept(20, 1, 0));
    store.add_pushes(vec![push(None, "v1", "x", &["b"])]).await.unwrap();
    let found = pending(&subject).await;
    assert_eq!(found.len(), MAX_PENDING_PUSHES + 2);
    let whole: Vec<_> = found.iter().filter(|pending| pending.pushed.is_none()).collect();
    assert_eq!((whole.len(), whole[0].rule.as_str(), whole[0].notifications), (1, "a", 20));
    assert_eq!(whole[0].rule_name, rule("a").name);
    assert!(found.iter().filter(|pending| pending.pushed.is_some()).all(|pending| pending.rule_name.is_empty()));
    // Those that are postponed leave room, also the whole rule; the next notification makes it due again.
    store.postpone_pushes(&found, (subject.now)() + Duration::from_secs(60)).await.unwrap();
    let last = MAX_PENDING_PUSHES + 20;
    assert_eq!(store.add_pushes(many(last, last + MAX_PENDING_PUSHES + 1)).await.unwrap().added, 1_001);
    let found = pending(&subject).await;
    assert_eq!(found.len(), 2 * MAX_PENDING_PUSHES + 2);
    let whole = found.iter().find(|pending| pending.pushed.is_none()).unwrap();
    assert_eq!((whole.notifications, whole.not_before, whole.postponed), (21, None, NEVER));
    store.remove_pushes(&found).await.unwrap();
    assert_eq!(pending(&subject).await, []);
}

pub async fn a_whole_rule_is_due_on_request(subject: StoreUnderTest) {
    let store = &subject.store;
    store.add_whole_runs(vec![rule("a"), rule("b")]).await.unwrap();
    let found = pending(&subject).await;
    let names: Vec<_> = found.iter().map(|push| (push.rule.as_str(), push.rule_name.clone())).collect();
    assert_eq!(names, [("a", rule("a").name), ("b", rule("b").name)]);
    assert!(found.iter().all(|push| push.pushed.is_none() && push.notifications == 1 && push.not_before.is_none()));
    // One that is pending stays one.
    store.postpone_pushes(&found[..1], (subject.now)() + Duration::from_secs(60)).await.unwrap();
    let renamed = PushRule { name: "another name".to_owned(), ..rule("a") };
    store.add_whole_runs(vec![renamed]).await.unwrap();
    let again = pending(&subject).await;
    assert_eq!((again.len(), again[0].rule_name.as_str()), (2, "another name"));
    assert_eq!((again[0].notifications, again[0].not_before, again[0].postponed), (2, None, NEVER));
    store.remove_pushes(&again).await.unwrap();
    assert_eq!(pending(&subject).await, []);
}
