//! Registries that count requests, directly or over a line with latency.

use std::path::PathBuf;
use std::time::Duration;

use imgsync_tests::images::TestImage;
use imgsync_tests::servers::{DockerRegistry, DockerRegistryOptions};
use imgsync_tests::tcp_proxy::{Direction, TcpProxy};
use imgsync_tests::{FaultRegistry, Imgsync};

/// A registry.
pub(crate) struct CountingServer {
    registry: RegistryKind,
    line: Option<TcpProxy>,
}

enum RegistryKind {
    Docker(Box<DockerRegistry>),
    Fault(FaultRegistry),
}

impl CountingServer {
    /// Starts Debian's docker-registry, which stores in memory.
    pub(crate) async fn docker() -> CountingServer {
        let storage = Some(PathBuf::from("/dev/shm")).filter(|memory| memory.is_dir());
        let options = DockerRegistryOptions { storage, ..DockerRegistryOptions::default() };
        let registry = DockerRegistry::start_with(options).await;
        CountingServer { registry: RegistryKind::Docker(Box::new(registry)), line: None }
    }

    /// Starts the harness's registry, which lives in this process and serves from memory.
    pub(crate) async fn in_memory() -> CountingServer {
        CountingServer { registry: RegistryKind::Fault(FaultRegistry::start().await), line: None }
    }

    /// Puts a line in front of it, at first without latency.
    pub(crate) async fn behind_line(self) -> CountingServer {
        let line = TcpProxy::start(&self.host()).await;
        CountingServer { line: Some(line), ..self }
    }

    /// Sets the round-trip time of its line.
    pub(crate) fn set_round_trip(&self, round_trip: Duration) {
        let line = self.line.as_ref().unwrap();
        line.delay(Direction::Up, round_trip / 2);
        line.delay(Direction::Down, round_trip / 2);
    }

    /// Returns `127.0.0.1:PORT`, of the line if there is one.
    pub(crate) fn host(&self) -> String {
        match (&self.line, &self.registry) {
            (Some(line), _) => line.host(),
            (None, RegistryKind::Docker(registry)) => registry.host(),
            (None, RegistryKind::Fault(registry)) => registry.host(),
        }
    }

    /// Pushes an image, not over the line.
    pub(crate) async fn push(&self, repository: &str, tag: &str, image: &TestImage) {
        match &self.registry {
            RegistryKind::Docker(registry) => registry.push(repository, tag, image).await,
            RegistryKind::Fault(registry) => registry.push(repository, tag, image),
        }
    }

    /// Fails unless a tag holds the whole image.
    pub(crate) async fn assert_holds(&self, repository: &str, tag: &str, image: &TestImage) {
        match &self.registry {
            RegistryKind::Docker(registry) => registry.assert_holds(repository, tag, image).await,
            RegistryKind::Fault(_) => unreachable!("nothing is copied to it"),
        }
    }

    /// Counts all requests.
    pub(crate) fn requests(&self) -> u64 {
        match &self.registry {
            RegistryKind::Docker(registry) => registry.requests().len() as u64,
            RegistryKind::Fault(registry) => registry.total_with_pings_and_tokens(),
        }
    }

    /// Counts the requests by method and status, to compare clients.
    pub(crate) fn describe_requests(&self) -> String {
        let mut tally = std::collections::BTreeMap::<String, u64>::new();
        match &self.registry {
            RegistryKind::Docker(registry) => tally.extend(registry.count_by_method_and_status()),
            RegistryKind::Fault(registry) => {
                for request in registry.requests() {
                    *tally.entry(format!("{:?} {}", request.kind, request.status.unwrap_or(0))).or_default() += 1;
                }
            }
        }
        let entries: Vec<String> = tally.iter().map(|(what, count)| format!("{count}× {what}")).collect();
        entries.join(", ")
    }

    pub(crate) fn clear_requests(&self) {
        match &self.registry {
            RegistryKind::Docker(registry) => registry.clear_requests(),
            RegistryKind::Fault(registry) => registry.clear_requests(),
        }
    }
}

/// Creates `imgsync` in a home of its own, with a configuration.
pub(crate) fn imgsync(yaml: &str) -> Imgsync {
    let program = Imgsync::at(env!("CARGO_BIN_EXE_imgsync"));
    program.file("imgsync.yaml", yaml);
    program
}

/// Returns the next run of a configured `imgsync`.
pub(crate) fn next_run(program: &Imgsync) -> Imgsync {
    program.again().args(["run", "--json", "--quiet", "-c"]).arg(program.work_dir().join("imgsync.yaml"))
}
