//! Worker of imgsync: copies manifests and blobs between registries.

// The compiler needs a higher limit for the deeply nested futures of a copy.
#![recursion_limit = "256"]

pub mod cli;
pub mod cluster;
pub mod cluster_worker;
pub mod copy;
pub mod file_limit;
pub mod health;
pub mod host_check;
pub mod limits;
pub mod locale;
pub mod monthly_quota;
pub mod runner;
pub mod server;
pub mod settings;
pub mod task_events;
pub mod telemetry;

/// Returns the host name, or `localhost` if it is empty or not UTF-8.
pub fn host_name() -> String {
    rustix::system::uname().nodename().to_str().ok().filter(|name| !name.is_empty()).unwrap_or("localhost").to_owned()
}

/// Returns a name for this process, for display and for leases. It contains random bits, so a process that reuses the
/// host and process id gets another name.
pub fn process_name() -> String {
    let random: u32 = rand::random();
    format!("{}-{}-{random:08x}", host_name(), std::process::id())
}

/// Listener for the stop signals, Ctrl-C and SIGTERM. It listens from creation on, so no signal is lost between two
/// calls.
#[derive(Debug)]
pub struct StopSignals {
    #[cfg(unix)]
    signals: Option<[tokio::signal::unix::Signal; 2]>,
}

impl StopSignals {
    /// Starts listening. From then on neither signal terminates the process.
    #[must_use]
    pub fn new() -> StopSignals {
        StopSignals {
            #[cfg(unix)]
            signals: {
                use tokio::signal::unix::{SignalKind, signal};
                signal(SignalKind::interrupt()).and_then(|one| Ok([one, signal(SignalKind::terminate())?])).ok()
            },
        }
    }

    /// Waits for the next stop signal.
    pub async fn next(&mut self) {
        #[cfg(unix)]
        match &mut self.signals {
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
