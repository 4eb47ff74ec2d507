//! systemd units: `systemd-analyze` accepts them, they are sandboxed tightly, and their commands exist in the programs.

use std::fs;
use std::process::Command;

use imgsync_tests::program::Imgsync;
use tempfile::TempDir;

use super::{assert_accepted, assert_success, deploy, read, tool};

const UNITS: [&str; 4] =
    ["imgsync-serve.service", "imgsync-worker.service", "imgsync-run.service", "imgsync-run.timer"];
/// Exposure scale: 0 is fully sandboxed, 10 not at all; systemd rates up to 3 as OK.
const MAX_EXPOSURE: &str = "15";

/// Installs the units with the built programs, since the verifier looks for the executables.
async fn installed() -> TempDir {
    let folder = tempfile::tempdir().unwrap();
    for unit in UNITS {
        let mut text = read(&format!("systemd/{unit}"));
        for program in ["imgsync-worker", "imgsync"] {
            let built = Imgsync::named(program).path().display().to_string();
            text = text.replace(&format!("/usr/local/bin/{program} "), &format!("{built} "));
        }
        assert!(!text.contains("/usr/local/bin"), "{unit}: another program?");
        fs::write(folder.path().join(unit), text).unwrap();
    }
    Imgsync::new().args(["man"]).arg(folder.path().join("man/man1")).run().await.assert_code(0);
    folder
}

#[tokio::test]
async fn the_units_are_taken_by_systemd_and_their_manual_pages_are_there() {
    let folder = installed().await;
    let paths = UNITS.map(|unit| folder.path().join(unit));
    let mut verify = Command::new("systemd-analyze");
    verify.args(["verify", "--man=no"]).args(&paths);
    let Some(verified) = tool(&mut verify, "systemd") else { return };
    assert_success(&verified);
    for unit in UNITS {
        let text = read(&format!("systemd/{unit}"));
        for page in text.lines().filter_map(|line| line.strip_prefix("Documentation=man:")) {
            let file = page.replace("(1)", ".1");
            assert!(folder.path().join("man/man1").join(&file).exists(), "{unit}: {file}");
        }
    }
}

#[tokio::test]
async fn the_units_are_shut_off_from_what_they_do_not_need() {
    let folder = installed().await;
    for unit in UNITS.iter().filter(|unit| unit.ends_with(".service")) {
        let mut security = Command::new("systemd-analyze");
        security.args(["security", "--offline=true", "--threshold", MAX_EXPOSURE]).arg(folder.path().join(unit));
        let Some(looked) = tool(&mut security, "systemd") else { return };
        assert_success(&looked);
    }
}

#[tokio::test]
async fn the_commands_of_the_units_are_commands_of_the_programs() {
    let mut seen = 0;
    for unit in UNITS {
        let text = read(&format!("systemd/{unit}"));
        for command in text.lines().filter_map(|line| line.strip_prefix("ExecStart=/usr/local/bin/")) {
            let mut words = command.split(' ').map(str::to_owned);
            let program = words.next().unwrap();
            assert_accepted(&program, &words.collect::<Vec<_>>()).await;
            seen += 1;
        }
    }
    assert_eq!(seen, 3);
    assert!(deploy("systemd/sysusers.conf").exists());
}

#[test]
fn the_services_may_open_as_many_files_as_connections_need() {
    for unit in UNITS.iter().filter(|unit| unit.ends_with(".service")) {
        let text = read(&format!("systemd/{unit}"));
        assert!(text.lines().any(|line| line == "LimitNOFILE=65536"), "{unit}");
    }
}
