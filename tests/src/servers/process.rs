//! Processes that end with the test.

use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};

/// A child that is ended and waited for when it is dropped, also when the test panics. It stays in the test's process
/// group: a runner that kills a test that hangs kills it too.
#[derive(Debug)]
pub(crate) struct Process {
    child: Child,
    grace: Duration,
}

impl Process {
    /// Starts a command. At the end it is asked by SIGTERM, and after `grace` not asked any more.
    pub(crate) fn spawn(command: &mut Command, grace: Duration) -> std::io::Result<Self> {
        command.spawn().map(|child| Self { child, grace })
    }

    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Whether it has ended by itself.
    pub(crate) fn has_ended(&mut self) -> bool {
        !matches!(self.child.try_wait(), Ok(None))
    }

    /// Sends a signal, if it has not ended.
    pub(crate) fn signal(&mut self, signal: Signal) {
        if !self.has_ended() {
            let _ = kill_process(Pid::from_child(&self.child), signal);
        }
    }

    /// Ends it and waits until it has.
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

/// A loopback port that was free just now. Another process may take it: whoever uses it must be ready to try again.
pub fn free_port() -> u16 {
    let listener = TcpListener::bind(("127.0.0.1", 0)).expect("a loopback port is free");
    listener.local_addr().expect("a listener has an address").port()
}

/// Where a program is: on PATH, or in the folders of programs for root.
pub fn find_program(name: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let more = ["/usr/local/sbin", "/usr/sbin", "/sbin", "/usr/local/bin", "/usr/bin"];
    let folders = std::env::split_paths(&path).chain(more.into_iter().map(PathBuf::from));
    folders.map(|folder| folder.join(name)).find(|path| Path::is_file(path))
}
