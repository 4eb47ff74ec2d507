//! Test harness: real servers, a registry that fails on command, and images to copy.
//!
//! The harness never relies on `imgsync` for facts: it computes digests and manifests and counts requests
//! independently.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "a test harness: a failure of the harness itself is a failure of the test"
)]

pub mod browser;
pub mod cluster;
pub mod compose;
pub mod dns;
pub mod fault;
pub mod images;
pub mod namespace;
pub mod podman;
pub mod program;
pub mod proxy;
pub mod registry_profiles;
pub mod resource_usage;
pub mod serve_process;
pub mod servers;
pub mod skopeo;
pub mod tcp_proxy;
pub mod tls;

mod fresh_build;
mod registry_client;
mod sockets;

pub use browser::Browser;
pub use cluster::TestCluster;
pub use compose::{Compose, ComposeFile};
pub use fault::FaultRegistry;
pub use images::{Blob, TestImage};
pub use program::Imgsync;
pub use registry_client::FetchedTree;
pub use serve_process::ServeProcess;
pub use servers::{DockerEngine, DockerRegistry, RabbitMq, RedisServer};

/// Reports that a test could not run. `scripts/test` repeats these lines at its end, and fails if a package is missing.
pub fn skipped(what: &str) {
    report_skipped(if what.contains("is not installed") { "NOT RUN, missing package" } else { "NOT RUN" }, what);
}

/// Reports that a test could not run without a program that Debian does not package. `scripts/test` names it.
pub fn skipped_unpackaged(what: &str) {
    report_skipped("NOT RUN, not packaged by Debian", what);
}

fn report_skipped(kind: &str, what: &str) {
    use std::io::Write as _;
    let line = format!("{kind}: {what}");
    let _ = writeln!(std::io::stderr(), "{line}");
    if let Some(file) = std::env::var_os("IMGSYNC_TESTS_NOT_RUN")
        && let Ok(mut file) = std::fs::OpenOptions::new().create(true).append(true).open(file)
    {
        // One write, so that lines of several tests do not mix.
        let _ = file.write_all(format!("{line}\n").as_bytes());
    }
}
