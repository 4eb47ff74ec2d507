//! Debian's `rabbitmq-server`: one node per test, with its own `epmd`.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process, test_kill_process};
use tempfile::TempDir;

use super::process::{Process, find_program, free_port};

/// Time limit for the start of a node on a busy machine.
const START_TIMEOUT: Duration = Duration::from_secs(90);
/// Number of starts with other ports.
const START_ATTEMPTS: usize = 2;

/// The broker. Its processes and data are removed on drop.
#[derive(Debug)]
pub struct RabbitMq {
    process: Option<Process>,
    _epmd: Process,
    epmd_port: u16,
    port: u16,
    dist_port: u16,
    folder: TempDir,
    config: String,
}

impl RabbitMq {
    /// Starts a broker and waits until it responds.
    pub fn start() -> Self {
        Self::start_with("")
    }

    /// Starts a broker with extra lines of `rabbitmq.conf`.
    ///
    /// # Panics
    /// If `rabbitmq-server` is not installed or does not come up.
    pub fn start_with(config: &str) -> Self {
        let folder = tempfile::Builder::new().prefix("rabbitmq-").tempdir().expect("a folder can be made");
        let cookie = folder.path().join(".erlang.cookie");
        fs::write(&cookie, "ATESTSCOOKIE").expect("the folder can be written to");
        let only_ours = std::os::unix::fs::PermissionsExt::from_mode(0o400);
        fs::set_permissions(&cookie, only_ours).expect("the folder is ours");
        let epmd_port = free_port();
        let mut epmd = Command::new(find_program("epmd").expect("epmd is installed (Debian: erlang-base)"));
        epmd.arg("-port").arg(epmd_port.to_string()).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        let epmd = Process::spawn(&mut epmd, Duration::ZERO).expect("epmd can be started");
        let mut broker = Self {
            process: None,
            _epmd: epmd,
            epmd_port,
            port: free_port(),
            dist_port: free_port(),
            folder,
            config: config.to_owned(),
        };
        for _ in 0..START_ATTEMPTS {
            match broker.launch() {
                Ok(()) => return broker,
                // Another process took one of the ports meanwhile.
                Err(_) => (broker.port, broker.dist_port) = (free_port(), free_port()),
            }
        }
        broker.launch().unwrap_or_else(|log| panic!("rabbitmq-server did not come up; its log is:\n{log}"));
        broker
    }

    /// Starts the node. Returns its log if it ended or did not respond in time.
    fn launch(&mut self) -> Result<(), String> {
        let at = self.folder.path();
        let config = format!("listeners.tcp.1 = 127.0.0.1:{}\nlog.console.level = info\n{}", self.port, self.config);
        fs::write(at.join("rabbitmq.conf"), config).expect("the folder can be written to");
        fs::write(at.join("enabled_plugins"), "[].\n").expect("the folder can be written to");
        let log = File::options().create(true).append(true).open(at.join("log")).expect("a log");
        let mut command = self.command("rabbitmq-server");
        command.stdin(Stdio::null()).stdout(log.try_clone().expect("a handle")).stderr(log);
        let mut process = Process::spawn(&mut command, Duration::ZERO).expect("rabbitmq-server can be started");
        let limit = Instant::now() + START_TIMEOUT;
        while !self.answers() {
            if Instant::now() > limit || process.has_ended() {
                self.process = Some(process);
                self.kill();
                return Err(self.log());
            }
            std::thread::sleep(Duration::from_millis(50));
        }
        self.process = Some(process);
        Ok(())
    }

    /// Prepares a RabbitMQ program for this node. Avoids the wrappers on PATH, which change user and folder.
    fn command(&self, program: &str) -> Command {
        let at = self.folder.path();
        let mut command = Command::new(programs().join(program));
        let folder = |name: &str| at.join(name).display().to_string();
        command
            .env("HOME", at)
            .env("ERL_EPMD_PORT", self.epmd_port.to_string())
            .env("RABBITMQ_NODENAME", self.node())
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

    fn node(&self) -> String {
        format!("imgsync-{}@localhost", self.port)
    }

    /// Reports whether it speaks AMQP, starting with a method frame (1). Another server may have its port by now.
    fn answers(&self) -> bool {
        let Ok(mut stream) = TcpStream::connect(("127.0.0.1", self.port)) else { return false };
        let _ = stream.set_read_timeout(Some(Duration::from_secs(2)));
        let mut answer = [0; 1];
        stream.write_all(b"AMQP\x00\x00\x09\x01").and_then(|()| stream.read_exact(&mut answer)).is_ok() && answer == [1]
    }

    /// Returns `amqp://guest:guest@127.0.0.1:PORT/%2f`.
    pub fn url(&self) -> String {
        format!("amqp://guest:guest@127.0.0.1:{}/%2f", self.port)
    }

    /// Returns its port.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// Returns its log.
    pub fn log(&self) -> String {
        fs::read_to_string(self.folder.path().join("log")).unwrap_or_default()
    }

    /// Kills it.
    pub fn kill(&mut self) {
        // The start script waits for the node, and would leave it behind.
        if let Some(node) = self.node_process() {
            let _ = kill_process(node, Signal::KILL);
            let limit = Instant::now() + Duration::from_secs(10);
            while test_kill_process(node).is_ok() && Instant::now() < limit {
                std::thread::sleep(Duration::from_millis(10));
            }
        }
        self.process = None;
    }

    /// Returns the process of the node.
    fn node_process(&self) -> Option<Pid> {
        let pid = fs::read_to_string(self.folder.path().join("pid")).ok()?.trim().parse().ok()?;
        // The pid in a stale file may belong to another process.
        let command = fs::read_to_string(format!("/proc/{pid}/cmdline")).ok()?;
        command.contains(&*self.folder.path().to_string_lossy()).then(|| Pid::from_raw(pid)).flatten()
    }

    /// Returns the process id of the node.
    pub fn pid(&self) -> Option<u32> {
        self.node_process().map(|node| node.as_raw_nonzero().get().unsigned_abs())
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
        let said = self.ctl(&["list_queues", "name", "messages", "--no-table-headers"]);
        said.lines()
            .filter_map(|line| line.split_once('\t'))
            .map(|(name, count)| (name.to_owned(), count.trim().parse().unwrap_or_default()))
            .collect()
    }

    /// Counts the current messages in a quorum queue of the default virtual host, delivered or not.
    /// [`RabbitMq::message_counts`] lags by some seconds.
    ///
    /// # Panics
    /// If the queue does not report it.
    pub fn message_count(&self, queue: &str) -> u64 {
        let total = "fun rabbit_fifo:query_messages_total/1";
        let said = self
            .ctl(&["eval", &format!("{{ok, {{_, N}}, _}} = ra:local_query({{'%2F_{queue}', node()}}, {total}), N.")]);
        said.trim().parse().unwrap_or_else(|_| panic!("the broker says {said}"))
    }

    fn signal(&self, signal: Signal) {
        if let Some(node) = self.node_process() {
            let _ = kill_process(node, signal);
        }
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

    /// Suspends or resumes a queue of the default virtual host.
    pub fn suspend(&self, queue: &str, suspend: bool) {
        let what = if suspend { "suspend" } else { "resume" };
        self.ctl(&["eval", &format!("sys:{what}('%2F_{queue}').")]);
    }

    /// Stops or restarts the only member of a quorum queue of the default virtual host, as if its leader were gone.
    pub fn set_leader_stopped(&self, queue: &str, away: bool) {
        let what = if away { "stop_server" } else { "restart_server" };
        self.ctl(&["eval", &format!("ra:{what}(quorum_queues, {{'%2F_{queue}', node()}}).")]);
    }

    /// Stops its process with SIGSTOP.
    pub fn freeze(&self) {
        self.signal(Signal::STOP);
    }

    /// Continues its process with SIGCONT.
    pub fn thaw(&self) {
        self.signal(Signal::CONT);
    }

    /// Runs `rabbitmqctl` and returns its output.
    ///
    /// # Panics
    /// If it fails.
    pub fn ctl(&self, arguments: &[&str]) -> String {
        let output = self.command("rabbitmqctl").arg("--quiet").args(arguments).output().expect("rabbitmqctl runs");
        let text = format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
        assert!(output.status.success(), "rabbitmqctl {arguments:?}: {text}");
        text
    }
}

impl Drop for RabbitMq {
    fn drop(&mut self) {
        self.kill();
    }
}

/// Returns the folder with RabbitMQ's own programs.
fn programs() -> PathBuf {
    let versions =
        fs::read_dir("/usr/lib/rabbitmq/lib").expect("rabbitmq-server is installed (Debian: rabbitmq-server)");
    let mut found: Vec<PathBuf> = versions.flatten().map(|entry| entry.path().join("sbin")).collect();
    found.sort();
    found.pop().expect("rabbitmq-server has its programs")
}
