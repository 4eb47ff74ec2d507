//! The harness: real servers, a registry that fails on command, images to copy.
//!
//! Nothing here asks `imgsync` for the truth: digests, manifests and requests are computed and counted independently.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "a test harness: a failure of the harness itself is a failure of the test"
)]

pub mod fault;
pub mod images;
pub mod program;
pub mod proxy;
pub mod relay;
pub mod servers;
pub mod skopeo;
pub mod tls;

mod tree;

pub use fault::FaultRegistry;
pub use images::{Blob, Image};
pub use program::Imgsync;
pub use servers::{DockerEngine, DockerRegistry};
pub use tree::Tree;
