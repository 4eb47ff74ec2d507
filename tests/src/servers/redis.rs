//! Debian's `redis-server`, one process per test or shared.

use std::fs::{self, File};
use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use rustix::process::Signal;
use tempfile::TempDir;

use super::process::{Process, find_program, free_port};
use crate::tls::Identity;

/// Options of the server.
#[derive(Debug, Default)]
pub struct RedisServerOptions {
    /// Password required of clients.
    pub password: Option<String>,
    /// Serves TLS only.
    pub tls: Option<Identity>,
    /// Certificate that it trusts when it connects to other servers, always with TLS.
    pub tls_ca: Option<String>,
    /// Uses `appendfsync everysec`, so that a kill can lose up to a second of writes. Otherwise it loses none.
    pub fsync_every_second: bool,
    /// Runs as a sentinel (`--sentinel`).
    pub is_sentinel: bool,
    /// Extra lines of its configuration.
    pub extra_config: Vec<String>,
}

/// All keys of a server at one moment.
#[derive(Debug)]
pub struct StoreSnapshot(String);

/// The server. Process and data are removed on drop.
#[derive(Debug)]
pub struct RedisServer {
    process: Option<Process>,
    port: u16,
    folder: TempDir,
    options: RedisServerOptions,
}

impl RedisServer {
    /// Starts a server that persists each write before it responds.
    pub fn start() -> Self {
        Self::start_with(RedisServerOptions::default())
    }

    /// Starts a server with options and waits until it responds.
    ///
    /// # Panics
    /// If `redis-server` is not installed or does not come up.
    pub fn start_with(options: RedisServerOptions) -> Self {
        let folder = tempfile::Builder::new().prefix("redis-").tempdir().expect("a folder can be made");
        if let Some(tls) = &options.tls {
            fs::write(folder.path().join("cert.pem"), &tls.certificate_pem).expect("the folder can be written to");
            fs::write(folder.path().join("key.pem"), &tls.key_pem).expect("the folder can be written to");
        }
        if let Some(ca) = &options.tls_ca {
            fs::write(folder.path().join("ca.pem"), ca).expect("the folder can be written to");
        }
        let mut server = Self { process: None, port: 0, folder, options };
        // Another process may take the port between its choice and its use: retry with another one.
        for _ in 0..10 {
            server.port = free_port();
            if server.launch() {
                return server;
            }
        }
        panic!("redis-server did not come up; its log is:\n{}", server.log());
    }

    fn launch(&mut self) -> bool {
        let program = find_program("redis-server").expect("redis-server is installed (Debian: redis-server)");
        let mut config = format!("bind 127.0.0.1\ndir {}\ndaemonize no\nsave \"\"\n", self.folder.path().display());
        config.push_str("appendonly yes\nno-appendfsync-on-rewrite no\n");
        config.push_str(if self.options.fsync_every_second {
            "appendfsync everysec\n"
        } else {
            "appendfsync always\n"
        });
        match self.options.tls {
            None => config.push_str(&format!("port {}\n", self.port)),
            Some(_) => config.push_str(&format!(
                "port 0\ntls-port {}\ntls-cert-file cert.pem\ntls-key-file key.pem\ntls-auth-clients no\n",
                self.port
            )),
        }
        if self.options.tls_ca.is_some() {
            config.push_str("tls-ca-cert-file ca.pem\ntls-replication yes\n");
        }
        if let Some(password) = &self.options.password {
            config.push_str(&format!("requirepass {password}\n"));
        }
        for line in &self.options.extra_config {
            config.push_str(line);
            config.push('\n');
        }
        let file = self.folder.path().join("redis.conf");
        // Sentinels, and the servers that they change, write theirs themselves.
        let is_written =
            fs::read_to_string(&file).is_ok_and(|written| written.contains(&format!("port {}\n", self.port)));
        if !is_written {
            fs::write(&file, config).expect("the folder can be written to");
        }
        let log = File::options().create(true).append(true).open(self.folder.path().join("log")).expect("a log");
        let mut command = Command::new(program);
        command
            .arg(&file)
            .args(self.options.is_sentinel.then_some("--sentinel"))
            .stdin(Stdio::null())
            .stdout(log.try_clone().expect("a handle"))
            .stderr(log);
        let mut process = Process::spawn(&mut command, Duration::ZERO).expect("redis-server can be started");
        let limit = Instant::now() + Duration::from_secs(20);
        while Instant::now() < limit && !process.has_ended() {
            if self.answers() {
                self.process = Some(process);
                return true;
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        false
    }

    /// Reports whether it serves clients after loading its data. With TLS, whether it listens.
    fn answers(&self) -> bool {
        let Ok(mut stream) = TcpStream::connect(("127.0.0.1", self.port)) else { return false };
        if self.options.tls.is_some() {
            return true;
        }
        let _ = stream.set_read_timeout(Some(Duration::from_secs(1)));
        let mut answer = [0; 64];
        let ping = stream.write_all(b"PING\r\n").and_then(|()| stream.read(&mut answer));
        ping.is_ok_and(|length| answer[..length].starts_with(b"+PONG") || answer[..length].starts_with(b"-NOAUTH"))
    }

    /// Returns `redis://127.0.0.1:PORT`, with the password if it requires one.
    pub fn url(&self) -> String {
        let scheme = if self.options.tls.is_some() { "rediss" } else { "redis" };
        let password = self.options.password.as_ref().map(|password| format!(":{password}@")).unwrap_or_default();
        format!("{scheme}://{password}127.0.0.1:{}", self.port)
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
        self.process = None;
    }

    /// Restarts it with the same port and data.
    ///
    /// # Panics
    /// If it does not come up.
    pub fn restart(&mut self) {
        self.process = None;
        let limit = Instant::now() + Duration::from_secs(20);
        while !self.launch() {
            assert!(Instant::now() < limit, "redis-server did not come up again; its log is:\n{}", self.log());
        }
    }

    /// Stops its process with SIGSTOP. Data is kept.
    pub fn freeze(&mut self) {
        self.process.iter_mut().for_each(|process| process.signal(Signal::STOP));
    }

    /// Continues its process with SIGCONT.
    pub fn thaw(&mut self) {
        self.process.iter_mut().for_each(|process| process.signal(Signal::CONT));
    }

    /// Sends a command and returns the raw response.
    ///
    /// # Panics
    /// If it cannot be reached.
    pub fn command(&self, words: &[&str]) -> String {
        let mut stream = TcpStream::connect(("127.0.0.1", self.port)).expect("redis-server listens");
        stream.set_read_timeout(Some(Duration::from_secs(5))).expect("a timeout can be set");
        let mut request = format!("*{}\r\n", words.len());
        words.iter().for_each(|word| request.push_str(&format!("${}\r\n{word}\r\n", word.len())));
        stream.write_all(request.as_bytes()).expect("it takes a command");
        let mut answer = Vec::new();
        let mut piece = [0; 65_536];
        loop {
            let length = stream.read(&mut piece).expect("it answers");
            answer.extend_from_slice(&piece[..length]);
            if length < piece.len() && answer.ends_with(b"\r\n") || length == 0 {
                return String::from_utf8_lossy(&answer).into_owned();
            }
        }
    }

    /// Sends a command with `redis-cli`, with password and TLS, and returns what it prints: a line for each value. Empty
    /// if the server does not answer.
    ///
    /// # Panics
    /// If `redis-cli` is not installed.
    pub fn cli(&self, words: &[&str]) -> String {
        let mut command =
            Command::new(find_program("redis-cli").expect("redis-cli is installed (Debian: redis-tools)"));
        command.args(["-h", "127.0.0.1", "-p", &self.port.to_string()]).stdin(Stdio::null());
        if let Some(password) = &self.options.password {
            command.env("REDISCLI_AUTH", password);
        }
        if self.options.tls.is_some() {
            command.args(["--tls", "--insecure"]);
        }
        // A frozen server takes the connection and says nothing.
        let mut child =
            command.args(words).stdout(Stdio::piped()).stderr(Stdio::null()).spawn().expect("redis-cli starts");
        let limit = Instant::now() + Duration::from_secs(5);
        while child.try_wait().is_ok_and(|ended| ended.is_none()) && Instant::now() < limit {
            std::thread::sleep(Duration::from_millis(5));
        }
        let _ = child.kill();
        let output = child.wait_with_output().expect("redis-cli ends");
        String::from_utf8_lossy(&output.stdout).replace('\r', "")
    }

    /// Returns a number from `INFO`, such as `used_memory`; 0 if missing.
    pub fn info(&self, name: &str) -> u64 {
        let info = self.command(&["INFO", "everything"]);
        let number = info.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':')?.trim().parse().ok());
        number.unwrap_or_default()
    }

    /// Counts the calls of a command, such as `evalsha`, by clients and scripts.
    pub fn calls(&self, command: &str) -> u64 {
        let info = self.command(&["INFO", "commandstats"]);
        let stats = info.lines().find_map(|line| line.strip_prefix(&format!("cmdstat_{command}:calls=")));
        stats.and_then(|stats| stats.split(',').next()?.parse().ok()).unwrap_or_default()
    }

    /// Counts the error responses with a code, such as `OOM`.
    pub fn errors(&self, code: &str) -> u64 {
        let info = self.command(&["INFO", "errorstats"]);
        let count = info.lines().find_map(|line| line.strip_prefix(&format!("errorstat_{code}:count=")));
        count.and_then(|count| count.trim().parse().ok()).unwrap_or_default()
    }

    /// Copies all keys, to lose later writes with [`RedisServer::restore`].
    ///
    /// # Panics
    /// If it refuses.
    pub fn snapshot(&self) -> StoreSnapshot {
        let script = "local all = {} for _, key in ipairs(redis.call('KEYS', '*')) do \
                      all[#all + 1] = {key, math.max(redis.call('PTTL', key), 0), redis.call('DUMP', key)} end \
                      redis.call('SET', 'snapshot of a test', cmsgpack.pack(all)) \
                      return redis.sha1hex(redis.call('GET', 'snapshot of a test'))";
        let answer = self.command(&["EVAL", script, "0"]);
        let name = answer.lines().nth(1).unwrap_or_else(|| panic!("redis-server says {answer}")).to_owned();
        let kept = self.command(&["RENAME", "snapshot of a test", &format!("snapshot {name}")]);
        assert!(kept.starts_with("+OK"), "{kept}");
        // In another database, where the clients of the first do not see it.
        let moved = self.command(&["MOVE", &format!("snapshot {name}"), "1"]);
        assert!(moved.starts_with(":1"), "{moved}");
        StoreSnapshot(name)
    }

    /// Loses all writes since a snapshot, at once, as a failover to a replica does that lagged behind. Connections stay
    /// open.
    ///
    /// # Panics
    /// If it refuses.
    pub fn restore(&self, snapshot: &StoreSnapshot) {
        let script = "redis.call('SELECT', 1) local all = cmsgpack.unpack(redis.call('GET', ARGV[1])) \
                      redis.call('SELECT', 0) redis.call('FLUSHDB') \
                      for _, one in ipairs(all) do redis.call('RESTORE', one[1], one[2], one[3]) end return #all";
        let answer = self.command(&["EVAL", script, "0", &format!("snapshot {}", snapshot.0)]);
        assert!(answer.starts_with(':'), "{answer}");
    }

    /// Makes it a read-only replica of another server, as a failover does. Its connections stay open.
    ///
    /// # Panics
    /// If it refuses.
    pub fn replicate_from(&self, master: &RedisServer) {
        let answer = self.command(&["REPLICAOF", "127.0.0.1", &master.port.to_string()]);
        assert!(answer.starts_with("+OK"), "{answer}");
    }

    /// Makes it a master again.
    ///
    /// # Panics
    /// If it refuses.
    pub fn promote(&self) {
        let answer = self.command(&["REPLICAOF", "NO", "ONE"]);
        assert!(answer.starts_with("+OK"), "{answer}");
    }

    /// Changes a setting at runtime.
    ///
    /// # Panics
    /// If it refuses.
    pub fn set(&self, name: &str, value: &str) {
        let answer = self.command(&["CONFIG", "SET", name, value]);
        assert!(answer.starts_with("+OK"), "{answer}");
    }

    /// Sums the memory in bytes of all keys that match a pattern, by Redis' own count over all of their elements.
    ///
    /// # Panics
    /// If it does not report it.
    pub fn key_memory_bytes(&self, pattern: &str) -> u64 {
        let script = "local sum = 0 for _, key in ipairs(redis.call('KEYS', ARGV[1])) do \
                      sum = sum + redis.call('MEMORY', 'USAGE', key, 'SAMPLES', '0') end return sum";
        let answer = self.command(&["EVAL", script, "0", pattern]);
        let sum = answer.strip_prefix(':').and_then(|sum| sum.trim().parse().ok());
        sum.unwrap_or_else(|| panic!("redis-server says {answer}"))
    }

    /// Returns its process id.
    pub fn pid(&self) -> Option<u32> {
        self.process.as_ref().map(Process::pid)
    }
}
