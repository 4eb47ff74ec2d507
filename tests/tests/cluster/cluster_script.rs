//! scripts/cluster: it starts what it says, runs a batch, survives losses, and leaves nothing behind. In a network of its
//! own, because its ports are fixed.

use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use imgsync_tests::cluster::number;
use imgsync_tests::namespace;
use imgsync_tests::program::Imgsync;
use imgsync_tests::servers::find_program;
use serde_json::Value;
use tempfile::TempDir;

/// Generous limit for a change of roles.
const ROLE_TIMEOUT: Duration = Duration::from_secs(90);

/// The script, with a folder of its own for state and data. Everything is stopped on drop.
struct ClusterScript {
    folder: TempDir,
}

impl ClusterScript {
    /// Creates it, or returns `None` and says so if a package is missing.
    fn new() -> Option<Self> {
        for (program, package) in
            [("rabbitmqctl", "rabbitmq-server"), ("redis-cli", "redis-tools"), ("docker-registry", "docker-registry")]
        {
            if find_program(program).is_none() {
                imgsync_tests::skipped(&format!("scripts/cluster: {program} is not installed (apt install {package})"));
                return None;
            }
        }
        Some(Self { folder: tempfile::Builder::new().prefix("cluster-script-").tempdir().unwrap() })
    }

    fn try_run(&self, arguments: &[&str]) -> (bool, String) {
        let programs = Imgsync::new().path().parent().unwrap().to_owned();
        // In a file, because processes that go on in the background hold a pipe open.
        let path = self.folder.path().join("said");
        let said = std::fs::File::create(&path).unwrap();
        let status = Command::new(Path::new(env!("CARGO_MANIFEST_DIR")).join("../scripts/cluster"))
            .args(arguments)
            .env("CARGO_TARGET_DIR", self.folder.path())
            .env("IMGSYNC_PROGRAMS", programs)
            .stdin(Stdio::null())
            .stdout(said.try_clone().unwrap())
            .stderr(said)
            .status()
            .unwrap();
        (status.success(), std::fs::read_to_string(path).unwrap())
    }

    #[track_caller]
    fn run(&self, arguments: &[&str]) -> String {
        let (is_ok, said) = self.try_run(arguments);
        assert!(is_ok, "scripts/cluster {arguments:?}: {said}");
        said
    }

    /// Waits until the status says something, and returns it.
    fn wait_for_status(&self, what: &str, wanted: impl Fn(&str) -> bool) -> String {
        let started = Instant::now();
        loop {
            let status = self.run(&["status"]);
            if wanted(&status) {
                return status;
            }
            assert!(started.elapsed() < ROLE_TIMEOUT, "{what}: not within {ROLE_TIMEOUT:?}:\n{status}");
            std::thread::sleep(Duration::from_millis(200));
        }
    }

    /// Runs the batch of an example, and returns its counts.
    async fn run_batch(&self, config: &str) -> Value {
        let config = Path::new(env!("CARGO_MANIFEST_DIR")).join("../examples").join(config);
        let run = Imgsync::new().args(["run", "--json", "-c"]).arg(config).run().await;
        run.assert_code(0).json()["counts"].clone()
    }
}

impl Drop for ClusterScript {
    fn drop(&mut self) {
        self.try_run(&["down"]);
    }
}

/// Returns the names of all processes that the status shows with these words.
fn those(status: &str, words: &str) -> Vec<String> {
    let lines = status.lines().filter(|line| line.ends_with(words));
    lines.filter_map(|line| line.split_whitespace().next()).map(str::to_owned).collect()
}

/// Lists what listens in this network.
fn listeners() -> String {
    let output = Command::new("ss").arg("-Hltn").output().unwrap();
    String::from_utf8(output.stdout).unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_ordinary_cluster_of_the_script_copies_the_examples_and_leaves_nothing_behind() {
    if !namespace::enter(
        "cluster_script::the_ordinary_cluster_of_the_script_copies_the_examples_and_leaves_nothing_behind",
        &[],
    ) {
        return;
    }
    let Some(script) = ClusterScript::new() else { return };
    assert_eq!(script.run(&["status"]), "the cluster is down\n");
    script.run(&["up"]);
    let status = script.run(&["status"]);
    assert_eq!(those(&status, "is running"), ["rabbitmq", "redis", "source", "target", "worker1", "worker2"]);
    let counts = script.run_batch("cluster.yaml").await;
    assert!(number(&counts, "/total") > 0 && counts["copied"] == counts["total"], "{counts}");
    let (is_ok, said) = script.try_run(&["freeze", "redis"]);
    assert!(!is_ok && said.contains("up --ha"), "{said}");
    script.run(&["down"]);
    assert_eq!(script.run(&["status"]), "the cluster is down\n");
    assert_eq!(listeners(), "");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_highly_available_cluster_of_the_script_survives_losses_and_leaves_nothing_behind() {
    if !namespace::enter(
        "cluster_script::the_highly_available_cluster_of_the_script_survives_losses_and_leaves_nothing_behind",
        &[],
    ) {
        return;
    }
    let Some(script) = ClusterScript::new() else { return };
    script.run(&["up", "--ha"]);
    let (is_ok, said) = script.try_run(&["up", "--ha"]);
    assert!(!is_ok && said.contains("scripts/cluster down"), "{said}");
    let is_whole = |status: &str| {
        those(status, "serves clients").len() == 3
            && those(status, "master").len() == 1
            && those(status, "replica").len() == 2
            && those(status, "leads").len() == 1
            && those(status, "stands by").len() == 1
    };
    let status = script.wait_for_status("all have their roles", is_whole);
    for name in ["sentinel1", "sentinel2", "sentinel3", "worker1", "worker2", "worker3"] {
        assert!(status.contains(&format!("{name} is running\n")), "{status}");
    }
    let counts = script.run_batch("ha.yaml").await;
    assert!(number(&counts, "/total") > 0 && counts["copied"] == counts["total"], "{counts}");
    let queues = script.run(&["broker", "2", "rabbitmqctl", "--quiet", "list_queues", "name", "members", "policy"]);
    let queue = queues.lines().find(|line| line.starts_with("w.")).unwrap();
    assert!((1..=3).all(|node| queue.contains(&format!("rabbitmq{node}@"))) && queue.ends_with("imgsync"), "{queues}");

    let master = those(&status, "master").remove(0);
    let leader = those(&status, "leads").remove(0);
    script.run(&["kill", &master]);
    script.run(&["kill", &leader]);
    script.run(&["stop", "rabbitmq3"]);
    script.run(&["freeze", "sentinel3"]);
    script.run(&["stop", "worker3"]);
    let lost = script.wait_for_status("others take over", |status| {
        those(status, "master").len() == 1 && those(status, "leads").len() == 1
    });
    assert!(lost.contains("sentinel3 is frozen") && lost.contains("rabbitmq3 has exited; see "), "{lost}");
    let counts = script.run_batch("ha.yaml").await;
    assert_eq!(counts["unchanged"], counts["total"]);
    let (is_ok, said) = script.try_run(&["kill", &master]);
    assert!(!is_ok && said.contains("is not running"), "{said}");
    script.run(&["thaw", "sentinel3"]);
    for name in [&*master, &*leader, "rabbitmq3", "worker3"] {
        script.run(&["start", name]);
    }
    let (is_ok, said) = script.try_run(&["start", "worker3"]);
    assert!(!is_ok && said.contains("worker3 is running"), "{said}");
    script.wait_for_status("all are back", is_whole);

    script.run(&["cut", "3"]);
    let status = script.wait_for_status("machine 3 is away", |status| those(status, "serves clients").len() == 2);
    assert!(status.contains("machine 3 is cut off"), "{status}");
    let counts = script.run_batch("ha.yaml").await;
    assert_eq!(counts["unchanged"], counts["total"]);
    script.run(&["heal", "3"]);
    script.wait_for_status("machine 3 is back", is_whole);

    // The process id of a worker that has exited belongs to another process by now.
    script.run(&["stop", "worker3"]);
    let mut other = Command::new("sleep").arg("600").spawn().unwrap();
    let file = script.folder.path().join("cluster/worker3.pid");
    let since = std::fs::read_to_string(&file).unwrap();
    let since = since.split_whitespace().nth(1).unwrap().to_owned();
    std::fs::write(&file, format!("{} {since}\n", other.id())).unwrap();
    let (is_ok, said) = script.try_run(&["kill", "worker3"]);
    assert!(!is_ok && said.contains("is not running"), "{said}");
    script.run(&["freeze", "rabbitmq2"]);
    script.run(&["cut", "1"]);
    script.run(&["down"]);
    assert!(other.try_wait().unwrap().is_none(), "it is not the script's");
    other.kill().unwrap();
    other.wait().unwrap();
    assert_eq!(script.run(&["status"]), "the cluster is down\n");
    assert_eq!(listeners(), "");
    let rules = Command::new("iptables").args(["-w", "-S", "INPUT"]).output().unwrap();
    assert_eq!(String::from_utf8(rules.stdout).unwrap().lines().count(), 1, "only the default is left");
}
