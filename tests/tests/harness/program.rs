//! Programs are run, measured and signalled.

use std::time::{Duration, Instant};

use imgsync_tests::Imgsync;
use imgsync_tests::program::Signal;

#[tokio::test]
async fn a_program_is_measured_and_given_its_home_folders() {
    let shell = Imgsync::at("/bin/sh").arg("-c").arg("cat; echo $HOME >&2; exit 7").stdin("hello");
    let output = shell.run().await.assert_code(7);
    assert_eq!(output.stdout, "hello");
    assert_eq!(output.stderr.trim(), shell.home_dir().join("home").to_str().unwrap());

    // `tail` keeps what it will print in memory.
    let tail = Imgsync::at("/usr/bin/tail").arg("-c").arg("40000000").stdin(vec![b'x'; 50_000_000]);
    let output = tail.run().await.assert_code(0);
    assert_eq!(output.stdout.len(), 40_000_000);
    assert!((40_000_000..80_000_000).contains(&output.peak_rss_bytes), "{}", output.peak_rss_bytes);

    let busy = Imgsync::at("/bin/sh").args(["-c", "i=0; while [ $i -lt 300000 ]; do i=$((i+1)); done"]);
    let output = busy.run().await.assert_code(0);
    assert!(output.cpu_seconds > 0.05 && output.cpu_seconds <= output.elapsed.as_secs_f64() + 0.05, "{output:?}");
}

#[tokio::test]
async fn a_program_is_signalled_when_it_has_said_a_line() {
    let script = "trap 'echo bye; exit 4' INT; echo 'now ready' >&2; while :; do sleep 0.05; done";
    let mut running = Imgsync::at("/bin/sh").args(["-c", script]).spawn();
    let line = running.wait_for_line(|line| line.contains("ready"), Duration::from_secs(10)).await;
    assert_eq!(line, "now ready");
    running.signal(Signal::INT);
    let output = running.wait().await.assert_code(4);
    assert_eq!(output.stdout, "bye\n");
    let running = Imgsync::at("/bin/sleep").arg("60").spawn();
    let (pid, started) = (running.pid(), Instant::now());
    drop(running);
    let is_alive = || std::fs::read_to_string(format!("/proc/{pid}/stat")).is_ok_and(|stat| !stat.contains(") Z "));
    while is_alive() && started.elapsed() < Duration::from_secs(5) {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    assert!(!is_alive());
}
