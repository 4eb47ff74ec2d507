//! Unreadable protections of target tags: the task or the batch fails, and nothing is written.

use std::sync::Arc;

use imgsync_model::batch::{
    BatchId, BatchOptions, ImagePolicy, PolicyKey, RepositoryLocator, RequiredSignatures, RuleOptions, SignatureNeed,
    TagLocator, TaskSpec,
};
use imgsync_oci::error::ErrorKind;
use imgsync_oci::{Digest, DigestTagHints};
use imgsync_store::{Ledger as _, NewBatch, PlanSegment, PlanSize, RedisOptions, RedisStore};
use imgsync_tests::cluster::number;
use imgsync_tests::images::TestImage;
use jiff::Timestamp;

use crate::store_contract::store_url;
use crate::support::{ClusterFixture, WAIT_TIMEOUT};

/// Plans a batch of one task with raw options.
async fn planned_batch(fixture: &ClusterFixture, store: &RedisStore, options: String, rule: u32) -> BatchId {
    let id = BatchId::generate();
    store
        .create(NewBatch { id, rules: Digest::sha256(b"rules"), options, supersedes: None, fence: None })
        .await
        .unwrap();
    let place = |registry: &str, path: &str| {
        let home = RepositoryLocator::new(registry.parse().unwrap(), path).unwrap();
        TagLocator { repository: Arc::new(home), tag: "v1".parse().unwrap() }
    };
    let source = place(&fixture.source.host(), "app");
    let target = place(&fixture.target.host(), "m/app");
    let task = TaskSpec { rule, source, digest: None, target, digest_tags: DigestTagHints::default() };
    let segment = PlanSegment { key: "0 app".to_owned(), listed_at: Timestamp::now(), tasks: vec![(task, None)] };
    store.append(id, segment).await.unwrap();
    store.complete_plan(id, PlanSize::default()).await.unwrap();
    id
}

#[tokio::test]
async fn a_protection_that_cannot_be_read_fails_the_task_or_the_batch_and_moves_no_tag() {
    let fixture = ClusterFixture::new(1, 0).await;
    let (old, new) = (TestImage::single("unreadable-old").build(), TestImage::single("unreadable-new").build());
    fixture.source.push("app", "v1", &new);
    fixture.target.push("m/app", "v1", &old);
    let store = RedisStore::connect(&store_url(&fixture.cluster.store.url()), RedisOptions::default()).await.unwrap();
    let _workers = fixture.cluster.start_workers(1, 2).await;
    let rule = |immutable: &[&str], backup: Option<&str>| RuleOptions {
        immutable: immutable.iter().map(|pattern| (*pattern).to_owned()).collect(),
        backup: backup.map(str::to_owned),
        ..RuleOptions::default()
    };
    let of =
        |rule: RuleOptions| BatchOptions { rules: vec![rule], timeout_seconds: 60, ..BatchOptions::default() }.encode();
    let with_key = |pem: &str| {
        let keys = vec![PolicyKey { name: "cosign.pub".to_owned(), pem: pem.to_owned() }];
        let signed = Some(RequiredSignatures { keys, need: SignatureNeed::Any });
        RuleOptions { policy: Some(ImagePolicy { signed, ..ImagePolicy::default() }), ..RuleOptions::default() }
    };
    let resume = async |id: BatchId| {
        let resume = fixture.cluster.imgsync("").args(["batch", "resume", &id.to_string(), "--json"]);
        resume.limit(WAIT_TIMEOUT).run().await
    };
    // The task fails.
    for (what, options, rule, said) in [
        ("a pattern", of(rule(&["v*", "/(/"], None)), 0, "immutable"),
        ("a template", of(rule(&[], Some("{{tag}}-{{nope}}"))), 0, "backup"),
        ("a template of nothing", of(rule(&[], Some("{{tag"))), 0, "backup"),
        ("a key of a policy", of(with_key("no key")), 0, "no public key in PEM"),
        ("a key that was not read", of(with_key("")), 0, "no public key in PEM"),
        ("a rule that is not there", of(rule(&["v*"], None)), 1, "no rule 1:"),
        ("no rules at all", BatchOptions::default().encode(), 0, "no rule 0:"),
    ] {
        let id = planned_batch(&fixture, &store, options, rule).await;
        let ended = resume(id).await.assert_code(1).json();
        assert_eq!(number(&ended, "/counts/failed"), 1, "{what}: {ended}");
        let failures = store.failures(id, 0, 10).await.unwrap();
        assert_eq!(failures[0].failure.kind, ErrorKind::Invalid, "{what}: {failures:?}");
        assert!(failures[0].failure.error.contains(said), "{what}: {failures:?}");
        fixture.target.assert_holds("m/app", "v1", &old);
    }
    // The batch does not start.
    let whole = of(rule(&["v*"], None));
    for (what, options, said) in [
        ("a newer version", whole.replacen("\"version\":1", "\"version\":2", 1), "a newer imgsync"),
        ("an option of a newer version", whole.replacen("\"immutable\"", "\"frozen\"", 1), "unknown field `frozen`"),
        ("a need of a newer version", of(with_key("")).replacen("\"any\"", "\"most\"", 1), "unknown variant `most`"),
        ("an option beside the rules", whole.replacen("{", "{\"never\":true,", 1), "unknown field `never`"),
        ("no JSON", "immutable: v*".to_owned(), "reading the options"),
        ("nothing", String::new(), "missing"),
    ] {
        assert_ne!(options, whole, "{what}");
        let id = planned_batch(&fixture, &store, options, 0).await;
        let refused = resume(id).await;
        assert!(refused.code.is_some_and(|code| code > 0), "{what}");
        assert!(refused.stderr.contains(said), "{what}: {}", refused.stderr);
        let control = store.batch(id).await.unwrap().unwrap();
        assert_eq!((control.queued, control.counts.copied), (0, 0), "{what}: nothing of it was fed");
        store.cancel(id).await.unwrap();
    }
    fixture.target.assert_holds("m/app", "v1", &old);
    // Valid ones apply.
    let id = planned_batch(&fixture, &store, whole, 0).await;
    let ended = resume(id).await.assert_code(1).json();
    assert_eq!(ended["failures"][0]["kind"], "immutable", "{ended}");
    fixture.target.assert_holds("m/app", "v1", &old);
}
