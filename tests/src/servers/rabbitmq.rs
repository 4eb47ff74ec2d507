//! Debian's `rabbitmq-server`: a virtual host of the node that the tests of a run share, or a node of a test's own, with
//! its own `epmd`.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process, test_kill_process};
use tempfile::TempDir;

use super::process::{Process, find_program, free_port};
use super::shared_rabbitmq;

/// Time limit for the start of a node on a busy machine.
pub(super) const START_TIMEOUT: Duration = Duration::from_secs(90);
/// Number of starts with other ports.
pub(super) const START_ATTEMPTS: usize = 2;

/// The broker, as a test sees it.
#[derive(Debug)]
pub struct RabbitMq {
    node: Node,
    vhost: String,
    /// `None` if other tests use the node too.
    own: Option<OwnNode>,
}

/// What a node of one test leaves on the machine. Removed on drop.
#[derive(Debug)]
struct OwnNode {
    process: Option<Process>,
    _epmd: Arc<Process>,
    _folder: TempDir,
    config: String,
}

impl RabbitMq {
    /// Creates a virtual host on the node that the tests of a run share, and starts that node before the first test
    /// that needs it. For tests that neither stop or slow the node, nor change what all virtual hosts share.
    ///
    /// # Panics
    /// If `rabbitmq-server` is not installed or does not come up.
    pub fn shared() -> Self {
        let (node, vhost) = shared_rabbitmq::new_vhost();
        Self { node, vhost, own: None }
    }

    /// Starts a node for this test alone and waits until it responds.
    pub fn start() -> Self {
        Self::start_with("")
    }

    /// Starts a node for this test alone, with extra lines of `rabbitmq.conf`.
    ///
    /// # Panics
    /// If `rabbitmq-server` is not installed or does not come up.
    pub fn start_with(config: &str) -> Self {
        let epmd_port = free_port();
        Self::start_node(epmd_port, &start_epmd(epmd_port), config)
    }

    /// Starts a cluster of nodes for this test alone. Each pauses while it sees fewer than half of the others.
    ///
    /// # Panics
    /// If `rabbitmq-server` is not installed or the cluster does not come up.
    pub fn start_cluster(number: usize) -> Vec<Self> {
        Self::start_cluster_with(number, "pause_minority")
    }

    /// Starts a cluster of nodes for this test alone, with this `cluster_partition_handling`.
    ///
    /// # Panics
    /// If `rabbitmq-server` is not installed or the cluster does not come up.
    pub fn start_cluster_with(number: usize, partition_handling: &str) -> Vec<Self> {
        let epmd_port = free_port();
        let epmd = start_epmd(epmd_port);
        // As in deploy/rabbitmq-cluster.conf.
        let config = format!("cluster_partition_handling = {partition_handling}\nnet_ticktime = 15\n");
        let first = Self::start_node(epmd_port, &epmd, &config);
        // The others join it when they start.
        let config = format!(
            "{config}cluster_formation.peer_discovery_backend = classic_config\n\
             cluster_formation.classic_config.nodes.1 = {}\n",
            first.node.name()
        );
        let others: Vec<Self> = std::thread::scope(|scope| {
            let start = || scope.spawn(|| Self::start_node(epmd_port, &epmd, &config));
            let starting: Vec<_> = (1..number).map(|_| start()).collect();
            starting.into_iter().map(|node| node.join().expect("the node comes up")).collect()
        });
        let nodes: Vec<Self> = std::iter::once(first).chain(others).collect();
        let status = nodes[0].ctl(&["cluster_status", "--formatter", "json"]);
        let status: serde_json::Value = serde_json::from_str(&status).expect("the status is JSON");
        assert_eq!(status["running_nodes"].as_array().map(Vec::len), Some(number), "{status}");
        nodes
    }

    /// Starts a node for this test alone, found by others through the `epmd` at this port.
    fn start_node(epmd_port: u16, epmd: &Arc<Process>, config: &str) -> Self {
        let folder = tempfile::Builder::new().prefix("rabbitmq-").tempdir().expect("a folder can be made");
        let node = Node::at(folder.path().to_owned(), [free_port(), epmd_port, free_port()]);
        let own = OwnNode { process: None, _epmd: epmd.clone(), _folder: folder, config: config.to_owned() };
        let mut broker = Self { node, vhost: "/".to_owned(), own: Some(own) };
        for _ in 0..START_ATTEMPTS {
            match broker.launch() {
                Ok(()) => return broker,
                // Another process took one of the ports meanwhile.
                Err(_) => (broker.node.port, broker.node.dist_port) = (free_port(), free_port()),
            }
        }
        broker.launch().unwrap_or_else(|log| panic!("rabbitmq-server did not come up; its log is:\n{log}"));
        broker
    }

    /// Starts the node. Returns its log if it ended or did not respond in time.
    fn launch(&mut self) -> Result<(), String> {
        let own = self.own.as_mut().expect("only a node of this test is started");
        self.node.write_config(&own.config);
        let log = File::options().create(true).append(true).open(self.node.log_path()).expect("a log");
        let mut command = self.node.command("rabbitmq-server");
        command.stdin(Stdio::null()).stdout(log.try_clone().expect("a handle")).stderr(log);
        let mut process = Process::spawn(&mut command, Duration::ZERO).expect("rabbitmq-server can be started");
        let limit = Instant::now() + START_TIMEOUT;
        while !self.node.answers() {
            if Instant::now() > limit || process.has_ended() {
                own.process = Some(process);
                self.kill();
                return Err(self.log());
            }
            std::thread::sleep(Duration::from_millis(50));
        }
        own.process = Some(process);
        Ok(())
    }

    /// Returns the node, for what concerns all of its virtual hosts.
    ///
    /// # Panics
    /// If other tests use it too.
    fn own_node(&self) -> &Node {
        assert!(self.own.is_some(), "other tests use this broker too: start one with RabbitMq::start()");
        &self.node
    }

    /// Returns the URL of the virtual host, such as `amqp://guest:guest@127.0.0.1:PORT/%2f`.
    pub fn url(&self) -> String {
        self.url_through(&format!("127.0.0.1:{}", self.node.port))
    }

    /// Returns the URL of the virtual host through a proxy at `HOST:PORT`.
    pub fn url_through(&self, proxy: &str) -> String {
        let vhost = if self.vhost == "/" { "%2f" } else { &self.vhost };
        format!("amqp://guest:guest@{proxy}/{vhost}")
    }

    /// Returns its port.
    pub fn port(&self) -> u16 {
        self.node.port
    }

    /// Returns its log.
    pub fn log(&self) -> String {
        self.own_node().log()
    }

    /// Kills it.
    pub fn kill(&mut self) {
        self.own_node().kill();
        self.own.iter_mut().for_each(|own| own.process = None);
    }

    /// Returns the process id of the node.
    pub fn pid(&self) -> Option<u32> {
        self.own_node().process().map(|node| node.as_raw_nonzero().get().unsigned_abs())
    }

    /// Returns the memory of the node in bytes, after garbage collection.
    ///
    /// # Panics
    /// If the node does not report it.
    pub fn memory_bytes(&self) -> u64 {
        let said = self.ctl(&["eval", "[garbage_collect(P) || P <- processes()], erlang:memory(total)."]);
        said.trim().parse().unwrap_or_else(|_| panic!("the broker says {said}"))
    }

    /// Counts the messages in each queue, delivered or not.
    pub fn message_counts(&self) -> BTreeMap<String, u64> {
        let said = self.list_queues(&["name", "messages"]);
        said.lines()
            .filter_map(|line| line.split_once('\t'))
            .map(|(name, count)| (name.to_owned(), count.trim().parse().unwrap_or_default()))
            .collect()
    }

    /// Lists the queues, with these columns separated by tabs.
    pub fn list_queues(&self, columns: &[&str]) -> String {
        self.node.ctl(&[&["-p", &self.vhost, "list_queues", "--no-table-headers"], columns].concat())
    }

    /// Returns the port of the node that leads a quorum queue.
    ///
    /// # Panics
    /// If the queue does not exist, or has no leader.
    pub fn leader_port(&self, queue: &str) -> u16 {
        let said = self.list_queues(&["name", "leader"]);
        let leader = said.lines().find_map(|line| line.strip_prefix(queue)?.strip_prefix('\t'));
        let port = leader.and_then(|node| node.trim().strip_prefix("imgsync-")?.split_once('@')?.0.parse().ok());
        port.unwrap_or_else(|| panic!("the broker says {said}"))
    }

    /// Deletes a queue.
    pub fn delete_queue(&self, queue: &str) {
        self.node.ctl(&["-p", &self.vhost, "delete_queue", queue]);
    }

    /// Counts the current messages in a quorum queue, delivered or not. [`RabbitMq::message_counts`] lags by some
    /// seconds.
    ///
    /// # Panics
    /// If the queue does not report it.
    pub fn message_count(&self, queue: &str) -> u64 {
        let total = "fun rabbit_fifo:query_messages_total/1";
        let name = self.process_name(queue);
        let said =
            self.node.ctl(&["eval", &format!("{{ok, {{_, N}}, _}} = ra:local_query({{{name}, node()}}, {total}), N.")]);
        said.trim().parse().unwrap_or_else(|_| panic!("the broker says {said}"))
    }

    /// Returns the Erlang atom under which a quorum queue is registered.
    fn process_name(&self, queue: &str) -> String {
        let vhost = if self.vhost == "/" { "%2F" } else { &self.vhost };
        format!("'{vhost}_{queue}'")
    }

    /// Restarts it with the same port and data.
    ///
    /// # Panics
    /// If it does not come up.
    pub fn restart(&mut self) {
        self.kill();
        self.launch().unwrap_or_else(|log| panic!("rabbitmq-server did not come up again; its log is:\n{log}"));
    }

    /// Flushes its metadata to disk, which it does by itself after some seconds. A node killed before that has lost the
    /// leaders and messages of its queues after a restart.
    pub fn sync_metadata(&self) {
        self.ctl(&["eval", "[dets:sync(Table) || Table <- dets:all()]."]);
    }

    /// Suspends or resumes a queue.
    pub fn suspend(&self, queue: &str, suspend: bool) {
        let what = if suspend { "suspend" } else { "resume" };
        self.node.ctl(&["eval", &format!("sys:{what}({}).", self.process_name(queue))]);
    }

    /// Stops or restarts the only member of a quorum queue, as if its leader were gone.
    pub fn set_leader_stopped(&self, queue: &str, away: bool) {
        let what = if away { "stop_server" } else { "restart_server" };
        self.node.ctl(&["eval", &format!("ra:{what}(quorum_queues, {{{}, node()}}).", self.process_name(queue))]);
    }

    /// Cuts the node off from these other nodes of its cluster: they no longer accept each other's connections. Clients
    /// still reach it.
    pub fn cut_off_from(&self, others: &[&RabbitMq]) {
        let names: Vec<String> = others.iter().map(|other| format!("'{}'", other.node.name())).collect();
        let cut = format!(
            "[begin erlang:set_cookie(Node, cut_off), erlang:disconnect_node(Node) end || Node <- [{}]].",
            names.join(", ")
        );
        self.ctl(&["eval", &cut]);
    }

    /// Stops its process with SIGSTOP.
    pub fn freeze(&self) {
        self.own_node().signal(Signal::STOP);
    }

    /// Continues its process with SIGCONT.
    pub fn thaw(&self) {
        self.own_node().signal(Signal::CONT);
    }

    /// Runs another program of RabbitMQ, such as `rabbitmq-queues`, and returns its output.
    ///
    /// # Panics
    /// If it fails, or if other tests use the node too.
    pub fn tool(&self, program: &str, arguments: &[&str]) -> String {
        self.own_node().tool(program, arguments)
    }

    /// Returns its name in a cluster.
    pub fn node_name(&self) -> String {
        self.node.name()
    }

    /// Runs `rabbitmqctl` and returns its output; `None` if it fails.
    pub fn try_ctl(&self, arguments: &[&str]) -> Option<String> {
        let output = self.own_node().command("rabbitmqctl").arg("--quiet").args(arguments).output().ok()?;
        output.status.success().then(|| String::from_utf8_lossy(&output.stdout).into_owned())
    }

    /// Runs `rabbitmqctl` and returns its output.
    ///
    /// # Panics
    /// If it fails, or if other tests use the node too.
    pub fn ctl(&self, arguments: &[&str]) -> String {
        self.own_node().ctl(arguments)
    }
}

impl Drop for RabbitMq {
    fn drop(&mut self) {
        if self.own.is_some() {
            self.kill();
        }
    }
}

/// Ports and folder of a node.
#[derive(Debug)]
pub(super) struct Node {
    folder: PathBuf,
    epmd_port: u16,
    port: u16,
    dist_port: u16,
}

impl Node {
    /// Chooses free ports.
    pub(super) fn new(folder: &Path) -> Self {
        Self::at(folder.to_owned(), [free_port(), free_port(), free_port()])
    }

    /// Returns a node that was made with these [`Node::ports`].
    pub(super) fn at(folder: PathBuf, [port, epmd_port, dist_port]: [u16; 3]) -> Self {
        Self { folder, epmd_port, port, dist_port }
    }

    /// Returns its name in a cluster.
    fn name(&self) -> String {
        format!("imgsync-{}@localhost", self.port)
    }

    /// Returns its port for clients, that of its `epmd`, and that for other nodes.
    pub(super) fn ports(&self) -> [u16; 3] {
        [self.port, self.epmd_port, self.dist_port]
    }

    /// Writes what it reads at its start, with extra lines of `rabbitmq.conf`.
    pub(super) fn write_config(&self, extra: &str) {
        let at = &self.folder;
        let cookie = at.join(".erlang.cookie");
        if !cookie.exists() {
            fs::write(&cookie, "ATESTSCOOKIE").expect("the folder can be written to");
            let only_ours = std::os::unix::fs::PermissionsExt::from_mode(0o400);
            fs::set_permissions(&cookie, only_ours).expect("the folder is ours");
        }
        let config = format!("listeners.tcp.1 = 127.0.0.1:{}\nlog.console.level = info\n{extra}", self.port);
        fs::write(at.join("rabbitmq.conf"), config).expect("the folder can be written to");
        fs::write(at.join("enabled_plugins"), "[].\n").expect("the folder can be written to");
    }

    /// Prepares a RabbitMQ program for this node. Avoids the wrappers on PATH, which change user and folder.
    pub(super) fn command(&self, program: &str) -> Command {
        let at = &self.folder;
        let mut command = Command::new(programs().join(program));
        let folder = |name: &str| at.join(name).display().to_string();
        command
            .env("HOME", at)
            .env("ERL_EPMD_PORT", self.epmd_port.to_string())
            .env("RABBITMQ_NODENAME", self.name())
            .env("RABBITMQ_NODE_PORT", self.port.to_string())
            .env("RABBITMQ_NODE_IP_ADDRESS", "127.0.0.1")
            .env("RABBITMQ_DIST_PORT", self.dist_port.to_string())
            .env("RABBITMQ_MNESIA_BASE", folder("data"))
            .env("RABBITMQ_LOG_BASE", folder("logs"))
            .env("RABBITMQ_LOGS", "-")
            .env("RABBITMQ_CONFIG_FILE", folder("rabbitmq.conf"))
            .env("RABBITMQ_ENABLED_PLUGINS_FILE", folder("enabled_plugins"))
            .env("RABBITMQ_CONF_ENV_FILE", folder("none"))
            .env("RABBITMQ_PID_FILE", folder("pid"))
            // A small node without busy waiting, for machines with few processors.
            .env("RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS", "+S 2:2 +sbwt none +sbwtdcpu none +sbwtdio none");
        command
    }

    /// Reports whether it speaks AMQP, starting with a method frame (1). Another server may have its port by now.
    pub(super) fn answers(&self) -> bool {
        let Ok(mut stream) = TcpStream::connect(("127.0.0.1", self.port)) else { return false };
        let _ = stream.set_read_timeout(Some(Duration::from_secs(2)));
        let mut answer = [0; 1];
        stream.write_all(b"AMQP\x00\x00\x09\x01").and_then(|()| stream.read_exact(&mut answer)).is_ok() && answer == [1]
    }

    pub(super) fn log_path(&self) -> PathBuf {
        self.folder.join("log")
    }

    pub(super) fn log(&self) -> String {
        fs::read_to_string(self.log_path()).unwrap_or_default()
    }

    /// Runs `rabbitmqctl` and returns its output.
    ///
    /// # Panics
    /// If it fails.
    pub(super) fn ctl(&self, arguments: &[&str]) -> String {
        self.tool("rabbitmqctl", arguments)
    }

    fn tool(&self, program: &str, arguments: &[&str]) -> String {
        let limit = Instant::now() + START_TIMEOUT;
        loop {
            let mut command = self.command(program);
            let output = command.arg("--quiet").args(arguments).output().expect("RabbitMQ's programs run");
            let text =
                format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
            // A node accepts clients at its first listener, and starts others before it counts as running.
            let is_starting = text.contains("requires the 'rabbit' app to be running") && Instant::now() < limit;
            assert!(output.status.success() || is_starting, "{program} {arguments:?}: {text}");
            if output.status.success() {
                return text;
            }
        }
    }

    /// Returns the process of the node.
    fn process(&self) -> Option<Pid> {
        let pid = fs::read_to_string(self.folder.join("pid")).ok()?.trim().parse().ok()?;
        // The pid in a stale file may belong to another process.
        let command = fs::read_to_string(format!("/proc/{pid}/cmdline")).ok()?;
        command.contains(&*self.folder.to_string_lossy()).then(|| Pid::from_raw(pid)).flatten()
    }

    fn signal(&self, signal: Signal) {
        if let Some(node) = self.process() {
            let _ = kill_process(node, signal);
        }
    }

    /// Kills the process of the node and waits for its exit.
    fn kill(&self) {
        // The start script waits for the node, and would leave it behind.
        if let Some(node) = self.process() {
            let _ = kill_process(node, Signal::KILL);
            let limit = Instant::now() + Duration::from_secs(10);
            while test_kill_process(node).is_ok() && Instant::now() < limit {
                std::thread::sleep(Duration::from_millis(10));
            }
        }
    }
}

/// Starts an `epmd`.
fn start_epmd(port: u16) -> Arc<Process> {
    let mut epmd = Command::new(epmd_program());
    epmd.arg("-port").arg(port.to_string());
    epmd.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    Arc::new(Process::spawn(&mut epmd, Duration::ZERO).expect("epmd can be started"))
}

/// Returns the path of `epmd`.
pub(super) fn epmd_program() -> PathBuf {
    find_program("epmd").expect("epmd is installed (Debian: erlang-base)")
}

/// Returns the folder with RabbitMQ's own programs.
fn programs() -> PathBuf {
    let versions =
        fs::read_dir("/usr/lib/rabbitmq/lib").expect("rabbitmq-server is installed (Debian: rabbitmq-server)");
    let mut found: Vec<PathBuf> = versions.flatten().map(|entry| entry.path().join("sbin")).collect();
    found.sort();
    found.pop().expect("rabbitmq-server has its programs")
}
