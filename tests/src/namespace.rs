//! A network namespace of the test's own, with public addresses and a scripted resolver.
//!
//! The test runs a second time, alone in a process in new user, mount and network namespaces, where it may take any
//! address.

use std::process::Command;
use std::{env, fs};

use crate::servers::find_program;

/// Set in the environment of a test that runs in its own network.
const INSIDE: &str = "IMGSYNC_TESTS_OWN_NETWORK";

/// Returns true inside a network namespace that has these addresses and a resolver at 127.0.0.1:53. Outside it, runs
/// the test named `module::test` of its suite again in one, and returns false.
///
/// # Panics
/// If the test fails there.
#[must_use]
pub fn enter(test: &str, addresses: &[&str]) -> bool {
    const NEW: [&str; 3] = ["-Urn", "-m", "--kill-child"];
    if env::var_os(INSIDE).is_some() {
        prepare(addresses);
        return true;
    }
    for (program, package) in [("unshare", "util-linux"), ("ip", "iproute2")] {
        if find_program(program).is_none() {
            crate::skipped(&format!("{test}: {program} is not installed (apt install {package})"));
            return false;
        }
    }
    let can = Command::new("unshare").args(NEW).args(["ip", "link", "set", "lo", "up"]).output();
    if !can.is_ok_and(|output| output.status.success()) {
        crate::skipped(&format!("{test}: namespaces cannot be created here"));
        return false;
    }
    let me = env::current_exe().expect("the test's own program has a path");
    let output = Command::new("unshare")
        .args(NEW)
        .arg(me)
        .args(["--exact", test, "--nocapture"])
        .env(INSIDE, "1")
        .output()
        .expect("the test starts once more");
    let said = [&output.stdout, &output.stderr].map(|bytes| String::from_utf8_lossy(bytes).into_owned()).concat();
    assert!(output.status.success(), "in its own network:\n{said}");
    assert!(said.contains("1 passed"), "there is no test of this name: {test}\n{said}");
    false
}

fn prepare(addresses: &[&str]) {
    let run = |program: &str, arguments: &[&str]| {
        let output = Command::new(program).args(arguments).output().expect("the program is there");
        assert!(output.status.success(), "{program} {arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
    };
    run("ip", &["link", "set", "lo", "up"]);
    for address in addresses {
        run("ip", &["addr", "add", &format!("{address}/32"), "dev", "lo"]);
    }
    let file = env::temp_dir().join(format!("imgsync-resolv-{}.conf", std::process::id()));
    fs::write(&file, "nameserver 127.0.0.1\noptions ndots:1 timeout:2\n").expect("a file can be written");
    run("mount", &["--bind", file.to_str().expect("a plain path"), "/etc/resolv.conf"]);
}
