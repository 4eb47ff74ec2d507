//! Tests of the terminal view, drawn into buffers of several sizes.

use imgsync_model::batch::{BatchId, TaskCounts};
use imgsync_oci::Digest;
use imgsync_oci::error::ErrorKind;
use imgsync_store::TimeBucket;
use ratatui::Terminal;
use ratatui::backend::TestBackend;

use super::*;

/// A running batch with failed listings and a worker.
pub(in crate::cli) fn sample_screen() -> BatchScreen {
    let counts = TaskCounts { total: 100, copied: 40, failed: 2, running: 8, waiting: 50, ..TaskCounts::default() };
    let batch = Batch {
        id: BatchId::generate(),
        state: BatchState::Running,
        run: 0,
        rules: Digest::sha256(b""),
        options: String::new(),
        supersedes: None,
        created_at: Timestamp::now(),
        plan_completed_at: Some(Timestamp::now()),
        ended_at: None,
        counts,
        queued: 0,
        retrying: 0,
        usage: Default::default(),
    };
    let part = |number| TimeBucket { number, copied: 4 + u64::from(number), bytes: 1000, ..TimeBucket::default() };
    let timeline = BatchTimeline {
        bucket_width: Duration::from_secs(1),
        buckets: (0..10).map(part).collect(),
        ..BatchTimeline::default()
    };
    let unlisted = (0..30).map(|n| ListingFailure {
        repository: format!("gcr.io/r{n}\u{1b}[31m"),
        kind: ErrorKind::Denied,
        error: "not for you".to_owned(),
    });
    let worker = Heartbeat {
        worker: "here-7".to_owned(),
        host: "here".to_owned(),
        version: "3".to_owned(),
        started_at: Timestamp::now(),
        config_hash: None,
        slots: 4,
        draining: false,
        running: Vec::new(),
        unserved: Vec::new(),
        refused: 0,
        refusal_reason: None,
        broker_nodes: Vec::new(),
        store_master: None,
    };
    let options = BatchOptions::default();
    let title = "gcr.io/distroless/static".to_owned();
    let view = BatchView { batch, state: BatchStatus::Running, owner: Some("run on here-1".to_owned()) };
    BatchScreen::new(view, (title, options), (Vec::new(), unlisted.collect()), timeline, vec![worker], Vec::new())
}

fn render(fixture: &mut BatchScreen, width: u16, height: u16) -> String {
    let mut terminal = Terminal::new(TestBackend::new(width, height)).unwrap();
    terminal.draw(|frame| draw(frame, fixture)).unwrap();
    terminal.backend().to_string()
}

#[test]
fn everything_is_there_on_small_and_large_terminals_and_nothing_breaks_on_tiny_ones() {
    for (width, height) in [(80, 24), (200, 50), (40, 12), (10, 3), (1, 1)] {
        let shown = render(&mut sample_screen(), width, height);
        if width >= 80 {
            for wanted in [
                "running",
                "gcr.io/distroless/static",
                "42 of 100",
                "40 copied",
                "2 failed",
                "Failures",
                "Workers",
                "q quit",
            ] {
                assert!(shown.contains(wanted), "{wanted} at {width}x{height}:\n{shown}");
            }
        }
        assert!(!shown.contains('\u{1b}'));
    }
}

#[test]
fn a_list_is_moved_within_its_bounds() {
    let mut fixture = sample_screen();
    fixture.scroll(10_000);
    let shown = render(&mut fixture, 120, 40);
    assert!(shown.contains("of 30 ") && shown.contains("gcr.io/r29"), "{shown}");
    fixture.scroll(-20_000);
    assert!(render(&mut fixture, 120, 40).contains("Failures 1-"));
}

/// A batch with numbers as large as they get.
fn large_screen() -> BatchScreen {
    let mut screen = sample_screen();
    screen.view.batch.counts = TaskCounts {
        total: 1_234_567,
        copied: 400_000,
        unchanged: 300_000,
        failed: 2_345,
        cancelled: 12,
        running: 800,
        waiting: 531_410,
    };
    screen
}

#[test]
fn no_count_is_cut_off_at_60_columns() {
    let shown = render(&mut large_screen(), 60, 30);
    for wanted in [
        "702,357 of 1,234,567",
        "400,000 copied",
        "300,000 unchanged",
        "2,345 failed",
        "12 cancelled",
        "800 running",
        "531,410 waiting",
        "q quit",
        "scroll",
    ] {
        assert!(shown.contains(wanted), "{wanted}:\n{shown}");
    }
}

#[test]
fn two_hundred_columns_are_used() {
    let shown = render(&mut large_screen(), 200, 50);
    let line =
        |words: &str| shown.lines().find(|line| line.contains(words)).unwrap_or_else(|| panic!("{words}: {shown}"));
    // Counts, bytes and time on one line; a failure with its error on one line, beside the workers.
    assert!(line("702,357 of 1,234,567").contains("/s") && line("531,410 waiting").contains("left"), "{shown}");
    assert!(line("gcr.io/r0").contains("not for you"), "{shown}");
    assert!(line("Failures").contains("Workers"), "{shown}");
    assert!(line("images per").contains("throughput"), "{shown}");
}

#[test]
fn a_locale_without_utf_8_gets_ascii_only() {
    let mut screen = large_screen();
    screen.title = "镜像".to_owned() + &"x".repeat(200);
    screen.is_ascii = true;
    for (width, height) in [(60, 30), (200, 50), (10, 3)] {
        // The backend quotes each line.
        let shown = render(&mut screen, width, height);
        assert!(shown.is_ascii(), "{shown}");
    }
    assert!(render(&mut screen, 100, 40).contains('#'));
    screen.is_ascii = false;
    assert!(!render(&mut screen, 100, 40).is_ascii());
}

#[test]
fn a_question_is_asked_before_the_batch_changes_and_a_paused_one_has_no_time_left() {
    let mut screen = sample_screen();
    for (state, words) in [
        (BatchState::Paused, "Pause the batch?"),
        (BatchState::Running, "Resume the batch?"),
        (BatchState::Cancelled, "Cancel the batch?"),
    ] {
        screen.prompt = Prompt::Confirm(state);
        let shown = render(&mut screen, 80, 24);
        assert!(shown.contains(words) && shown.contains("y: yes, any other key: no"), "{shown}");
    }
    screen.prompt = Prompt::Inactive;
    assert!(render(&mut screen, 100, 30).contains(" left"));
    screen.view.batch.state = BatchState::Paused;
    screen.view.state = BatchStatus::Paused;
    let shown = render(&mut screen, 100, 30);
    assert!(shown.contains(" paused ") && shown.contains("p resume") && !shown.contains(" left"), "{shown}");
}

#[test]
fn a_verification_counts_identical_images() {
    let mut screen = sample_screen();
    screen.is_verification = true;
    let shown = render(&mut screen, 100, 30);
    assert!(shown.contains("0 identical") && shown.contains("2 different or failed"), "{shown}");
}

#[test]
fn values_are_spread_over_the_room_that_there_is() {
    assert_eq!(resample(&[1, 5], 4), [1, 1, 5, 5]);
    assert_eq!(resample(&[1, 9, 3, 4], 2), [9, 4]);
    assert!(resample(&[], 3).is_empty());
}
