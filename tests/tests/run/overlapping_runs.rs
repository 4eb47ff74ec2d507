//! Overlapping runs in one state folder, and batches without a run.

use std::sync::Arc;
use std::time::Duration;

use imgsync_tests::fault::{FaultAction, FaultRegistry, RequestMatcher, RequestType, RuleHandle};
use imgsync_tests::images;
use imgsync_tests::program::{Imgsync, Output, RunningProgram};
use imgsync_tests::serve_process::ServeProcess;
use rustix::process::Signal;
use serde_json::Value;
use tokio::sync::Semaphore;

use crate::end_to_end::{assert_adds_up, configured};

const WAIT_TIMEOUT: Duration = Duration::from_secs(60);

/// A source with five images, a target that holds tag PUTs until the gate opens, and a program between them.
struct OverlapFixture {
    source: FaultRegistry,
    target: FaultRegistry,
    program: Imgsync,
    rule: RuleHandle,
    gate: Arc<Semaphore>,
}

impl OverlapFixture {
    async fn new() -> OverlapFixture {
        let (source, target) = tokio::join!(FaultRegistry::start(), FaultRegistry::start());
        for n in 0..5 {
            source.push("a", &format!("v{n}"), &images::single(&format!("overlap-{n}")));
        }
        source.push("other", "v0", &images::single("overlap-other"));
        let gate = Arc::new(Semaphore::new(0));
        let rule = target.on(RequestType::ManifestPut).always().act(FaultAction::Gate(gate.clone()));
        let config = |repository: &str| {
            format!("rules:\n- {{from: {}/{repository}, to: {}/m, naming: keep}}\n", source.host(), target.host())
        };
        let program = configured(&config("a"));
        program.file("other.yaml", config("other"));
        OverlapFixture { source, target, program, rule, gate }
    }

    fn run(&self, more: &[&str]) -> Imgsync {
        let file = self.program.work_dir().join("imgsync.yaml");
        self.program.again().args(["run", "--json", "--concurrency", "2", "-c"]).arg(file).args(more)
    }

    /// Starts a run whose copies wait at the gate.
    async fn start_gated_run(&self) -> RunningProgram {
        let before = self.rule.hits();
        let running = self.run(&[]).spawn();
        self.target.wait_until(|_| self.rule.hits() >= before + 2, WAIT_TIMEOUT).await;
        running
    }

    fn open(&self) {
        self.rule.remove();
        self.gate.add_permits(1_000);
    }

    async fn batch(&self, arguments: &[&str]) -> Output {
        let file = self.program.work_dir().join("imgsync.yaml");
        self.program.again().arg("batch").args(arguments).arg("-c").arg(file).run().await
    }

    async fn list(&self) -> Vec<Value> {
        let listed = self.batch(&["list", "--json"]).await.assert_code(0);
        listed.stdout.lines().map(|line| serde_json::from_str(line).unwrap()).inspect(assert_adds_up).collect()
    }

    async fn states(&self) -> Vec<String> {
        self.list().await.iter().map(|batch| batch["state"].as_str().unwrap().to_owned()).collect()
    }
}

async fn wait_for_message(running: &RunningProgram, what: &str) -> String {
    running.wait_for_line(|line| line.contains(what), WAIT_TIMEOUT).await
}

fn assert_whole(ended: &Output, total: u64) {
    assert_eq!(ended.code, Some(0), "{}", ended.stderr);
    let json = ended.json();
    assert_adds_up(&json);
    assert_eq!((&json["counts"]["total"], &json["state"]), (&total.into(), &"done".into()), "{json}");
}

#[tokio::test]
async fn runs_of_one_folder_wait_for_each_other_whatever_their_rules_are() {
    let fixture = OverlapFixture::new().await;
    let mut first = fixture.start_gated_run().await;
    let process = format!("process {}", first.pid());
    let id = fixture.list().await[0]["batch"].as_str().unwrap().to_owned();
    let mut second = fixture.run(&[]).spawn();
    let line = wait_for_message(&second, "waiting for it to end").await;
    assert!(line.contains(&format!("batch {id} of the same rules is run by {process} since ")), "{line}");
    let mut third = fixture.run(&[]).spawn();
    wait_for_message(&third, ": joining it").await;
    let file = fixture.program.work_dir().join("other.yaml");
    let mut other = fixture.program.again().args(["run", "--json", "-c"]).arg(file).spawn();
    let line = wait_for_message(&other, "waiting for it to end").await;
    assert!(line.contains(&format!("{process} is running with this state directory since ")), "{line}");
    assert_eq!(fixture.states().await, ["running"]);
    fixture.source.push("a", "late", &images::single("overlap-late"));
    fixture.open();
    let (first, second, third, other) = tokio::join!(first.wait(), second.wait(), third.wait(), other.wait());
    assert_whole(&first, 5);
    assert_whole(&second, 6);
    assert_whole(&third, 6);
    assert_whole(&other, 1);
    assert_eq!(second.json()["counts"]["copied"], 1, "it lists when its turn has come");
    assert_eq!(second.json()["batch"], third.json()["batch"]);
    assert_eq!(fixture.states().await, ["done", "done", "done"]);
}

#[tokio::test]
async fn of_runs_that_start_at_the_same_time_each_ends_whole_and_none_is_cancelled() {
    let fixture = OverlapFixture::new().await;
    fixture.open();
    let mut runs: Vec<RunningProgram> = (0..4).map(|_| fixture.run(&[]).spawn()).collect();
    for run in &mut runs {
        assert_whole(&run.wait().await, 5);
    }
    assert!(fixture.states().await.iter().all(|state| state == "done"));
}

#[tokio::test]
async fn a_run_joins_supersedes_or_fails_where_it_is_told_to() {
    let fixture = OverlapFixture::new().await;
    let mut first = fixture.start_gated_run().await;
    let id = fixture.list().await[0]["batch"].as_str().unwrap().to_owned();
    let refused = fixture.run(&["--if-running", "fail"]).run().await.assert_code(2);
    assert!(refused.stderr.contains(&format!("run by process {}", first.pid())), "{}", refused.stderr);
    let refused = fixture.run(&["--if-running", "join", "--force"]).run().await.assert_code(2);
    assert!(refused.stderr.contains("--force differ"), "{}", refused.stderr);
    let mut joined = fixture.run(&["--if-running", "join"]).spawn();
    wait_for_message(&joined, ": joining it").await;
    let mut later = fixture.run(&["--if-running", "supersede"]).spawn();
    wait_for_message(&later, ": superseding it").await;
    let (first, joined) = tokio::join!(first.wait(), joined.wait());
    for ended in [first, joined] {
        assert_eq!((ended.code, &ended.json()["batch"]), (Some(1), &(*id).into()), "{}", ended.stderr);
        assert_eq!((&ended.json()["state"], &ended.json()["counts"]["running"]), (&"superseded".into(), &0.into()));
    }
    fixture.open();
    assert_whole(&later.wait().await, 5);
    assert_eq!(fixture.states().await, ["done", "superseded"]);
}

#[tokio::test]
async fn a_paused_batch_is_left_alone_by_every_run() {
    let fixture = OverlapFixture::new().await;
    let mut first = fixture.start_gated_run().await;
    fixture.batch(&["pause"]).await.assert_code(0);
    let id = fixture.list().await[0]["batch"].as_str().unwrap().to_owned();
    let refused = async |mode: &str| {
        let refused = fixture.run(&["--if-running", mode]).run().await.assert_code(2);
        for command in ["resume", "cancel"] {
            assert!(refused.stderr.contains(&format!("imgsync batch {command} {id}")), "{mode}: {}", refused.stderr);
        }
    };
    for mode in ["wait", "join", "supersede", "fail"] {
        refused(mode).await;
    }
    // The same without its run.
    first.signal(Signal::KILL);
    first.wait().await;
    refused("wait").await;
    let watched = fixture.batch(&["watch"]).await.assert_code(4);
    assert!(watched.stderr.contains("paused, and no coordinator leads it"), "{}", watched.stderr);
    assert_eq!(fixture.states().await, ["paused"]);
    fixture.open();
    assert_whole(&fixture.batch(&["resume", "--json"]).await, 5);
}

#[tokio::test]
async fn a_batch_whose_run_was_killed_is_interrupted_at_once_and_can_be_resumed_or_superseded() {
    let fixture = OverlapFixture::new().await;
    let mut first = fixture.start_gated_run().await;
    let id = fixture.list().await[0]["batch"].as_str().unwrap().to_owned();
    let file = fixture.program.work_dir().join("imgsync.yaml");
    let mut watch = fixture.program.again().args(["batch", "watch", &id, "-c"]).arg(file).spawn();
    first.signal(Signal::KILL);
    first.wait().await;
    let watched = watch.wait().await;
    assert_eq!(watched.code, Some(4), "{}", watched.stderr);
    assert!(watched.stderr.contains(&format!("`imgsync batch resume {id}`")), "{}", watched.stderr);
    let batch = &fixture.list().await[0];
    assert_eq!(
        (&batch["state"], &batch["resume"]),
        (&"interrupted".into(), &format!("imgsync batch resume {id}").into())
    );
    assert_eq!(
        (&batch["counts"]["running"], &batch["counts"]["waiting"]),
        (&0.into(), &5.into()),
        "nobody works at it"
    );
    let shown = fixture.batch(&["show"]).await.assert_code(0).stdout;
    assert!(shown.contains("(interrupted)") && shown.contains("Not done: 5 waiting, 0 running"), "{shown}");

    let mut resumed = {
        let file = fixture.program.work_dir().join("imgsync.yaml");
        fixture.program.again().args(["batch", "resume", "--json", "-c"]).arg(file).spawn()
    };
    fixture.target.wait_until(|_| fixture.rule.hits() >= 4, WAIT_TIMEOUT).await;
    assert_eq!(fixture.states().await, ["running"]);
    resumed.signal(Signal::KILL);
    resumed.wait().await;
    fixture.open();
    let fresh = fixture.run(&[]).run().await;
    assert_whole(&fresh, 5);
    assert!(fresh.stderr.contains(&format!("batch {id} of the same rules was interrupted")), "{}", fresh.stderr);
    let batches = fixture.list().await;
    assert_eq!((&batches[1]["state"], &batches[1]["counts"]["running"]), (&"superseded".into(), &0.into()));
}

#[tokio::test]
async fn a_run_that_waits_ends_at_once_when_it_is_told_to_and_the_next_waits_in_its_place() {
    let fixture = OverlapFixture::new().await;
    let mut first = fixture.start_gated_run().await;
    let mut second = fixture.run(&[]).spawn();
    wait_for_message(&second, "waiting for it to end").await;
    second.signal(Signal::INT);
    assert_eq!(second.wait().await.code, Some(4));
    let mut third = fixture.run(&[]).spawn();
    wait_for_message(&third, "waiting for it to end").await;
    assert!(!third.stderr().contains("joining"), "{}", third.stderr());
    fixture.open();
    assert_whole(&first.wait().await, 5);
    assert_whole(&third.wait().await, 5);
    assert_eq!(fixture.states().await, ["done", "done"]);
}

#[tokio::test]
async fn a_run_does_not_wait_for_serve_which_has_no_end() {
    let fixture = OverlapFixture::new().await;
    let _served = ServeProcess::start(&fixture.program, &[]).await;
    let refused = fixture.run(&[]).run().await.assert_code(3);
    assert!(refused.stderr.contains("imgsync serve"), "{}", refused.stderr);
}

#[tokio::test]
async fn a_batch_that_was_superseded_before_it_was_listed_is_no_success() {
    let fixture = OverlapFixture::new().await;
    let gate = Arc::new(Semaphore::new(0));
    let lists =
        fixture.source.on(RequestMatcher::kind(RequestType::Tags)).always().act(FaultAction::Gate(gate.clone()));
    let mut first = fixture.run(&[]).spawn();
    fixture.source.wait_until(|source| source.count(RequestType::Tags) == 1, WAIT_TIMEOUT).await;
    let mut second = fixture.run(&["--if-running", "supersede"]).spawn();
    let ended = first.wait().await;
    assert_eq!((ended.code, &ended.json()["counts"]["total"]), (Some(1), &0.into()), "{}", ended.stderr);
    assert!(ended.stderr.contains("superseded by a later run of the same rules"), "{}", ended.stderr);
    lists.remove();
    gate.add_permits(100);
    fixture.open();
    assert_whole(&second.wait().await, 5);
}
