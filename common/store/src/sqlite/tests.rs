use jiff::Timestamp;
use proptest::prelude::*;

use super::*;
use crate::contract::{StoreUnderTest, locator, random_calls, tasks};
use crate::{
    AppendResult, BatchState, CacheScope, CachedTag, ClaimResult, DigestCache, FinishReply, LEASE_TTL, LeaseResult,
    Leases, Ledger, LockUse, ManualClock, NewBatch, PlanSegment, PlanSize, ProvenanceStore, PushInbox, PushRule,
    ReceivedPush, ReclaimScope, SystemClock, TaskHolder, Usage,
};
use imgsync_model::batch::{Failure, PushedReference, TagLocator, TaskRef, TaskResult, TaskState};
use imgsync_oci::Digest;

async fn subject(folder: Option<&Path>, guard: impl std::any::Any + Send + Sync) -> StoreUnderTest {
    let clock = Arc::new(ManualClock::starting_at(Timestamp::from_second(1_800_000_000).unwrap()));
    let store = match folder {
        Some(folder) => SqliteStore::open(folder, clock.clone()).await.unwrap(),
        None => SqliteStore::in_memory(clock.clone()).await.unwrap(),
    };
    let (advancing, put_back) = (clock.clone(), clock.clone());
    StoreUnderTest {
        store: Arc::new(store),
        advance: Box::new(move |by| advancing.advance(by)),
        set_back: Box::new(move |by| put_back.set_back(by)),
        now: Box::new(move || clock.now()),
        guard: Box::new(guard),
    }
}

mod in_a_file {
    async fn make() -> super::StoreUnderTest {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().to_owned();
        super::subject(Some(&path), folder).await
    }

    crate::store_contract_tests!(make);
}

mod in_memory {
    async fn make() -> super::StoreUnderTest {
        super::subject(None, ()).await
    }

    crate::store_contract_tests!(make);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(60))]
    #[test]
    fn counts_add_up_after_any_calls(steps in prop::collection::vec(any::<[u8; 3]>(), 0..120)) {
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        runtime.block_on(async {
            let subject = subject(None, ()).await;
            random_calls::counts_add_up_after_any_calls(&subject, &steps).await;
        });
    }
}

async fn open(folder: &Path) -> Result<SqliteStore> {
    SqliteStore::open(folder, Arc::new(SystemClock)).await
}

fn segment(name: &str, number: usize, result: Option<TaskResult>) -> PlanSegment {
    let tasks = tasks(name, number).into_iter().map(|task| (task, result.clone())).collect();
    PlanSegment { key: name.to_owned(), listed_at: Timestamp::now(), tasks }
}

fn new_batch(rules: &str) -> NewBatch {
    let rules = imgsync_oci::Digest::sha256(rules.as_bytes());
    NewBatch {
        id: imgsync_model::batch::BatchId::generate(),
        rules,
        options: "{}".to_owned(),
        supersedes: None,
        fence: None,
    }
}

async fn create_batch(store: &SqliteStore, number: usize) -> Vec<TaskRef> {
    let batch = new_batch("rules");
    let id = batch.id;
    store.create(batch).await.unwrap();
    assert_eq!(store.append(id, segment("a", number, None)).await.unwrap(), AppendResult::Appended(0));
    store.complete_plan(id, PlanSize::default()).await.unwrap();
    (0..number as u32).map(|index| TaskRef { batch: id, run: 0, index }).collect()
}

async fn claim(store: &SqliteStore, task_ref: TaskRef) -> TaskHolder<'static> {
    match store.claim_task(task_ref, None, "w", LEASE_TTL).await.unwrap() {
        ClaimResult::Claimed { token, .. } => TaskHolder { worker: "w", token },
        other => panic!("{other:?}"),
    }
}

/// Copies the state directory as a kill leaves it, while the store is open.
fn copy_after_kill(folder: &Path) -> tempfile::TempDir {
    let copy = tempfile::tempdir().unwrap();
    for file in std::fs::read_dir(folder).unwrap() {
        let file = file.unwrap();
        // The WAL index is in shared memory, and is rebuilt.
        if !file.file_name().to_string_lossy().ends_with("-shm") {
            std::fs::copy(file.path(), copy.path().join(file.file_name())).unwrap();
        }
    }
    copy
}

#[tokio::test]
async fn acknowledged_writes_survive_a_kill() {
    let folder = tempfile::tempdir().unwrap();
    let store = open(folder.path()).await.unwrap();
    let task_refs = create_batch(&store, 20).await;
    for task_ref in &task_refs[..7] {
        let holder = claim(&store, *task_ref).await;
        store.finish(*task_ref, holder, TaskResult::Copied, Usage::default()).await.unwrap();
    }
    let holder = claim(&store, task_refs[7]).await;

    let after = copy_after_kill(folder.path());
    let again = open(after.path()).await.unwrap();
    let _lock = again.lock_for_run(LockUse::Run).await.unwrap();
    let reclaimed = again.reclaim(task_refs[0].batch, ReclaimScope::Everything).await.unwrap();
    assert_eq!((reclaimed.leased, reclaimed.queued), (1, 0));
    for task_ref in &task_refs {
        match again.claim_task(*task_ref, None, "another", LEASE_TTL).await.unwrap() {
            ClaimResult::AlreadyDone => assert!(task_ref.index < 7),
            ClaimResult::Claimed { token: new, .. } => {
                assert!(task_ref.index >= 7 && new > holder.token);
                let holder = TaskHolder { worker: "another", token: new };
                again.finish(*task_ref, holder, TaskResult::Copied, Usage::default()).await.unwrap();
            }
            other => panic!("{other:?}"),
        }
    }
    let found = again.batch(task_refs[0].batch).await.unwrap().unwrap();
    assert_eq!((found.state, found.counts.copied), (BatchState::Done, 20));
}

#[tokio::test]
async fn one_run_holds_the_lock_while_others_read_and_control() {
    let folder = tempfile::tempdir().unwrap();
    let store = open(folder.path()).await.unwrap();
    let lock = store.lock_for_run(LockUse::Run).await.unwrap();
    let task_refs = create_batch(&store, 3).await;
    let beside = open(folder.path()).await.unwrap();
    let refused = beside.lock_for_run(LockUse::Run).await.unwrap_err();
    assert!(refused.to_string().contains(&format!("process {}", std::process::id())), "{refused}");
    assert!(refused.hint().unwrap().contains("batch watch"));

    // Another process can read and control the batch.
    assert_eq!(beside.batches(10).await.unwrap().len(), 1);
    beside.pause(task_refs[0].batch).await.unwrap();
    assert_eq!(store.batch_state(task_refs[0].batch).await.unwrap(), Some(BatchState::Paused));
    assert_eq!(store.claim_task(task_refs[0], None, "w", LEASE_TTL).await.unwrap(), ClaimResult::Paused);
    let held = beside.try_lock_for_run(LockUse::Run).await.unwrap().unwrap_err();
    assert_eq!((held.process, held.used_for), (Some(std::process::id()), Some(LockUse::Run)));
    drop(lock);
    beside.lock_for_run(LockUse::Run).await.unwrap();
}

#[tokio::test]
async fn a_dead_lease_owner_is_known_before_expiry_and_checking_does_not_take_the_lock() {
    let folder = tempfile::tempdir().unwrap();
    let store = open(folder.path()).await.unwrap();
    assert!(!store.may_have_owners().await.unwrap(), "nobody has ever run with it");
    let lock = store.lock_for_run(LockUse::Serve).await.unwrap();
    let beside = open(folder.path()).await.unwrap();
    assert!(beside.may_have_owners().await.unwrap());
    let refused = beside.lock_for_run(LockUse::Run).await.unwrap_err();
    assert!(refused.hint().unwrap().contains("imgsync serve"), "{refused}");
    drop(lock);
    assert!(!beside.may_have_owners().await.unwrap());
    // A concurrent check does not prevent taking the lock.
    let looking = beside.clone();
    let looks = tokio::spawn(async move {
        for _ in 0..200 {
            looking.may_have_owners().await.unwrap();
        }
    });
    for _ in 0..20 {
        drop(store.lock_for_run(LockUse::Run).await.unwrap());
    }
    looks.await.unwrap();
}

#[tokio::test]
async fn leases_of_an_earlier_process_are_released_except_those_of_waiting_runs() {
    let folder = tempfile::tempdir().unwrap();
    let store = open(folder.path()).await.unwrap();
    for name in ["leader:x", "listing:x", "waiting:r", "starting:r"] {
        assert!(matches!(store.acquire(name, "another", LEASE_TTL).await.unwrap(), LeaseResult::Acquired { .. }));
    }
    let _lock = store.lock_for_run(LockUse::Run).await.unwrap();
    for (name, holder) in
        [("leader:x", None), ("listing:x", None), ("waiting:r", Some("another")), ("starting:r", Some("another"))]
    {
        assert_eq!(store.lease_holder(name).await.unwrap().as_deref(), holder, "{name}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn another_process_can_cancel_a_batch_while_a_run_writes() {
    let folder = tempfile::tempdir().unwrap();
    let store = open(folder.path()).await.unwrap();
    let task_refs = create_batch(&store, 4_000).await;
    let batch = task_refs[0].batch;
    let running: Vec<_> = task_refs
        .chunks(200)
        .map(|chunk| {
            let (store, chunk) = (store.clone(), chunk.to_vec());
            tokio::spawn(async move {
                for task_ref in chunk {
                    let holder = match store.claim_task(task_ref, None, "w", LEASE_TTL).await.unwrap() {
                        ClaimResult::Claimed { token, .. } => TaskHolder { worker: "w", token },
                        ClaimResult::Cancelled => return,
                        other => panic!("{other:?}"),
                    };
                    store.finish(task_ref, holder, TaskResult::Copied, Usage::default()).await.unwrap();
                }
            })
        })
        .collect();
    let beside = open(folder.path()).await.unwrap();
    assert_eq!(beside.cancel(batch).await.unwrap(), BatchState::Cancelled);
    for task in running {
        task.await.unwrap();
    }
    let counts = store.batch(batch).await.unwrap().unwrap().counts;
    assert_eq!((counts.unfinished(), counts.total), (0, 4_000));
    assert!(counts.cancelled > 0, "it did not wait for its turn until all were copied: {counts:?}");
}

#[tokio::test]
async fn a_failed_call_is_undone_and_changes_no_other_of_its_transaction() {
    let folder = tempfile::tempdir().unwrap();
    let store = open(folder.path()).await.unwrap();
    // Holds the writer until all calls are queued, so that they share transactions; the first of one of them fails.
    let (release, held) = std::sync::mpsc::channel::<()>();
    let blocking = store.write("waiting", move |_| {
        held.recv().unwrap();
        Ok(())
    });
    let calls = (0..60).map(|number: i64| {
        let store = store.clone();
        let put = move |connection: &Connection| -> Result<(), SqliteError> {
            let sql = "INSERT INTO scope (endpoint, repository, options) VALUES (?1, 'r', '')";
            connection.prepare_cached(sql)?.execute([number.to_string()])?;
            match number % 3 {
                0 => Err(SqliteError::Reported(Error::new(ErrorKind::Local, "putting", "refused"))),
                1 => Ok(()),
                _ => {
                    connection.prepare_cached(sql)?.execute([number.to_string()])?;
                    Ok(())
                }
            }
        };
        async move { store.write("putting", put).await.is_ok() }
    });
    let calls = futures_util::future::join_all(calls);
    let (blocked, succeeded, ()) = tokio::join!(blocking, calls, async {
        tokio::task::yield_now().await;
        release.send(()).unwrap();
    });
    blocked.unwrap();
    let wanted: Vec<bool> = (0..60).map(|number| number % 3 == 1).collect();
    assert_eq!(succeeded, wanted);
    let there: i64 = store
        .read("counting", |connection| Ok(connection.query_row("SELECT count(*) FROM scope", [], |row| row.get(0))?))
        .await
        .unwrap();
    assert_eq!(there, 20);
}

#[tokio::test]
async fn calls_on_tasks_of_two_batches_in_one_transaction_all_count_but_the_failed_ones() {
    const TASKS: usize = 40;
    let folder = tempfile::tempdir().unwrap();
    let store = open(folder.path()).await.unwrap();
    let first = create_batch(&store, TASKS).await;
    let second = create_batch(&store, TASKS).await;
    let mut holders = Vec::new();
    for pair in first.iter().zip(&second) {
        holders.push((*pair.0, claim(&store, *pair.0).await));
        holders.push((*pair.1, claim(&store, *pair.1).await));
    }
    // Holds the writer until all calls are queued, so that they share transactions.
    let (release, held) = std::sync::mpsc::channel::<()>();
    let blocking = store.write("waiting", move |_| {
        held.recv().unwrap();
        Ok(())
    });
    let calls = holders.iter().enumerate().map(|(number, (task_ref, holder))| {
        let store = store.clone();
        async move {
            if number % 5 == 4 {
                // Finishes the task like the others, and fails then.
                let (task_ref, token) = (*task_ref, holder.token);
                let failing = move |group: &WriteGroup<'_>| -> Result<(), SqliteError> {
                    ledger::finish_copied(group, task_ref, TaskHolder { worker: "w", token })?;
                    Err(SqliteError::Reported(Error::new(ErrorKind::Local, "finishing", "refused")))
                };
                return store.write_tasks(task_ref.batch, "finishing", failing).await.is_ok();
            }
            let usage = Usage { time: Duration::from_millis(1), ..Usage::default() };
            let reply = store.finish(*task_ref, *holder, TaskResult::Copied, usage).await.unwrap();
            if number % 7 == 0 {
                assert_eq!(store.task_states(task_ref.batch, &[task_ref.index]).await.unwrap(), [TaskState::Copied]);
            }
            reply == FinishReply::Counted
        }
    });
    let (blocked, counted, ()) = tokio::join!(blocking, futures_util::future::join_all(calls), async {
        tokio::task::yield_now().await;
        release.send(()).unwrap();
    });
    blocked.unwrap();
    let failed = |number: &usize| number % 5 == 4;
    assert!(counted.iter().enumerate().all(|(number, is_counted)| *is_counted != failed(&number)), "{counted:?}");
    for batch in [first[0].batch, second[0].batch] {
        let of_batch = || holders.iter().enumerate().filter(|(_, (task_ref, _))| task_ref.batch == batch);
        let still_running = of_batch().filter(|(number, _)| failed(number)).count();
        let found = store.batch(batch).await.unwrap().unwrap();
        assert_eq!((found.state, found.counts.total), (BatchState::Running, TASKS as u64));
        assert_eq!((found.counts.copied, found.counts.running), ((TASKS - still_running) as u64, still_running as u64));
        let timeline = store.timeline(batch).await.unwrap();
        assert_eq!(timeline.buckets.iter().map(|bucket| bucket.copied).sum::<u64>(), found.counts.copied);
        for (_, (task_ref, holder)) in of_batch().filter(|(number, _)| failed(number)) {
            store.finish(*task_ref, *holder, TaskResult::Unchanged, Usage::default()).await.unwrap();
        }
        assert_eq!(store.batch(batch).await.unwrap().unwrap().state, BatchState::Done);
    }
}

#[tokio::test]
async fn statements_of_every_task_are_prepared_once() {
    let folder = tempfile::tempdir().unwrap();
    let store = open(folder.path()).await.unwrap();
    for batch in 0..3 {
        for task_ref in create_batch(&store, 30).await {
            let holder = claim(&store, task_ref).await;
            let usage = Usage { time: Duration::from_millis(100 + u64::from(task_ref.index)), ..Usage::default() };
            store.finish(task_ref, holder, TaskResult::Copied, usage).await.unwrap();
        }
        let prepared = store
            .write("counting", |connection| {
                let mut again = 0;
                for sql in ledger::statements_of_a_task() {
                    again += connection.prepare_cached(&sql)?.get_status(rusqlite::StatementStatus::RePrepare);
                }
                Ok(again)
            })
            .await
            .unwrap();
        assert_eq!(prepared, 0, "after batch {batch}");
    }
}

#[tokio::test]
async fn a_read_that_panics_leaves_the_next_one_a_snapshot_of_its_own() {
    let folder = tempfile::tempdir().unwrap();
    let store = open(folder.path()).await.unwrap();
    for rows in [1, MAX_ROWS_READ_HERE + 1] {
        let panicking = store.clone();
        let read = tokio::spawn(async move {
            let work = |_: &Connection| -> Result<(), SqliteError> { panic!("a fault in a read") };
            panicking.read_rows("reading", rows, work).await
        });
        assert!(!matches!(read.await, Ok(Ok(()))));
        let task_refs = create_batch(&store, 3).await;
        let states = store.task_states(task_refs[0].batch, &[0, 1, 2]).await.unwrap();
        assert_eq!(states.len(), 3);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn programs_that_start_at_the_same_time_all_open_a_new_store() {
    for _ in 0..20 {
        let folder = tempfile::tempdir().unwrap();
        let opening = (0..8).map(|_| open(folder.path()));
        for opened in futures_util::future::join_all(opening).await {
            opened.unwrap();
        }
    }
}

#[tokio::test]
async fn a_newer_store_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    drop(open(folder.path()).await.unwrap());
    Connection::open(folder.path().join(DATABASE_FILE)).unwrap().pragma_update(None, "user_version", 99).unwrap();
    let error = open(folder.path()).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Local);
    assert!(error.to_string().contains("newer imgsync") && error.to_string().contains("99"), "{error}");
    assert!(error.hint().is_some());
}

#[tokio::test]
async fn an_unreadable_missing_since_is_an_error_and_no_reason_to_prune() {
    let folder = tempfile::tempdir().unwrap();
    let store = open(folder.path()).await.unwrap();
    let place =
        |path: &str| TagLocator { repository: Arc::new(locator("r.example", path)), tag: "v1".parse().unwrap() };
    let source = place("a");
    store.record_provenance(&source, &place("b"), &Digest::sha256(b"1")).await.unwrap();
    let connection = Connection::open(folder.path().join(DATABASE_FILE)).unwrap();
    connection.execute("UPDATE provenance SET missing_since = ?1", [i64::MAX]).unwrap();
    let error = store.provenance_by_source(&source.repository).await.unwrap_err();
    assert!(error.to_string().contains("invalid timestamp"), "{error}");
}

#[tokio::test]
async fn a_push_of_another_version_stays_and_holds_up_no_other() {
    let folder = tempfile::tempdir().unwrap();
    let store = open(folder.path()).await.unwrap();
    let push = |tag: &str| ReceivedPush {
        id: None,
        registry: "r.example".parse().unwrap(),
        repository: "a".parse().unwrap(),
        reference: PushedReference::Tag(tag.parse().unwrap(), None),
        rules: vec![PushRule { id: "rule".to_owned(), name: "rule".to_owned() }],
    };
    store.add_pushes(vec![push("1"), push("2")]).await.unwrap();
    let connection = Connection::open(folder.path().join(DATABASE_FILE)).unwrap();
    let sql = "UPDATE pending_push SET key = 'r.example/a (a later kind)' WHERE key = 'r.example/a:1'";
    assert_eq!(connection.execute(sql, []).unwrap(), 1);
    for _ in 0..2 {
        let pending = store.pending_pushes().await.unwrap();
        assert_eq!((pending.len(), store.unreadable_pushes()), (1, 1));
        store.remove_pushes(&pending).await.unwrap();
        store.add_pushes(vec![push("2")]).await.unwrap();
    }
    connection.execute("DELETE FROM pending_push", []).unwrap();
    assert_eq!((store.pending_pushes().await.unwrap().len(), store.unreadable_pushes()), (0, 0));
}

#[tokio::test]
async fn a_file_of_another_program_is_left_alone() {
    let folder = tempfile::tempdir().unwrap();
    let connection = Connection::open(folder.path().join(DATABASE_FILE)).unwrap();
    connection.execute_batch("CREATE TABLE theirs (a)").unwrap();
    let error = open(folder.path()).await.unwrap_err();
    assert!(error.to_string().contains("another program"), "{error}");
    let tables: i64 = connection.query_row("SELECT count(*) FROM sqlite_schema", [], |row| row.get(0)).unwrap();
    assert_eq!(tables, 1);
}

#[tokio::test]
async fn a_damaged_file_says_what_to_do() {
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join(DATABASE_FILE), [0x42; 8_192]).unwrap();
    let error = open(folder.path()).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Local);
    assert!(error.to_string().contains("damaged") && error.hint().unwrap().contains("move"), "{error}");

    // Damage further on is found when it is read.
    let folder = tempfile::tempdir().unwrap();
    let store = open(folder.path()).await.unwrap();
    let task_refs = create_batch(&store, 3_000).await;
    drop(store);
    let path = folder.path().join(DATABASE_FILE);
    let mut bytes = std::fs::read(&path).unwrap();
    bytes[4_096 * 20..].fill(0x5a);
    std::fs::write(&path, bytes).unwrap();
    let error = match open(folder.path()).await {
        Ok(store) => store.tasks(task_refs[0].batch, None, 0, usize::MAX).await.unwrap_err(),
        Err(error) => error,
    };
    assert!(error.to_string().contains("damaged") && error.hint().unwrap().contains("move"), "{error}");
}

#[tokio::test]
async fn a_folder_that_cannot_be_made_is_an_error() {
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("file"), "").unwrap();
    let error = open(&folder.path().join("file/state")).await.unwrap_err();
    assert_eq!((error.kind(), error.hint()), (ErrorKind::Local, Some("choose another one with --state")));
}

#[tokio::test]
async fn a_full_disk_loses_nothing_that_was_recorded() {
    let folder = tempfile::tempdir().unwrap();
    let store = open(folder.path()).await.unwrap();
    let task_refs = create_batch(&store, 10).await;
    let batch = task_refs[0].batch;
    let holder = claim(&store, task_refs[0]).await;
    store.finish(task_refs[0], holder, TaskResult::Copied, Usage::default()).await.unwrap();
    let limit = |pages: i64| {
        store.write("limiting the store", move |connection| {
            // The pragma returns the limit as a row.
            connection.query_row(&format!("PRAGMA max_page_count = {pages}"), [], |_| Ok(()))?;
            Ok(())
        })
    };
    limit(1).await.unwrap();
    // Writes that need no more space succeed.
    let holder = claim(&store, task_refs[1]).await;
    store.finish(task_refs[1], holder, TaskResult::Copied, Usage::default()).await.unwrap();
    let other = new_batch("others");
    let id = other.id;
    store.create(other).await.unwrap();
    let error = store.append(id, segment("large", 20_000, None)).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Local);
    assert!(error.to_string().contains("disk is full"), "{error}");
    assert!(error.hint().unwrap().contains("make room"));
    assert_eq!(store.batch(batch).await.unwrap().unwrap().counts.copied, 2);
    assert_eq!(store.batch(id).await.unwrap().unwrap().counts.total, 0);

    limit(1_000_000).await.unwrap();
    assert_eq!(store.append(id, segment("large", 20_000, None)).await.unwrap(), AppendResult::Appended(0));
}

fn cached_tag(n: usize) -> CachedTag {
    let source = imgsync_oci::Digest::sha256(&n.to_le_bytes());
    CachedTag { target: source.clone(), source, seen_at: Timestamp::now(), referrers_at: None }
}

/// Prints the bytes per tag that the cache and an unchanged batch take.
#[tokio::test]
async fn a_tag_takes_few_bytes_on_disk() {
    const REPOSITORIES: usize = 200;
    const TAGS: usize = 100;
    let folder = tempfile::tempdir().unwrap();
    let store = open(folder.path()).await.unwrap();
    let empty = store.bytes_on_disk().await.unwrap();
    for repository in 0..REPOSITORIES {
        let path = format!("gcrxio/gcr.io_some-project_image-{repository}");
        let scope = CacheScope { repository: locator("docker.io", &path), options: "".into() };
        let tags = (0..TAGS).map(|n| (format!("1.{}.{}-debian", n / 10, n % 10).parse().unwrap(), cached_tag(n)));
        store.cache_tags(&scope, tags.collect()).await.unwrap();
    }
    let cache = store.bytes_on_disk().await.unwrap() - empty;
    let before = store.bytes_on_disk().await.unwrap();
    let batch = new_batch("rules");
    let id = batch.id;
    store.create(batch).await.unwrap();
    for repository in 0..REPOSITORIES {
        let name = format!("some-project/image-{repository}");
        store.append(id, segment(&name, TAGS, Some(TaskResult::Unchanged))).await.unwrap();
    }
    let unchanged = store.bytes_on_disk().await.unwrap() - before;
    for repository in 0..REPOSITORIES {
        store.append(id, segment(&format!("to-do/image-{repository}"), TAGS, None)).await.unwrap();
    }
    let to_do = store.bytes_on_disk().await.unwrap() - before - unchanged;
    let per_tag = |bytes: u64| bytes as f64 / (REPOSITORIES * TAGS) as f64;
    let (cache, unchanged, to_do) = (per_tag(cache), per_tag(unchanged), per_tag(to_do));
    println!("bytes of store per tag: cache {cache:.1}, plan if unchanged {unchanged:.1}, if to do {to_do:.1}");
    assert!(cache + unchanged < 120.0);
}

/// Prints how many tasks per second go through: `cargo test -p imgsync-store --release -- --ignored --nocapture speed`
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "measures; takes seconds"]
async fn speed_of_starting_and_finishing() {
    const TASKS: usize = 40_000;
    let folder = tempfile::tempdir().unwrap();
    let store = open(folder.path()).await.unwrap();
    let began = std::time::Instant::now();
    let task_refs = create_batch(&store, TASKS).await;
    println!("planned: {:.0} tasks/s", TASKS as f64 / began.elapsed().as_secs_f64());
    let began = std::time::Instant::now();
    let workers: Vec<_> = task_refs
        .chunks(TASKS / 64)
        .map(|chunk| {
            let (store, chunk) = (store.clone(), chunk.to_vec());
            tokio::spawn(async move {
                for task_ref in chunk {
                    let holder = claim(&store, task_ref).await;
                    let result = match task_ref.index % 50 {
                        0 => TaskResult::Failed(Failure::new(ErrorKind::Refused, "no", 1)),
                        _ => TaskResult::Copied,
                    };
                    store.finish(task_ref, holder, result, Usage::default()).await.unwrap();
                }
            })
        })
        .collect();
    for worker in workers {
        worker.await.unwrap();
    }
    println!("started and finished: {:.0} tasks/s", TASKS as f64 / began.elapsed().as_secs_f64());
    assert_eq!(store.batch(task_refs[0].batch).await.unwrap().unwrap().counts.unfinished(), 0);
}

#[tokio::test]
async fn the_end_of_a_batch_is_announced_once_by_its_last_task_and_by_a_plan_that_leaves_nothing_to_do() {
    let subject = subject(None, ()).await;
    let ended = subject.store.ended_batches().unwrap();
    let number = || *ended.borrow();
    let (one, two) = (new_batch("one"), new_batch("two"));
    let (first, second) = (one.id, two.id);
    subject.store.create(one).await.unwrap();
    subject.store.append(first, segment("a", 2, None)).await.unwrap();
    subject.store.complete_plan(first, PlanSize::default()).await.unwrap();
    let tasks = subject.publish(first).await;
    for (at, task_ref) in tasks.iter().enumerate() {
        assert_eq!(number(), 0, "before task {at}");
        let holder = subject.claim(*task_ref, "w").await;
        subject.finish(*task_ref, holder, TaskResult::Unchanged).await;
        subject.finish(*task_ref, holder, TaskResult::Unchanged).await;
    }
    assert_eq!(number(), 1, "a repeated call announces nothing");
    subject.store.create(two).await.unwrap();
    subject.store.append(second, segment("a", 3, Some(TaskResult::Unchanged))).await.unwrap();
    assert_eq!(number(), 1, "the plan is open");
    subject.store.complete_plan(second, PlanSize::default()).await.unwrap();
    assert_eq!(number(), 2);
}
