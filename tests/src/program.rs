//! Runs and measures the built programs as a user would, each in its own home.

use std::ffi::{OsStr, OsString};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use base64::Engine as _;
use serde_json::{Map, Value, json};
use tempfile::TempDir;
use tokio::io::{AsyncBufReadExt as _, AsyncRead, AsyncReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::process::{Child, Command};
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio::time::timeout;

pub use rustix::process::Signal;

use crate::{fresh_build, resource_usage};

/// A program to run. Its home is removed with it unless shared.
#[derive(Debug)]
pub struct Imgsync {
    program: PathBuf,
    home: Arc<TempDir>,
    arguments: Vec<OsString>,
    environment: Vec<(OsString, OsString)>,
    stdin: Option<Vec<u8>>,
    stdout: Option<PathBuf>,
    umask: Option<u32>,
    open_files: Option<(u64, u64)>,
    limit: Duration,
}

/// Result of a run.
#[derive(Clone, Debug)]
pub struct Output {
    /// Exit code, or `None` if a signal ended it.
    pub code: Option<i32>,
    /// Standard output.
    pub stdout: String,
    /// Standard error.
    pub stderr: String,
    /// Peak resident memory in bytes.
    pub peak_rss_bytes: u64,
    /// Peak private memory in bytes, without the executable, which takes 45 MiB in a debug build.
    pub peak_own_bytes: u64,
    /// CPU time in seconds.
    pub cpu_seconds: f64,
    /// Wall time.
    pub elapsed: Duration,
}

impl Output {
    /// Asserts the exit code.
    ///
    /// # Panics
    /// With all output, otherwise.
    #[track_caller]
    pub fn assert_code(self, code: i32) -> Self {
        let Self { stdout, stderr, .. } = &self;
        assert_eq!(self.code, Some(code), "\n--- stdout\n{stdout}\n--- stderr\n{stderr}");
        self
    }

    /// Parses standard output as JSON.
    ///
    /// # Panics
    /// With all output, if it is not JSON.
    #[track_caller]
    pub fn json(&self) -> Value {
        let Self { stdout, stderr, .. } = self;
        serde_json::from_str(stdout)
            .unwrap_or_else(|error| panic!("not JSON: {error}\n--- stdout\n{stdout}\n--- stderr\n{stderr}"))
    }
}

impl Default for Imgsync {
    fn default() -> Self {
        Self::new()
    }
}

impl Imgsync {
    /// Creates `imgsync` in a fresh home.
    pub fn new() -> Self {
        Self::named("imgsync")
    }

    /// Creates `imgsync-worker` in a fresh home.
    pub fn worker() -> Self {
        Self::named("imgsync-worker")
    }

    /// Creates a program of this workspace in a fresh home.
    ///
    /// # Panics
    /// If it is older than its sources and cannot be built.
    pub fn named(name: &str) -> Self {
        Self::at(fresh_build::program(name))
    }

    /// Creates an example of a package of this workspace in a fresh home.
    ///
    /// # Panics
    /// If it cannot be built.
    pub fn example(package: &str, name: &str) -> Self {
        Self::at(fresh_build::example(package, name))
    }

    /// Returns the path of the program.
    pub fn path(&self) -> &Path {
        &self.program
    }

    /// Creates any program in a fresh home.
    pub fn at(program: impl Into<PathBuf>) -> Self {
        let home = tempfile::Builder::new().prefix("imgsync-home-").tempdir().expect("a folder can be made");
        for folder in ["home", "state", "docker", "runtime", "work"] {
            fs::create_dir(home.path().join(folder)).expect("a folder can be made");
        }
        Self {
            program: program.into(),
            home: Arc::new(home),
            arguments: Vec::new(),
            environment: Vec::new(),
            stdin: None,
            stdout: None,
            umask: None,
            open_files: None,
            limit: Duration::from_secs(120),
        }
    }

    /// Creates the same program in the same home, without arguments, for the next run.
    #[must_use]
    pub fn again(&self) -> Self {
        Self {
            program: self.program.clone(),
            home: Arc::clone(&self.home),
            arguments: Vec::new(),
            environment: self.environment.clone(),
            stdin: None,
            stdout: None,
            umask: self.umask,
            open_files: self.open_files,
            limit: self.limit,
        }
    }

    /// Adds an argument.
    #[must_use]
    pub fn arg(mut self, argument: impl AsRef<OsStr>) -> Self {
        self.arguments.push(argument.as_ref().to_owned());
        self
    }

    /// Adds arguments.
    #[must_use]
    pub fn args<A: AsRef<OsStr>>(mut self, arguments: impl IntoIterator<Item = A>) -> Self {
        self.arguments.extend(arguments.into_iter().map(|argument| argument.as_ref().to_owned()));
        self
    }

    /// Sets an environment variable.
    #[must_use]
    pub fn env(mut self, name: impl AsRef<OsStr>, value: impl AsRef<OsStr>) -> Self {
        self.environment.push((name.as_ref().to_owned(), value.as_ref().to_owned()));
        self
    }

    /// Sets standard input, which is empty otherwise.
    #[must_use]
    pub fn stdin(mut self, bytes: impl Into<Vec<u8>>) -> Self {
        self.stdin = Some(bytes.into());
        self
    }

    /// Redirects standard output to a file such as /dev/full; `Output::stdout` is then empty.
    #[must_use]
    pub fn stdout_to(mut self, path: impl Into<PathBuf>) -> Self {
        self.stdout = Some(path.into());
        self
    }

    /// Sets the umask.
    #[must_use]
    pub fn umask(mut self, umask: u32) -> Self {
        self.umask = Some(umask);
        self
    }

    /// Sets the soft and hard limit of open files (RLIMIT_NOFILE).
    #[must_use]
    pub fn open_files(mut self, soft: u64, hard: u64) -> Self {
        self.open_files = Some((soft, hard));
        self
    }

    /// Sets the time after which `run` kills the program and fails, two minutes by default.
    #[must_use]
    pub fn limit(mut self, limit: Duration) -> Self {
        self.limit = limit;
        self
    }

    /// Returns the folder of all its homes.
    pub fn home_dir(&self) -> &Path {
        self.home.path()
    }

    /// Returns its working directory.
    pub fn work_dir(&self) -> PathBuf {
        self.home.path().join("work")
    }

    /// Returns its XDG_STATE_HOME.
    pub fn state_dir(&self) -> PathBuf {
        self.home.path().join("state")
    }

    /// Writes a file into its working directory and returns the path.
    pub fn file(&self, name: &str, content: impl AsRef<[u8]>) -> PathBuf {
        let path = self.work_dir().join(name);
        fs::write(&path, content).expect("the folder can be written to");
        path
    }

    /// Writes docker's config.json with logins (host, user, password).
    pub fn write_docker_config(&self, logins: &[(&str, &str, &str)]) {
        let entry = |(host, user, password): &(&str, &str, &str)| {
            let pair = base64::engine::general_purpose::STANDARD.encode(format!("{user}:{password}"));
            ((*host).to_owned(), json!({"auth": pair}))
        };
        let auths: Map<_, _> = logins.iter().map(entry).collect();
        self.write_docker_json(&json!({"auths": auths}));
    }

    /// Writes docker's config.json.
    pub fn write_docker_json(&self, config: &Value) {
        fs::write(self.home.path().join("docker/config.json"), config.to_string())
            .expect("the folder can be written to");
    }

    /// Runs it to its end.
    ///
    /// # Panics
    /// With all output, if it exceeds the limit.
    pub async fn run(&self) -> Output {
        let limit = self.limit;
        let mut running = self.spawn();
        match timeout(limit, running.wait()).await {
            Ok(output) => output,
            Err(_) => {
                running.signal(Signal::KILL);
                let Output { stdout, stderr, .. } = running.wait().await;
                panic!("it ran longer than {limit:?}\n--- stdout\n{stdout}\n--- stderr\n{stderr}");
            }
        }
    }

    /// Starts it.
    pub fn spawn(&self) -> RunningProgram {
        let umask = self.umask.map(|umask| format!("umask {umask:04o}; "));
        let files = self.open_files.map(|(soft, hard)| format!("ulimit -S -n {soft} && ulimit -H -n {hard} && "));
        let mut command = match umask.into_iter().chain(files).collect::<String>() {
            none if none.is_empty() => Command::new(&self.program),
            // exec replaces the shell, so that its process id is the program's.
            limits => {
                let mut shell = Command::new("/bin/sh");
                shell.args(["-c", &format!("{limits}exec \"$0\" \"$@\"")]).arg(&self.program);
                shell
            }
        };
        command.args(&self.arguments).current_dir(self.work_dir());
        for (name, _) in std::env::vars_os() {
            if is_unwanted(&name.to_string_lossy()) {
                command.env_remove(name);
            }
        }
        let at = |folder: &str| self.home.path().join(folder);
        // Not the machine's: it decides which characters are printed.
        command.env("LC_ALL", "C.UTF-8");
        command.env("HOME", at("home")).env("XDG_STATE_HOME", at("state"));
        command.env("DOCKER_CONFIG", at("docker")).env("XDG_RUNTIME_DIR", at("runtime"));
        command.envs(self.environment.iter().map(|(name, value)| (name, value)));
        command.stdin(if self.stdin.is_some() { Stdio::piped() } else { Stdio::null() });
        let stdout = match &self.stdout {
            None => Stdio::piped(),
            Some(path) => {
                let opened = fs::OpenOptions::new().write(true).open(path);
                opened.unwrap_or_else(|error| panic!("{}: {error}", path.display())).into()
            }
        };
        command.stdout(stdout).stderr(Stdio::piped()).kill_on_drop(true);
        let mut child = command.spawn().unwrap_or_else(|error| panic!("{}: {error}", self.program.display()));
        if let (Some(mut pipe), Some(bytes)) = (child.stdin.take(), self.stdin.clone()) {
            tokio::spawn(async move {
                // A program need not read its input to the end.
                let _ = pipe.write_all(&bytes).await;
            });
        }
        let stdout = child.stdout.take();
        let stderr = child.stderr.take().expect("stderr is piped");
        let lines = Arc::new(Lines { text: Mutex::default(), changed: watch::Sender::new(false) });
        RunningProgram {
            pid: child.id().expect("it has not been waited for"),
            started: Instant::now(),
            stdout: tokio::spawn(async move {
                let mut all = Vec::new();
                if let Some(mut stdout) = stdout {
                    let _ = stdout.read_to_end(&mut all).await;
                }
                String::from_utf8_lossy(&all).into_owned()
            }),
            stderr: tokio::spawn(collect(stderr, Arc::clone(&lines))),
            lines,
            usage: Usage::default(),
            child,
            _home: Arc::clone(&self.home),
        }
    }
}

/// Reports whether a variable of the test runner's environment would change the program's behaviour.
fn is_unwanted(name: &str) -> bool {
    let lower = name.to_ascii_lowercase();
    lower.ends_with("_proxy")
        || lower.starts_with("imgsync_")
        || lower.starts_with("xdg_")
        || ["aws_", "azure_", "google_", "gce_", "cloudsdk_", "identity_"].iter().any(|cloud| lower.starts_with(cloud))
        || matches!(lower.as_str(), "registry_auth_file" | "docker_host" | "rust_log" | "no_color" | "ssl_cert_file")
}

#[derive(Clone, Copy, Debug, Default)]
struct Usage {
    peak_rss_bytes: u64,
    peak_own_bytes: u64,
    cpu_seconds: f64,
    ended: bool,
}

#[derive(Debug)]
struct Lines {
    text: Mutex<String>,
    /// True once no more text follows.
    changed: watch::Sender<bool>,
}

async fn collect(stderr: impl AsyncRead + Unpin, lines: Arc<Lines>) {
    let mut reader = BufReader::new(stderr);
    let mut line = Vec::new();
    while matches!(reader.read_until(b'\n', &mut line).await, Ok(read) if read > 0) {
        lines.text.lock().expect("the text is whole").push_str(&String::from_utf8_lossy(&line));
        lines.changed.send_replace(false);
        line.clear();
    }
    lines.changed.send_replace(true);
}

/// A running program, killed on drop.
#[derive(Debug)]
pub struct RunningProgram {
    child: Child,
    pid: u32,
    started: Instant,
    stdout: JoinHandle<String>,
    stderr: JoinHandle<()>,
    lines: Arc<Lines>,
    usage: Usage,
    _home: Arc<TempDir>,
}

impl RunningProgram {
    /// Returns its process id.
    pub fn pid(&self) -> u32 {
        self.pid
    }

    /// Sends a signal, unless it has ended.
    pub fn signal(&self, signal: Signal) {
        // A process id is not reused before it is waited for.
        if self.child.id().is_some() {
            let pid = rustix::process::Pid::from_raw(self.pid as i32).expect("no process has the id 0");
            let _ = rustix::process::kill_process(pid, signal);
        }
    }

    /// Reports whether it is the client at this local port, as a server sees it.
    pub fn has_connection_from(&self, port: u16) -> bool {
        crate::sockets::has_connection_from(self.pid, port)
    }

    /// Reports whether it is still running.
    pub fn is_running(&self) -> bool {
        let stat = fs::read_to_string(format!("/proc/{}/stat", self.pid)).unwrap_or_default();
        stat.rsplit_once(") ").is_some_and(|(_, rest)| !rest.starts_with(['Z', 'X']))
    }

    /// Returns its standard error so far.
    pub fn stderr(&self) -> String {
        self.lines.text.lock().expect("the text is whole").clone()
    }

    /// Waits for a line on standard error and returns it.
    ///
    /// # Panics
    /// With all output, on timeout or if the program ends without the line.
    pub async fn wait_for_line(&self, wanted: impl Fn(&str) -> bool, limit: Duration) -> String {
        let mut changed = self.lines.changed.subscribe();
        let wait = async {
            loop {
                let over = *changed.borrow_and_update();
                if let Some(line) = self.stderr().lines().find(|line| wanted(line)) {
                    return Some(line.to_owned());
                }
                if over || changed.changed().await.is_err() {
                    return None;
                }
            }
        };
        match timeout(limit, wait).await {
            Ok(Some(line)) => line,
            Ok(None) => panic!("it ended without the line\n--- stderr\n{}", self.stderr()),
            Err(_) => panic!("the line did not come within {limit:?}\n--- stderr\n{}", self.stderr()),
        }
    }

    /// Returns its peak resident memory so far, in bytes.
    pub fn peak_rss_bytes(&mut self) -> u64 {
        self.measure();
        self.usage.peak_rss_bytes
    }

    /// Closes the reading side of its standard error, like a terminal that is gone.
    pub async fn close_stderr(&mut self) {
        self.stderr.abort();
        let ended = (&mut self.stderr).await;
        assert!(ended.is_err_and(|error| error.is_cancelled()), "it has ended already");
        self.stderr = tokio::spawn(async {});
    }

    /// Waits for its end.
    pub async fn wait(&mut self) -> Output {
        // A process that has ended but was not waited for still reports its CPU time, but not its memory. The kernel's
        // high-water mark never falls, so polling every few milliseconds misses little.
        while !self.usage.ended {
            self.measure();
            if !self.usage.ended {
                tokio::time::sleep(Duration::from_millis(4)).await;
            }
        }
        let status = self.child.wait().await.expect("a child can be waited for");
        let elapsed = self.started.elapsed();
        let stdout = (&mut self.stdout).await.expect("the reader does not panic");
        (&mut self.stderr).await.expect("the reader does not panic");
        Output {
            code: status.code(),
            stdout,
            stderr: self.stderr(),
            peak_rss_bytes: self.usage.peak_rss_bytes,
            peak_own_bytes: self.usage.peak_own_bytes,
            cpu_seconds: self.usage.cpu_seconds,
            elapsed,
        }
    }

    fn measure(&mut self) {
        let status = fs::read_to_string(format!("/proc/{}/status", self.pid)).unwrap_or_default();
        let bytes = |what: &str| {
            let kib = status.lines().find_map(|line| line.strip_prefix(what)?.trim().strip_suffix(" kB"));
            kib.and_then(|kib| kib.trim().parse::<u64>().ok()).unwrap_or(0) * 1024
        };
        self.usage.peak_rss_bytes = self.usage.peak_rss_bytes.max(bytes("VmHWM:"));
        self.usage.peak_own_bytes = self.usage.peak_own_bytes.max(bytes("RssAnon:"));
        // Checked first: the CPU time of an ended process is final.
        self.usage.ended = !self.is_running();
        self.usage.cpu_seconds = self.usage.cpu_seconds.max(resource_usage::cpu_seconds(self.pid));
    }
}
