//! The worker of imgsync: moves manifests and blobs from registry to registry.

pub mod arguments;
pub mod cluster;
pub mod copy;
pub mod health;
pub mod host;
pub mod limits;
pub mod log;
pub mod logging;
pub mod metrics;
pub mod runner;
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

/// Returns when the process is asked to stop: Ctrl-C or SIGTERM.
pub async fn asked_to_stop() {
    #[cfg(unix)]
    {
        use tokio::signal::unix::{SignalKind, signal};
        let (Ok(mut interrupt), Ok(mut terminate)) = (signal(SignalKind::interrupt()), signal(SignalKind::terminate()))
        else {
            return std::future::pending().await;
        };
        tokio::select! {
            _ = interrupt.recv() => {}
            _ = terminate.recv() => {}
        }
    }
    #[cfg(not(unix))]
    if tokio::signal::ctrl_c().await.is_err() {
        std::future::pending::<()>().await;
    }
}
