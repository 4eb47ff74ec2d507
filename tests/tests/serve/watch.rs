//! `imgsync batch watch` from another process, as lines and as a terminal view; and the README's example.

use std::process::Command;
use std::sync::Arc;
use std::time::Duration;

use imgsync_tests::fault::{FaultAction, RequestMatcher, RequestType};
use imgsync_tests::program::Signal;
use imgsync_tests::servers::find_program;
use imgsync_tests::{Imgsync, ServeProcess, skipped};
use tokio::sync::Semaphore;

use crate::support::{ServeFixture, assert_sums};

const WAIT_TIMEOUT: Duration = Duration::from_secs(60);

#[tokio::test]
async fn a_batch_is_followed_as_lines_where_there_is_no_terminal() {
    let fixture = ServeFixture::new(&["a"], 3).await;
    let gate = Arc::new(Semaphore::new(0));
    fixture.target.on(RequestMatcher::kind(RequestType::ManifestPut)).always().act(FaultAction::Gate(gate.clone()));
    let _served = fixture.serve(&[("a", "{every: 1h}")]).await;
    fixture.target.wait_until(|target| target.count(RequestType::ManifestPut) > 0, WAIT_TIMEOUT).await;
    let mut watching = fixture.program.again().args(["batch", "watch"]).spawn();
    gate.add_permits(100);
    let output = watching.wait().await.assert_code(0);
    let last = output.stdout.lines().last().unwrap_or_default();
    assert!(last.starts_with("3 of 3: 3 copied"), "{}", output.stdout);
    assert!(!output.stdout.contains('\u{1b}'), "{}", output.stdout);
}

#[tokio::test]
async fn on_a_terminal_a_batch_is_a_view_and_the_terminal_is_given_back() {
    let Some(script) = find_program("script") else {
        return skipped("the view on a terminal (script is not installed: apt install bsdutils)");
    };
    let fixture = ServeFixture::new(&["a"], 3).await;
    let gate = Arc::new(Semaphore::new(0));
    fixture.target.on(RequestMatcher::kind(RequestType::ManifestPut)).always().act(FaultAction::Gate(gate.clone()));
    let served = fixture.serve(&[("a", "{every: 1h}")]).await;
    fixture.target.wait_until(|target| target.count(RequestType::ManifestPut) > 0, WAIT_TIMEOUT).await;
    let log = fixture.program.work_dir().join("typescript");
    let inner = format!("stty rows 24 cols 80; exec {} batch watch", fixture.program.path().display());
    let mut command = Command::new(script);
    command
        .args(["--quiet", "--flush", "--return", "--command", &inner])
        .arg(&log)
        .current_dir(fixture.program.work_dir());
    command.env("TERM", "xterm-256color").env("XDG_STATE_HOME", fixture.program.state_dir());
    command.stdin(std::process::Stdio::piped()).stdout(std::process::Stdio::null()).stderr(std::process::Stdio::null());
    let mut child = command.spawn().unwrap();
    let shown = || String::from_utf8_lossy(&std::fs::read(&log).unwrap_or_default()).into_owned();
    let started = std::time::Instant::now();
    // The alternate screen, which shows the running tasks.
    while !(shown().contains("\u{1b}[?1049h") && shown().contains("Failures") && shown().contains("quit")) {
        assert!(started.elapsed() < WAIT_TIMEOUT, "{}", shown());
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    gate.add_permits(100);
    served.wait_for_ended_batches(1).await;
    let ended = tokio::task::spawn_blocking(move || child.wait()).await.unwrap().unwrap();
    assert_eq!(ended.code(), Some(0), "{}", shown());
    let text = shown();
    let (_, after) = text.rsplit_once("\u{1b}[?1049l").expect("the screen before is shown again");
    assert!(after.contains("3 of 3: 3 copied"), "{after}");
}

#[tokio::test]
async fn the_example_runs_on_schedule_and_its_failure_is_seen() {
    let program = Imgsync::new();
    let examples = program.work_dir().join("examples");
    let copied =
        Command::new("cp").arg("-r").arg(concat!(env!("CARGO_MANIFEST_DIR"), "/../examples")).arg(&examples).status();
    assert!(copied.unwrap().success());
    let config = std::fs::read_to_string(examples.join("serve.yaml")).unwrap();
    // A shorter interval than the example's, so that its second run is seen as well.
    std::fs::write(
        examples.join("serve.yaml"),
        config.replace("every: 1m, jitter: 10s", "every: 6s").replace("1m", "6s"),
    )
    .unwrap();
    let mut served = ServeProcess::start(&program, &["-c", "examples/serve.yaml"]).await;
    let batches = served.wait_for_ended_batches(4).await;
    let failed: Vec<_> = batches.iter().filter(|batch| batch["counts"]["failed"] != 0).collect();
    assert!(failed.len() >= 2, "{batches:#?}");
    batches.iter().for_each(assert_sums);
    let good = batches.iter().find(|batch| batch["counts"]["copied"] != 0).expect("one rule copies");
    assert_eq!(good["counts"]["failed"], 0);
    let id = failed[0]["batch"].as_str().unwrap();
    let (_, groups) = served.get(&format!("batches/{id}/failures/groups")).await;
    assert_eq!(groups["by_kind"][0]["kind"], "unsupported", "{groups:#}");
    served.running.signal(Signal::TERM);
    served.running.wait().await.assert_code(0);
}
