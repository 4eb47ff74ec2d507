//! The worker of imgsync: moves manifests and blobs from registry to registry.

// A copy is a deep nest of futures, which the compiler works out.
#![recursion_limit = "256"]

pub mod arguments;
pub mod cluster;
pub mod copy;
pub mod files;
pub mod health;
pub mod host;
pub mod limits;
pub mod log;
pub mod logging;
pub mod metrics;
pub mod runner;
pub mod server;
pub mod service;
pub mod settings;
#[cfg(feature = "otel")]
mod traces;
pub mod traffic;

/// The name of the machine; `localhost` where it has none that is text.
pub fn host_name() -> String {
    rustix::system::uname().nodename().to_str().ok().filter(|name| !name.is_empty()).unwrap_or("localhost").to_owned()
}

/// This process, for people and for leases: no other has its name, were it on the same machine under the same number.
pub fn process_name() -> String {
    let random: u32 = rand::random();
    format!("{}-{}-{random:08x}", host_name(), std::process::id())
}

/// The requests to stop that a process gets: Ctrl-C and SIGTERM. Listens from its creation on, so that none is lost between
/// two calls.
#[derive(Debug)]
pub struct StopSignals {
    #[cfg(unix)]
    both: Option<[tokio::signal::unix::Signal; 2]>,
}

impl StopSignals {
    /// Listens. From now on neither signal ends the process by itself.
    #[must_use]
    pub fn new() -> StopSignals {
        StopSignals {
            #[cfg(unix)]
            both: {
                use tokio::signal::unix::{SignalKind, signal};
                signal(SignalKind::interrupt()).and_then(|one| Ok([one, signal(SignalKind::terminate())?])).ok()
            },
        }
    }

    /// Returns at the next request to stop.
    pub async fn next(&mut self) {
        #[cfg(unix)]
        match &mut self.both {
            Some([interrupt, terminate]) => {
                tokio::select! {
                    _ = interrupt.recv() => {}
                    _ = terminate.recv() => {}
                }
            }
            None => std::future::pending().await,
        }
        #[cfg(not(unix))]
        if tokio::signal::ctrl_c().await.is_err() {
            std::future::pending::<()>().await;
        }
    }
}

impl Default for StopSignals {
    fn default() -> StopSignals {
        StopSignals::new()
    }
}
