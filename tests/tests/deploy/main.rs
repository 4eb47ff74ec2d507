//! Deployment files: units, manifests, alerts, a dashboard. Real tools accept them, and they match the programs.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a failure of a helper is a failure of the test")]

mod ci_workflows;
mod completions;
mod kubernetes;
mod kubernetes_ha;
mod logs;
mod metrics;
mod systemd_units;

use std::path::PathBuf;
use std::process::{Command, Output};

use imgsync_tests::program::Imgsync;

/// Returns the path of a file or folder of `deploy`.
fn deploy(path: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).parent().unwrap().join("deploy").join(path)
}

fn read(path: &str) -> String {
    std::fs::read_to_string(deploy(path)).unwrap_or_else(|error| panic!("{path}: {error}"))
}

/// Runs a tool, or reports that it is not installed.
fn tool(command: &mut Command, package: &str) -> Option<Output> {
    match command.output() {
        Ok(output) => Some(output),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            imgsync_tests::skipped(&format!(
                "{} is not installed ({package})",
                command.get_program().to_string_lossy()
            ));
            None
        }
        Err(error) => panic!("{command:?}: {error}"),
    }
}

#[track_caller]
fn assert_success(output: &Output) {
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    assert!(output.status.success(), "{}\n{}", text(&output.stdout), text(&output.stderr));
}

/// Asserts that a program accepts a command line, without running it.
async fn assert_accepted(program: &str, arguments: &[String]) {
    let asked = Imgsync::named(program).args(arguments).arg("--help").run().await;
    assert_eq!(asked.code, Some(0), "{program} {arguments:?}: {}", asked.stderr);
    assert!(asked.stdout.contains("Usage: "), "{}", asked.stdout);
}
