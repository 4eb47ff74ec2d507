//! Data written under a wrong clock does no harm once the clock is right.

use std::time::Duration;

use jiff::Timestamp;

use super::{StoreUnderTest, new_batch, segment};
use crate::contract::locator;
use crate::{Account, ClaimResult, LeaseResult, NewBatch, QuotaPeriod, QuotaReport, ReclaimScope};
use imgsync_model::batch::{BatchId, TaskRef};
use imgsync_oci::Digest;

/// How far ahead the clock was.
const FAR: Duration = Duration::from_secs(400 * 24 * 60 * 60);
const MINUTE: Duration = Duration::from_secs(60);

pub async fn deadlines_in_the_far_future_have_expired(subject: StoreUnderTest) {
    let store = &subject.store;
    let account = Account::new(&"r.example.com".parse().unwrap(), "me");
    let pulls = account.with_category(crate::RateLimitCategory::Pulls);
    (subject.advance)(FAR);
    assert!(matches!(store.acquire("tag", "a", MINUTE).await.unwrap(), LeaseResult::Acquired { .. }));
    store.block_until(&account, (subject.now)() + MINUTE).await.unwrap();
    let report = QuotaReport {
        remaining: 0,
        limit: Some(100),
        reserve: 0,
        period: QuotaPeriod::WindowLength(Duration::from_secs(6 * 3600)),
    };
    store.record_quota(&account, &report).await.unwrap();
    let batch = subject.create_batch(2).await;
    let task_refs = subject.publish(batch).await;
    subject.claim(task_refs[0], "a").await;
    let holder = subject.claim(task_refs[1], "a").await;
    store.reschedule(task_refs[1], holder, MINUTE, true, Default::default()).await.unwrap();

    (subject.set_back)(FAR);
    assert_eq!(store.lease_holder("tag").await.unwrap(), None);
    assert!(matches!(store.acquire("tag", "b", MINUTE).await.unwrap(), LeaseResult::Acquired { .. }));
    assert_eq!(store.blocked_until(&[account.clone(), pulls.clone()]).await.unwrap(), [None, None]);
    assert!(matches!(subject.claim_task(task_refs[0], "b").await, ClaimResult::Claimed { losses: 1, .. }));
    let reclaimed = store.reclaim(batch, ReclaimScope::EmptyQueue { grace: MINUTE }).await.unwrap();
    assert_eq!((reclaimed.leased, reclaimed.queued), (0, 1), "what waits until then waits no more");
    // Data recorded now counts.
    let until = (subject.now)() + MINUTE;
    store.block_until(&account, until).await.unwrap();
    let ends = store.record_quota(&account, &report).await.unwrap();
    assert!(ends <= Duration::from_secs(6 * 3600), "{ends:?}");
    let held = store.blocked_until(&[account, pulls]).await.unwrap();
    assert_eq!(held[0].map(Timestamp::as_millisecond), Some(until.as_millisecond()));
    assert!(held[1].is_some_and(|until| until <= (subject.now)() + Duration::from_secs(6 * 3600)), "{held:?}");
}

pub async fn blobs_recorded_in_the_future_are_recorded_anew(subject: StoreUnderTest) {
    let store = &subject.store;
    let (here, blob) = (locator("r.example.com", "a"), Digest::sha256(b"blob"));
    (subject.advance)(FAR);
    store.record_blobs(&here, std::slice::from_ref(&blob)).await.unwrap();
    (subject.set_back)(FAR);
    let homes = store.find_blobs(here.endpoint(), std::slice::from_ref(&blob)).await.unwrap();
    assert_eq!(homes, [None], "where a blob will be is not known");
    store.record_blobs(&here, std::slice::from_ref(&blob)).await.unwrap();
    assert_eq!(store.find_blobs(here.endpoint(), &[blob]).await.unwrap(), [Some(here)]);
}

pub async fn a_batch_created_in_the_future_does_not_stay_newest_or_block_removal(subject: StoreUnderTest) {
    let store = &subject.store;
    let old = subject.create_batch(0).await;
    (subject.advance)(FAR);
    let future = (subject.now)().as_millisecond().unsigned_abs();
    let id = uuid::Builder::from_unix_timestamp_millis(future, &[7; 10]).into_uuid();
    let future = NewBatch { id: BatchId::from_bytes(*id.as_bytes()), ..new_batch() };
    let future_id = future.id;
    store.create(future).await.unwrap();
    store.append(future_id, segment("a/b", 1)).await.unwrap();
    (subject.set_back)(FAR);
    let newest = BatchId::generate_after(store.batches(1).await.unwrap().first().map(|batch| batch.id));
    store.create(NewBatch { id: newest, supersedes: Some(future_id), ..new_batch() }).await.unwrap();
    store.append(newest, segment("a/b", 1)).await.unwrap();
    let listed: Vec<BatchId> = store.batches(10).await.unwrap().iter().map(|batch| batch.id).collect();
    assert_eq!(listed, [newest, future_id, old]);
    assert_eq!(store.find_unfinished(&new_batch().rules).await.unwrap(), Some(newest));
    let task_ref = TaskRef { batch: future_id, index: 0, run: 0 };
    assert_eq!(subject.claim_task(task_ref, "a").await, ClaimResult::Cancelled, "it was superseded");
    // Old batches are removed although a future one is between them; that one is removed by its end time.
    (subject.advance)(Duration::from_secs(3600));
    assert_eq!(store.remove_before((subject.now)() - MINUTE).await.unwrap(), 3);
    assert_eq!(store.batches(10).await.unwrap(), []);
}
