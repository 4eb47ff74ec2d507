//! Tampering without `cluster.key`: plans, options and provenance altered in a real Redis are refused.

use std::sync::Arc;

use imgsync_model::batch::{
    BatchId, BatchOptions, RepositoryLocator, RuleOptions, SigningKey, TagLocator, TaskSpec, TaskState,
};
use imgsync_oci::error::{Error, ErrorKind};
use imgsync_oci::secret::Secret;
use imgsync_oci::{Digest, DigestTagHints};
use imgsync_store::{
    AppendResult, BlobIndex as _, BlobProof, Ledger as _, NewBatch, PlanSegment, PlanSize, ProvenanceStore as _,
    RedisOptions, RedisStore, RequeueFilter,
};
use imgsync_tests::RedisServer;
use imgsync_tests::cluster::number;
use imgsync_tests::fault::RequestType;
use imgsync_tests::images::TestImage;
use imgsync_tests::program::Imgsync;
use jiff::Timestamp;

use crate::store_contract::store_url;
use crate::support::{ClusterFixture, WAIT_TIMEOUT};

/// Error message for altered data.
const ALTERED_MESSAGE: &str = "was not written with this cluster.key";
const KEY: &str = "the key of this cluster";

async fn open(url: &str, key: Option<&str>) -> RedisStore {
    let key = key.map(|key| SigningKey::new(&Secret::new(key)));
    RedisStore::connect(&store_url(url), RedisOptions { key, ..RedisOptions::default() }).await.unwrap()
}

fn tag_locator(registry: &str, path: &str, tag: &str) -> TagLocator {
    TagLocator {
        repository: Arc::new(RepositoryLocator::new(registry.parse().unwrap(), path).unwrap()),
        tag: tag.parse().unwrap(),
    }
}

fn task_spec(path: &str, tag: &str) -> TaskSpec {
    let target = tag_locator("target.example", &format!("m/{path}"), tag);
    let digest = Some(Digest::sha256(tag.as_bytes()));
    TaskSpec {
        rule: 0,
        source: tag_locator("source.example", path, tag),
        digest,
        target,
        digest_tags: DigestTagHints::default(),
    }
}

/// Plans a batch with a segment per repository, of two tasks each.
async fn plan(store: &RedisStore, repositories: &[&str]) -> BatchId {
    let id = BatchId::generate();
    let options =
        BatchOptions { rules: vec![RuleOptions::default()], timeout_seconds: 60, ..BatchOptions::default() }.encode();
    store
        .create(NewBatch { id, rules: Digest::sha256(b"rules"), options, supersedes: None, fence: None })
        .await
        .unwrap();
    for repository in repositories {
        let tasks = ["one", "two"].map(|tag| (task_spec(repository, tag), None)).to_vec();
        let segment = PlanSegment { key: format!("0 {repository}"), listed_at: Timestamp::now(), tasks };
        assert!(matches!(store.append(id, segment).await.unwrap(), AppendResult::Appended(_)));
    }
    store.complete_plan(id, PlanSize::default()).await.unwrap();
    id
}

/// Runs a script of an attacker who can write to the store.
fn alter(server: &RedisServer, script: &str, arguments: &[&str]) {
    let answer = server.command(&[&["EVAL", script, "0"], arguments].concat());
    assert!(!answer.starts_with('-'), "{answer}");
}

fn assert_altered(error: &Error) {
    assert_eq!(error.kind(), ErrorKind::Insecure, "{error}");
    assert!(error.to_string().contains(ALTERED_MESSAGE), "{error}");
    assert!(error.hint().is_some_and(|advice| advice.contains("cluster.key")), "{error:?}");
}

#[tokio::test]
async fn a_segment_that_was_altered_moved_or_copied_is_never_dispatched() {
    let server = RedisServer::start();
    let ours = open(&server.url(), Some(KEY)).await;
    let theirs = open(&server.url(), Some("the key of somebody else")).await;
    let (other, foreign) = (plan(&ours, &["a", "b"]).await, plan(&theirs, &["a", "b"]).await);
    let unsigned = plan(&open(&server.url(), None).await, &["a", "b"]).await;
    let p = |batch: BatchId| format!("imgsync:{{{batch}}}:chunks");
    let mut operation = 0;
    for (what, script) in [
        (
            "a byte of it is another",
            "local s = redis.call('HGET', ARGV[1], 0) local at = math.floor(#s / 2) \
             local b = string.char((string.byte(s, at) + 1) % 256) \
             redis.call('HSET', ARGV[1], 0, string.sub(s, 1, at - 1) .. b .. string.sub(s, at + 1))",
        ),
        (
            "two change places",
            "local a, b = redis.call('HGET', ARGV[1], 0), redis.call('HGET', ARGV[1], 1) \
             redis.call('HSET', ARGV[1], 0, b, 1, a)",
        ),
        ("one is there twice", "redis.call('HSET', ARGV[1], 0, redis.call('HGET', ARGV[1], 1))"),
        ("it is of another batch", "redis.call('HSET', ARGV[1], 0, redis.call('HGET', ARGV[2], 0))"),
        ("it is signed with another key", "redis.call('HSET', ARGV[1], 0, redis.call('HGET', ARGV[3], 0))"),
        ("it is not signed", "redis.call('HSET', ARGV[1], 0, redis.call('HGET', ARGV[4], 0))"),
        (
            "its tag is cut off",
            "local s = redis.call('HGET', ARGV[1], 0) redis.call('HSET', ARGV[1], 0, string.sub(s, 1, -33))",
        ),
        ("it is nothing", "redis.call('HSET', ARGV[1], 0, '')"),
        (
            "its tasks have other indexes",
            "local starts = string.gsub(ARGV[1], ':chunks$', ':chunk_starts') \
             redis.call('SET', starts, struct.pack('>I4', 0) .. struct.pack('>I4', 1))",
        ),
        ("it has fewer tasks", "local b = string.gsub(ARGV[1], ':chunks$', '') redis.call('HINCRBY', b, 's0', -1)"),
    ] {
        let batch = plan(&ours, &["a", "b"]).await;
        // A process that has not read any of it before.
        let fresh = async || open(&server.url(), Some(KEY)).await;
        assert_eq!(fresh().await.list_unpublished(batch, 0, 10).await.unwrap().len(), 2, "{what}: as it was made");
        alter(&server, script, &[&p(batch), &p(other), &p(foreign), &p(unsigned)]);
        assert_altered(&fresh().await.list_unpublished(batch, 0, 10).await.unwrap_err());
        assert_altered(&fresh().await.tasks(batch, None, 0, 10).await.unwrap_err());
        operation += 1;
    }
    assert_eq!(operation, 10);
    // Untouched data still works, and without a key nothing is verified.
    assert_eq!(open(&server.url(), Some(KEY)).await.list_unpublished(other, 0, 10).await.unwrap().len(), 2);
    assert_eq!(open(&server.url(), None).await.list_unpublished(other, 0, 10).await.unwrap().len(), 2);
}

#[tokio::test]
async fn failures_of_an_altered_plan_are_not_requeued() {
    let server = RedisServer::start();
    let store = open(&server.url(), Some(KEY)).await;
    let batch = plan(&store, &["a"]).await;
    let task_ref = imgsync_model::batch::TaskRef { batch, run: 0, index: 0 };
    let imgsync_store::ClaimResult::Claimed { token, .. } =
        store.claim_task(task_ref, None, "w", imgsync_store::LEASE_TTL).await.unwrap()
    else {
        panic!("nobody else has it");
    };
    let failure = imgsync_model::batch::Failure::new(ErrorKind::Denied, "no", 1);
    let result = imgsync_model::batch::TaskResult::Failed(failure);
    let holder = imgsync_store::TaskHolder { worker: "w", token };
    store.finish(task_ref, holder, result, imgsync_store::Usage::default()).await.unwrap();
    let base = format!("imgsync:{{{batch}}}");
    alter(&server, "redis.call('HSET', ARGV[1] .. ':chunks', 0, 'x')", &[&base]);
    assert_altered(&store.requeue(batch, RequeueFilter::default()).await.unwrap_err());
    let control = open(&server.url(), None).await.batch_state(batch).await.unwrap();
    assert!(control.is_some_and(imgsync_store::BatchState::is_live));
    assert_eq!(server.command(&["HGET", &base, &format!("s{}", TaskState::Failed.code())]), "$1\r\n1\r\n");
}

#[tokio::test]
async fn options_that_were_altered_or_are_of_another_batch_are_refused_and_a_list_goes_on() {
    let server = RedisServer::start();
    let store = open(&server.url(), Some(KEY)).await;
    let other = plan(&store, &["a"]).await;
    let base = |batch: BatchId| format!("imgsync:{{{batch}}}");
    let weaker = BatchOptions { rules: vec![RuleOptions::default()], force: true, ..BatchOptions::default() }.encode();
    alter(&server, "redis.call('HSET', ARGV[1], 'title', 'x')", &[&base(other)]);
    for (what, script) in [
        ("others", "redis.call('HSET', ARGV[1], 'options', ARGV[3])"),
        (
            "those of another batch, with their tag",
            "redis.call('HSET', ARGV[1], 'options', ARGV[3], 'tag', redis.call('HGET', ARGV[2], 'tag'))",
        ),
        (
            "the same, of a batch that has them",
            "redis.call('HSET', ARGV[1], 'tag', redis.call('HGET', ARGV[2], 'tag'))",
        ),
        ("without a tag", "redis.call('HDEL', ARGV[1], 'tag')"),
        ("with an empty tag", "redis.call('HSET', ARGV[1], 'tag', '')"),
        (
            "of other rules",
            "redis.call('HSET', ARGV[1], 'rules', (string.gsub(redis.call('HGET', ARGV[1], 'rules'), '%x$', 'f0', 1)))",
        ),
    ] {
        let batch = plan(&store, &["a"]).await;
        store.batch(batch).await.unwrap().unwrap();
        alter(&server, script, &[&base(batch), &base(other), &weaker]);
        match store.batch(batch).await {
            Err(error) if what == "of other rules" => assert!(!matches!(error.kind(), ErrorKind::NotFound), "{error}"),
            Err(error) => assert_altered(&error),
            Ok(found) => panic!("{what}: {found:?}"),
        }
        if what != "of other rules" {
            let listed = store.batches(100).await.unwrap();
            let found = listed.iter().find(|found| found.id == batch).unwrap();
            assert_eq!(found.options, "", "{what}: what was altered is nowhere believed");
            assert!(listed.iter().any(|found| found.id == other && !found.options.is_empty()), "{what}");
        }
        alter(
            &server,
            "redis.call('DEL', ARGV[1]) redis.call('ZREM', 'imgsync:batches', ARGV[4])",
            &[&base(batch), "", "", &batch.to_string()],
        );
    }
    // It can still be cancelled.
    let batch = plan(&store, &["a"]).await;
    alter(&server, "redis.call('HSET', ARGV[1], 'options', ARGV[2])", &[&base(batch), &weaker]);
    assert!(store.cancel(batch).await.unwrap().is_stopped());
}

#[tokio::test]
async fn altered_provenance_is_reported_and_never_signed_again() {
    let server = RedisServer::start();
    let ours = open(&server.url(), Some(KEY)).await;
    let (source, other) = (tag_locator("source.example", "a", "v1"), tag_locator("source.example", "b", "v1"));
    let since = Timestamp::from_second(1_767_225_600).unwrap();
    let targets: Vec<TagLocator> = (0..6).map(|n| tag_locator("target.example", "m/a", &format!("t{n}"))).collect();
    for target in &targets {
        ours.record_provenance(&source, target, &Digest::sha256(target.tag.as_str().as_bytes())).await.unwrap();
    }
    ours.set_missing_since(&source.repository, vec![(targets[5].clone(), Some(since))]).await.unwrap();
    ours.record_provenance(&other, &tag_locator("target.example", "m/a", "elsewhere"), &Digest::sha256(b"x"))
        .await
        .unwrap();
    let authentic = async |store: &RedisStore| -> Vec<bool> {
        store.provenance_by_source(&source.repository).await.unwrap().iter().map(|origin| origin.is_authentic).collect()
    };
    assert_eq!(authentic(&ours).await, [true; 6]);
    assert_eq!(authentic(&open(&server.url(), None).await).await, [true; 6], "without a key nothing is checked");
    assert_eq!(authentic(&open(&server.url(), Some("the key of somebody else")).await).await, [false; 6]);
    // Of the six records only those of t0 and t5 are unaltered.
    alter(
        &server,
        "local found = redis.call('KEYS', 'imgsync:provenance:*') local key, rest \
         for _, one in ipairs(found) do if redis.call('HLEN', one) == 6 then key = one else rest = one end end \
         local t = redis.call('HGET', key, 't1') \
         redis.call('HSET', key, 't1', string.sub(t, 1, 10) .. 'x' .. string.sub(t, 12)) \
         redis.call('HSET', key, 't2', redis.call('HGET', key, 't0')) \
         redis.call('HSET', key, 't3', redis.call('HGET', rest, 'elsewhere')) \
         local u = redis.call('HGET', key, 't4') redis.call('HSET', key, 't4', string.char(1) .. struct.pack('>I4', 1) .. string.sub(u, 2)) \
         redis.call('HSET', key, 't6', string.sub(redis.call('HGET', key, 't0'), 1, -17))",
        &[],
    );
    let wanted = [true, false, false, false, false, true, false];
    assert_eq!(authentic(&ours).await, wanted);
    let all = (0..7).map(|n| (tag_locator("target.example", "m/a", &format!("t{n}")), Some(since))).collect();
    ours.set_missing_since(&source.repository, all).await.unwrap();
    let found = ours.provenance_by_source(&source.repository).await.unwrap();
    assert_eq!(found.iter().map(|origin| origin.is_authentic).collect::<Vec<_>>(), wanted, "none was made ours");
    assert_eq!((found[0].missing_since, found[1].missing_since), (Some(since), None));
    // A rewritten record is ours again.
    ours.record_provenance(&source, &targets[1], &Digest::sha256(b"new")).await.unwrap();
    assert!(authentic(&ours).await[1]);
}

#[tokio::test]
async fn a_proof_that_a_source_holds_a_blob_cannot_be_made_up() {
    let server = RedisServer::start();
    let ours = open(&server.url(), Some(KEY)).await;
    let source = RepositoryLocator::new("source.example".parse().unwrap(), "hostile/app").unwrap();
    let proof = |name: &str| BlobProof::for_repository(&source, &Digest::sha256(name.as_bytes()));
    let made_up = [proof("private"), BlobProof::for_public_blob(&Digest::sha256(b"private"))];
    for somebody in [None, Some("the key of somebody else")] {
        let theirs = open(&server.url(), somebody).await;
        theirs.record_proofs(&made_up).await.unwrap();
        assert_eq!(theirs.check_proofs(&made_up).await.unwrap(), [true; 2]);
        assert_eq!(ours.check_proofs(&made_up).await.unwrap(), [false; 2]);
    }
    ours.record_proofs(&[proof("shown")]).await.unwrap();
    let again = open(&server.url(), Some(KEY)).await;
    assert_eq!(again.check_proofs(&[proof("shown"), proof("private")]).await.unwrap(), [true, false]);
}

#[tokio::test]
async fn repositories_that_two_processes_add_at_once_have_each_its_segment() {
    let server = RedisServer::start();
    let (one, two) = (open(&server.url(), Some(KEY)).await, open(&server.url(), Some(KEY)).await);
    let batch = plan_open(&one).await;
    let add = |store: &RedisStore, n: usize| {
        let store = store.clone();
        async move {
            let name = format!("r{n}");
            let tasks = (0..n % 4 + 1).map(|tag| (task_spec(&name, &format!("t{tag}")), None)).collect();
            let segment = PlanSegment { key: format!("0 {name}"), listed_at: Timestamp::now(), tasks };
            assert!(matches!(store.append(batch, segment).await.unwrap(), AppendResult::Appended(_)));
        }
    };
    let all = (0..40).map(|n| add(if n % 2 == 0 { &one } else { &two }, n));
    futures_util::future::join_all(all).await;
    one.complete_plan(batch, PlanSize::default()).await.unwrap();
    let rows = open(&server.url(), Some(KEY)).await.tasks(batch, None, 0, 1_000).await.unwrap();
    assert_eq!(rows.len(), (0..40).map(|n| n % 4 + 1).sum::<usize>());
    assert_eq!(two.list_unpublished(batch, 0, 1_000).await.unwrap().len(), 40);
}

async fn plan_open(store: &RedisStore) -> BatchId {
    let id = BatchId::generate();
    let options = BatchOptions { rules: vec![RuleOptions::default()], ..BatchOptions::default() }.encode();
    store
        .create(NewBatch { id, rules: Digest::sha256(b"rules"), options, supersedes: None, fence: None })
        .await
        .unwrap();
    id
}

/// Configures a program of the cluster with the key.
fn keyed(program: Imgsync) -> Imgsync {
    program.env("IMGSYNC_KEY", KEY)
}

/// Plans a batch of the fixture's images and leaves it.
async fn planned_batch(fixture: &ClusterFixture, store: &RedisStore) -> BatchId {
    let id = plan_open(store).await;
    let tasks = fixture.images.iter().map(|(repository, tag, _)| {
        let source = tag_locator(&fixture.source.host(), repository, tag);
        let target = tag_locator(&fixture.target.host(), &format!("m/{repository}"), tag);
        (TaskSpec { rule: 0, source, digest: None, target, digest_tags: DigestTagHints::default() }, None)
    });
    let segment = PlanSegment { key: "0 all".to_owned(), listed_at: Timestamp::now(), tasks: tasks.collect() };
    store.append(id, segment).await.unwrap();
    store.complete_plan(id, PlanSize::default()).await.unwrap();
    id
}

#[tokio::test]
async fn a_coordinator_stops_a_batch_whose_plan_was_altered_and_signs_nothing_of_it() {
    let fixture = ClusterFixture::new(1, 4).await;
    let url = fixture.cluster.store.url();
    let store = open(&url, Some(KEY)).await;
    let worker = keyed(fixture.cluster.worker("")).spawn();
    worker.wait_for_line(|line| line.starts_with("worker "), WAIT_TIMEOUT).await;
    // The unaltered batch is copied.
    let whole = planned_batch(&fixture, &store).await.to_string();
    let resume = |id: &str| keyed(fixture.cluster.imgsync(&fixture.config)).args(["batch", "resume", id, "--json"]);
    let ended = resume(&whole).run().await.assert_code(0).json();
    assert_eq!(number(&ended, "/counts/copied") + number(&ended, "/counts/unchanged"), 4, "{ended}");

    // A plan written without the key replaces ours and names another target repository.
    let id = planned_batch(&fixture, &store).await;
    let evil = plan_open(&open(&url, None).await).await;
    let unsigned = open(&url, None).await;
    let tasks = fixture.images.iter().map(|(repository, tag, _)| {
        let source = tag_locator(&fixture.source.host(), repository, tag);
        let target = tag_locator(&fixture.target.host(), "production/app", tag);
        (TaskSpec { rule: 0, source, digest: None, target, digest_tags: DigestTagHints::default() }, None)
    });
    let segment = PlanSegment { key: "0 all".to_owned(), listed_at: Timestamp::now(), tasks: tasks.collect() };
    unsigned.append(evil, segment).await.unwrap();
    let keys = [format!("imgsync:{{{id}}}:chunks"), format!("imgsync:{{{evil}}}:chunks")];
    alter(
        &fixture.cluster.store,
        "redis.call('HSET', ARGV[1], 0, redis.call('HGET', ARGV[2], 0))",
        &[&keys[0], &keys[1]],
    );
    fixture.target.clear_requests();
    let refused = resume(&id.to_string()).run().await.assert_code(3);
    assert!(refused.stderr.contains(ALTERED_MESSAGE), "{}", refused.stderr);
    assert_eq!(fixture.target.total(), 0, "nothing was asked of the target");
    let queues = fixture.cluster.broker.list_queues(&["name", "messages"]);
    assert!(queues.lines().all(|line| !line.starts_with("w.") || line.ends_with("\t0")), "{queues}");
    let shown = keyed(fixture.cluster.imgsync("")).args(["batch", "show", &id.to_string(), "--json"]).run().await;
    let shown = shown.json();
    assert_eq!(shown["state"], "cancelled", "{shown}");
    assert_eq!(number(&shown, "/counts/cancelled"), 4, "{shown}");
    assert!(store.listing_failures(id).await.unwrap()[0].error.contains(ALTERED_MESSAGE));
    // A coordinator with the key does not lead a batch that was forged completely.
    let led = resume(&evil.to_string()).run().await.assert_code(3);
    assert!(led.stderr.contains(ALTERED_MESSAGE), "{}", led.stderr);
}

#[tokio::test]
async fn a_coordinator_stops_an_altered_batch_reports_it_and_leads_others() {
    let fixture = ClusterFixture::new(1, 2).await;
    let store = open(&fixture.cluster.store.url(), Some(KEY)).await;
    let (plan, options, whole) = (
        planned_batch(&fixture, &store).await,
        planned_batch(&fixture, &store).await,
        planned_batch(&fixture, &store).await,
    );
    let base = |batch: BatchId| format!("imgsync:{{{batch}}}");
    alter(&fixture.cluster.store, "redis.call('HSET', ARGV[1] .. ':chunks', 0, 'x')", &[&base(plan)]);
    alter(&fixture.cluster.store, "redis.call('HSET', ARGV[1], 'options', '{}')", &[&base(options)]);
    let worker = keyed(fixture.cluster.worker("")).spawn();
    worker.wait_for_line(|line| line.starts_with("worker "), WAIT_TIMEOUT).await;
    let serve = keyed(fixture.cluster.imgsync("")).args(["serve", "--listen", "127.0.0.1:0"]).spawn();
    for id in [plan, options] {
        let wanted = format!("stopped leading batch {id}");
        serve.wait_for_line(|line| line.contains(&wanted) && line.contains(ALTERED_MESSAGE), WAIT_TIMEOUT).await;
        assert!(store.batch_state(id).await.unwrap().is_some_and(imgsync_store::BatchState::is_stopped));
    }
    let started = std::time::Instant::now();
    while store.batch(whole).await.unwrap().unwrap().ended_at.is_none() {
        assert!(started.elapsed() < WAIT_TIMEOUT, "{}", serve.stderr());
        tokio::time::sleep(std::time::Duration::from_millis(50)).await;
    }
    fixture.assert_target();
}

#[tokio::test]
async fn a_worker_copies_nothing_by_options_that_were_altered_since_its_message_was_signed() {
    let fixture = ClusterFixture::new(1, 3).await;
    let store = open(&fixture.cluster.store.url(), Some(KEY)).await;
    let id = planned_batch(&fixture, &store).await;
    let mut feeding =
        keyed(fixture.cluster.imgsync(&fixture.config)).args(["batch", "resume", &id.to_string()]).spawn();
    let started = std::time::Instant::now();
    while store.batch(id).await.unwrap().is_none_or(|batch| batch.queued != 3) {
        assert!(started.elapsed() < WAIT_TIMEOUT, "{}", feeding.stderr());
        tokio::time::sleep(std::time::Duration::from_millis(20)).await;
    }
    crate::support::kill(&mut feeding).await;
    let weaker = BatchOptions { rules: vec![RuleOptions::default()], force: true, ..BatchOptions::default() }.encode();
    let before = store.batch(id).await.unwrap().unwrap().options;
    let base = format!("imgsync:{{{id}}}");
    alter(&fixture.cluster.store, "redis.call('HSET', ARGV[1], 'options', ARGV[2])", &[&base, &weaker]);
    fixture.target.clear_requests();
    let _worker = keyed(fixture.cluster.worker("")).spawn();
    let failed = format!("s{}", TaskState::Failed.code());
    let started = std::time::Instant::now();
    while fixture.cluster.store.command(&["HGET", &base, &failed]) != "$1\r\n3\r\n" {
        assert!(started.elapsed() < WAIT_TIMEOUT, "the tasks end");
        tokio::time::sleep(std::time::Duration::from_millis(50)).await;
    }
    assert_eq!(fixture.target.total(), 0, "nothing was asked of the target");
    alter(&fixture.cluster.store, "redis.call('HSET', ARGV[1], 'options', ARGV[2])", &[&base, &before]);
    let failures = store.failures(id, 0, 10).await.unwrap();
    assert!(failures.iter().all(|failed| failed.failure.kind == ErrorKind::Insecure), "{failures:?}");
    assert!(failures[0].failure.error.contains(ALTERED_MESSAGE), "{failures:?}");
}

#[tokio::test]
async fn a_tag_with_forged_provenance_is_never_pruned() {
    let fixture = ClusterFixture::new(1, 0).await;
    let image = |name: &str| TestImage::single(&format!("altered-{name}")).build();
    for tag in ["1", "2", "3", "4"] {
        fixture.source.push("app", tag, &image(tag));
    }
    fixture.target.push("m/app", "by-hand", &image("by-hand"));
    let config = format!(
        "rules:\n- {{from: {}/app, to: {}/m, naming: keep, prune: {{keep_days: 0, limit: 50%}}}}\n",
        fixture.source.host(),
        fixture.target.host()
    );
    let worker = keyed(fixture.cluster.worker("")).spawn();
    worker.wait_for_line(|line| line.starts_with("worker "), WAIT_TIMEOUT).await;
    let run = async || {
        let run = keyed(fixture.cluster.imgsync(&config)).args(["run", "--json"]).run().await;
        run.assert_code(0).json()
    };
    assert_eq!(number(&run().await, "/counts/copied"), 4);
    // One tag is gone at the source, the record of another is altered, and a forged record claims a manually pushed
    // tag.
    fixture.source.delete_tag("app", "1");
    fixture.source.delete_tag("app", "2");
    let by_hand = fixture.target.tag_digest("m/app", "by-hand").unwrap();
    let unsigned = open(&fixture.cluster.store.url(), None).await;
    let source = |tag: &str| tag_locator(&fixture.source.host(), "app", tag);
    let target = |tag: &str| tag_locator(&fixture.target.host(), "m/app", tag);
    unsigned.record_provenance(&source("by-hand"), &target("by-hand"), &by_hand.parse().unwrap()).await.unwrap();
    let second = fixture.target.tag_digest("m/app", "2").unwrap();
    unsigned.record_provenance(&source("2"), &target("2"), &second.parse().unwrap()).await.unwrap();
    let dry = keyed(fixture.cluster.imgsync(&config)).args(["run", "--dry-run"]).run().await.assert_code(0);
    assert!(dry.stderr.contains("2 tags are gone at the source, and kept"), "{}", dry.stderr);
    fixture.target.clear_requests();
    let again = run().await;
    let outcome = |tag: &str| {
        let lines = again["pruned"].as_array().unwrap();
        let line = lines.iter().find(|line| line["target"].as_str().unwrap().ends_with(&format!(":{tag}")));
        line.map(|line| (line["outcome"].as_str().unwrap().to_owned(), line["reason"].to_string()))
    };
    assert_eq!(outcome("1").unwrap().0, "removed", "{again}");
    for tag in ["2", "by-hand"] {
        let (outcome, reason) = outcome(tag).unwrap();
        assert!(outcome == "left" && reason.contains("cluster.key"), "{tag}: {reason}");
        assert!(fixture.target.tag_digest("m/app", tag).is_some(), "{tag}");
    }
    assert_eq!(fixture.target.count(RequestType::ManifestDelete), 1);
}
