//! Child processes that end with the test.

use std::net::TcpListener;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixListener};
use std::path::{Path, PathBuf};
use std::process::{Child, Command};
use std::sync::Mutex;
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

/// Returns a loopback port that is free, and that no other test is given until this process ends: a container listens
/// minutes after its port was chosen. Programs that are no tests may still take it.
pub fn free_port() -> u16 {
    let ports = std::iter::repeat_with(|| rand::random_range(PORTS)).take(1_000);
    let is_free = |port: &u16| is_reserved_for_us(*port) && TcpListener::bind(("127.0.0.1", *port)).is_ok();
    ports.into_iter().find(is_free).expect("a loopback port is free")
}

/// Reserves a port among all tests of this network namespace, with an abstract socket: the kernel gives such a name to one
/// process at a time, frees it when that ends, and no file is left behind.
fn is_reserved_for_us(port: u16) -> bool {
    static RESERVED: Mutex<Vec<UnixListener>> = Mutex::new(Vec::new());
    let name = SocketAddr::from_abstract_name(format!("imgsync-test-port-{port}")).expect("a short name");
    let reservation = UnixListener::bind_addr(&name);
    reservation.map(|socket| RESERVED.lock().expect("no test panics here").push(socket)).is_ok()
}

/// Finds a program on PATH or in the sbin folders.
pub fn find_program(name: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let more = ["/usr/local/sbin", "/usr/sbin", "/sbin", "/usr/local/bin", "/usr/bin"];
    let folders = std::env::split_paths(&path).chain(more.into_iter().map(PathBuf::from));
    folders.map(|folder| folder.join(name)).find(|path| Path::is_file(path))
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::free_port;

    #[test]
    fn no_port_is_given_twice_although_nobody_listens_on_it_yet() {
        let ports: BTreeSet<u16> = (0..1_000).map(|_| free_port()).collect();
        assert_eq!(ports.len(), 1_000);
    }
}
