//! Child processes that end with the test.

use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};

/// A child process, terminated and reaped on drop, also if the test panics. It stays in the test's process group, so
/// that a runner that kills a hanging test kills it as well.
#[derive(Debug)]
pub(crate) struct Process {
    child: Child,
    grace: Duration,
}

impl Process {
    /// Starts a command. On drop it gets SIGTERM and, after `grace`, SIGKILL.
    pub(crate) fn spawn(command: &mut Command, grace: Duration) -> std::io::Result<Self> {
        command.spawn().map(|child| Self { child, grace })
    }

    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Reports whether it has exited.
    pub(crate) fn has_ended(&mut self) -> bool {
        !matches!(self.child.try_wait(), Ok(None))
    }

    /// Sends a signal, unless it has exited.
    pub(crate) fn signal(&mut self, signal: Signal) {
        if !self.has_ended() {
            let _ = kill_process(Pid::from_child(&self.child), signal);
        }
    }

    /// Terminates it and waits for the exit.
    pub(crate) fn end(&mut self) {
        if !self.grace.is_zero() {
            self.signal(Signal::TERM);
            let limit = Instant::now() + self.grace;
            while !self.has_ended() && Instant::now() < limit {
                std::thread::sleep(Duration::from_millis(10));
            }
        }
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.end();
    }
}

/// Ports that the kernel gives to no connection and no listener on port 0: such a port stays free until its server has
/// started, which takes a container many seconds.
const PORTS: std::ops::Range<u16> = 15_000..32_768;

/// Returns a free loopback port. Another server may take it first, so callers must be ready to retry.
pub fn free_port() -> u16 {
    let ports = std::iter::repeat_with(|| rand::random_range(PORTS)).take(1_000);
    ports.into_iter().find(|port| TcpListener::bind(("127.0.0.1", *port)).is_ok()).expect("a loopback port is free")
}

/// Finds a program on PATH or in the sbin folders.
pub fn find_program(name: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let more = ["/usr/local/sbin", "/usr/sbin", "/sbin", "/usr/local/bin", "/usr/bin"];
    let folders = std::env::split_paths(&path).chain(more.into_iter().map(PathBuf::from));
    folders.map(|folder| folder.join(name)).find(|path| Path::is_file(path))
}
