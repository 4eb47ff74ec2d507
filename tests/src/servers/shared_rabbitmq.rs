//! One broker for all tests of a run, with a virtual host for each: a node takes ten seconds of processor time to start.
//!
//! The first test that asks for it starts a supervisor in a session of its own. That runs the node, watches the test
//! runner, and stops and removes everything when the runner has ended, however it ends. The servers end with the
//! supervisor, too.

use std::fs::{self, File};
use std::io::{Read as _, Seek as _, Write as _};
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};

use super::rabbitmq::{Node, START_ATTEMPTS, START_TIMEOUT, epmd_program};

/// Virtual hosts created at a time. One takes a tenth of a second, a call of `rabbitmqctl` a whole one.
const BLOCK: u16 = 20;

/// Arguments: process to watch, folder, `epmd`, its port, `rabbitmq-server`.
const SUPERVISOR: &str = r#"
trap '' INT HUP
setpriv --pdeathsig TERM "$3" -port "$4" & epmd=$!
setpriv --pdeathsig TERM "$5" & server=$!
trap 'kill $!' TERM
tail --pid="$1" -s 0.2 -f /dev/null & wait $!
if [ -s "$2/pid" ]; then kill -9 "$(cat "$2/pid")"; fi
kill "$server"; wait "$server"
kill "$epmd"; wait "$epmd"
rm -rf "$2"
kill -0 "$1" 2>/dev/null || rm -f "$2.lock"
"#;

/// Returns the node of this run and a virtual host of it that no other test uses.
///
/// # Panics
/// If the node does not come up.
pub(super) fn new_vhost() -> (Node, String) {
    let run = Run::of_this_test();
    let mut file = run.lock();
    let mut text = String::new();
    file.read_to_string(&mut text).expect("the file can be read");
    let numbers: Vec<u16> = text.split_whitespace().map_while(|number| number.parse().ok()).collect();
    let (node, mut created, taken) = match numbers[..] {
        [port, epmd, dist, created, taken] => (Node::at(run.folder, [port, epmd, dist]), created, taken),
        _ => {
            let node = run.start();
            // At once: the next test must not start another one if this one ends here.
            record(&mut file, &node, 0, 0);
            (node, 0, 0)
        }
    };
    assert!(node.answers(), "the broker that the tests share has ended; its log is:\n{}", node.log());
    if taken == created {
        create_vhosts(&node, created);
        created += BLOCK;
    }
    record(&mut file, &node, created, taken + 1);
    (node, format!("test-{taken}"))
}

/// Records the node, and how many virtual hosts were created and taken, in a line of the same length each time.
fn record(file: &mut File, node: &Node, created: u16, taken: u16) {
    let [port, epmd, dist] = node.ports();
    let line = format!("{port:5} {epmd:5} {dist:5} {created:5} {taken:5}\n");
    file.rewind().and_then(|()| file.write_all(line.as_bytes())).expect("the file can be written to");
}

/// Creates the next block of virtual hosts.
fn create_vhosts(node: &Node, from: u16) {
    let all = r#"<<".*">>"#;
    node.ctl(&[
        "eval",
        &format!(
            r#"[begin
                Vhost = iolist_to_binary(["test-", integer_to_list(I)]),
                rabbit_vhost:add(Vhost, <<"tests">>),
                rabbit_auth_backend_internal:set_permissions(<<"guest">>, Vhost, {all}, {all}, {all}, <<"tests">>)
            end || I <- lists:seq({from}, {})], ok."#,
            from + BLOCK - 1
        ),
    ]);
}

/// The tests that share a node: those of one runner.
struct Run {
    /// Process whose end ends the node.
    runner: u32,
    folder: PathBuf,
}

impl Run {
    fn of_this_test() -> Self {
        // Under nextest, each test is a process of its own; its parent is the runner.
        let (runner, name) = match std::env::var("NEXTEST_RUN_ID") {
            Ok(run) => (std::os::unix::process::parent_id(), run),
            Err(_) => (std::process::id(), std::process::id().to_string()),
        };
        Self { runner, folder: std::env::temp_dir().join(format!("imgsync-tests-{name}")) }
    }

    /// Waits until no other test starts the node or creates virtual hosts.
    fn lock(&self) -> File {
        let path = self.folder.with_extension("lock");
        let file = File::options().create(true).read(true).write(true).truncate(false).open(path).expect("a lock file");
        file.lock().expect("the file can be locked");
        file
    }

    /// Starts the node. It outlives this test.
    fn start(&self) -> Node {
        let mut log = String::new();
        for _ in 0..=START_ATTEMPTS {
            let node = Node::new(&self.folder);
            match self.supervise(&node) {
                Ok(()) => return node,
                // Another process took one of the ports meanwhile.
                Err(why) => log = why,
            }
        }
        panic!("rabbitmq-server did not come up; its log is:\n{log}");
    }

    #[expect(clippy::zombie_processes, reason = "the supervisor outlives this test, and is reaped by init")]
    fn supervise(&self, node: &Node) -> Result<(), String> {
        fs::create_dir_all(&self.folder).expect("a folder can be made");
        node.write_config("");
        let log = File::options().create(true).append(true).open(node.log_path()).expect("a log");
        let server = node.command("rabbitmq-server");
        let mut supervisor = Command::new("setsid");
        supervisor
            .args(["sh", "-c", SUPERVISOR, "imgsync-tests-broker", &self.runner.to_string()])
            .arg(&self.folder)
            .arg(epmd_program())
            .arg(node.ports()[1].to_string())
            .arg(server.get_program())
            .envs(server.get_envs().filter_map(|(name, value)| Some((name, value?))))
            .stdin(Stdio::null())
            .stdout(log.try_clone().expect("a handle"))
            .stderr(log);
        let mut supervisor = supervisor.spawn().expect("setsid is installed (Debian: util-linux)");
        let limit = Instant::now() + START_TIMEOUT;
        while !node.answers() {
            let has_ended = supervisor.try_wait().is_ok_and(|ended| ended.is_some());
            if has_ended || Instant::now() > limit || node.log().contains("BOOT FAILED") {
                let log = node.log();
                let _ = kill_process(Pid::from_child(&supervisor), Signal::TERM);
                let _ = supervisor.wait();
                return Err(log);
            }
            std::thread::sleep(Duration::from_millis(50));
        }
        Ok(())
    }
}
