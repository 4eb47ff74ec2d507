//! Full disks, and file permissions of what is written.

use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::time::Duration;

use imgsync_tests::fault::{FaultAction, FaultRegistry, RequestType};
use imgsync_tests::images;
use imgsync_tests::program::Imgsync;

/// Runs a rule with two tags in its own home.
async fn a_home() -> (Imgsync, FaultRegistry, FaultRegistry) {
    let (source, target) = tokio::join!(FaultRegistry::start(), FaultRegistry::start());
    for tag in ["1", "2"] {
        source.push("a", tag, &images::single(&format!("disk-{tag}")));
    }
    let program = Imgsync::new();
    let rule = format!("rules:\n- {{from: {}/a, to: {}/m, naming: keep}}\n", source.host(), target.host());
    program.file("imgsync.yaml", rule);
    program.again().args(["run", "--quiet"]).run().await.assert_code(0);
    (program, source, target)
}

#[tokio::test]
async fn every_command_whose_output_is_lost_says_so_and_ends_with_3() {
    let (program, source, target) = a_home().await;
    let (from, to) = (format!("{}/a:1", source.host()), format!("{}/m/a:1", target.host()));
    let repository = format!("{}/a", source.host());
    let skopeo = program.file("skopeo.yaml", format!("{}:\n  images:\n    a: ['1']\n", source.host()));
    let skopeo = skopeo.display().to_string();
    let commands: Vec<Vec<&str>> = vec![
        vec!["--help"],
        vec!["--version"],
        vec!["run", "--help"],
        vec!["run", "--json"],
        vec!["run", "--report"],
        vec!["run", "--events"],
        vec!["run", "--dry-run"],
        vec!["sync", &from, &to],
        vec!["sync", &from, &to, "--json"],
        vec!["sync", &from, &to, "--dry-run"],
        vec!["tags", &repository],
        vec!["tags", &repository, "--json"],
        vec!["explain", &from],
        vec!["verify", &from, &to],
        vec!["verify", "--json"],
        vec!["inspect", &from],
        vec!["batch", "list"],
        vec!["batch", "list", "--json"],
        vec!["batch", "show"],
        vec!["batch", "watch"],
        vec!["batch", "report"],
        vec!["cache", "export"],
        vec!["config", "show"],
        vec!["config", "schema"],
        vec!["presets"],
        vec!["config", "import", &skopeo, "--to", "r.example/m"],
        vec!["completions", "bash"],
        vec!["man"],
    ];
    for arguments in commands {
        let lost = program.again().args(&arguments).stdout_to("/dev/full").run().await;
        let said = lost.stderr.matches("writing to stdout: No space left").count();
        assert_eq!((lost.code, said), (Some(3), 1), "{arguments:?}\n{}", lost.stderr);
    }
    let lost = Imgsync::worker().arg("--help").stdout_to("/dev/full").run().await.assert_code(3);
    assert!(lost.stderr.contains("writing to stdout: No space left"), "{}", lost.stderr);
}

#[tokio::test]
async fn a_closed_pipe_gets_no_error_message() {
    let (program, source, _target) = a_home().await;
    let from = format!("{}/a", source.host());
    for arguments in [vec!["--help"], vec!["tags", &from], vec!["cache", "export"], vec!["config", "schema"]] {
        let script = format!("{} \"$@\" | true; exit ${{PIPESTATUS[0]}}", program.path().display());
        let mut shell = Imgsync::at("/bin/bash").args(["-c", &script, "bash"]).args(&arguments);
        // Writing to a closed pipe fails at the second write at the latest.
        shell = shell.env("XDG_STATE_HOME", program.state_dir());
        let output = shell.run().await.assert_code(0);
        assert!(!output.stderr.contains("writing to stdout"), "{arguments:?}: {}", output.stderr);
    }
}

#[tokio::test]
async fn a_report_or_an_export_that_cannot_be_written_ends_with_3() {
    let (program, source, target) = a_home().await;
    source.push("a", "3", &images::single("disk-3"));
    let full = ["--report=/dev/full", "--report-format", "json"];
    let output = program.again().arg("run").args(full).run().await.assert_code(3);
    assert!(output.stderr.contains("writing the report /dev/full: No space left"), "{}", output.stderr);
    assert_eq!(target.tags("m/a"), ["1", "2", "3"], "what was to be done is done");
    let output = program.again().args(["batch", "report"]).args(full).run().await.assert_code(3);
    assert!(output.stderr.contains("writing the report /dev/full: No space left"), "{}", output.stderr);
    let output = program.again().args(["cache", "export", "missing/file"]).run().await.assert_code(3);
    assert!(output.stderr.contains("writing missing/file"), "{}", output.stderr);
}

fn mode(path: &Path) -> u32 {
    std::fs::metadata(path).unwrap().permissions().mode() & 0o777
}

/// Returns all files and folders below, with their modes.
fn modes_below(folder: &Path) -> Vec<(String, u32)> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        found.push((path.display().to_string(), mode(&path)));
        if path.is_dir() {
            found.extend(modes_below(&path));
        }
    }
    found
}

#[tokio::test]
async fn state_and_reports_are_for_their_owner_alone_whatever_the_umask() {
    for umask in [0o000, 0o022, 0o277] {
        let (source, target) = tokio::join!(FaultRegistry::start(), FaultRegistry::start());
        source.push("a", "1", &images::single("private"));
        let program = Imgsync::new().umask(umask);
        let rule = format!("rules:\n- {{from: {}/a, to: {}/m, naming: keep}}\n", source.host(), target.host());
        program.file("imgsync.yaml", rule);
        let shared = program.file("shared.json", "");
        std::fs::set_permissions(&shared, std::fs::Permissions::from_mode(0o664)).unwrap();
        // An older, world-readable database.
        let state = program.home_dir().join("new/state");
        let at = state.display().to_string();
        for (report, wanted) in [("report.html", 0o600), ("shared.json", 0o664)] {
            let run = ["run", "--state", &at, &format!("--report={report}")];
            program.again().args(run).run().await.assert_code(0);
            assert_eq!(mode(&program.work_dir().join(report)), wanted, "{report} with umask {umask:o}");
            let database = state.join("imgsync.db");
            assert_eq!(mode(&database), 0o600);
            std::fs::set_permissions(&database, std::fs::Permissions::from_mode(0o644)).unwrap();
        }
        program.again().args(["cache", "export", "cache.jsonl", "--state", &at]).run().await.assert_code(0);
        assert_eq!(mode(&program.work_dir().join("cache.jsonl")), 0o600);
        assert_eq!(mode(&state), 0o700, "with umask {umask:o}");
        let found = modes_below(&state);
        assert!(found.len() >= 2, "{found:?}");
        assert!(found.iter().all(|(_, mode)| *mode == 0o600), "with umask {umask:o}: {found:?}");
    }
}

/// A small disk, unmounted on drop.
struct Tmpfs(tempfile::TempDir);

impl Tmpfs {
    fn mount(size: &str) -> Option<Tmpfs> {
        let folder = tempfile::tempdir().unwrap();
        let at = folder.path().to_str()?.to_owned();
        call("mount", &["-t", "tmpfs", "-o", &format!("size={size}"), "tmpfs", &at]).then(|| Tmpfs(folder))
    }
}

impl Tmpfs {
    /// Fills it to the last byte, as another program does, and returns the file with these bytes.
    fn fill(&self) -> std::path::PathBuf {
        let path = self.0.path().join("filler");
        let filler = std::fs::File::create(&path).unwrap();
        let bytes = vec![1; 64 << 10];
        while std::io::Write::write_all(&mut &filler, &bytes).is_ok() {}
        while std::io::Write::write_all(&mut &filler, &[1]).is_ok() {}
        path
    }
}

fn call(program: &str, arguments: &[&str]) -> bool {
    let quiet = std::process::Stdio::null;
    let mut command = std::process::Command::new(program);
    command.args(arguments).stdout(quiet()).stderr(quiet()).status().is_ok_and(|status| status.success())
}

impl Drop for Tmpfs {
    fn drop(&mut self) {
        call("umount", &["-l", &self.0.path().display().to_string()]);
    }
}

#[tokio::test]
async fn a_disk_that_fills_in_the_middle_of_a_run_is_warned_of_once() {
    let Some(disk) = Tmpfs::mount("4m") else {
        return imgsync_tests::skipped("a disk that fills in the middle: a tmpfs cannot be mounted here");
    };
    let (source, target) = tokio::join!(FaultRegistry::start(), FaultRegistry::start());
    for number in 0..120 {
        source.push("a", &format!("{number}"), &images::single(&format!("fills-{number}")));
    }
    let gate = std::sync::Arc::new(tokio::sync::Semaphore::new(0));
    source.on(RequestType::ManifestGet).skip(40).always().act(FaultAction::Gate(gate.clone()));
    let program = Imgsync::new();
    let rule = format!("rules:\n- {{from: {}/a, to: {}/m, naming: keep}}\n", source.host(), target.host());
    program.file("imgsync.yaml", rule);
    let state = disk.0.path().join("state");
    let running = ["run", "--state", &state.display().to_string(), "--concurrency", "30"];
    let mut running = program.again().args(running).spawn();
    source.wait_until(|source| source.count(RequestType::ManifestGet) > 60, Duration::from_secs(60)).await;
    disk.fill();
    gate.add_permits(10_000);
    let output = running.wait().await.assert_code(3);
    let warnings: Vec<&str> = output.stderr.lines().filter(|line| line.starts_with("warning:")).collect();
    // One warning when it happens, and one at the end that counts the rest.
    let (counted, plain): (Vec<&str>, Vec<&str>) =
        warnings.into_iter().partition(|line| line.contains("similar messages suppressed"));
    assert!(plain.len() == 1 && counted.len() <= 1, "{}", output.stderr);
    assert!(plain.iter().chain(&counted).all(|line| line.contains("the disk is full")), "{}", output.stderr);
    assert!(output.stderr.contains("error:") && output.stderr.contains("hint:"), "{}", output.stderr);
    target.assert_tags_complete();
}

#[tokio::test]
async fn results_of_an_archive_are_recorded_once_the_ledger_has_room_again() {
    let Some(disk) = Tmpfs::mount("4m") else {
        return imgsync_tests::skipped("a full disk while an archive is written: a tmpfs cannot be mounted here");
    };
    let source = FaultRegistry::start().await;
    for tag in 0..20 {
        source.push("a", &tag.to_string(), &images::single(&format!("ledger-{tag}")));
    }
    let program = Imgsync::new();
    program.file("imgsync.yaml", format!("rules:\n- {{from: {}/a, to: \"oci-archive:a.tar\"}}\n", source.host()));
    let gate = std::sync::Arc::new(tokio::sync::Semaphore::new(0));
    source.on(RequestType::BlobGet).always().act(FaultAction::Gate(gate.clone()));
    let state = disk.0.path().join("state").display().to_string();
    let mut running = program.again().args(["run", "--json", "--state", &state]).spawn();
    // All images are collected: the archive is being written.
    source.wait_until(|source| source.count(RequestType::BlobGet) > 0, Duration::from_secs(60)).await;
    let filler = disk.fill();
    gate.add_permits(10_000);
    running.wait_for_line(|line| line.contains("the ledger is unavailable"), Duration::from_secs(60)).await;
    assert!(program.work_dir().join("a.tar").exists());
    std::fs::remove_file(filler).unwrap();
    let json = running.wait().await.assert_code(0).json();
    assert_eq!((&json["counts"]["copied"], &json["counts"]["total"]), (&20.into(), &20.into()), "{json}");
}
