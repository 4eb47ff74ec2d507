//! Digest cache, blob index, rate limits, leases, worker registry and schedules.

use std::collections::HashMap;
use std::time::Duration;

use jiff::Timestamp;

use super::{StoreUnderTest, endpoint, locator};
use crate::{
    Account, BLOB_GENERATION, BlobProof, BrokerAlarm, CacheScope, CachedTag, DigestCache, HEARTBEAT_TTL, Heartbeat,
    LastRun, LeaseResult, PROOF_TTL, ROUTE_RETENTION, RateGrant, RateRequest, RouteThroughput, UnservedRoute,
    export_cache, import_cache,
};
use imgsync_model::batch::{BatchId, Priority, Route};
use imgsync_oci::{Algorithm, Digest, Tag};

fn scope(path: &str, options: &str) -> CacheScope {
    CacheScope { repository: locator("target.example", path), options: options.into() }
}

fn tag(text: &str) -> Tag {
    text.parse().unwrap()
}

fn cached_tag(source: &str, seconds: i64) -> CachedTag {
    let source = Digest::sha256(source.as_bytes());
    let seen_at = Timestamp::from_second(1_767_225_600 + seconds).unwrap();
    CachedTag { target: source.clone(), source, seen_at, referrers_at: None }
}

pub async fn the_cache_returns_the_last_value(subject: StoreUnderTest) {
    let (here, tags) = (scope("a/b", ""), [tag("v1"), tag("V1"), tag("v2")]);
    assert_eq!(subject.store.cached_tags(&here, &tags).await.unwrap(), [None, None, None]);
    let other = CachedTag {
        target: Digest::from_bytes(Algorithm::Sha512, b"cut to a platform"),
        referrers_at: Some(Timestamp::from_second(1_767_000_000).unwrap()),
        ..cached_tag("1", 5)
    };
    let entries = vec![(tags[0].clone(), cached_tag("0", 0)), (tags[2].clone(), other.clone())];
    subject.store.cache_tags(&here, entries).await.unwrap();
    let expected = [Some(cached_tag("0", 0)), None, Some(other.clone())];
    assert_eq!(subject.store.cached_tags(&here, &tags).await.unwrap(), expected, "tags differ by case");
    subject.store.cache_tags(&here, vec![(tags[0].clone(), cached_tag("new", 9))]).await.unwrap();
    subject.store.cache_tags(&here, Vec::new()).await.unwrap();
    let expected = [Some(cached_tag("new", 9)), None, Some(other)];
    assert_eq!(subject.store.cached_tags(&here, &tags).await.unwrap(), expected);
}

pub async fn the_cache_separates_options_and_forgets_tags_repositories_and_endpoints(subject: StoreUnderTest) {
    let scopes = [scope("a", ""), scope("a", "linux/amd64"), scope("a/b", "")];
    let elsewhere = CacheScope { repository: locator("other.example", "a"), options: "".into() };
    let one = [tag("v1")];
    let fill = async || {
        for here in scopes.iter().chain([&elsewhere]) {
            subject.store.cache_tags(here, vec![(tag("v1"), cached_tag(&here.options, 0))]).await.unwrap();
        }
    };
    let count = async || {
        let mut there = Vec::new();
        for here in scopes.iter().chain([&elsewhere]) {
            there.push(subject.store.cached_tags(here, &one).await.unwrap()[0].is_some());
        }
        there
    };
    fill().await;
    assert_eq!(subject.store.cached_tags(&scopes[1], &one).await.unwrap(), [Some(cached_tag("linux/amd64", 0))]);
    subject.store.forget_tags(&scopes[0], &one).await.unwrap();
    assert_eq!(count().await, [false, true, true, true]);
    fill().await;
    assert_eq!(subject.store.forget_repository(&scopes[0].repository).await.unwrap(), 2);
    assert_eq!(count().await, [false, false, true, true]);
    fill().await;
    assert_eq!(subject.store.forget_endpoint(&endpoint("target.example")).await.unwrap(), 3);
    assert_eq!(count().await, [false, false, false, true]);
}

pub async fn an_exported_cache_is_imported_whole(subject: StoreUnderTest) {
    let mut entries: HashMap<String, Vec<(Tag, CachedTag)>> = HashMap::new();
    for n in 0..2_500 {
        let mut entry = cached_tag(&n.to_string(), n);
        if n % 3 == 0 {
            entry.target = Digest::sha256(b"another");
            entry.referrers_at = Some(entry.seen_at);
        }
        entries.entry(format!("r{}", n % 7)).or_default().push((tag(&format!("v{n}")), entry));
    }
    for (path, tags) in &entries {
        subject
            .store
            .cache_tags(&scope(path, if path == "r3" { "linux/arm64" } else { "" }), tags.clone())
            .await
            .unwrap();
    }
    let cache: &dyn DigestCache = &*subject.store;
    let mut exported = Vec::new();
    assert_eq!(export_cache(cache, &mut exported).await.unwrap(), 2_500);
    assert_eq!(exported.iter().filter(|byte| **byte == b'\n').count(), 2_500);
    subject.store.forget_endpoint(&endpoint("target.example")).await.unwrap();
    let imported = import_cache(cache, &mut &*exported).await.unwrap();
    assert_eq!((imported.tags, imported.refused.len()), (2_500, 0));
    for (path, tags) in &entries {
        let names: Vec<_> = tags.iter().map(|(tag, _)| tag.clone()).collect();
        let here = scope(path, if path == "r3" { "linux/arm64" } else { "" });
        let expected: Vec<_> = tags.iter().map(|(_, known)| Some(known.clone())).collect();
        assert_eq!(subject.store.cached_tags(&here, &names).await.unwrap(), expected);
    }
    let mut again = Vec::new();
    export_cache(cache, &mut again).await.unwrap();
    assert_eq!(again, exported);
}

pub async fn an_import_keeps_newer_entries_and_reports_bad_lines(subject: StoreUnderTest) {
    let here = scope("a", "");
    subject
        .store
        .cache_tags(&here, vec![(tag("v1"), cached_tag("new", 100)), (tag("v2"), cached_tag("old", 0))])
        .await
        .unwrap();
    let line = |tag: &str, second: i64| {
        let digest = Digest::sha256(b"imported");
        let seen = 1_767_225_600 + second;
        format!(r#"{{"registry":"target.example","repository":"a","tag":"{tag}","source":"{digest}","seen":{seen}}}"#)
    };
    let text = format!("{}\nnot json\n\n{}\n{}", line("v1", 50), line("v2", 50), line("no tag", 1));
    let cache: &dyn DigestCache = &*subject.store;
    let imported = import_cache(cache, &mut text.as_bytes()).await.unwrap();
    assert_eq!(imported.tags, 2);
    assert_eq!(imported.refused.iter().map(|(line, _)| *line).collect::<Vec<_>>(), [2, 5]);
    let found = subject.store.cached_tags(&here, &[tag("v1"), tag("v2")]).await.unwrap();
    assert_eq!(found, [Some(cached_tag("new", 100)), Some(cached_tag("imported", 50))]);
}

pub async fn a_blob_is_found_where_it_was_last_seen_and_forgotten_with_age(subject: StoreUnderTest) {
    let target = endpoint("target.example");
    let (one, two) = (locator("target.example", "one"), locator("target.example", "two"));
    let blobs = [Digest::sha256(b"a"), Digest::sha256(b"b"), Digest::from_bytes(Algorithm::Sha512, b"c")];
    let find = async || subject.store.find_blobs(&target, &blobs).await.unwrap();
    subject.store.record_blobs(&one, &blobs).await.unwrap();
    subject.store.record_blobs(&two, &blobs[..1]).await.unwrap();
    subject.store.record_blobs(&locator("other.example", "x"), &blobs).await.unwrap();
    assert_eq!(find().await, [Some(two.clone()), Some(one.clone()), Some(one.clone())]);
    subject.store.forget_blob(&one, &blobs[0]).await.unwrap();
    subject.store.forget_blob(&one, &blobs[1]).await.unwrap();
    assert_eq!(find().await, [Some(two.clone()), None, Some(one.clone())], "what is known of it elsewhere stays");

    (subject.advance)(BLOB_GENERATION);
    assert_eq!(find().await, [Some(two.clone()), None, Some(one.clone())]);
    subject.store.record_blobs(&two, &blobs[..1]).await.unwrap();
    (subject.advance)(BLOB_GENERATION);
    assert_eq!(find().await, [Some(two.clone()), None, None]);
    subject.store.record_blobs(&one, &blobs[1..2]).await.unwrap();
    (subject.advance)(BLOB_GENERATION);
    assert_eq!(find().await, [None, Some(one), None]);
}

pub async fn a_proof_is_of_one_source_and_one_blob_and_believed_for_seven_days(subject: StoreUnderTest) {
    let (one, two) = (locator("source.example", "one"), locator("source.example", "two"));
    let (a, b) = (Digest::sha256(b"a"), Digest::from_bytes(Algorithm::Sha512, b"b"));
    let wanted = [
        BlobProof::for_repository(&one, &a),
        BlobProof::for_repository(&two, &a),
        BlobProof::for_repository(&one, &b),
        BlobProof::for_public_blob(&a),
    ];
    let find = async || subject.store.check_proofs(&wanted).await.unwrap();
    assert_eq!(find().await, [false; 4]);
    subject.store.record_proofs(&[BlobProof::for_repository(&one, &a)]).await.unwrap();
    subject.store.record_proofs(&[]).await.unwrap();
    assert_eq!(find().await, [true, false, false, false]);
    let hour = Duration::from_secs(3600);
    (subject.advance)(PROOF_TTL - 2 * hour);
    assert_eq!(find().await, [true, false, false, false]);
    subject.store.record_proofs(&wanted[1..]).await.unwrap();
    (subject.advance)(2 * hour);
    assert_eq!(find().await, [false, true, true, true], "it is asked for again");
    (subject.advance)(PROOF_TTL - 3 * hour);
    assert_eq!(find().await, [false, true, true, true]);
    (subject.advance)(2 * hour);
    assert_eq!(find().await, [false; 4]);
}

pub async fn the_latest_block_holds_until_it_ends(subject: StoreUnderTest) {
    let account = |who: &str| Account::new(&"gcr.io".parse().unwrap(), who);
    let accounts = [account("robot"), account("")];
    let now = (subject.now)();
    let (soon, late) = (now + Duration::from_secs(10), now + Duration::from_secs(60));
    assert_eq!(subject.store.blocked_until(&accounts).await.unwrap(), [None, None]);
    subject.store.block_until(&accounts[0], late).await.unwrap();
    subject.store.block_until(&accounts[0], soon).await.unwrap();
    subject.store.block_until(&accounts[1], soon).await.unwrap();
    assert_eq!(subject.store.blocked_until(&accounts).await.unwrap(), [Some(late), Some(soon)]);
    (subject.advance)(Duration::from_secs(10));
    assert_eq!(subject.store.blocked_until(&accounts).await.unwrap(), [Some(late), None]);
}

fn account(who: &str) -> Account {
    Account::new(&"r.example".parse().unwrap(), who)
}

fn slots(grant: RateGrant) -> Vec<u64> {
    match grant {
        RateGrant::Scheduled(turns) => turns.iter().map(|wait| u64::try_from(wait.as_millis()).unwrap()).collect(),
        other => panic!("{other:?} are no turns"),
    }
}

pub async fn a_rate_limit_is_shared_by_all_processes(subject: StoreUnderTest) {
    let ask = |wanted| RateRequest { limit: Some(20.0), wanted, ..RateRequest::default() };
    let grant = async |who: &str, wanted| subject.store.acquire_rate(&account(who), &ask(wanted)).await.unwrap();
    assert_eq!(slots(grant("me", 3).await), [0, 0, 0]);
    assert_eq!(slots(grant("me", 3).await), [0, 0, 50]);
    assert_eq!(slots(grant("you", 1).await), [0], "accounts are counted apart");
    assert_eq!(slots(grant("me", 100).await), [100, 150, 200, 250, 300, 350], "a block is a quarter of a second");
    (subject.advance)(Duration::from_millis(300));
    assert_eq!(slots(grant("me", 1).await), [100]);
    (subject.advance)(Duration::from_secs(10));
    assert_eq!(slots(grant("me", 6).await), [0, 0, 0, 0, 0, 50], "what was not used is lost but for the burst");
}

pub async fn requests_of_a_blocked_account_have_to_wait(subject: StoreUnderTest) {
    let ask = RateRequest { limit: Some(20.0), wanted: 1, ..RateRequest::default() };
    let (me, free) = (account("me"), RateRequest { wanted: 1, ..RateRequest::default() });
    let seconds = |seconds| RateGrant::Wait(Duration::from_secs(seconds));
    subject.store.record_throttled(&me, Duration::from_secs(40), &ask).await.unwrap();
    subject.store.record_throttled(&me, Duration::from_secs(1), &ask).await.unwrap();
    assert_eq!(subject.store.acquire_rate(&me, &ask).await.unwrap(), seconds(40));
    assert_eq!(
        subject.store.blocked_until(std::slice::from_ref(&me)).await.unwrap(),
        [Some((subject.now)() + Duration::from_secs(40))]
    );
    (subject.advance)(Duration::from_secs(30));
    assert_eq!(subject.store.acquire_rate(&me, &free).await.unwrap(), seconds(10), "limit or none");
    subject.store.block_until(&me, (subject.now)() + Duration::from_secs(60)).await.unwrap();
    assert_eq!(subject.store.acquire_rate(&me, &free).await.unwrap(), seconds(60), "whoever said so");
    (subject.advance)(Duration::from_secs(60));
    assert_eq!(slots(subject.store.acquire_rate(&me, &ask).await.unwrap()), [0]);
    assert_eq!(
        subject.store.acquire_rate(&me, &free).await.unwrap(),
        RateGrant::Unlimited,
        "with a limit nothing is learnt"
    );
}

pub async fn a_429_teaches_a_rate_that_expires(subject: StoreUnderTest) {
    let me = account("");
    let grant = async |sent, wanted| {
        let ask = RateRequest { sent, wanted, ..RateRequest::default() };
        subject.store.acquire_rate(&me, &ask).await.unwrap()
    };
    assert_eq!(grant(60, 1).await, RateGrant::Unlimited);
    assert_eq!(grant(10, 1).await, RateGrant::Unlimited);
    let ask = RateRequest { sent: 10, ..RateRequest::default() };
    for _ in 0..3 {
        subject.store.record_throttled(&me, Duration::from_millis(100), &ask).await.unwrap();
    }
    (subject.advance)(Duration::from_millis(100));
    let spread = slots(grant(0, 100).await);
    // Forty per second and little growth so far: ten at once, then one every 25 ms.
    assert_eq!(spread.iter().filter(|wait| **wait == 0).count(), 10, "{spread:?}");
    assert!((19..=21).contains(&spread.len()), "{spread:?}");
    (subject.advance)(Duration::from_secs(5));
    subject.store.record_throttled(&me, Duration::ZERO, &RateRequest::default()).await.unwrap();
    assert_eq!(slots(grant(0, 100).await).iter().filter(|wait| **wait == 0).count(), 5, "halved again");
    (subject.advance)(Duration::from_secs(599));
    assert!(matches!(grant(0, 1).await, RateGrant::Scheduled(_)));
    (subject.advance)(Duration::from_secs(1));
    assert_eq!(grant(0, 1).await, RateGrant::Unlimited);
}

pub async fn slow_start_happens_once(subject: StoreUnderTest) {
    let ask = RateRequest { slow_start: true, wanted: 1_000, ..RateRequest::default() };
    let grant = async || subject.store.acquire_rate(&account(""), &ask).await.unwrap();
    let mut at_once = Vec::new();
    while let RateGrant::Scheduled(turns) = grant().await {
        at_once.push(turns.iter().filter(|wait| wait.is_zero()).count());
        (subject.advance)(Duration::from_secs(1));
    }
    assert_eq!(at_once, [25, 50, 100, 200, 256], "it doubles each second, and a block has its bounds");
    (subject.advance)(Duration::from_secs(60));
    assert_eq!(grant().await, RateGrant::Unlimited);
}

pub async fn a_lease_has_one_holder_and_its_tokens_grow(subject: StoreUnderTest) {
    let lease = Duration::from_secs(30);
    let ask = async |holder: &str| subject.store.acquire("leader", holder, lease).await.unwrap();
    let LeaseResult::Acquired { token: first } = ask("one").await else { panic!("nobody has it") };
    let until = (subject.now)() + lease;
    assert_eq!(ask("two").await, LeaseResult::HeldBy { holder: "one".into(), until });
    assert!(matches!(subject.store.acquire("other name", "two", lease).await.unwrap(), LeaseResult::Acquired { .. }));
    (subject.advance)(Duration::from_secs(20));
    assert_eq!(subject.store.lease_holder("leader").await.unwrap().as_deref(), Some("one"));
    assert_eq!(subject.store.lease_holder("nothing").await.unwrap(), None);
    assert_eq!(ask("one").await, LeaseResult::Acquired { token: first }, "renewed");
    (subject.advance)(Duration::from_secs(20));
    assert!(matches!(ask("two").await, LeaseResult::HeldBy { .. }));
    subject.store.release("leader", "two").await.unwrap();
    assert!(matches!(ask("two").await, LeaseResult::HeldBy { .. }), "it was not two's to release");
    subject.store.release("leader", "one").await.unwrap();
    let LeaseResult::Acquired { token: second } = ask("two").await else { panic!("it is free") };
    (subject.advance)(Duration::from_secs(31));
    assert_eq!(subject.store.lease_holder("leader").await.unwrap(), None, "it has run out");
    let LeaseResult::Acquired { token: third } = ask("one").await else { panic!("it has run out") };
    assert!(first < second && second < third);
}

fn heartbeat(worker: &str, slots: u32) -> Heartbeat {
    Heartbeat {
        worker: worker.into(),
        host: "here".into(),
        version: "3.0.0".into(),
        started_at: Timestamp::from_second(1_767_225_600).unwrap(),
        config_hash: None,
        slots,
        draining: false,
        running: Vec::new(),
        unserved: vec![UnservedRoute { route: route("gcr.io"), reason: "no way there".into() }],
        refused: 0,
        refusal_reason: None,
        broker_nodes: Vec::new(),
        store_master: None,
    }
}

fn route(source: &str) -> Route {
    Route { target_credential: Some("robot".into()), ..Route::anonymous(endpoint(source), endpoint("target.example")) }
}

pub async fn a_worker_is_listed_until_its_heartbeat_expires(subject: StoreUnderTest) {
    let send_heartbeat = async |heartbeat: Heartbeat| subject.store.heartbeat(heartbeat, HEARTBEAT_TTL).await.unwrap();
    let workers = async || subject.store.workers().await.unwrap();
    assert_eq!(workers().await, []);
    send_heartbeat(heartbeat("two", 1)).await;
    send_heartbeat(heartbeat("one", 1)).await;
    assert_eq!(workers().await, [heartbeat("one", 1), heartbeat("two", 1)]);
    (subject.advance)(HEARTBEAT_TTL / 2);
    send_heartbeat(heartbeat("one", 5)).await;
    (subject.advance)(HEARTBEAT_TTL / 2 + Duration::from_secs(1));
    assert_eq!(workers().await, [heartbeat("one", 5)]);
    subject.store.deregister("one").await.unwrap();
    assert_eq!(workers().await, []);
}

pub async fn batches_see_the_throughput_of_others(subject: StoreUnderTest) {
    let (one, other) = (BatchId::generate(), BatchId::generate());
    let feeding = |source: &str, priority, per_second| RouteThroughput { route: route(source), priority, per_second };
    let record_refused =
        async |batch, feeding| subject.store.exchange_throughput(batch, feeding, HEARTBEAT_TTL / 3).await.unwrap();
    let (gcr, quay) = (feeding("gcr.io", Priority::High, 0.5), feeding("quay.io", Priority::Normal, 70.0));
    assert_eq!(record_refused(one, vec![gcr.clone(), quay.clone()]).await, []);
    assert_eq!(record_refused(other, vec![quay.clone()]).await, [gcr.clone(), quay.clone()]);
    assert_eq!(record_refused(one, vec![gcr.clone()]).await, std::slice::from_ref(&quay));
    assert_eq!(record_refused(other, vec![]).await, [gcr], "the last word of a batch stays");
    assert_eq!(record_refused(one, vec![]).await, [], "the other feeds nothing any more");
    assert_eq!(record_refused(one, vec![quay]).await, []);
    (subject.advance)(HEARTBEAT_TTL);
    assert_eq!(record_refused(other, vec![]).await, [], "who says no more feeds no more");
}

pub async fn routes_are_remembered(subject: StoreUnderTest) {
    assert_eq!(subject.store.routes().await.unwrap(), []);
    subject.store.record_routes(&[route("quay.io"), route("gcr.io")]).await.unwrap();
    subject.store.record_routes(&[route("gcr.io")]).await.unwrap();
    assert_eq!(subject.store.routes().await.unwrap(), [route("gcr.io"), route("quay.io")]);
    (subject.advance)(ROUTE_RETENTION / 2);
    subject.store.record_routes(&[route("gcr.io")]).await.unwrap();
    let ages = subject.store.routes_by_age().await.unwrap();
    assert_eq!(ages, [(route("gcr.io"), Duration::ZERO), (route("quay.io"), ROUTE_RETENTION / 2)]);
    subject.store.record_queues(&[], &[route("quay.io")]).await.unwrap();
    let queues = subject.store.queues_by_age().await.unwrap();
    let (old, new) = (ROUTE_RETENTION / 2, Duration::ZERO);
    let expected = [(route("gcr.io"), false, new), (route("quay.io"), false, old), (route("quay.io"), true, new)];
    assert_eq!(queues, expected);
    assert_eq!(subject.store.routes_by_age().await.unwrap(), [(route("gcr.io"), new), (route("quay.io"), new)]);
    (subject.advance)(ROUTE_RETENTION / 2 + Duration::from_secs(1));
    assert!(subject.store.routes().await.unwrap().contains(&route("gcr.io")));
}

pub async fn a_broker_alarm_holds_until_it_is_cleared_or_expires(subject: StoreUnderTest) {
    let alarm = |reason: &str| BrokerAlarm { reason: reason.into(), since: (subject.now)() };
    let (memory, disk, holds) = (alarm("low on memory"), alarm("low on disk"), Duration::from_secs(20));
    let note = async |alarm| subject.store.set_broker_alarm(alarm, holds).await.unwrap();
    assert_eq!(subject.store.broker_alarm().await.unwrap(), None);
    note(Some(memory)).await;
    (subject.advance)(holds / 2);
    note(Some(disk.clone())).await;
    (subject.advance)(holds / 2 + Duration::from_secs(1));
    assert_eq!(subject.store.broker_alarm().await.unwrap(), Some(disk.clone()));
    (subject.advance)(holds / 2);
    assert_eq!(subject.store.broker_alarm().await.unwrap(), None, "nobody has noted it again");
    note(Some(disk)).await;
    note(None).await;
    assert_eq!(subject.store.broker_alarm().await.unwrap(), None);
}

pub async fn a_writable_store_passes_the_write_check(subject: StoreUnderTest) {
    subject.store.check_writes().await.unwrap();
    subject.store.check_writes().await.unwrap();
}

pub async fn a_schedule_is_remembered_by_its_last_run(subject: StoreUnderTest) {
    assert_eq!(subject.store.schedule_runs().await.unwrap(), []);
    let (first, batch) = ((subject.now)(), BatchId::generate());
    let note = async |name: &str, last_run| subject.store.record_schedule_run(name, last_run).await.unwrap();
    note("b", LastRun { at: first, batch: None, skipped: 0 }).await;
    note("a", LastRun { at: first, batch: None, skipped: 0 }).await;
    (subject.advance)(Duration::from_secs(60));
    let later = LastRun { at: (subject.now)(), batch: Some(batch), skipped: 3 };
    note("b", later).await;
    let known = [("a".to_owned(), LastRun { at: first, batch: None, skipped: 0 }), ("b".to_owned(), later)];
    assert_eq!(subject.store.schedule_runs().await.unwrap(), known);
}
