//! Debian's `redis-server`, a process for each test or for several.

use std::fs::{self, File};
use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use rustix::process::Signal;
use tempfile::TempDir;

use super::process::{Process, find_program, free_port};
use crate::tls::Identity;

/// What it does beyond the usual.
#[derive(Debug, Default)]
pub struct RedisOptions {
    /// Wanted of clients.
    pub password: Option<String>,
    /// Speaks TLS only.
    pub tls: Option<Identity>,
    /// Loses up to a second at a kill (`appendfsync everysec`), in place of nothing.
    pub loses_a_second: bool,
    /// Watches servers in place of holding data (`--sentinel`).
    pub is_sentinel: bool,
    /// More lines of its configuration.
    pub more: Vec<String>,
}

/// The server. Process and data end when it is dropped.
#[derive(Debug)]
pub struct RedisServer {
    process: Option<Process>,
    port: u16,
    folder: TempDir,
    options: RedisOptions,
}

impl RedisServer {
    /// Starts one that writes down each change before it answers.
    pub fn start() -> Self {
        Self::start_with(RedisOptions::default())
    }

    /// Starts one with options, and waits until it answers.
    ///
    /// # Panics
    /// When `redis-server` is not installed, or does not come up.
    pub fn start_with(options: RedisOptions) -> Self {
        let folder = tempfile::Builder::new().prefix("redis-").tempdir().expect("a folder can be made");
        if let Some(tls) = &options.tls {
            fs::write(folder.path().join("cert.pem"), &tls.certificate_pem).expect("the folder can be written to");
            fs::write(folder.path().join("key.pem"), &tls.key_pem).expect("the folder can be written to");
        }
        let mut server = Self { process: None, port: 0, folder, options };
        // The port may be taken between its choice and its use: then another is tried.
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
        config.push_str(if self.options.loses_a_second { "appendfsync everysec\n" } else { "appendfsync always\n" });
        match self.options.tls {
            None => config.push_str(&format!("port {}\n", self.port)),
            Some(_) => config.push_str(&format!(
                "port 0\ntls-port {}\ntls-cert-file cert.pem\ntls-key-file key.pem\ntls-auth-clients no\n",
                self.port
            )),
        }
        if let Some(password) = &self.options.password {
            config.push_str(&format!("requirepass {password}\n"));
        }
        for line in &self.options.more {
            config.push_str(line);
            config.push('\n');
        }
        let file = self.folder.path().join("redis.conf");
        fs::write(&file, config).expect("the folder can be written to");
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

    /// Whether it speaks to clients, having read its data. With TLS, whether it listens.
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

    /// `redis://127.0.0.1:PORT`, with the password if it wants one.
    pub fn url(&self) -> String {
        let scheme = if self.options.tls.is_some() { "rediss" } else { "redis" };
        let password = self.options.password.as_ref().map(|password| format!(":{password}@")).unwrap_or_default();
        format!("{scheme}://{password}127.0.0.1:{}", self.port)
    }

    /// Its port.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// What it wrote.
    pub fn log(&self) -> String {
        fs::read_to_string(self.folder.path().join("log")).unwrap_or_default()
    }

    /// Ends it without warning.
    pub fn kill(&mut self) {
        self.process = None;
    }

    /// Starts it again, with the port and the data that it had.
    ///
    /// # Panics
    /// When it does not come up.
    pub fn start_again(&mut self) {
        self.process = None;
        let limit = Instant::now() + Duration::from_secs(20);
        while !self.launch() {
            assert!(Instant::now() < limit, "redis-server did not come up again; its log is:\n{}", self.log());
        }
    }

    /// Stops it from answering; what it has stays.
    pub fn freeze(&mut self) {
        self.process.iter_mut().for_each(|process| process.signal(Signal::STOP));
    }

    /// Lets it go on.
    pub fn thaw(&mut self) {
        self.process.iter_mut().for_each(|process| process.signal(Signal::CONT));
    }

    /// Sends a command, its words as they are, and gives the answer as it came.
    ///
    /// # Panics
    /// When it cannot be reached.
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

    /// A number of `INFO`, such as `used_memory`; 0 where it says none.
    pub fn info(&self, name: &str) -> u64 {
        let info = self.command(&["INFO", "everything"]);
        let number = info.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':')?.trim().parse().ok());
        number.unwrap_or_default()
    }

    /// How often clients have called a command, such as `evalsha`. What scripts call counts too.
    pub fn calls(&self, command: &str) -> u64 {
        let info = self.command(&["INFO", "commandstats"]);
        let stats = info.lines().find_map(|line| line.strip_prefix(&format!("cmdstat_{command}:calls=")));
        stats.and_then(|stats| stats.split(',').next()?.parse().ok()).unwrap_or_default()
    }

    /// How often it has answered with an error of this code, such as `OOM`.
    pub fn errors(&self, code: &str) -> u64 {
        let info = self.command(&["INFO", "errorstats"]);
        let count = info.lines().find_map(|line| line.strip_prefix(&format!("errorstat_{code}:count=")));
        count.and_then(|count| count.trim().parse().ok()).unwrap_or_default()
    }

    /// Makes it a read-only replica of another, as a failover does. Its connections stay open.
    ///
    /// # Panics
    /// When it does not.
    pub fn follow(&self, master: &RedisServer) {
        let answer = self.command(&["REPLICAOF", "127.0.0.1", &master.port.to_string()]);
        assert!(answer.starts_with("+OK"), "{answer}");
    }

    /// Makes it a master again.
    ///
    /// # Panics
    /// When it does not.
    pub fn lead(&self) {
        let answer = self.command(&["REPLICAOF", "NO", "ONE"]);
        assert!(answer.starts_with("+OK"), "{answer}");
    }

    /// Changes a setting while it runs.
    ///
    /// # Panics
    /// When it does not take it.
    pub fn set(&self, name: &str, value: &str) {
        let answer = self.command(&["CONFIG", "SET", name, value]);
        assert!(answer.starts_with("+OK"), "{answer}");
    }

    /// The memory of all keys of a pattern, in bytes: what Redis itself says of each, all of its parts looked at.
    ///
    /// # Panics
    /// When it does not say it.
    pub fn bytes_of(&self, pattern: &str) -> u64 {
        let script = "local sum = 0 for _, key in ipairs(redis.call('KEYS', ARGV[1])) do \
                      sum = sum + redis.call('MEMORY', 'USAGE', key, 'SAMPLES', '0') end return sum";
        let answer = self.command(&["EVAL", script, "0", pattern]);
        let sum = answer.strip_prefix(':').and_then(|sum| sum.trim().parse().ok());
        sum.unwrap_or_else(|| panic!("redis-server says {answer}"))
    }

    /// Its process.
    pub fn pid(&self) -> Option<u32> {
        self.process.as_ref().map(Process::pid)
    }
}
