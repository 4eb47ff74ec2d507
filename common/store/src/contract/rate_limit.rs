//! Concurrency permits, quotas, and monthly traffic.

use std::time::Duration;

use super::StoreUnderTest;
use crate::{
    Account, ConcurrencyClaim, ConcurrencyGrant, IdempotencyKey, QuotaPeriod, QuotaReport, RateLimitCategory,
    RateRequest,
};

const CLAIM_TTL: Duration = Duration::from_secs(10);

fn account() -> Account {
    Account::new(&"r.example".parse().unwrap(), "me")
}

fn claim(holder: &str, limit: u32, in_use: u32, wanted: u32) -> ConcurrencyClaim {
    ConcurrencyClaim { holder: holder.into(), limit, in_use, wanted, ttl: CLAIM_TTL }
}

pub async fn permits_are_shared_evenly_and_expire_with_their_holder(subject: StoreUnderTest) {
    let ask = async |holder: &str, using, wanted| {
        subject.store.claim_concurrency(&account(), &claim(holder, 8, using, wanted)).await.unwrap()
    };
    let share = |permits, contended| ConcurrencyGrant { permits, contended };
    assert_eq!(ask("one", 0, 20).await, share(8, false), "alone, it has all");
    assert_eq!(ask("two", 0, 20).await, share(0, false));
    assert_eq!(ask("one", 8, 20).await, share(4, true), "it is told to use fewer");
    assert_eq!(ask("two", 0, 20).await, share(0, false), "which it does not yet");
    assert_eq!(ask("one", 5, 20).await, share(4, true));
    assert_eq!(ask("two", 0, 20).await, share(3, false), "what is free is given");
    assert_eq!(ask("one", 4, 20).await, share(4, true));
    assert_eq!(ask("two", 3, 20).await, share(4, false));
    assert_eq!(ask("one", 4, 20).await, share(4, false), "all is even");
    let other = Account::new(&"r.example".parse().unwrap(), "you");
    let elsewhere = subject.store.claim_concurrency(&other, &claim("two", 8, 0, 2)).await.unwrap();
    assert_eq!(elsewhere, share(2, false), "accounts are counted apart");
    // One returns its permits, two dies.
    assert_eq!(ask("one", 0, 0).await, share(0, false));
    assert_eq!(ask("three", 0, 20).await, share(4, false));
    (subject.advance)(CLAIM_TTL / 2);
    assert_eq!(ask("three", 4, 20).await, share(4, false));
    (subject.advance)(CLAIM_TTL / 2 + Duration::from_secs(1));
    assert_eq!(ask("three", 4, 20).await, share(8, false));
}

pub async fn holders_rotate_when_there_are_fewer_permits_than_holders(subject: StoreUnderTest) {
    let ask = async |holder: &str, using| {
        subject.store.claim_concurrency(&account(), &claim(holder, 1, using, 5)).await.unwrap().permits
    };
    assert_eq!((ask("one", 0).await, ask("two", 0).await), (1, 0));
    (subject.advance)(Duration::from_millis(500));
    assert_eq!(ask("three", 0).await, 0);
    assert_eq!(ask("one", 1).await, 1, "it has its time");
    (subject.advance)(Duration::from_millis(500));
    assert_eq!(ask("one", 1).await, 0);
    assert_eq!((ask("three", 0).await, ask("two", 0).await), (0, 0), "what it has begun it may end");
    assert_eq!(ask("one", 0).await, 0, "others wait");
    assert_eq!((ask("three", 0).await, ask("two", 0).await), (0, 1), "who waited longest is next");
}

pub async fn a_low_quota_blocks_pulls_until_its_window_ends(subject: StoreUnderTest) {
    let report = |remaining, period| QuotaReport { remaining, limit: Some(100), period, reserve: 5 };
    let window = |remaining| report(remaining, QuotaPeriod::WindowLength(Duration::from_secs(60)));
    let record_quota_secs =
        async |report: QuotaReport| subject.store.record_quota(&account(), &report).await.unwrap().as_secs();
    let held = async || {
        let asked = [account(), account().with_category(RateLimitCategory::Pulls)];
        let until = subject.store.blocked_until(&asked).await.unwrap();
        assert_eq!(until[0], None, "nothing else is held off");
        until[1].map(|until| until.duration_since((subject.now)()).as_secs())
    };
    assert_eq!((record_quota_secs(window(90)).await, held().await), (60, None));
    (subject.advance)(Duration::from_secs(20));
    assert_eq!(
        (record_quota_secs(window(30)).await, held().await),
        (40, None),
        "the window began when it was first heard of"
    );
    assert_eq!((record_quota_secs(window(5)).await, held().await), (40, Some(40)));
    assert_eq!(
        (record_quota_secs(window(7)).await, held().await),
        (40, Some(40)),
        "an answer that was overtaken changes nothing"
    );
    (subject.advance)(Duration::from_secs(10));
    assert_eq!((record_quota_secs(window(99)).await, held().await), (60, None), "another window has begun");
    (subject.advance)(Duration::from_secs(60));
    assert_eq!((record_quota_secs(window(0)).await, held().await), (60, Some(60)), "and another");
    (subject.advance)(Duration::from_secs(60));
    assert_eq!(held().await, None);
    let reset = QuotaPeriod::ResetsIn(Duration::from_secs(7));
    assert_eq!(
        (record_quota_secs(report(0, reset)).await, held().await),
        (7, Some(7)),
        "where its end is told, that holds"
    );
}

pub async fn traffic_is_summed_per_machine_and_month(subject: StoreUnderTest) {
    let note = async |machine: &str, month: &str, bytes| {
        subject.store.add_traffic(machine, month, bytes, IdempotencyKey::generate()).await.unwrap()
    };
    assert_eq!(note("here", "2026-11", 0).await, 0);
    assert_eq!(note("here", "2026-11", 1 << 40).await, 1 << 40);
    assert_eq!(note("here", "2026-11", 5).await, (1 << 40) + 5);
    assert_eq!((note("there", "2026-11", 7).await, note("here", "2026-12", 8).await), (7, 8));
}

pub async fn learned_rates_can_be_read(subject: StoreUnderTest) {
    let other = Account::new(&"r.example".parse().unwrap(), "you");
    let learned_rates = async || subject.store.learned_rates(&[account(), other.clone()]).await.unwrap();
    assert_eq!(learned_rates().await, [None, None]);
    let ask = RateRequest { wanted: 1, sent: 40, ..RateRequest::default() };
    subject.store.record_throttled(&account(), Duration::from_secs(1), &ask).await.unwrap();
    let [Some(rate), None] = learned_rates().await[..] else { panic!("what one account learnt is not of another") };
    assert!((10.0..=40.0).contains(&rate), "{rate}");
    (subject.advance)(Duration::from_secs(601));
    assert_eq!(learned_rates().await, [None, None]);
}
